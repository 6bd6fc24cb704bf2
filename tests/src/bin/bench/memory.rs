//! How much memory idle programs hold.

use crate::line::{Line, Target};
use passerelle_tests::{Agent, App, Hub, resources};
use serde_json::json;
use std::time::Duration;

const MIB: f64 = 1024.0;

/// Measures a connected agent with two resources and its hub, before any job.
pub async fn measure() -> Vec<Line> {
    let hub = Hub::start().await;
    let app = App::start().await;
    let files = tempfile::tempdir().expect("a temporary folder");
    let mut agent = Agent::new(&hub, "paris", "paris-1");
    agent.resource("compta", &resources::folder("compta", files.path()));
    agent.resource("orders-app", &resources::application("orders-app", &app.url));
    agent.start().await;
    // Idle is meant: what the start needed may be given back first.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let bare = std::fs::read_to_string("/proc/self/status").expect("the status of this process");
    let own = bare
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().trim_end_matches(" kB").parse::<f64>().ok())
        .expect("VmRSS");
    let agent = agent.process().memory_kib("VmRSS") as f64 / MIB;
    let hub = hub.process.memory_kib("VmRSS") as f64 / MIB;
    let line = |name: &str, value: f64, target| Line {
        name: name.to_owned(),
        value,
        baseline: ("this_benchmark_mib".to_owned(), own / MIB),
        target,
        more: json!({}),
    };
    vec![
        line("agent_idle_rss_mib", agent, Some((Target::AtMost(20.0), "20 MiB".to_owned()))),
        line("hub_idle_rss_mib", hub, None),
    ]
}
