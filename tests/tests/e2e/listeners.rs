//! Listeners: what in-house applications post to the agent is one event at the hub per key, whatever dies meanwhile, and
//! nothing else gets in.

mod killed;

use crate::common::SITE;
use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_tests::{Agent, Hub, PATIENCE, free_port, http_client, http_client_trusting, until};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const TOKEN: &str = "t0ken-of-the-orders-application";

/// A listener with the token, at a port of its own, and more lines.
fn listener(agent: &Agent, name: &str, port: u16, more: &str) {
    agent.secret("listener", TOKEN);
    let auth = "auth = { kind = \"token\", token = { file = \"secrets/listener\" } }";
    write(agent, name, port, &format!("{auth}\n{more}"));
}

fn write(agent: &Agent, name: &str, port: u16, more: &str) {
    agent.resource(name, &format!("[listeners.{name}]\nlisten = \"127.0.0.1:{port}\"\n{more}\n"));
}

/// Someone who posts.
#[derive(Clone)]
struct Till {
    http: Client,
    url: String,
}

impl Till {
    fn new(port: u16, name: &str) -> Self {
        Self { http: http_client(), url: format!("http://127.0.0.1:{port}/{name}") }
    }

    fn post(&self, key: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        let request = self.http.post(&self.url).bearer_auth(TOKEN).header("idempotency-key", key);
        request.header("content-type", "application/json").body(body)
    }

    /// Waits until the listener answers at all.
    async fn ready(&self) {
        until("the listener", PATIENCE, async || self.http.get(&self.url).send().await.ok()).await;
    }
}

/// Status and body.
async fn sent(request: RequestBuilder) -> (StatusCode, Value) {
    let answer = request.send().await.expect("an answer");
    let status = answer.status();
    (status, answer.json().await.expect("JSON"))
}

/// A post that has to be taken; its event's id.
async fn accepted(request: RequestBuilder) -> String {
    let (status, body) = sent(request).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    body["id"].as_str().expect("an id").to_owned()
}

/// A post that has to be refused.
async fn refused(request: RequestBuilder, status: u16, code: &str) -> Value {
    let (found, body) = sent(request).await;
    assert_eq!(
        (found.as_u16(), body["code"].as_str(), body["status"].as_u64()),
        (status, Some(code), Some(status.into())),
        "{body}"
    );
    body
}

/// All notifications that the hub has.
async fn events(hub: &Hub) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let answer = hub.api.get(&format!("/v1/events/received?kind=notification&limit=500{cursor}")).await;
        items.extend(answer.body["items"].as_array().expect("items").iter().cloned());
        match answer.body["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
}

async fn all_events(hub: &Hub, count: usize) -> Vec<Value> {
    until(&format!("{count} events"), Duration::from_secs(90), async || {
        let items = events(hub).await;
        assert!(items.len() <= count, "{} events instead of {count}", items.len());
        (items.len() == count).then_some(items)
    })
    .await
}

