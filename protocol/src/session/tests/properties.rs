//! What holds in every world, whatever the network does.

use super::{
    agent_owner::Run,
    event,
    hub_owner::CallAnswer,
    network::Faults,
    world::{Happening, World},
};
use crate::{EventId, Outcome, session::Attempt};
use proptest::{collection::vec, prelude::*};
use std::{collections::BTreeSet, time::Duration};

/// A WebSocket keeps order and loses nothing, but the sessions bear worse.
fn faults() -> impl Strategy<Value = Faults> {
    let time = |ms: std::ops::Range<u64>| ms.prop_map(Duration::from_millis);
    let orderly = (time(0..6000), time(0..15_000)).prop_map(|(delay, slow)| Faults {
        loss: 0,
        duplicate: 0,
        reorder: false,
        delay,
        slow,
    });
    let faulty = (0..40u8, 0..40u8, any::<bool>(), time(0..6000), time(0..15_000))
        .prop_map(|(loss, duplicate, reorder, delay, slow)| Faults { loss, duplicate, reorder, delay, slow });
    prop_oneof![orderly, faulty]
}

fn happening() -> impl Strategy<Value = Happening> {
    let run = prop_oneof![3 => Just(Run::Free), 3 => Just(Run::Ask), 1 => Just(Run::Endless)];
    prop_oneof![
        6 => (0..3usize, run, 1..6usize)
            .prop_map(|(resource, run, count)| Happening::Submit { resource, run, count }),
        3 => (0..64usize).prop_map(|index| Happening::Cancel { index }),
        4 => (1..30usize).prop_map(|count| Happening::Files { count }),
        4 => (1..10usize).prop_map(|count| Happening::Calls { count }),
        1 => Just(Happening::Cut),
        1 => Just(Happening::Dark),
        1 => Just(Happening::CrashAgent),
        1 => Just(Happening::CrashHub),
        1 => Just(Happening::Drain),
        1 => (any::<bool>(), 1..40u64).prop_map(|(agent, seconds)| Happening::Stall { agent, seconds }),
    ]
}

/// A world whose connection is never cut, so that only re-sending repairs what is lost.
fn calm() -> impl Strategy<Value = Happening> {
    happening().prop_filter_map("no cuts", |happening| match happening {
        Happening::Submit { .. }
        | Happening::Cancel { .. }
        | Happening::Calls { .. }
        | Happening::Files { .. } => Some(happening),
        Happening::Cut
        | Happening::Dark
        | Happening::CrashAgent
        | Happening::CrashHub
        | Happening::Drain
        | Happening::Stall { .. } => None,
    })
}

fn check(world: &World) {
    for (job, applied) in &world.agent.applied {
        assert_eq!(*applied, 1, "{job} took effect more than once");
    }
    for (attempt, starts) in &world.agent.started {
        assert_eq!(*starts, 1, "{attempt:?} was started twice");
    }
    // What was accepted was reported, stored and acknowledged, once; nothing else was.
    let stored: BTreeSet<Attempt> = world.hub.reports.keys().copied().collect();
    assert_eq!(stored, world.agent.accepted);
    assert_eq!(stored, world.agent.acked.keys().copied().collect());
    assert!(world.agent.acked.values().all(|times| *times == 1));
    let succeeded = world.hub.reports.values().filter(|o| matches!(o, Outcome::Succeeded { .. })).count();
    assert_eq!(succeeded, world.agent.applied.len());
    // A call begins once at most, what was declined never began, and success is told of what happened once.
    for (call, answer) in &world.hub.calls {
        let effects = world.agent.call_effects.get(call).copied().unwrap_or_default();
        match answer {
            Some(CallAnswer::Succeeded) => assert_eq!(effects, 1, "{call}"),
            Some(CallAnswer::Failed) => assert_eq!(effects, 0, "{call}"),
            Some(CallAnswer::Declined) => {
                assert!(!world.agent.called.contains(call), "{call} was declined and begun");
            }
            // Nobody knows, and nobody says so.
            Some(CallAnswer::Lost) | None => assert!(effects <= 1, "{call}"),
        }
    }
    // Each file is one event at the hub, and none is left behind.
    let events: BTreeSet<EventId> = world.hub.events.iter().copied().collect();
    assert_eq!(world.hub.events.len(), events.len(), "an event was stored twice");
    assert_eq!(events, world.agent.files());
}

proptest! {
    /// Credit, drain, dead peers and bounds are asserted while the world runs, by its owners and its network.
    #[test]
    fn every_job_ends_once_and_everything_settles(
        seed in any::<u64>(),
        renumber in any::<bool>(),
        faults in faults(),
        max_jobs in 1..6u32,
        max_concurrent in 1..4u32,
        happenings in prop_oneof![
            2 => vec((0..120_000u64, happening()), 1..40),
            1 => vec((0..120_000u64, calm()), 1..20),
        ],
    ) {
        let mut world = World::new(seed, faults, max_jobs, max_concurrent);
        world.hub.renumber = renumber;
        for (at, happening) in happenings {
            world.schedule(Duration::from_millis(at), happening);
        }
        world.run();
        check(&world);
    }
}

#[test]
fn hundreds_of_files_pass_the_window_in_their_order() {
    let mut world = World::new(1, Faults::NONE, 8, 4);
    world.hub.in_order = true;
    world.schedule(Duration::from_secs(1), Happening::Files { count: 300 });
    world.schedule(Duration::from_secs(2), Happening::CrashHub);
    world.run();
    check(&world);
    let order: Vec<EventId> = (1..=300).map(|number| event(number).id).collect();
    assert_eq!(world.hub.events, order);
    assert!(world.agent.duplicates <= 16, "only what was in flight at the crash came twice");
}

#[test]
fn hundreds_of_calls_are_answered_beside_the_jobs() {
    let mut world = World::new(1, Faults::NONE, 8, 4);
    for second in 1..100 {
        world.schedule(Duration::from_secs(second), Happening::Calls { count: 8 });
    }
    world.schedule(Duration::from_secs(1), Happening::Submit { resource: 0, run: Run::Free, count: 50 });
    world.run();
    check(&world);
    assert_eq!(world.hub.calls.len(), 99 * 8);
    assert!(world.hub.calls.values().all(Option::is_some), "a call was not answered");
    assert!(world.agent.call_effects.len() > 300);
}

#[test]
fn hundreds_of_jobs_pass_through_a_small_agent_in_order_of_credit() {
    let faults = Faults { loss: 5, duplicate: 5, reorder: true, ..Faults::NONE };
    let mut world = World::new(1, faults, 8, 4);
    for (resource, run) in [Run::Free, Run::Ask, Run::Free].into_iter().enumerate() {
        world.schedule(Duration::from_secs(1), Happening::Submit { resource, run, count: 150 });
    }
    world.run();
    check(&world);
    assert_eq!(world.hub.jobs.len(), 450);
    assert!(world.hub.reports.len() >= 450);
}
