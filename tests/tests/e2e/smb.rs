//! Folders on SMB shares through hub and agent: every operation, a fault at every step of those with an effect, and
//! large files in little memory.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use crate::common::{SITE, drop_into, files_below, job};
use passerelle_tests::{Agent, Content, Hub, Proxy, SmbServer, ended, until};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};

/// How long a job may take to recover from one fault.
const RECOVERED: Duration = Duration::from_secs(60);
/// More steps than any operation has.
const MOST_STEPS: u64 = 60;
const CONTENT: &str = "journal;date;montant\n";

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_works_on_a_share_signed_or_encrypted() {
    for encrypted in [false, true] {
        let (hub, smb) = (Hub::start().await, SmbServer::start(encrypted));
        let mut agent = Agent::new(&hub, SITE, "paris-1");
        smb.serve_to(&agent, "share");
        agent.start().await;
        let api = &hub.api;
        let mut drop = drop_into("share", "2026/10/é.csv", json!({"text": CONTENT}));
        drop["params"]["create_dirs"] = json!(true);
        let dropped = api.succeed(&drop).await;
        assert_eq!(dropped["attempts"][0]["effect"], "applied", "{dropped:#}");
        assert_eq!(fs::read_to_string(smb.root().join("2026/10/é.csv")).unwrap(), CONTENT);
        let listed = api.succeed(&job("share", "list", json!({"recursive": true}))).await;
        let paths: Vec<&Value> =
            listed["result"]["items"].as_array().unwrap().iter().map(|item| &item["path"]).collect();
        assert_eq!(json!(paths), json!(["2026", "2026/10", "2026/10/é.csv"]));
        let moved = json!({"from": "2026/10/é.csv", "to": "2026/done.csv"});
        api.succeed(&job("share", "move", moved)).await;
        let stat = api.succeed(&job("share", "stat", json!({"path": "2026/done.csv"}))).await;
        assert_eq!(stat["result"]["size"], json!(CONTENT.len()));
        let fetched = api.succeed(&job("share", "fetch", json!({"path": "2026/done.csv"}))).await;
        assert_eq!(api.output(fetched["id"].as_str().unwrap()).await, CONTENT.as_bytes());
        let deleted = api.succeed(&job("share", "delete", json!({"path": "2026/done.csv"}))).await;
        assert_eq!(deleted["result"], json!({"deleted": true}));
        assert_eq!(files_below(smb.root()), [""; 0]);
        let refused = api.run(&drop_into("share", "nul.csv", json!({"text": "x"}))).await;
        assert_eq!(
            (&refused["state"], &refused["error"]["code"]),
            (&json!("denied"), &json!("path_invalid"))
        );
    }
}

/// What happens while a message on the line to the server is held back.
#[derive(Debug, Clone, Copy)]
enum Fault {
    AgentDies,
    ServerDies,
    LineIsCut,
}

/// What is there before, the job, and what must be there once afterwards.
struct Case {
    prepare: fn(&Path, u64),
    job: fn(u64) -> Value,
    check: fn(&Path, u64, &Value),
}

const DROP: Case = Case {
    prepare: |_, _| {},
    job: |number| {
        // In turns, since they end in another way.
        let on_conflict = ["fail", "replace", "suffix"][usize::try_from(number % 3).unwrap_or_default()];
        let mut job = drop_into("share", &format!("{number}.csv"), json!({"text": CONTENT}));
        job["params"]["on_conflict"] = json!(on_conflict);
        job
    },
    check: there_once,
};

const MOVE: Case = Case {
    prepare: |root, number| fs::write(root.join(format!("from-{number}")), CONTENT).unwrap(),
    job: |number| {
        job("share", "move", json!({"from": format!("from-{number}"), "to": format!("{number}.csv")}))
    },
    check: there_once,
};

const DELETE: Case = Case {
    prepare: |root, number| fs::write(root.join(format!("{number}.old")), CONTENT).unwrap(),
    job: |number| job("share", "delete", json!({"path": format!("{number}.old")})),
    check: |root, number, done| {
        assert_eq!(done["result"]["deleted"], true, "step {number}: {done:#}");
        assert!(!root.join(format!("{number}.old")).exists());
    },
};

fn there_once(root: &Path, number: u64, done: &Value) {
    let path = root.join(format!("{number}.csv"));
    assert_eq!(fs::read_to_string(&path).unwrap(), CONTENT, "step {number}: {done:#}");
    fs::remove_file(path).unwrap();
}

