//! FTP and WebDAV through hub and agent: a fault at every step of an operation, and large files in little memory.
//!
//! Unlike SFTP neither protocol can bring a file to the disk, so that after a fault only the file itself proves that it
//! arrived: where a consumer has taken it meanwhile, the job ends `unknown`, and is not delivered a second time.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use crate::common::{SITE, drop_into, files_below, job};
use passerelle_tests::{Agent, Content, Hub, Protocol, Proxy, Share, ended, is_root, until};
use serde_json::{Value, json};
use std::{collections::HashSet, fs, io::Write as _, path::Path, time::Duration};

/// How long a job may take to recover from one fault.
const RECOVERED: Duration = Duration::from_secs(60);
/// More steps than any operation has.
const MOST_STEPS: u64 = 60;
const CONTENT: &str = "journal;date;montant\n";

/// Whose message is held back on the line between agent and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Request,
    Answer,
}

/// What happens then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    AgentDies,
    ServerDies,
    LineIsCut,
}

/// One operation: what is there before, the job, and what must be there afterwards.
struct Case {
    prepare: fn(&Path, u64),
    job: fn(u64) -> Value,
    /// Whether a consumer takes the file away as soon as it is there, right after the fault too.
    taken: bool,
    ends: &'static [&'static str],
    /// The file that must have arrived exactly once.
    arrives: Option<fn(u64) -> String>,
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
    taken: false,
    ends: &["succeeded"],
    arrives: Some(|number| format!("{number}.csv")),
};

const DROP_AND_TAKE: Case = Case { taken: true, ends: &["succeeded", "unknown"], ..DROP };

const MOVE: Case = Case {
    prepare: |root, number| fs::write(root.join(format!("from-{number}")), CONTENT).unwrap(),
    job: |number| {
        job("share", "move", json!({"from": format!("from-{number}"), "to": format!("{number}.csv")}))
    },
    ..DROP
};

const DELETE: Case = Case {
    prepare: |root, number| fs::write(root.join(format!("{number}.old")), CONTENT).unwrap(),
    job: |number| job("share", "delete", json!({"path": format!("{number}.old")})),
    arrives: None,
    ..DROP
};

const FETCH: Case = Case {
    prepare: |root, number| fs::write(root.join(format!("{number}.csv")), CONTENT).unwrap(),
    job: |number| job("share", "fetch", json!({"path": format!("{number}.csv")})),
    ..DROP
};

fn take(path: &Path) -> usize {
    let Ok(found) = fs::read_to_string(path) else { return 0 };
    assert_eq!(found, CONTENT, "the file is not whole");
    fs::remove_file(path).unwrap();
    1
}

/// Runs the case once for each step, with the fault at it. Gives the number of steps.
async fn at_each_step(protocol: Protocol, case: &Case, step: Step, fault: Fault) -> u64 {
    let (hub, mut share) = (Hub::start().await, Share::start(protocol));
    let line = Proxy::start(share.port()).await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    share.serve_through(&agent, "share", line.port());
    agent.start().await;
    let root = share.root().to_owned();
    for number in 0..MOST_STEPS {
        agent.ready().await;
        // A connection that is kept is there already: the steps are those of the operation.
        hub.api.succeed(&job("share", "list", json!({}))).await;
        (case.prepare)(&root, number);
        match step {
            Step::Request => line.hold_after(Some(number)),
            Step::Answer => line.hold_answers_after(Some(number)),
        }
        let id = hub.api.submit(&(case.job)(number)).await;
        let held = until("the job to end or be held", RECOVERED, async || {
            let ended = ended(&hub.api.job(&id).await);
            (ended || line.is_holding()).then_some(!ended)
        })
        .await;
        let arrives = case.arrives.map(|name| root.join(name(number)));
        let consume = || arrives.as_deref().filter(|_| case.taken).map_or(0, take);
        let mut found = consume();
        if held {
            match fault {
                Fault::AgentDies => agent.kill(),
                Fault::ServerDies => share.stop(),
                Fault::LineIsCut => {}
            }
            line.cut();
            line.heal();
            match fault {
                Fault::AgentDies => drop(agent.spawn()),
                Fault::ServerDies => share.restart(),
                Fault::LineIsCut => {}
            }
        } else {
            line.heal();
        }
        let done = hub.api.end_of(&id, RECOVERED).await;
        let end = done["state"].as_str().unwrap_or_default();
        assert!(case.ends.contains(&end), "{fault:?} at {step:?} {number}: {done:#}");
        if let Some(path) = arrives {
            found += take(&path);
            assert_eq!(found, 1, "{fault:?} at {step:?} {number}: {done:#}");
        }
        let clean = async || files_below(&root).is_empty().then_some(());
        let what = format!("nothing to be left of step {number}: {:?}", files_below(&root));
        until(&what, RECOVERED, clean).await;
        if !held {
            return number;
        }
    }
    panic!("the operation has more than {MOST_STEPS} steps");
}

