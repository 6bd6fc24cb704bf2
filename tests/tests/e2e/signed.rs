//! Jobs that the client signs, for an agent whose operator pinned the client's key: neither a real hub nor a hostile one
//! can have anything else done.

use crate::common::{SITE, Site, drop_job, files_below, with};
use passerelle_protocol::{Envelope, PayloadDigest, Sha256, SigningKey};
use passerelle_tests::{
    Agent, App, Draft, FakeHub, Hub, PATIENCE, Reply, Session, binary, resources, run, until,
};
use serde_json::{Value, json};
use std::{path::Path, process::Command, sync::Arc};
use tempfile::TempDir;

const TRUST: &str = "[trust]\njob_keys = [\"orchestrator.pub.pem\"]";

/// Runs the client; its JSON, or what it said instead.
fn client(hub: &Hub, arguments: &[&str]) -> Result<Value, String> {
    let mut command = Command::new(binary("passerelle"));
    command.args(arguments).arg("--json");
    let output = run(command.env("PASSERELLE_URL", &hub.url).env("PASSERELLE_API_KEY", hub.api.key()));
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).expect("JSON")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Makes a key with the client, and gives its private file.
fn make_key(folder: &Path, name: &str) -> std::path::PathBuf {
    let file = folder.join(name);
    let made = run(Command::new(binary("passerelle")).args(["keys", "create"]).arg(&file).arg("--json"));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    file
}

/// Hub, application and an agent that trusts the key in the folder alone.
async fn pinned(
    app: impl Fn(&passerelle_tests::Request, usize) -> Reply + Send + Sync + 'static,
) -> (Site, TempDir) {
    let keys = tempfile::tempdir().expect("a temporary folder");
    make_key(keys.path(), "orchestrator.pem");
    let mut site = Site::prepared(app).await;
    let public = std::fs::read(keys.path().join("orchestrator.pub.pem")).expect("a public key");
    site.agent.file("orchestrator.pub.pem", public);
    site.agent.hub_key_in_place(TRUST);
    site.agent.start().await;
    (site, keys)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_pins_the_clients_key_takes_its_jobs_and_none_of_the_hubs() {
    let (site, keys) = pinned(|_, _| Reply::status(200)).await;
    let denied = site.hub.api.run(&drop_job("forged.csv", "x")).await;
    assert_eq!((&denied["state"], &denied["error"]["code"]), (&json!("denied"), &json!("signature_invalid")));
    let said = denied["error"]["message"].as_str().unwrap();
    assert!(said.contains("trust.job_keys"), "{said}");

    let content = "JournalCode\tJournalLib\r\n";
    let file = keys.path().join("FEC.txt");
    std::fs::write(&file, content).unwrap();
    let key = keys.path().join("orchestrator.pem");
    let arguments = [
        "jobs",
        "submit",
        "--site",
        SITE,
        "--resource",
        "compta",
        "--operation",
        "drop",
        "--param",
        "path=FEC.csv",
        "--payload",
        text(&file),
        "--wait",
        "60",
        "--sign-key",
        text(&key),
        "--label",
        "run=7",
        "--priority",
        "9",
    ];
    let done = client(&site.hub, &arguments).unwrap();
    assert_eq!((&done["state"], &done["labels"]["run"]), (&json!("succeeded"), &json!("7")), "{done:#}");
    assert_eq!(site.read("FEC.csv"), content);
    // Without a payload, and large ones, go the same way.
    let event = ["jobs", "submit", "--site", SITE, "--resource", "compta", "--operation", "stat", "--param"];
    let stat = [&event[..], &["path=FEC.csv", "--wait", "60", "--sign-key", text(&key)]].concat();
    assert_eq!(client(&site.hub, &stat).unwrap()["result"]["size"], json!(content.len()));

    // A stranger's signature is worth nothing, whoever hands it on.
    let stranger = make_key(keys.path(), "stranger.pem");
    let mut forged = arguments;
    forged[15] = text(&stranger);
    let refused = client(&site.hub, &forged).unwrap_err();
    assert!(refused.contains("signature_invalid"), "{refused}");
    assert_eq!(files_below(site.files.path()), ["FEC.csv"]);
    site.agent.counted(r#"passerelle_agent_offers_declined_total{code="signature_invalid"}"#, 2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_job_is_retried_over_restarts_as_far_as_it_was_signed() {
    // Refused until told otherwise.
    let open = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let (mut site, keys) = pinned(move |_, _| {
        Reply::status(if gate.load(std::sync::atomic::Ordering::SeqCst) { 200 } else { 403 })
    })
    .await;
    let key = keys.path().join("orchestrator.pem");
    let submit = [
        "jobs",
        "submit",
        "--site",
        SITE,
        "--resource",
        "orders-app",
        "--operation",
        "notify",
        "--param",
        "path=orders/7/validated",
        "--max-attempts",
        "2",
        "--sign-key",
        text(&key),
    ];
    let id = client(&site.hub, &submit).unwrap()["id"].as_str().unwrap().to_owned();
    let failed = site.hub.api.end_of(&id, PATIENCE).await;
    assert_eq!(failed["error"]["code"], "target_refused", "{failed:#}");
    site.agent.restart().await;
    site.hub.restart().await;
    site.agent.ready().await;
    client(&site.hub, &["jobs", "retry", &id]).unwrap();
    let failed = site.hub.api.end_of(&id, PATIENCE).await;
    assert_eq!(failed["attempts"].as_array().unwrap().len(), 2, "{failed:#}");
    let spent = client(&site.hub, &["jobs", "retry", &id]).unwrap_err();
    assert!(spent.contains("envelope_expired"), "{spent}");
    let stranger = make_key(keys.path(), "stranger.pem");
    let other = client(&site.hub, &["jobs", "retry", &id, "--sign-key", text(&stranger)]).unwrap_err();
    assert!(other.contains("not signed with this key"), "{other}");
    open.store(true, std::sync::atomic::Ordering::SeqCst);
    client(&site.hub, &["jobs", "retry", &id, "--sign-key", text(&key), "--deadline", "1h"]).unwrap();
    let done = site.hub.api.end_of(&id, PATIENCE).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    let requests = site.app.requests();
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|r| r.header("idempotency-key") == id));
}

