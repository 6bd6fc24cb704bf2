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

use passerelle_tests::Session;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use world::World;

/// What must come of an attack.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// Not taken, with this code.
    Declined(&'static str),
    /// Taken as a job, ended without any effect, with one of these codes.
    Refused(&'static [&'static str]),
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
        Outcome::Contained => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attack_of_a_hostile_hub_reaches_past_the_owners_rules() {
    let (mut world, mut session) = World::start().await;
    let mut names = BTreeSet::new();
    let attacks = signatures::attacks(&world).into_iter().chain(requests::attacks(&world));
    for Attack { name, offer, outcome } in attacks {
        assert!(names.insert(name), "two attacks are called {name:?}");
        // Shown if the test fails: which attack was the last.
        eprintln!("attack: {name}");
        let answer = answer(&mut session, &offer).await;
        judge(name, outcome, &answer);
        world.check(name, outcome, &answer);
    }
    for (name, attack) in frames::attacks() {
        assert!(names.insert(name), "two attacks are called {name:?}");
        eprintln!("attack: {name}");
        session = attack.play(&mut world, session).await;
        world.check(name, Outcome::Refused(&[]), &Value::Null);
    }
    assert!(names.len() >= 60, "only {} attacks", names.len());

    // And the agent goes on as if nothing had been.
    let honest = world.drop("in/honest.csv").message();
    let done = answer(&mut session, &honest).await;
    assert_eq!(done["outcome"]["outcome"], "succeeded", "{done:#}");
    let peak = world.agent.process().memory_kib("VmHWM");
    assert!(peak < 96 * 1024, "{peak} KiB after {} attacks", names.len());
}
