//! A durable job from submission to outcome (`http notify`), beside a direct call to the same application.

use crate::{
    Effort, baseline,
    line::{Line, Target},
    load::{PAYLOAD, Site, many},
};
use passerelle_tests::http_client;
use serde_json::json;
use std::time::Duration;

const CONCURRENT: usize = 32;

/// Measures at concurrency 1 and 32.
pub async fn measure(effort: Effort) -> Vec<Line> {
    let site = Site::start(1, 2 * CONCURRENT).await;
    let (hub, app) = (&site.hub, &site.app);
    let client = http_client();
    let submit = || site.submit_and_wait();
    let direct = || {
        let request = client.post(format!("{}orders/42/validated", app.url)).body(PAYLOAD);
        async move {
            assert!(request.send().await.expect("an answer").status().is_success());
        }
    };
    // Connections are made and caches filled before anything counts.
    many(CONCURRENT, CONCURRENT * 4, &submit).await;
    many(CONCURRENT, CONCURRENT * 4, &direct).await;

    let sync = baseline::fdatasync(hub.data(), effort.repetitions).p50();
    let (alone, _) = many(1, effort.repetitions, &submit).await;
    let (direct_alone, _) = many(1, effort.repetitions, &direct).await;
    let commits = baseline::sqlite_commits(hub.data(), effort.repetitions * 2);
    let (hub_before, agent_before) = site.cpu();
    let (crowd, took) = many(CONCURRENT, effort.repetitions * 4, &submit).await;
    let (hub_after, agent_after) = site.cpu();
    let per_job = |spent: Duration| spent.as_secs_f64() * 1e6 / (effort.repetitions * 4) as f64;
    let (direct_crowd, direct_took) = many(CONCURRENT, effort.repetitions * 4, &direct).await;
    let rate = (effort.repetitions * 4) as f64 / took.as_secs_f64();
    let direct_rate = (effort.repetitions * 4) as f64 / direct_took.as_secs_f64();

    let line = |name: &str, value, baseline: (&str, f64), target, more| Line {
        name: name.to_owned(),
        value,
        baseline: (baseline.0.to_owned(), baseline.1),
        target,
        more,
    };
    let rule = |target, text: &str| Some((target, text.to_owned()));
    vec![
        line(
            "notify_p50_ms_at_1",
            alone.p50(),
            ("fdatasync_p50_ms", sync),
            rule(Target::AtMost(5.0 * sync + 1.0), "5 × fdatasync + 1 ms"),
            json!({"direct_p50_ms": direct_alone.p50()}),
        ),
        line("notify_p99_ms_at_1", alone.p99(), ("direct_p99_ms", direct_alone.p99()), None, json!({})),
        line("notify_p50_ms_at_32", crowd.p50(), ("direct_p50_ms", direct_crowd.p50()), None, json!({})),
        line("notify_p99_ms_at_32", crowd.p99(), ("direct_p99_ms", direct_crowd.p99()), None, json!({})),
        line(
            "durable_jobs_per_s_at_32",
            rate,
            ("sqlite_plain_full_commits_per_s", commits.plain),
            rule(Target::AtLeast(2.0 * commits.plain), "2 × commits of a plain SQLite loop"),
            json!({
                "direct_calls_per_s": direct_rate, "sqlite_wal_full_commits_per_s": commits.wal,
                "hub_cpu_us_per_job": per_job(hub_after - hub_before),
                "agent_cpu_us_per_job": per_job(agent_after - agent_before),
            }),
        ),
    ]
}
