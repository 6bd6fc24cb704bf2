//! Every operation, with a fault at every step of it: each request to the target, and each message in the tunnel.
//!
//! A fault proxy lets one more piece through in each round and holds the next one back; then somebody dies, or a line is
//! cut. In the last round the operation gets through unharmed, so that no step is left out.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use crate::common::{SITE, drop_into, files_below, job, notify_job};
use passerelle_protocol::Sha256;
use passerelle_tests::{Agent, App, Hub, Proxy, SshServer, ended, resources};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, path::Path, time::Duration};

/// How long a job may take to recover from one fault.
const RECOVERED: Duration = Duration::from_secs(60);
/// More steps than any operation has.
const MOST_STEPS: u64 = 60;

/// Whose message is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// What the agent asks of the target.
    Request,
    /// What the target answers.
    Answer,
    /// What the agent tells the hub.
    Told,
    /// What the hub tells the agent.
    Heard,
}

/// What happens then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    AgentDies,
    HubDies,
    FileServerDies,
    /// The line on which a message is held is cut.
    LineIsCut,
}

struct World {
    agent: Agent,
    hub: Hub,
    ssh: SshServer,
    app: App,
    tunnel: Proxy,
    file_line: Proxy,
    app_line: Proxy,
}

impl World {
    async fn start() -> Self {
        let (hub, ssh, app) = (Hub::start().await, SshServer::start(), App::start().await);
        let tunnel = Proxy::start(hub.port()).await;
        let (file_line, app_line) = (Proxy::start(ssh.port()).await, Proxy::start(app.port()).await);
        let mut agent = Agent::new(&hub, SITE, "paris-1");
        ssh.serve_through(&agent, "sftp", file_line.port());
        agent.resource("orders-app", &resources::application("orders-app", &app_line.url()));
        agent.through(&tunnel.url()).start().await;
        Self { agent, hub, ssh, app, tunnel, file_line, app_line }
    }

    fn line(&self, step: Step, resource: &str) -> &Proxy {
        match (step, resource) {
            (Step::Told | Step::Heard, _) => &self.tunnel,
            (_, "sftp") => &self.file_line,
            (_, _) => &self.app_line,
        }
    }

    /// Breaks what there is to break while a message is held back, and mends it again.
    async fn suffer(&mut self, fault: Fault, step: Step, resource: &str) {
        match fault {
            Fault::AgentDies => self.agent.kill(),
            Fault::HubDies => self.hub.process.kill(),
            Fault::FileServerDies => self.ssh.stop(),
            Fault::LineIsCut => {}
        }
        // What was on its way is lost with the line.
        self.line(step, resource).cut();
        self.line(step, resource).heal();
        match fault {
            Fault::AgentDies => drop(self.agent.spawn()),
            Fault::HubDies => self.hub.restart().await,
            Fault::FileServerDies => self.ssh.restart(),
            Fault::LineIsCut => {}
        }
    }
}

/// One operation: what is there before, the job, and what must be there afterwards.
struct Case {
    resource: &'static str,
    prepare: fn(&Path, u64),
    job: fn(u64) -> Value,
    /// Takes away what a consumer would, and gives how often it found something. Called right after the fault too.
    consume: fn(&Path, u64) -> usize,
    /// The states it may end in: `unknown` where nobody can know.
    ends: &'static [&'static str],
    /// Looks at the ended job, the folder, and how often a consumer found something.
    check: fn(&Value, &World, u64, usize),
}