/// Over FTP and WebDAV, in both directions of the line.
async fn everywhere(case: &Case, fault: Fault, least: u64) {
    for protocol in [Protocol::Ftp, Protocol::WebDav] {
        if protocol == Protocol::Ftp && !is_root() {
            eprintln!("skipped: only root can start vsftpd with an account of the tests' own");
            continue;
        }
        let (requests, answers) = tokio::join!(
            at_each_step(protocol, case, Step::Request, fault),
            at_each_step(protocol, case, Step::Answer, fault)
        );
        assert!(requests >= least && answers >= least, "{protocol:?}: only {requests} and {answers} steps");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_over_ftp_or_webdav_happens_once_though_the_server_dies_at_any_step() {
    everywhere(&DROP, Fault::ServerDies, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_over_ftp_or_webdav_that_is_taken_at_once_is_unknown_at_worst_though_the_agent_dies() {
    everywhere(&DROP_AND_TAKE, Fault::AgentDies, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_over_ftp_or_webdav_happens_once_though_the_line_is_cut_at_any_step() {
    everywhere(&DROP, Fault::LineIsCut, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_over_ftp_or_webdav_happens_once_though_the_agent_dies_at_any_step() {
    everywhere(&MOVE, Fault::AgentDies, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_over_ftp_or_webdav_happens_once_though_the_line_is_cut_at_any_step() {
    everywhere(&DELETE, Fault::LineIsCut, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_over_ftp_or_webdav_is_whole_though_the_server_dies_at_any_step() {
    everywhere(&FETCH, Fault::ServerDies, 2).await;
}

/// Neither vsftpd nor Apache can refuse a rename onto a name that was taken a moment ago: the hub lets one agent at a time go on
/// with a path.
#[tokio::test(flavor = "multi_thread")]
async fn two_agents_of_a_site_never_take_the_same_name() {
    const DROPS: usize = 40;
    for protocol in [Protocol::Ftp, Protocol::WebDavs] {
        if matches!(protocol, Protocol::Ftp) && !is_root() {
            eprintln!("skipped: only root can start vsftpd with an account of the tests' own");
            continue;
        }
        let hub = Hub::start().await;
        let share = Share::start(protocol);
        let mut agents = Vec::new();
        for name in ["paris-1", "paris-2"] {
            let mut agent = Agent::new(&hub, SITE, name);
            share.serve_to(&agent, "share");
            agent.start().await;
            agents.push(agent);
        }
        hub.api.agents_online(SITE, 2).await;
        let mut jobs = Vec::new();
        for n in 0..DROPS {
            let mut suffix = drop_into("share", "in.csv", json!({"text": format!("content {n}")}));
            suffix["params"]["on_conflict"] = json!("suffix");
            jobs.push((n, hub.api.submit(&suffix).await));
            let mut only =
                drop_into("share", &format!("only {}.csv", n / 4), json!({"text": format!("{n}")}));
            only["params"]["on_conflict"] = json!("fail");
            jobs.push((DROPS + n / 4, hub.api.submit(&only).await));
        }
        let (mut names, mut winners) = (HashSet::new(), vec![0; DROPS / 4]);
        for (n, id) in jobs {
            let done = hub.api.end_of(&id, RECOVERED).await;
            if n >= DROPS {
                winners[n - DROPS] += usize::from(done["state"] == "succeeded");
                continue;
            }
            assert_eq!(done["state"], "succeeded", "{protocol:?}: {done:#}");
            let name = done["result"]["path"].as_str().unwrap().to_owned();
            let arrived = fs::read_to_string(share.root().join(&name)).unwrap();
            assert_eq!(arrived, format!("content {n}"), "{protocol:?}: {name}");
            assert!(names.insert(name), "{protocol:?}: {done:#}");
        }
        assert_eq!(winners, vec![1; DROPS / 4], "{protocol:?}");
    }
}

/// What the agent may use.
const MEMORY_KIB: u64 = 64 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_megabytes_over_ftp_and_webdav_take_little_memory() {
    const SIZE: u64 = 300_000_000;
    let hub = Hub::start().await;
    let source = tempfile::tempdir().unwrap();
    let content = Content::write(source.path(), SIZE);
    let blob = hub.api.upload(&content).await;
    for protocol in [Protocol::Ftp, Protocol::Ftps, Protocol::WebDav, Protocol::WebDavs] {
        if matches!(protocol, Protocol::Ftp | Protocol::Ftps) && !is_root() {
            eprintln!("skipped: only root can start vsftpd with an account of the tests' own");
            continue;
        }
        let share = Share::start(protocol);
        // An agent of its own each: the peak is the process's.
        let mut agent = Agent::new(&hub, &format!("site-{protocol:?}").to_lowercase(), "agent");
        share.serve_to(&agent, "share");
        agent.start().await;
        let at_site = |mut job: Value| {
            job["site"] = json!(format!("site-{protocol:?}").to_lowercase());
            job
        };
        let patience = Duration::from_secs(300);
        let drop = at_site(drop_into("share", "grand.bin", json!({"blob": blob["id"]})));
        let id = hub.api.submit(&drop).await;
        let done = hub.api.end_of(&id, patience).await;
        assert_eq!(done["state"], "succeeded", "{protocol:?}: {done:#}");
        let arrived = Content::of_file(&share.root().join("grand.bin"));
        assert_eq!((arrived.size, &arrived.sha256), (SIZE, &content.sha256), "{protocol:?}");
        let dropped = agent.process().peak_kib();
        let id = hub.api.submit(&at_site(job("share", "fetch", json!({"path": "grand.bin"})))).await;
        let done = hub.api.end_of(&id, patience).await;
        assert_eq!(done["output"]["sha256"], json!(content.sha256), "{protocol:?}: {done:#}");
        let peak = agent.process().peak_kib();
        // Past the capturing of the test runner: the figures belong into every log.
        writeln!(
            std::io::stderr(),
            "{SIZE} bytes over {protocol:?}: at most {dropped} KiB of memory for the agent after the drop, {peak} KiB after the fetch"
        )
        .unwrap();
        assert!(peak < MEMORY_KIB, "{protocol:?}: the agent's memory peaked at {peak} KiB");
        agent.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_page_shows_what_jobs_have_found_since_the_probe() {
    let mut share = Share::start(Protocol::WebDav);
    share.stop();
    let hub = Hub::start().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    share.serve_to(&agent, "share");
    agent.start().await;
    let problem = async |wanted: bool| {
        until("what is wrong with the share", RECOVERED, async || {
            let status = agent.status().await;
            let probe = status["resources"]["share"]["probe"].clone();
            (probe.is_object() && probe["problem"].is_string() == wanted).then_some(probe)
        })
        .await
    };
    let at_start = problem(true).await;
    share.restart();
    hub.api.succeed(&drop_into("share", "a.csv", json!({"text": CONTENT}))).await;
    let found = problem(false).await;
    assert!(found["at"].as_str() > at_start["at"].as_str(), "{found}");
    share.stop();
    let mut once = drop_into("share", "b.csv", json!({"text": CONTENT}));
    once["max_attempts"] = json!(1);
    hub.api.submit(&once).await;
    let lost = problem(true).await;
    assert!(lost["at"].as_str() > found["at"].as_str(), "{lost}");
}
