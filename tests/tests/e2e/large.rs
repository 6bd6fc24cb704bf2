//! A very large drop through an agent with little memory, over a line that breaks again and again.

use crate::common::{SITE, drop_into, files_below};
use passerelle_tests::{Agent, Content, Hub, MemoryBound, Proxy, SshServer, until};
use serde_json::json;
use std::{
    fs,
    io::Write as _,
    time::{Duration, Instant},
};

/// What the agent may use.
const MEMORY: u64 = 64 << 20;
/// How often the line breaks.
const CUTS: u64 = 5;
/// For the whole drop; a busy machine moves at least some ten megabytes a second.
const PATIENCE: Duration = Duration::from_secs(1800);

/// `PASSERELLE_TEST_LARGE` (bytes), or a little more than what 32 bits can count.
fn size() -> u64 {
    let wanted = std::env::var("PASSERELLE_TEST_LARGE").ok();
    wanted.map_or((4 << 30) + 1, |text| text.parse().expect("PASSERELLE_TEST_LARGE: a number of bytes"))
}

#[tokio::test(flavor = "multi_thread")]
async fn four_gibibytes_and_a_byte_arrive_whole_in_little_memory_over_a_line_that_is_cut_five_times() {
    let size = size();
    let (hub, ssh) = (Hub::start().await, SshServer::start());
    let line = Proxy::start(hub.port()).await;
    let bound = MemoryBound::new(MEMORY);
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    ssh.serve_to(&agent, "sftp");
    agent.through(&line.url()).spawn();
    match &bound {
        Ok(bound) => bound.hold(agent.process().id()),
        Err(why) => eprintln!("no memory bound on this machine ({why}): the peak is looked at instead"),
    }
    agent.ready().await;

    let source = tempfile::tempdir().unwrap();
    let content = Content::write(source.path(), size);
    let blob = hub.api.upload(&content).await;
    fs::remove_file(&content.path).unwrap();
    let (before, start) = (line.answered(), Instant::now());
    let id = hub.api.submit(&drop_into("sftp", "grand.bin", json!({"blob": blob["id"]}))).await;
    for cut in 1..=CUTS {
        let reached = async || (line.answered() - before > cut * (size / (CUTS + 1))).then_some(());
        until("the payload to be under way", PATIENCE, reached).await;
        line.cut();
    }
    let done = hub.api.end_of(&id, PATIENCE).await;
    let took = start.elapsed();
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(done["attempts"].as_array().map(Vec::len), Some(1), "a cut cost an attempt: {done:#}");
    let sent = line.answered() - before;
    let peak = agent.process().peak_kib();
    let arrived = Content::of_file(&ssh.root().join("grand.bin"));
    assert_eq!((arrived.size, arrived.sha256), (content.size, content.sha256));
    assert_eq!(files_below(ssh.root()), ["grand.bin"]);
    fs::remove_file(arrived.path).unwrap();
    let again = sent.saturating_sub(size) as f64 / size as f64 * 100.0;
    let used = bound.as_ref().ok().and_then(MemoryBound::peak).map_or(0, |peak| peak >> 10);
    // Past the capturing of the test runner: the figures belong into every log.
    writeln!(
        std::io::stderr(),
        "{size} bytes over SFTP in {took:.1?} with {CUTS} cuts: {again:.2} % sent again, at most {peak} KiB of memory for the agent, \
         its control group {used} KiB"
    )
    .unwrap();
    assert!(again < 5.0, "{again:.2} % were sent again");
    assert!(peak < MEMORY >> 10, "the agent's memory peaked at {peak} KiB");
    agent.kill();
}
