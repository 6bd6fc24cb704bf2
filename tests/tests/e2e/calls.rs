//! Real-time calls through real processes: what they give back, how they fail, and that nothing of them stays but a row
//! of the audit.

use crate::{
    audit::{rows, verify},
    common::{SITE, Site, files_below, job, notify_job, with},
};
use futures_util::future::join_all;
use passerelle_tests::{Agent, Answer, Content, Hub, PATIENCE, Reply, TENANT, code, resources, until};
use reqwest::Method;
use rusqlite::Connection;
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

async fn call(site: &Site, body: &Value) -> Answer {
    site.hub.api.post("/v1/calls", body).await
}

/// A call that must succeed.
async fn done(site: &Site, body: &Value) -> Value {
    let answer = call(site, body).await;
    assert_eq!(answer.status, 200, "{body}: {:#}", answer.body);
    answer.body
}

#[track_caller]
fn refused(answer: &Answer, status: u16, expected: &str, effect: &str) {
    let body = &answer.body;
    assert_eq!((answer.status, code(body)), (status, expected), "{body:#}");
    assert_eq!(body["effect"].as_str().unwrap_or_default(), effect, "{body:#}");
    assert!(body["detail"].as_str().is_some_and(|detail| detail.contains(' ')), "{body:#}");
}

fn get(path: &str) -> Value {
    job("orders-app", "request", json!({"method": "GET", "path": path}))
}

