//! Guessing, slow and greedy clients: refused in bounded time and memory, while others are served.

use crate::{
    agent::{Agent, enrol_request, token},
    support::{Answer, Hub, PATIENCE, eventually, job, name},
};
use passerelle_hub::{
    api::PER_PAIR,
    server::{MAX_CONNECTIONS, Server},
    store::quota::Quotas,
};
use passerelle_protocol::SigningKey;
use reqwest::Method;
use serde_json::json;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

async fn with_key(hub: &Hub, key: &str) -> Answer {
    Answer::of(hub.anonymous(Method::GET, "/v1/jobs").bearer_auth(key)).await
}

fn seconds_to_wait(answer: &Answer) -> u64 {
    answer.header("retry-after").parse().unwrap()
}

#[tokio::test]
async fn whoever_guesses_a_keys_secret_is_locked_out_and_nobody_else() {
    let hub = Hub::start().await;
    let (_, other) = hub.store.create_api_key(name("acme"), vec!["jobs:read".to_owned()]).await.unwrap();
    let id = hub.key.split('_').nth(1).unwrap();
    for n in 0..PER_PAIR {
        with_key(&hub, &format!("pk_{id}_guess{n}")).await.expect_problem(401, "unauthorized");
    }
    let locked = with_key(&hub, &format!("pk_{id}_guess")).await.expect_problem(429, "rate_limited");
    assert!((1..=61).contains(&seconds_to_wait(&locked)), "{}", locked.header("retry-after"));
    // A guess that is right at last does not tell so.
    hub.get("/v1/jobs").await.expect_problem(429, "rate_limited");
    with_key(&hub, &other).await.expect(200);
    hub.end().await;
}

#[tokio::test]
async fn a_source_of_wrong_credentials_is_told_to_wait_and_right_ones_pass() {
    let hub = Hub::start().await;
    let mut codes = Vec::new();
    for n in 0..130 {
        codes.push(with_key(&hub, &format!("pk_{n}_x")).await.status);
    }
    assert_eq!((codes[0], codes[119], codes[120], codes[129]), (401, 401, 429, 429));
    hub.get("/v1/jobs").await.expect(200);
    let agent = Agent::enrol(&hub).await;
    drop(agent.connect(&hub).await);
    let forged = hub.anonymous(Method::GET, "/agent/v1/tunnel").bearer_auth("a.b.c");
    let refused = Answer::of(forged).await.expect_problem(429, "rate_limited");
    assert!(refused.json()["server_time"].is_string());
    // An enrolment token is guessed no faster.
    let token = token(&hub, "acme", "paris", 1).await;
    let id = token.split('_').nth(1).unwrap();
    let (key, _) = SigningKey::generate().unwrap();
    let enrol = async |token: &str| {
        let body = enrol_request(token, &key);
        Answer::of(hub.anonymous(Method::POST, "/agent/v1/enrol").json(&body)).await
    };
    for n in 0..PER_PAIR {
        enrol(&format!("et_{id}_guess{n}")).await.expect_problem(429, "rate_limited");
    }
    enrol(&token).await.expect_problem(429, "rate_limited");
    hub.end().await;
}

#[tokio::test]
async fn wrong_credentials_count_wherever_an_agent_shows_them() {
    for (method, path) in [
        (Method::POST, "/agent/v1/keys"),
        (Method::GET, "/agent/v1/tunnel"),
        (Method::GET, "/agent/v1/jobs/01a1fcb0-ab7c-7000-8000-000000000004/payload"),
        (Method::POST, "/agent/v1/jobs/01a1fcb0-ab7c-7000-8000-000000000004/attempts/1/output"),
    ] {
        let hub = Hub::start().await;
        let forged = async || {
            let request = hub.anonymous(method.clone(), path).bearer_auth("a.b.c").json(&json!({}));
            Answer::of(request).await.status
        };
        let mut codes = Vec::new();
        for _ in 0..130 {
            codes.push(forged().await);
        }
        assert_eq!((codes[0], codes[119], codes[120], codes[129]), (401, 401, 429, 429), "{path}");
        hub.end().await;
    }
}

