//! What an agent costs: memory when it idles, and the time until it is ready.

use passerelle_tests::{
    PATIENCE,
    docker::{AGENT, Container, Folder, HubContainer, docker},
    free_port, http_client, until,
};
use std::time::{Duration, Instant};

const SITE: &str = "paris";

/// The most memory of an idle agent, by the engine's own statistics.
const MEMORY_MIB: f64 = 24.0;
/// How long after an empty container an agent may be ready; the target is 1 s on a machine that does nothing else.
const READY: Duration = Duration::from_secs(10);

/// An agent in the host's network, so that its local port can be asked without a process in its container.
fn near(hub: &HubContainer, folder: &Folder, port: u16) -> Container {
    let text = format!(
        "[hub]\nurl = \"http://127.0.0.1:{}\"\nenrolment_token = {{ file = \"secrets/enrolment-token\" }}\n",
        hub.url.rsplit(':').next().expect("a port")
    );
    folder.file("agent.toml", text).file("secrets/enrolment-token", hub.token(SITE));
    let (config, listen) = (folder.at("/config"), format!("PASSERELLE_LISTEN=127.0.0.1:{port}"));
    Container::create(
        "agent",
        &["--network", "host", "--no-healthcheck", "-e", &listen, "-v", &config, AGENT],
    )
}

async fn ready(port: u16) {
    let (client, url) = (http_client(), format!("http://127.0.0.1:{port}/readyz"));
    until("the agent to be ready", PATIENCE, async || {
        client.get(&url).send().await.ok().filter(|answer| answer.status() == 200)
    })
    .await;
}

/// `docker stats` as MiB.
fn mib(text: &str) -> f64 {
    let used = text.split('/').next().expect("what is used").trim();
    let (number, unit) = used.split_at(used.find(|c: char| c.is_ascii_alphabetic()).expect("a unit"));
    let number: f64 = number.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
    match unit {
        "KiB" => number / 1024.0,
        "MiB" => number,
        "GiB" => number * 1024.0,
        _ => panic!("docker stats says {text}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_agent_takes_little_memory() {
    let hub = HubContainer::plain().await;
    let (folder, port) = (Folder::new(), free_port());
    let agent = near(&hub, &folder, port);
    agent.start();
    ready(port).await;
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(mib(&docker(&["stats", "--no-stream", "--format", "{{.MemUsage}}", agent.name()])));
    }
    println!("idle agent by docker stats, MiB: {seen:?}");
    let last = seen.pop().unwrap();
    assert!(last <= MEMORY_MIB, "{last} MiB, more than {MEMORY_MIB}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_ready_soon_after_its_container_has_started() {
    let hub = HubContainer::plain().await;
    let (folder, port) = (Folder::new(), free_port());
    let agent = near(&hub, &folder, port);
    let enrolling = Instant::now();
    agent.start();
    ready(port).await;
    println!("first start, with the enrolment: {:?}", enrolling.elapsed());
    let (mut empty, mut full) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        agent.stop(10);
        // The same image and network; its program prints a line and ends.
        let nothing = Container::create("empty", &["--network", "host", AGENT, "--version"]);
        let begin = Instant::now();
        docker(&["start", "--attach", nothing.name()]);
        empty.push(begin.elapsed());
        let begin = Instant::now();
        agent.start();
        ready(port).await;
        full.push(begin.elapsed());
    }
    empty.sort();
    full.sort();
    let (empty, full) = (empty[2], full[2]);
    let beyond = full.saturating_sub(empty);
    println!("start to ready {full:?}, an empty container {empty:?}, beyond it {beyond:?} (median of 5)");
    assert!(beyond <= READY, "{beyond:?} beyond an empty container's {empty:?}");
}
