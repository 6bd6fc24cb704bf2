//! The hub's disk is full: it says so, keeps serving what it can, and forgets nothing.

use crate::common::{SITE, drop_into};
use passerelle_tests::{Agent, Content, Hub, SmallDisk, code, is_root, resources};
use reqwest::Method;
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_hub_refuses_work_and_loses_none() {
    if !is_root() {
        eprintln!("not root: left out, since no small disk can be mounted");
        return;
    }
    let disk = SmallDisk::mount("24m");
    let mut hub = Hub::start_in(&disk.path().join("data")).await;
    let files = tempfile::tempdir().unwrap();
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.resource("compta", &resources::folder("compta", files.path()));
    agent.start().await;
    let drop = |path: &str| drop_into("compta", path, json!({"text": "x"}));
    let before = hub.api.succeed(&drop("before.csv")).await;
    agent.kill();
    hub.api.agents_online(SITE, 0).await;
    let queued = hub.api.submit(&drop("queued.csv")).await;
    disk.fill();
    let content = Content::write(files.path(), 1_000_000);
    let body = std::fs::read(&content.path).unwrap();
    std::fs::remove_file(&content.path).unwrap();
    let blob = hub.api.send(hub.api.request(Method::POST, "/v1/blobs").body(body.clone())).await;
    assert_eq!((blob.status, code(&blob.body)), (507, "quota"), "{blob:?}");
    assert!(
        blob.body["detail"].as_str().is_some_and(|d| d.contains("disk") || d.contains("space")),
        "{blob:?}"
    );
    let arriving = || std::fs::read_dir(hub.data().join("uploads")).unwrap().count();
    assert_eq!(arriving(), 0, "half a blob was left");
    let mut refused = None;
    let mut taken = Vec::new();
    for n in 0..200 {
        let answer = hub.api.post("/v1/jobs", &drop(&format!("{n}.csv"))).await;
        match answer.status {
            201 => taken.push(answer.body["id"].as_str().unwrap().to_owned()),
            _ => {
                refused = Some(answer);
                break;
            }
        }
    }
    let refused = refused.expect("two hundred jobs were stored on a full disk");
    assert_eq!((refused.status, code(&refused.body)), (507, "quota"), "{refused:?}");
    assert!(hub.process.is_running());
    assert_eq!(hub.api.job(before["id"].as_str().unwrap()).await, before);
    disk.free();
    passerelle_tests::until("the hub to take work again", Duration::from_secs(30), async || {
        let blob = hub.api.send(hub.api.request(Method::POST, "/v1/blobs").body(body.clone())).await;
        (blob.status == 201).then_some(())
    })
    .await;
    agent.start().await;
    taken.push(queued);
    taken.push(hub.api.submit(&drop("after.csv")).await);
    for id in &taken {
        hub.api.reach(id, &["succeeded"]).await;
    }
    hub.restart().await;
    for id in &taken {
        assert_eq!(hub.api.job(id).await["state"], "succeeded");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_target_is_told_and_leaves_no_part() {
    if !is_root() {
        eprintln!("not root: left out, since no small disk can be mounted");
        return;
    }
    let disk = SmallDisk::mount("4m");
    let hub = Hub::start().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.resource("compta", &resources::folder("compta", disk.path()));
    agent.start().await;
    let source = tempfile::tempdir().unwrap();
    let blob = hub.api.upload(&Content::write(source.path(), 6_000_000)).await;
    let job = crate::common::with(
        drop_into("compta", "a.bin", json!({"blob": blob["id"]})),
        json!({"max_attempts": 2}),
    );
    let done = hub.api.run(&job).await;
    assert_eq!((done["state"].as_str(), code(&done)), (Some("failed"), "target_full"), "{done:#}");
    assert_eq!(crate::common::files_below(disk.path()), Vec::<String>::new());
    hub.api.succeed(&drop_into("compta", "small.csv", json!({"text": "x"}))).await;
}
