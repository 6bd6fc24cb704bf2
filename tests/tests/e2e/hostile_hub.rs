//! A real agent in the hands of a hub that forges, breaks and floods: it says why, keeps running, and does nothing
//! that was not signed for it and allowed here.

use crate::{audit::rows, common::files_below};
use passerelle_protocol::{Intent, Repeat, Sha256, SigningKey};
use passerelle_tests::{Agent, App, FakeHub, PATIENCE, Reply, Session, is_root, resources, until};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;

const SOON: Duration = Duration::from_secs(30);

struct Hostile {
    agent: Agent,
    hub: FakeHub,
    files: TempDir,
}

impl Hostile {
    /// A fake hub and an agent with the folder `compta`, not yet connected.
    async fn start() -> Self {
        let hub = FakeHub::start().await;
        let files = tempfile::tempdir().expect("a temporary folder");
        let mut agent = Agent::at(&hub.url, "paris-1");
        agent.resource("compta", &resources::folder("compta", files.path()));
        agent.spawn();
        Self { agent, hub, files }
    }

    async fn open() -> (Self, Session) {
        let mut all = Self::start().await;
        let session = all.hub.welcomed().await;
        (all, session)
    }

    fn drop(&self, path: &str) -> passerelle_tests::Draft {
        self.hub.draft("compta", "drop", json!({"path": path})).with_payload(b"x")
    }
}

