//! A tunnel that breaks in the ways networks break, while jobs go on.

use crate::common::{SITE, Site, drop_into, drop_job, files_below, notify_job};
use passerelle_tests::{Agent, Content, Hub, Proxy, Reply, resources, until};
use rustix::process::Signal;
use serde_json::json;
use std::time::{Duration, Instant};

/// A dead peer is noticed within 30 s; then the agent comes back with its first delays.
const NOTICED: Duration = Duration::from_secs(30 + 15);

async fn through_proxy(behaviour: impl Fn(usize) -> Reply + Send + Sync + 'static) -> (Site, Proxy) {
    let mut site = Site::prepared(move |_, before| behaviour(before)).await;
    let proxy = Proxy::start(site.hub.port()).await;
    site.agent.through(&proxy.url());
    site.agent.start().await;
    (site, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_tunnel_comes_back_and_running_jobs_never_notice() {
    let (mut site, proxy) = through_proxy(|_| Reply::status(200).held()).await;
    let id = site.hub.api.submit(&notify_job("orders/1")).await;
    site.app.received(1).await;
    for _ in 0..3 {
        let before = proxy.connections();
        proxy.cut();
        until("a new tunnel", NOTICED, async || (proxy.connections() > before).then_some(())).await;
        site.agent.ready().await;
    }
    site.app.release();
    let done = site.hub.api.end_of(&id, Duration::from_secs(60)).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(done["attempts"].as_array().unwrap().len(), 1, "{done:#}");
    assert_eq!(site.app.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_tunnel_is_noticed_and_replaced() {
    let (site, proxy) = through_proxy(|_| Reply::status(200)).await;
    site.hub.api.agents_online(SITE, 1).await;
    let (before, start) = (proxy.connections(), Instant::now());
    proxy.half_open();
    site.hub.api.agents_online(SITE, 0).await;
    let id = site.hub.api.submit(&drop_job("a.csv", "x")).await;
    until("a new tunnel", NOTICED, async || (proxy.connections() > before).then_some(())).await;
    let done = site.hub.api.end_of(&id, NOTICED).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert!(start.elapsed() < NOTICED + Duration::from_secs(10), "took {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_tunnel_is_noticed_by_both_sides() {
    let (mut site, proxy) = through_proxy(|_| Reply::status(200)).await;
    site.hub.api.agents_online(SITE, 1).await;
    let start = Instant::now();
    proxy.stall(true);
    let id = site.hub.api.submit(&drop_job("a.csv", "x")).await;
    until("the agent to be unready", NOTICED, async || {
        (site.agent.readiness().await == Some(503)).then_some(())
    })
    .await;
    site.hub.api.agents_online(SITE, 0).await;
    assert!(start.elapsed() < NOTICED, "noticed after {:?}", start.elapsed());
    proxy.cut();
    proxy.stall(false);
    site.agent.ready().await;
    let done = site.hub.api.end_of(&id, Duration::from_secs(60)).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(files_below(site.files.path()), ["a.csv"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_shorter_than_a_heartbeat_costs_nothing() {
    let (site, proxy) = through_proxy(|_| Reply::status(200)).await;
    let before = proxy.connections();
    proxy.stall(true);
    let id = site.hub.api.submit(&drop_job("a.csv", "x")).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    proxy.stall(false);
    let done = site.hub.api.end_of(&id, Duration::from_secs(30)).await;
    assert_eq!(done["attempts"].as_array().unwrap().len(), 1, "{done:#}");
    assert_eq!(done["state"], "succeeded");
    assert_eq!(proxy.connections(), before, "the tunnel was given up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_payload_comes_whole_over_a_line_that_breaks() {
    let (site, proxy) = through_proxy(|_| Reply::status(200)).await;
    let source = tempfile::tempdir().unwrap();
    let content = Content::write(source.path(), 6_000_000);
    let blob = site.hub.api.upload(&content).await;
    proxy.slow(Some(1_500_000));
    let drop = drop_into("compta", "a.bin", json!({"blob": blob["id"]}));
    let mut before = proxy.answered();
    let id = site.hub.api.submit(&drop).await;
    for _ in 0..3 {
        let under_way = async || (proxy.answered() > before + 1_000_000).then_some(());
        until("the payload to be under way", NOTICED, under_way).await;
        proxy.cut();
        before = proxy.answered();
    }
    proxy.slow(None);
    let done = site.hub.api.end_of(&id, Duration::from_secs(90)).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(done["result"]["sha256"], json!(content.sha256));
    assert_eq!(files_below(site.files.path()), ["a.bin"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_cuts_in_a_row_neither_lose_nor_repeat_jobs() {
    let (mut site, proxy) = through_proxy(|_| Reply::status(200)).await;
    let mut ids = Vec::new();
    for n in 0..30 {
        ids.push(site.hub.api.submit(&notify_job(&format!("orders/{n}"))).await);
        if n % 5 == 0 {
            proxy.cut();
            site.agent.ready().await;
        }
    }
    for id in &ids {
        let done = site.hub.api.end_of(id, Duration::from_secs(90)).await;
        assert_eq!(done["state"], "succeeded", "{done:#}");
        assert_eq!(done["attempts"].as_array().unwrap().len(), 1, "{done:#}");
    }
    assert_eq!(site.app.requests().len(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_request_heard_on_the_way_is_no_use_a_second_time() {
    let (site, proxy) = through_proxy(|_| Reply::status(200)).await;
    site.hub.api.agents_online(SITE, 1).await;
    let line = proxy.replay().await;
    assert!(line.contains("401"), "the replayed request was answered {line:?}");
    site.hub.api.succeed(&drop_job("a.csv", "x")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_breathing_is_offline_until_it_breathes_again() {
    let (mut site, _proxy) = through_proxy(|_| Reply::status(200)).await;
    site.hub.api.agents_online(SITE, 1).await;
    let start = Instant::now();
    site.agent.process().signal(Signal::STOP);
    let id = site.hub.api.submit(&drop_job("a.csv", "x")).await;
    site.hub.api.agents_online(SITE, 0).await;
    assert!(start.elapsed() < Duration::from_secs(40), "noticed after {:?}", start.elapsed());
    site.agent.process().signal(Signal::CONT);
    let done = site.hub.api.end_of(&id, Duration::from_secs(60)).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(files_below(site.files.path()), ["a.csv"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_a_known_authority_is_trusted_and_another_one_named() {
    let hub = Hub::start_tls().await;
    let files = tempfile::tempdir().unwrap();
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.resource("compta", &resources::folder("compta", files.path()));
    agent.spawn();
    agent.process().logged("certificate", Duration::from_secs(30)).await;
    assert_ne!(agent.readiness().await, Some(200));
    agent.kill();
    agent.file("corporate-ca.pem", hub.certificate().unwrap());
    agent.hub_key("ca_file = \"corporate-ca.pem\"").start().await;
    // Beside the tunnel too: a payload that is too large for it.
    let source = tempfile::tempdir().unwrap();
    let content = Content::write(source.path(), 400_000);
    let blob = hub.api.upload(&content).await;
    let done = hub.api.succeed(&drop_into("compta", "a.bin", json!({"blob": blob["id"]}))).await;
    assert_eq!(done["result"]["sha256"], json!(content.sha256));
}
