//! Jobs whose envelope the client signed: what the hub checks of them, hands on, and lets be retried.

use crate::{
    agent::Agent,
    support::{Answer, Hub, name},
};
use jiff::Timestamp;
use passerelle_protocol::{AgentId, Envelope, JobId, Outcome, PayloadDigest, Repeat, Sha256, SigningKey};
use reqwest::Method;
use serde_json::{Value, json};

pub fn new_id() -> JobId {
    let mut random = [0; 10];
    aws_lc_rs::rand::fill(&mut random).unwrap();
    JobId::new(u64::try_from(Timestamp::now().as_millisecond()).unwrap(), &random)
}

/// An envelope as a client makes it: an hour to start, a day to retry.
pub fn envelope() -> Envelope {
    let now = Timestamp::now().as_second();
    Envelope {
        job: new_id(),
        tenant: name("acme"),
        site: name("paris"),
        resource: name("compta"),
        operation: name("drop"),
        params: json!({"path": "2026/10/FEC.txt"}),
        payload: None,
        timeout_s: 300,
        deadline: now + 3600,
        max_attempts: 5,
        repeat: None,
        order_key: None,
        agents: None,
        iat: now,
        nbf: now,
        exp: now + 86_400,
    }
}

fn key() -> SigningKey {
    SigningKey::generate().unwrap().0
}

async fn submit(hub: &Hub, claims: &Envelope, key: &SigningKey) -> Answer {
    hub.post("/v1/jobs", &json!({"envelope": claims.sign(key).unwrap()})).await
}

#[tokio::test]
async fn an_envelope_is_stored_once_and_offered_to_the_letter() {
    let hub = Hub::start().await;
    let agent = Agent::enrol(&hub).await;
    let content = b"JournalCode\tJournalLib\r\n";
    Answer::of(hub.request(Method::POST, "/v1/blobs").body(content.to_vec())).await.expect(201);
    let mut claims = envelope();
    claims.payload = Some(PayloadDigest {
        size: content.len() as u64,
        sha256: Sha256::of(content),
        media_type: "text/csv".into(),
    });
    claims.order_key = Some("fec".into());
    let text = claims.sign(&key()).unwrap();
    let body = json!({"envelope": text, "priority": 9, "labels": {"run": "7"}, "on_failure": "continue"});
    let job = hub.post("/v1/jobs", &body).await.expect(201).json();
    assert_eq!(job["id"], json!(claims.job));
    for (field, expected) in [
        ("site", json!("paris")),
        ("resource", json!("compta")),
        ("params", claims.params.clone()),
        ("priority", json!(9)),
        ("labels", json!({"run": "7"})),
        ("on_failure", json!("continue")),
        ("order_key", json!("fec")),
        ("max_attempts", json!(5)),
        ("deadline", json!(Timestamp::from_second(claims.deadline).unwrap())),
    ] {
        assert_eq!(job[field], expected, "{field}");
    }
    let again = hub.post("/v1/jobs", &body).await.expect(200).json();
    assert_eq!(again["id"], job["id"]);
    let other = hub.post("/v1/jobs", &json!({"envelope": text})).await;
    other.expect_problem(409, "conflict");
    let mut changed = claims.clone();
    changed.params = json!({"path": "elsewhere.txt"});
    submit(&hub, &changed, &key()).await.expect_problem(409, "conflict");

    let mut session = agent.connect(&hub).await;
    let offer = session.offer().await;
    assert_eq!(offer.envelope, text);
    let keys = [hub.store.signing_key().public().clone()];
    let ticket = passerelle_protocol::Ticket::verify(&keys, &offer.ticket).unwrap();
    assert_eq!(ticket.envelope, Sha256::of(text.as_bytes()));
    let path = format!("/v1/jobs/{}/envelope", claims.job);
    assert_eq!(hub.get(&path).await.expect(200).json(), json!({"envelope": text}));
    let again = hub.post("/v1/jobs", &body).await.expect(200).json();
    assert_eq!(again["state"], "offered");
    assert_eq!(hub.get("/v1/jobs").await.json()["items"].as_array().unwrap().len(), 1);
    hub.end().await;
}

