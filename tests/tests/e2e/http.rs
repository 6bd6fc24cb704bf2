//! In-house applications: a real nginx, and an application in the hands of the test.

use crate::common::{SITE, Site, job, notify_job, with};
use passerelle_tests::{Agent, Content, Hub, Nginx, Reply, code, resources};
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_reaches_nginx_once_with_its_key_and_body() {
    let (hub, nginx) = (Hub::start().await, Nginx::start().await);
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.resource("orders-app", &resources::application("orders-app", &nginx.url));
    agent.start().await;
    let done = hub.api.succeed(&notify_job("orders/42/validated")).await;
    assert_eq!(done["result"], json!({"status": 200}));
    let seen = nginx.received(1).await;
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0]["method"], "POST");
    assert_eq!(seen[0]["uri"], "/orders/42/validated");
    assert_eq!(seen[0]["key"], done["id"]);
    assert_eq!(seen[0]["type"], "application/json");
    assert_eq!(seen[0]["body"], r#"{"EventKind":"CommandeValidee"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_of_an_application_is_checked_against_the_named_authority() {
    let (hub, nginx) = (Hub::start().await, Nginx::start().await);
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.file("app-ca.pem", &nginx.certificate);
    agent.resource(
        "orders-app",
        &resources::application_with("orders-app", &nginx.tls_url, "ca_file = \"app-ca.pem\""),
    );
    agent.resource("untrusted", &resources::application("untrusted", &nginx.tls_url));
    agent.start().await;
    hub.api.succeed(&notify_job("orders/42/validated")).await;
    let job = with(notify_job("orders/43/validated"), json!({"resource": "untrusted", "max_attempts": 1}));
    let done = hub.api.run(&job).await;
    assert_eq!((done["state"].as_str(), code(&done)), (Some("failed"), "target_unreachable"), "{done:#}");
    assert_eq!(done["error"]["effect"], "not_applied");
    assert_eq!(nginx.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_brings_the_answer_back_small_or_large() {
    let (hub, nginx) = (Hub::start().await, Nginx::start().await);
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.resource("catalogue", &resources::application("catalogue", &nginx.url));
    agent.start().await;
    let folder = tempfile::tempdir().unwrap();
    for size in [1000, 3_000_000] {
        let content = Content::write(folder.path(), size);
        nginx.publish("articles.bin", &std::fs::read(&content.path).unwrap());
        let request = job("catalogue", "request", json!({"method": "GET", "path": "static/articles.bin"}));
        let done = hub.api.succeed(&request).await;
        assert_eq!(done["result"]["status"], json!(200));
        assert!(done["result"]["headers"].is_object(), "{done:#}");
        assert_eq!(done["output"]["sha256"], json!(content.sha256));
        let output = hub.api.output(done["id"].as_str().unwrap()).await;
        assert_eq!(Content::digest(&output), content.sha256);
    }
    let absent = json!({"method": "GET", "path": "static/none"});
    let any_status = hub.api.succeed(&job("catalogue", "request", absent.clone())).await;
    assert_eq!(any_status["result"]["status"], json!(404));
    let expecting = with(absent, json!({"expect": [200]}));
    let done = hub.api.run(&with(job("catalogue", "request", expecting), json!({"max_attempts": 1}))).await;
    assert_eq!(done["state"], "failed", "{done:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_application_is_asked_again_after_the_time_it_names() {
    let (hub, nginx) = (Hub::start().await, Nginx::start().await);
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.resource("orders-app", &resources::application("orders-app", &nginx.url));
    agent.start().await;
    let id = hub.api.submit(&with(notify_job("busy/42"), json!({"max_attempts": 2}))).await;
    let waiting = hub.api.reach(&id, &["waiting"]).await;
    assert!(waiting["error"].is_null() || waiting["error"].is_object());
    let done = hub.api.end_of(&id, Duration::from_secs(60)).await;
    assert_eq!(done["state"], "failed", "{done:#}");
    assert_eq!(done["attempts"].as_array().unwrap().len(), 2);
    let seen = nginx.received(2).await;
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|r| r["key"] == done["id"] && r["status"] == json!(503)), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_obeyed_and_every_repetition_has_the_same_key() {
    let site = Site::with_app(|_, before| match before {
        0 => Reply::status(503).header("retry-after", "2"),
        1 => Reply::status(500),
        _ => Reply::status(204),
    })
    .await;
    let done = site.hub.api.succeed(&notify_job("orders/42/validated")).await;
    assert_eq!(done["attempts"].as_array().unwrap().len(), 3, "{done:#}");
    assert_eq!(done["attempts"][0]["verdict"], "retry");
    assert_eq!(done["result"], json!({"status": 204}));
    let seen = site.app.requests();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|request| request.header("idempotency-key") == done["id"]), "{seen:?}");
    assert!(
        seen[1].at - seen[0].at >= Duration::from_secs(2),
        "came back after {:?}",
        seen[1].at - seen[0].at
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_application_is_final() {
    let site = Site::with_app(|_, _| Reply::status(422)).await;
    let done = site.hub.api.run(&notify_job("orders/42/validated")).await;
    assert_eq!((done["state"].as_str(), code(&done)), (Some("failed"), "target_refused"), "{done:#}");
    assert!(done["error"]["message"].as_str().unwrap().contains("422"), "{done:#}");
    assert_eq!(site.app.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_go_to_the_application_and_nowhere_else() {
    let mut site = Site::prepared(|_, _| Reply::status(401)).await;
    let auth = "auth = { kind = \"bearer\", token = { file = \"secrets/orders_token\" } }";
    site.agent.secret("orders_token", "token-of-the-shop-4711");
    site.agent.resource("orders-app", &resources::application_with("orders-app", &site.app.url, auth));
    site.agent.start().await;
    let done = site.hub.api.run(&with(notify_job("orders/42/validated"), json!({"max_attempts": 1}))).await;
    assert_eq!((done["state"].as_str(), code(&done)), (Some("failed"), "target_refused"), "{done:#}");
    assert_eq!(site.app.requests()[0].header("authorization"), "Bearer token-of-the-shop-4711");
    let port = site.app.url.rsplit(':').next().unwrap().trim_end_matches('/').to_owned();
    assert!(!done.to_string().contains("shop-4711"), "the token leaks: {done:#}");
    assert!(!done["error"]["message"].as_str().unwrap().contains(&port), "the host leaks: {done:#}");
    assert!(!site.agent.process().log().contains("shop-4711"), "the token leaks into the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_is_not_there_is_unreachable() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    let nowhere = format!("http://127.0.0.1:{}/", passerelle_tests::free_port());
    site.agent.resource("orders-app", &resources::application("orders-app", &nowhere));
    site.agent.start().await;
    let done = site.hub.api.run(&with(notify_job("orders/42/validated"), json!({"max_attempts": 2}))).await;
    assert_eq!((done["state"].as_str(), code(&done)), (Some("failed"), "target_unreachable"), "{done:#}");
    assert_eq!(done["attempts"].as_array().unwrap().len(), 2);
    assert_eq!(done["error"]["effect"], "not_applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_to_another_host_are_not_followed() {
    let other = passerelle_tests::App::start().await;
    let target = other.url.clone();
    let site =
        Site::with_app(move |_, _| Reply::status(302).header("location", format!("{target}stolen"))).await;
    let notified = site.hub.api.run(&notify_job("orders/42/validated")).await;
    assert_eq!(notified["state"], "failed", "{notified:#}");
    let _any = site.hub.api.run(&job("orders-app", "request", json!({"method": "GET", "path": "x"}))).await;
    assert_eq!(other.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_headers_that_are_not_listed_are_denied() {
    let site = Site::start().await;
    for (path, expected) in [("../admin", "path_invalid"), ("/admin", "path_invalid"), ("a%2fb", "")] {
        let done = site.hub.api.run(&notify_job(path)).await;
        assert_eq!(done["state"], "denied", "{path}: {done:#}");
        assert!(expected.is_empty() || code(&done) == expected, "{path}: {done:#}");
    }
    let header = json!({"path": "a", "headers": {"x-other": "1"}});
    let query = json!({"method": "GET", "path": "a", "query": {"all": "1"}});
    let method = json!({"method": "PATCH", "path": "a"});
    for (operation, params) in [("notify", header), ("request", query), ("request", method)] {
        let done = site.hub.api.run(&job("orders-app", operation, params)).await;
        assert_eq!(done["state"], "denied", "{done:#}");
        assert_eq!(code(&done), "policy_denied", "{done:#}");
    }
    assert_eq!(site.app.requests().len(), 0);
    let allowed =
        json!({"method": "GET", "path": "a", "query": {"page": "2"}, "headers": {"X-Origin": "cloud"}});
    site.hub.api.succeed(&job("orders-app", "request", allowed)).await;
    assert_eq!(site.app.requests()[0].uri, "/a?page=2");
    assert_eq!(site.app.requests()[0].header("x-origin"), "cloud");
}
