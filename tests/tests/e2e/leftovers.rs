//! Unfinished files of ended attempts are removed in the end, and only those.

use crate::common::{SITE, drop_into, files_below, with};
use passerelle_tests::{Agent, Content, Hub, Proxy, SshServer, until};
use serde_json::{Value, json};
use std::{fs, time::Duration};

struct Slow {
    hub: Hub,
    ssh: SshServer,
    line: Proxy,
    agent: Agent,
}

/// An agent, and a drop that is under way to an SFTP server over a line that stalls.
async fn stalled_drop() -> (Slow, String) {
    let (hub, ssh) = (Hub::start().await, SshServer::start());
    let line = Proxy::start(ssh.port()).await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    ssh.serve_through(&agent, "sftp", line.port());
    agent.start().await;
    let source = tempfile::tempdir().expect("a temporary folder");
    let blob = hub.api.upload(&Content::write(source.path(), 8_000_000)).await;
    line.slow(Some(500_000));
    let drop = drop_into("sftp", "in/a.bin", json!({"blob": blob["id"]}));
    let drop = with(drop, json!({"params": {"path": "in/a.bin", "create_dirs": true}, "max_attempts": 1}));
    let id = hub.api.submit(&drop).await;
    let moving = |j: &Value| j["state"] == "running" && j["progress"]["bytes_done"].as_u64() > Some(0);
    hub.api.job_where(&id, "moves bytes", Duration::from_secs(60), moving).await;
    line.stall(true);
    (Slow { hub, ssh, line, agent }, id)
}

impl Slow {
    fn parts(&self) -> Vec<String> {
        files_below(self.ssh.root()).into_iter().filter(|name| name.ends_with(".part")).collect()
    }

    /// Another agent's part beside it, and a file of somebody else with such a name.
    fn of_others(&self) -> [String; 2] {
        let others =
            ["in/.passerelle-0199aaaa-0000-7000-8000-000000000000-1.part", "in/.passerelle-notes.part"];
        for name in others {
            fs::write(self.ssh.root().join(name), "not ours").expect("a file on the share");
        }
        others.map(str::to_owned)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_cancelled_over_a_dead_line_leaves_no_part_for_good() {
    let (slow, id) = stalled_drop().await;
    let cancelled = slow.hub.api.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).await;
    assert!(cancelled.status < 300, "{cancelled:?}");
    let done = slow.hub.api.end_of(&id, Duration::from_secs(60)).await;
    assert_eq!(done["state"], "cancelled", "{done:#}");
    assert_eq!(slow.parts().len(), 1, "the line is dead, so nobody could remove it");
    let mut others = slow.of_others();
    slow.line.cut();
    slow.line.stall(false);
    slow.line.slow(None);
    others.sort();
    until("the part to be removed", Duration::from_secs(90), async || (slow.parts() == others).then_some(()))
        .await;
    slow.agent.counted("passerelle_agent_leftovers_removed_total", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_removed_by_the_next_start_too() {
    let (mut slow, id) = stalled_drop().await;
    slow.hub.api.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).await;
    slow.hub.api.end_of(&id, Duration::from_secs(60)).await;
    slow.agent.kill();
    assert_eq!(slow.parts().len(), 1);
    slow.line.cut();
    slow.line.stall(false);
    slow.line.slow(None);
    slow.agent.start().await;
    until("the part to be removed", Duration::from_secs(60), async || slow.parts().is_empty().then_some(()))
        .await;
}