/// A hostile hub, and an agent that trusts `client` alone.
struct Hostile {
    agent: Agent,
    hub: FakeHub,
    files: TempDir,
    client: Arc<SigningKey>,
}

impl Hostile {
    async fn open() -> (Self, Session) {
        let mut hub = FakeHub::start().await;
        let files = tempfile::tempdir().expect("a temporary folder");
        let keys = tempfile::tempdir().expect("a temporary folder");
        // OpenSSL's own keys are as good as ours.
        let (private, public) = (keys.path().join("k.pem"), keys.path().join("k.pub.pem"));
        let made =
            run(Command::new("openssl").args(["genpkey", "-algorithm", "ed25519", "-out"]).arg(&private));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let made = run(Command::new("openssl")
            .args(["pkey", "-pubout", "-in"])
            .arg(&private)
            .arg("-out")
            .arg(&public));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let der = run(Command::new("openssl").args(["pkey", "-outform", "DER", "-in"]).arg(&private)).stdout;
        let client = Arc::new(SigningKey::from_pkcs8(&der).expect("a key of OpenSSL's"));
        let mut agent = Agent::at(&hub.url, "paris-1");
        agent.resource("compta", &resources::folder("compta", files.path()));
        agent.file("orchestrator.pub.pem", std::fs::read(public).expect("a public key"));
        agent.hub_key(TRUST).spawn();
        let session = hub.welcomed().await;
        (Self { agent, hub, files, client }, session)
    }

    /// A job as the client signed it.
    fn signed(&self, path: &str) -> Draft {
        let mut draft = self.hub.draft("compta", "drop", json!({"path": path})).with_payload(b"x");
        draft.envelope_key = Arc::clone(&self.client);
        draft
    }
}

/// The answer to an offer: `decline`, or the `report`.
async fn answer(session: &mut Session, offer: &Value) -> Value {
    session.send(offer).await;
    loop {
        let answer = session.receive(&["decline", "report"]).await;
        if answer["type"] == "report" {
            let ack = json!({"type": "report_ack", "job": answer["job"], "attempt": answer["attempt"]});
            session.send(&ack).await;
        }
        if answer["job"] == offer["job"] {
            return answer;
        }
    }
}

