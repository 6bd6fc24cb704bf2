//! Events of triggers: sent by an agent, stored once, read back, followed, and made into jobs.

use crate::{
    agent::{Agent, Session},
    events::Stream,
    support::{Answer, Hub, eventually, job, name},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_hub::store::quota::Quotas;
use passerelle_protocol::{
    Event, EventPayload, FileEvent, Hello, ListenerAnnouncement, NOTIFICATION, NotificationEvent, PICKUP,
    PayloadSource, Sha256, ToAgent, TriggerAnnouncement, http::event_payload_path,
};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

fn hello(agent: &Agent) -> Hello {
    let trigger =
        TriggerAnnouncement { resource: name("compta"), name: name("incoming"), kind: name(PICKUP) };
    Hello { triggers: vec![trigger], ..agent.hello() }
}

/// Connects an agent that has a trigger.
pub async fn connect(agent: &Agent, hub: &Hub) -> Session {
    agent.connect_with(hub, hello(agent)).await
}

/// What the trigger makes of a file at `paris`, its content with it.
pub fn event(path: &str, content: &[u8]) -> Event {
    let (resource, kind, sha256) = (name("compta"), name(PICKUP), Sha256::of(content));
    let size = content.len() as u64;
    let modified_at = Some("2026-11-21T05:59:30Z".parse().unwrap());
    let file = FileEvent { path: path.to_owned(), size, sha256, modified_at };
    Event {
        id: file.id(&name("paris"), &resource, &kind),
        resource,
        trigger: name("incoming"),
        kind,
        lease: 1,
        occurred_at: "2026-11-21T06:00:00.123Z".parse().unwrap(),
        data: serde_json::to_value(file).unwrap(),
        payload: Some(EventPayload {
            size,
            sha256,
            media_type: "text/csv".to_owned(),
            source: PayloadSource::Inline { data: STANDARD.encode(content) },
        }),
    }
}

/// The same with its content to be uploaded.
fn large(path: &str, content: &[u8]) -> Event {
    let mut event = event(path, content);
    event.payload.as_mut().unwrap().source = PayloadSource::Hub;
    event
}

async fn send(session: &mut Session, event: &Event) -> bool {
    session.send(event.clone()).await;
    let ack = session.event_ack().await;
    assert_eq!(ack.id, event.id);
    ack.duplicate
}

fn upload(hub: &Hub, agent: &Agent, method: Method, event: &Event) -> RequestBuilder {
    hub.anonymous(method, &event_payload_path(event.id)).bearer_auth(agent.bearer())
}

fn open(hub: &Hub, agent: &Agent, event: &Event) -> RequestBuilder {
    let payload = event.payload.as_ref().unwrap();
    let digest = format!("sha-256=:{}:", STANDARD.encode(payload.sha256.bytes()));
    upload(hub, agent, Method::POST, event)
        .header("upload-length", payload.size)
        .header("repr-digest", digest)
}

fn append(hub: &Hub, agent: &Agent, event: &Event, from: usize, part: &[u8]) -> RequestBuilder {
    upload(hub, agent, Method::PATCH, event)
        .header("content-type", "application/offset+octet-stream")
        .header("upload-offset", from)
        .body(part.to_vec())
}

#[tokio::test]
async fn an_event_is_stored_once_and_read_back() {
    let hub = Hub::start().await;
    let agent = Agent::enrol(&hub).await;
    let mut stream = Stream::open(&hub, None).await;
    let mut session = connect(&agent, &hub).await;
    let ToAgent::Triggers(triggers) = session.next().await else { panic!("no triggers") };
    assert_eq!((triggers.leases.len(), triggers.leases[0].ttl_s), (1, None), "alone: without end");
    let event = event("in/a.csv", b"a;b\r\n1;2\r\n");
    assert!(!send(&mut session, &event).await);
    assert!(send(&mut session, &event).await, "a second copy is the same event");

    let item = hub.get(&format!("/v1/events/received/{}", event.id)).await.expect(200).json();
    let received_at = item["received_at"].clone();
    assert!(received_at.is_string());
    assert_eq!(
        item,
        json!({
            "id": event.id, "tenant": "acme", "site": "paris", "resource": "compta", "trigger": "incoming",
            "kind": "pickup", "agent": agent.identity.agent, "occurred_at": "2026-11-21T06:00:00.123Z",
            "received_at": received_at,
            "data": {
                "path": "in/a.csv", "size": 10, "sha256": event.payload.as_ref().unwrap().sha256,
                "modified_at": "2026-11-21T05:59:30Z"
            },
            "payload": {
                "size": 10, "sha256": event.payload.as_ref().unwrap().sha256, "media_type": "text/csv"
            },
            "jobs": []
        })
    );
    let list = hub.get("/v1/events/received").await.expect(200).json();
    assert_eq!(list, json!({"items": [item], "next_cursor": null}));
    let path = format!("/v1/events/received/{}/payload", event.id);
    let whole = hub.get(&path).await.expect(200);
    assert_eq!((whole.text().as_str(), whole.header("content-type")), ("a;b\r\n1;2\r\n", "text/csv"));
    let part = hub.request(Method::GET, &path).header("range", "bytes=5-");
    assert_eq!(Answer::of(part).await.expect(206).text(), "1;2\r\n");

    // In the stream once, with the object that GET shows; a reader that comes back misses nothing.
    let told = loop {
        let told = stream.next().await;
        if told.kind == "received" {
            break told;
        }
    };
    assert_eq!(told.data, item);
    let second = crate::received::event("in/b.csv", b"b");
    assert!(!send(&mut session, &second).await);
    let mut again = Stream::open(&hub, Some(told.id)).await;
    for stream in [&mut stream, &mut again] {
        let next = stream.next().await;
        assert_eq!((next.kind.as_str(), &next.data["id"]), ("received", &json!(second.id)));
    }

    let unknown = crate::received::event("in/none.csv", b"").id;
    hub.get(&format!("/v1/events/received/{unknown}")).await.expect_problem(404, "not_found");
    hub.get(&format!("/v1/events/received/{unknown}/payload")).await.expect_problem(404, "not_found");
    hub.get("/v1/events/received/x").await.expect_problem(404, "not_found");
    hub.get("/v1/events/received?colour=1").await.expect_problem(400, "bad_request");
    hub.get("/v1/events/received?cursor=x").await.expect_problem(400, "bad_request");
    let (_, key) = hub.store.create_api_key(name("acme"), vec!["jobs:read".to_owned()]).await.unwrap();
    let without = hub.anonymous(Method::GET, "/v1/events/received").bearer_auth(key);
    Answer::of(without).await.expect_problem(403, "forbidden");
    let metrics = hub.get("/metrics").await.expect(200).text();
    for figure in ["events_received_total 2", "events_repeated_total 1", "events_refused_total 0"] {
        assert!(metrics.contains(&format!("passerelle_hub_{figure}\n")), "{figure}: {metrics}");
    }
    hub.end().await;
}

#[tokio::test]
async fn the_list_is_newest_first_filtered_and_in_pages() {
    let hub = Hub::start().await;
    let agent = Agent::enrol(&hub).await;
    let mut session = connect(&agent, &hub).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        let event = event(&format!("in/{number}.csv"), b"x");
        assert!(!send(&mut session, &event).await);
        ids.insert(0, json!(event.id));
    }
    let mut found = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = hub.get(&format!("/v1/events/received?limit=2{cursor}")).await.expect(200).json();
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 2);
        found.extend(items.iter().map(|item| item["id"].clone()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(found, ids);
    for (query, count) in [
        ("site=paris", 5),
        ("site=lyon", 0),
        ("resource=compta", 5),
        ("resource=crm", 0),
        ("trigger=incoming", 5),
        ("trigger=other", 0),
        ("kind=pickup", 5),
        ("kind=watch", 0),
        ("since=2026-01-01T00:00:00Z&site=paris&resource=compta&kind=pickup", 5),
        ("until=2026-01-01T00:00:00Z", 0),
    ] {
        let page = hub.get(&format!("/v1/events/received?{query}")).await.expect(200).json();
        assert_eq!(page["items"].as_array().unwrap().len(), count, "{query}");
    }
    hub.end().await;
}

#[tokio::test]
async fn a_job_is_started_from_an_event_with_its_payload() {
    let hub = Hub::start().await;
    let agent = Agent::enrol(&hub).await;
    let mut session = connect(&agent, &hub).await;
    let (small, big) = (event("in/a.csv", b"small"), large("in/b.csv", &vec![b'x'; 300_000]));
    assert!(!send(&mut session, &small).await);
    let digest = big.payload.as_ref().unwrap().sha256;
    Answer::of(open(&hub, &agent, &big)).await.expect(201);
    Answer::of(append(&hub, &agent, &big, 0, &vec![b'x'; 300_000])).await.expect(204);
    assert!(!send(&mut session, &big).await);

    let of = |event: &Event| job(json!({"payload": {"event": event.id}}));
    let submit = |body: Value, key: &str| {
        Answer::of(hub.request(Method::POST, "/v1/jobs").header("idempotency-key", key).json(&body))
    };
    let first = submit(of(&small), "k").await.expect(201).json();
    assert_eq!(submit(of(&small), "k").await.expect(200).json()["id"], first["id"]);
    // Another event is another job, were its content the same.
    let twin = event("in/twin.csv", b"small");
    assert!(!send_past_offers(&mut session, &twin).await);
    submit(of(&twin), "k").await.expect_problem(422, "idempotency_mismatch");
    let second = submit(of(&big), "l").await.expect(201).json();
    let item = hub.get(&format!("/v1/events/received/{}", small.id)).await.json();
    assert_eq!(item["jobs"], json!([first["id"]]));
    let item = hub.get(&format!("/v1/events/received/{}", big.id)).await.json();
    assert_eq!(item["jobs"], json!([second["id"]]));

    // Both are offered with the event's content: the small one inline, the large one beside the tunnel.
    let mut session = agent.connect(&hub).await;
    for _ in 0..2 {
        let offer = session.offer().await;
        match offer.payload.as_ref().unwrap() {
            PayloadSource::Inline { data } => assert_eq!(STANDARD.decode(data).unwrap(), b"small"),
            PayloadSource::Hub => {
                let path = format!("/agent/v1/jobs/{}/payload", offer.job);
                let content = hub.anonymous(Method::GET, &path).bearer_auth(agent.bearer());
                let content = Answer::of(content).await.expect(200);
                assert_eq!(Sha256::of(&content.body), digest);
                assert_eq!(content.header("content-type"), "text/csv");
            }
        }
    }

    let unknown = event("in/none.csv", b"").id;
    let missing = hub.post("/v1/jobs", &job(json!({"payload": {"event": unknown}}))).await;
    let missing = missing.expect_problem(404, "not_found").text();
    assert!(missing.contains("payload.event: "), "{missing}");
    for bad in [json!({"event": "x"}), json!({"event": unknown, "text": "a"}), json!({"event": null})] {
        let refused = hub.post("/v1/jobs", &job(json!({"payload": bad}))).await;
        refused.expect_problem(400, "bad_request");
    }
    hub.end().await;
}

/// Offers that are on their way to the session come first.
async fn send_past_offers(session: &mut Session, event: &Event) -> bool {
    session.send(event.clone()).await;
    session.event_ack().await.duplicate
}

#[tokio::test]
async fn a_large_payload_is_uploaded_first_and_goes_on_after_a_cut() {
    let hub = Hub::start().await;
    let agent = Agent::enrol(&hub).await;
    let content: Vec<u8> = (0..400_000_u32).map(|n| (n % 251) as u8).collect();
    let event = large("in/big.bin", &content);
    // Before it has announced a trigger the agent has nothing to upload.
    Answer::of(open(&hub, &agent, &event)).await.expect_problem(404, "not_found");
    let mut session = connect(&agent, &hub).await;
    session.send(event.clone()).await;
    let refused = session.event_refused().await;
    assert_eq!((refused.code.as_str(), refused.retry_after_ms), ("not_found", Some(1000)));

    let opened = Answer::of(open(&hub, &agent, &event)).await.expect(201);
    assert_eq!(opened.header("location"), event_payload_path(event.id));
    let stands = Answer::of(append(&hub, &agent, &event, 0, &content[..100_000])).await.expect(204);
    assert_eq!(stands.header("upload-offset"), "100000");
    // Not to its end: not here.
    session.send(event.clone()).await;
    assert_eq!(session.event_refused().await.code, "not_found");
    Answer::of(append(&hub, &agent, &event, 7, b"x")).await.expect_problem(409, "conflict");
    let head = Answer::of(upload(&hub, &agent, Method::HEAD, &event)).await.expect(200);
    assert_eq!((head.header("upload-offset"), head.header("upload-length")), ("100000", "400000"));
    assert_eq!(Answer::of(open(&hub, &agent, &event)).await.expect(200).header("upload-offset"), "100000");
    Answer::of(append(&hub, &agent, &event, 100_000, &content[100_000..])).await.expect(204);
    assert!(!send(&mut session, &event).await);
    let got = hub.get(&format!("/v1/events/received/{}/payload", event.id)).await.expect(200);
    assert!(got.body == content);
    // The acknowledgement was lost: nothing has to be uploaded a second time.
    let again = Answer::of(open(&hub, &agent, &event)).await.expect(200);
    assert_eq!(again.header("upload-offset"), "400000");
    assert!(send(&mut session, &event).await);

    // What is uploaded has to be what was announced.
    let wrong = large("in/wrong.bin", &content);
    Answer::of(open(&hub, &agent, &wrong)).await.expect(201);
    let other = vec![0; content.len()];
    Answer::of(append(&hub, &agent, &wrong, 0, &other)).await.expect_problem(422, "digest_mismatch");
    session.send(wrong.clone()).await;
    assert_eq!(session.event_refused().await.code, "not_found");
    // Another upload than the event says: begun anew.
    let mut half = large("in/wrong.bin", &content[..300_000]);
    half.id = wrong.id;
    Answer::of(open(&hub, &agent, &half)).await.expect(201);
    Answer::of(append(&hub, &agent, &half, 0, &content[..300_000])).await.expect(204);
    session.send(wrong.clone()).await;
    assert_eq!(session.event_refused().await.code, "not_found");
    // An agent of the site that did not open it does not see it.
    let other = Agent::enrol(&hub).await;
    let _other_session = connect(&other, &hub).await;
    Answer::of(upload(&hub, &other, Method::HEAD, &wrong)).await.expect(404);
    Answer::of(append(&hub, &other, &wrong, 300_000, b"x")).await.expect_problem(404, "not_found");
    hub.end().await;
}

/// What makes a right event a wrong one.
type Change = fn(&mut Event);

#[tokio::test]
async fn what_a_hostile_agent_tells_is_refused_and_counted() {
    let hub = Hub::start().await;
    let agent = Agent::enrol(&hub).await;
    let mut session = connect(&agent, &hub).await;
    let good = event("in/a.csv", b"a");
    assert!(!send(&mut session, &good).await);
    let refused: [(&str, Change); 9] = [
        ("forbidden", |event| event.trigger = name("other")),
        ("bad_request", |event| event.resource = name("crm")),
        ("bad_request", |event| event.kind = name("watch")),
        ("forbidden", |event| event.kind = name("sighting")),
        ("bad_request", |event| event.data["path"] = json!("in/c.csv")),
        ("bad_request", |event| event.data["path"] = json!("../../etc/passwd")),
        ("bad_request", |event| event.payload = None),
        ("digest_mismatch", |event| {
            event.payload.as_mut().unwrap().source = PayloadSource::Inline { data: "Yw==".to_owned() };
        }),
        ("too_large", |event| {
            let size = (1 << 20) + 1;
            let file = FileEvent {
                path: "in/huge".to_owned(),
                size,
                sha256: Sha256::of(b"huge"),
                modified_at: None,
            };
            event.id = file.id(&name("paris"), &event.resource, &event.kind);
            event.data = serde_json::to_value(file).unwrap();
            let payload = event.payload.as_mut().unwrap();
            (payload.size, payload.sha256) = (size, Sha256::of(b"huge"));
            payload.source = PayloadSource::Hub;
        }),
    ];
    let count = refused.len();
    for (expected, change) in refused {
        let mut event = event("in/b.csv", b"b");
        change(&mut event);
        session.send(event.clone()).await;
        let refused = session.event_refused().await;
        assert_eq!((refused.id, refused.code.as_str()), (event.id, expected), "{refused:?}");
        assert_eq!(refused.retry_after_ms, None);
    }
    // Too many events: those that there is no room for may come again later.
    hub.store.set_quotas(Quotas { events: 1, ..Quotas::default() });
    session.send(event("in/b.csv", b"b")).await;
    let full = session.event_refused().await;
    assert_eq!((full.code.as_str(), full.retry_after_ms), ("quota", Some(60_000)));
    hub.store.set_quotas(Quotas { blob_bytes: 1, ..Quotas::default() });
    session.send(event("in/bb.csv", b"bb")).await;
    assert_eq!(session.event_refused().await.code, "quota");
    let room = Answer::of(open(&hub, &agent, &large("in/big", &[0; 300_000]))).await;
    room.expect_problem(507, "quota");
    hub.store.set_quotas(Quotas::default());
    assert!(send(&mut session, &good).await, "the session went on");
    assert_eq!(hub.get("/v1/events/received").await.json()["items"].as_array().unwrap().len(), 1);
    // Those that the quota refused are none that the agent told wrongly.
    let metrics = hub.get("/metrics").await.expect(200).text();
    assert!(metrics.contains(&format!("passerelle_hub_events_refused_total {count}\n")), "{metrics}");

    // An event that is larger than any may be, and a flood, end the session.
    let mut fat = event("in/fat", b"fat");
    fat.data["more"] = json!("x".repeat(20_000));
    let text = serde_json::to_string(&passerelle_protocol::ToHub::from(fat)).unwrap();
    session.send_text(text).await;
    session.ends().await;
    hub.end().await;
}

#[tokio::test]
async fn an_event_whose_answer_was_lost_is_told_again_and_kept_once() {
    let hub = Hub::start().await;
    let agent = Agent::enrol(&hub).await;
    let mut session = connect(&agent, &hub).await;
    let event = event("in/a.csv", b"a");
    session.send(event.clone()).await;
    // The connection breaks before the answer is read; the event is stored all the same.
    let stored = async || {
        let answer = hub.get(&format!("/v1/events/received/{}", event.id)).await;
        (answer.status == 200).then_some(())
    };
    eventually(stored).await;
    drop(session);
    let mut session = connect(&agent, &hub).await;
    assert!(send(&mut session, &event).await);
    assert_eq!(hub.get("/v1/events/received").await.json()["items"].as_array().unwrap().len(), 1);
    hub.end().await;
}

/// What a listener was told under a key.
fn notification(listener: &str, key: &str, content: &[u8]) -> Event {
    let posted = NotificationEvent { key: key.to_owned(), event_kind: Some("CommandeValidee".to_owned()) };
    Event {
        id: posted.id(&name("paris"), &name(listener)),
        resource: name(listener),
        trigger: name(listener),
        kind: name(NOTIFICATION),
        lease: 0,
        data: serde_json::to_value(posted).unwrap(),
        ..event("unused", content)
    }
}

#[tokio::test]
async fn what_a_listener_was_told_is_stored_once_without_a_lease_and_of_any_agent_of_the_site() {
    let hub = Hub::start().await;
    let (anna, paul) = (Agent::enrol(&hub).await, Agent::enrol(&hub).await);
    let listener = || vec![ListenerAnnouncement { name: name("orders") }];
    let with = |agent: &Agent| Hello { listeners: listener(), ..agent.hello() };
    let mut first = anna.connect_with(&hub, with(&anna)).await;
    let mut second = paul.connect_with(&hub, with(&paul)).await;
    let event = notification("orders", "order-7", b"{}");
    assert!(!send(&mut first, &event).await);
    assert!(send(&mut second, &event).await, "the same key at another agent is the same event");
    let item = hub.get(&format!("/v1/events/received/{}", event.id)).await.expect(200).json();
    assert_eq!(
        (&item["resource"], &item["kind"], &item["data"]["key"], &item["data"]["event_kind"]),
        (&json!("orders"), &json!("notification"), &json!("order-7"), &json!("CommandeValidee"))
    );
    let filtered = hub.get("/v1/events/received?kind=notification&trigger=orders").await.expect(200).json();
    assert_eq!(filtered["items"].as_array().unwrap().len(), 1);

    // Another content under the key, a listener that nobody announced, a key that is not the id's, and none at all.
    let mut forged = notification("orders", "order-8", b"{}");
    forged.data["key"] = json!("order-9");
    let mut empty = notification("orders", "order-10", b"{}");
    empty.payload = None;
    for (event, code) in [
        (notification("orders", "order-7", b"other"), "conflict"),
        (notification("tills", "order-7", b"{}"), "forbidden"),
        (forged, "bad_request"),
        (empty, "bad_request"),
    ] {
        first.send(event).await;
        let ToAgent::EventRefused(refused) = first.next().await else { panic!("not refused: {code}") };
        assert_eq!((refused.code.as_str(), refused.retry_after_ms), (code, None));
    }
}