async fn payload(hub: &Hub, id: &str) -> Vec<u8> {
    let request = hub.api.request(reqwest::Method::GET, &format!("/v1/events/received/{id}/payload"));
    let answer = request.send().await.expect("an answer").error_for_status().expect("the payload");
    answer.bytes().await.expect("all of it").to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_one_event_per_key_and_what_is_wrong_is_refused() {
    let hub = Hub::start().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    let ports: Vec<u16> = (0..4).map(|_| free_port()).collect();
    listener(&agent, "orders", ports[0], "max_size = \"1MiB\"");
    listener(
        &agent,
        "strict",
        ports[1],
        "require_key = true\ncontent_types = [\"application/json\"]\nevent_kinds = [\"CommandeValidee\"]",
    );
    listener(&agent, "few", ports[2], "rate_per_minute = 3");
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    agent.file("listener.pem", certified.cert.pem());
    agent.secret("listener_key", &certified.signing_key.serialize_pem());
    listener(
        &agent,
        "tls",
        ports[3],
        "tls_cert = \"listener.pem\"\ntls_key = { file = \"secrets/listener_key\" }",
    );
    agent.start().await;
    let orders = Till::new(ports[0], "orders");
    orders.ready().await;

    // Once per key, small and large, with the body as it was posted.
    let body = "{\"EventKind\":\"CommandeValidee\",\"EventCategory\":\"e/commerce\",\"Data\":{\"CommandeNumero\":7}}";
    let first = accepted(orders.post("order-7", body)).await;
    assert_eq!(accepted(orders.post("order-7", body)).await, first);
    refused(orders.post("order-7", "{}"), 422, "idempotency_mismatch").await;
    let large = vec![7; 700_000];
    let second = accepted(orders.post("large", large.clone())).await;
    assert_eq!(accepted(orders.post("large", large.clone())).await, second);
    let api_key = orders.http.post(&orders.url).header("x-api-key", TOKEN).body("no key");
    let (status, made) = sent(api_key.try_clone().unwrap()).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert!(made["idempotency_key"].is_string(), "the key that was made up is told: {made}");
    let again = accepted(api_key).await;
    assert_ne!(made["id"], again.as_str(), "without a key each post is an event");
    let items = all_events(&hub, 4).await;
    let item = items.iter().find(|item| item["id"] == first.as_str()).expect("the first");
    assert_eq!(
        (&item["resource"], &item["trigger"], &item["data"]["key"], &item["data"]["event_kind"]),
        (&"orders".into(), &"orders".into(), &"order-7".into(), &"CommandeValidee".into())
    );
    assert_eq!(item["payload"]["media_type"], "application/json");
    assert!(payload(&hub, &first).await == body.as_bytes() && payload(&hub, &second).await == large);

    // Who may not post, and what is no post.
    let wrong = |token: &str| orders.http.post(&orders.url).bearer_auth(token).body("x");
    refused(wrong("wrong"), 401, "unauthorized").await;
    refused(orders.http.post(&orders.url).body("x"), 401, "unauthorized").await;
    let elsewhere = format!("http://127.0.0.1:{}/orders/x", ports[0]);
    refused(orders.http.post(elsewhere).bearer_auth(TOKEN).body("x"), 404, "not_found").await;
    refused(orders.http.get(&orders.url).bearer_auth(TOKEN), 405, "bad_request").await;
    refused(orders.post("a\tb", "x"), 400, "bad_request").await;
    refused(orders.post(&"x".repeat(256), "x"), 400, "bad_request").await;
    refused(orders.post("twice", "x").header("idempotency-key", "again"), 400, "bad_request").await;
    refused(orders.post("zipped", "x").header("content-encoding", "gzip"), 415, "bad_request").await;
    refused(orders.post("told-large", vec![0; 1_048_577]), 413, "too_large").await;
    let parts = futures_util::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>(vec![0; 65_536])));
    refused(orders.post("large-by-and-by", reqwest::Body::wrap_stream(parts)), 413, "too_large").await;
    let strict = Till::new(ports[1], "strict");
    refused(
        strict
            .http
            .post(&strict.url)
            .bearer_auth(TOKEN)
            .header("content-type", "application/json")
            .body(body),
        400,
        "bad_request",
    )
    .await;
    let text = strict.http.post(&strict.url).bearer_auth(TOKEN).header("idempotency-key", "k");
    refused(text.header("content-type", "text/plain").body(body), 415, "bad_request").await;
    refused(strict.post("k", "{\"EventKind\":\"Autre\"}"), 422, "forbidden").await;
    for (key, no_kind) in [("none", "{}"), ("text", "CommandeValidee"), ("empty", "")] {
        let answer = strict.post(key, no_kind).send().await.unwrap();
        let told: Value = answer.json().await.unwrap();
        assert!(told["detail"].as_str().unwrap().contains("no JSON object with an EventKind"), "{told}");
    }
    accepted(strict.post("k", body)).await;
    // Some senders begin with a byte order mark: it stays.
    let marked = format!("\u{feff}{body}");
    let id = accepted(strict.post("marked", marked.clone())).await;
    let few = Till::new(ports[2], "few");
    for key in ["1", "2", "3"] {
        accepted(few.post(key, "x")).await;
    }
    let answer = few.post("4", "x").send().await.unwrap();
    let after: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(answer.status() == StatusCode::TOO_MANY_REQUESTS && (1..=20).contains(&after), "{answer:?}");
    let http = http_client_trusting(Some(&certified.cert.pem()));
    let tls = Till { http, url: format!("https://localhost:{}/tls", ports[3]) };
    accepted(tls.post("secret", "x")).await;
    let items = all_events(&hub, 10).await;
    let item = items.iter().find(|item| item["id"] == id.as_str()).expect("the marked one");
    assert_eq!(item["data"]["event_kind"], "CommandeValidee");
    assert!(payload(&hub, &id).await == marked.as_bytes());

    // It is told of, and the answers and the cloud's copy of things show nothing of each other.
    let status = agent.status().await;
    let shown = status["triggers"].as_array().unwrap().iter().find(|one| one["trigger"] == "orders").unwrap();
    assert_eq!((&shown["kind"], &shown["taken"]), (&"notification".into(), &4.into()), "{shown}");
    assert_eq!(agent.metric("passerelle_agent_posts_taken_total").await, 10.0);
    let explained = agent.output(&["policy", "explain"]);
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(
        explained.contains("orders") && explained.contains(&format!("127.0.0.1:{}", ports[0])),
        "{explained}"
    );
    assert!(!explained.contains(TOKEN));
    agent.kill();
    let rows = |kind: &str| {
        let shown = agent.output(&["audit", "show", "--kind", kind, "--json"]);
        String::from_utf8_lossy(&shown.stdout).into_owned()
    };
    assert_eq!(rows("post_taken").lines().count(), 10);
    assert!(rows("post_refused").contains("unauthorized") && !rows("post_refused").contains("wrong"));
    assert!(agent.output(&["audit", "verify"]).status.success());
}