/// Runs the case once for each step, with the fault at it. Gives the number of steps.
async fn at_each_step(case: &Case, step: Step, fault: Fault) -> u64 {
    let mut world = World::start().await;
    let root = world.ssh.root().to_owned();
    for number in 0..MOST_STEPS {
        world.agent.ready().await;
        // A connection that is kept is there already: the steps are those of the operation.
        if case.resource == "sftp" {
            world.hub.api.succeed(&job("sftp", "list", json!({}))).await;
        }
        (case.prepare)(&root, number);
        let line = world.line(step, case.resource);
        match step {
            Step::Request | Step::Told => line.hold_after(Some(number)),
            Step::Answer | Step::Heard => line.hold_answers_after(Some(number)),
        }
        let id = world.hub.api.submit(&(case.job)(number)).await;
        let held = passerelle_tests::until("the job to end or be held", RECOVERED, async || {
            let ended = ended(&world.hub.api.job(&id).await);
            (ended || line.is_holding()).then_some(!ended)
        })
        .await;
        let mut found = (case.consume)(&root, number);
        if held {
            world.suffer(fault, step, case.resource).await;
        } else {
            line.heal();
        }
        let done = world.hub.api.end_of(&id, RECOVERED).await;
        found += (case.consume)(&root, number);
        let end = done["state"].as_str().unwrap_or_default();
        assert!(case.ends.contains(&end), "{fault:?} at {step:?} {number}: {done:#}");
        (case.check)(&done, &world, number, found);
        let clean = async || files_below(&root).is_empty().then_some(());
        let what = format!("nothing to be left of step {number}: {:?}", files_below(&root));
        passerelle_tests::until(&what, RECOVERED, clean).await;
        if !held {
            return number;
        }
    }
    panic!("the operation has more than {MOST_STEPS} steps");
}

const CONTENT: &str = "journal;date;montant\n";

fn nothing(_: &Path, _: u64) {}

fn take(root: &Path, number: u64) -> usize {
    let path = root.join(format!("{number}.csv"));
    let Ok(found) = fs::read_to_string(&path) else { return 0 };
    assert_eq!(found, CONTENT, "the file is not whole");
    fs::remove_file(path).unwrap();
    1
}

const DROP: Case = Case {
    resource: "sftp",
    prepare: nothing,
    job: |number| {
        // In turns, since they end in another way.
        let on_conflict = ["fail", "replace", "suffix"][usize::try_from(number % 3).unwrap_or_default()];
        let mut job = drop_into("sftp", &format!("{number}.csv"), json!({"text": CONTENT}));
        job["params"]["on_conflict"] = json!(on_conflict);
        job
    },
    consume: take,
    ends: &["succeeded"],
    check: |done, _, number, found| assert_eq!(found, 1, "step {number}: {done:#}"),
};

const MOVE: Case = Case {
    resource: "sftp",
    prepare: |root, number| fs::write(root.join(format!("from-{number}")), CONTENT).unwrap(),
    job: |number| {
        job("sftp", "move", json!({"from": format!("from-{number}"), "to": format!("{number}.csv")}))
    },
    consume: |_, _| 0,
    ends: &["succeeded"],
    check: |done, world, number, _| {
        assert_eq!(take(world.ssh.root(), number), 1, "step {number}: {done:#}");
    },
};

/// A consumer takes the moved file away before anybody could look: it is at neither place then, as it would be if
/// somebody had taken it before it was moved.
const MOVE_AND_TAKE: Case = Case {
    consume: take,
    ends: &["succeeded", "unknown"],
    check: |done, _, number, found| assert_eq!(found, 1, "step {number}: {done:#}"),
    ..MOVE
};

const DELETE: Case = Case {
    resource: "sftp",
    prepare: |root, number| fs::write(root.join(format!("{number}.old")), CONTENT).unwrap(),
    job: |number| job("sftp", "delete", json!({"path": format!("{number}.old")})),
    consume: |_, _| 0,
    ends: &["succeeded"],
    check: |done, world, number, _| {
        assert_eq!(done["result"]["deleted"], true, "step {number}: {done:#}");
        assert!(!world.ssh.root().join(format!("{number}.old")).exists());
    },
};

const FETCH: Case = Case {
    resource: "sftp",
    prepare: |root, number| fs::write(root.join(format!("export-{number}")), CONTENT).unwrap(),
    job: |number| job("sftp", "fetch", json!({"path": format!("export-{number}")})),
    consume: |_, _| 0,
    ends: &["succeeded"],
    check: |done, world, number, _| {
        assert_eq!(done["output"]["size"], json!(CONTENT.len()), "step {number}: {done:#}");
        let path = world.ssh.root().join(format!("export-{number}"));
        assert_eq!(fs::read_to_string(&path).unwrap(), CONTENT);
        fs::remove_file(path).unwrap();
    },
};