#[tokio::test]
async fn an_envelope_that_no_agent_would_take_is_refused_with_its_field() {
    let hub = Hub::start().await;
    let other = hub.other_tenant().await;
    let key = key();
    let now = Timestamp::now().as_second();
    let mut cases: Vec<(Envelope, u16, &str, &str)> = Vec::new();
    let mut case = |status, code, says, change: &dyn Fn(&mut Envelope)| {
        let mut claims = envelope();
        change(&mut claims);
        cases.push((claims, status, code, says));
    };
    let mut deep = json!(1);
    for _ in 0..70 {
        deep = json!([deep]);
    }
    let digest = |size| PayloadDigest { size, sha256: Sha256::of(b"x"), media_type: "text/csv".into() };
    case(403, "forbidden", "envelope.tenant", &|e| e.tenant = name("other"));
    case(404, "site_unknown", "lyon", &|e| e.site = name("lyon"));
    case(400, "bad_request", "envelope.params: expected an object", &|e| e.params = json!([]));
    case(400, "bad_request", "envelope.params: at most 64", &|e| e.params = json!({"x": deep}));
    case(413, "too_large", "envelope.params", &|e| e.params = json!({"x": "y".repeat(300_000)}));
    case(400, "bad_request", "envelope.timeout_s", &|e| e.timeout_s = 0);
    case(400, "bad_request", "envelope.max_attempts", &|e| e.max_attempts = 1001);
    case(400, "bad_request", "envelope.order_key", &|e| e.order_key = Some(String::new()));
    case(400, "bad_request", "envelope.agents", &|e| e.agents = Some(vec![]));
    case(400, "bad_request", "envelope.exp", &|e| e.exp = e.deadline - 1);
    case(400, "bad_request", "envelope.exp", &|e| e.exp = e.deadline + 31 * 86_400);
    case(400, "bad_request", "envelope.deadline", &|e| {
        (e.deadline, e.exp) = (now + 31 * 86_400, now + 31 * 86_400);
    });
    case(400, "bad_request", "envelope.nbf", &|e| e.nbf = now + 3600);
    case(400, "bad_request", "envelope.exp: expected seconds", &|e| e.exp = i64::MAX);
    case(409, "envelope_expired", "expired", &|e| (e.deadline, e.exp) = (now - 10, now - 5));
    case(409, "envelope_expired", "deadline", &|e| e.deadline = now - 10);
    case(400, "bad_request", "envelope.job: expected a new UUID of version 7", &|e| {
        e.job = "9b2d1c1e-6a3a-4a53-8a2e-0c7a1f6f3f11".parse().unwrap();
    });
    case(400, "bad_request", "envelope.job: expected a new UUID", &|e| e.job = JobId::new(1 << 47, &[1; 10]));
    case(404, "not_found", "upload it first", &|e| e.payload = Some(digest(1)));
    case(413, "too_large", "envelope.payload.size", &|e| e.payload = Some(digest(1 << 40)));
    case(400, "bad_request", "media_type", &|e| {
        e.payload = Some(PayloadDigest { media_type: "csv".into(), ..digest(1) });
    });
    for (claims, status, code, says) in cases {
        let problem = submit(&hub, &claims, &key).await.expect_problem(status, code).json();
        assert!(problem["detail"].as_str().unwrap().contains(says), "{problem}");
    }
    let text = envelope().sign(&key).unwrap();
    for (body, says) in [
        (json!({"envelope": "a.b.c"}), "envelope: "),
        (json!({"envelope": 7}), "envelope: "),
        (json!({"envelope": text, "site": "paris"}), "site"),
        (json!({"envelope": text, "priority": 10}), "priority"),
        (json!({"envelope": text, "labels": {"": "x"}}), "labels"),
        (json!({"envelope": &text[..text.len() - 4]}), "envelope: "),
    ] {
        let problem = hub.post("/v1/jobs", &body).await.expect_problem(400, "bad_request").json();
        assert!(problem["detail"].as_str().unwrap().contains(says), "{problem}");
    }
    // The blob of another tenant is not there, and neither is the content that came with another job.
    let theirs = hub.anonymous(Method::POST, "/v1/blobs").bearer_auth(&other).body("x");
    Answer::of(theirs).await.expect(201);
    hub.submit(json!({"payload": {"text": "x"}})).await;
    let mut claims = envelope();
    claims.payload = Some(digest(1));
    submit(&hub, &claims, &key).await.expect_problem(404, "not_found");
    assert_eq!(hub.get("/v1/jobs").await.json()["items"].as_array().unwrap().len(), 1);
    hub.end().await;
}

/// A signed job that its agent has failed once for good.
async fn failed(hub: &Hub, agent: &Agent, claims: &Envelope, key: &SigningKey) {
    submit(hub, claims, key).await.expect(201);
    let mut session = agent.connect(hub).await;
    let offer = session.offer().await;
    let failure: Outcome = serde_json::from_value(json!({
        "outcome": "failed", "verdict": "permanent", "effect": "not_applied", "code": "target_refused", "message": "no",
    }))
    .unwrap();
    session.finish(&offer, failure).await;
}

async fn retry(hub: &Hub, id: JobId, body: &Value) -> Answer {
    hub.post(&format!("/v1/jobs/{id}/retry"), body).await
}

