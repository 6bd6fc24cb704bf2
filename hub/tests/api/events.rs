//! The event stream: what happens is told once, in order, and a reader that comes back misses nothing.

use crate::{
    agent::Agent,
    support::{Answer, Hub, PATIENCE, name},
};
use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

pub struct Stream {
    body: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    text: String,
}

#[derive(Debug)]
pub struct Event {
    pub kind: String,
    pub id: u64,
    pub data: Value,
}

impl Stream {
    pub async fn open(hub: &Hub, last: Option<u64>) -> Self {
        Self::open_with(hub, &hub.key, last).await
    }

    async fn open_with(hub: &Hub, key: &str, last: Option<u64>) -> Self {
        let mut request = hub.anonymous(Method::GET, "/v1/events").bearer_auth(key);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut stream = Self { body: Box::pin(response.bytes_stream()), text: String::new() };
        // The greeting: from here on nothing is missed.
        assert!(stream.block().await.starts_with(':'));
        stream
    }

    /// Reads to the end, which has to be a proper one.
    pub async fn ends(self) {
        self.rest().await;
    }

    async fn rest(mut self) -> String {
        while let Some(chunk) = timeout(PATIENCE, self.body.next()).await.unwrap() {
            self.text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
        self.text
    }

    async fn block(&mut self) -> String {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                return block;
            }
            let chunk =
                timeout(PATIENCE, self.body.next()).await.unwrap().expect("the stream goes on").unwrap();
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    pub async fn next(&mut self) -> Event {
        loop {
            let block = self.block().await;
            let field =
                |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            if let (Some(kind), Some(id), Some(data)) = (field("event: "), field("id: "), field("data: ")) {
                return Event { kind, id: id.parse().unwrap(), data: serde_json::from_str(&data).unwrap() };
            }
        }
    }
}

#[tokio::test]
async fn a_reader_is_told_of_its_tenants_jobs_and_agents_and_goes_on_where_it_was() {
    let hub = Hub::start().await;
    let mut stream = Stream::open(&hub, None).await;
    let other = hub.other_tenant().await;
    let theirs =
        hub.anonymous(Method::POST, "/v1/jobs").bearer_auth(&other).json(&crate::support::job(json!({})));
    Answer::of(theirs).await.expect(201);
    let first = hub.submit(json!({})).await;
    let event = stream.next().await;
    assert_eq!((event.kind.as_str(), &event.data["id"]), ("job", &first["id"]));
    assert_eq!(event.data["tenant"], "acme");
    let last = event.id;
    drop(stream);

    // Meanwhile nobody reads.
    let missed = hub.submit(json!({})).await;
    let agent = Agent::enrol(&hub).await;
    let mut stream = Stream::open(&hub, Some(last)).await;
    let event = stream.next().await;
    assert_eq!(event.data["id"], missed["id"]);
    assert!(event.id > last);
    let enrolled = stream.next().await;
    assert_eq!((enrolled.kind.as_str(), &enrolled.data["id"]), ("agent", &json!(agent.identity.agent)));
    assert_eq!(enrolled.data["online"], false);

    let mut session = agent.connect(&hub).await;
    let (mut online, mut offered, mut ids) = (false, false, vec![enrolled.id]);
    while !(online && offered) {
        let event = stream.next().await;
        ids.push(event.id);
        online |= event.kind == "agent" && event.data["online"] == true;
        offered |= event.kind == "job" && event.data["state"] == "offered";
    }
    session.succeed(json!({"done": 1}), None).await;
    loop {
        let event = stream.next().await;
        ids.push(event.id);
        if event.data["state"] == "succeeded" {
            assert_eq!(event.data["result"], json!({"done": 1}));
            break;
        }
    }
    assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] != pair[1]), "{ids:?}");

    let bad = hub.request(Method::GET, "/v1/events").header("last-event-id", "yesterday");
    Answer::of(bad).await.expect_problem(400, "bad_request");
    // The end of the hub ends the stream.
    hub.end().await;
    stream.ends().await;
}

#[tokio::test]
async fn a_stream_ends_with_its_api_key_and_tells_nothing_more() {
    let hub = Hub::start().await;
    let (id, key) = hub.store.create_api_key(name("acme"), vec!["events:read".to_owned()]).await.unwrap();
    let (mut busy, idle) =
        (Stream::open_with(&hub, &key, None).await, Stream::open_with(&hub, &key, None).await);
    let told = hub.submit(json!({})).await;
    assert_eq!(busy.next().await.data["id"], told["id"]);
    hub.store.revoke_api_key(&id).await.unwrap();
    let untold = hub.submit(json!({})).await;
    let rest = busy.rest().await;
    assert!(!rest.contains(untold["id"].as_str().unwrap()), "{rest}");
    idle.ends().await;
    hub.end().await;
}

#[tokio::test]
async fn a_reader_from_before_a_restored_backup_is_told_all_that_there_is() {
    let hub = Hub::start().await;
    let job = hub.submit(json!({})).await;
    let mut stream = Stream::open(&hub, Some(1_000_000)).await;
    loop {
        let event = stream.next().await;
        if event.kind == "job" {
            assert_eq!(event.data["id"], job["id"]);
            break;
        }
    }
    let next = hub.submit(json!({})).await;
    assert_eq!(stream.next().await.data["id"], next["id"]);
}
