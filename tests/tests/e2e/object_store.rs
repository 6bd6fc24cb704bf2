//! Files in a bucket of a real object store, by way of hub and agent, also when somebody dies at any step of an operation.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use crate::common::{SITE, drop_into, job, with};
use passerelle_tests::{Agent, Content, Hub, ObjectStore, Proxy, ended, s3::Kind, until};
use serde_json::{Value, json};
use std::{fs, io::Write as _, path::Path, time::Duration};

const CONTENT: &str = "journal;date;montant\n";
/// How long a job may take to recover from one fault.
const RECOVERED: Duration = Duration::from_secs(60);
/// More steps than any operation has.
const MOST_STEPS: u64 = 80;

struct World {
    agent: Agent,
    hub: Hub,
    store: ObjectStore,
    line: Proxy,
}

impl World {
    async fn start(kind: Kind) -> Self {
        let (hub, store) = (Hub::start().await, ObjectStore::start(kind));
        let line = Proxy::start(store.port()).await;
        let mut agent = Agent::new(&hub, SITE, "paris-1");
        store.serve_through(&agent, "archive", line.port());
        agent.start().await;
        Self { agent, hub, store, line }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_works_in_a_bucket() {
    for kind in [Kind::Nanio, Kind::S3s] {
        let world = World::start(kind).await;
        let api = &world.hub.api;
        let dropped = api.succeed(&drop_into("archive", "2026/10/a.csv", json!({"text": CONTENT}))).await;
        assert_eq!(dropped["result"]["path"], "2026/10/a.csv");
        assert_eq!(fs::read_to_string(world.store.root().join("2026/10/a.csv")).unwrap(), CONTENT);
        let fetched = api.succeed(&job("archive", "fetch", json!({"path": "2026/10/a.csv"}))).await;
        assert_eq!(fetched["output"]["size"], json!(CONTENT.len()));
        let listed = api.succeed(&job("archive", "list", json!({"recursive": true}))).await;
        let paths: Vec<&str> = listed["result"]["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|item| item["path"].as_str())
            .collect();
        assert_eq!(paths, ["2026", "2026/10", "2026/10/a.csv"]);
        let stat = api.succeed(&job("archive", "stat", json!({"path": "2026/10/a.csv"}))).await;
        assert_eq!(stat["result"]["size"], json!(CONTENT.len()));
        let moved = json!({"from": "2026/10/a.csv", "to": "done/a.csv"});
        api.succeed(&job("archive", "move", moved)).await;
        let again = with(
            drop_into("archive", "done/a.csv", json!({"text": "x"})),
            json!({"params": {"path": "done/a.csv", "on_conflict": "suffix"}}),
        );
        assert_eq!(api.succeed(&again).await["result"]["path"], "done/a (2).csv");
        for path in ["done/a.csv", "done/a (2).csv"] {
            let deleted = api.succeed(&job("archive", "delete", json!({"path": path}))).await;
            assert_eq!(deleted["result"]["deleted"], true);
        }
        assert_eq!((files_below(world.store.root()), world.store.uploads()), (vec![], 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_megabytes_drop_into_a_bucket_in_constant_memory() {
    let mut world = World::start(Kind::Nanio).await;
    let source = tempfile::tempdir().unwrap();
    let content = Content::write(source.path(), 300_000_000);
    let blob = world.hub.api.upload(&content).await;
    let started = std::time::Instant::now();
    let id = world.hub.api.submit(&drop_into("archive", "large.bin", json!({"blob": blob["id"]}))).await;
    let done = world.hub.api.end_of(&id, Duration::from_secs(300)).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    let took = started.elapsed();
    let arrived = Content::of_file(&world.store.root().join("large.bin"));
    assert_eq!((arrived.size, arrived.sha256), (content.size, content.sha256));
    let agent = world.agent.process().peak_kib();
    writeln!(
        std::io::stderr(),
        "300 MB into a bucket in {took:.1?}: at most {agent} KiB of memory for the agent"
    )
    .unwrap();
    assert!(agent < 40 * 1024, "the agent's memory peaked at {agent} KiB beside its program");
}

/// Who dies while a message is held back.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Agent,
    Store,
}

/// One operation: what is there before, the job, and what a consumer finds afterwards.
struct Case {
    kind: Kind,
    prepare: fn(&Path, u64),
    job: fn(u64) -> Value,
    /// Whether a consumer takes the file as soon as it sees it.
    taken: bool,
    /// The states it may end in: `unknown` where nobody can know.
    ends: &'static [&'static str],
    check: fn(&Value, &Path, u64, usize),
}

/// What is left. nanio takes empty folders away.
fn files_below(root: &Path) -> Vec<String> {
    if root.exists() { crate::common::files_below(root) } else { Vec::new() }
}

fn take(root: &Path, number: u64) -> usize {
    let path = root.join(format!("{number}.csv"));
    let Ok(found) = fs::read_to_string(&path) else { return 0 };
    assert_eq!(found, CONTENT, "the file is not whole");
    fs::remove_file(path).unwrap();
    1
}

const DROP: Case = Case {
    kind: Kind::Nanio,
    prepare: |_, _| {},
    job: |number| {
        let on_conflict = ["fail", "replace", "suffix"][usize::try_from(number % 3).unwrap_or_default()];
        let mut job = drop_into("archive", &format!("{number}.csv"), json!({"text": CONTENT}));
        job["params"]["on_conflict"] = json!(on_conflict);
        job
    },
    taken: false,
    ends: &["succeeded"],
    check: |done, root, number, _| assert_eq!(take(root, number), 1, "step {number}: {done:#}"),
};

/// Taken away before anybody could look, a file leaves no trace, and an upload that is gone proves nothing.
const DROP_AND_TAKE: Case = Case {
    taken: true,
    ends: &["succeeded", "unknown"],
    check: |done, _, number, found| assert_eq!(found, 1, "step {number}: {done:#}"),
    ..DROP
};

const MOVE: Case = Case {
    kind: Kind::S3s,
    prepare: |root, number| put(&root.join(format!("from-{number}"))),
    job: |number| {
        job("archive", "move", json!({"from": format!("from-{number}"), "to": format!("{number}.csv")}))
    },
    ..DROP
};

const DELETE: Case = Case {
    kind: Kind::Nanio,
    prepare: |root, number| put(&root.join(format!("{number}.old"))),
    job: |number| job("archive", "delete", json!({"path": format!("{number}.old")})),
    taken: false,
    ends: &["succeeded"],
    check: |done, root, number, _| {
        assert_eq!(done["result"]["deleted"], true, "step {number}: {done:#}");
        assert!(!root.join(format!("{number}.old")).exists());
    },
};

const FETCH: Case = Case {
    kind: Kind::Nanio,
    prepare: |root, number| put(&root.join(format!("export-{number}"))),
    job: |number| job("archive", "fetch", json!({"path": format!("export-{number}")})),
    taken: false,
    ends: &["succeeded"],
    check: |done, root, number, _| {
        assert_eq!(done["output"]["size"], json!(CONTENT.len()), "step {number}: {done:#}");
        fs::remove_file(root.join(format!("export-{number}"))).unwrap();
    },
};

fn put(path: &Path) {
    fs::write(path, CONTENT).unwrap();
}

/// Runs the case once for each step, with the fault at it.
async fn at_each_step(case: &Case, answers: bool, fault: Fault) {
    let mut world = World::start(case.kind).await;
    let root = world.store.root().to_owned();
    for number in 0..MOST_STEPS {
        world.agent.ready().await;
        // A connection that is kept is there already: the steps are those of the operation.
        world.hub.api.succeed(&job("archive", "list", json!({}))).await;
        fs::create_dir_all(&root).unwrap();
        (case.prepare)(&root, number);
        if answers {
            world.line.hold_answers_after(Some(number))
        } else {
            world.line.hold_after(Some(number))
        }
        // On a busy machine a store takes longer to come back than the ordinary attempts last.
        let id = world.hub.api.submit(&with((case.job)(number), json!({"max_attempts": 50}))).await;
        let held = until("the job to end or be held", RECOVERED, async || {
            let ended = ended(&world.hub.api.job(&id).await);
            (ended || world.line.is_holding()).then_some(!ended)
        })
        .await;
        let consume = || if case.taken { take(&root, number) } else { 0 };
        let mut found = consume();
        if held {
            match fault {
                Fault::Agent => world.agent.kill(),
                Fault::Store => world.store.stop(),
            }
            // What was on its way is lost with the line.
            world.line.cut();
            world.line.heal();
            match fault {
                Fault::Agent => drop(world.agent.spawn()),
                Fault::Store => world.store.restart(),
            }
        } else {
            world.line.heal();
        }
        let done = world.hub.api.end_of(&id, RECOVERED).await;
        found += consume();
        let end = done["state"].as_str().unwrap_or_default();
        assert!(case.ends.contains(&end), "{fault:?} at {number}, answers: {answers}: {done:#}");
        (case.check)(&done, &root, number, found);
        // What the store did not hear to take away goes with the next session, which the next job opens.
        world.hub.api.succeed(&with(job("archive", "list", json!({})), json!({"max_attempts": 50}))).await;
        let what = format!("nothing to be left of step {number}: {:?}", files_below(&root));
        until(&what, RECOVERED, async || files_below(&root).is_empty().then_some(())).await;
        if !held {
            assert!(number > 1, "only {number} steps were tried");
            return;
        }
    }
    panic!("the operation has more than {MOST_STEPS} steps");
}

async fn at_each_request_and_answer(case: &Case, fault: Fault) {
    tokio::join!(at_each_step(case, false, fault), at_each_step(case, true, fault));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_into_a_bucket_happens_once_though_the_agent_dies_at_any_step() {
    at_each_request_and_answer(&DROP, Fault::Agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_into_a_bucket_happens_once_though_the_store_dies_at_any_step() {
    at_each_request_and_answer(&DROP, Fault::Store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_was_taken_away_before_the_answer_came_is_unknown_at_worst() {
    at_each_request_and_answer(&DROP_AND_TAKE, Fault::Agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_in_a_bucket_happens_once_though_agent_or_store_die_at_any_step() {
    at_each_request_and_answer(&MOVE, Fault::Agent).await;
    at_each_request_and_answer(&MOVE, Fault::Store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_deleted_and_fetched_though_agent_or_store_die_at_any_step() {
    for case in [&DELETE, &FETCH] {
        at_each_request_and_answer(case, Fault::Agent).await;
        at_each_request_and_answer(case, Fault::Store).await;
    }
}
