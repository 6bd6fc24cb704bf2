//! The life of a job as its client sees it: submitting, waiting, cancelling, retrying, expiring.

use crate::common::{SITE, Site, drop_into, drop_job, files_below, job, notify_job, with};
use passerelle_tests::{Agent, Answer, Content, Hub, Proxy, Reply, SshServer, code};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

async fn submit_with_key(site: &Site, key: &str, body: &Value) -> Answer {
    let request = site.hub.api.request(Method::POST, "/v1/jobs").header("idempotency-key", key).json(body);
    site.hub.api.send(request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_for_a_resource_nobody_announced_waits_until_an_agent_brings_it() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    let early = site.hub.api.submit(&drop_job("early.csv", "x")).await;
    assert_eq!(site.hub.api.job(&early).await["state"], "queued");
    let later = with(drop_job("later.csv", "x"), json!({"resource": "not-yet"}));
    let later = site.hub.api.submit(&later).await;
    site.agent.start().await;
    site.hub.api.reach(&early, &["succeeded"]).await;
    assert_eq!(site.hub.api.job(&later).await["state"], "queued");
    site.agent.resource("not-yet", &passerelle_tests::resources::folder("not-yet", site.files.path()));
    site.agent.restart().await;
    site.hub.api.reach(&later, &["succeeded"]).await;
    assert_eq!(files_below(site.files.path()), ["early.csv", "later.csv"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_cannot_start_by_its_deadline_expires() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    let id = site.hub.api.submit(&with(drop_job("late.csv", "x"), json!({"deadline_s": 1}))).await;
    let done = site.hub.api.end_of(&id, Duration::from_secs(30)).await;
    assert_eq!((done["state"].as_str(), code(&done)), (Some("expired"), "deadline"), "{done:#}");
    assert_eq!(done["error"]["effect"], "not_applied");
    site.agent.start().await;
    site.hub.api.succeed(&drop_job("in-time.csv", "x")).await;
    assert_eq!(files_below(site.files.path()), ["in-time.csv"]);
    // A retry counts the deadline anew.
    let again = site.hub.api.post(&format!("/v1/jobs/{id}/retry"), &json!({})).await;
    assert_eq!(again.status, 200, "{again:?}");
    site.hub.api.job_where(&id, "succeeded", Duration::from_secs(30), |j| j["state"] == "succeeded").await;
    assert_eq!(site.read("late.csv"), "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_that_do_not_fit_fail_the_job_with_the_field_named() {
    let site = Site::start().await;
    for params in [
        json!({}),
        json!({"path": 7}),
        json!({"path": "a.csv", "on_conflict": "shrug"}),
        json!({"path": "a.csv", "unknown": 1}),
    ] {
        let done = site.hub.api.run(&with(drop_job("a.csv", "x"), json!({"params": params}))).await;
        assert_eq!(
            (done["state"].as_str(), code(&done)),
            (Some("failed"), "invalid_params"),
            "{params}: {done:#}"
        );
        assert_eq!(done["error"]["effect"], "not_applied");
    }
    let unknown = site.hub.api.run(&job("compta", "teleport", json!({"path": "a.csv"}))).await;
    assert!(["failed", "denied"].contains(&unknown["state"].as_str().unwrap()), "{unknown:#}");
    assert_eq!(files_below(site.files.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_job_is_cancelled_at_once_and_runs_when_retried() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    let id = site.hub.api.submit(&drop_job("a.csv", "x")).await;
    let cancelled = site.hub.api.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).await;
    assert_eq!(
        (cancelled.status, cancelled.body["state"].as_str()),
        (200, Some("cancelled")),
        "{cancelled:?}"
    );
    site.agent.start().await;
    site.hub.api.succeed(&drop_job("b.csv", "x")).await;
    assert_eq!(files_below(site.files.path()), ["b.csv"], "a cancelled job has run");
    let again = site.hub.api.post(&format!("/v1/jobs/{id}/retry"), &json!({})).await;
    assert_eq!(again.status, 200, "{again:?}");
    site.hub.api.job_where(&id, "succeeded", Duration::from_secs(30), |j| j["state"] == "succeeded").await;
    assert_eq!(files_below(site.files.path()), ["a.csv", "b.csv"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_drop_is_cancelled_without_a_trace() {
    let (hub, ssh) = (Hub::start().await, SshServer::start());
    let slow = Proxy::start(ssh.port()).await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    ssh.serve_through(&agent, "sftp", slow.port());
    agent.start().await;
    let source = tempfile::tempdir().unwrap();
    let blob = hub.api.upload(&Content::write(source.path(), 60_000_000)).await;
    slow.slow(Some(3_000_000));
    let id = hub.api.submit(&drop_into("sftp", "a.bin", json!({"blob": blob["id"]}))).await;
    hub.api
        .job_where(&id, "moves bytes", Duration::from_secs(60), |j| {
            j["progress"]["bytes_done"].as_u64() > Some(0)
        })
        .await;
    let asked = hub.api.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).await;
    assert_eq!(asked.status, 200, "{asked:?}");
    let done = hub.api.end_of(&id, Duration::from_secs(60)).await;
    assert_eq!((done["state"].as_str(), code(&done)), (Some("cancelled"), "cancelled"), "{done:#}");
    assert_eq!(done["error"]["effect"], "not_applied");
    slow.slow(None);
    passerelle_tests::until("the part to be cleaned up", Duration::from_secs(30), async || {
        files_below(ssh.root()).is_empty().then_some(())
    })
    .await;
    hub.api.succeed(&drop_into("sftp", "b.txt", json!({"text": "next"}))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_job_succeeds_when_it_is_retried() {
    let site = Site::with_app(|_, before| Reply::status(if before == 0 { 404 } else { 200 })).await;
    let failed = site.hub.api.run(&notify_job("orders/42/validated")).await;
    assert_eq!(failed["state"], "failed");
    let id = failed["id"].as_str().unwrap();
    let again = site.hub.api.post(&format!("/v1/jobs/{id}/retry"), &json!({})).await;
    assert_eq!((again.status, &again.body["id"]), (200, &failed["id"]), "{again:?}");
    let done =
        site.hub.api.job_where(id, "succeeded", Duration::from_secs(30), |j| j["state"] == "succeeded").await;
    let numbers: Vec<&Value> = done["attempts"].as_array().unwrap().iter().map(|a| &a["number"]).collect();
    assert_eq!(numbers, [&json!(1), &json!(2)]);
    assert!(done["error"].is_null(), "{done:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_state_forbids_is_a_conflict() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    let queued = site.hub.api.submit(&drop_job("q.csv", "x")).await;
    let answer = site.hub.api.post(&format!("/v1/jobs/{queued}/retry"), &json!({})).await;
    assert_eq!((answer.status, code(&answer.body)), (409, "conflict"), "{answer:?}");
    site.agent.start().await;
    site.hub.api.reach(&queued, &["succeeded"]).await;
    let denied = site.hub.api.run(&drop_job("../q.csv", "x")).await;
    for id in [queued.as_str(), denied["id"].as_str().unwrap()] {
        for action in ["cancel", "retry"] {
            let answer = site.hub.api.post(&format!("/v1/jobs/{id}/{action}"), &json!({})).await;
            assert_eq!((answer.status, code(&answer.body)), (409, "conflict"), "{action}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_stop_at_the_limit() {
    let site =
        Site::with_app(|request, _| Reply::status(if request.uri == "/busy" { 429 } else { 500 })).await;
    for path in ["busy", "broken"] {
        let done = site.hub.api.run(&with(notify_job(path), json!({"max_attempts": 3}))).await;
        assert_eq!(done["state"], "failed", "{done:#}");
        assert_eq!(done["attempts"].as_array().unwrap().len(), 3);
    }
    assert_eq!(site.app.requests().len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_without_progress_ends() {
    let site = Site::with_app(|_, _| Reply::status(200).held()).await;
    let start = Instant::now();
    let done = site.hub.api.run(&with(notify_job("a"), json!({"timeout_s": 1, "max_attempts": 1}))).await;
    assert!(["failed", "unknown"].contains(&done["state"].as_str().unwrap()), "{done:#}");
    assert!(["target_timeout", "deadline"].contains(&code(&done)), "{done:#}");
    assert_eq!(done["error"]["effect"], "unknown", "{done:#}");
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seen_idempotency_key_gives_the_same_job() {
    let site = Site::start().await;
    let body = drop_job("a.csv", "x");
    let first = submit_with_key(&site, "export-2026-10", &body).await;
    assert_eq!(first.status, 201, "{first:?}");
    let second = submit_with_key(&site, "export-2026-10", &body).await;
    assert_eq!((second.status, &second.body["id"]), (200, &first.body["id"]));
    let other = submit_with_key(&site, "export-2026-10", &drop_job("b.csv", "x")).await;
    assert_eq!((other.status, code(&other.body)), (422, "idempotency_mismatch"));
    site.hub.api.reach(first.body["id"].as_str().unwrap(), &["succeeded"]).await;
    let finished = submit_with_key(&site, "export-2026-10", &body).await;
    assert_eq!((finished.status, &finished.body["state"]), (200, &json!("succeeded")));
    site.hub.admin(&["tenant", "create", "other", "--tier", "enterprise"]);
    site.hub.admin(&[
        "enrolment-token",
        "create",
        "--tenant",
        "other",
        "--site",
        SITE,
        "--application",
        "orchestrator",
    ]);
    let other = site.hub.api.with_key(&site.hub.api_key("other", "jobs:write"));
    let request =
        other.request(Method::POST, "/v1/jobs").header("idempotency-key", "export-2026-10").json(&body);
    assert_eq!(other.send(request).await.status, 201, "a key of one tenant binds another");
    assert_eq!(files_below(site.files.path()), ["a.csv"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_submissions_at_once_with_one_key_make_one_job() {
    let site = Site::start().await;
    let body = drop_job("a.csv", "x");
    let answers = futures_util::future::join_all((0..40).map(|_| submit_with_key(&site, "one", &body))).await;
    let created = answers.iter().filter(|a| a.status == 201).count();
    assert_eq!(created, 1);
    assert!(answers.iter().all(|a| a.body["id"] == answers[0].body["id"]), "{answers:?}");
    let listed = site.hub.api.get("/v1/jobs").await;
    assert_eq!(listed.body["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_wait_for_the_end() {
    let site = Site::with_app(|request, _| match request.uri.as_str() {
        "/refused" => Reply::status(404),
        "/slow" => Reply::status(200).held(),
        _ => Reply::status(200),
    })
    .await;
    let wait = |seconds: &'static str, body: Value| {
        let api = &site.hub.api;
        async move { api.post(&format!("/v1/jobs?wait={seconds}"), &body).await }
    };
    for wrong in ["0", "61", "-1", "soon", ""] {
        let answer = wait(wrong, notify_job("a")).await;
        assert_eq!((answer.status, code(&answer.body)), (400, "bad_request"), "wait={wrong}");
    }
    let done = wait("30", notify_job("a")).await;
    assert_eq!((done.status, &done.body["state"]), (201, &json!("succeeded")), "{done:?}");
    let failed = wait("30", notify_job("refused")).await;
    assert_eq!((failed.status, &failed.body["state"]), (201, &json!("failed")), "{failed:?}");
    let start = Instant::now();
    let unfinished = wait("1", notify_job("slow")).await;
    assert_eq!(unfinished.status, 202, "{unfinished:?}");
    assert!(start.elapsed() >= Duration::from_secs(1), "answered after {:?}", start.elapsed());
    site.app.release();
    site.hub.api.reach(unfinished.body["id"].as_str().unwrap(), &["succeeded"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_with_a_seen_key_answers_200_when_the_job_has_ended() {
    let site = Site::start().await;
    let body = drop_job("a.csv", "x");
    submit_with_key(&site, "k", &body).await;
    let request =
        site.hub.api.request(Method::POST, "/v1/jobs?wait=30").header("idempotency-key", "k").json(&body);
    let answer = site.hub.api.send(request).await;
    assert_eq!((answer.status, &answer.body["state"]), (200, &json!("succeeded")), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn urgent_jobs_go_first() {
    let mut site = Site::prepared(|_, before| {
        let reply = Reply::status(200);
        if before == 0 { reply.held() } else { reply }
    })
    .await;
    let one_by_one = passerelle_tests::resources::application_with(
        "orders-app",
        &site.app.url,
        "limits = { max_concurrent = 1 }",
    );
    site.agent.resource("orders-app", &one_by_one);
    site.agent.start().await;
    site.hub.api.submit(&notify_job("first")).await;
    site.app.received(1).await;
    let mut ids = Vec::new();
    for priority in [0, 4, 9] {
        let job = with(notify_job(&format!("priority-{priority}")), json!({"priority": priority}));
        ids.push(site.hub.api.submit(&job).await);
    }
    site.app.release();
    for id in &ids {
        site.hub.api.reach(id, &["succeeded"]).await;
    }
    let order: Vec<String> = site.app.requests().into_iter().map(|r| r.uri).collect();
    assert_eq!(order, ["/first", "/priority-9", "/priority-4", "/priority-0"]);
}