#[tokio::test]
async fn a_tenant_at_its_quota_is_refused_until_something_ends() {
    let hub = Hub::start().await;
    hub.store.set_quotas(Quotas { open_jobs: 2, blob_bytes: 10, agents: 1, ..Quotas::default() });
    let first = hub.submit(json!({"payload": null})).await["id"].as_str().unwrap().to_owned();
    hub.submit(json!({"payload": null})).await;
    let third = job(json!({"payload": null}));
    let refused = hub.post("/v1/jobs", &third).await.expect_problem(507, "quota").json();
    assert!(refused["detail"].as_str().unwrap().contains("2 open jobs"), "{refused}");
    let other = hub.other_tenant().await;
    let theirs = hub.anonymous(Method::POST, "/v1/jobs").bearer_auth(&other).json(&third);
    Answer::of(theirs).await.expect(201);
    hub.post(&format!("/v1/jobs/{first}/cancel"), &json!({})).await.expect(200);
    eventually(async || (hub.post("/v1/jobs", &third).await.status == 201).then_some(())).await;
    hub.post(&format!("/v1/jobs/{first}/retry"), &json!({})).await.expect_problem(507, "quota");

    let upload =
        async |size: usize| Answer::of(hub.request(Method::POST, "/v1/blobs").body("x".repeat(size))).await;
    upload(6).await.expect(201);
    upload(5).await.expect_problem(507, "quota");
    let open = hub.request(Method::POST, "/v1/blobs").header("upload-length", "5");
    Answer::of(open).await.expect_problem(507, "quota");
    upload(4).await.expect(201);

    Agent::enrol(&hub).await;
    let (key, _) = SigningKey::generate().unwrap();
    let token = token(&hub, "acme", "paris", 1).await;
    let second = hub.anonymous(Method::POST, "/agent/v1/enrol").json(&enrol_request(&token, &key));
    Answer::of(second).await.expect_problem(507, "quota");
    hub.end().await;
}

async fn raw(hub: &Hub, request: &str) -> String {
    let mut socket = TcpStream::connect(hub.url.strip_prefix("http://").unwrap()).await.unwrap();
    // The hub may hang up before it has read all of it.
    let _cut = socket.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _cut = timeout(PATIENCE, socket.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let hub = Hub::start().await;
    let many: String = (0..101).map(|n| format!("x-{n}: y\r\n")).collect();
    let many = raw(&hub, &format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{many}\r\n")).await;
    assert!(many.starts_with("HTTP/1.1 431 "), "{many}");
    let large = "y".repeat(200 * 1024);
    let large = raw(&hub, &format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx: {large}\r\n\r\n")).await;
    assert!(large.is_empty() || large.starts_with("HTTP/1.1 431 "), "{large}");
    let long = raw(&hub, &format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "y".repeat(200 * 1024))).await;
    assert!(
        long.is_empty() || long.starts_with("HTTP/1.1 414 ") || long.starts_with("HTTP/1.1 431 "),
        "{long}"
    );
    hub.get("/v1/jobs").await.expect(200);
    hub.end().await;
}

#[tokio::test]
async fn a_head_that_drips_is_given_up_while_others_are_served() {
    let hub = Hub::start().await;
    let address = hub.url.strip_prefix("http://").unwrap().to_owned();
    let started = Instant::now();
    let mut slow: Vec<_> = Vec::new();
    for _ in 0..50 {
        let mut socket = TcpStream::connect(&address).await.unwrap();
        socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: ").await.unwrap();
        slow.push(tokio::spawn(async move {
            // One byte of a header now and then, as long as the hub listens.
            let (mut read, mut write) = socket.into_split();
            let drip = tokio::spawn(async move {
                while write.write_all(b"y").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
            let mut rest = Vec::new();
            let ended = timeout(PATIENCE, read.read_to_end(&mut rest)).await.is_ok();
            drip.abort();
            ended
        }));
    }
    hub.get("/v1/jobs").await.expect(200);
    for ended in slow {
        assert!(ended.await.unwrap(), "a connection that drips was kept");
    }
    assert!(started.elapsed() < PATIENCE);
    hub.get("/v1/jobs").await.expect(200);
    hub.end().await;
}

#[tokio::test]
async fn one_address_cannot_take_all_connections() {
    let hub = Hub::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server { listener, tls: None, max_connections: MAX_CONNECTIONS, per_address: 2 };
    let stop = CancellationToken::new();
    let running = tokio::spawn(server.run(hub.app.router(), stop.clone()));
    let open = async || {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let _cut = socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut first = [0; 12];
        let answered = timeout(PATIENCE, socket.read_exact(&mut first)).await.unwrap().is_ok();
        (socket, answered)
    };
    let (one, two) = (open().await, open().await);
    assert!(one.1 && two.1);
    assert!(!open().await.1, "a third connection was served");
    drop(one);
    eventually(async || open().await.1.then_some(())).await;
    drop(two);
    stop.cancel();
    timeout(PATIENCE, running).await.unwrap().unwrap();
    hub.end().await;
}