/// Larger than what a report carries, so that more goes over the line.
const FETCH_AND_DELETE: Case = Case {
    prepare: |root, number| fs::write(root.join(format!("export-{number}")), large(number)).unwrap(),
    job: |number| job("sftp", "fetch", json!({"path": format!("export-{number}"), "then": "delete"})),
    check: |done, world, number, _| {
        assert_eq!(done["output"]["sha256"], json!(Sha256::of(&large(number)).to_string()), "{done:#}");
        assert_eq!(done["result"]["then"], "deleted", "step {number}: {done:#}");
        assert!(!world.ssh.root().join(format!("export-{number}")).exists(), "step {number}");
    },
    ..FETCH
};

const FETCH_AND_MOVE: Case = Case {
    job: |number| {
        let to = format!("{number}.csv");
        job("sftp", "fetch", json!({"path": format!("export-{number}"), "then": {"move_to": to}}))
    },
    check: |done, world, number, _| {
        assert_eq!(done["output"]["size"], json!(CONTENT.len()), "step {number}: {done:#}");
        assert_eq!(done["result"]["moved_to"], json!(format!("{number}.csv")), "step {number}: {done:#}");
        assert!(!world.ssh.root().join(format!("export-{number}")).exists(), "step {number}");
        assert_eq!(take(world.ssh.root(), number), 1, "step {number}: {done:#}");
    },
    ..FETCH
};

fn large(number: u64) -> Vec<u8> {
    format!("{number};{CONTENT}").repeat(20_000).into_bytes()
}

const LIST: Case = Case {
    resource: "sftp",
    prepare: |root, number| fs::write(root.join(format!("{number}.txt")), CONTENT).unwrap(),
    job: |_| job("sftp", "list", json!({"pattern": "*.txt"})),
    consume: |_, _| 0,
    ends: &["succeeded"],
    check: |done, world, number, _| {
        assert_eq!(done["result"]["items"].as_array().map(Vec::len), Some(1), "step {number}: {done:#}");
        fs::remove_file(world.ssh.root().join(format!("{number}.txt"))).unwrap();
    },
};

const STAT: Case = Case {
    resource: "sftp",
    prepare: |root, number| fs::write(root.join(format!("{number}.txt")), CONTENT).unwrap(),
    job: |number| job("sftp", "stat", json!({"path": format!("{number}.txt")})),
    consume: |_, _| 0,
    ends: &["succeeded"],
    check: |done, world, number, _| {
        assert_eq!(done["result"]["size"], json!(CONTENT.len()), "step {number}: {done:#}");
        fs::remove_file(world.ssh.root().join(format!("{number}.txt"))).unwrap();
    },
};

const NOTIFY: Case = Case {
    resource: "orders-app",
    prepare: nothing,
    job: |number| notify_job(&format!("orders/{number}")),
    consume: |_, _| 0,
    ends: &["succeeded"],
    check: told_under_one_key,
};

const REQUEST: Case = Case {
    resource: "orders-app",
    prepare: nothing,
    job: |number| job("orders-app", "request", json!({"method": "POST", "path": format!("orders/{number}")})),
    consume: |_, _| 0,
    ends: &["succeeded"],
    check: told_under_one_key,
};

fn told_under_one_key(done: &Value, world: &World, number: u64, _: usize) {
    let told: Vec<_> =
        world.app.requests().into_iter().filter(|r| r.uri == format!("/orders/{number}")).collect();
    assert!(!told.is_empty(), "step {number}: {done:#}");
    let keys: BTreeSet<&str> = told.iter().map(|request| request.header("idempotency-key")).collect();
    assert_eq!(keys, BTreeSet::from([done["id"].as_str().unwrap()]), "step {number}");
}

/// Both directions of a line.
async fn at_each_request_and_answer(case: &Case, fault: Fault, least: u64) {
    let (requests, answers) =
        tokio::join!(at_each_step(case, Step::Request, fault), at_each_step(case, Step::Answer, fault));
    assert!(requests >= least && answers >= least, "only {requests} and {answers} steps were tried");
}

