//! A hub that is told to end: agents, streams, waiting clients and probes each hear it, and what runs is finished.

use crate::{
    agent::Agent,
    events::Stream,
    support::{Answer, Hub, PATIENCE, eventually, job},
};
use bytes::Bytes;
use reqwest::Method;
use serde_json::json;
use std::convert::Infallible;
use tokio::{sync::mpsc, time::timeout};

#[tokio::test]
async fn everybody_is_told_and_what_runs_is_finished() {
    let hub = Hub::start().await;
    let agent = Agent::enrol(&hub).await;
    let mut session = agent.connect(&hub).await;
    let stream = Stream::open(&hub, None).await;
    let waiting = tokio::spawn(Answer::of(
        hub.request(Method::POST, "/v1/jobs?wait=60").json(&job(json!({"resource": "nobody-has-it"}))),
    ));
    eventually(|| async {
        let jobs = hub.get("/v1/jobs").await.expect(200).json();
        (!jobs["items"].as_array().unwrap().is_empty()).then_some(())
    })
    .await;
    // A request that runs: its body has not come to its end.
    let (body, rest) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    let rest =
        futures_util::stream::unfold(rest, |mut rest| async { rest.recv().await.map(|item| (item, rest)) });
    let upload = hub.request(Method::POST, "/v1/blobs").body(reqwest::Body::wrap_stream(rest));
    let upload = tokio::spawn(Answer::of(upload));
    body.send(Ok(Bytes::from_static(b"first "))).await.unwrap();
    let uploads = hub.store.data_dir().join("uploads");
    eventually(|| async { (std::fs::read_dir(&uploads).unwrap().count() > 0).then_some(()) }).await;

    hub.begin_end();
    let refuse = session.refused().await;
    assert_eq!((refuse.code.as_str(), refuse.permanent, refuse.retry_after_s), ("busy", false, Some(1)));
    session.ends().await;
    stream.ends().await;
    let waited = timeout(PATIENCE, waiting).await.unwrap().unwrap().expect(202);
    assert_eq!(waited.json()["state"], "queued");
    // On new connections, as a probe and a client make them.
    let fresh = || reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let ask =
        |method, path: &str| fresh().request(method, format!("{}{path}", hub.url)).bearer_auth(&hub.key);
    let unready = Answer::of(ask(Method::GET, "/readyz")).await.expect_problem(503, "internal");
    assert_eq!(unready.header("retry-after"), "1");
    Answer::of(ask(Method::GET, "/healthz")).await.expect(200);
    let refused = Answer::of(ask(Method::POST, "/v1/jobs").json(&job(json!({})))).await;
    let refused = refused.expect_problem(503, "internal");
    assert_eq!(refused.header("retry-after"), "1");
    assert!(refused.text().contains("being restarted"), "{}", refused.text());
    body.send(Ok(Bytes::from_static(b"second"))).await.unwrap();
    drop(body);
    let stored = timeout(PATIENCE, upload).await.unwrap().unwrap().expect(201).json();
    assert_eq!(stored["size"], 12);
    let url = hub.url.clone();
    hub.end().await;
    assert!(fresh().get(format!("{url}/healthz")).send().await.is_err(), "it still listens");
}
