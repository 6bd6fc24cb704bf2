//! What only an SMB server can do wrong: log-in, guests, dialects, encryption, locks, lost and changed messages.

use crate::{
    cases::failed,
    support::{
        Place, call, check, large_payload, payload, samba,
        samba::{Options, Samba},
        server::Server as _,
        sink, stalling_payload,
    },
};
use passerelle_connectors::{
    Call, Code, DynConnector, Effect, Examine, Failure, Found, Patience, Scan, Verdict,
};
use serde_json::json;
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::symlink,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

fn server(place: &Place) -> &Samba {
    place.samba.as_ref().unwrap()
}

/// A connector for the place's server with other settings, made from its ordinary ones.
fn other(place: &Place, change: impl FnOnce(String) -> String) -> Arc<dyn DynConnector> {
    check(&place.base, &change(server(place).settings("/root", ""))).unwrap()
}

async fn probe(connector: &Arc<dyn DynConnector>) -> Result<(), Failure> {
    connector.probe(Duration::from_secs(20)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_log_in_is_permanent_and_tells_no_password() {
    let guests = "map to guest = bad password\n";
    for (global, word) in [("", "refused the agent's log-in"), (guests, "guest")] {
        let place = Place::smb_with(Options { global, ..Options::default() }, "");
        fs::write(place.base.join("smb-password"), "battery staple").unwrap();
        let wrong = other(&place, |settings| settings);
        let failure = failed(probe(&wrong).await, Verdict::Permanent, Code::TargetAuth, Effect::NotApplied);
        assert!(failure.message.contains(word), "{failure}");
        assert!(!failure.to_string().contains("battery"), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_account_may_name_its_domain() {
    let place = Place::smb(false);
    let by_key = other(&place, |settings| settings + "domain = \"WORKGROUP\"\n");
    let by_name = other(&place, |settings| settings.replace("\"root\"", "\"WORKGROUP\\\\root\""));
    for connector in [by_key, by_name] {
        probe(&connector).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_named() {
    let place = Place::smb(false);
    for (url, code, word) in [
        ("/nothing/root\"", Code::TargetNotFound, "share does not exist"),
        ("/files/nothing\"", Code::TargetNotFound, "folder does not exist"),
        ("/print\"", Code::TargetUnsupported, "no share with files"),
        ("/IPC$\"", Code::TargetUnsupported, "no share with files"),
    ] {
        let connector = other(&place, |settings| settings.replace("/files/root\"", url));
        let failure = failed(probe(&connector).await, Verdict::Permanent, code, Effect::NotApplied);
        assert!(failure.message.contains(word), "{url}: {failure}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_dialect_works() {
    for dialect in ["SMB2_02", "SMB2_10", "SMB3_00", "SMB3_02", "SMB3_11"] {
        for encrypted in [false, true] {
            if encrypted && dialect.starts_with("SMB2") {
                continue;
            }
            let global: &'static str = format!("server max protocol = {dialect}\n").leak();
            let place = Place::smb_with(Options { encrypted, global, ..Options::default() }, "");
            let content = vec![7; 300_000];
            let dropped = place.drop(json!({"path": "a.csv"}), &content).await;
            dropped.unwrap_or_else(|error| panic!("{dialect}, encrypted: {encrypted}: {error}"));
            let (_, fetched, _) = place.fetch(json!({"path": "a.csv"})).await.unwrap();
            assert_eq!(fetched, content, "{dialect}");
            let listed = place.ask("list", json!({})).await.unwrap();
            assert_eq!(listed["items"][0]["path"], "a.csv", "{dialect}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encryption_is_used_where_one_side_demands_it() {
    // The share does not ask for it, the operator does.
    let place = Place::smb_with(Options::default(), "encryption = \"required\"\n");
    let links = place.connector.examine(looking()).await;
    let share = links.iter().find(|link| link.name == "share").unwrap();
    assert!(matches!(&share.found, Found::Passed(found) if found.contains("encrypted")), "{share:?}");
    place.drop(json!({"path": "a.csv"}), b"secret").await.unwrap();
    assert_eq!(place.read("a.csv"), b"secret");
    // The share does; and so for a server that has no cipher.
    for (encrypted, settings, max) in
        [(true, "", "SMB3_11"), (false, "encryption = \"required\"\n", "SMB2_10")]
    {
        let global: &'static str = format!("server max protocol = {max}\n").leak();
        let place = Place::smb_with(Options { encrypted, global, ..Options::default() }, settings);
        let result = probe(&place.connector).await;
        match encrypted {
            true => result.unwrap(),
            false => {
                let failure = failed(result, Verdict::Permanent, Code::TargetUnsupported, Effect::NotApplied);
                assert!(failure.message.contains("encryption is required"), "{failure}");
            }
        }
    }
}

fn looking() -> Examine {
    Examine { timeout: Duration::from_secs(20), try_writing: vec![String::new()] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_check_shows_each_link_and_writes() {
    let place = Place::smb(false);
    let links = place.connector.examine(looking()).await;
    let names: Vec<_> = links.iter().map(|link| link.name).collect();
    assert_eq!(names, ["name", "connection", "log-in", "share", "folder", "writing"]);
    assert!(links.iter().all(|link| matches!(link.found, Found::Passed(_))), "{links:?}");
    assert_eq!(place.parts(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_holds_open_is_a_retry() {
    let place = Place::smb(false);
    let (input, _) = large_payload(64 << 20);
    place.run(&call(), "drop", &json!({"path": "held.csv"}), Some(input)).await.unwrap();
    let mut reader = Command::new("smbclient")
        .args(["//127.0.0.1/files", "-p", &server(&place).port().to_string(), "-c", "get root/held.csv -"])
        .args(["-U", &format!("root%{}", samba::PASSWORD)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("smbclient cannot be run: apt-get install smbclient");
    // From here on it holds the file: its output is not read any further.
    reader.stdout.as_mut().unwrap().read_exact(&mut [0; 1024]).unwrap();
    for (operation, params) in
        [("delete", json!({"path": "held.csv"})), ("move", json!({"from": "held.csv", "to": "moved.csv"}))]
    {
        let result = place.ask(operation, params).await;
        let failure = failed(result, Verdict::Retry, Code::TargetConflict, Effect::NotApplied);
        assert!(failure.message.contains("locked"), "{operation}: {failure}");
    }
    drop(reader.kill());
    reader.wait().unwrap();
    // The server notices in its own time that nobody holds it any more.
    let since = Instant::now();
    while let Err(failure) = place.ask("delete", json!({"path": "held.csv"})).await {
        assert_eq!(failure.code, Code::TargetConflict, "{failure}");
        assert!(since.elapsed() < Duration::from_secs(20), "{failure}");
    }
    assert!(!place.has("held.csv"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_share_refuses() {
    let place = Place::smb_with(Options { share: "read only = yes\n", ..Options::default() }, "");
    place.write("a.csv", b"a");
    for (operation, params) in [
        ("drop", json!({"path": "b.csv"})),
        ("delete", json!({"path": "a.csv"})),
        ("move", json!({"from": "a.csv", "to": "b.csv"})),
    ] {
        let result = match operation {
            "drop" => place.drop(params, b"x").await.map(|outcome| outcome.result),
            _ => place.ask(operation, params).await,
        };
        failed(result, Verdict::Permanent, Code::TargetRefused, Effect::NotApplied);
    }
    assert_eq!(place.fetch(json!({"path": "a.csv"})).await.unwrap().1, b"a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_idle_session_is_replaced_unseen() {
    let mut place = Place::smb(false);
    for content in [&b"1"[..], b"2", b"3"] {
        place.drop(json!({"path": "a.csv"}), content).await.unwrap();
        assert_eq!(place.read("a.csv"), content);
        place.samba.as_mut().unwrap().restart();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_is_a_timeout() {
    let place = Place::smb(false);
    probe(&place.connector).await.unwrap();
    server(&place).freeze();
    let call = Call { timeout: Duration::from_secs(1), ..call() };
    let result = place.run(&call, "stat", &json!({"path": "a.csv"}), None).await;
    server(&place).thaw();
    failed(result, Verdict::Retry, Code::TargetTimeout, Effect::NotApplied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_in_mid_write_leaves_a_retry() {
    for encrypted in [false, true] {
        let mut place = Place::smb(encrypted);
        let call = call();
        let progress = call.progress.clone();
        let params = json!({"path": "a.csv"});
        let (input, _) = large_payload(512 << 20);
        let connector = Arc::clone(&place.connector);
        let running = tokio::spawn({
            let params = params.clone();
            async move { connector.execute(&call, "drop", &params, Some(input), &mut sink().0).await }
        });
        while progress.done() < 8 << 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        place.samba.as_mut().unwrap().stop();
        let result = running.await.unwrap();
        failed(result, Verdict::Retry, Code::TargetUnreachable, Effect::NotApplied);
        assert!(!place.has("a.csv"));
        place.samba.as_mut().unwrap().restart();
        place.drop(params, b"again").await.unwrap();
        assert_eq!(place.read("a.csv"), b"again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_drop_ends_soon_even_if_the_server_hangs() {
    let place = Place::smb(false);
    let call = call();
    let (cancel, progress) = (call.cancel.clone(), call.progress.clone());
    let connector = Arc::clone(&place.connector);
    let running = tokio::spawn(async move {
        let input = stalling_payload(vec![7; 4 << 20]);
        connector.execute(&call, "drop", &json!({"path": "a.csv"}), Some(input), &mut sink().0).await
    });
    while progress.done() < 1 << 20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server(&place).freeze();
    let since = Instant::now();
    cancel.cancel();
    let result = running.await.unwrap();
    server(&place).thaw();
    failed(result, Verdict::Cancelled, Code::Cancelled, Effect::NotApplied);
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    assert!(!place.has("a.csv"));
}

/// What stands between agent and server does with a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deed {
    Pass,
    /// At this byte.
    Change(usize),
    /// Before it is passed on.
    HangUp,
}

type Meddler = fn(&[u8], from_server: bool, seen: &AtomicUsize) -> Deed;

/// Passes messages on between the agent and a server, and meddles with them.
fn between(server: u16, meddler: Meddler) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&seen);
    thread::spawn(move || {
        while let Ok((agent, _)) = listener.accept() {
            let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
            for from_server in [false, true] {
                let (agent, server) = (agent.try_clone().unwrap(), server.try_clone().unwrap());
                let seen = Arc::clone(&counted);
                thread::spawn(move || {
                    let (from, to) = if from_server { (&server, &agent) } else { (&agent, &server) };
                    pass_on(from, to, |message| meddler(message, from_server, &seen));
                    drop((agent.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both)));
                });
            }
        }
    });
    (port, seen)
}

fn pass_on(mut from: &TcpStream, mut to: &TcpStream, meddle: impl Fn(&[u8]) -> Deed) {
    let mut prefix = [0; 4];
    while from.read_exact(&mut prefix).is_ok() {
        let mut message = vec![0; u32::from_be_bytes(prefix) as usize];
        if from.read_exact(&mut message).is_err() {
            return;
        }
        let deed = meddle(&message);
        if deed == Deed::HangUp {
            return;
        }
        if let Deed::Change(at) = deed {
            message[at] ^= 1;
        }
        if to.write_all(&[&prefix[..], &message].concat()).is_err() {
            return;
        }
    }
}

/// The commands in a chain of messages, each with the message.
fn commands(mut chain: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while chain.len() >= 64 {
        let next = u32::from_le_bytes(chain[20..24].try_into().unwrap()) as usize;
        let end = if next == 0 { chain.len() } else { next };
        found.push((u16::from_le_bytes([chain[12], chain[13]]), &chain[..end]));
        chain = &chain[end..];
    }
    found
}

/// Whether a message gives a file another name.
fn renames(message: &[u8]) -> bool {
    commands(message).iter().any(|(command, message)| *command == 0x11 && message[67] == 10)
}

fn hang_up_unheard(message: &[u8], from_server: bool, seen: &AtomicUsize) -> Deed {
    let first = !from_server && renames(message) && seen.fetch_add(1, Ordering::SeqCst) == 0;
    if first { Deed::HangUp } else { Deed::Pass }
}

/// The answer to the first rename is swallowed.
fn hang_up_heard(message: &[u8], from_server: bool, seen: &AtomicUsize) -> Deed {
    if !from_server && renames(message) {
        seen.fetch_add(1, Ordering::SeqCst);
    }
    let answers = from_server && commands(message).iter().any(|(command, _)| *command == 0x11);
    // Renames are counted; the first answer comes after the first of them.
    if answers && seen.load(Ordering::SeqCst) == 1 {
        seen.fetch_add(100, Ordering::SeqCst);
        return Deed::HangUp;
    }
    Deed::Pass
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rename_whose_answer_is_lost_happens_once() {
    let meddlers: [(Meddler, usize); 2] = [(hang_up_unheard, 2), (hang_up_heard, 101)];
    for (meddler, expected) in meddlers {
        for on_conflict in ["replace", "fail", "suffix"] {
            let place = Place::smb(false);
            let port = server(&place).port();
            let (proxy, seen) = between(port, meddler);
            let through = other(&place, |settings| settings.replace(&port.to_string(), &proxy.to_string()));
            let params = json!({"path": "a.csv", "on_conflict": on_conflict});
            let input = Some(payload(b"content"));
            let outcome = through.execute(&call(), "drop", &params, input, &mut sink().0).await;
            let outcome = outcome.unwrap_or_else(|e| panic!("{on_conflict}, {expected}: {e}"));
            assert_eq!((&outcome.result["path"], outcome.synced), (&json!("a.csv"), Some(true)));
            assert_eq!(place.read("a.csv"), b"content");
            assert_eq!(fs::read_dir(&place.root).unwrap().count(), 1, "{on_conflict}, {expected}");
            assert_eq!(seen.load(Ordering::SeqCst), expected, "{on_conflict}: how often it was sent");
        }
    }
}

/// A listing is changed on its way.
fn change_listing(message: &[u8], from_server: bool, seen: &AtomicUsize) -> Deed {
    let lists = from_server && commands(message).iter().any(|(command, _)| *command == 0x0E);
    if !lists {
        return Deed::Pass;
    }
    seen.fetch_add(1, Ordering::SeqCst);
    // In the time of the first entry.
    Deed::Change(64 + 8 + 16)
}

/// The server's word that the account is in is changed on its way.
fn change_log_in(message: &[u8], from_server: bool, seen: &AtomicUsize) -> Deed {
    let logged_in = from_server
        && commands(message).iter().any(|(command, message)| *command == 1 && message[8..12] == [0; 4]);
    if !logged_in {
        return Deed::Pass;
    }
    seen.fetch_add(1, Ordering::SeqCst);
    // In the credits, which nobody looks at closely.
    Deed::Change(14)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_changed_on_its_way_is_refused() {
    let meddlers: [Meddler; 2] = [change_listing, change_log_in];
    for meddler in meddlers {
        let place = Place::smb(false);
        place.write("a.csv", b"a");
        let port = server(&place).port();
        let (proxy, seen) = between(port, meddler);
        let through = other(&place, |settings| settings.replace(&port.to_string(), &proxy.to_string()));
        let result = through.execute(&call(), "list", &json!({}), None, &mut sink().0).await;
        failed(result, Verdict::Retry, Code::TargetUnreachable, Effect::NotApplied);
        assert_eq!(seen.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_speak_smb_is_told_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            drop(socket.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    let base = tempfile::tempdir().unwrap();
    fs::write(base.path().join("smb-password"), "x").unwrap();
    let settings = format!(
        "connector = \"file\"\nurl = \"smb://127.0.0.1:{port}/files\"\nusername = \"root\"\n\
         password = {{ file = \"smb-password\" }}"
    );
    let connector = check(base.path(), &settings).unwrap();
    let result = probe(&connector).await;
    let failure = failed(result, Verdict::Retry, Code::TargetProtocol, Effect::NotApplied);
    assert!(failure.message.contains("does not speak SMB"), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_gets_to_its_point_is_given_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            // A message of 16 KiB, whose bytes come one by one.
            drop(socket.write_all(&[0, 0, 0x40, 0]));
            while socket.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(100));
            }
        }
    });
    let base = tempfile::tempdir().unwrap();
    fs::write(base.path().join("smb-password"), "x").unwrap();
    let settings = format!(
        "connector = \"file\"\nurl = \"smb://127.0.0.1:{port}/files\"\nusername = \"root\"\n\
         password = {{ file = \"smb-password\" }}\nconnect_timeout = \"1s\""
    );
    let connector = check(base.path(), &settings).unwrap();
    let since = Instant::now();
    let result = connector.execute(&call(), "list", &json!({}), None, &mut sink().0).await;
    let failure = failed(result, Verdict::Retry, Code::TargetTimeout, Effect::NotApplied);
    assert!(failure.message.contains("connect_timeout"), "{failure}");
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dfs_link_hides_nothing_beside_it_and_is_told_where_it_is_named() {
    let options = Options { global: "host msdfs = yes\n", share: "msdfs root = yes\n", ..Options::default() };
    let place = Place::smb_with(options, "");
    fs::create_dir(place.root.join("sub")).unwrap();
    for path in ["a.csv", "sub/b.csv", "z.csv"] {
        place.write(path, b"x");
    }
    symlink("msdfs:127.0.0.1\\files", place.root.join("dfslink")).unwrap();
    let listed = place.ask("list", json!({"recursive": true})).await.unwrap();
    let paths: Vec<_> =
        listed["items"].as_array().unwrap().iter().map(|item| item["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["a.csv", "dfslink", "sub", "sub/b.csv", "z.csv"]);
    let scan = Scan {
        folder: String::new(),
        wanted: Arc::new(|path| path.ends_with(".csv")),
        entered: Arc::new(|_| true),
        after: None,
        limit: 100,
    };
    let patience = Patience { timeout: Duration::from_secs(30), cancel: CancellationToken::new() };
    let scanned = place.connector.triggers().unwrap().scan(scan, &patience).await.unwrap();
    let found: Vec<_> = scanned.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(found, ["a.csv", "sub/b.csv", "z.csv"]);
    for (operation, params) in [
        ("list", json!({"path": "dfslink"})),
        ("stat", json!({"path": "dfslink"})),
        ("fetch", json!({"path": "dfslink/a.csv"})),
        ("delete", json!({"path": "dfslink/a.csv"})),
    ] {
        let result = place.ask(operation, params).await;
        let failure = failed(result, Verdict::Permanent, Code::TargetUnsupported, Effect::NotApplied);
        assert!(failure.message.contains("DFS link"), "{operation}: {failure}");
    }
    let through = other(&place, |settings| settings.replace("/files/root", "/files/root/dfslink"));
    let failure =
        failed(probe(&through).await, Verdict::Permanent, Code::TargetUnsupported, Effect::NotApplied);
    assert!(failure.message.contains("DFS link"), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_that_hides_unfinished_files_is_told_so() {
    let place = Place::smb_with(Options { share: "veto files = /*.part/\n", ..Options::default() }, "");
    fs::create_dir(place.root.join("in")).unwrap();
    for path in ["a.csv", "in/a.csv"] {
        let result = place.drop(json!({"path": path}), b"x").await;
        let failure = failed(result, Verdict::Permanent, Code::TargetRefused, Effect::NotApplied);
        assert!(failure.message.contains(".passerelle-"), "{path}: {failure}");
    }
    let result = place.drop(json!({"path": "nowhere/a.csv"}), b"x").await;
    failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
    let links = place.connector.examine(looking()).await;
    let Some(Found::Failed(failure)) = links.last().map(|link| &link.found) else { panic!("{links:?}") };
    assert!(failure.message.contains(".passerelle-"), "{failure}");
}

#[test]
fn wrong_settings_are_refused_with_what_is_right() {
    let refused = |settings: &str, words: &[&str]| {
        let base = tempfile::tempdir().unwrap();
        let message = check(base.path(), &format!("connector = \"file\"\n{settings}")).err().unwrap();
        for word in words {
            assert!(message.contains(word), "{word:?} is not in:\n{message}");
        }
    };
    let rest = "password = { env = \"P\" }";
    refused("url = \"smb://h\"", &["names no share", "resources.test.username", "resources.test.password"]);
    refused(&format!("url = \"smb://u:p@h/s\"\n{rest}"), &["never written here"]);
    refused(&format!("url = \"smb://u@h/s\"\nusername = \"v\"\n{rest}"), &["keep one of them"]);
    refused(&format!("url = \"smb://u@h/s/CON\"\n{rest}"), &["\"CON\" is no name on a file share"]);
    refused(&format!("url = \"smb://u@h/s/a%5Cb\"\n{rest}"), &["is no name on a file share"]);
    refused(&format!("url = \"smb://u@169.254.169.254/s\"\n{rest}"), &["always blocked"]);
    refused(&format!("url = \"smb://u@h/s\"\nknown_hosts = \"k\"\n{rest}"), &["no meaning for smb://"]);
    refused(&format!("url = \"smb://u@h/s\"\nencryption = \"yes\"\n{rest}"), &["auto", "required"]);
    let both = "username = \"D\\\\u\"\ndomain = \"E\"";
    refused(&format!("url = \"smb://h/s\"\n{both}\n{rest}"), &["resources.test.domain", "keep one of them"]);
    refused("url = \"file:///srv\"\nencryption = \"auto\"", &["encryption", "no meaning for file://"]);
    refused("url = \"ftp://h/x\"\ndomain = \"D\"", &["resources.test.domain", "no meaning for ftp://"]);
}
