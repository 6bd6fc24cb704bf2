//! An agent that is frozen past its lease at any message of a drop, and lets go later: two agents of a site never both
//! act. And the share replaced by an empty one meanwhile: what cannot be known is said, never guessed.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use crate::common::{SITE, drop_into, job, notify_job};
use passerelle_tests::{Agent, App, Hub, Proxy, ended, resources};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Short, so that the tests are.
const LEASE: Duration = Duration::from_secs(3);
/// How long the other agent may take to finish a job, lease included.
const FINISHED: Duration = Duration::from_secs(60);
/// More messages than a drop has.
const MOST_MESSAGES: u64 = 20;
const CONTENT: &str = "journal;date;montant\n";

/// A hub and two agents of one site with the folder `compta` and an application; the first one behind a proxy.
struct Pair {
    first: Agent,
    second: Agent,
    hub: Hub,
    app: App,
    tunnel: Proxy,
    home: tempfile::TempDir,
}

impl Pair {
    async fn start() -> Self {
        let hub = Hub::start_with_lease(LEASE).await;
        let (tunnel, app) = (Proxy::start(hub.port()).await, App::start().await);
        let home = tempfile::tempdir().unwrap();
        let share = home.path().join("share");
        fs::create_dir(&share).unwrap();
        let mut first = Agent::new(&hub, SITE, "paris-1");
        let mut second = Agent::new(&hub, SITE, "paris-2");
        for agent in [&first, &second] {
            agent.resource("compta", &resources::folder("compta", &share));
            agent.resource("orders-app", &resources::application("orders-app", &app.url));
        }
        first.through(&tunnel.url()).start().await;
        // Both are of the site from the start: what the first one does it asks for.
        second.start().await;
        Self { first, second, hub, app, tunnel, home }
    }

    fn share(&self) -> PathBuf {
        self.home.path().join("share")
    }

    /// Only the first agent is there.
    async fn first_alone(&mut self) {
        self.first.ready().await;
        self.second.kill();
        self.hub.api.agents_online(SITE, 1).await;
    }

    /// Submits a job and freezes the first agent when its message of this number is held back; `None`: the job got
    /// through before.
    async fn freeze_at(&mut self, message: u64, answers: bool, job: &Value) -> Option<String> {
        let hold = |pieces| {
            if answers { self.tunnel.hold_answers_after(pieces) } else { self.tunnel.hold_after(pieces) }
        };
        hold(Some(message));
        let id = self.hub.api.submit(job).await;
        let held = passerelle_tests::until("the job to end or be held", FINISHED, async || {
            let ended = ended(&self.hub.api.job(&id).await);
            (ended || self.tunnel.is_holding()).then_some(!ended)
        })
        .await;
        // What is held may be the answer to the report: the job was over before its last look.
        if held && !ended(&self.hub.api.job(&id).await) {
            self.first.process().signal(Signal::STOP);
            return Some(id);
        }
        self.tunnel.heal();
        None
    }

    /// Lets the first agent go on, with all that was held back on its way.
    async fn let_go(&mut self) {
        self.tunnel.heal();
        self.first.process().signal(Signal::CONT);
        self.first.ready().await;
        // Ready again means that both sides agreed on every job; a further one shows that reports have gone before it.
        self.second.kill();
        self.hub.api.agents_online(SITE, 1).await;
        self.hub.api.succeed(&job("compta", "list", json!({}))).await;
    }
}

fn a_drop(number: u64) -> Value {
    drop_into("compta", &format!("{number}.csv"), json!({"text": CONTENT}))
}

/// Takes the dropped file away as an import would; gives how many there were.
fn take(share: &Path, number: u64) -> usize {
    let path = share.join(format!("{number}.csv"));
    let Ok(found) = fs::read_to_string(&path) else { return 0 };
    assert_eq!(found, CONTENT, "the file is not whole");
    fs::remove_file(path).unwrap();
    1
}

