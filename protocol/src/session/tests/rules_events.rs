//! The rules of events and triggers, one by one, on both sides.

use super::{event, hello, lease, name, start, welcome};
use crate::{
    Event, EventAck, EventRefused, Hello, PayloadSource, ToAgent, ToHub, TriggerAnnouncement, Triggers,
    decode_to_agent, decode_to_hub,
    limits::{MAX_EVENT_DATA, MAX_INLINE_PAYLOAD, MAX_UNACKED_EVENT_BYTES, MAX_UNACKED_EVENTS, RESEND},
    session::{AgentEvent, AgentSession, CloseReason, Frame, HubEvent, HubSession},
};
use std::time::Instant;

fn agent() -> (AgentSession, Instant) {
    let now = start();
    let mut session = AgentSession::new(hello(4, &[("compta", 4)]), now).unwrap();
    tell(&mut session, welcome(), now);
    while session.poll_event().is_some() || session.poll_frame().is_some() {}
    (session, now)
}

fn hub() -> (HubSession, Instant) {
    let now = start();
    let mut session = HubSession::new(now);
    say(&mut session, hello(4, &[("compta", 4)]), now);
    session.welcome(welcome());
    while session.poll_event().is_some() || session.poll_frame().is_some() {}
    (session, now)
}

fn tell(session: &mut AgentSession, message: impl Into<ToAgent>, now: Instant) {
    session.handle_frame(Frame::Text(message.into().encode().unwrap()), now);
}

fn say(session: &mut HubSession, message: impl Into<ToHub>, now: Instant) {
    session.handle_frame(Frame::Text(message.into().encode().unwrap()), now);
}

fn sent(session: &mut AgentSession) -> Vec<ToHub> {
    let frames = std::iter::from_fn(|| session.poll_frame());
    frames
        .filter_map(|frame| match frame {
            Frame::Text(text) => Some(decode_to_hub(&text).unwrap()),
            Frame::Ping | Frame::Pong => None,
        })
        .collect()
}

#[test]
fn an_event_is_sent_again_until_it_is_answered_and_its_answer_comes_once() {
    let (mut session, now) = agent();
    session.send_event(&event(1), now).unwrap();
    session.send_event(&event(1), now).unwrap();
    assert_eq!(sent(&mut session), [event(1).into()]);
    assert_eq!(session.poll_timeout(), Some(now + RESEND));
    session.handle_timeout(now + RESEND);
    assert_eq!(sent(&mut session), [event(1).into()]);
    let ack = EventAck { id: event(1).id, duplicate: true };
    tell(&mut session, ack, now);
    tell(&mut session, ack, now);
    assert_eq!(session.poll_event(), Some(AgentEvent::EventAcked(ack)));
    assert_eq!((session.poll_event(), session.unacked_events()), (None, 0));

    session.send_event(&event(2), now).unwrap();
    let refused = EventRefused {
        id: event(2).id,
        code: "quota".to_owned(),
        message: "full".to_owned(),
        retry_after_ms: Some(1),
    };
    tell(&mut session, refused.clone(), now);
    assert_eq!(session.poll_event(), Some(AgentEvent::EventRefused(refused)));
    session.handle_timeout(now + RESEND);
    assert_eq!(sent(&mut session), [event(2).into()], "once, and not again after the refusal");
}

#[test]
fn the_window_is_bounded_in_events_and_in_bytes() {
    let (mut session, now) = agent();
    for number in 1..=100 {
        session.send_event(&event(number), now).unwrap();
    }
    assert_eq!((session.unacked_events(), session.can_send_event()), (MAX_UNACKED_EVENTS, false));
    let (mut session, now) = agent();
    let mut large = 0;
    while session.can_send_event() {
        large += 1;
        let mut event = event(large);
        let data = "A".repeat(MAX_INLINE_PAYLOAD.div_ceil(3) * 4);
        event.payload.as_mut().unwrap().source = PayloadSource::Inline { data };
        session.send_event(&event, now).unwrap();
    }
    assert_eq!(large as usize, MAX_UNACKED_EVENT_BYTES / (MAX_INLINE_PAYLOAD.div_ceil(3) * 4) + 1);
}

