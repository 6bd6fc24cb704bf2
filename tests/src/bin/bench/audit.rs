//! What the audit costs: rows per job, and the time that they take on the journal's one thread.

use crate::{
    Effort,
    line::Line,
    load::{Site, job},
};
use serde_json::json;
use std::time::{Duration, Instant};

/// Measures over many jobs, by the agent's own counters.
pub async fn measure(effort: Effort) -> Vec<Line> {
    let site = Site::remembering(1, 8).await;
    let counters = async || {
        let rows = site.agents[0].metric("passerelle_agent_audit_rows_total").await;
        (rows, site.agents[0].metric("passerelle_agent_audit_write_seconds_total").await)
    };
    let before = counters().await;
    let begun = Instant::now();
    let mut jobs = 0.0;
    for number in 0..effort.repetitions {
        let id = site.hub.api.submit(&job(&number.to_string())).await;
        site.hub.api.end_of(&id, Duration::from_secs(30)).await;
        jobs += 1.0;
    }
    let round_trip_us = begun.elapsed().as_secs_f64() * 1e6 / jobs;
    // The counters are brought up to date once a second.
    site.agents[0].counted("passerelle_agent_audit_rows_total", before.0 + 3.0 * jobs).await;
    let after = counters().await;
    vec![Line {
        name: "audit_per_job_us".to_owned(),
        value: (after.1 - before.1) * 1e6 / jobs,
        baseline: ("round_trip_us".to_owned(), round_trip_us),
        target: None,
        more: json!({ "rows_per_job": (after.0 - before.0) / jobs }),
    }]
}
