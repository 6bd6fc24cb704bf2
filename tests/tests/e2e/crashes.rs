//! Processes that die at the worst moment: nothing is lost, nothing happens twice.

use crate::common::{SITE, Site, drop_into, drop_job, files_below, job, notify_job, with};
use passerelle_tests::{Agent, Content, Hub, Proxy, Random, Reply, SshServer, ended};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_under_way_is_finished_once_after_the_agent_was_killed() {
    let (hub, ssh) = (Hub::start().await, SshServer::start());
    let slow = Proxy::start(ssh.port()).await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    ssh.serve_through(&agent, "sftp", slow.port());
    agent.start().await;
    let source = tempfile::tempdir().unwrap();
    let content = Content::write(source.path(), 8_000_000);
    let blob = hub.api.upload(&content).await;
    slow.slow(Some(500_000));
    let id = hub.api.submit(&drop_into("sftp", "a.bin", json!({"blob": blob["id"]}))).await;
    let moving = |j: &Value| j["state"] == "running" && j["progress"]["bytes_done"].as_u64() > Some(0);
    hub.api.job_where(&id, "moves bytes", Duration::from_secs(60), moving).await;
    agent.kill();
    assert!(!ssh.root().join("a.bin").exists(), "the file was there before it was whole");
    slow.slow(None);
    agent.start().await;
    let done = hub.api.end_of(&id, Duration::from_secs(60)).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    let arrived = Content::of_file(&ssh.root().join("a.bin"));
    assert_eq!((arrived.size, arrived.sha256), (content.size, content.sha256));
    assert_eq!(files_below(ssh.root()), ["a.bin"], "leftovers of the first try");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_application_was_being_told_is_repeated_with_the_same_key_after_the_agent_was_killed() {
    for job in
        [notify_job("orders/42"), job("orders-app", "request", json!({"method": "POST", "path": "orders"}))]
    {
        let mut site = Site::with_app(|_, before| {
            let reply = Reply::status(200);
            if before == 0 { reply.held() } else { reply }
        })
        .await;
        let id = site.hub.api.submit(&job).await;
        site.app.received(1).await;
        site.agent.restart().await;
        let done = site.hub.api.end_of(&id, Duration::from_secs(60)).await;
        assert_eq!(done["state"], "succeeded", "{done:#}");
        let seen = site.app.requests();
        assert_eq!(seen.len(), 2);
        assert!(seen.iter().all(|r| r.header("idempotency-key") == id), "{seen:?}");
        assert_eq!(seen[0].body, seen[1].body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_hub_loses_no_job_and_runs_none_again() {
    let mut site = Site::with_app(|_, _| Reply::status(200).held()).await;
    let finished = site.hub.api.succeed(&drop_job("finished.csv", "x")).await;
    fs::remove_file(site.files.path().join("finished.csv")).unwrap();
    let running = site.hub.api.submit(&notify_job("orders/1")).await;
    site.app.received(1).await;
    site.hub.api.reach(&running, &["running"]).await;
    let queued =
        site.hub.api.submit(&with(drop_job("queued.csv", "x"), json!({"resource": "not-yet"}))).await;
    site.hub.restart().await;
    assert_eq!(site.hub.api.job(finished["id"].as_str().unwrap()).await, finished);
    assert_eq!(site.hub.api.job(&queued).await["state"], "queued");
    site.agent.ready().await;
    assert!(!ended(&site.hub.api.job(&running).await));
    site.app.release();
    let done = site.hub.api.end_of(&running, Duration::from_secs(60)).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(done["attempts"].as_array().unwrap().len(), 1, "{done:#}");
    site.hub.api.succeed(&drop_job("after.csv", "x")).await;
    assert_eq!(site.app.requests().len(), 1, "the running job was run again");
    assert_eq!(files_below(site.files.path()), ["after.csv"], "the finished job was run again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_reached_while_the_hub_was_away_is_reported_later() {
    let mut site = Site::with_app(|_, _| Reply::status(200).held()).await;
    let id = site.hub.api.submit(&notify_job("orders/1")).await;
    site.app.received(1).await;
    site.hub.process.kill();
    site.app.release();
    // The agent too is restarted while it holds a finished job: the journal alone reports it.
    passerelle_tests::until("the agent to be unready", passerelle_tests::PATIENCE, async || {
        (site.agent.readiness().await == Some(503)).then_some(())
    })
    .await;
    site.hub.restart().await;
    let done = site.hub.api.end_of(&id, Duration::from_secs(60)).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(site.app.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_submissions_survives_a_killed_hub() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    let api = site.hub.api.clone();
    let submitting = tokio::spawn(async move {
        let mut taken = Vec::new();
        for n in 0..400 {
            let request =
                api.request(reqwest::Method::POST, "/v1/jobs").json(&drop_job(&format!("{n}.csv"), "x"));
            match api.try_send(request).await {
                Ok(answer) if answer.status == 201 => {
                    taken.push(answer.body["id"].as_str().unwrap().to_owned())
                }
                Ok(answer) => panic!("{answer:?}"),
                Err(_) => break,
            }
        }
        taken
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    site.hub.process.kill();
    let taken = submitting.await.unwrap();
    assert!(!taken.is_empty());
    site.hub.restart().await;
    for id in &taken {
        site.hub.api.job(id).await;
    }
    site.agent.start().await;
    for id in &taken {
        site.hub.api.reach(id, &["succeeded"]).await;
    }
    // One more may have been stored whose answer was lost with the hub.
    let files = files_below(site.files.path()).len();
    assert!(files == taken.len() || files == taken.len() + 1, "{files} files of {} jobs", taken.len());
}

/// Hub and agent are killed at random moments while jobs run. A consumer takes every file away as soon as it sees it,
/// as an import would: a drop that happened twice shows as a file taken twice.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_every_job_happens_once_and_whole() {
    const KILLS: u64 = 12;
    const JOBS_PER_KILL: u64 = 6;
    let mut random = Random::from_environment();
    let mut site = Site::start().await;
    let ssh = SshServer::start();
    ssh.serve_to(&site.agent, "sftp");
    site.agent.restart().await;
    let roots = [site.files.path().to_owned(), ssh.root().to_owned()];
    let mut taken: Vec<(String, String)> = Vec::new();
    let mut take = || {
        for root in &roots {
            for name in files_below(root).into_iter().filter(|n| n.ends_with(".csv") && !n.starts_with('.')) {
                taken.push((name.clone(), fs::read_to_string(root.join(&name)).unwrap()));
                fs::remove_file(root.join(&name)).unwrap();
            }
        }
    };
    let mut expected = BTreeMap::new();
    let mut ids = Vec::new();
    // More attempts than there are kills: each kill may cost one.
    let persistent = |job: Value| with(job, json!({"max_attempts": 50}));
    for n in 0..KILLS * JOBS_PER_KILL {
        // Up to 600 kB: some inside the tunnel, some beside it.
        let text = format!("{n:02}:").repeat(usize::try_from(1 + random.below(200_000)).unwrap());
        let (resource, name) = (if n % 2 == 0 { "compta" } else { "sftp" }, format!("{n}.csv"));
        ids.push(site.hub.api.submit(&persistent(drop_into(resource, &name, json!({"text": text})))).await);
        ids.push(site.hub.api.submit(&persistent(notify_job(&format!("orders/{n}")))).await);
        expected.insert(name, text);
        if n % JOBS_PER_KILL == JOBS_PER_KILL - 1 {
            let until = Instant::now() + Duration::from_millis(random.below(120));
            while Instant::now() < until {
                take();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if random.below(3) == 0 {
                site.hub.restart().await;
            } else {
                site.agent.restart_without_waiting();
            }
        }
    }
    site.agent.ready().await;
    let patience = Instant::now() + Duration::from_secs(120);
    for id in &ids {
        let done = site.hub.api.end_of(id, patience.saturating_duration_since(Instant::now())).await;
        assert_eq!(done["state"], "succeeded", "{done:#}");
        take();
    }
    take();
    taken.sort();
    let mut arrived: Vec<(String, String)> = expected.into_iter().collect();
    arrived.sort();
    let names: Vec<&String> = taken.iter().map(|(name, _)| name).collect();
    assert_eq!(taken.len(), arrived.len(), "files taken: {names:?}");
    assert!(taken == arrived, "a file is not whole");
    let keys: BTreeSet<String> =
        site.app.requests().iter().map(|r| r.header("idempotency-key").to_owned()).collect();
    assert_eq!(keys.len() as u64, KILLS * JOBS_PER_KILL, "a notification is missing, or has a second key");
    // Parts of killed attempts are cleaned up in the end.
    for root in &roots {
        assert_eq!(files_below(root), Vec::<String>::new());
    }
}
