//! Enrolment: tokens that work once, tiers and applications, and an identity that stays.

use crate::common::{SITE, drop_into};
use passerelle_tests::{Agent, FakeHub, FakeIdentity, Hub, code, resources};
use serde_json::json;
use std::{
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_enrols_once_and_keeps_its_identity() {
    let hub = Hub::start().await;
    let files = tempfile::tempdir().unwrap();
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.resource("compta", &resources::folder("compta", files.path()));
    agent.start().await;
    let first = hub.api.get("/v1/agents").await.body;
    agent.secret("enrolment-token", "used up long ago");
    agent.restart().await;
    let second = hub.api.get("/v1/agents").await.body;
    assert_eq!(first["items"][0]["id"], second["items"][0]["id"]);
    assert_eq!(second["items"].as_array().unwrap().len(), 1);
    let state = agent.folder().join("state");
    let mut private = 0;
    for entry in std::fs::read_dir(&state).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "{:?} is open to everybody", entry.path());
        private += usize::from(mode & 0o077 == 0);
    }
    assert!(private > 0, "no private file in the state folder");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_once() {
    let hub = Hub::start().await;
    let token = hub.enrolment_token(SITE, &[]);
    let (first, _) = FakeIdentity::try_enrol(&hub, &token).await;
    assert_eq!(first.status, 201, "{first:?}");
    let (second, _) = FakeIdentity::try_enrol(&hub, &token).await;
    assert!([401, 403].contains(&second.status), "{second:?}");
    assert!(second.body["server_time"].is_string(), "{second:?}");
    let twice = hub.enrolment_token(SITE, &["--uses", "2"]);
    for expected in [201, 201, 401] {
        let (answer, _) = FakeIdentity::try_enrol(&hub, &twice).await;
        assert!(answer.status == expected || (expected == 401 && answer.status == 403), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_refused_and_the_agent_says_so() {
    let hub = Hub::start().await;
    let mut agent = Agent::at(&hub.url, "paris-1");
    agent.secret("enrolment-token", &hub.enrolment_token(SITE, &["--ttl", "1s"]));
    let made = Instant::now();
    // The test waits for the clock itself.
    tokio::time::sleep(Duration::from_millis(2100).saturating_sub(made.elapsed())).await;
    agent.spawn();
    assert_eq!(agent.process().exit_code(SOON).await, Some(69), "{}", agent.process().log());
    let log = agent.process().log();
    assert!(log.contains("expired") || log.contains("new token") || log.contains("enrolment-token"), "{log}");
    assert_eq!(hub.api.get("/v1/agents").await.body["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn hybrid_mode_needs_the_tier_and_the_right_application() {
    let hub = Hub::start().await;
    for (tier, application, expected) in [
        ("professional", "orchestrator", "nterprise"),
        ("standard", "hub", "nterprise"),
        ("enterprise", "office", "office"),
        ("enterprise", "commerce", "commerce"),
        ("enterprise", "store", "store"),
        ("enterprise", "signage", "signage"),
    ] {
        let tenant = format!("tenant-{tier}-{application}");
        hub.admin(&["tenant", "create", &tenant, "--tier", tier]);
        let output = hub.admin_output(&[
            "enrolment-token",
            "create",
            "--tenant",
            &tenant,
            "--site",
            SITE,
            "--application",
            application,
        ]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{tier} {application} got a token");
        assert!(said.contains(expected), "{tier} {application}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_loses_its_tier_is_refused_and_keeps_its_jobs() {
    let hub = Hub::start().await;
    let files = tempfile::tempdir().unwrap();
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.resource("compta", &resources::folder("compta", files.path()));
    agent.start().await;
    agent.kill();
    // What the hub still believes to be connected would be offered the job.
    hub.api.agents_online(SITE, 0).await;
    let id = hub.api.submit(&drop_into("compta", "a.csv", json!({"text": "x"}))).await;
    hub.admin(&["tenant", "set-tier", "acme", "standard"]);
    agent.spawn();
    agent.process().logged("nterprise", SOON).await;
    assert_eq!(hub.api.job(&id).await["state"], "queued");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_enrolment_repeats_the_hubs_own_words() {
    let problem = json!({
        "type": "about:blank", "title": "Forbidden", "status": 403, "code": "application_incompatible",
        "detail": "the application office cannot be used in hybrid mode", "server_time": jiff::Timestamp::now(),
    });
    let hub = FakeHub::refusing_enrolment(403, problem).await;
    let mut agent = Agent::at(&hub.url, "paris-1");
    agent.spawn();
    assert_eq!(agent.process().exit_code(SOON).await, Some(69), "{}", agent.process().log());
    assert!(agent.process().log().contains("cannot be used in hybrid mode"), "{}", agent.process().log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_hub_is_asked_again() {
    let problem =
        json!({"status": 503, "title": "Service Unavailable", "code": "internal", "detail": "try later"});
    let hub = FakeHub::refusing_enrolment(503, problem).await;
    let mut agent = Agent::at(&hub.url, "paris-1");
    agent.spawn();
    agent.process().logged("try later", SOON).await;
    assert!(agent.process().is_running(), "{}", agent.process().log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_without_keys_or_audience_is_not_taken() {
    let key = passerelle_protocol::SigningKey::generate().unwrap().0;
    for (keys, audience, lacks) in
        [(json!([]), "urn:hub", "a key that signs jobs"), (json!([key.public()]), "", "an audience")]
    {
        let enrolled = json!({
            "agent": "0193c1f0-0000-7000-8000-000000000001", "tenant": "acme", "site": SITE,
            "application": "orchestrator", "audience": audience, "job_keys": keys,
            "server_time": jiff::Timestamp::now(),
        });
        let hub = FakeHub::refusing_enrolment(201, enrolled).await;
        let mut agent = Agent::at(&hub.url, "paris-1");
        agent.spawn();
        agent.process().logged(&format!("without {lacks}"), SOON).await;
        assert!(agent.process().is_running(), "{}", agent.process().log());
        assert!(!agent.folder().join("state/identity.json").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_enrolment_is_a_bad_request() {
    let hub = Hub::start().await;
    for body in ["", "{}", "[]", "{\"token\": 7}"] {
        let request = passerelle_tests::http_client()
            .post(format!("{}/agent/v1/enrol", hub.url))
            .header("content-type", "application/json")
            .body(body);
        let answer = hub.api.send(request).await;
        assert_eq!((answer.status, code(&answer.body)), (400, "bad_request"), "{body:?}");
    }
}
