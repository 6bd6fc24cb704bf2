//! Calls under attack: a hub that forges, replays and mixes them up, and calls that the client signs.

use crate::{
    audit::rows,
    common::{SITE, Site, files_below},
};
use jiff::Timestamp;
use passerelle_protocol::{AgentId, CommitMode, SigningKey};
use passerelle_tests::{
    Agent, Draft, FakeHub, PATIENCE, Reply, Session, binary, code, resources, run, until,
};
use serde_json::{Value, json};
use std::{path::Path, process::Command, sync::Arc};
use tempfile::TempDir;

struct Hostile {
    agent: Agent,
    hub: FakeHub,
    files: TempDir,
}

async fn open() -> (Hostile, Session) {
    let mut hub = FakeHub::start().await;
    let files = tempfile::tempdir().expect("a temporary folder");
    let mut agent = Agent::at(&hub.url, "paris-1");
    agent.resource("compta", &resources::folder("compta", files.path()));
    agent.spawn();
    let session = hub.welcomed().await;
    (Hostile { agent, hub, files }, session)
}

/// The answer to a call.
async fn answer(session: &mut Session, call: &Value) -> Value {
    session.send(call).await;
    let answer = session.receive(&["call_declined", "call_result"]).await;
    assert_eq!(answer["call"], call["call"], "{answer:#}");
    answer
}

