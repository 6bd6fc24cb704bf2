//! The line of calls that wait for a place: who is told, who comes first, and how long it may get.

use super::{
    Arrival, NoAgent, QueueKey, Registry,
    calls::{InLine, MOST_WAITING},
    silence::Heard,
};
use crate::clock::new_uuid7;
use passerelle_protocol::{
    AgentId, CallsAnnouncement, ConnectorAnnouncement, Hello, JobId, Name, PROTOCOL_VERSION,
    ResourceAnnouncement, SessionId, VersionRange,
};
use std::{sync::Arc, task::Poll};
use tokio::sync::{futures::Notified, mpsc};
use tokio_util::sync::CancellationToken;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn key() -> QueueKey {
    QueueKey { tenant: name("acme"), site: name("paris"), resource: name("till") }
}

/// A registry with one agent whose resource bears one thing at a time; the other end keeps the session's commands open.
fn registry() -> (Registry, AgentId, SessionId, mpsc::Receiver<super::Command>) {
    let (agent, session) = (AgentId::from(new_uuid7()), SessionId::from(new_uuid7()));
    let (commands, received) = mpsc::channel(8);
    let arrival = Arrival {
        agent,
        session,
        tenant: name("acme"),
        site: name("paris"),
        instance: "test".to_owned(),
        commands,
        heard: Arc::new(Heard::now()),
        stop: CancellationToken::new(),
    };
    let till = ResourceAnnouncement {
        name: name("till"),
        connector: name("http"),
        operations: vec![name("request")],
        max_concurrent: 1,
        rate_per_minute: None,
        paused: None,
    };
    let hello = Hello {
        versions: VersionRange { min: PROTOCOL_VERSION, max: PROTOCOL_VERSION },
        agent,
        name: name("paris-1"),
        agent_version: "0.1.0".to_owned(),
        instance: "test".to_owned(),
        hub_keys: Vec::new(),
        triggers: Vec::new(),
        calls: Some(CallsAnnouncement { max: 64, issued_after: 0 }),
        listeners: Vec::new(),
        max_jobs: 8,
        connectors: [(name("http"), ConnectorAnnouncement { operations: Vec::new() })].into(),
        resources: vec![till],
        held: Vec::new(),
    };
    let registry = Registry::default();
    registry.register(arrival, 1, &hello, &[]);
    (registry, agent, session, received)
}

fn begin(registry: &Registry, call: JobId, in_line: bool) -> Result<(), NoAgent> {
    registry.begin_call(&key(), &name("request"), call, in_line, |_| true).map(drop)
}

/// Whoever waits in the line, from now on.
fn waiting<'a>(line: &'a InLine<'_>) -> std::pin::Pin<Box<Notified<'a>>> {
    let mut told = Box::pin(line.turn.notified());
    told.as_mut().enable();
    told
}

fn told(notified: &mut std::pin::Pin<Box<Notified<'_>>>) -> bool {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    matches!(notified.as_mut().poll(&mut cx), Poll::Ready(()))
}

#[test]
fn who_stands_in_line_comes_before_who_just_arrived() {
    let (registry, agent, session, _commands) = registry();
    let (first, second, third) =
        (JobId::from(new_uuid7()), JobId::from(new_uuid7()), JobId::from(new_uuid7()));
    assert_eq!(begin(&registry, first, false), Ok(()));
    assert_eq!(begin(&registry, second, false), Err(NoAgent::Wait(None)));
    let line = registry.stand_in_line(&key(), false).unwrap();
    let mut turn = waiting(&line);
    assert!(!told(&mut turn));
    registry.end_call(agent, session, first, None);
    assert!(told(&mut turn));
    assert_eq!(begin(&registry, third, false), Err(NoAgent::Wait(None)), "the place is not the newcomer's");
    assert_eq!(begin(&registry, second, true), Ok(()));
    drop(turn);
    drop(line);
    registry.end_call(agent, session, second, None);
    assert_eq!(begin(&registry, third, false), Ok(()), "nobody is left in the line");
}

#[test]
fn one_is_told_of_a_place_and_the_next_one_if_it_goes_away() {
    let (registry, agent, session, _commands) = registry();
    let call = JobId::from(new_uuid7());
    assert_eq!(begin(&registry, call, false), Ok(()));
    let lines: Vec<_> = (0..3).map(|_| registry.stand_in_line(&key(), false).unwrap()).collect();
    let mut turns: Vec<_> = lines.iter().map(waiting).collect();
    registry.end_call(agent, session, call, None);
    assert!(!told(&mut turns[1]) && !told(&mut turns[2]), "one place, one turn");
    // Its caller hung up before it looked.
    drop(turns.remove(0));
    assert!(told(&mut turns[0]));
    assert!(!told(&mut turns[1]));
}

#[test]
fn all_look_where_one_of_them_cannot_take_just_any_agent() {
    let (registry, agent, session, _commands) = registry();
    let call = JobId::from(new_uuid7());
    assert_eq!(begin(&registry, call, false), Ok(()));
    let choosy = registry.stand_in_line(&key(), true).unwrap();
    let plain = registry.stand_in_line(&key(), false).unwrap();
    let mut turns = [waiting(&choosy), waiting(&plain)];
    registry.end_call(agent, session, call, None);
    assert!(turns.iter_mut().all(told), "the place may be none for the first of them");
    drop(turns);
    drop(choosy);
    // With that one gone, one turn for one place again.
    let call = JobId::from(new_uuid7());
    assert_eq!(begin(&registry, call, true), Ok(()));
    let another = registry.stand_in_line(&key(), false).unwrap();
    let mut turns = [waiting(&plain), waiting(&another)];
    registry.end_call(agent, session, call, None);
    assert_eq!(turns.iter_mut().map(told).filter(|told| *told).count(), 1);
}

#[test]
fn a_line_has_an_end_and_none_stays_when_all_have_left() {
    let (registry, _, _, _commands) = registry();
    let lines: Vec<_> = (0..MOST_WAITING).map(|_| registry.stand_in_line(&key(), false).unwrap()).collect();
    assert!(registry.stand_in_line(&key(), false).is_none());
    drop(lines);
    assert!(registry.state().lines.is_empty());
}
