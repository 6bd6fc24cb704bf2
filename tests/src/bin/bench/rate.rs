//! Durable jobs a second (`http notify`, submission to stored outcome) with few and many clients, and one and two agents.

use crate::{
    Effort, baseline,
    line::{Line, Target},
    load::Site,
};
use serde_json::json;

/// The clients that submit at once.
const CLIENTS: [usize; 3] = [1, 8, 64];
/// What one agent may hold, more than there are clients.
const AT_ONCE: usize = 128;
/// The resident memory that an agent may have under this load.
const MEMORY_MIB: f64 = 32.0;

/// Measures in this order, each beside the same baseline.
pub async fn measure(effort: Effort) -> Vec<Line> {
    let mut lines = Vec::new();
    for agents in [1, 2] {
        let mut site = Site::start(agents, AT_ONCE).await;
        let commits = baseline::sqlite_commits(site.hub.data(), effort.repetitions * 2);
        // Connections are made and caches filled before anything counts.
        site.rate(AT_ONCE / 2, AT_ONCE * 2).await;
        for clients in CLIENTS {
            let rate = site.rate(clients, effort.repetitions * clients.min(4)).await;
            let target = (agents == 1 && clients == 64).then(|| {
                (Target::AtLeast(4.0 * commits.plain), "4 × commits of a plain SQLite loop".to_owned())
            });
            lines.push(Line {
                name: format!("durable_jobs_per_s_at_{clients}_with_{agents}_agents"),
                value: rate,
                baseline: ("sqlite_plain_full_commits_per_s".to_owned(), commits.plain),
                target,
                more: json!({"sqlite_wal_full_commits_per_s": commits.wal}),
            });
        }
        if let [agent] = site.agents.as_mut_slice() {
            lines.push(Line {
                name: "agent_loaded_rss_mib".to_owned(),
                value: agent.process().memory_kib("VmRSS") as f64 / 1024.0,
                baseline: ("target_mib".to_owned(), MEMORY_MIB),
                target: Some((Target::AtMost(MEMORY_MIB), "32 MiB".to_owned())),
                more: json!({"peak_mib": agent.process().memory_kib("VmHWM") / 1024}),
            });
        }
    }
    lines
}