async fn at_each_message(case: &Case, fault: Fault) {
    let (told, heard) =
        tokio::join!(at_each_step(case, Step::Told, fault), at_each_step(case, Step::Heard, fault));
    // Accept and report at least, and offer and acknowledgement.
    assert!(told >= 2 && heard >= 1, "only {told} and {heard} messages were held");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_happens_once_though_the_agent_dies_at_any_step() {
    at_each_request_and_answer(&DROP, Fault::AgentDies, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_happens_once_though_the_file_server_dies_at_any_step() {
    at_each_request_and_answer(&DROP, Fault::FileServerDies, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_happens_once_though_the_line_to_the_file_server_is_cut_at_any_step() {
    at_each_request_and_answer(&DROP, Fault::LineIsCut, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_happens_once_though_the_agent_dies_at_any_message() {
    at_each_message(&DROP, Fault::AgentDies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_happens_once_though_the_hub_dies_at_any_message() {
    at_each_message(&DROP, Fault::HubDies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_happens_once_though_the_tunnel_is_cut_at_any_message() {
    at_each_message(&DROP, Fault::LineIsCut).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_happens_once_though_the_agent_dies_at_any_step() {
    at_each_request_and_answer(&MOVE, Fault::AgentDies, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_happens_once_though_the_file_server_dies_at_any_step() {
    at_each_request_and_answer(&MOVE, Fault::FileServerDies, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_file_that_was_taken_away_before_the_reply_came_is_unknown_at_worst() {
    at_each_request_and_answer(&MOVE_AND_TAKE, Fault::AgentDies, 2).await;
    at_each_request_and_answer(&MOVE_AND_TAKE, Fault::FileServerDies, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_happens_once_though_the_hub_dies_at_any_message() {
    at_each_message(&MOVE, Fault::HubDies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_happens_once_though_the_agent_dies_at_any_step() {
    at_each_request_and_answer(&DELETE, Fault::AgentDies, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_happens_once_though_the_file_server_dies_at_any_step() {
    at_each_request_and_answer(&DELETE, Fault::FileServerDies, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_happens_once_though_the_hub_dies_at_any_message() {
    at_each_message(&DELETE, Fault::HubDies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fetched_is_whole_though_agent_or_file_server_die_at_any_step() {
    at_each_request_and_answer(&FETCH, Fault::AgentDies, 2).await;
    at_each_request_and_answer(&FETCH, Fault::FileServerDies, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fetched_is_whole_though_the_hub_dies_at_any_message() {
    at_each_message(&FETCH, Fault::HubDies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fetched_and_deleted_is_whole_though_the_agent_dies_at_any_step() {
    at_each_request_and_answer(&FETCH_AND_DELETE, Fault::AgentDies, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fetched_and_deleted_is_whole_though_the_file_server_dies_at_any_step() {
    at_each_request_and_answer(&FETCH_AND_DELETE, Fault::FileServerDies, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fetched_and_deleted_is_whole_though_the_agent_dies_at_any_message() {
    at_each_message(&FETCH_AND_DELETE, Fault::AgentDies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fetched_and_moved_is_whole_though_agent_or_file_server_die_at_any_step() {
    at_each_request_and_answer(&FETCH_AND_MOVE, Fault::AgentDies, 4).await;
    at_each_request_and_answer(&FETCH_AND_MOVE, Fault::FileServerDies, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fetched_and_moved_is_whole_though_the_hub_dies_or_the_tunnel_is_cut_at_any_message() {
    at_each_message(&FETCH_AND_MOVE, Fault::HubDies).await;
    at_each_message(&FETCH_AND_MOVE, Fault::LineIsCut).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_at_files_is_answered_though_agent_or_file_server_die_at_any_step() {
    for case in [&LIST, &STAT] {
        at_each_request_and_answer(case, Fault::AgentDies, 1).await;
        at_each_request_and_answer(case, Fault::FileServerDies, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_told_under_one_key_though_the_agent_dies_at_any_step() {
    for case in [&NOTIFY, &REQUEST] {
        at_each_request_and_answer(case, Fault::AgentDies, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_told_under_one_key_though_its_line_is_cut_at_any_step() {
    for case in [&NOTIFY, &REQUEST] {
        at_each_request_and_answer(case, Fault::LineIsCut, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_told_under_one_key_though_the_hub_dies_at_any_message() {
    for case in [&NOTIFY, &REQUEST] {
        at_each_message(case, Fault::HubDies).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_told_under_one_key_though_the_tunnel_is_cut_at_any_message() {
    for case in [&NOTIFY, &REQUEST] {
        at_each_message(case, Fault::LineIsCut).await;
    }
}