/// Runs the case once for each message of one direction, held back while the fault happens. Gives the number of steps.
async fn at_each_step(case: &Case, fault: Fault, answers: bool) -> u64 {
    let (mut hub, mut smb) = (Hub::start().await, SmbServer::start(false));
    let line = Proxy::start(smb.port()).await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    smb.serve_through(&agent, "share", line.port());
    agent.start().await;
    let root = smb.root().to_owned();
    for number in 0..MOST_STEPS {
        agent.ready().await;
        // The connection is there already: the steps are those of the operation.
        hub.api.succeed(&job("share", "list", json!({}))).await;
        (case.prepare)(&root, number);
        match answers {
            false => line.hold_after(Some(number)),
            true => line.hold_answers_after(Some(number)),
        }
        let id = hub.api.submit(&(case.job)(number)).await;
        let held = until("the job to end or be held", RECOVERED, async || {
            let ended = ended(&hub.api.job(&id).await);
            (ended || line.is_holding()).then_some(!ended)
        })
        .await;
        if held {
            match fault {
                Fault::AgentDies => agent.kill(),
                Fault::ServerDies => smb.stop(),
                Fault::LineIsCut => {}
            }
            line.cut();
        }
        line.heal();
        match fault {
            Fault::AgentDies if held => drop(agent.spawn()),
            Fault::ServerDies if held => smb.restart(),
            Fault::AgentDies | Fault::ServerDies | Fault::LineIsCut => {}
        }
        let done = hub.api.end_of(&id, RECOVERED).await;
        assert_eq!(done["state"], "succeeded", "{fault:?} at {number}, answers: {answers}: {done:#}");
        (case.check)(&root, number, &done);
        let clean = async || files_below(&root).is_empty().then_some(());
        until(&format!("nothing to be left of step {number}: {:?}", files_below(&root)), RECOVERED, clean)
            .await;
        if !held {
            agent.kill();
            hub.process.kill();
            return number;
        }
    }
    panic!("the operation has more than {MOST_STEPS} steps");
}

async fn at_every_step(case: &Case, fault: Fault, least: u64) {
    for answers in [false, true] {
        let steps = at_each_step(case, fault, answers).await;
        assert!(steps >= least, "only {steps} steps were tried");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_on_a_share_happens_once_though_the_agent_dies_at_any_step() {
    at_every_step(&DROP, Fault::AgentDies, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_on_a_share_happens_once_though_the_server_dies_at_any_step() {
    at_every_step(&DROP, Fault::ServerDies, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_on_a_share_happens_once_though_the_line_is_cut_at_any_step() {
    at_every_step(&DROP, Fault::LineIsCut, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_on_a_share_happens_once_though_the_agent_or_the_server_dies_at_any_step() {
    at_every_step(&MOVE, Fault::AgentDies, 2).await;
    at_every_step(&MOVE, Fault::ServerDies, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_on_a_share_happens_once_though_the_agent_or_the_server_dies_at_any_step() {
    at_every_step(&DELETE, Fault::AgentDies, 1).await;
    at_every_step(&DELETE, Fault::ServerDies, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_megabytes_go_either_way_in_little_memory() {
    const SIZE: u64 = 300_000_000;
    for encrypted in [false, true] {
        let (hub, smb) = (Hub::start().await, SmbServer::start(encrypted));
        let mut agent = Agent::new(&hub, SITE, "paris-1");
        smb.serve_to(&agent, "share");
        agent.start().await;
        let source = tempfile::tempdir().unwrap();
        let content = Content::write(source.path(), SIZE);
        let blob = hub.api.upload(&content).await;
        let patience = Duration::from_secs(600);
        let id = hub.api.submit(&drop_into("share", "grand.bin", json!({"blob": blob["id"]}))).await;
        let done = hub.api.end_of(&id, patience).await;
        assert_eq!(done["state"], "succeeded", "{done:#}");
        let arrived = Content::of_file(&smb.root().join("grand.bin"));
        assert_eq!((arrived.size, &arrived.sha256), (content.size, &content.sha256));
        let id = hub.api.submit(&job("share", "fetch", json!({"path": "grand.bin"}))).await;
        let done = hub.api.end_of(&id, patience).await;
        assert_eq!(done["output"]["sha256"], json!(content.sha256), "{done:#}");
        let peak = agent.process().peak_kib();
        println!("encrypted: {encrypted}: at most {peak} KiB of memory for the agent");
        assert!(peak < 64 << 10, "the agent's memory peaked at {peak} KiB");
    }
}