fn issued_after(session: &Session) -> i64 {
    session.hello["calls"]["issued_after"].as_i64().expect("an agent that takes calls")
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_expired_misdirected_and_replayed_calls_are_declined() {
    let (mut all, mut session) = open().await;
    let after = issued_after(&session);
    let good =
        || all.hub.draft("compta", "drop", json!({"path": "a.csv"})).with_payload(b"x").into_call(after);
    let stranger = Arc::new(SigningKey::generate().unwrap().0);
    let mut wrong: Vec<(&str, &str, Value)> = Vec::new();
    let mut spoil = |name: &'static str, code: &'static str, change: &dyn Fn(&mut Draft)| {
        let mut draft = good();
        change(&mut draft);
        wrong.push((name, code, draft.message()));
    };
    spoil("a stranger's envelope", "signature_invalid", &|d| d.envelope_key = Arc::clone(&stranger));
    spoil("a stranger's ticket", "signature_invalid", &|d| d.ticket_key = Arc::clone(&stranger));
    spoil("another envelope's ticket", "signature_invalid", &|d| d.of_other_envelope = true);
    spoil("another agent", "signature_invalid", &|d| d.agent = AgentId::new(1, &[9; 10]));
    spoil("another site", "signature_invalid", &|d| d.envelope.site = "lyon".parse().unwrap());
    spoil("another tenant", "signature_invalid", &|d| d.envelope.tenant = "other".parse().unwrap());
    spoil("a second attempt", "signature_invalid", &|d| d.attempt = 2);
    spoil("leave to be asked for", "signature_invalid", &|d| d.commit = CommitMode::Ask);
    spoil("a line", "signature_invalid", &|d| d.envelope.order_key = Some("a".to_owned()));
    spoil("an hour's time", "signature_invalid", &|d| d.envelope.timeout_s = 3600);
    spoil("for other agents", "signature_invalid", &|d| {
        d.envelope.agents = Some(vec![AgentId::new(1, &[9; 10])]);
    });
    spoil("an envelope of last hour", "envelope_expired", &|d| {
        d.envelope.iat -= 3600;
        d.envelope.nbf -= 3600;
        d.envelope.exp = d.envelope.iat + 30;
    });
    spoil("an envelope that lives for an hour", "envelope_expired", &|d| d.envelope.exp += 3600);
    spoil("a ticket that lives for an hour", "envelope_expired", &|d| d.life = 3600);
    spoil("another connection", "replayed", &|d| d.epoch = 2);
    spoil("issued before the process started", "replayed", &|d| d.envelope.iat = after - 1);
    // Signed as a job, sent as a call: it could be had twice.
    let job = all.hub.draft("compta", "drop", json!({"path": "a.csv"})).with_payload(b"x").message();
    let as_call = json!({
        "type": "call", "call": job["job"], "envelope": job["envelope"], "ticket": job["ticket"],
        "payload": job["payload"],
    });
    wrong.push(("a job's envelope", "signature_invalid", as_call));
    let count = wrong.len();
    for (name, code, call) in wrong {
        let declined = answer(&mut session, &call).await;
        assert_eq!(
            (&declined["type"], &declined["code"]),
            (&json!("call_declined"), &json!(code)),
            "{name}: {declined:#}"
        );
    }
    // And the other way round.
    let call = good().message();
    let as_job = json!({
        "type": "offer", "job": call["call"], "attempt": 1, "envelope": call["envelope"], "ticket": call["ticket"],
        "payload": call["payload"],
    });
    session.send(&as_job).await;
    let declined = session.receive(&["decline", "report"]).await;
    assert_eq!((&declined["type"], &declined["code"]), (&json!("decline"), &json!("signature_invalid")));
    assert_eq!(files_below(all.files.path()), Vec::<String>::new());

    // What is right is done once, whatever copies come.
    let honest = good().message();
    let done = answer(&mut session, &honest).await;
    assert_eq!(done["outcome"]["outcome"], "succeeded", "{done:#}");
    std::fs::remove_file(all.files.path().join("a.csv")).unwrap();
    assert_eq!(answer(&mut session, &honest).await["code"], "replayed");
    let next = good().message();
    assert_eq!(answer(&mut session, &next).await["outcome"]["outcome"], "succeeded");
    std::fs::remove_file(all.files.path().join("a.csv")).unwrap();
    // Over another connection of the same process, under a new ticket: the id is remembered.
    let replay = good();
    let first = answer(&mut session, &replay.message()).await;
    assert_eq!(first["outcome"]["outcome"], "succeeded", "{first:#}");
    std::fs::remove_file(all.files.path().join("a.csv")).unwrap();
    drop(session);
    let mut session = all.hub.welcomed().await;
    let declined = answer(&mut session, &replay.message()).await;
    assert_eq!((&declined["type"], &declined["code"]), (&json!("call_declined"), &json!("replayed")));
    // And over a restart: it was issued before. This hub dates its calls up to a second ahead; so long the restart has to wait.
    let issued = replay.envelope.iat;
    until("the second of the call to be over", PATIENCE, async || {
        (Timestamp::now().as_second() > issued).then_some(())
    })
    .await;
    all.agent.process().kill();
    drop(session);
    all.agent.spawn();
    let mut session = all.hub.welcomed().await;
    let declined = answer(&mut session, &replay.message()).await;
    assert_eq!((&declined["type"], &declined["code"]), (&json!("call_declined"), &json!("replayed")));
    assert_eq!(files_below(all.files.path()), Vec::<String>::new());
    let told: u64 = rows(&all.agent)
        .iter()
        .filter(|row| row["kind"] == "offer_refused")
        .map(|row| row["count"].as_u64().unwrap_or(1))
        .sum();
    assert!(told >= count as u64, "{told} of {count} refusals are in the audit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_calls_is_turned_away_and_a_call_without_a_caller_stops() {
    let (all, mut session) = open().await;
    let after = issued_after(&session);
    let most = session.hello["calls"]["max"].as_u64().unwrap();
    // Cancelled before it comes: it never starts.
    let early =
        all.hub.draft("compta", "drop", json!({"path": "early.csv"})).with_payload(b"x").into_call(after);
    session.send(&json!({"type": "call_cancel", "call": early.job()})).await;
    let declined = answer(&mut session, &early.message()).await;
    assert_eq!((&declined["type"], &declined["code"]), (&json!("call_declined"), &json!("replayed")));
    for n in 0..most * 3 {
        let params = json!({"path": format!("{n}.csv")});
        session.send(&all.hub.draft("compta", "stat", params).into_call(after).message()).await;
    }
    for _ in 0..most * 3 {
        let answer = session.receive(&["call_declined", "call_result"]).await;
        if answer["type"] == "call_declined" {
            assert_eq!(answer["code"], "busy", "{answer:#}");
        }
    }
    assert_eq!(files_below(all.files.path()), Vec::<String>::new());
}

/// Runs the client; its exit code, its JSON or what it said instead.
fn client(site: &Site, arguments: &[&str]) -> (Option<i32>, Value, String) {
    let mut command = Command::new(binary("passerelle"));
    command.args(arguments).arg("--json");
    let output =
        run(command.env("PASSERELLE_URL", &site.hub.url).env("PASSERELLE_API_KEY", site.hub.api.key()));
    let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), json, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn make_key(folder: &Path, name: &str) -> std::path::PathBuf {
    let file = folder.join(name);
    let made = run(Command::new(binary("passerelle")).args(["keys", "create"]).arg(&file).arg("--json"));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_calls_with_files_and_tells_failures_by_its_exit_code() {
    let site = Site::with_app(|request, _| match request.uri.as_str() {
        "/refused" => Reply::status(409),
        _ => Reply::status(200).body(vec![b'x'; 400_000]),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let (file, output) = (folder.path().join("in.json"), folder.path().join("out.bin"));
    std::fs::write(&file, vec![b' '; 300_000]).unwrap();
    let base = ["call", "--site", SITE, "--resource", "orders-app", "--operation"];
    let request = ["request", "--param", "method=POST", "--param", "path=import"];
    let files = ["--payload", text(&file), "--output", text(&output), "--timeout", "20s"];
    let (exit, json, said) = client(&site, &[&base[..], &request, &files].concat());
    assert_eq!(exit, Some(0), "{said}");
    assert_eq!((&json["result"]["status"], json["output"]["size"].as_u64()), (&json!(200), Some(400_000)));
    assert_eq!(std::fs::read(&output).unwrap(), vec![b'x'; 400_000]);
    assert_eq!(site.app.requests()[0].body.len(), 300_000);
    let (exit, _, said) = client(&site, &[&base[..], &["notify", "--param", "path=refused"]].concat());
    assert_eq!(exit, Some(1), "{said}");
    assert!(said.contains("target_refused") && said.contains("effect: not_applied"), "{said}");
    let (exit, _, said) = client(&site, &[&base[..], &request, &["--timeout", "2m"]].concat());
    assert_eq!(exit, Some(3), "{said}");
    let (exit, _, said) = client(&site, &[&base[..], &["notify", "--params", "[]"]].concat());
    assert_eq!(exit, Some(2), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_pins_the_clients_key_takes_its_calls_once_and_none_of_the_hubs() {
    let keys = tempfile::tempdir().unwrap();
    let key = make_key(keys.path(), "orchestrator.pem");
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    site.agent.file("orchestrator.pub.pem", std::fs::read(keys.path().join("orchestrator.pub.pem")).unwrap());
    site.agent.hub_key_in_place("[trust]\njob_keys = [\"orchestrator.pub.pem\"]");
    site.agent.start().await;
    std::fs::write(site.files.path().join("a.csv"), "abc").unwrap();
    let stat = json!({"site": SITE, "resource": "compta", "operation": "stat", "params": {"path": "a.csv"}});
    let forged = site.hub.api.post("/v1/calls", &stat).await;
    assert_eq!((forged.status, code(&forged.body)), (403, "signature_invalid"), "{:#}", forged.body);
    let base =
        ["call", "--site", SITE, "--resource", "compta", "--operation", "stat", "--param", "path=a.csv"];
    let (exit, json, said) = client(&site, &[&base[..], &["--sign-key", text(&key)]].concat());
    assert_eq!((exit, &json["result"]["size"]), (Some(0), &json!(3)), "{said}");
    let file = keys.path().join("b.csv");
    std::fs::write(&file, "signed").unwrap();
    let drop =
        ["call", "--site", SITE, "--resource", "compta", "--operation", "drop", "--param", "path=b.csv"];
    let (exit, _, said) =
        client(&site, &[&drop[..], &["--payload", text(&file), "--sign-key", text(&key)]].concat());
    assert_eq!(exit, Some(0), "{said}");
    assert_eq!(site.read("b.csv"), "signed");
    let stranger = make_key(keys.path(), "stranger.pem");
    let (exit, _, said) = client(&site, &[&base[..], &["--sign-key", text(&stranger)]].concat());
    assert!(exit == Some(1) && said.contains("signature_invalid"), "{said}");

    // An envelope is good for one call.
    let pem = std::fs::read_to_string(&key).unwrap();
    let draft = FakeHub::start().await.draft("compta", "stat", json!({"path": "a.csv"})).into_call(0);
    let envelope = draft.envelope.sign_call(&signing_key(&pem)).unwrap();
    let body = json!({"envelope": envelope});
    let first = site.hub.api.post("/v1/calls", &body).await;
    assert_eq!(first.status, 200, "{:#}", first.body);
    let again = site.hub.api.post("/v1/calls", &body).await;
    assert_eq!((again.status, code(&again.body)), (409, "replayed"), "{:#}", again.body);
    let job = site.hub.api.post("/v1/jobs", &body).await;
    assert_eq!((job.status, code(&job.body)), (400, "bad_request"), "{:#}", job.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_call_under_way_is_refused_and_takes_no_place() {
    let keys = tempfile::tempdir().unwrap();
    let key = make_key(keys.path(), "orchestrator.pem");
    let mut site = Site::prepared(|request, _| match request.uri.as_str() {
        "/held" => Reply::status(200).held(),
        _ => Reply::status(200),
    })
    .await;
    let limits = "limits = { max_concurrent = 2 }";
    site.agent.resource("orders-app", &resources::application_with("orders-app", &site.app.url, limits));
    site.agent.file("orchestrator.pub.pem", std::fs::read(keys.path().join("orchestrator.pub.pem")).unwrap());
    site.agent.hub_key_in_place("[trust]\njob_keys = [\"orchestrator.pub.pem\"]");
    site.agent.start().await;
    let signer = signing_key(&std::fs::read_to_string(&key).unwrap());
    let drafts = FakeHub::start().await;
    let signed = |path: &str| {
        let params = json!({"method": "POST", "path": path});
        let draft = drafts.draft("orders-app", "request", params).into_call(0);
        json!({"envelope": draft.envelope.sign_call(&signer).unwrap()})
    };
    let (api, body) = (site.hub.api.clone(), signed("held"));
    let first = tokio::spawn({
        let (api, body) = (api.clone(), body.clone());
        async move { api.post("/v1/calls", &body).await }
    });
    site.app.received(1).await;
    // More copies than there are places: none of them may keep one.
    for _ in 0..4 {
        let copy = api.post("/v1/calls", &body).await;
        assert_eq!((copy.status, code(&copy.body)), (409, "replayed"), "{:#}", copy.body);
    }
    let other = api.post("/v1/calls", &signed("other")).await;
    assert_eq!(other.status, 200, "{:#}", other.body);
    site.app.release();
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(site.app.requests().len(), 2);
}

fn signing_key(pem: &str) -> SigningKey {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    SigningKey::from_pkcs8(&STANDARD.decode(body).expect("PEM")).expect("a key")
}
