//! The audit of a real agent: what it tells of a job's life and of refusals, that tampering shows, what copies get, and
//! that neither a flood nor a quota breaks it.

use crate::common::{SITE, Site, drop_job, job};
use passerelle_protocol::SigningKey;
use passerelle_tests::{Agent, FakeHub, PATIENCE, Reply, Rsyslog, SmallDisk, is_root, resources, run, until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    io::Read as _,
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::Duration,
};

/// The rows that `audit show --json` prints.
pub fn rows(agent: &Agent) -> Vec<Value> {
    let output = agent.output(&["audit", "show", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

/// Waits until a row of this kind is shown.
async fn row(agent: &Agent, kind: &str) -> Value {
    until(&format!("a row {kind}"), PATIENCE, async || {
        rows(agent).into_iter().find(|row| row["kind"] == kind)
    })
    .await
}

/// What `audit verify --json` says, and its exit code.
pub fn verify(agent: &Agent, more: &[&str]) -> (Value, i32) {
    let output = agent.output(&[&["audit", "verify", "--json"], more].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    let verdict = serde_json::from_str(&said)
        .unwrap_or_else(|e| panic!("{e}: {said}\n{}", String::from_utf8_lossy(&output.stderr)));
    (verdict, output.status.code().unwrap_or(-1))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_life_and_the_agents_own_are_in_the_chain_whether_the_agent_runs_or_not() {
    let mut site = Site::start().await;
    let done = site.hub.api.succeed(&drop_job("a.csv", "x")).await;
    let denied = site.hub.api.run(&job("compta", "drop", json!({"path": "../a"}))).await;
    let id = done["id"].as_str().unwrap();
    let of_job = until("the rows of the job", PATIENCE, async || {
        let of_job: Vec<Value> = rows(&site.agent).into_iter().filter(|row| row["job"] == id).collect();
        (of_job.len() == 3).then_some(of_job)
    })
    .await;
    let kinds: Vec<&str> = of_job.iter().filter_map(|row| row["kind"].as_str()).collect();
    assert_eq!(kinds, ["accepted", "started", "succeeded"]);
    assert_eq!(
        (&of_job[0]["rule"], &of_job[0]["detail"], &of_job[2]["effect"]),
        (&json!("compta#1"), &json!("path \"a.csv\""), &json!("applied"))
    );
    let no = row(&site.agent, "denied").await;
    assert_eq!((&no["job"], &no["code"]), (&denied["id"], &json!("path_invalid")));
    for kind in ["chain_started", "agent_started", "enrolled", "connected"] {
        row(&site.agent, kind).await;
    }
    let (running, code) = verify(&site.agent, &[]);
    assert_eq!((&running["ok"], code), (&json!(true), 0), "{running:#}");
    // Stopped by a crash: what is in the journal alone is checked too; then properly.
    site.agent.kill();
    let (killed, code) = verify(&site.agent, &["--expect", running["head"].as_str().unwrap()]);
    assert!(code == 0 && killed["rows"].as_u64() >= running["rows"].as_u64(), "{killed:#}");
    site.agent.start().await;
    site.agent.process().signal(Signal::TERM);
    assert_eq!(site.agent.process().exit_code(PATIENCE).await, Some(0));
    let (stopped, code) = verify(&site.agent, &["--expect", killed["head"].as_str().unwrap()]);
    assert!(code == 0 && stopped["notes"] == json!([]), "{stopped:#}");
    let head = site.agent.folder().join("state/audit/head");
    let kept = fs::read(&head).unwrap();
    for broken in [None, Some("xx")] {
        broken.map_or_else(|| fs::remove_file(&head), |text| fs::write(&head, text)).unwrap();
        let (told, _) = verify(&site.agent, &[]);
        assert!(told["notes"].to_string().contains("audit/head"), "{told:#}");
    }
    fs::write(&head, kept).unwrap();
    let kinds: Vec<Value> = rows(&site.agent).into_iter().map(|row| row["kind"].clone()).collect();
    assert!(kinds.contains(&json!("draining")) && kinds.last() == Some(&json!("agent_stopped")), "{kinds:?}");
    // A row that somebody changed.
    let file = site.agent.folder().join("state/audit/000000000001.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("compta#1", "compta#2", 1)).unwrap();
    let (broken, code) = verify(&site.agent, &[]);
    assert_eq!((code, &broken["broken"]["seq"]), (1, &of_job[0]["seq"]), "{broken:#}");
    let told = site.agent.output(&["audit", "verify"]);
    assert!(String::from_utf8_lossy(&told.stderr).contains("it was changed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_owner_and_the_keys_do_is_in_the_chain_also_what_is_done_while_the_agent_is_stopped() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    site.agent.agent_key("key_rotation = \"1s\"");
    site.agent.start().await;
    let command = |agent: &Agent, arguments: &[&str]| {
        let output = agent.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    let kinds = |agent: &Agent, of: &'static [&'static str]| -> Vec<String> {
        let told = |row: Value| format!("{} {}", row["kind"].as_str().unwrap(), row["resource"]);
        rows(agent).into_iter().filter(|row| of.iter().any(|kind| row["kind"] == *kind)).map(told).collect()
    };
    const PAUSES: &[&str] = &["paused", "resumed"];
    command(&site.agent, &["pause", "compta", "--reason", "stock-taking", "--by", "anna"]);
    let paused = row(&site.agent, "paused").await;
    assert!(paused["detail"].as_str().unwrap().ends_with("by anna: stock-taking"), "{paused:#}");
    command(&site.agent, &["resume", "compta"]);
    row(&site.agent, "resumed").await;
    let own = row(&site.agent, "key_rotated").await;
    assert!(own["detail"].as_str().unwrap().starts_with("this agent's key, now "), "{own:#}");
    site.hub.admin(&["signing-key", "rotate"]);
    until("the row of the hub's key", PATIENCE, async || {
        rows(&site.agent).into_iter().find(|row| row["kind"] == "key_rotated" && row["code"] == "hub_key")
    })
    .await;

    // While it is stopped: ended what was begun, and begun anew; and another identity.
    command(&site.agent, &["pause", "orders-app"]);
    until("the second pause", PATIENCE, async || (kinds(&site.agent, PAUSES).len() == 3).then_some(())).await;
    site.agent.process().signal(Signal::TERM);
    assert_eq!(site.agent.process().exit_code(PATIENCE).await, Some(0));
    command(&site.agent, &["resume", "orders-app"]);
    command(&site.agent, &["pause", "compta"]);
    site.agent.secret("enrolment-token", &site.hub.enrolment_token(SITE, &[]));
    command(&site.agent, &["re-enrol"]);
    site.agent.start().await;
    let all = until("the rows of what was done meanwhile", PATIENCE, async || {
        Some(kinds(&site.agent, PAUSES)).filter(|kinds| kinds.len() >= 5)
    })
    .await;
    let expected = [
        r#"paused "compta""#,
        r#"resumed "compta""#,
        r#"paused "orders-app""#,
        r#"paused "compta""#,
        r#"resumed "orders-app""#,
    ];
    assert_eq!(all, expected);
    // Each identity once, however often the agent starts.
    site.agent.restart().await;
    until("the rows of the third start", PATIENCE, async || {
        (kinds(&site.agent, &["agent_started"]).len() == 3).then_some(())
    })
    .await;
    assert_eq!(kinds(&site.agent, &["enrolled"]).len(), 2);
    let (verdict, code) = verify(&site.agent, &[]);
    assert_eq!(code, 0, "{verdict:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refused_offers_is_counted_and_stays_small() {
    let mut hub = FakeHub::start().await;
    let files = tempfile::tempdir().unwrap();
    let mut agent = Agent::at(&hub.url, "paris-1");
    agent.resource("compta", &resources::folder("compta", files.path()));
    agent.spawn();
    let mut session = hub.welcomed().await;
    let stranger = Arc::new(SigningKey::generate().unwrap().0);
    // An agent hangs up on a hub that offers more than it may.
    const FLOOD: usize = 2000;
    const AT_ONCE: usize = 20;
    for _ in 0..FLOOD / AT_ONCE {
        for _ in 0..AT_ONCE {
            let mut draft = hub.draft("compta", "drop", json!({"path": "a.csv"})).with_payload(b"x");
            draft.envelope_key = Arc::clone(&stranger);
            session.send(&draft.message()).await;
        }
        for _ in 0..AT_ONCE {
            assert_eq!(session.receive(&["decline"]).await["code"], "signature_invalid");
        }
    }
    agent.process().signal(Signal::TERM);
    assert_eq!(agent.process().exit_code(PATIENCE).await, Some(0));
    let refused: Vec<Value> = rows(&agent).into_iter().filter(|row| row["kind"] == "offer_refused").collect();
    let counted: u64 = refused.iter().map(|row| row["count"].as_u64().unwrap_or(1)).sum();
    assert_eq!(counted, FLOOD as u64);
    assert!(refused.len() < 200, "{} rows", refused.len());
    assert_eq!(verify(&agent, &[]).1, 0);
}

/// The row in a message as it came to a syslog server, on a local socket or a port.
fn message(text: &str) -> Value {
    if let Some((header, row)) = text.split_once("]: {") {
        let (priority, rest) = header.split_once('>').unwrap_or_else(|| panic!("no priority in {text}"));
        assert!(matches!(priority, "<108" | "<110"), "{text}");
        assert!(rest.get(15..).is_some_and(|rest| rest.starts_with(" passerelle-agent[")), "{text}");
        return serde_json::from_str(&format!("{{{row}")).unwrap_or_else(|e| panic!("{e}: {text}"));
    }
    let (header, row) = text.split_once(" - {").unwrap_or_else(|| panic!("no row in {text}"));
    let mut words = header.split(' ');
    assert!(matches!(words.next(), Some("<108>1" | "<110>1")), "{text}");
    assert_eq!((words.nth(1), words.next()), (Some("paris-1"), Some("passerelle-agent")), "{text}");
    serde_json::from_str(&format!("{{{row}")).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Receives datagrams until one has this kind.
fn until_kind(kind: &str, mut receive: impl FnMut(&mut [u8]) -> std::io::Result<usize>) -> Vec<u64> {
    let mut buffer = [0; 65_536];
    let mut numbers = Vec::new();
    loop {
        let length = receive(&mut buffer).expect("a datagram in time");
        let row = message(std::str::from_utf8(&buffer[..length]).expect("UTF-8"));
        numbers.push(row["seq"].as_u64().expect("a number"));
        if row["kind"] == kind {
            return numbers;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_and_a_file_that_is_rotated_get_every_row() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    let home = tempfile::tempdir().unwrap();
    let (socket, copy) = (home.path().join("log"), home.path().join("audit.jsonl"));
    let server = UnixDatagram::bind(&socket).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let audit = |syslog: &str| format!("file = \"{}\"\nsyslog = \"{syslog}\"", copy.display());
    site.agent.log_key("[audit]").log_key(&audit(&format!("unix:{}", socket.display())));
    site.agent.start().await;
    site.hub.api.succeed(&drop_job("a.csv", "x")).await;
    let numbers = tokio::task::spawn_blocking(move || until_kind("succeeded", |buffer| server.recv(buffer)));
    let numbers = numbers.await.unwrap();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    // Whoever rotates the file does not ask.
    copied(&copy, "succeeded").await;
    let rotated = home.path().join("audit.jsonl.1");
    fs::rename(&copy, &rotated).unwrap();
    // And the server moves, to datagrams over the network: it gets the chain from its beginning.
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let to = format!("udp://{}", server.local_addr().unwrap());
    let text = fs::read_to_string(site.agent.folder().join("agent.toml")).unwrap();
    let moved = text.replace(&format!("unix:{}", socket.display()), &to);
    assert_ne!(text, moved);
    site.agent.file("agent.toml", moved);
    let numbers = tokio::task::spawn_blocking(move || {
        until_kind("configuration_applied", |buffer| server.recv(buffer))
    });
    assert_eq!(numbers.await.unwrap()[0], 1);
    site.hub.api.run(&job("compta", "drop", json!({"path": "../a"}))).await;
    copied(&copy, "denied").await;
    let both = home.path().join("both.jsonl");
    fs::write(&both, fs::read_to_string(&rotated).unwrap() + &fs::read_to_string(&copy).unwrap()).unwrap();
    let (verdict, code) = verify(&site.agent, &["--from", both.to_str().unwrap()]);
    assert!(code == 0 && verdict["first"] == 1, "{verdict:#}");
}

/// Waits until a copy holds a row of this kind.
async fn copied(copy: &std::path::Path, kind: &str) {
    let needle = format!("\"kind\":\"{kind}\"");
    until(&format!("{kind} in the copy"), PATIENCE, async || {
        fs::read_to_string(copy).ok().filter(|text| text.contains(&needle)).map(drop)
    })
    .await;
}

/// Reads octet-counted messages (RFC 6587) until one has this kind.
fn read_frames(stream: &mut TcpStream, kind: &str, rows: &mut Vec<Value>) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    loop {
        let mut length = 0;
        loop {
            let mut digit = [0];
            stream.read_exact(&mut digit).expect("a frame");
            if digit[0] == b' ' {
                break;
            }
            length = length * 10 + usize::from(digit[0] - b'0');
        }
        let mut text = vec![0; length];
        stream.read_exact(&mut text).expect("a whole frame");
        let row = message(std::str::from_utf8(&text).expect("UTF-8"));
        let last = row["kind"] == kind;
        rows.push(row);
        if last {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_syslog_daemon_reads_every_row_its_priority_and_program() {
    let rsyslog = Rsyslog::start().await;
    for (input, to) in [
        ("imuxsock", format!("unix:{}", rsyslog.socket().display())),
        ("imudp", format!("udp://127.0.0.1:{}", rsyslog.udp)),
        ("imtcp", format!("tcp://127.0.0.1:{}", rsyslog.tcp)),
    ] {
        let mut site = Site::prepared(|_, _| Reply::status(200)).await;
        site.agent.log_key("[audit]").log_key(&format!("syslog = \"{to}\""));
        site.agent.start().await;
        site.hub.api.succeed(&drop_job("a.csv", "x")).await;
        site.hub.api.run(&job("compta", "drop", json!({"path": "../a"}))).await;
        let read = until(&format!("a refusal by {input}"), PATIENCE, async || {
            let read = rsyslog.read(input);
            read.iter().any(|fields| fields[6].contains("\"kind\":\"denied\"")).then_some(read)
        })
        .await;
        let pid = site.agent.process().id().to_string();
        for fields in &read {
            let row: Value =
                serde_json::from_str(fields[6].trim()).unwrap_or_else(|e| panic!("{e}: {fields:?}"));
            let priority = if row["kind"] == "denied" { "108" } else { "110" };
            assert_eq!(
                [&fields[1], &fields[2], &fields[3]],
                [priority, "passerelle-agent", &pid],
                "{fields:?}"
            );
            if input != "imuxsock" {
                assert_eq!(
                    [&fields[4], &fields[5]],
                    [row["kind"].as_str().unwrap(), "paris-1"],
                    "{fields:?}"
                );
            }
        }
        let numbers: Vec<u64> = read
            .iter()
            .filter_map(|fields| serde_json::from_str::<Value>(fields[6].trim()).ok()?["seq"].as_u64())
            .collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "{input}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_syslog_server_that_was_away_gets_what_it_missed_at_least_once() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    site.agent.log_key("[audit]").log_key(&format!("syslog = \"tcp://{address}\""));
    site.agent.start().await;
    let (listener, mut rows) = tokio::task::spawn_blocking(move || {
        let mut rows = Vec::new();
        let (mut stream, _) = listener.accept().unwrap();
        read_frames(&mut stream, "connected", &mut rows);
        // It ends, with what was just sent perhaps not taken.
        (listener, rows)
    })
    .await
    .unwrap();
    drop(listener);
    site.hub.api.succeed(&drop_job("a.csv", "x")).await;
    site.agent.restart().await;
    let again = TcpListener::bind(address).unwrap();
    let rows = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = again.accept().unwrap();
        read_frames(&mut stream, "succeeded", &mut rows);
        rows
    })
    .await
    .unwrap();
    let mut numbers: Vec<u64> = rows.iter().map(|row| row["seq"].as_u64().unwrap()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "a row is missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_a_copy_keeps_the_chain_and_is_caught_up_with() {
    if !is_root() {
        eprintln!("skipped: a small disk can be mounted by root only");
        return;
    }
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    let disk = SmallDisk::mount("1m");
    let copy = disk.path().join("audit.jsonl");
    site.agent.log_key("[audit]").log_key(&format!("file = \"{}\"", copy.display()));
    disk.fill();
    site.agent.start().await;
    site.hub.api.succeed(&drop_job("a.csv", "x")).await;
    site.agent.process().logged("A copy of the audit does not take rows", PATIENCE).await;
    row(&site.agent, "succeeded").await;
    assert_eq!(fs::metadata(&copy).map_or(0, |meta| meta.len()), 0, "half a line stayed");
    disk.free();
    copied(&copy, "succeeded").await;
    assert_eq!(verify(&site.agent, &["--from", copy.to_str().unwrap()]).1, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_quota_the_oldest_rows_go_and_a_row_says_so_or_no_job_is_taken() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    site.agent.agent_key("audit_quota = \"1MiB\"").log_key("[audit]").log_key("when_full = \"stop\"");
    site.agent.start().await;
    let path = "x".repeat(180);
    let mut submitted = 0;
    until("the audit to be full", Duration::from_secs(180), async || {
        let mut jobs = Vec::new();
        for _ in 0..100 {
            submitted += 1;
            jobs.push(site.hub.api.submit(&drop_job(&format!("{path}{submitted}"), "x")).await);
        }
        for id in jobs {
            site.hub.api.reach(&id, &["succeeded", "queued", "offered"]).await;
        }
        (site.agent.readiness().await == Some(503)).then_some(())
    })
    .await;
    let output = site.agent.output(&["health"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("agent.audit_quota"), "{output:?}");
    assert_eq!(verify(&site.agent, &[]).1, 0);
    let id = site.hub.api.submit(&drop_job("late.csv", "x")).await;
    // The operator lets the oldest go: the agent takes jobs again.
    let text = fs::read_to_string(site.agent.folder().join("agent.toml")).unwrap();
    site.agent.file("agent.toml", text.replace("\"stop\"", "\"delete_oldest\""));
    site.hub.api.end_of(&id, PATIENCE).await;
    row(&site.agent, "cut").await;
    until("the oldest file to be gone", PATIENCE, async || {
        let (verdict, code) = verify(&site.agent, &[]);
        assert_eq!(code, 0, "{verdict:#}");
        (verdict["first"].as_u64() > Some(1)).then_some(())
    })
    .await;
    // Without the row that tells of it the cut is found.
    site.agent.kill();
    let folder = site.agent.folder().join("state/audit");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "jsonl"));
    files.sort();
    fs::remove_file(&files[0]).unwrap();
    assert_eq!(verify(&site.agent, &[]).1, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_party_can_check_a_row_with_what_the_documentation_says() {
    let site = Site::start().await;
    let row = row(&site.agent, "connected").await;
    let file = site.agent.folder().join("state/audit/000000000001.jsonl");
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find(|line| line.contains("\"kind\":\"connected\"")).unwrap();
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/audit.md")).unwrap();
    let command = page.lines().find(|line| line.starts_with("printf ")).unwrap();
    let output = run(Command::new("sh").args(["-c", command]).env("LINE", line));
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.split(' ').next(), row["hash"].as_str(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_is_verified_with_the_hubs_word_for_the_key_and_with_the_operators() {
    let site = Site::start().await;
    let done = site.hub.api.succeed(&drop_job("a.csv", "x")).await;
    let home = tempfile::tempdir().unwrap();
    let saved = home.path().join("job.json");
    fs::write(&saved, done.to_string()).unwrap();
    let pem = home.path().join("agent.pub.pem");
    fs::write(&pem, site.agent.output(&["public-key"]).stdout).unwrap();
    let verify = |arguments: &[&str]| {
        let mut command = Command::new(passerelle_tests::binary("passerelle"));
        command.args(["receipts", "verify"]).args(arguments);
        command.env("PASSERELLE_URL", &site.hub.url).env("PASSERELLE_API_KEY", site.hub.api.key());
        let output = run(&mut command);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
    };
    let (id, saved_at, pem_at) =
        (done["id"].as_str().unwrap(), saved.to_str().unwrap(), pem.to_str().unwrap());
    for arguments in
        [&[id][..], &[id, "--agent-key", pem_at], &[saved_at, "--agent-key", pem_at], &[saved_at]]
    {
        let (code, said) = verify(arguments);
        assert!(code == 0 && said.contains("by rule compta#1, synced"), "{arguments:?}: {said}");
    }
    let (code, said) = verify(&[id, "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &said["ok"], &said["receipt"]["result"]), (0, &json!(true), &done["result"]));
    // A job that says something else than the agent signed.
    let mut forged = done.clone();
    forged["result"]["size"] = json!(2);
    fs::write(&saved, forged.to_string()).unwrap();
    let (code, said) = verify(&[saved_at, "--agent-key", pem_at]);
    assert!(code == 1 && said.contains("another one than the agent signed"), "{said}");
    // Somebody else's key.
    let stranger = Command::new("openssl").args(["genpkey", "-algorithm", "ed25519"]).output().unwrap();
    let private = home.path().join("stranger.pem");
    fs::write(&private, stranger.stdout).unwrap();
    let public = Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&private).output().unwrap();
    fs::write(&pem, public.stdout).unwrap();
    let (code, said) = verify(&[id, "--agent-key", pem_at]);
    assert!(code == 1 && said.contains("unknown key"), "{said}");
    // A denied job has none.
    let denied = site.hub.api.run(&job("compta", "drop", json!({"path": "../a"}))).await;
    let (code, said) = verify(&[denied["id"].as_str().unwrap()]);
    assert!(code == 1 && said.contains("agents sign successes only"), "{said}");
}