/// The answer to an offer: `decline`, or the `report` (with its `accept` passed over).
async fn answer(session: &mut Session, offer: &Value) -> Value {
    session.send(offer).await;
    let answer = session.receive(&["decline", "report"]).await;
    assert_eq!(answer["job"], offer["job"]);
    if answer["type"] == "report" {
        session
            .send(&json!({"type": "report_ack", "job": answer["job"], "attempt": answer["attempt"]}))
            .await;
    }
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_introduces_itself_and_does_what_is_signed() {
    let (all, mut session) = Hostile::open().await;
    assert_eq!(session.hello["versions"], json!({"min": 1, "max": 1}));
    assert_eq!(session.hello["resources"][0]["name"], "compta");
    let text = session.hello.to_string();
    assert!(!text.contains(&*all.files.path().to_string_lossy()), "the root leaks: {text}");
    let report = answer(&mut session, &all.drop("a.csv").message()).await;
    assert_eq!(report["outcome"]["outcome"], "succeeded", "{report:#}");
    assert_eq!(files_below(all.files.path()), ["a.csv"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_expired_misdirected_and_replayed_offers_are_declined() {
    let (all, mut session) = Hostile::open().await;
    let stranger = Arc::new(SigningKey::generate().unwrap().0);
    let good = || all.drop("a.csv");
    let mut wrong = Vec::new();
    let mut spoil = |code: &'static str, change: &dyn Fn(&mut passerelle_tests::Draft)| {
        let mut draft = good();
        change(&mut draft);
        wrong.push((code, draft.message()));
    };
    spoil("signature_invalid", &|d| d.envelope_key = Arc::clone(&stranger));
    spoil("signature_invalid", &|d| d.ticket_key = Arc::clone(&stranger));
    spoil("signature_invalid", &|d| d.of_other_envelope = true);
    spoil("signature_invalid", &|d| d.agent = passerelle_protocol::AgentId::new(1, &[9; 10]));
    spoil("signature_invalid", &|d| d.envelope.site = "lyon".parse().unwrap());
    spoil("signature_invalid", &|d| d.envelope.tenant = "other".parse().unwrap());
    spoil("envelope_expired", &|d| {
        d.envelope.iat -= 3600;
        d.envelope.nbf -= 3600;
        d.envelope.exp = d.envelope.iat + 900;
    });
    spoil("envelope_expired", &|d| d.life = -3600);
    spoil("envelope_expired", &|d| d.envelope.nbf += 3600);
    // Claims of the right kind but the wrong shape.
    spoil("signature_invalid", &|d| d.envelope.params = json!([]));
    // Not one of the listed agents: as good as not signed for this one.
    spoil("signature_invalid", &|d| {
        d.envelope.agents = Some(vec![passerelle_protocol::AgentId::new(1, &[9; 10])]);
    });
    spoil("replayed", &|d| d.epoch = 2);
    let mut unsigned = good().message();
    unsigned["envelope"] = json!("e30.e30.");
    wrong.push(("signature_invalid", unsigned));
    let mut swapped = good().message();
    swapped["job"] = json!(good().job());
    wrong.push(("signature_invalid", swapped));
    for (code, offer) in wrong {
        let decline = answer(&mut session, &offer).await;
        assert_eq!((&decline["type"], &decline["code"]), (&json!("decline"), &json!(code)), "{decline:#}");
        assert!(decline["message"].as_str().is_some_and(|m| m.contains(' ')), "{decline:#}");
    }
    assert_eq!(files_below(all.files.path()), Vec::<String>::new());

    let draft = good();
    let done = answer(&mut session, &draft.message()).await;
    std::fs::remove_file(all.files.path().join("a.csv")).unwrap();
    // An offer of what is finished is answered with the outcome that is remembered; nothing happens again.
    let replayed = answer(&mut session, &draft.message()).await;
    assert_eq!(replayed, done);
    let mut later = good();
    later.attempt = 2;
    answer(&mut session, &later.message()).await;
    std::fs::remove_file(all.files.path().join("a.csv")).unwrap();
    later.attempt = 1;
    let earlier = answer(&mut session, &later.message()).await;
    assert_eq!(earlier["code"], "replayed", "{earlier:#}");
    assert_eq!(files_below(all.files.path()), Vec::<String>::new(), "a finished attempt ran again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_signed_but_not_allowed_here_is_denied() {
    let (all, mut session) = Hostile::open().await;
    let mut late = all.drop("late.csv");
    late.envelope.deadline -= 3600;
    for (draft, code) in [
        (all.drop("../escape.csv"), "path_invalid"),
        (all.drop("/etc/escape.csv"), "path_invalid"),
        (all.hub.draft("compta", "format", json!({})), "invalid_params"),
        (all.hub.draft("elsewhere", "drop", json!({"path": "a.csv"})).with_payload(b"x"), "policy_denied"),
        (all.hub.draft("compta", "drop", json!({"path": 7})).with_payload(b"x"), "invalid_params"),
        (late, "deadline"),
    ] {
        let report = answer(&mut session, &draft.message()).await;
        assert_eq!(report["type"], "report", "{report:#}");
        let allowed = [code, "policy_denied"];
        assert!(
            allowed.contains(&report["outcome"]["code"].as_str().unwrap_or_default()),
            "{code}: {report:#}"
        );
        assert_eq!(report["outcome"]["effect"], "not_applied");
    }
    assert_eq!(files_below(all.files.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_is_not_what_was_signed_is_never_dropped() {
    let (all, mut session) = Hostile::open().await;
    let mut changed = all.drop("a.csv");
    changed.inline = Some(b"y".to_vec());
    let mut longer = all.drop("a.csv");
    longer.inline = Some(b"xx".to_vec());
    let mut missing = all.drop("a.csv");
    missing.inline = None;
    let mut beside = all.drop("a.csv");
    let large = vec![1u8; 400_000];
    beside.envelope.payload.as_mut().unwrap().size = 400_000;
    beside.envelope.payload.as_mut().unwrap().sha256 = Sha256::of(&large);
    beside.inline = None;
    // What comes too short may have been cut: the agent asks again until the attempt's time is over.
    beside.envelope.timeout_s = 3;
    let mut truncated = beside.clone();
    truncated.envelope.job = all.drop("b").job();
    let mut other = large.clone();
    other[399_999] = 2;
    all.hub.payload(beside.job(), &other);
    all.hub.payload(truncated.job(), &large[..399_999]);
    let mut not_base64 = all.drop("a.csv").message();
    not_base64["payload"]["data"] = json!("%%%");
    for offer in [
        changed.message(),
        longer.message(),
        missing.message(),
        beside.message(),
        truncated.message(),
        not_base64,
    ] {
        let end = answer(&mut session, &offer).await;
        let code = end["code"].as_str().or_else(|| end["outcome"]["code"].as_str()).unwrap_or_default();
        assert!(["digest_mismatch", "internal", "target_timeout"].contains(&code), "{end:#}");
        assert_ne!(end["outcome"]["outcome"], "succeeded");
    }
    assert_eq!(files_below(all.files.path()), Vec::<String>::new());
    // The right content at last.
    let mut right = beside;
    right.envelope.job = all.drop("c").job();
    all.hub.payload(right.job(), &large);
    let report = answer(&mut session, &right.message()).await;
    assert_eq!(report["outcome"]["outcome"], "succeeded", "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_no_messages_end_the_session_but_not_the_agent() {
    let (mut all, mut session) = Hostile::open().await;
    let frames = [
        Message::text("not json"),
        Message::text("[]"),
        Message::text(r#"{"type":"offer"}"#),
        Message::text(format!(r#"{{"type":"unsupported","of":"{}"}}"#, "x".repeat(2 << 20))),
        Message::binary(vec![0; 10]),
        Message::text(format!(r#"{{"type":"cancel","x":{}}}"#, "[".repeat(100_000))),
    ];
    for frame in frames {
        // The agent may have hung up before all of a long frame was written.
        let long = frame.len() > 1 << 20;
        let _cut = session.send_raw_lossy(frame).await;
        let code = session.closed().await;
        // What the hub wrote of a long frame and the agent did not read may take the close frame away.
        assert!(code == Some(1002) || long && code.is_none(), "{code:?}");
        session = all.hub.welcomed().await;
    }
    let report = answer(&mut session, &all.drop("after.csv").message()).await;
    assert_eq!(report["outcome"]["outcome"], "succeeded", "{report:#}");
    assert!(all.agent.process().is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_message_is_answered_and_the_session_goes_on() {
    let (all, mut session) = Hostile::open().await;
    session.send(&json!({"type": "teleport", "to": "moon"})).await;
    let reply = session.receive(&["unsupported"]).await;
    assert_eq!(reply["of"], "teleport");
    let mut offer = all.drop("a.csv").message();
    offer["some_later_field"] = json!({"x": [1]});
    let report = answer(&mut session, &offer).await;
    assert_eq!(report["outcome"]["outcome"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_of_another_version_is_told_apart_and_tried_again_or_left() {
    let mut all = Hostile::start().await;
    let mut session = all.hub.session().await;
    let refuse = |permanent: bool| {
        json!({
            "type": "refuse", "code": "version", "permanent": permanent, "versions": {"min": 7, "max": 9},
            "message": "this hub speaks versions 7 to 9: update the agent", "server_time": jiff::Timestamp::now(),
        })
    };
    session.send(&refuse(false)).await;
    all.agent.process().logged("update the agent", SOON).await;
    let mut session = all.hub.session().await;
    assert!(all.agent.process().is_running());
    session.send(&refuse(true)).await;
    assert_eq!(all.agent.process().exit_code(SOON).await, Some(69));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_says_nothing_is_left_after_the_handshake_time() {
    let mut all = Hostile::start().await;
    let mut silent = all.hub.session().await;
    silent.closed().await;
    let mut session = all.hub.welcomed().await;
    let report = answer(&mut session, &all.drop("a.csv").message()).await;
    assert_eq!(report["outcome"]["outcome"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_offers_is_declined_or_ends_the_session_in_bounded_memory() {
    let (mut all, mut session) = Hostile::open().await;
    for n in 0..3000 {
        let offer = all.drop(&format!("{n}.csv")).message();
        if tokio::time::timeout(SOON, session.send_lossy(&offer)).await != Ok(true) {
            break;
        }
    }
    let mut session = match tokio::time::timeout(SOON, all.hub.session()).await {
        Ok(mut next) => {
            next.welcome().await;
            next
        }
        Err(_) => session,
    };
    let report = loop {
        let draft = all.drop("after.csv");
        let reply = answer_any(&mut session, &draft.message()).await;
        if reply["type"] == "report" && reply["job"] == json!(draft.job()) {
            break reply;
        }
    };
    assert_eq!(report["outcome"]["outcome"], "succeeded", "{report:#}");
    let peak = all.agent.process().memory_kib("VmHWM");
    assert!(peak < 64 * 1024, "{peak} KiB");
}

/// Sends an offer and acknowledges whatever comes until its own answer.
async fn answer_any(session: &mut Session, offer: &Value) -> Value {
    session.send(offer).await;
    loop {
        let reply = session.receive(&["decline", "report"]).await;
        if reply["type"] == "report" {
            session
                .send(&json!({"type": "report_ack", "job": reply["job"], "attempt": reply["attempt"]}))
                .await;
        }
        if reply["job"] == offer["job"] {
            return reply;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_repeated_until_it_is_acknowledged_also_after_a_crash() {
    let (mut all, mut session) = Hostile::open().await;
    let draft = all.drop("a.csv");
    session.send(&draft.message()).await;
    let first = session.receive(&["report"]).await;
    let again = session.receive(&["report"]).await;
    assert_eq!(first, again);
    all.agent.restart_without_waiting();
    let mut session = all.hub.session().await;
    assert_eq!(session.hello["held"][0]["state"], "finished", "{}", session.hello);
    session.welcome().await;
    let after_crash = session.receive(&["report"]).await;
    assert_eq!(first["outcome"], after_crash["outcome"]);
    session.send(&json!({"type": "report_ack", "job": first["job"], "attempt": 1})).await;
    // Acknowledged is forgotten: the next tunnel holds nothing.
    let report = answer(&mut session, &all.drop("b.csv").message()).await;
    assert_eq!(report["outcome"]["outcome"], "succeeded");
    drop(session);
    let session = all.hub.session().await;
    assert_eq!(session.hello["held"], json!([]), "{}", session.hello);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_took_effect_does_not_happen_again_under_any_number() {
    let mut hub = FakeHub::start().await;
    let app = App::with(|request, _| match request.uri.as_str() {
        "/held" => Reply::status(200).held(),
        _ => Reply::status(200),
    })
    .await;
    let mut agent = Agent::at(&hub.url, "paris-1");
    agent.resource("orders-app", &resources::application("orders-app", &app.url));
    agent.spawn();
    let mut session = hub.welcomed().await;
    let mut done = hub.draft("orders-app", "notify", json!({"path": "pay"})).with_payload(b"{}");
    let first = answer(&mut session, &done.message()).await;
    assert_eq!(first["outcome"]["outcome"], "succeeded", "{first:#}");
    for attempt in [2, 3, 4_000_000_000_u32] {
        done.attempt = attempt;
        let mut again = answer(&mut session, &done.message()).await;
        while again["attempt"] != json!(attempt) {
            // Told once more after the restart.
            again = session.receive(&["decline", "report"]).await;
        }
        assert_eq!(again["outcome"], first["outcome"], "{again:#}");
        if attempt == 3 {
            agent.restart_without_waiting();
            session = hub.welcomed().await;
        }
    }
    assert_eq!(app.requests().len(), 1, "it happened again");
    until("the audit to tell of it", PATIENCE, async || {
        let again = |row: &Value| row["kind"] == "offer_refused" && row["code"] == "replayed";
        rows(&agent).iter().any(again).then_some(())
    })
    .await;
    // Nor beside itself.
    let mut held = hub.draft("orders-app", "notify", json!({"path": "held"})).with_payload(b"{}");
    session.send(&held.message()).await;
    app.received(2).await;
    held.attempt = 2;
    session.send(&held.message()).await;
    let declined = session.receive(&["decline"]).await;
    assert_eq!((&declined["code"], &declined["attempt"]), (&json!("busy"), &json!(2)), "{declined:#}");
    app.release();
    let report = session.receive(&["report"]).await;
    assert_eq!((&report["attempt"], &report["outcome"]["outcome"]), (&json!(1), &json!("succeeded")));
    assert_eq!(app.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_attempt_number_costs_nothing_and_a_trace_context_is_passed_on_in_its_form_only() {
    let (all, mut session) = Hostile::open().await;
    let mut draft = all.drop("a.csv");
    draft.attempt = u32::MAX;
    let report = answer(&mut session, &draft.message()).await;
    assert_eq!(report["outcome"]["outcome"], "succeeded", "{report:#}");

    let mut hub = FakeHub::start().await;
    let app = App::with(|_, _| Reply::status(200)).await;
    let mut agent = Agent::at(&hub.url, "paris-1");
    agent.resource("orders-app", &resources::application("orders-app", &app.url));
    agent.spawn();
    let mut session = hub.welcomed().await;
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for given in [good, "", "x: y", &"0".repeat(20_000)] {
        let draft = hub.draft("orders-app", "notify", json!({"path": "pay"})).with_payload(b"{}");
        let mut offer = draft.message();
        offer["traceparent"] = json!(given);
        let report = answer(&mut session, &offer).await;
        assert_eq!(report["outcome"]["outcome"], "succeeded", "{report:#}");
    }
    let passed: Vec<_> =
        app.requests().iter().map(|request| request.header("traceparent").to_owned()).collect();
    assert_eq!(passed, [good, "", "", ""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_never_be_repeated_ends_unknown_after_a_crash_in_the_middle() {
    let mut hub = FakeHub::start().await;
    let app = App::with(|_, _| Reply::status(200).held()).await;
    let mut agent = Agent::at(&hub.url, "paris-1");
    agent.resource("orders-app", &resources::application("orders-app", &app.url));
    agent.spawn();
    let mut session = hub.welcomed().await;
    let mut draft = hub.draft("orders-app", "notify", json!({"path": "pay"})).with_payload(b"{}");
    draft.envelope.repeat = Some(Repeat::Never);
    session.send(&draft.message()).await;
    app.received(1).await;
    agent.restart_without_waiting();
    let mut session = hub.welcomed().await;
    let report = session.receive(&["report"]).await;
    assert_eq!(report["job"], json!(draft.job()));
    assert_eq!(
        (&report["outcome"]["outcome"], &report["outcome"]["effect"]),
        (&json!("failed"), &json!("unknown"))
    );
    assert_eq!(app.requests().len(), 1, "it was sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_happens_before_the_grant_where_the_ticket_says_ask() {
    let (all, mut session) = Hostile::open().await;
    let mut draft = all.drop("a.csv");
    draft.commit = passerelle_protocol::CommitMode::Ask;
    session.send(&draft.message()).await;
    let commit = session.receive(&["commit"]).await;
    assert_eq!(commit["intent"]["target"], "a.csv", "{commit:#}");
    assert_eq!(commit["intent"]["sha256"], json!(Sha256::of(b"x")));
    let again = session.receive(&["commit", "report"]).await;
    assert_eq!(again["type"], "commit", "it did not wait for the grant: {again:#}");
    assert!(!all.files.path().join("a.csv").exists(), "the file appeared before the grant");
    session.send(&json!({"type": "commit_granted", "job": draft.job(), "attempt": 1})).await;
    let report = session.receive(&["report"]).await;
    assert_eq!(report["outcome"]["outcome"], "succeeded", "{report:#}");
    assert_eq!(files_below(all.files.path()), ["a.csv"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_agent_takes_no_job_it_could_not_remember() {
    if !is_root() {
        eprintln!("not root: left out, since no small disk can be mounted");
        return;
    }
    // More than the agent leaves free of its own accord.
    let disk = passerelle_tests::SmallDisk::mount("24m");
    let mut all = Hostile::start().await;
    all.agent.kill();
    let state = format!("state_dir = \"{}\"", disk.path().join("state").display());
    all.agent.agent_key(&state).spawn();
    let mut session = all.hub.welcomed().await;
    let report = answer(&mut session, &all.drop("before.csv").message()).await;
    assert_eq!(report["outcome"]["outcome"], "succeeded", "{report:#}");
    disk.fill();
    let mut declined = 0;
    for n in 0..50 {
        session.send(&all.drop(&format!("{n}.csv")).message()).await;
        let reply = session.receive(&["accept", "decline"]).await;
        if reply["type"] == "decline" {
            assert_eq!(reply["code"], "busy", "{reply:#}");
            declined += 1;
            break;
        }
    }
    assert_eq!(declined, 1, "fifty jobs were accepted on a full disk");
    until("the agent to be unready", SOON, async || (all.agent.readiness().await == Some(503)).then_some(()))
        .await;
    assert!(all.agent.process().is_running());
    let line = all.agent.process().log();
    assert!(line.to_lowercase().contains("no space") || line.contains("full"), "{line}");
    disk.free();
    all.agent.ready().await;
    let reply = answer_any(&mut session, &all.drop("after.csv").message()).await;
    assert_eq!(reply["outcome"]["outcome"], "succeeded", "{reply:#}");
    assert_eq!(std::fs::read(all.files.path().join("after.csv")).unwrap(), b"x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_per_day_holds_also_for_what_the_hub_says_was_begun_elsewhere() {
    let mut hub = FakeHub::start().await;
    let app = App::with(|_, _| Reply::status(200)).await;
    let mut agent = Agent::at(&hub.url, "paris-1");
    let rule = "operations = [\"notify\"]\nmethods = [\"POST\"]\npaths = [\"orders/*\"]\nmax_per_day = 1\n";
    agent.resource(
        "orders-app",
        &format!(
            "[resources.orders-app]\nconnector = \"http\"\nurl = \"{}\"\n[[resources.orders-app.allow]]\n{rule}",
            app.url
        ),
    );
    agent.spawn();
    let mut session = hub.welcomed().await;
    let draft = || hub.draft("orders-app", "notify", json!({"path": "orders/1"})).with_payload(b"{}");
    let first = answer(&mut session, &draft().message()).await;
    assert_eq!(first["outcome"]["outcome"], "succeeded", "{first:#}");
    let mut more = draft();
    more.granted = Some(Intent { part: None, target: None, size: None, sha256: None, state: None });
    let second = answer(&mut session, &more.message()).await;
    let end = &second["outcome"];
    // Put off, and as open as it was: whoever is said to have begun it may have done it.
    assert_eq!(
        (&end["code"], &end["verdict"], &end["effect"]),
        (&json!("busy"), &json!("retry"), &json!("unknown")),
        "{second:#}"
    );
    assert_eq!(app.requests().iter().filter(|request| request.method == "POST").count(), 1);
}