#[test]
fn an_event_past_its_limits_is_neither_sent_nor_taken() {
    let long = "x".repeat(MAX_EVENT_DATA);
    let data = "A".repeat(MAX_INLINE_PAYLOAD * 4 / 3 + 9);
    let mut payload = event(1);
    payload.payload.as_mut().unwrap().source = PayloadSource::Inline { data };
    let bad = [
        Event { data: serde_json::json!({ "path": long }), ..event(1) },
        Event { data: serde_json::json!([]), ..event(1) },
        payload,
    ];
    for event in bad {
        let (mut session, now) = agent();
        assert!(matches!(session.send_event(&event, now), Err(CloseReason::Local(_))));
        assert!(session.is_open() && session.unacked_events() == 0);
        let (mut session, now) = hub();
        let text = serde_json::to_string(&ToHub::from(event)).unwrap();
        session.handle_frame(Frame::Text(text), now);
        assert!(matches!(session.closed(), Some(CloseReason::PeerMisbehaved(_))));
    }
}

#[test]
fn the_hub_tells_an_event_once_while_it_is_in_hand_and_bounds_them() {
    let (mut session, now) = hub();
    say(&mut session, event(1), now);
    say(&mut session, event(1), now);
    assert_eq!((session.poll_event(), session.poll_event()), (Some(HubEvent::Event(event(1))), None));
    // The owner may have lost it: it is told again when the agent still asks much later.
    say(&mut session, event(1), now + RESEND);
    assert_eq!(session.poll_event(), Some(HubEvent::Event(event(1))));
    session.ack_event(event(1).id, false);
    let ack = ToAgent::from(EventAck { id: event(1).id, duplicate: false });
    assert_eq!(session.poll_frame(), Some(Frame::Text(ack.encode().unwrap())));
    // The acknowledgement was lost: asked again, told again.
    say(&mut session, event(1), now);
    assert_eq!(session.poll_event(), Some(HubEvent::Event(event(1))));

    let (mut session, now) = hub();
    for number in 1..1000 {
        say(&mut session, event(number), now);
    }
    let Some(CloseReason::PeerMisbehaved(reason)) = session.closed() else { panic!("a flood was borne") };
    assert_eq!(reason, "more events than may be unanswered");
    assert_eq!(std::iter::from_fn(|| session.poll_event()).count(), 4 * MAX_UNACKED_EVENTS);
}

#[test]
fn a_list_of_triggers_that_comes_late_is_not_believed() {
    let (mut hub, now) = hub();
    let mut lists = Vec::new();
    for leases in [vec![lease(1)], vec![], vec![lease(2)]] {
        hub.tell_triggers(leases);
        let Some(Frame::Text(text)) = hub.poll_frame() else { panic!("nothing was sent") };
        let Ok(ToAgent::Triggers(list)) = decode_to_agent(&text) else { panic!("{text}") };
        lists.push(list);
    }
    assert_eq!(lists.iter().map(|list| list.serial).collect::<Vec<_>>(), [1, 2, 3]);
    let (mut agent, _) = agent();
    for list in [1, 0, 1, 2] {
        tell(&mut agent, lists[list].clone(), now);
    }
    assert_eq!(agent.poll_event(), Some(AgentEvent::Triggers(vec![])));
    assert_eq!(agent.poll_event(), Some(AgentEvent::Triggers(vec![lease(2)])));
    assert_eq!(agent.poll_event(), None);
}

#[test]
fn before_the_welcome_and_after_the_end_nothing_of_events_happens() {
    let now = start();
    let mut session = AgentSession::new(hello(4, &[("compta", 4)]), now).unwrap();
    session.send_event(&event(1), now).unwrap();
    assert!(!session.can_send_event());
    tell(&mut session, Triggers { serial: 1, leases: vec![lease(1)] }, now);
    assert_eq!((sent(&mut session).len(), session.poll_event()), (1, None), "only the hello");
}

#[test]
fn announced_triggers_are_unique_and_of_announced_resources() {
    let trigger = |resource: &str, trigger: &str| TriggerAnnouncement {
        resource: name(resource),
        name: name(trigger),
        kind: name(crate::PICKUP),
    };
    let with = |triggers| Hello { triggers, ..hello(4, &[("compta", 4), ("crm", 4)]) };
    let good = with(vec![trigger("compta", "a"), trigger("compta", "b"), trigger("crm", "a")]);
    assert!(ToHub::from(good).encode().is_ok());
    for bad in [
        vec![trigger("compta", "a"), trigger("compta", "a")],
        vec![trigger("paie", "a")],
        (0..1001).map(|n| trigger("compta", &format!("t{n}"))).collect(),
    ] {
        assert!(ToHub::from(with(bad)).encode().is_err());
    }
}
