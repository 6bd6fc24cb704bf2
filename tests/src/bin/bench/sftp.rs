//! A large drop on a real SFTP server, beside OpenSSH's own `sftp` with `put -f` (which syncs, as a drop does).

use crate::{
    Effort,
    line::{Line, Target},
};
use passerelle_tests::{Agent, Content, Hub, SshServer, run};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command, time::Instant};

/// Measures in turns, so that both see the same machine.
pub async fn measure(effort: Effort) -> Vec<Line> {
    let (mut hub, ssh) = (Hub::start().await, SshServer::start());
    let mut agent = Agent::new(&hub, "paris", "paris-1");
    ssh.serve_to(&agent, "sftp");
    agent.start().await;
    let source = tempfile::tempdir().expect("a temporary folder");
    let content = Content::write(source.path(), effort.file_size);
    let blob = hub.api.upload(&content).await;
    let known = source.path().join("known_hosts");
    fs::write(&known, ssh.known_hosts(ssh.port())).expect("a known_hosts file");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..effort.rounds {
        theirs.push(openssh(&ssh, &content.path, &known, round));
        ours.push(drop(&hub, &ssh, &content, &blob["id"], round).await);
    }
    let best = |rates: &[f64]| rates.iter().copied().fold(0.0, f64::max);
    let (rate, baseline) = (best(&ours), best(&theirs));
    vec![Line {
        name: "sftp_drop_mb_per_s".to_owned(),
        value: rate,
        baseline: ("openssh_sftp_put_f_mb_per_s".to_owned(), baseline),
        target: Some((Target::AtLeast(baseline), "1.0 × sftp -b with put -f".to_owned())),
        more: json!({
            "bytes": content.size, "all": ours, "baseline_all": theirs,
            "agent_peak_mib": agent.process().memory_kib("VmHWM") / 1024,
            "hub_peak_mib": hub.process.memory_kib("VmHWM") / 1024,
            "hub_alive": hub.process.is_running(),
        }),
    }]
}

/// The time from submission to the stored outcome counts, as the client sees it.
async fn drop(hub: &Hub, ssh: &SshServer, content: &Content, blob: &Value, round: usize) -> f64 {
    let path = format!("ours-{round}.bin");
    let job = json!({
        "site": "paris", "resource": "sftp", "operation": "drop", "params": {"path": path}, "payload": {"blob": blob},
    });
    let start = Instant::now();
    let answer = hub.api.post("/v1/jobs?wait=60", &job).await;
    let took = start.elapsed();
    assert_eq!(answer.body["state"], "succeeded", "{:#}", answer.body);
    assert_eq!(answer.body["result"]["sha256"], json!(content.sha256));
    fs::remove_file(ssh.root().join(path)).expect("the dropped file");
    content.size as f64 / 1e6 / took.as_secs_f64()
}

fn openssh(ssh: &SshServer, file: &Path, known: &Path, round: usize) -> f64 {
    let target = ssh.root().join(format!("theirs-{round}.bin"));
    let batch = file.with_file_name("batch");
    fs::write(&batch, format!("put -f {} {}\n", file.display(), target.display())).expect("a batch file");
    let start = Instant::now();
    let output = run(Command::new("sftp")
        .arg("-b")
        .arg(&batch)
        .args(["-P", &ssh.port().to_string(), "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
        .arg("-i")
        .arg(ssh.user_key())
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", known.display()))
        .arg(format!("{}@127.0.0.1", ssh.user())));
    let took = start.elapsed();
    assert!(output.status.success(), "sftp: {}", String::from_utf8_lossy(&output.stderr));
    let size = fs::metadata(&target).expect("the copied file").len();
    fs::remove_file(&target).expect("the copied file");
    size as f64 / 1e6 / took.as_secs_f64()
}