/// How many rows the tables have together.
fn rows_in(database: &Path, tables: &[&str]) -> i64 {
    let db = Connection::open(database).expect("a database");
    let count = |table: &&str| -> i64 {
        db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("a count")
    };
    tables.iter().map(count).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_answer_at_once_and_leave_nothing_behind_but_their_rows_of_the_audit() {
    let mut site = Site::with_app(|request, _| match request.uri.as_str() {
        "/binary" => Reply::status(200).body([0xff, 0, 1]),
        _ => Reply::status(200).header("content-type", "text/plain").body("Zürich"),
    })
    .await;
    let answer = done(&site, &get("articles/42")).await;
    assert_eq!((&answer["result"]["status"], &answer["output"]["text"]), (&json!(200), &json!("Zürich")));
    assert_eq!(answer["output"]["size"], json!(7), "{answer:#}");
    assert_eq!(done(&site, &get("binary")).await["output"]["base64"], "/wAB");
    let notified = done(&site, &notify_job("orders/42/validated")).await;
    assert_eq!(notified["result"], json!({"status": 200}));
    assert_eq!(site.app.requests()[2].header("idempotency-key"), notified["id"]);

    fs::write(site.files.path().join("small.csv"), "a;b\n").unwrap();
    let large = Content::write(site.files.path(), 5 << 20);
    let name = large.path.file_name().unwrap().to_str().unwrap();
    let listed = done(&site, &job("compta", "list", json!({}))).await;
    assert_eq!(listed["result"]["items"].as_array().unwrap().len(), 2, "{listed:#}");
    let stat = done(&site, &job("compta", "stat", json!({"path": "small.csv"}))).await;
    assert_eq!(stat["result"]["size"], json!(4));
    let fetched = done(&site, &job("compta", "fetch", json!({"path": "small.csv"}))).await;
    assert_eq!(fetched["output"]["text"], "a;b\n", "{fetched:#}");
    // A large output comes as a blob that is there for a while.
    let fetched = done(&site, &job("compta", "fetch", json!({"path": name}))).await;
    assert_eq!(fetched["output"]["sha256"], json!(large.sha256), "{fetched:#}");
    assert!(fetched["output"]["text"].is_null() && fetched["output"]["base64"].is_null(), "{fetched:#}");
    let blob = format!("/v1/blobs/{}", fetched["output"]["blob"].as_str().unwrap());
    let content = site.hub.api.request(Method::GET, &blob).send().await.unwrap();
    assert_eq!(Content::digest(&content.bytes().await.unwrap()), large.sha256);
    let part = site.hub.api.request(Method::GET, &blob).header("range", "bytes=5-14").send().await.unwrap();
    assert_eq!((part.status().as_u16(), part.bytes().await.unwrap().len()), (206, 10));
    site.hub.admin(&["tenant", "create", "other", "--tier", "enterprise"]);
    let stranger = site.hub.api.with_key(&site.hub.api_key("other", "blobs:write"));
    assert_eq!(stranger.get(&blob).await.status, 404, "another tenant reads it");

    // A large payload is uploaded before, whatever takes it.
    let payload = Content::write(site.hub.data(), 300_000);
    let uploaded = site.hub.api.upload(&payload).await;
    let by_blob = json!({"payload": {"blob": uploaded["id"], "media_type": "text/csv"}});
    let dropped = done(
        &site,
        &with(job("compta", "drop", json!({"path": "in/a.csv", "create_dirs": true})), by_blob.clone()),
    )
    .await;
    assert_eq!(dropped["result"]["sha256"], json!(payload.sha256), "{dropped:#}");
    let post = job("orders-app", "request", json!({"method": "POST", "path": "import"}));
    done(&site, &with(post, by_blob)).await;
    assert_eq!(Content::digest(&site.app.requests().last().unwrap().body), payload.sha256);
    let inline = json!({"payload": {"text": "x".repeat(300_000)}});
    let drop = with(job("compta", "drop", json!({"path": "in/b.csv"})), inline);
    refused(&call(&site, &drop).await, 413, "too_large", "");
    assert_eq!(
        done(&site, &job("compta", "move", json!({"from": "in/a.csv", "to": "b.csv"}))).await["result"]["path"],
        "b.csv"
    );
    assert_eq!(
        done(&site, &job("compta", "delete", json!({"path": "b.csv"}))).await["result"]["deleted"],
        true
    );
    // Nobody would keep the only copy.
    let taken = call(&site, &job("compta", "fetch", json!({"path": "small.csv", "then": "delete"}))).await;
    refused(&taken, 502, "target_unsupported", "not_applied");
    assert_eq!(files_below(site.files.path()), [name, "small.csv"]);

    // The hub has nothing of them, the agent a row each.
    assert_eq!(site.hub.api.get("/v1/jobs").await.body["items"], json!([]));
    let told = until("the row of the last call", PATIENCE, async || {
        let rows = rows(&site.agent);
        rows.iter().any(|row| row["code"] == "target_unsupported").then_some(rows)
    })
    .await;
    let of = |answer: &Value| -> Vec<Value> {
        told.iter().filter(|row| row["job"] == answer["id"]).cloned().collect()
    };
    let of_drop = of(&dropped);
    assert_eq!(of_drop.len(), 1, "{of_drop:#?}");
    assert_eq!(
        (&of_drop[0]["kind"], &of_drop[0]["rule"], &of_drop[0]["effect"]),
        (&json!("succeeded"), &json!("compta#1"), &json!("applied"))
    );
    assert_eq!(of_drop[0]["detail"], "call: path \"in/a.csv\"");
    let (verdict, exit) = verify(&site.agent, &[]);
    assert_eq!((&verdict["ok"], exit), (&json!(true), 0), "{verdict:#}");
    assert!(
        site.agent.metric("passerelle_agent_calls_total{connector=\"file\",outcome=\"succeeded\"}").await
            >= 7.0
    );
    site.agent.process().kill();
    assert_eq!(rows_in(&site.agent.folder().join("state/journal.db"), &["attempts"]), 0);
    assert_eq!(fs::read_dir(site.agent.folder().join("state/spool")).unwrap().count(), 0);
    assert_eq!(rows_in(&site.hub.data().join("hub.sqlite"), &["jobs", "attempts", "uploads"]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_cannot_be_carried_out_says_why_and_that_nothing_happened() {
    let mut site = Site::with_app(|_, _| Reply::status(422)).await;
    let denied = job("orders-app", "request", json!({"method": "PATCH", "path": "a"}));
    refused(&call(&site, &denied).await, 403, "policy_denied", "not_applied");
    let climbs = job("compta", "stat", json!({"path": "../a"}));
    refused(&call(&site, &climbs).await, 403, "path_invalid", "not_applied");
    refused(&call(&site, &job("compta", "stat", json!({}))).await, 422, "invalid_params", "not_applied");
    refused(&call(&site, &job("compta", "teleport", json!({}))).await, 422, "invalid_params", "not_applied");
    refused(&call(&site, &notify_job("orders/1")).await, 502, "target_refused", "not_applied");
    let absent = job("compta", "fetch", json!({"path": "absent.csv"}));
    refused(&call(&site, &absent).await, 502, "target_not_found", "not_applied");
    let unknown = with(get("a"), json!({"site": "lyon"}));
    refused(&call(&site, &unknown).await, 404, "site_unknown", "");
    let nowhere = job("nothing", "list", json!({}));
    refused(&call(&site, &nowhere).await, 503, "agent_offline", "not_applied");
    for (more, field) in [
        (json!({"timeout_s": 61}), "timeout_s"),
        (json!({"deadline_s": 0}), "deadline_s"),
        (json!({"max_attempts": 2}), "max_attempts"),
        (json!({"order_key": "a"}), "order_key"),
        (json!({"envelope": "x"}), "envelope"),
    ] {
        let answer = call(&site, &with(get("a"), more)).await;
        refused(&answer, 400, "bad_request", "");
        assert!(answer.body["detail"].as_str().unwrap().contains(field), "{:#}", answer.body);
    }
    let reader = site.hub.api.with_key(&site.hub.api_key(TENANT, "jobs:read"));
    refused(&reader.post("/v1/calls", &get("a")).await, 403, "forbidden", "");

    // The owner's pause counts for calls too, and says until when.
    let paused = site.agent.output(&["pause", "compta", "--until", "2h", "--reason", "stock-taking"]);
    assert!(paused.status.success(), "{paused:?}");
    let list = job("compta", "list", json!({}));
    // The agent opens its session anew to tell it.
    let answer = until("the hub to know of the pause", PATIENCE, async || {
        let answer = call(&site, &list).await;
        (code(&answer.body) == "paused").then_some(answer)
    })
    .await;
    refused(&answer, 503, "paused", "not_applied");
    let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3000..=7200).contains(&wait) || wait == 3600, "{wait}");
    assert!(site.agent.output(&["resume", "compta"]).status.success());
    until("calls after the pause", PATIENCE, async || (call(&site, &list).await.status == 200).then_some(()))
        .await;

    site.agent.process().kill();
    until("the agent to be offline", PATIENCE, async || {
        let answer = call(&site, &list).await;
        (code(&answer.body) == "agent_offline").then_some(answer)
    })
    .await;
    let answer = call(&site, &list).await;
    refused(&answer, 503, "agent_offline", "not_applied");
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_or_is_too_slow_gives_a_gateway_timeout_with_its_effect() {
    let mut site = Site::with_app(|_, _| Reply::status(200).held()).await;
    let started = Instant::now();
    let slow = call(&site, &with(notify_job("orders/1"), json!({"timeout_s": 1}))).await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    refused(&slow, 504, "target_timeout", "unknown");
    let (api, body) = (site.hub.api.clone(), notify_job("orders/2"));
    let waiting = tokio::spawn(async move { api.post("/v1/calls", &body).await });
    site.app.received(2).await;
    site.agent.process().kill();
    let started = Instant::now();
    refused(&waiting.await.unwrap(), 504, "agent_lost", "unknown");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    // It is not carried out after all by the next process.
    site.app.release();
    site.agent.start().await;
    until("the agent to take calls again", PATIENCE, async || {
        (call(&site, &job("compta", "list", json!({}))).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(site.app.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_that_is_cut_off_by_a_crash_leaves_no_part_for_long() {
    let mut site = Site::start().await;
    let payload = Content::write(site.hub.data(), 64 << 20);
    let blob = site.hub.api.upload(&payload).await["id"].clone();
    let body = with(job("compta", "drop", json!({"path": "a.bin"})), json!({"payload": {"blob": blob}}));
    let api = site.hub.api.clone();
    let waiting = tokio::spawn(async move { api.post("/v1/calls", &body).await });
    until("the part", PATIENCE, async || {
        files_below(site.files.path()).iter().any(|name| name.ends_with(".part")).then_some(())
    })
    .await;
    site.agent.process().kill();
    let answer = waiting.await.unwrap();
    let left = files_below(site.files.path());
    if left == ["a.bin"] {
        // It was quicker than the test.
        return;
    }
    refused(&answer, 504, "agent_lost", "unknown");
    site.agent.start().await;
    until("the part to be swept", PATIENCE, async || files_below(site.files.path()).is_empty().then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_stops_the_call_at_the_target() {
    let site = Site::with_app(|_, _| Reply::status(200).held()).await;
    let request = site.hub.api.request(Method::POST, "/v1/calls").json(&get("articles/1"));
    let caller = tokio::spawn(request.send());
    site.app.received(1).await;
    assert_eq!(site.app.at_once(), 1);
    caller.abort();
    until("the request at the target to be dropped", PATIENCE, async || {
        (site.app.at_once() == 0).then_some(())
    })
    .await;
    site.agent.counted("passerelle_agent_calls_total{connector=\"http\",outcome=\"cancelled\"}", 1.0).await;
    // The place is free again.
    site.app.release();
    done(&site, &get("articles/2")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_on_while_another_resource_is_paused() {
    let site = Site::with_app(|request, _| match request.uri.as_str() {
        "/long" => Reply::status(200).held(),
        _ => Reply::status(200),
    })
    .await;
    let (api, body) = (site.hub.api.clone(), get("long"));
    let long = tokio::spawn(async move { api.post("/v1/calls", &body).await });
    site.app.received(1).await;
    let paused = site.agent.output(&["pause", "compta"]);
    assert!(paused.status.success(), "{}", String::from_utf8_lossy(&paused.stderr));
    // Here it counts at once, and calls of others are taken as before; the hub is told when there is a moment without one.
    let stat = json!({"site": SITE, "resource": "compta", "operation": "stat", "params": {"path": "a.csv"}});
    refused(&call(&site, &stat).await, 503, "paused", "not_applied");
    let begun = Instant::now();
    until("longer than calls had before they were cut", PATIENCE, async || {
        done(&site, &get("short")).await;
        (begun.elapsed() > Duration::from_secs(3)).then_some(())
    })
    .await;
    site.app.release();
    let answer = long.await.unwrap();
    assert_eq!(answer.status, 200, "{:#}", answer.body);
    until("the hub to know", PATIENCE, async || {
        let resources = site.hub.api.get(&format!("/v1/sites/{SITE}/resources")).await.body;
        let items = resources["items"].as_array().cloned().unwrap_or_default();
        items.iter().any(|item| item["name"] == "compta" && !item["paused"].is_null()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_calls_at_once_keep_to_the_limits_of_the_resource() {
    let mut site = Site::prepared(|_, _| Reply::status(200).after(Duration::from_millis(20))).await;
    let limits = "limits = { max_concurrent = 5 }";
    site.agent.resource("orders-app", &resources::application_with("orders-app", &site.app.url, limits));
    site.agent.start().await;
    let path = |n: usize| format!("articles/{n}");
    let (calls, jobs) = tokio::join!(
        join_all((0..64).map(|n| {
            let (site, body) = (&site, get(&path(n)));
            async move { done(site, &body).await }
        })),
        join_all((0..16).map(|_| {
            let api = &site.hub.api;
            async move { api.submit(&notify_job("orders/1")).await }
        })),
    );
    assert_eq!((calls.len(), jobs.len()), (64, 16));
    for id in jobs {
        assert_eq!(site.hub.api.end_of(&id, PATIENCE).await["state"], "succeeded");
    }
    assert_eq!(site.app.requests().len(), 80);
    assert!(site.app.most_at_once() <= 5, "{} at once", site.app.most_at_once());

    // Past what the agent takes a call is told so, at once; an agent may take none at all.
    site.agent.agent_key("max_calls = 0");
    site.agent.restart().await;
    until("the hub to know", PATIENCE, async || (call(&site, &get("a")).await.status == 501).then_some(()))
        .await;
    refused(&call(&site, &get("a")).await, 501, "not_implemented", "not_applied");
    site.hub.api.succeed(&notify_job("orders/2")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_does_not_come_in_time_is_a_deadline_and_what_is_full_is_busy() {
    let mut site = Site::prepared(|_, _| Reply::status(200).held()).await;
    let limits = "limits = { max_concurrent = 1 }";
    site.agent.resource("orders-app", &resources::application_with("orders-app", &site.app.url, limits));
    site.agent.agent_key("max_calls = 1").start().await;
    let (api, body) = (site.hub.api.clone(), get("a"));
    let first = tokio::spawn(async move { api.post("/v1/calls", &body).await });
    site.app.received(1).await;
    let busy = call(&site, &get("b")).await;
    refused(&busy, 503, "busy", "not_applied");
    assert_eq!(busy.headers["retry-after"], "1");
    site.app.release();
    assert_eq!(first.await.unwrap().status, 200);

    let site = Site::with_app(|_, _| Reply::status(200).held()).await;
    let holders: Vec<_> = (0..4)
        .map(|n| {
            let (api, body) = (site.hub.api.clone(), get(&format!("a/{n}")));
            tokio::spawn(async move { api.post("/v1/calls", &body).await })
        })
        .collect();
    site.app.received(4).await;
    refused(&call(&site, &with(get("b"), json!({"deadline_s": 1}))).await, 504, "deadline", "not_applied");
    site.app.release();
    for holder in holders {
        assert_eq!(holder.await.unwrap().status, 200);
    }
    assert_eq!(site.app.requests().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_agents_the_one_that_is_there_answers() {
    let hub = Hub::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut agents = Vec::new();
    for name in ["paris-1", "paris-2"] {
        let mut agent = Agent::new(&hub, SITE, name);
        agent.resource("compta", &resources::folder("compta", folder.path()));
        agent.start().await;
        agents.push(agent);
    }
    hub.api.agents_online(SITE, 2).await;
    let drop = |n: usize| {
        with(job("compta", "drop", json!({"path": format!("{n}.csv")})), json!({"payload": {"text": "x"}}))
    };
    let all = join_all((0..16).map(|n| {
        let (api, body) = (hub.api.clone(), drop(n));
        async move { api.post("/v1/calls", &body).await.status }
    }))
    .await;
    assert_eq!(all, [200; 16]);
    agents[0].process().kill();
    until("the other agent to answer alone", PATIENCE, async || {
        (hub.api.post("/v1/calls", &drop(16)).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(files_below(folder.path()).len(), 17);
}
