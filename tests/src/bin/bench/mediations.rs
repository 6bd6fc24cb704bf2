//! Mediations: what ten thousand schedules cost an idle hub, how many runs of two jobs a second pass beside plain jobs, and how
//! long a day's runs take to list among many.

use crate::{
    Effort,
    line::{Line, Sorted, Target},
    load::{PAYLOAD, Site, many},
};
use passerelle_tests::{Hub, cpu_time, until};
use serde_json::{Value, json};
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// The clients that start runs at once.
const CLIENTS: usize = 64;
/// What the agent may hold, more than there are clients.
const AT_ONCE: usize = 256;
const DEFINITIONS: &str = "/v1/mediations/definitions";
/// A millisecond count of a day.
const DAY_MS: i64 = 24 * 3600 * 1000;

/// Measures all three.
pub async fn measure(effort: Effort) -> Vec<Line> {
    let mut lines = vec![idle(effort).await, runs(effort).await];
    lines.extend(listing(effort).await);
    lines
}

async fn apply(hub: &Hub, definitions: Vec<Value>) {
    let answer = hub.api.post(DEFINITIONS, &json!({"definitions": definitions})).await;
    assert_eq!(answer.status, 200, "{:#}", answer.body);
}

/// The share of a processor that a hub takes with so many definitions that are due once a day.
async fn idle(effort: Effort) -> Line {
    let (count, over) = if effort.quick { (1_000, 10) } else { (10_000, 60) };
    let hub = Hub::start().await;
    let share = async |seconds: u64| {
        let (before, start) = (cpu_time(hub.process.id()), Instant::now());
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        (cpu_time(hub.process.id()) - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0
    };
    // What was begun at the start has to be over.
    share(2).await;
    let without = share(over).await;
    let definition = |number: usize| {
        let at = format!("{:02}:{:02}", number / 60 % 24, number % 60);
        json!({"name": format!("export-{number}"), "timezone": "Europe/Paris",
               "trigger": {"kind": "schedule", "at": [at]}, "steps": []})
    };
    for first in (0..count).step_by(500) {
        apply(&hub, (first..first + 500).map(definition).collect()).await;
    }
    share(5).await;
    let with = share(over).await;
    Line {
        name: format!("idle_cpu_percent_with_{count}_schedules"),
        value: with,
        baseline: ("idle_cpu_percent_without".to_owned(), without.max(0.001)),
        target: Some((Target::AtMost(1.0), "1 % of a processor".to_owned())),
        more: json!({"over_s": over}),
    }
}

/// Runs of two jobs, from the first start to the last end, beside jobs that are submitted and waited for.
async fn runs(effort: Effort) -> Line {
    let site = Site::start(1, AT_ONCE).await;
    let step = |name: &str| {
        json!({"name": name, "kind": "job", "site": "paris", "resource": "orders-app", "operation": "notify",
               "params": {"path": "orders/42/validated"}, "payload": PAYLOAD, "media_type": "application/json"})
    };
    let definition = json!({"name": "two", "overlap": "parallel", "trigger": {"kind": "manual"},
                            "steps": [step("one"), step("two")]});
    apply(&site.hub, vec![definition]).await;
    let count = (effort.repetitions * 2).next_multiple_of(CLIENTS);
    // Connections are made and caches filled before anything counts.
    site.rate(CLIENTS, CLIENTS * 4).await;
    let jobs = site.rate(CLIENTS, count).await;
    let start = Instant::now();
    let begin = || {
        let request = site.hub.api.request(reqwest::Method::POST, &format!("{DEFINITIONS}/two/run"));
        async move {
            let answer = request.json(&json!({})).send().await.expect("an answer");
            assert_eq!(answer.status(), 201);
        }
    };
    many(CLIENTS, count, &begin).await;
    until("all runs to end", Duration::from_secs(600), async || {
        let mut open = 0;
        for state in ["queued", "running"] {
            let path = format!("/v1/mediations/runs?limit=1&state={state}");
            open += site.hub.api.get(&path).await.body["items"].as_array().expect("a list").len();
        }
        (open == 0).then_some(())
    })
    .await;
    let rate = count as f64 / start.elapsed().as_secs_f64();
    let failed = site.hub.api.get("/v1/mediations/runs?limit=1&state=failed").await.body;
    assert_eq!(failed["items"], json!([]), "{failed:#}");
    Line {
        name: "two_step_runs_per_s".to_owned(),
        value: rate,
        baseline: (format!("durable_jobs_per_s_at_{CLIENTS}"), jobs),
        target: Some((Target::AtLeast(0.3 * jobs), "0.3 × durable jobs a second".to_owned())),
        more: json!({"runs": count, "jobs_of_runs_per_s": 2.0 * rate}),
    }
}

/// The first page of a day among so many runs of thirty days.
async fn listing(effort: Effort) -> Vec<Line> {
    let levels: &[usize] = match (effort.quick, effort.long) {
        (true, _) => &[1_000, 10_000],
        (false, false) => &[1_000, 100_000],
        (false, true) => &[1_000, 100_000, 1_000_000],
    };
    let mut hub = Hub::start().await;
    apply(&hub, vec![json!({"name": "past", "trigger": {"kind": "manual"}, "steps": []})]).await;
    let (mut lines, mut stored, mut first) = (Vec::new(), 0, None);
    for &level in levels {
        hub.process.kill();
        fill(&hub, stored, level);
        stored = level;
        hub.restart().await;
        let now = now_ms();
        let day = AtomicUsize::new(0);
        let list = || {
            // Another day each time: none is served from memory alone.
            let back = i64::try_from(day.fetch_add(1, Ordering::Relaxed) % 28 + 1).unwrap_or(1);
            let at = |ms: i64| jiff::Timestamp::from_millisecond(ms).expect("a time").to_string();
            let (since, until) = (at(now - back * DAY_MS), at(now - (back - 1) * DAY_MS));
            let path = format!("/v1/mediations/runs?since={since}&until={until}");
            let request = hub.api.request(reqwest::Method::GET, &path);
            async move {
                let answer: Value = request.send().await.expect("an answer").json().await.expect("a list");
                assert!(!answer["items"].as_array().expect("a list").is_empty(), "{answer:#}");
            }
        };
        let (times, _): (Sorted, _) = many(1, effort.repetitions / 4, &list).await;
        let base = *first.get_or_insert(times.p50());
        lines.push(Line {
            name: format!("list_a_day_p50_ms_among_{level}_runs"),
            value: times.p50(),
            baseline: (format!("the_same_among_{}", levels[0]), base),
            target: (level != levels[0])
                .then(|| (Target::AtMost(3.0 * base), format!("3 × that among {}", levels[0]))),
            more: json!({"p99_ms": times.p99()}),
        });
    }
    lines
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Puts runs of the past thirty days into the store of a hub that does not run.
fn fill(hub: &Hub, from: usize, to: usize) {
    let database = rusqlite::Connection::open(hub.data().join("hub.sqlite")).expect("the hub's database");
    database
        .execute(
            "INSERT INTO mediation_runs (guid, tenant, definition, version, occurrence, kind, occurred_at, created_at, \
             started_at, finished_at, delete_after, state, position, data) \
             WITH RECURSIVE n (i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?2) \
             SELECT randomblob(16), d.tenant, d.guid, 1, 'past-' || i, 'api', t, t, t, t, t + 40 * ?3, 'succeeded', 0, 'null' \
             FROM (SELECT i, ?4 - (i * 7919 % 30000) * (?3 / 1000) AS t FROM n) CROSS JOIN mediation_definitions d",
            rusqlite::params![
                i64::try_from(from).unwrap_or(0),
                i64::try_from(to).unwrap_or(0),
                DAY_MS,
                now_ms()
            ],
        )
        .expect("runs of the past");
}
