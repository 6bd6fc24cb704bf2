//! The agent runs out of room: it turns jobs away in time, says so, and loses none. What it does not need it gives back.

use crate::common::{SITE, Site, drop_into, drop_job, notify_job, with};
use passerelle_tests::{
    Agent, App, Content, Hub, PATIENCE, Reply, SmallDisk, code, is_root, resources, until,
};
use serde_json::{Value, json};
use std::time::Duration;

const BUSY: &str = r#"passerelle_agent_offers_declined_total{code="busy"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_agent_turns_jobs_away_and_loses_none() {
    if !is_root() {
        eprintln!("not root: left out, since no small disk can be mounted");
        return;
    }
    let disk = SmallDisk::mount("32m");
    let hub = Hub::start().await;
    let app =
        App::with(|_, before| if before == 0 { Reply::status(200).held() } else { Reply::status(200) }).await;
    let files = tempfile::tempdir().unwrap();
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.resource("compta", &resources::folder("compta", files.path()));
    agent.resource("orders-app", &resources::application("orders-app", &app.url));
    agent.agent_key(&format!("state_dir = \"{}\"", disk.path().join("state").display())).start().await;
    let running = hub.api.submit(&notify_job("orders/1")).await;
    app.received(1).await;
    disk.fill();
    until("the agent to be unready", PATIENCE, async || (agent.readiness().await == Some(503)).then_some(()))
        .await;
    let mut later = Vec::new();
    for n in 0..5 {
        later.push(hub.api.submit(&drop_job(&format!("{n}.csv"), "x")).await);
    }
    agent.counted(BUSY, 1.0).await;
    // It ends while the disk is full: done once, and told once there is room.
    app.release();
    assert!(agent.process().is_running());
    disk.free();
    agent.ready().await;
    for id in later.iter().chain([&running]) {
        let done = hub.api.end_of(id, Duration::from_secs(60)).await;
        assert_eq!(done["state"], "succeeded", "{done:#}");
        assert_eq!(
            done["attempts"].as_array().unwrap().iter().filter(|a| a["effect"] == "applied").count(),
            1
        );
    }
    assert_eq!(app.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_past_the_spools_quota_wait_their_turn() {
    let hub = Hub::start().await;
    let app =
        App::with(|_, before| if before == 0 { Reply::status(200).held() } else { Reply::status(200) }).await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.resource("orders-app", &resources::application("orders-app", &app.url));
    agent.agent_key("spool_quota = \"1MiB\"").start().await;
    let source = tempfile::tempdir().unwrap();
    let blob = |size: u64| {
        let content = Content::write(source.path(), size);
        let api = hub.api.clone();
        async move { api.upload(&content).await["id"].clone() }
    };
    let telling = |path: &str, blob: Value| with(notify_job(path), json!({"payload": {"blob": blob}}));
    let first = hub.api.submit(&telling("orders/1", blob(700_000).await)).await;
    app.received(1).await;
    agent.counted("passerelle_agent_spool_bytes", 700_000.0).await;
    let second = hub.api.submit(&telling("orders/2", blob(600_000).await)).await;
    agent.counted(BUSY, 1.0).await;
    // What can never fit is no matter of waiting.
    let never = hub.api.run(&telling("orders/3", blob(1_100_000).await)).await;
    assert_eq!((never["state"].as_str(), code(&never)), (Some("failed"), "too_large"), "{never:#}");
    app.release();
    for id in [&first, &second] {
        let done = hub.api.end_of(id, Duration::from_secs(90)).await;
        assert_eq!(done["state"], "succeeded", "{done:#}");
        assert_eq!(done["attempts"].as_array().unwrap().last().unwrap()["effect"], "applied", "{done:#}");
    }
    assert_eq!(app.requests().len(), 2);
    until("the spool to be empty", PATIENCE, async || {
        (agent.metric("passerelle_agent_spool_bytes").await < 1.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_past_the_spools_quota_is_too_large_and_leaves_nothing_behind() {
    let hub = Hub::start().await;
    let files = tempfile::tempdir().unwrap();
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.resource("compta", &resources::folder("compta", files.path()));
    agent.agent_key("spool_quota = \"1MiB\"").start().await;
    // A drop does not pass through the spool.
    let source = tempfile::tempdir().unwrap();
    let blob = hub.api.upload(&Content::write(source.path(), 3_000_000)).await;
    hub.api.succeed(&drop_into("compta", "a.bin", json!({"blob": blob["id"]}))).await;
    let fetch = crate::common::job("compta", "fetch", json!({"path": "a.bin"}));
    let done = hub.api.run(&fetch).await;
    assert_eq!((done["state"].as_str(), code(&done)), (Some("failed"), "too_large"), "{done:#}");
    assert!(agent.metric("passerelle_agent_spool_bytes").await < 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_the_program_that_only_the_start_needed_are_given_back_and_it_goes_on() {
    let mut site = Site::start().await;
    let process = site.agent.process();
    let (now, peak) = until("memory to be given back", PATIENCE, async || {
        let (now, peak) = (process.memory_kib("VmRSS"), process.memory_kib("VmHWM"));
        (now * 4 < peak * 3).then_some((now, peak))
    })
    .await;
    println!("an idle agent: {now} KiB resident, {peak} KiB at its start");
    site.hub.api.succeed(&drop_job("a.csv", "x")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_state_folder_is_gone_takes_no_more_jobs() {
    let mut site = Site::start().await;
    std::fs::remove_dir_all(site.agent.folder().join("state")).unwrap();
    until("the agent to be unready", PATIENCE, async || {
        (site.agent.readiness().await == Some(503)).then_some(())
    })
    .await;
    let id = site.hub.api.submit(&drop_job("a.csv", "x")).await;
    // Declined, over and over.
    let declined = |job: &Value| ["queued", "waiting"].contains(&job["state"].as_str().unwrap_or_default());
    site.hub.api.job_where(&id, "waits", PATIENCE, declined).await;
    assert!(site.agent.process().log().contains("The state folder was removed or replaced"));
    assert!(!site.files.path().join("a.csv").exists());
}
