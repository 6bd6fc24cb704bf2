//! The processes in which a hub fills templates: what they hold, that they may die, and that they do not outlive it.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use passerelle_tests::{Hub, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{fs, time::Duration};

const DEFINITIONS: &str = "/v1/mediations/definitions";
const SOON: Duration = Duration::from_secs(10);

/// The processes that the hub started for templates.
fn workers(hub: &Hub) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", hub.process.id())).unwrap();
    let children = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    let all: Vec<u32> = children
        .flat_map(|list| list.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<_>>())
        .collect();
    all.into_iter().filter(|id| is_worker(*id)).collect()
}

fn is_worker(id: u32) -> bool {
    // Nothing is left to be read of one that has ended.
    fs::read(format!("/proc/{id}/cmdline"))
        .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == b"__templates"))
}

/// The label that a run of the definition gave to its file.
async fn labelled(hub: &Hub, key: &str) -> String {
    let run = hub.api.post(&format!("{DEFINITIONS}/labels/run"), &json!({"key": key})).await;
    assert_eq!(run.status, 201, "{:#}", run.body);
    let path = format!("/v1/mediations/runs/{}", run.body["guid"].as_str().unwrap());
    let ended = until("the run has ended", SOON, || async {
        let shown = hub.api.get(&path).await.body;
        ["succeeded", "failed"].map(Value::from).contains(&shown["state"]).then_some(shown)
    })
    .await;
    assert_eq!(ended["state"], "succeeded", "{ended:#}");
    ended["flows"][0]["label"].as_str().unwrap().to_owned()
}

/// The one process that is kept. A step that renders a file has one of its own, which is killed when the step is done: it may
/// take a moment to be gone.
async fn kept(hub: &Hub) -> u32 {
    until("one process for templates is left", SOON, || async {
        let found = workers(hub);
        let [worker] = found[..] else { return None };
        Some(worker)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_for_templates_holds_nothing_and_its_end_harms_nobody() {
    let mut hub = Hub::start().await;
    let step = json!({"name": "make", "kind": "render", "template": "x", "flow": "{{ trigger.key }}.txt"});
    let definition = json!({"name": "labels", "trigger": {"kind": "manual"}, "steps": [step]});
    let made = hub.api.post(DEFINITIONS, &json!({"definitions": [definition]})).await;
    assert!(made.status < 300, "{:#}", made.body);
    assert_eq!(labelled(&hub, "first").await, "first.txt");

    let worker = kept(&hub).await;
    let read = |file: &str| fs::read_to_string(format!("/proc/{worker}/{file}")).unwrap();
    assert_eq!(read("environ"), "MIMALLOC_ARENA_RESERVE=16M\0", "nothing of the hub's settings");
    let limits = read("limits");
    let of = |name: &str| limits.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    assert_eq!(of("Max address space"), Some("268435456"), "{limits}");
    assert_eq!(of("Max core file size"), Some("0"), "{limits}");
    assert!(of("Max cpu time").is_some_and(|time| time.parse::<u64>().is_ok()), "{limits}");
    assert_eq!(read("oom_score_adj").trim(), "1000");
    // What the test itself was started with goes on to all processes; what the hub opened does not.
    let data = hub.data().to_str().unwrap().to_owned();
    for file in fs::read_dir(format!("/proc/{worker}/fd")).unwrap() {
        let file = fs::read_link(file.unwrap().path()).unwrap().to_str().unwrap().to_owned();
        assert!(
            !file.starts_with("socket:") && !file.starts_with("anon_inode:") && !file.contains(&data),
            "{file}"
        );
    }

    assert_eq!(labelled(&hub, "second").await, "second.txt");
    assert_eq!(kept(&hub).await, worker, "it is kept");
    kill_process(Pid::from_raw(worker.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
    assert_eq!(labelled(&hub, "third").await, "third.txt");
    let other = kept(&hub).await;
    assert_ne!(other, worker);

    hub.process.kill();
    until("the worker has ended with its hub", SOON, || async { (!is_worker(other)).then_some(()) }).await;
}
