//! SIGTERM: running jobs are finished within the grace time, nothing new is taken, nothing is lost.

use crate::common::{Site, drop_job, files_below, notify_job};
use passerelle_tests::{PATIENCE, Reply, http_client, until};
use rustix::process::Signal;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_told_to_stop_finishes_what_it_does_and_exits_0() {
    let mut site = Site::with_app(|_, _| Reply::status(200).held()).await;
    let running = site.hub.api.submit(&notify_job("orders/1")).await;
    site.app.received(1).await;
    site.agent.process().signal(Signal::TERM);
    until("the agent to be unready", PATIENCE, async || {
        (site.agent.readiness().await != Some(200)).then_some(())
    })
    .await;
    let later = site.hub.api.submit(&drop_job("later.csv", "x")).await;
    site.app.release();
    assert_eq!(site.agent.process().exit_code(Duration::from_secs(30)).await, Some(0));
    let done = site.hub.api.end_of(&running, Duration::from_secs(5)).await;
    assert_eq!(done["state"], "succeeded", "the report was not flushed: {done:#}");
    assert_eq!(site.hub.api.job(&later).await["state"], "queued");
    assert_eq!(files_below(site.files.path()), Vec::<String>::new());
    site.agent.start().await;
    site.hub.api.reach(&later, &["succeeded"]).await;
    assert_eq!(site.app.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_longer_than_the_grace_time_is_resumed_at_the_next_start() {
    let mut site = Site::prepared(|_, before| {
        let reply = Reply::status(200);
        if before == 0 { reply.held() } else { reply }
    })
    .await;
    site.agent.agent_key("shutdown_grace = \"1s\"").start().await;
    let id = site.hub.api.submit(&notify_job("orders/1")).await;
    site.app.received(1).await;
    site.agent.process().signal(Signal::TERM);
    assert_eq!(site.agent.process().exit_code(Duration::from_secs(20)).await, Some(0));
    assert!(!passerelle_tests::ended(&site.hub.api.job(&id).await));
    site.agent.start().await;
    let done = site.hub.api.end_of(&id, Duration::from_secs(60)).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert!(site.app.requests().iter().all(|r| r.header("idempotency-key") == id));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_agent_stops_at_once() {
    let mut site = Site::start().await;
    site.agent.process().signal(Signal::TERM);
    assert_eq!(site.agent.process().exit_code(Duration::from_secs(10)).await, Some(0));
    site.hub.api.agents_online(crate::common::SITE, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_told_to_stop_exits_0_and_agents_come_back_to_the_next_one() {
    let mut site = Site::start().await;
    site.hub.process.signal(Signal::TERM);
    assert_eq!(site.hub.process.exit_code(Duration::from_secs(20)).await, Some(0));
    site.hub.restart().await;
    site.agent.ready().await;
    site.hub.api.succeed(&drop_job("a.csv", "x")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_under_way_is_answered_by_a_hub_told_to_stop() {
    let mut site = Site::with_app(|_, _| Reply::status(200).held()).await;
    let url = site.hub.url.clone();
    let call = notify_job("orders/1");
    let request = site.hub.api.request(reqwest::Method::POST, "/v1/calls").json(&call);
    let answer = tokio::spawn(async move { request.send().await.unwrap() });
    site.app.received(1).await;
    site.hub.process.signal(Signal::TERM);
    let refused = until("a hub that ends", SOON, async || {
        let answer = http_client().get(format!("{url}/readyz")).send().await.ok()?;
        (answer.status() == 503).then_some(answer)
    });
    assert!(refused.await.headers().contains_key("retry-after"));
    site.app.release();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    assert_eq!(site.hub.process.exit_code(Duration::from_secs(20)).await, Some(0));
}
