//! Submitting, reading, listing and steering jobs.

use crate::{
    agent::Agent,
    support::{Answer, Hub, job},
};
use reqwest::Method;
use serde_json::{Value, json};

async fn with_key(hub: &Hub, key: &str, query: &str, body: &Value) -> Answer {
    let path = format!("/v1/jobs{query}");
    Answer::of(hub.request(Method::POST, &path).header("idempotency-key", key).json(body)).await
}

#[tokio::test]
async fn a_submitted_job_is_stored_shown_and_cancelled_once() {
    let hub = Hub::start().await;
    let answer =
        hub.post("/v1/jobs", &job(json!({"labels": {"order": "7"}, "priority": 9}))).await.expect(201);
    let stored = answer.json();
    let path = format!("/v1/jobs/{}", stored["id"].as_str().unwrap());
    assert_eq!(answer.header("location"), path);
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    for (field, expected) in [
        ("tenant", json!("acme")),
        ("site", json!("paris")),
        ("resource", json!("compta")),
        ("operation", json!("drop")),
        ("params", json!({"path": "2026/10/FEC.txt"})),
        ("state", json!("queued")),
        ("priority", json!(9)),
        ("labels", json!({"order": "7"})),
        ("attempts", json!([])),
        ("max_attempts", json!(5)),
        ("result", Value::Null),
        ("output", Value::Null),
        ("receipt", Value::Null),
        ("error", Value::Null),
        ("finished_at", Value::Null),
    ] {
        assert_eq!(stored[field], expected, "{field}");
    }
    assert_eq!(hub.get(&path).await.expect(200).json(), stored);

    let cancelled = hub.post(&format!("{path}/cancel"), &json!({})).await.expect(200).json();
    assert_eq!(cancelled["state"], "cancelled");
    assert_eq!(cancelled["error"]["code"], "cancelled");
    let again = Answer::of(hub.request(Method::POST, &format!("{path}/cancel"))).await;
    let problem = again.expect_problem(409, "conflict").json();
    assert!(problem["detail"].as_str().unwrap().contains("cancelled"), "{problem}");

    let retried = Answer::of(hub.request(Method::POST, &format!("{path}/retry"))).await.expect(200).json();
    assert_eq!(retried["state"], "queued");
    hub.post(&format!("{path}/retry"), &json!({})).await.expect_problem(409, "conflict");
    hub.get(&format!("{path}/output")).await.expect_problem(404, "not_found");
    hub.end().await;
}

#[tokio::test]
async fn an_idempotency_key_stores_a_job_once() {
    let hub = Hub::start().await;
    let first = with_key(&hub, "export 7", "", &job(json!({}))).await.expect(201).json();
    let second = with_key(&hub, "export 7", "", &job(json!({"priority": 4}))).await.expect(200);
    assert_eq!(second.json()["id"], first["id"]);
    assert!(second.header("location").ends_with(first["id"].as_str().unwrap()));
    // The same content as a blob is the same job.
    let blob = Answer::of(hub.request(Method::POST, "/v1/blobs").body("JournalCode\tJournalLib\r\n")).await;
    let payload = json!({"blob": blob.expect(201).json()["id"], "media_type": "text/plain;charset=utf-8"});
    let third = with_key(&hub, "export 7", "", &job(json!({"payload": payload}))).await.expect(200).json();
    assert_eq!(third["id"], first["id"]);
    with_key(&hub, "export 7", "", &job(json!({"priority": 5})))
        .await
        .expect_problem(422, "idempotency_mismatch");
    let other = hub.other_tenant().await;
    let request = hub.anonymous(Method::POST, "/v1/jobs").bearer_auth(other);
    let theirs = Answer::of(request.header("idempotency-key", "export 7").json(&job(json!({})))).await;
    assert_ne!(theirs.expect(201).json()["id"], first["id"]);
    for bad in ["", "é", &"x".repeat(256)] {
        with_key(&hub, bad, "", &job(json!({}))).await.expect_problem(400, "bad_request");
    }
    hub.end().await;
}

#[tokio::test]
async fn many_submissions_of_one_key_at_once_store_one_job() {
    let hub = Hub::start().await;
    let body = job(json!({}));
    let answers = futures_util::future::join_all((0..16).map(|_| with_key(&hub, "k", "", &body))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
    assert!(answers.iter().all(|answer| answer.status == 201 || answer.status == 200));
    let ids: std::collections::BTreeSet<String> =
        answers.iter().map(|a| a.json()["id"].to_string()).collect();
    assert_eq!(ids.len(), 1);
    hub.end().await;
}

#[tokio::test]
async fn a_wait_answers_when_the_job_ends_or_the_time_is_over() {
    let hub = Hub::start().await;
    for bad in ["0", "61", "-1", "1.5", "x", ""] {
        let answer = hub.post(&format!("/v1/jobs?wait={bad}"), &job(json!({}))).await;
        answer.expect_problem(400, "bad_request");
    }
    assert_eq!(hub.get("/v1/jobs").await.json()["items"], json!([]));

    let pending = with_key(&hub, "slow", "?wait=1", &job(json!({}))).await.expect(202);
    assert_eq!(pending.json()["state"], "queued");
    assert!(pending.header("location").starts_with("/v1/jobs/"));
    with_key(&hub, "slow", "?wait=1", &job(json!({}))).await.expect(202);

    let agent = Agent::enrol(&hub).await;
    let mut session = agent.connect(&hub).await;
    session.succeed(json!({"size": 24}), None).await;
    let seen = with_key(&hub, "slow", "?wait=30", &job(json!({}))).await.expect(200).json();
    assert_eq!((&seen["state"], &seen["result"]), (&json!("succeeded"), &json!({"size": 24})));
    assert_eq!(seen["attempts"][0]["effect"], "applied");
    assert_eq!(seen["attempts"][0]["agent"], json!(agent.identity.agent));

    let body = job(json!({}));
    let (ended, ()) =
        tokio::join!(with_key(&hub, "now", "?wait=30", &body), session.succeed(json!({}), None));
    assert_eq!(ended.expect(201).json()["state"], "succeeded");
    hub.end().await;
    session.ends().await;
}

#[tokio::test]
async fn lists_are_filtered_and_paged_newest_first() {
    let hub = Hub::start().await;
    let mut submitted = Vec::new();
    for number in 0..7 {
        let resource = if number % 2 == 0 { "compta" } else { "orders-app" };
        submitted.push(hub.submit(json!({"resource": resource})).await["id"].clone());
    }
    submitted.reverse();
    let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = hub.get(&format!("/v1/jobs?limit=3{cursor}")).await.expect(200).json();
        seen.extend(page["items"].as_array().unwrap().iter().map(|job| job["id"].clone()));
        pages += 1;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!((seen, pages), (submitted, 3));

    let count = async |query: &str| {
        hub.get(&format!("/v1/jobs?{query}")).await.expect(200).json()["items"].as_array().unwrap().len()
    };
    assert_eq!(count("resource=compta").await, 4);
    assert_eq!(count("site=paris&state=queued").await, 7);
    assert_eq!(count("site=lyon").await, 0);
    assert_eq!(count("state=failed").await, 0);
    assert_eq!(count("since=2020-01-01T00:00:00Z").await, 7);
    assert_eq!(count("until=2020-01-01T00:00:00Z").await, 0);
    for bad in [
        "limit=0",
        "limit=501",
        "limit=x",
        "colour=1",
        "state=done",
        "since=yesterday",
        "site=%2F",
        "cursor=%21",
    ] {
        hub.get(&format!("/v1/jobs?{bad}")).await.expect_problem(400, "bad_request");
    }
    hub.end().await;
}
