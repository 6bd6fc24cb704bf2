//! A breached hub tries everything it can think of on one agent: forged and stolen signatures, tricks with paths and
//! addresses, broken and endless frames. Nothing has an effect outside the owner's rules, nothing stops the agent.
//!
//! The attacks are tables: what is signed wrongly in `signatures`, what is signed rightly but reaches for more in
//! `requests`, what is no honest message at all in `frames`.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

mod frames;
mod requests;
mod signatures;
mod world;

use crate::audit::{rows, verify};
use passerelle_tests::{Agent, PATIENCE, Session, until};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use world::World;

/// What must come of an attack.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// Not taken, with this code.
    Declined(&'static str),
    /// Taken as a job, ended without any effect, with one of these codes.
    Refused(&'static [&'static str]),
    /// Taken as a job that another agent had begun, by the hub's word; ended with this code, and nothing done.
    Undecided(&'static str),
    /// The call may even be right by the owner's rules; but nothing happens outside of them.
    Contained,
}

/// One offer of a hostile hub.
struct Attack {
    name: &'static str,
    offer: Value,
    outcome: Outcome,
}

impl Attack {
    fn new(name: &'static str, offer: Value, outcome: Outcome) -> Self {
        Self { name, offer, outcome }
    }
}

/// Sends the offer, and acknowledges and gives the answer to it.
async fn answer(session: &mut Session, offer: &Value) -> Value {
    session.send(offer).await;
    loop {
        let answer = session.receive(&["decline", "report"]).await;
        if answer["type"] == "report" {
            let ack = json!({"type": "report_ack", "job": answer["job"], "attempt": answer["attempt"]});
            session.send(&ack).await;
        }
        if answer["job"] == offer["job"] {
            return answer;
        }
    }
}

fn judge(name: &str, outcome: Outcome, answer: &Value) {
    match outcome {
        Outcome::Declined(code) => {
            assert_eq!(
                (&answer["type"], &answer["code"]),
                (&json!("decline"), &json!(code)),
                "{name}: {answer:#}"
            );
        }
        Outcome::Refused(codes) => {
            assert_eq!(answer["type"], "report", "{name}: {answer:#}");
            let end = &answer["outcome"];
            let code = end["code"].as_str().unwrap_or_default();
            assert!(codes.contains(&code), "{name}: one of {codes:?} was expected: {answer:#}");
            assert_eq!(end["effect"], "not_applied", "{name}: {answer:#}");
        }
        Outcome::Undecided(code) => {
            assert_eq!(answer["type"], "report", "{name}: {answer:#}");
            let end = &answer["outcome"];
            assert_eq!(
                (&end["code"], &end["effect"]),
                (&json!(code), &json!("unknown")),
                "{name}: {answer:#}"
            );
        }
        Outcome::Contained => {}
    }
}

/// How often rows of this kind and code tell of something, with what they only counted.
fn told(rows: &[Value], kind: &str, code: &str) -> u64 {
    rows.iter()
        .filter(|row| row["kind"] == kind && row["code"].as_str().unwrap_or_default() == code)
        .map(|row| row["count"].as_u64().unwrap_or(1))
        .sum()
}

/// Waits until the audit tells of each offer: of a job with its id and code, of those that were not taken how many.
async fn every_offer_is_told(agent: &Agent, jobs: &[(&str, Value)], declined: &BTreeMap<&str, u64>) {
    let ends = ["denied", "failed", "unknown", "retry", "succeeded"];
    let missing = |rows: &[Value]| -> Vec<String> {
        let ended = |answer: &Value| {
            rows.iter().any(|row| {
                row["job"] == answer["job"]
                    && ends.iter().any(|kind| row["kind"] == *kind)
                    && row["code"] == answer["outcome"]["code"]
            })
        };
        let untold = jobs.iter().filter(|(_, answer)| !ended(answer)).map(|(name, _)| (*name).to_owned());
        let short = declined.iter().filter(|(code, count)| told(rows, "offer_refused", code) != **count);
        untold.chain(short.map(|(code, count)| format!("{count} of {code}"))).collect()
    };
    let all = until("every attack to be told in the audit", PATIENCE, async || {
        let rows = rows(agent);
        missing(&rows).is_empty().then_some(())
    });
    if tokio::time::timeout(PATIENCE / 2, all).await.is_err() {
        let rows = rows(agent);
        panic!("the audit does not tell of {:?}:\n{rows:#?}", missing(&rows));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attack_of_a_hostile_hub_reaches_past_the_owners_rules() {
    let (mut world, mut session) = World::start().await;
    let mut names = BTreeSet::new();
    let attacks = signatures::attacks(&world).into_iter().chain(requests::attacks(&world));
    let (mut jobs, mut declined) = (Vec::new(), BTreeMap::<&str, u64>::new());
    for Attack { name, offer, outcome } in attacks {
        assert!(names.insert(name), "two attacks are called {name:?}");
        // Shown if the test fails: which attack was the last.
        eprintln!("attack: {name}");
        let answer = answer(&mut session, &offer).await;
        judge(name, outcome, &answer);
        world.check(name, outcome, &answer);
        match outcome {
            Outcome::Declined(code) => *declined.entry(code).or_default() += 1,
            Outcome::Refused(_) | Outcome::Undecided(_) | Outcome::Contained => jobs.push((name, answer)),
        }
    }
    every_offer_is_told(&world.agent, &jobs, &declined).await;
    let mut ended = 0;
    for (name, attack) in frames::attacks() {
        assert!(names.insert(name), "two attacks are called {name:?}");
        eprintln!("attack: {name}");
        ended += attack.ends();
        session = attack.play(&mut world, session).await;
        world.check(name, Outcome::Refused(&[]), &Value::Null);
    }
    assert!(names.len() >= 60, "only {} attacks", names.len());

    let rows = rows(&world.agent);
    assert!(
        ended >= 15 && told(&rows, "disconnected", "") >= ended,
        "{ended} sessions were broken: {rows:#?}"
    );
    assert!(told(&rows, "message_refused", "unsupported") >= 1000, "{rows:#?}");
    let (verdict, code) = verify(&world.agent, &[]);
    assert_eq!((&verdict["ok"], code), (&json!(true), 0), "{verdict:#}");

    // And the agent goes on as if nothing had been.
    let honest = world.drop("in/honest.csv").message();
    let done = answer(&mut session, &honest).await;
    assert_eq!(done["outcome"]["outcome"], "succeeded", "{done:#}");
    let peak = world.agent.process().memory_kib("VmHWM");
    assert!(peak < 96 * 1024, "{peak} KiB after {} attacks", names.len());
}
