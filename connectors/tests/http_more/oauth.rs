//! OAuth 2 against a token server and an application that looks at the tokens.

use crate::http_server::{
    Authority, Received, Resource, Server, answer, call, check, payload, serve, sha256, status,
};
use futures_util::future::join_all;
use passerelle_connectors::{Code, Effect, Found, Verdict};
use serde_json::json;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Gives out `token-1`, `token-2`, … with these further fields.
async fn token_server(fields: &'static str) -> Server {
    let given = AtomicUsize::new(0);
    serve(move |_| {
        let number = given.fetch_add(1, Ordering::SeqCst) + 1;
        let body = format!(r#"{{"access_token":"token-{number}","token_type":"Bearer"{fields}}}"#);
        answer(200, &[("content-type", "application/json")], body)
    })
    .await
}

/// An application that takes only the token of this number and later ones.
async fn application(least: Arc<AtomicUsize>) -> Server {
    serve(move |got| {
        let number = number(got);
        status(if number.is_some_and(|number| number >= least.load(Ordering::SeqCst)) { 200 } else { 401 })
    })
    .await
}

fn number(got: &Received) -> Option<usize> {
    got.header("authorization")?.strip_prefix("Bearer token-")?.parse().ok()
}

fn resource(app: &Server, tokens: &Server, more: &str) -> Resource {
    let settings = format!(
        "url = \"{}\"\nauth = {{ kind = \"oauth2\", token_url = \"{}\", client_id = \"shop id\", \
         client_secret = {{ file = \"secret\" }}{more} }}",
        app.url("/api/"),
        tokens.url("/oauth/token")
    );
    Resource::with_files(&settings, &[("secret", "p+w/é%")])
}

fn notify() -> serde_json::Value {
    json!({ "path": "orders/1" })
}

#[tokio::test]
async fn a_token_is_fetched_by_client_credentials_and_kept() {
    let (tokens, app) = (token_server(r#","expires_in":3600"#).await, application(Arc::default()).await);
    let resource = resource(&app, &tokens, ", scope = \"orders read\", audience = \"urn:shop\"");
    for _ in 0..3 {
        resource.run("notify", notify(), None).await.success();
    }
    resource.probe().await.unwrap();
    let [asked] = tokens.received().try_into().unwrap();
    assert_eq!((asked.method.as_str(), asked.uri.as_str()), ("POST", "/oauth/token"));
    assert_eq!(asked.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(asked.header("accept"), Some("application/json"));
    // printf 'shop+id:p%%2Bw%%2F%%C3%%A9%%25' | base64: both parts are form-encoded first (RFC 6749 §2.3.1).
    assert_eq!(asked.header("authorization"), Some("Basic c2hvcCtpZDpwJTJCdyUyRiVDMyVBOSUyNQ=="));
    assert_eq!(asked.body, "grant_type=client_credentials&scope=orders+read&audience=urn%3Ashop");
    assert!(app.received().iter().all(|got| number(got) == Some(1)));
    assert_eq!(app.received().len(), 4);
}

#[tokio::test]
async fn the_client_can_show_who_it_is_in_the_body() {
    let (tokens, app) = (token_server("").await, application(Arc::default()).await);
    resource(&app, &tokens, ", style = \"body\"").run("notify", notify(), None).await.success();
    let [asked] = tokens.received().try_into().unwrap();
    assert_eq!(asked.header("authorization"), None);
    let expected = "grant_type=client_credentials&client_id=shop+id&client_secret=p%2Bw%2F%C3%A9%25";
    assert_eq!(asked.body, expected);
}

#[tokio::test]
async fn many_jobs_at_once_share_one_token_request() {
    let (tokens, app) = (token_server(r#","expires_in":3600"#).await, application(Arc::default()).await);
    let resource = resource(&app, &tokens, "");
    let done = join_all((0..32).map(|_| resource.run("notify", notify(), None))).await;
    done.into_iter().for_each(|done| drop(done.success()));
    assert_eq!((tokens.received().len(), app.received().len()), (1, 32));
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let (tokens, app) = (token_server(r#","expires_in":1"#).await, application(Arc::default()).await);
    let resource = resource(&app, &tokens, "");
    let begun = std::time::Instant::now();
    while tokens.received().len() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(20), "the token is never renewed");
        resource.run("notify", notify(), None).await.success();
    }
    assert!(begun.elapsed() >= Duration::from_millis(1600), "renewed too early: {:?}", begun.elapsed());
    let numbers: Vec<usize> = app.received().iter().filter_map(number).collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
}

#[tokio::test]
async fn a_revoked_token_is_replaced_and_the_request_repeated_once() {
    let least = Arc::new(AtomicUsize::new(1));
    let (tokens, app) = (token_server(r#","expires_in":3600"#).await, application(Arc::clone(&least)).await);
    let resource = resource(&app, &tokens, "");
    resource.run("notify", notify(), None).await.success();
    // Revoked in the middle of its life; a small payload and one that streams go out a second time.
    for (round, size) in [(2, 10), (3, 300_000)] {
        least.store(round, Ordering::SeqCst);
        let content = vec![b'x'; size];
        let call = call();
        resource
            .run_as(&call, "notify", notify(), Some(payload(content.clone(), "text/plain")))
            .await
            .success();
        let got = app.received();
        let [.., first, second] = got.as_slice() else { panic!("two requests") };
        assert_eq!((number(first), number(second)), (Some(round - 1), Some(round)));
        assert_eq!(first.header("idempotency-key"), second.header("idempotency-key"));
        assert_eq!(sha256(&second.body), sha256(&content));
    }
    assert_eq!(tokens.received().len(), 3);

    // All jobs that meet the revoked token share one new one.
    least.store(4, Ordering::SeqCst);
    let done = join_all((0..16).map(|_| resource.run("notify", notify(), None))).await;
    done.into_iter().for_each(|done| drop(done.success()));
    assert_eq!(tokens.received().len(), 4);
}

#[tokio::test]
async fn an_application_that_refuses_fresh_tokens_costs_no_token_for_each_job() {
    let (tokens, app) = (token_server(r#","expires_in":3600"#).await, serve(|_| status(401)).await);
    let resource = resource(&app, &tokens, "");
    let expecting = json!({ "method": "GET", "path": "x", "expect": [200] });
    for (asked, requests) in [(2, 2), (2, 3), (2, 4)] {
        let failure = resource.run("request", expecting.clone(), None).await.failure();
        assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::TargetAuth));
        assert_eq!((tokens.received().len(), app.received().len()), (asked, requests));
    }
    let (result, _) = resource.run("request", json!({ "method": "GET", "path": "x" }), None).await.success();
    assert_eq!(result["status"], json!(401), "without expect it is an answer");
}

#[tokio::test]
async fn a_refused_client_is_final_and_the_token_server_is_left_alone() {
    let tokens =
        serve(|_| answer(401, &[], r#"{"error":"invalid_client","error_description":"for 10.1.2.3"}"#)).await;
    let app = application(Arc::default()).await;
    let resource = resource(&app, &tokens, "");
    let done = join_all((0..8).map(|_| resource.run("notify", notify(), None))).await;
    for failure in done.into_iter().map(crate::http_server::Done::failure) {
        let kind = (failure.verdict, failure.code, failure.effect);
        assert_eq!(kind, (Verdict::Permanent, Code::TargetAuth, Effect::NotApplied));
        assert!(failure.message.contains("invalid_client") && !failure.message.contains("10.1"), "{failure}");
        assert!(!failure.message.contains("127.0.0.1") && !failure.to_string().contains("p+w"), "{failure}");
    }
    assert_eq!(resource.probe().await.unwrap_err().code, Code::TargetAuth);
    assert_eq!((tokens.received().len(), app.received().len()), (1, 0));
}

#[tokio::test]
async fn trouble_of_the_token_server_is_worth_another_attempt() {
    let app = application(Arc::default()).await;
    let busy = serve(|_| answer(429, &[("retry-after", "17")], "")).await;
    let failure = resource(&app, &busy, "").run("notify", notify(), None).await.failure();
    assert_eq!((failure.verdict, failure.code), (Verdict::Retry, Code::TargetThrottled));
    assert_eq!(failure.retry_after, Some(Duration::from_secs(17)));

    let large = serve(|_| answer(200, &[], vec![b' '; 100_000])).await;
    let failure = resource(&app, &large, "").run("notify", notify(), None).await.failure();
    assert_eq!((failure.verdict, failure.code), (Verdict::Retry, Code::TargetProtocol));

    let elsewhere = token_server("").await;
    let to = elsewhere.url("/token");
    let moved = serve(move |_| answer(302, &[("location", to.as_str())], "")).await;
    let failure = resource(&app, &moved, "").run("notify", notify(), None).await.failure();
    assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::TargetAuth));
    assert!(elsewhere.received().is_empty(), "secrets follow no redirect");

    let nowhere = format!(
        "url = \"{}\"\nauth = {{ kind = \"oauth2\", token_url = \"http://127.0.0.1:1/\", client_id = \"a\", \
         client_secret = {{ file = \"secret\" }} }}",
        app.url("/api/")
    );
    let resource = Resource::with_files(&nowhere, &[("secret", "x")]);
    let failure = resource.run("notify", notify(), None).await.failure();
    let kind = (failure.verdict, failure.code, failure.effect);
    assert_eq!(kind, (Verdict::Retry, Code::TargetUnreachable, Effect::NotApplied));
    assert!(failure.message.contains("token_url") && !failure.message.contains("127.0.0.1"), "{failure}");
    assert!(app.received().is_empty());
}

#[tokio::test]
async fn the_token_server_is_reached_by_the_resources_own_trust_and_version() {
    let authority = Authority::new("Intra CA");
    let tokens = authority
        .serve("localhost", &[b"http/1.1"], |_| answer(200, &[], r#"{"access_token":"token-1"}"#))
        .await;
    let app = authority.serve("localhost", &[b"h2"], |_| status(200)).await;
    let settings = format!(
        "url = \"https://localhost:{}/\"\nca_file = \"ca.pem\"\nhttp_version = \"2\"\nauth = {{ kind = \"oauth2\", \
         token_url = \"https://localhost:{}/t\", client_id = \"a\", client_secret = {{ file = \"secret\" }} }}",
        app.address.port(),
        tokens.address.port()
    );
    let resource = Resource::with_files(&settings, &[("ca.pem", &authority.pem), ("secret", "x")]);
    resource.run("notify", notify(), None).await.success();
    let versions = [&tokens, &app].map(|server| server.received()[0].version.clone());
    assert_eq!(versions, ["HTTP/1.1", "HTTP/2.0"]);
}

#[tokio::test]
async fn each_link_is_looked_at_on_its_own() {
    let found = async |resource: &Resource| {
        let links = resource.examine().await;
        let mark = |found: &Found| match found {
            Found::Passed(_) => "+",
            Found::Failed(_) => "-",
            Found::Skipped => "0",
        };
        links.iter().map(|link| format!("{}{}", mark(&link.found), link.name)).collect::<Vec<_>>().join(" ")
    };
    let app = application(Arc::default()).await;
    let fine = resource(&app, &token_server("").await, "");
    assert_eq!(found(&fine).await, "+name +connection +token +answer");
    let refusing = serve(|_| answer(400, &[], r#"{"error":"invalid_client"}"#)).await;
    assert_eq!(found(&resource(&app, &refusing, "")).await, "+name +connection -token 0answer");
    let closed = serve(|_| status(403)).await;
    let closed = resource(&closed, &token_server("").await, "");
    assert_eq!(found(&closed).await, "+name +connection +token -answer");
    let nowhere = Resource::new("url = \"http://127.0.0.1:1/\"");
    assert_eq!(found(&nowhere).await, "+name -connection 0answer");
    let plain = Resource::of(&app);
    assert_eq!(found(&plain).await, "+name +connection -answer", "no token, no answer");
    assert!(app.received().iter().all(|got| got.method == "HEAD"));
}

#[test]
fn wrong_settings_are_found() {
    let dir = tempfile::tempdir().unwrap();
    for (keys, says) in [
        ("token_url = \"http://169.254.169.254/token\", client_id = \"a\"", "always blocked"),
        ("token_url = \"http://metadata.google.internal/\", client_id = \"a\"", "always blocked"),
        ("token_url = \"ftp://x/\", client_id = \"a\"", "https://"),
        ("token_url = \"https://u:p@x/\", client_id = \"a\"", "credentials"),
        ("client_id = \"a\"", "needs the key token_url"),
        ("token_url = \"https://x/\"", "needs the key client_id"),
        ("token_url = \"https://x/\", client_id = \"a\", style = \"header\"", "basic or body"),
        ("token_url = \"https://x/\", client_id = \"a\", token = { env = \"T\" }", "not a key of kind"),
    ] {
        let settings = format!(
            "url = \"http://h/\"\nauth = {{ kind = \"oauth2\", {keys}, client_secret = {{ env = \"S\" }} }}"
        );
        let Err(findings) = check(dir.path(), &settings) else { panic!("{settings} was taken") };
        assert!(findings.contains(says) && findings.contains("app.toml:4:"), "{settings}: {findings}");
    }
    let bearer = "url = \"http://h/\"\nauth = { kind = \"bearer\", token = { env = \"T\" }, scope = \"x\" }";
    assert!(check(dir.path(), bearer).err().unwrap().contains("not a key of kind"));
}
