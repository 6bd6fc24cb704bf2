//! The files as jobs: a hub that has their blobs, an agent, and the place as its resource.

use super::{Load, peers::name, place::Place};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use passerelle_tests::{Agent, Hub};
use reqwest::Method;
use serde_json::{Value, json};
use std::{fs, time::Instant};

/// What it gave.
pub struct Measured {
    /// Megabytes or files a second, from submission to the last stored outcome.
    pub speed: f64,
    /// A plain download of the large file from the hub, in megabytes a second.
    pub download: Option<f64>,
    pub agent_peak_mib: u64,
    pub hub_peak_mib: u64,
}

const AT_ONCE: usize = 32;
const ALLOW: &str = "\n[[resources.test.allow]]\noperations = [\"drop\", \"fetch\"]\npaths = [\"**/*\"]\n";

/// Runs one job per file.
pub async fn measure(place: &Place, load: &Load) -> Measured {
    let hub = Hub::start().await;
    let mut agent = Agent::new(&hub, "paris", "paris-1");
    for entry in fs::read_dir(place.config()).expect("the configuration") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_file() && name != "agent.toml" {
            agent.file(&name, fs::read_to_string(&path).expect("a file"));
        }
    }
    agent.resource("test", &(place.settings() + ALLOW));
    agent.start().await;
    let mut jobs = Vec::new();
    for file in &load.files {
        let blob = hub.api.upload(file).await;
        jobs.push(json!({
            "site": "paris", "resource": "test", "operation": "drop", "params": {"path": name(file)},
            "payload": {"blob": blob["id"]},
        }));
    }
    let start = Instant::now();
    stream::iter(&jobs).for_each_concurrent(AT_ONCE, |job| finished(&hub, job)).await;
    let took = start.elapsed().as_secs_f64();
    let amount = if load.large { load.bytes() as f64 / 1e6 } else { load.files.len() as f64 };
    let download = if load.large { Some(download(&hub, load).await) } else { None };
    Measured {
        speed: amount / took,
        download,
        agent_peak_mib: agent.process().memory_kib("VmHWM") / 1024,
        hub_peak_mib: hub.process.memory_kib("VmHWM") / 1024,
    }
}

async fn finished(hub: &Hub, job: &Value) {
    let mut found = hub.api.post("/v1/jobs?wait=60", job).await.body;
    while !matches!(found["state"].as_str(), Some("succeeded")) {
        let state = found["state"].as_str().unwrap_or_default();
        assert!(matches!(state, "queued" | "offered" | "running"), "{found:#}");
        let path = format!("/v1/jobs/{}", found["id"].as_str().unwrap_or_default());
        found = hub.api.get(&path).await.body;
    }
}

/// Fetches the file back, and times how fast the hub gives it out.
async fn download(hub: &Hub, load: &Load) -> f64 {
    let file = load.files.first().map(name).expect("a file");
    let job = json!({"site": "paris", "resource": "test", "operation": "fetch", "params": {"path": file}});
    let fetched = hub.api.post("/v1/jobs?wait=60", &job).await.body;
    assert_eq!(fetched["state"], "succeeded", "{fetched:#}");
    let path = format!("/v1/jobs/{}/output", fetched["id"].as_str().unwrap_or_default());
    let start = Instant::now();
    let answer = hub.api.request(Method::GET, &path).send().await.expect("an answer");
    let bytes = answer
        .bytes_stream()
        .try_fold(0_usize, async |sum, chunk| Ok(sum + chunk.len()))
        .await
        .expect("the whole output");
    bytes as f64 / 1e6 / start.elapsed().as_secs_f64()
}
