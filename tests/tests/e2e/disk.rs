//! A disk is full, the hub's, a target's or the agent's: it is said, what can be served still is, and nothing is forgotten.

use crate::common::{SITE, drop_into};
use passerelle_tests::{
    Agent, Content, Hub, PATIENCE, SmallDisk, code, free_port, http_client, is_root, resources, until,
};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};
use tokio::task::JoinSet;

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
    until("the hub to take work again", Duration::from_secs(30), async || {
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

#[tokio::test(flavor = "multi_thread")]
async fn small_posts_leave_the_agents_journal_the_room_to_note_that_the_hub_has_them() {
    if !is_root() {
        eprintln!("not root: left out, since no small disk can be mounted");
        return;
    }
    let disk = SmallDisk::mount("24m");
    let mut hub = Hub::start().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    let port = free_port();
    agent.secret("till", "t0ken-of-the-till");
    let auth = "auth = { kind = \"token\", token = { file = \"secrets/till\" } }";
    agent.resource("till", &format!("[listeners.till]\nlisten = \"127.0.0.1:{port}\"\n{auth}\n"));
    agent.agent_key(&format!("state_dir = \"{}\"", disk.path().join("state").display())).start().await;
    let (http, url) = (http_client(), format!("http://127.0.0.1:{port}/till"));
    let post = |key: usize| {
        let request =
            http.post(&url).bearer_auth("t0ken-of-the-till").header("idempotency-key", key.to_string());
        let request = request.body(vec![b'x'; 100_000]).send();
        async move { request.await.expect("an answer") }
    };
    until("the listener", PATIENCE, async || http.get(&url).send().await.ok()).await;
    hub.process.kill();
    let (mut taken, mut refused) = (BTreeSet::new(), None::<Response>);
    // Some at once, and faster than anybody looks at the disk.
    for first in (0..600).step_by(6) {
        let posts: JoinSet<Response> = (first..first + 6).map(post).collect();
        for answer in posts.join_all().await {
            if answer.status() == StatusCode::ACCEPTED {
                let body: Value = answer.json().await.unwrap();
                assert!(taken.insert(body["id"].as_str().unwrap().to_owned()));
            } else {
                refused = Some(answer);
            }
        }
    }
    let refused = refused.expect("60 MB were taken on a disk of 24 MiB");
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    let body: Value = refused.json().await.unwrap();
    assert_eq!(code(&body), "quota", "{body}");
    assert!(body["detail"].as_str().unwrap().contains("almost full"), "{body}");
    let left = rustix::fs::statvfs(disk.path()).unwrap();
    let left = left.f_bavail * left.f_frsize;
    println!("{} posts were taken, {left} bytes are left", taken.len());
    assert!(left > 2 * 1024 * 1024 && taken.len() > 50, "{left} bytes are left, {} taken", taken.len());
    hub.restart().await;
    let events = until("all events", Duration::from_secs(90), async || {
        let (mut items, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = hub.api.get(&format!("/v1/events/received?kind=notification&limit=500{cursor}")).await;
            items.extend(page.body["items"].as_array().expect("items").iter().cloned());
            match page.body["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        (items.len() >= taken.len()).then_some(items)
    })
    .await;
    let ids: BTreeSet<String> = events.iter().map(|e| e["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!((events.len(), &ids), (taken.len(), &taken));
    agent.ready().await;
    // The room that they took is given back, without a restart.
    until("posts to be taken again", Duration::from_secs(60), async || {
        (post(1000).await.status() == StatusCode::ACCEPTED).then_some(())
    })
    .await;
    assert!(agent.process().log().matches("cannot be noted").count() < 20);
}