/// One change of a signed envelope.
type Change = (&'static str, fn(&mut Envelope));

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_can_change_no_field_of_what_the_client_signed() {
    let (all, mut session) = Hostile::open().await;
    let changes: &[Change] = &[
        ("job", |e| e.job = passerelle_protocol::JobId::new(1, &[3; 10])),
        ("resource", |e| e.resource = "other".parse().unwrap()),
        ("operation", |e| e.operation = "delete".parse().unwrap()),
        ("params", |e| e.params = json!({"path": "elsewhere.csv"})),
        ("payload", |e| {
            let media_type = "text/csv".to_owned();
            e.payload = Some(PayloadDigest { size: 1, sha256: Sha256::of(b"y"), media_type });
        }),
        ("no payload", |e| e.payload = None),
        ("timeout_s", |e| e.timeout_s += 1),
        ("deadline", |e| e.deadline += 3600),
        ("max_attempts", |e| e.max_attempts += 1),
        ("order_key", |e| e.order_key = Some("x".to_owned())),
        ("agents", |e| e.agents = Some(vec![])),
        ("exp", |e| e.exp += 3600),
        ("nbf", |e| e.nbf -= 3600),
        ("tenant", |e| e.tenant = "other".parse().unwrap()),
        ("site", |e| e.site = "lyon".parse().unwrap()),
    ];
    for (field, change) in changes {
        // Signed by the hub in the client's place, and put under the client's own signature.
        let mut forged = all.signed("a.csv");
        let original = forged.message();
        change(&mut forged.envelope);
        forged.envelope_key = Arc::clone(&forged.ticket_key);
        let decline = answer(&mut session, &forged.message()).await;
        assert_eq!(decline["code"], "signature_invalid", "{field}: {decline:#}");
        let mut patched = forged.message();
        let parts = |offer: &Value| -> Vec<String> {
            offer["envelope"].as_str().unwrap().split('.').map(str::to_owned).collect()
        };
        let (theirs, ours) = (parts(&original), parts(&patched));
        patched["envelope"] = json!(format!("{}.{}.{}", theirs[0], ours[1], theirs[2]));
        let decline = answer(&mut session, &patched).await;
        assert_eq!(decline["code"], "signature_invalid", "{field}: {decline:#}");
    }
    // What the client did sign, but for others, or for another time.
    for (code, change) in [
        ("signature_invalid", changes[13].1),
        ("signature_invalid", changes[14].1),
        ("signature_invalid", changes[10].1),
        (
            "envelope_expired",
            (|e: &mut Envelope| (e.iat, e.nbf, e.exp) = (e.iat - 900, e.nbf - 900, e.exp - 900))
                as fn(&mut Envelope),
        ),
        ("envelope_expired", |e| e.nbf += 3600),
    ] {
        let mut draft = all.signed("a.csv");
        change(&mut draft.envelope);
        let decline = answer(&mut session, &draft.message()).await;
        assert_eq!(decline["code"], code, "{decline:#}");
    }
    let mut other_content = all.signed("a.csv");
    other_content.inline = Some(b"y".to_vec());
    let report = answer(&mut session, &other_content.message()).await;
    assert_eq!(report["outcome"]["code"], "digest_mismatch", "{report:#}");
    assert_eq!(files_below(all.files.path()), Vec::<String>::new());
    let report = answer(&mut session, &all.signed("a.csv").message()).await;
    assert_eq!(report["outcome"]["outcome"], "succeeded", "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_job_is_not_done_again_whatever_the_hub_replays_also_after_a_crash() {
    let (mut all, mut session) = Hostile::open().await;
    let draft = all.signed("a.csv");
    let done = answer(&mut session, &draft.message()).await;
    assert_eq!(done["outcome"]["outcome"], "succeeded", "{done:#}");
    let gone = || std::fs::remove_file(all.files.path().join("a.csv"));
    gone().unwrap();
    let replayed = answer(&mut session, &draft.message()).await;
    assert_eq!(replayed["outcome"], done["outcome"]);
    all.agent.restart_without_waiting();
    session = all.hub.welcomed().await;
    let replayed = answer(&mut session, &draft.message()).await;
    assert_eq!(replayed["outcome"], done["outcome"]);
    assert!(!all.files.path().join("a.csv").exists(), "a replay was carried out");

    // As many attempts as were signed, however high their numbers, and not one more.
    let mut failing = all.signed("no/such\0folder.csv");
    failing.envelope.max_attempts = 2;
    for (attempt, expected) in [(3, "report"), (7, "report"), (8, "decline"), (9, "decline")] {
        failing.attempt = attempt;
        let reply = answer(&mut session, &failing.message()).await;
        assert_eq!(reply["type"], expected, "{attempt}: {reply:#}");
        if expected == "decline" {
            assert_eq!(reply["code"], "envelope_expired", "{reply:#}");
        }
    }
    all.agent.restart_without_waiting();
    session = all.hub.welcomed().await;
    failing.attempt = 10;
    assert_eq!(answer(&mut session, &failing.message()).await["code"], "envelope_expired");
    // More attempts are the client's to give.
    failing.envelope.max_attempts = 3;
    failing.attempt = 11;
    assert_eq!(answer(&mut session, &failing.message()).await["type"], "report");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pinned_keys_are_taken_up_while_the_agent_runs() {
    let (mut site, keys) = pinned(|_, _| Reply::status(200)).await;
    let stranger = make_key(keys.path(), "next.pem");
    let submit = [
        "jobs",
        "submit",
        "--site",
        SITE,
        "--resource",
        "compta",
        "--operation",
        "list",
        "--wait",
        "60",
        "--param",
        "pattern=*.csv",
        "--sign-key",
        text(&stranger),
    ];
    assert!(client(&site.hub, &submit).unwrap_err().contains("signature_invalid"));
    site.agent.file("next.pub.pem", std::fs::read(keys.path().join("next.pub.pem")).unwrap());
    site.agent.hub_key_in_place("[trust]\njob_keys = [\"orchestrator.pub.pem\", \"next.pub.pem\"]").write();
    until("the new key to count", PATIENCE, async || client(&site.hub, &submit).ok()).await;
    let old = keys.path().join("orchestrator.pem");
    let mut with_old = submit;
    with_old[13] = text(&old);
    client(&site.hub, &with_old).unwrap();
    let forged = site.hub.api.run(&with(drop_job("x.csv", "x"), json!({}))).await;
    assert_eq!(forged["state"], "denied");
    site.agent.process().is_running().then_some(()).unwrap();
}

/// What was accepted under the hub's key, and has not begun, is not carried out once the operator pins another one: neither
/// by the agent that runs nor by one that is started then.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_pinned_count_for_what_was_accepted_before() {
    let keys = tempfile::tempdir().expect("a temporary folder");
    make_key(keys.path(), "orchestrator.pem");
    let public = std::fs::read(keys.path().join("orchestrator.pub.pem")).expect("a public key");
    for restarted in [false, true] {
        let mut hub = FakeHub::start().await;
        let app =
            App::with(|_, before| if before == 0 { Reply::status(200).held() } else { Reply::status(200) });
        let app = app.await;
        let share = tempfile::tempdir().expect("a temporary folder");
        let mut agent = Agent::at(&hub.url, "paris-1");
        let one = "limits = { max_concurrent = 1 }";
        agent.resource("orders-app", &resources::application_with("orders-app", &app.url, one));
        agent.resource("compta", &resources::folder("compta", share.path()));
        agent.file("orchestrator.pub.pem", &public);
        agent.spawn();
        let mut session = hub.welcomed().await;
        let running = hub.draft("orders-app", "notify", json!({"path": "orders/1"})).message();
        let waiting = hub.draft("orders-app", "notify", json!({"path": "orders/2"})).message();
        for offer in [&running, &waiting] {
            session.send(offer).await;
            assert_eq!(session.receive(&["accept", "decline"]).await["type"], "accept");
            app.received(1).await;
        }
        agent.hub_key_in_place(TRUST);
        if restarted {
            agent.kill();
            agent.spawn();
            session = hub.welcomed().await;
        } else {
            agent.write();
            agent.counted("passerelle_agent_config_reloads_total{result=\"applied\"}", 1.0).await;
            app.release();
        }
        let mut reports = Vec::new();
        for _ in 0..2 {
            let report = session.receive(&["report"]).await;
            session
                .send(&json!({"type": "report_ack", "job": report["job"], "attempt": report["attempt"]}))
                .await;
            reports.push(report);
        }
        let of = |offer: &Value| {
            let report = reports.iter().find(|report| report["job"] == offer["job"]);
            report.expect("a report of each")["outcome"].clone()
        };
        let (first, second) = (of(&running), of(&waiting));
        if restarted {
            // Nothing in the journal proves that either was not told yet.
            for outcome in [&first, &second] {
                assert_eq!(
                    (&outcome["verdict"], &outcome["effect"]),
                    (&json!("permanent"), &json!("unknown"))
                );
                assert_eq!(outcome["code"], "signature_invalid", "{outcome:#}");
            }
        } else {
            assert_eq!(first["outcome"], "succeeded", "{first:#}");
            assert_eq!(
                (&second["verdict"], &second["effect"], &second["code"]),
                (&json!("denied"), &json!("not_applied"), &json!("signature_invalid")),
                "{second:#}"
            );
        }
        let said = second["message"].as_str().unwrap_or_default();
        assert!(said.contains("trust.job_keys"), "{said}");
        assert_eq!(app.requests().len(), 1, "the second was told");
    }
}