/// Signs as Standard Webhooks say.
fn signed(till: &Till, secret: &[u8], id: &str, at: i64, body: &str) -> RequestBuilder {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), format!("{id}.{at}.{body}").as_bytes());
    till.http
        .post(&till.url)
        .header("webhook-id", id)
        .header("webhook-timestamp", at)
        .header("webhook-signature", format!("v1,AAAA v1,{}", STANDARD.encode(tag)))
        .body(body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_post_counts_by_its_id_and_only_with_a_right_and_fresh_signature() {
    let hub = Hub::start().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    let port = free_port();
    let (old, new) = ([1_u8; 32], [2_u8; 32]);
    agent.secret("old", &format!("whsec_{}", STANDARD.encode(old)));
    agent.secret("new", &STANDARD.encode(new));
    let secrets =
        "auth = { kind = \"hmac\", secrets = [{ file = \"secrets/old\" }, { file = \"secrets/new\" }] }";
    write(&agent, "signed", port, secrets);
    agent.start().await;
    let till = Till::new(port, "signed");
    till.ready().await;
    let now = jiff::Timestamp::now().as_second();
    let id = accepted(signed(&till, &old, "msg_1", now, "{\"a\":1}")).await;
    assert_eq!(
        accepted(signed(&till, &new, "msg_1", now + 60, "{\"a\":1}")).await,
        id,
        "signed anew, with the other secret"
    );
    refused(signed(&till, &old, "msg_1", now, "{\"a\":2}"), 422, "idempotency_mismatch").await;
    refused(signed(&till, &[3; 32], "msg_2", now, "x"), 401, "unauthorized").await;
    refused(signed(&till, &old, "msg_2", now - 360, "x"), 401, "unauthorized").await;
    refused(signed(&till, &old, "msg_2", now + 360, "x"), 401, "unauthorized").await;
    refused(signed(&till, &old, "msg_2", now, "x").body("y"), 401, "unauthorized").await;
    refused(till.http.post(&till.url).bearer_auth(TOKEN).body("x"), 401, "unauthorized").await;
    let items = all_events(&hub, 1).await;
    assert_eq!(items[0]["data"]["key"], "msg_1");
}

/// Opens connections that do not get on, and checks that they end while others are served.
#[tokio::test(flavor = "multi_thread")]
async fn slow_senders_are_cut_off_and_keep_nobody_waiting() {
    let hub = Hub::start().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    let port = free_port();
    listener(&agent, "orders", port, "max_concurrent = 2");
    agent.start().await;
    let orders = Till::new(port, "orders");
    orders.ready().await;
    let slow = move |text: String| async move {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        drop(stream.read_to_string(&mut answer).await);
        answer
    };
    let head = format!(
        "POST /orders HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 9\r\n\r\nhalf"
    );
    // One that finds both places taken, by a post of ours below, comes again.
    let body = move |head: String| async move {
        loop {
            let answer = slow(head.clone()).await;
            if !answer.starts_with("HTTP/1.1 503 ") {
                return answer;
            }
        }
    };
    let bodies: Vec<_> = (0..2).map(|_| tokio::spawn(body(head.clone()))).collect();
    let heads: Vec<_> =
        (0..60).map(|_| tokio::spawn(slow("POST /orders HTTP/1.1\r\nhost: x\r\n".to_owned()))).collect();
    // Both places are taken by bodies that do not come: told at once, and taken again when they are cut off.
    let busy = until("both places to be taken", PATIENCE, async || {
        let answer = orders.post("k", "x").send().await.ok()?;
        (answer.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(answer)
    })
    .await;
    assert!(busy.headers().contains_key("retry-after"));
    until("a place to be free", PATIENCE, async || {
        let answer = orders.post("k", "x").send().await.ok()?;
        (answer.status() == StatusCode::ACCEPTED).then_some(())
    })
    .await;
    let all_cut_off = async {
        for body in bodies {
            let answer = body.await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        }
        for head in heads {
            head.await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, all_cut_off).await.expect("all that are slow to be cut off");
    all_events(&hub, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_is_told_and_what_was_accepted_is_delivered() {
    let mut hub = Hub::start().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.agent_key("spool_quota = \"1MiB\"");
    let port = free_port();
    listener(&agent, "orders", port, "");
    agent.start().await;
    let orders = Till::new(port, "orders");
    orders.ready().await;
    hub.process.kill();
    let mut taken = BTreeMap::new();
    let full = loop {
        let n = taken.len();
        assert!(n < 40, "the spool takes more than its quota");
        let answer = orders.post(&format!("k{n}"), vec![b'x'; 65_536]).send().await.unwrap();
        if answer.status() != StatusCode::ACCEPTED {
            break answer;
        }
        let body: Value = answer.json().await.unwrap();
        taken.insert(body["id"].as_str().unwrap().to_owned(), format!("k{n}"));
    };
    assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(full.headers().contains_key("retry-after"));
    assert!(taken.len() >= 15, "{}", taken.len());
    // What is known needs no room.
    accepted(orders.post("k3", vec![b'x'; 65_536])).await;
    hub.restart().await;
    let items = all_events(&hub, taken.len()).await;
    assert!(items.iter().all(|item| taken.contains_key(item["id"].as_str().unwrap())));
    until("room in the spool", PATIENCE, async || {
        let answer = orders.post("later", vec![b'x'; 65_536]).send().await.ok()?;
        (answer.status() == StatusCode::ACCEPTED).then_some(())
    })
    .await;
    all_events(&hub, taken.len() + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_at_two_agents_of_a_site_is_one_event() {
    let hub = Hub::start().await;
    let mut tills = Vec::new();
    let mut agents = Vec::new();
    for name in ["paris-1", "paris-2"] {
        let mut agent = Agent::new(&hub, SITE, name);
        let port = free_port();
        listener(&agent, "orders", port, "");
        agent.start().await;
        let till = Till::new(port, "orders");
        till.ready().await;
        agents.push(agent);
        tills.push(till);
    }
    for n in 0..20 {
        let key = format!("order-{n}");
        let (one, other) =
            tokio::join!(accepted(tills[0].post(&key, "{}")), accepted(tills[1].post(&key, "{}")));
        assert_eq!(one, other);
    }
    all_events(&hub, 20).await;
    // Another body under the key at the other agent: only the hub can tell, and says so.
    accepted(tills[0].post("split", "one")).await;
    all_events(&hub, 21).await;
    accepted(tills[1].post("split", "other")).await;
    agents[1].counted("passerelle_agent_events_refused_total", 1.0).await;
    assert_eq!(events(&hub).await.len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_token_counts_at_once_and_a_listener_comes_and_goes_with_the_configuration() {
    let hub = Hub::start().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    let (port, other) = (free_port(), free_port());
    agent.start().await;
    // Added while the agent runs: the first post may be there before the hub has heard of the listener.
    listener(&agent, "orders", port, "");
    let orders = Till::new(port, "orders");
    orders.ready().await;
    accepted(orders.post("early", "{}")).await;
    all_events(&hub, 1).await;
    agent.secret("listener", "another-token");
    until("the old token to be refused", PATIENCE, async || {
        let answer = orders.post("k", "{}").send().await.ok()?;
        (answer.status() == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    let renewed =
        orders.http.post(&orders.url).bearer_auth("another-token").header("idempotency-key", "renewed");
    accepted(renewed.body("{}")).await;
    // To another port; one that is taken is told, and taken as soon as it is free.
    let taken = std::net::TcpListener::bind(("127.0.0.1", other)).unwrap();
    listener(&agent, "orders", other, "");
    until("the port to be named", PATIENCE, async || {
        let status = agent.status().await;
        let paused = status["triggers"][0]["paused"].as_str()?.contains(&other.to_string());
        paused.then_some(())
    })
    .await;
    let checked = agent.output(&["check", "--json"]);
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("listener orders"), "{checked}");
    drop(taken);
    let moved = Till::new(other, "orders");
    moved.ready().await;
    accepted(moved.post("moved", "{}")).await;
    assert!(orders.http.get(&orders.url).send().await.is_err(), "the old port is closed");
    // Its last post is delivered though it is not configured any more.
    std::fs::remove_file(agent.folder().join("resources.d/orders.toml")).unwrap();
    until("the listener to be gone", PATIENCE, async || {
        moved.http.get(&moved.url).send().await.is_err().then_some(())
    })
    .await;
    all_events(&hub, 3 + usize::from(events(&hub).await.iter().any(|item| item["data"]["key"] == "k"))).await;
}
