//! A real hub in the hands of an agent with a valid identity and no manners: it says why, goes on, and loses no job.

use crate::common::{SITE, drop_into, with};
use passerelle_tests::{Answer, FakeAgent, FakeIdentity, Hub, http_client};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;

fn drop_a() -> Value {
    drop_into("compta", "a.csv", json!({"text": "x"}))
}

/// A success as an agent reports it.
fn success(job: &str, attempt: u32) -> Value {
    json!({
        "type": "report", "job": job, "attempt": attempt, "finished_at": jiff::Timestamp::now(),
        "outcome": {"outcome": "succeeded", "result": {"path": "a.csv", "size": 1, "sha256": "0"}},
    })
}

/// Takes the next offer and reports it as done.
async fn serve_one(tunnel: &mut FakeAgent) -> String {
    let offer = tunnel.receive(&["offer"]).await;
    let (job, attempt) =
        (offer["job"].as_str().expect("a job").to_owned(), offer["attempt"].as_u64().expect("an attempt"));
    tunnel.send(&json!({"type": "accept", "job": job, "attempt": attempt})).await;
    tunnel.send(&success(&job, u32::try_from(attempt).expect("a small number"))).await;
    tunnel.receive(&["report_ack"]).await;
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_credentials_are_refused_before_the_upgrade_with_the_reason_and_the_time() {
    let hub = Hub::start().await;
    let identity = FakeIdentity::enrol(&hub, SITE).await;
    let late = identity.token(-900);
    let early = identity.token(900);
    let used = identity.token(0);
    drop(identity.tunnel(&used).await.map_err(|e| format!("{e:?}")).unwrap());
    for (token, word) in [
        (late.as_str(), Some("900")),
        (early.as_str(), Some("900")),
        (used.as_str(), None),
        ("", None),
        ("a.b.c", None),
    ] {
        let (status, problem) = identity.tunnel(token).await.err().expect("a refusal");
        assert_eq!(status, 401, "{problem:#}");
        assert!(problem["code"].is_string(), "{problem:#}");
        assert!(problem["server_time"].is_string(), "{problem:#}");
        let detail = problem["detail"].as_str().unwrap_or_default();
        // Seconds pass while the test runs.
        let told = word.is_none() || (895..=905).any(|s| detail.contains(&s.to_string()));
        assert!(told, "the difference of the clocks is not told: {detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_version_is_told_which_ones_are_spoken() {
    let hub = Hub::start().await;
    let identity = FakeIdentity::enrol(&hub, SITE).await;
    let mut tunnel = identity.tunnel(&identity.token(0)).await.ok().unwrap();
    let hello = with(tunnel.hello(json!([])), json!({"versions": {"min": 40, "max": 42}}));
    tunnel.send(&hello).await;
    let refuse = tunnel.receive(&["refuse", "welcome"]).await;
    assert_eq!((&refuse["type"], &refuse["code"]), (&json!("refuse"), &json!("version")), "{refuse:#}");
    assert!(refuse["message"].as_str().unwrap().contains(' '));
    assert_eq!(refuse["versions"]["max"], json!(1));
    tunnel.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_in_anothers_name_is_refused() {
    let hub = Hub::start().await;
    let (one, two) = (FakeIdentity::enrol(&hub, SITE).await, FakeIdentity::enrol(&hub, SITE).await);
    let mut tunnel = one.tunnel(&one.token(0)).await.ok().unwrap();
    let hello = with(tunnel.hello(json!([])), json!({"agent": two.agent}));
    tunnel.send(&hello).await;
    let refuse = tunnel.receive(&["refuse", "welcome"]).await;
    assert_eq!((&refuse["type"], &refuse["code"]), (&json!("refuse"), &json!("bad_hello")), "{refuse:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_no_messages_end_the_session_and_lose_no_job() {
    let mut hub = Hub::start().await;
    let identity = FakeIdentity::enrol(&hub, SITE).await;
    let id = hub.api.submit(&drop_a()).await;
    let frames = [
        Message::text("not json"),
        Message::text("{}"),
        Message::text(r#"{"type":"accept"}"#),
        Message::text(format!(r#"{{"type":"unsupported","of":"{}"}}"#, "x".repeat(2 << 20))),
        Message::binary(vec![0; 10]),
        Message::text(format!(r#"{{"type":"accept","x":{}}}"#, "[".repeat(100_000))),
    ];
    for frame in frames {
        let mut tunnel = identity.session(json!([])).await;
        let _may_be_cut_off = tunnel.send_raw(frame.clone()).await;
        let code = tunnel.closed().await;
        assert!(code.is_none_or(|c| (1002..=1009).contains(&c)), "{code:?}");
    }
    let mut tunnel = identity.session(json!([])).await;
    assert_eq!(serve_one(&mut tunnel).await, id, "the job was lost on the way");
    assert_eq!(hub.api.job(&id).await["state"], "succeeded");
    assert!(hub.process.is_running());
    assert!(hub.process.peak_kib() < 64 * 1024);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_without_a_hello_is_closed_after_the_handshake_time() {
    let hub = Hub::start().await;
    let identity = FakeIdentity::enrol(&hub, SITE).await;
    let mut silent = identity.tunnel(&identity.token(0)).await.ok().unwrap();
    silent.closed().await;
    let mut tunnel = identity.session(json!([])).await;
    let id = hub.api.submit(&drop_a()).await;
    assert_eq!(serve_one(&mut tunnel).await, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_handshake_that_stalls_is_closed_in_time_while_others_are_served() {
    let hub = Hub::start_tls().await;
    let began = Instant::now();
    let silent = TcpStream::connect(("127.0.0.1", hub.port())).await.unwrap();
    let mut halted = TcpStream::connect(("127.0.0.1", hub.port())).await.unwrap();
    // The head of a record that announces more than ever comes.
    halted.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.unwrap();
    assert_eq!(hub.api.get("/v1/jobs").await.status, 200);
    for mut socket in [silent, halted] {
        let mut rest = Vec::new();
        let closed = timeout(Duration::from_secs(20), socket.read_to_end(&mut rest)).await;
        // Ended, or reset since bytes were left unread.
        drop(closed.expect("the hub keeps a connection that says nothing"));
        assert!(began.elapsed() > Duration::from_secs(5), "closed before a slow line could have answered");
    }
    assert_eq!(hub.api.get("/v1/jobs").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_message_is_answered_and_the_session_goes_on() {
    let hub = Hub::start().await;
    let identity = FakeIdentity::enrol(&hub, SITE).await;
    let mut tunnel = identity.session(json!([])).await;
    tunnel.send(&json!({"type": "teleport"})).await;
    assert_eq!(tunnel.receive(&["unsupported"]).await["of"], "teleport");
    let id = hub.api.submit(&drop_a()).await;
    assert_eq!(serve_one(&mut tunnel).await, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_reports_a_job_that_is_not_theirs() {
    let hub = Hub::start().await;
    let honest = FakeIdentity::enrol(&hub, SITE).await;
    let thief = FakeIdentity::enrol(&hub, "lyon").await;
    let queued = hub.api.submit(&with(drop_a(), json!({"resource": "not-yet"}))).await;
    let mut tunnel = honest.session(json!([])).await;
    let running = hub.api.submit(&drop_a()).await;
    let offer = tunnel.receive(&["offer"]).await;
    assert_eq!(offer["job"], json!(running));
    tunnel.send(&json!({"type": "accept", "job": running, "attempt": 1})).await;
    hub.api
        .job_where(&running, "accepted", passerelle_tests::PATIENCE, |j| {
            j["attempts"][0]["accepted_at"].is_string()
        })
        .await;
    let mut stolen = thief.session(json!([])).await;
    for id in [&queued, &running] {
        stolen.send(&json!({"type": "accept", "job": id, "attempt": 1})).await;
        stolen.send(&success(id, 1)).await;
        stolen.send(&success(id, 2)).await;
    }
    // The hub has dealt with all of it once it answers what came last.
    stolen.send(&json!({"type": "teleport"})).await;
    stolen.receive(&["unsupported"]).await;
    assert_eq!(hub.api.job(&queued).await["state"], "queued");
    assert!(!passerelle_tests::ended(&hub.api.job(&running).await), "the other's report counted");
    let request = http_client().get(format!("{}/agent/v1/jobs/{running}/payload", hub.url));
    let peek: Answer = hub.api.send(request.bearer_auth(thief.token(0))).await;
    assert!([403, 404].contains(&peek.status), "{peek:?}");
    tunnel.send(&success(&running, 1)).await;
    tunnel.receive(&["report_ack"]).await;
    assert_eq!(hub.api.job(&running).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_report_is_acknowledged_and_counts_once() {
    let hub = Hub::start().await;
    let identity = FakeIdentity::enrol(&hub, SITE).await;
    let mut tunnel = identity.session(json!([])).await;
    let id = hub.api.submit(&drop_a()).await;
    serve_one(&mut tunnel).await;
    let done = hub.api.job(&id).await;
    tunnel.send(&success(&id, 1)).await;
    tunnel.receive(&["report_ack"]).await;
    assert_eq!(hub.api.job(&id).await, done);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_the_agent_never_saw_is_made_again_and_a_held_one_is_kept() {
    let hub = Hub::start().await;
    let identity = FakeIdentity::enrol(&hub, SITE).await;
    let mut tunnel = identity.session(json!([])).await;
    let id = hub.api.submit(&drop_a()).await;
    tunnel.receive(&["offer"]).await;
    drop(tunnel);
    let mut tunnel = identity.session(json!([])).await;
    let offer = tunnel.receive(&["offer"]).await;
    assert_eq!(offer["job"], json!(id));
    tunnel.send(&json!({"type": "accept", "job": id, "attempt": offer["attempt"]})).await;
    hub.api
        .job_where(&id, "accepted", passerelle_tests::PATIENCE, |j| {
            j["attempts"].as_array().is_some_and(|a| a.iter().any(|a| a["accepted_at"].is_string()))
        })
        .await;
    drop(tunnel);
    let held = json!([{"job": id, "attempt": offer["attempt"], "resource": "compta", "state": "running"}]);
    let mut tunnel = identity.session(held).await;
    tunnel.send(&success(&id, u32::try_from(offer["attempt"].as_u64().unwrap()).unwrap())).await;
    tunnel.receive(&["report_ack"]).await;
    let done = hub.api.job(&id).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_connection_of_an_agent_fences_the_first_at_once() {
    let hub = Hub::start().await;
    let identity = FakeIdentity::enrol(&hub, SITE).await;
    let mut first = identity.session(json!([])).await;
    let mut second = identity.session(json!([])).await;
    first.closed().await;
    let id = hub.api.submit(&drop_a()).await;
    assert_eq!(serve_one(&mut second).await, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_is_cut_off_at_once() {
    let hub = Hub::start().await;
    let identity = FakeIdentity::enrol(&hub, SITE).await;
    let mut tunnel = identity.session(json!([])).await;
    hub.admin(&["agent", "revoke", &identity.agent.to_string()]);
    tunnel.closed().await;
    let again = identity.tunnel(&identity.token(0)).await;
    if let Ok(mut tunnel) = again {
        let hello = tunnel.hello(json!([]));
        tunnel.send(&hello).await;
        let refuse = tunnel.receive(&["refuse", "welcome"]).await;
        assert_eq!((&refuse["code"], &refuse["permanent"]), (&json!("revoked"), &json!(true)), "{refuse:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_checked_and_belong_to_the_attempt() {
    let hub = Hub::start().await;
    let identity = FakeIdentity::enrol(&hub, SITE).await;
    let mut tunnel = identity.session(json!([])).await;
    let id = hub.api.submit(&drop_a()).await;
    tunnel.receive(&["offer"]).await;
    tunnel.send(&json!({"type": "accept", "job": id, "attempt": 1})).await;
    // Says that an output was uploaded which was not.
    let mut lie = success(&id, 1);
    lie["outcome"]["output"] = json!({"size": 300_000, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "media_type": "text/csv"});
    tunnel.send(&lie).await;
    tunnel.send(&json!({"type": "teleport"})).await;
    tunnel.receive(&["unsupported"]).await;
    let job = hub.api.job(&id).await;
    assert_ne!(job["state"], "succeeded", "an output that is not there was believed: {job:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_tunnels_and_progress_does_not_stop_others() {
    let hub = Hub::start().await;
    let flood = FakeIdentity::enrol(&hub, "lyon").await;
    let honest = FakeIdentity::enrol(&hub, SITE).await;
    let mut noisy = flood.session(json!([])).await;
    let progress = json!({
        "type": "progress", "job": "01936b0c-7e6a-7000-8000-000000000001", "attempt": 1,
        "started_at": jiff::Timestamp::now(), "bytes_done": 1,
    });
    for _ in 0..20_000 {
        if noisy.send_raw(Message::text(progress.to_string())).await.is_err() {
            break;
        }
    }
    for _ in 0..20 {
        let _ended_by_the_next = flood.tunnel(&flood.token(0)).await;
    }
    let mut tunnel = honest.session(json!([])).await;
    let id = hub.api.submit(&drop_a()).await;
    assert_eq!(serve_one(&mut tunnel).await, id);
    let peak = hub.process.peak_kib();
    assert!(peak < 96 * 1024, "{peak} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn announcements_of_nonsense_are_refused_or_harmless() {
    let hub = Hub::start().await;
    let identity = FakeIdentity::enrol(&hub, SITE).await;
    for spoil in [
        json!({"resources": [{"name": "compta", "connector": "none", "operations": [], "max_concurrent": 1}]}),
        json!({"max_jobs": -1}),
        json!({"name": "../../etc"}),
        json!({"resources": (0..501).map(|n| json!({"name": format!("r{n}"), "connector": "file", "operations": ["drop"], "max_concurrent": 1})).collect::<Vec<_>>()}),
    ] {
        let mut tunnel = identity.tunnel(&identity.token(0)).await.ok().unwrap();
        let hello = with(tunnel.hello(json!([])), spoil);
        tunnel.send(&hello).await;
        tunnel.closed().await;
    }
    let mut tunnel = identity.session(json!([])).await;
    let id = hub.api.submit(&drop_a()).await;
    assert_eq!(serve_one(&mut tunnel).await, id);
}