#[tokio::test]
async fn a_retry_goes_as_far_as_the_client_signed_and_then_needs_a_new_envelope() {
    let hub = Hub::start().await;
    let agent = Agent::enrol(&hub).await;
    let key = key();
    let mut claims = envelope();
    claims.max_attempts = 2;
    failed(&hub, &agent, &claims, &key).await;
    let retried = retry(&hub, claims.job, &json!({})).await.expect(200).json();
    assert_eq!(retried["deadline"], json!(Timestamp::from_second(claims.deadline).unwrap()), "it was moved");
    let mut session = agent.connect(&hub).await;
    let offer = session.offer().await;
    let failure = json!({
        "outcome": "failed", "verdict": "retry", "effect": "not_applied", "code": "target_unreachable", "message": "no",
    });
    session.finish(&offer, serde_json::from_value(failure).unwrap()).await;
    // One attempt was left, not a round of two.
    assert_eq!(hub.get(&format!("/v1/jobs/{}", claims.job)).await.json()["state"], "failed");
    let spent = retry(&hub, claims.job, &json!({})).await.expect_problem(409, "envelope_expired").json();
    assert!(spent["detail"].as_str().unwrap().contains("allows 2 attempts"), "{spent}");

    let sign = |change: &dyn Fn(&mut Envelope)| {
        let mut renewed = Envelope { max_attempts: 3, ..claims.clone() };
        change(&mut renewed);
        json!({"envelope": renewed.sign(&key).unwrap()})
    };
    for (field, changed) in [
        ("job", sign(&|e| e.job = new_id())),
        ("params", sign(&|e| e.params = json!({"path": "other.txt"}))),
        ("resource", sign(&|e| e.resource = name("other"))),
        ("operation", sign(&|e| e.operation = name("delete"))),
        ("order_key", sign(&|e| e.order_key = Some("x".into()))),
        (
            "payload",
            sign(&|e| {
                e.payload =
                    Some(PayloadDigest { size: 1, sha256: Sha256::of(b"x"), media_type: "a/b".into() });
            }),
        ),
    ] {
        let problem = retry(&hub, claims.job, &changed).await.expect_problem(409, "conflict").json();
        assert!(problem["detail"].as_str().unwrap().contains(field), "{field}: {problem}");
    }
    let too_few = sign(&|e| e.max_attempts = 2);
    retry(&hub, claims.job, &too_few).await.expect_problem(409, "envelope_expired");
    retry(&hub, claims.job, &json!({"envelope": "x"})).await.expect_problem(400, "bad_request");
    let renewed = sign(&|e| (e.deadline, e.exp) = (e.deadline + 60, e.exp + 60));
    let job = retry(&hub, claims.job, &renewed).await.expect(200).json();
    assert_eq!(job["deadline"], json!(Timestamp::from_second(claims.deadline + 60).unwrap()));
    let offer = session.offer().await;
    assert_eq!(json!(offer.envelope), renewed["envelope"]);
    hub.end().await;
}

#[tokio::test]
async fn an_expired_envelope_is_told_at_the_retry() {
    let hub = Hub::start().await;
    let agent = Agent::enrol(&hub).await;
    let key = key();
    let mut claims = envelope();
    let now = Timestamp::now().as_second();
    (claims.deadline, claims.exp) = (now + 3, now + 3);
    failed(&hub, &agent, &claims, &key).await;
    crate::support::eventually(async || {
        let answer = retry(&hub, claims.job, &json!({})).await;
        if answer.status == 200 {
            hub.post(&format!("/v1/jobs/{}/cancel", claims.job), &json!({})).await;
            return None;
        }
        (answer.json()["code"] == "envelope_expired").then_some(())
    })
    .await;
    // A job of the hub's takes none.
    let id: JobId = hub.submit(json!({})).await["id"].as_str().unwrap().parse().unwrap();
    hub.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).await.expect(200);
    let foreign = Envelope { job: id, ..envelope() };
    let answer = retry(&hub, id, &json!({"envelope": foreign.sign(&key).unwrap()})).await;
    answer.expect_problem(409, "conflict");
    hub.end().await;
}

#[tokio::test]
async fn a_job_for_listed_agents_waits_for_them_and_holds_up_nobody() {
    let hub = Hub::start().await;
    let (one, two) = (Agent::enrol(&hub).await, Agent::enrol(&hub).await);
    let key = key();
    let mut only_two = envelope();
    only_two.agents = Some(vec![two.identity.agent]);
    only_two.repeat = Some(Repeat::Never);
    submit(&hub, &only_two, &key).await.expect(201);
    let mut nobody = envelope();
    nobody.agents = Some(vec![AgentId::new(1, &[9; 10])]);
    submit(&hub, &nobody, &key).await.expect(201);
    let free = envelope();
    submit(&hub, &free, &key).await.expect(201);
    let mut session = one.connect(&hub).await;
    assert_eq!(session.offer().await.job, free.job, "what waits for another agent held up the others");
    let mut session = two.connect(&hub).await;
    assert_eq!(session.offer().await.job, only_two.job);
    assert_eq!(hub.get(&format!("/v1/jobs/{}", nobody.job)).await.json()["state"], "queued");
    hub.end().await;
}
