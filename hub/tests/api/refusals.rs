//! What the API refuses, and how it says so.

use crate::support::{Answer, Hub, job, name};
use reqwest::Method;
use serde_json::{Value, json};

const NOBODY: &str = "01936b0c-7e6a-7000-8000-000000000001";

#[tokio::test]
async fn a_wrong_submission_is_refused_and_stores_nothing() {
    let hub = Hub::start().await;
    for (extra, status, code, says) in [
        (json!({"site": "lyon"}), 404, "site_unknown", "lyon"),
        (json!({"site": "Lyon!"}), 400, "bad_request", "site: "),
        (json!({"resource": "a/b"}), 400, "bad_request", "resource: "),
        (json!({"colour": 1}), 400, "bad_request", "colour"),
        (json!({"priority": 10}), 400, "bad_request", "priority"),
        (json!({"deadline_s": 0}), 400, "bad_request", "deadline_s"),
        (json!({"deadline_s": "1h"}), 400, "bad_request", "deadline_s"),
        (json!({"payload": {"text": "a", "blob": NOBODY}}), 400, "bad_request", "payload"),
        (json!({"payload": {"blob": NOBODY}}), 404, "not_found", "payload.blob"),
        (json!({"params": {"x": "y".repeat(300_000)}}), 413, "too_large", "params"),
        (json!({"payload": {"text": "y".repeat(1_100_000)}}), 413, "too_large", "blob"),
        (json!({"params": null}), 400, "bad_request", "params"),
        (json!({"payload": ["t", null, null, null, null]}), 400, "bad_request", "payload"),
    ] {
        let problem = hub.post("/v1/jobs", &job(extra)).await.expect_problem(status, code).json();
        assert!(problem["detail"].as_str().unwrap().contains(says), "{problem}");
    }
    let raw = async |body: &str, kind: &str| {
        let request = hub.request(Method::POST, "/v1/jobs").header("content-type", kind);
        Answer::of(request.body(body.to_owned())).await
    };
    for body in [
        "",
        "{",
        "[]",
        r#"["paris","compta","stat",{"path":"x"},null,60,60,1,null,null,4,{}]"#,
        "null",
        "\"x\"",
        "{\"site\":\"paris\"",
        "{} {}",
        "\u{feff}{}",
        "{\"site\":\"a\",\"site\":\"b\"}",
    ] {
        raw(body, "application/json").await.expect_problem(400, "bad_request");
    }
    raw("{}", "text/plain").await.expect_problem(415, "bad_request");
    let packed =
        hub.request(Method::POST, "/v1/jobs").header("content-encoding", "gzip").json(&job(json!({})));
    let said = Answer::of(packed).await.expect_problem(415, "bad_request").text();
    assert!(said.contains("Content-Encoding: gzip"), "{said}");
    for path in ["jobs/%ff", "blobs/%ff", "agents/%c3%28/revoke", "mediations/runs/%ff"] {
        hub.get(&format!("/v1/{path}")).await.expect_problem(404, "not_found");
    }
    let vendor = hub.get("/app/mediations/%ff/status").await.expect(404).json();
    assert!(vendor["ErrorCode"].is_number() || vendor["ErrorCode"].is_string(), "{vendor}");
    raw(&"[".repeat(200_000), "application/json").await.expect_problem(400, "bad_request");
    raw(r#"{"envelope":"a.b.c"}"#, "application/json").await.expect_problem(400, "bad_request");
    hub.post("/v1/jobs?weight=1", &job(json!({}))).await.expect_problem(400, "bad_request");
    assert_eq!(hub.get("/v1/jobs").await.json()["items"], json!([]));
    // What many clients say of all that they send, and fields that are there and nothing.
    let empty = json!({"payload": null, "labels": null, "order_key": null, "deadline_s": null});
    raw(&job(empty).to_string(), "application/x-www-form-urlencoded").await.expect(201);
    hub.end().await;
}

#[tokio::test]
async fn nobody_is_let_in_without_a_valid_key() {
    let hub = Hub::start().await;
    let (id, revoked) = hub.store.create_api_key(name("acme"), vec!["jobs:read".to_owned()]).await.unwrap();
    hub.store.revoke_api_key(&id).await.unwrap();
    let cut = &hub.key[..hub.key.len() - 1];
    let spoiled = format!("{cut}{}", if hub.key.ends_with('A') { 'B' } else { 'A' });
    for credentials in [
        None,
        Some("Bearer".to_owned()),
        Some(format!("Basic {}", hub.key)),
        Some(hub.key.clone()),
        Some("Bearer pk_unknown_secret".to_owned()),
        Some(format!("Bearer {cut}")),
        Some(format!("Bearer {spoiled}")),
        Some(format!("Bearer {revoked}")),
    ] {
        let mut request = hub.anonymous(Method::GET, "/v1/jobs");
        if let Some(credentials) = &credentials {
            request = request.header("authorization", credentials);
        }
        let answer = Answer::of(request).await.expect_problem(401, "unauthorized");
        assert!(answer.header("www-authenticate").starts_with("Bearer"), "{credentials:?}");
    }
    hub.get("/v1/jobs").await.expect(200);
    hub.end().await;
}

#[tokio::test]
async fn a_key_without_the_scope_is_told_which_one_it_lacks() {
    let hub = Hub::start().await;
    let id = hub.submit(json!({})).await["id"].as_str().unwrap().to_owned();
    let calls = [
        (Method::POST, "/v1/jobs".to_owned(), "jobs:write"),
        (Method::GET, "/v1/jobs".to_owned(), "jobs:read"),
        (Method::GET, format!("/v1/jobs/{id}"), "jobs:read"),
        (Method::GET, format!("/v1/jobs/{id}/output"), "jobs:read"),
        (Method::GET, format!("/v1/jobs/{id}/envelope"), "jobs:read"),
        (Method::POST, format!("/v1/jobs/{id}/cancel"), "jobs:write"),
        (Method::POST, format!("/v1/jobs/{id}/retry"), "jobs:write"),
        (Method::POST, format!("/v1/jobs/{id}/resolve"), "jobs:write"),
        (Method::POST, "/v1/calls".to_owned(), "jobs:write"),
        (Method::POST, "/v1/blobs".to_owned(), "blobs:write"),
        (Method::GET, format!("/v1/blobs/{NOBODY}"), "blobs:write"),
        (Method::PATCH, format!("/v1/blobs/{NOBODY}"), "blobs:write"),
        (Method::GET, "/v1/sites".to_owned(), "sites:read"),
        (Method::GET, "/v1/sites/paris/resources".to_owned(), "sites:read"),
        (Method::GET, "/v1/agents".to_owned(), "agents:read"),
        (Method::POST, format!("/v1/agents/{NOBODY}/revoke"), "agents:write"),
        (Method::GET, "/v1/events".to_owned(), "events:read"),
        (Method::GET, "/v1/mediations/definitions".to_owned(), "mediations:read"),
        (Method::POST, "/v1/mediations/definitions".to_owned(), "mediations:write"),
        (Method::PUT, format!("/v1/mediations/definitions/{NOBODY}"), "mediations:write"),
        (Method::POST, format!("/v1/mediations/definitions/{NOBODY}/run"), "mediations:write"),
        (Method::GET, "/v1/mediations/runs".to_owned(), "mediations:read"),
        (Method::POST, format!("/v1/mediations/runs/{NOBODY}/restart"), "mediations:write"),
        (Method::PUT, format!("/v1/mediations/runs/{NOBODY}/flows/{NOBODY}"), "mediations:write"),
    ];
    for (method, path, scope) in calls {
        let others = crate::support::all_scopes().into_iter().filter(|other| other != scope).collect();
        let (_, key) = hub.store.create_api_key(name("acme"), others).await.unwrap();
        let answer = Answer::of(hub.anonymous(method, &path).bearer_auth(key)).await;
        let problem = answer.expect_problem(403, "forbidden").json();
        assert!(problem["detail"].as_str().unwrap().contains(scope), "{path}: {problem}");
    }
    assert_eq!(hub.get(&format!("/v1/jobs/{id}")).await.json()["state"], "queued");
    hub.end().await;
}

#[tokio::test]
async fn what_belongs_to_another_tenant_is_not_there() {
    let hub = Hub::start().await;
    let agent = crate::agent::Agent::enrol(&hub).await;
    let id = hub.submit(json!({})).await["id"].as_str().unwrap().to_owned();
    let blob = Answer::of(hub.request(Method::POST, "/v1/blobs").body("secret")).await.expect(201).json();
    let blob = blob["id"].as_str().unwrap();
    let other = hub.other_tenant().await;
    for (method, path) in [
        (Method::GET, format!("/v1/jobs/{id}")),
        (Method::GET, format!("/v1/jobs/{id}/output")),
        (Method::POST, format!("/v1/jobs/{id}/cancel")),
        (Method::POST, format!("/v1/jobs/{id}/retry")),
        (Method::POST, format!("/v1/jobs/{id}/resolve")),
        (Method::GET, format!("/v1/blobs/{blob}")),
        (Method::POST, format!("/v1/agents/{}/revoke", agent.identity.agent)),
    ] {
        let answer = Answer::of(hub.anonymous(method, &path).bearer_auth(&other)).await;
        answer.expect_problem(404, "not_found");
    }
    let theirs = async |method, path: &str, body: Value| {
        Answer::of(hub.anonymous(method, path).bearer_auth(&other).json(&body)).await
    };
    let stolen = job(json!({"payload": {"blob": blob}}));
    theirs(Method::POST, "/v1/jobs", stolen).await.expect_problem(404, "not_found");
    let patch = hub.anonymous(Method::PATCH, &format!("/v1/blobs/{blob}")).bearer_auth(&other);
    let patch = patch.header("content-type", "application/offset+octet-stream").header("upload-offset", "0");
    Answer::of(patch.body("x")).await.expect_problem(404, "not_found");
    for list in ["/v1/jobs", "/v1/agents"] {
        let listed = theirs(Method::GET, list, Value::Null).await.expect(200).json();
        assert_eq!(listed["items"], json!([]), "{list}");
    }
    assert_eq!(hub.get("/v1/agents").await.json()["items"].as_array().unwrap().len(), 1);
    hub.end().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_command_is_said() {
    let hub = Hub::start().await;
    let id = hub.submit(json!({})).await["id"].as_str().unwrap().to_owned();
    let call = json!({"site": "paris", "resource": "compta", "operation": "drop", "params": {}});
    let answer = hub.post("/v1/calls", &call).await.expect_problem(503, "agent_offline");
    assert_eq!((answer.json()["effect"].as_str(), answer.header("retry-after")), (Some("not_applied"), "5"));
    for (body, status, code) in [
        (json!({"outcome": "applied", "note": "seen"}), 409, "conflict"),
        (json!({"outcome": "perhaps"}), 400, "bad_request"),
        (json!({"outcome": "applied", "note": "x".repeat(1025)}), 400, "bad_request"),
        (json!({}), 400, "bad_request"),
    ] {
        hub.post(&format!("/v1/jobs/{id}/resolve"), &body).await.expect_problem(status, code);
    }
    hub.post(&format!("/v1/jobs/{id}/cancel"), &json!({"forced": true}))
        .await
        .expect_problem(400, "bad_request");
    hub.post("/v1/agents/x/revoke", &json!({})).await.expect_problem(404, "not_found");
    hub.end().await;
}

#[tokio::test]
async fn wrong_routes_and_methods_are_problems_too() {
    let hub = Hub::start().await;
    for path in ["/", "/v1", "/v2/jobs", "/v1/jobs/", "/agent/v1"] {
        hub.get(path).await.expect_problem(404, "not_found");
    }
    for path in ["/v1/jobs/x", &format!("/v1/jobs/{NOBODY}"), &format!("/v1/blobs/{NOBODY}")] {
        hub.get(path).await.expect_problem(404, "not_found");
    }
    let answer = Answer::of(hub.request(Method::DELETE, "/v1/jobs")).await.expect_problem(405, "bad_request");
    assert!(answer.header("allow").contains("POST"), "{}", answer.header("allow"));
    hub.end().await;
}

#[tokio::test]
async fn health_is_open_and_metrics_only_where_they_may_be() {
    let hub = Hub::start().await;
    for path in ["/healthz", "/readyz"] {
        let health = Answer::of(hub.anonymous(Method::GET, path)).await.expect(200).json();
        assert_eq!(health["status"], "ok");
    }
    let figures = Answer::of(hub.anonymous(Method::GET, "/metrics")).await.expect(200);
    assert!(figures.header("content-type").starts_with("application/openmetrics-text"));
    assert!(figures.text().contains(r#"route="/healthz",status="200"} 1"#), "{}", figures.text());
    hub.end().await;

    let closed = Hub::start_with(1 << 20, false).await;
    Answer::of(closed.anonymous(Method::GET, "/metrics")).await.expect_problem(401, "unauthorized");
    closed.get("/metrics").await.expect_problem(403, "forbidden");
    let (_, key) = closed.store.create_api_key(name("acme"), vec!["metrics:read".to_owned()]).await.unwrap();
    Answer::of(closed.anonymous(Method::GET, "/metrics").bearer_auth(key)).await.expect(200);
    closed.end().await;
}
