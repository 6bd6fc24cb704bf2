//! How long hub and agent take from the start of the process until `/readyz` answers 200.

use crate::{
    Effort, baseline,
    line::{Line, Sorted, Target},
};
use passerelle_tests::{Agent, Hub, Process, binary};
use serde_json::json;
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Command,
    time::{Duration, Instant},
};

/// How often each program is started.
const STARTS: usize = 15;

/// Measures both programs beside `/bin/true`.
pub async fn measure(effort: Effort) -> Vec<Line> {
    let repetitions = STARTS.min(effort.repetitions);
    let mut hub = Hub::start().await;
    let mut agent = Agent::new(&hub, "paris", "paris-1");
    agent.start().await;
    agent.kill();
    let home = tempfile::tempdir().expect("a temporary folder");
    let agents = (0..repetitions).map(|_| {
        let mut command = Command::new(binary("passerelle-agent"));
        command.arg("run").arg("--config").arg(agent.folder());
        time_to_ready(&mut command, &agent.url(""), home.path())
    });
    let agents = Sorted::new(agents.collect::<Vec<_>>());
    hub.process.kill();
    let hubs = (0..repetitions).map(|_| {
        let mut command = Command::new(binary("passerelle-hub"));
        command
            .arg("serve")
            .arg("--data")
            .arg(hub.data())
            .arg("--listen")
            .arg(format!("127.0.0.1:{}", hub.port()));
        time_to_ready(&mut command, &hub.url, home.path())
    });
    let hubs = Sorted::new(hubs.collect::<Vec<_>>());
    let bare = baseline::bin_true(repetitions * 10).p50();
    [("hub_start_to_ready_ms", hubs), ("agent_start_to_ready_ms", agents)]
        .into_iter()
        .map(|(name, times)| Line {
            name: name.to_owned(),
            value: times.p50(),
            baseline: ("/bin/true_ms".to_owned(), bare),
            target: Some((Target::AtMost(20.0 * bare + 100.0), "20 × /bin/true + 100 ms".to_owned())),
            more: json!({"worst_ms": times.quantile(1.0), "starts": repetitions}),
        })
        .collect()
}

fn time_to_ready(command: &mut Command, url: &str, home: &std::path::Path) -> Duration {
    let address = url.trim_start_matches("http://").to_owned();
    let start = Instant::now();
    let process = Process::spawn("the program", command, &home.join("start.log"));
    while !is_ready(&address) {
        assert!(start.elapsed() < Duration::from_secs(60), "not ready:\n{}", process.log());
        std::thread::sleep(Duration::from_micros(500));
    }
    start.elapsed()
}

/// Asks over a bare socket: an HTTP client of its own would take longer than what is measured.
fn is_ready(address: &str) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = [0; 12];
        socket.read_exact(&mut answer)?;
        Ok(&answer == b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}