fn parts(share: &Path) -> Vec<String> {
    let names = fs::read_dir(share).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with('.')).collect()
}

/// Gives how many messages were tried.
async fn a_drop_frozen_at_each_message(answers: bool) -> u64 {
    let mut pair = Pair::start().await;
    let share = pair.share();
    for number in 0..MOST_MESSAGES {
        pair.first_alone().await;
        let Some(id) = pair.freeze_at(number, answers, &a_drop(number)).await else {
            assert_eq!(take(&share, number), 1);
            return number;
        };
        let mut found = take(&share, number);
        pair.second.start().await;
        let done = pair.hub.api.end_of(&id, FINISHED).await;
        found += take(&share, number);
        assert_eq!(done["state"], "succeeded", "message {number}: {done:#}");
        pair.let_go().await;
        found += take(&share, number);
        let after = pair.hub.api.job(&id).await;
        assert_eq!(found, 1, "message {number}: a consumer saw the file {found} times: {after:#}");
        assert_eq!(after["state"], "succeeded", "message {number}: {after:#}");
        let what = format!("{:?} to be gone after message {number}: {after:#}", parts(&share));
        passerelle_tests::until(&what, FINISHED, async || parts(&share).is_empty().then_some(())).await;
    }
    panic!("a drop has more than {MOST_MESSAGES} messages");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_frozen_past_its_lease_at_any_message_and_its_successor_drop_a_file_once() {
    let (told, heard) =
        tokio::join!(a_drop_frozen_at_each_message(false), a_drop_frozen_at_each_message(true));
    // Accept, commit, report at least; offer and grant.
    assert!(told >= 3 && heard >= 2, "only {told} and {heard} messages were held");
}

/// Another operation: what is there before, the job, and what must be there when both agents are through with it.
struct Case {
    prepare: fn(&Path, u64),
    job: fn(u64) -> Value,
    check: fn(&Pair, u64, &Value),
}

const MOVE: Case = Case {
    prepare: |share, number| fs::write(share.join(format!("from-{number}")), CONTENT).unwrap(),
    job: |number| {
        job("compta", "move", json!({"from": format!("from-{number}"), "to": format!("{number}.csv")}))
    },
    check: |pair, number, end| {
        assert!(!pair.share().join(format!("from-{number}")).exists(), "{end:#}");
        assert_eq!(take(&pair.share(), number), 1, "{end:#}");
    },
};

const DELETE: Case = Case {
    prepare: |share, number| fs::write(share.join(format!("{number}.old")), CONTENT).unwrap(),
    job: |number| job("compta", "delete", json!({"path": format!("{number}.old")})),
    check: |pair, number, end| assert!(!pair.share().join(format!("{number}.old")).exists(), "{end:#}"),
};

const FETCH: Case = Case {
    prepare: |share, number| fs::write(share.join(format!("export-{number}")), CONTENT).unwrap(),
    job: |number| job("compta", "fetch", json!({"path": format!("export-{number}")})),
    check: |pair, number, end| {
        assert_eq!(end["output"]["size"], json!(CONTENT.len()), "{end:#}");
        assert!(pair.share().join(format!("export-{number}")).exists(), "{end:#}");
    },
};

const FETCH_AND_DELETE: Case = Case {
    job: |number| job("compta", "fetch", json!({"path": format!("export-{number}"), "then": "delete"})),
    check: |pair, number, end| {
        assert_eq!(end["output"]["size"], json!(CONTENT.len()), "{end:#}");
        assert!(!pair.share().join(format!("export-{number}")).exists(), "{end:#}");
        assert_eq!(parts(&pair.share()), [""; 0], "{end:#}");
    },
    ..FETCH
};

const FETCH_AND_MOVE: Case = Case {
    job: |number| {
        let to = format!("{number}.csv");
        job("compta", "fetch", json!({"path": format!("export-{number}"), "then": {"move_to": to}}))
    },
    check: |pair, number, end| {
        assert_eq!(end["output"]["size"], json!(CONTENT.len()), "{end:#}");
        assert!(!pair.share().join(format!("export-{number}")).exists(), "{end:#}");
        assert_eq!(take(&pair.share(), number), 1, "{end:#}");
        assert_eq!(parts(&pair.share()), [""; 0], "{end:#}");
    },
    ..FETCH
};

const NOTIFY: Case = Case {
    prepare: |_, _| (),
    job: |number| notify_job(&format!("orders/{number}")),
    check: |pair, number, end| {
        let uri = format!("/orders/{number}");
        let told: Vec<_> = pair.app.requests().into_iter().filter(|request| request.uri == uri).collect();
        assert!(!told.is_empty(), "{end:#}");
        assert!(told.iter().all(|request| json!(request.header("idempotency-key")) == end["id"]), "{told:?}");
    },
};

/// Gives how many messages were tried.
async fn frozen_at_each_message(case: &Case, answers: bool) -> u64 {
    let mut pair = Pair::start().await;
    for number in 0..MOST_MESSAGES {
        pair.first_alone().await;
        (case.prepare)(&pair.share(), number);
        let Some(id) = pair.freeze_at(number, answers, &(case.job)(number)).await else { return number };
        pair.second.start().await;
        let done = pair.hub.api.end_of(&id, FINISHED).await;
        assert_eq!(done["state"], "succeeded", "message {number}: {done:#}");
        pair.let_go().await;
        let after = pair.hub.api.job(&id).await;
        assert_eq!(after["state"], "succeeded", "message {number}: {after:#}");
        (case.check)(&pair, number, &after);
    }
    panic!("the operation has more than {MOST_MESSAGES} messages");
}

async fn each_message_of_each(cases: [&Case; 2]) {
    let [one, other] = cases;
    let tried = tokio::join!(
        frozen_at_each_message(one, false),
        frozen_at_each_message(one, true),
        frozen_at_each_message(other, false),
        frozen_at_each_message(other, true)
    );
    // Accept and report at least, and the offer.
    assert!(
        tried.0 >= 2 && tried.1 >= 1 && tried.2 >= 2 && tried.3 >= 1,
        "only {tried:?} messages were held"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_frozen_past_its_lease_and_its_successor_move_and_delete_a_file_once() {
    each_message_of_each([&MOVE, &DELETE]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_frozen_past_its_lease_and_its_successor_fetch_a_file_and_tell_under_one_key() {
    each_message_of_each([&FETCH, &NOTIFY]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_frozen_past_its_lease_and_its_successor_fetch_a_file_and_take_it_away_once() {
    each_message_of_each([&FETCH_AND_DELETE, &FETCH_AND_MOVE]).await;
}

/// What is true of a job whose share was replaced: success only with a file that is there, once.
fn judge(end: &Value, number: u64, old: &Path, new: &Path) {
    let count = |share: &Path| usize::from(share.join(format!("{number}.csv")).exists());
    let files = count(old) + count(new);
    assert!(files <= 1, "message {number}: the file lies in both shares: {end:#}");
    match end["state"].as_str() {
        Some("succeeded") => assert_eq!(files, 1, "message {number}: a false success: {end:#}"),
        Some("unknown") => assert_eq!(end["error"]["effect"], "unknown", "{end:#}"),
        _ => panic!("message {number}: {end:#}"),
    }
}

/// Gives how many messages were tried, and how often the outcome was `unknown`.
async fn a_share_replaced_at_each_message(answers: bool) -> (u64, u64) {
    let mut pair = Pair::start().await;
    let share = pair.share();
    let mut unknown = 0;
    for number in 0..MOST_MESSAGES {
        pair.first_alone().await;
        let Some(id) = pair.freeze_at(number, answers, &a_drop(number)).await else {
            return (number, unknown);
        };
        let old = pair.home.path().join(format!("old-{number}"));
        let was_there = share.join(format!("{number}.csv")).exists();
        fs::rename(&share, &old).unwrap();
        fs::create_dir(&share).unwrap();
        pair.second.start().await;
        let done = pair.hub.api.end_of(&id, FINISHED).await;
        let there = share.join(format!("{number}.csv")).exists();
        // Nobody but the frozen agent can know of a file that went with the old share.
        if !there {
            assert_eq!(done["state"], "unknown", "message {number}, in the old share {was_there}: {done:#}");
            unknown += 1;
        }
        judge(&done, number, &old, &share);
        pair.let_go().await;
        judge(&pair.hub.api.job(&id).await, number, &old, &share);
    }
    panic!("a drop has more than {MOST_MESSAGES} messages");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_replaced_while_the_agent_was_frozen_gives_unknown_and_never_a_false_success() {
    let ((told, unknown), (heard, unknown_too)) =
        tokio::join!(a_share_replaced_at_each_message(false), a_share_replaced_at_each_message(true));
    assert!(told >= 3 && heard >= 2, "only {told} and {heard} messages were held");
    assert!(unknown + unknown_too > 0, "the share was never replaced between grant and report");
}

/// A drop that must not replace, whose agent is killed at each message in turn; somebody else takes the name, the other agent
/// goes on, and then the first one comes back. Gives how many messages were tried, and how many drops were found taken.
async fn killed_and_taken_at_each_message(answers: bool) -> (u64, usize) {
    const THEIRS: &str = "somebody else's\n";
    let mut pair = Pair::start().await;
    let mut taken = 0;
    for number in 0..MOST_MESSAGES {
        pair.first_alone().await;
        let mut wish = a_drop(number);
        wish["params"]["on_conflict"] = json!("fail");
        let Some(id) = pair.freeze_at(number, answers, &wish).await else { return (number, taken) };
        let target = pair.share().join(format!("{number}.csv"));
        pair.first.kill();
        pair.tunnel.heal();
        let theirs = !target.exists();
        if theirs {
            fs::write(&target, THEIRS).unwrap();
        }
        pair.second.start().await;
        let told = pair.hub.api.end_of(&id, FINISHED).await;
        let (state, effect) =
            if theirs { ("failed", json!("not_applied")) } else { ("succeeded", Value::Null) };
        assert_eq!((told["state"].as_str(), &told["error"]["effect"]), (Some(state), &effect), "{told:#}");
        // The first one finds its part gone, and nothing at the target that is its own.
        pair.first.start().await;
        pair.first.ready().await;
        pair.second.kill();
        pair.hub.api.agents_online(SITE, 1).await;
        pair.hub.api.succeed(&job("compta", "list", json!({}))).await;
        let after = pair.hub.api.job(&id).await;
        assert_eq!(
            (&after["state"], &after["receipt"]),
            (&told["state"], &told["receipt"]),
            "message {number}: {after:#}"
        );
        let content = fs::read_to_string(&target).unwrap();
        assert_eq!(content, if theirs { THEIRS } else { CONTENT }, "message {number}: {after:#}");
        let shown = pair.first.output(&["audit", "show", "--json"]);
        let shown = String::from_utf8(shown.stdout).unwrap();
        let applied = shown.lines().filter(|row| row.contains(&id)).any(|row| row.contains("\"applied\""));
        assert!(!theirs || !applied, "message {number}: {shown}");
        taken += usize::from(theirs);
    }
    panic!("a drop has more than {MOST_MESSAGES} messages");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_killed_and_finds_its_part_gone_claims_no_success() {
    let ((told, lost), (heard, lost_too)) =
        tokio::join!(killed_and_taken_at_each_message(false), killed_and_taken_at_each_message(true));
    assert!(
        told >= 3 && heard >= 2 && lost + lost_too >= 3,
        "{told} and {heard} messages, {lost} and {lost_too} lost"
    );
}
