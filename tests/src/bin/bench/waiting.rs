//! The memory of agent and hub while many jobs wait.

use crate::{
    Effort,
    line::{Line, Target},
    load::{Site, job},
};
use futures_util::{StreamExt as _, stream};
use passerelle_tests::until;
use serde_json::json;
use std::time::Duration;

/// The resident memory that the agent may have.
const MEMORY_MIB: f64 = 32.0;

/// Measures with an application that does not answer, and the peak when all jobs have run.
pub async fn measure(effort: Effort) -> Vec<Line> {
    let jobs = if effort.quick { 1_000 } else { 10_000 };
    let mut site = Site::held(1, 128).await;
    let idle = site.agents[0].process().memory_kib("VmRSS") as f64 / 1024.0;
    let api = &site.hub.api;
    let ids: Vec<String> = stream::iter(0..jobs)
        .map(|number| async move { api.submit(&job(&number.to_string())).await })
        .buffer_unordered(64)
        .collect()
        .await;
    site.app.received(128).await;
    let waiting = site.agents[0].process().memory_kib("VmRSS") as f64 / 1024.0;
    let hub = site.hub.process.memory_kib("VmRSS") as f64 / 1024.0;
    site.app.release();
    for id in &ids {
        until("a job to end", Duration::from_secs(300), async || {
            let job = site.hub.api.job(id).await;
            (job["state"] == "succeeded").then_some(())
        })
        .await;
    }
    let peak = site.agents[0].process().memory_kib("VmHWM") as f64 / 1024.0;
    vec![Line {
        name: format!("agent_rss_mib_with_{jobs}_jobs_waiting"),
        value: waiting,
        baseline: ("agent_idle_mib".to_owned(), idle),
        target: Some((Target::AtMost(MEMORY_MIB), "32 MiB".to_owned())),
        more: json!({"peak_until_all_ran_mib": peak, "hub_rss_mib": hub}),
    }]
}
