//! The rules of the agent's side, one by one, against a scripted hub.

use super::{attempt, hello, job, name, offer, report, start, success, welcome};
use crate::{
    Accept, Cancel, Code, CommitGranted, Decline, Draining, Failure, HeldJob, HeldState, Hello, Intent,
    Offer, Outcome, OutputPayload, Progress, Refuse, Report, ReportAck, Sha256, ToAgent, ToHub, Unsupported,
    VersionRange, Welcome, decode_to_hub,
    limits::{DEAD_AFTER, HANDSHAKE, HEARTBEAT, MAX_FRAME, MAX_JSON, MAX_UNACKED_REPORTS, RESEND},
    session::{AgentEvent, AgentSession, Attempt, CloseReason, Frame, Initiator},
};
use std::time::{Duration, Instant};

fn hear(session: &mut AgentSession, message: impl Into<ToAgent>, now: Instant) {
    session.handle_frame(Frame::Text(message.into().encode().unwrap()), now);
}

/// What the agent sent since the last look, heartbeats aside.
fn sent(session: &mut AgentSession) -> Vec<ToHub> {
    let frames = std::iter::from_fn(|| session.poll_frame());
    frames
        .filter_map(|frame| match frame {
            Frame::Text(text) => Some(decode_to_hub(&text).unwrap()),
            Frame::Ping | Frame::Pong => None,
        })
        .collect()
}

fn events(session: &mut AgentSession) -> Vec<AgentEvent> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

fn open_with(hello: Hello) -> (AgentSession, Instant) {
    let now = start();
    let mut session = AgentSession::new(hello, now).unwrap();
    hear(&mut session, welcome(), now);
    sent(&mut session);
    assert_eq!(events(&mut session), [AgentEvent::Welcomed(welcome())]);
    (session, now)
}

fn open() -> (AgentSession, Instant) {
    open_with(hello(4, &[("compta", 4)]))
}

fn accept(of: Attempt) -> ToHub {
    Accept { job: of.job, attempt: of.number }.into()
}

fn busy(of: Attempt) -> Decline {
    let (job, attempt) = (of.job, of.number);
    Decline { job, attempt, code: Code::Busy, message: "full".to_owned(), retry_after_ms: None }
}

fn refuse(code: &str) -> Refuse {
    Refuse {
        code: code.to_owned(),
        message: "speak to your operator".to_owned(),
        permanent: true,
        retry_after_s: None,
        versions: VersionRange { min: 2, max: 3 },
        server_time: jiff::Timestamp::UNIX_EPOCH,
    }
}

#[test]
fn hello_is_the_first_frame_and_welcome_opens() {
    let now = start();
    let mut session = AgentSession::new(hello(4, &[]), now).unwrap();
    assert_eq!(sent(&mut session), [ToHub::Hello(hello(4, &[]))]);
    assert!(!session.is_open());
    hear(&mut session, welcome(), now);
    assert!(session.is_open());
    hear(&mut session, Welcome { epoch: 9, ..welcome() }, now);
    assert_eq!(events(&mut session), [AgentEvent::Welcomed(welcome())], "a second welcome changes nothing");
}

#[test]
fn a_refusal_is_told_and_closes() {
    let now = start();
    let mut session = AgentSession::new(hello(4, &[]), now).unwrap();
    hear(&mut session, refuse("version"), now);
    assert_eq!(events(&mut session), [AgentEvent::Refused(refuse("version"))]);
    let reason = session.closed().unwrap().clone();
    assert_eq!(reason.initiator(), Initiator::Remote);
    assert_eq!(reason.close_code(), 1000);
    assert_eq!(reason.to_string(), "refused: version: speak to your operator");
    assert_eq!(session.poll_timeout(), None);
}

#[test]
fn an_open_session_may_be_refused_too() {
    let (mut session, now) = open();
    hear(&mut session, refuse("fenced"), now);
    assert_eq!(events(&mut session), [AgentEvent::Refused(refuse("fenced"))]);
    assert!(session.closed().is_some());
}

#[test]
fn a_version_that_was_not_offered_closes() {
    let now = start();
    let mut session = AgentSession::new(hello(4, &[]), now).unwrap();
    hear(&mut session, Welcome { version: 2, ..welcome() }, now);
    assert!(matches!(session.closed(), Some(CloseReason::PeerIncompatible(_))));
    assert_eq!(session.closed().unwrap().close_code(), 1002);
    assert_eq!(events(&mut session), []);
}

#[test]
fn messages_before_the_welcome_are_ignored() {
    let now = start();
    let mut session = AgentSession::new(hello(4, &[]), now).unwrap();
    sent(&mut session);
    hear(&mut session, offer(attempt(1), "t"), now);
    hear(&mut session, Cancel { job: job(1), attempt: 1 }, now);
    assert_eq!(events(&mut session), []);
    assert_eq!(sent(&mut session), []);
    assert_eq!(session.closed(), None);
}

#[test]
fn no_welcome_in_time_closes() {
    let now = start();
    let mut session = AgentSession::new(hello(4, &[]), now).unwrap();
    assert_eq!(session.poll_timeout(), Some(now + HANDSHAKE.min(HEARTBEAT)));
    session.handle_frame(Frame::Pong, now + HANDSHAKE / 2);
    session.handle_timeout(now + HANDSHAKE);
    assert_eq!(session.closed(), Some(&CloseReason::HandshakeTimeout));
}

#[test]
fn an_unknown_type_is_answered_and_counted() {
    let (mut session, now) = open();
    session.handle_frame(Frame::Text(r#"{"type":"teleport","to":"mars"}"#.to_owned()), now);
    assert_eq!(sent(&mut session), [ToHub::Unsupported(Unsupported { of: "teleport".to_owned() })]);
    assert_eq!(events(&mut session), [AgentEvent::Unsupported("teleport".to_owned())]);
    hear(&mut session, Unsupported { of: "progress".to_owned() }, now);
    assert_eq!(events(&mut session), [AgentEvent::Unsupported("progress".to_owned())]);
    assert_eq!(sent(&mut session), [], "an answer is not answered");
    assert!(session.is_open());
}

#[test]
fn garbage_closes_with_1002() {
    for garbage in ["", "{", "[]", "7", r#"{"type":"offer"}"#, r#"{"type":["offer"]}"#] {
        let (mut session, now) = open();
        session.handle_frame(Frame::Text(garbage.to_owned()), now);
        assert_eq!(session.closed().map(CloseReason::close_code), Some(1002), "{garbage}");
        assert_eq!(session.closed().unwrap().initiator(), Initiator::Local);
        hear(&mut session, offer(attempt(1), "t"), now);
        assert_eq!(events(&mut session), [], "a closed session hears nothing");
    }
}

#[test]
fn a_reason_to_close_never_quotes_a_whole_frame() {
    let (mut session, now) = open();
    let long = "x".repeat(MAX_FRAME / 2);
    session.handle_frame(Frame::Text(format!(r#"{{"type":"cancel","job":"{long}","attempt":1}}"#)), now);
    assert!(session.closed().unwrap().to_string().len() < 1000);
}

#[test]
fn an_offer_is_told_once_and_its_copies_are_answered_alike() {
    let (mut session, now) = open();
    hear(&mut session, offer(attempt(1), "t"), now);
    hear(&mut session, offer(attempt(1), "t"), now);
    assert_eq!(events(&mut session), [AgentEvent::Offered(offer(attempt(1), "t"))]);
    assert_eq!(sent(&mut session), [], "the owner has not decided");
    session.accept(attempt(1));
    session.accept(attempt(1));
    assert_eq!(sent(&mut session), [accept(attempt(1))]);
    hear(&mut session, offer(attempt(1), "t"), now);
    assert_eq!(sent(&mut session), [accept(attempt(1))]);
    session.report(&report(attempt(1), success()), now).unwrap();
    sent(&mut session);
    hear(&mut session, offer(attempt(1), "t"), now);
    assert_eq!(sent(&mut session), [accept(attempt(1))]);
    assert_eq!(events(&mut session), []);
}

#[test]
fn what_was_declined_stays_declined_until_it_is_offered_under_a_new_ticket() {
    let (mut session, now) = open();
    hear(&mut session, offer(attempt(1), "first"), now);
    events(&mut session);
    session.decline(busy(attempt(1)));
    assert_eq!(sent(&mut session), [ToHub::Decline(busy(attempt(1)))]);
    hear(&mut session, offer(attempt(1), "first"), now);
    assert_eq!(events(&mut session), [], "a late copy must not be decided a second time");
    assert_eq!(sent(&mut session), [ToHub::Decline(busy(attempt(1)))]);
    hear(&mut session, offer(attempt(1), "second"), now);
    assert_eq!(events(&mut session), [AgentEvent::Offered(offer(attempt(1), "second"))]);
    session.accept(attempt(1));
    assert_eq!(sent(&mut session), [accept(attempt(1))]);
}

#[test]
fn more_offers_than_announced_close_and_are_never_kept() {
    let (mut session, now) = open();
    for n in 0..200 {
        hear(&mut session, offer(attempt(n), "t"), now);
    }
    assert!(matches!(session.closed(), Some(CloseReason::PeerMisbehaved(_))));
    assert_eq!(events(&mut session).len(), 64);
}

#[test]
fn held_attempts_do_not_count_as_a_flood_of_offers() {
    let mut many = hello(1, &[("compta", 1)]);
    let held = |n| HeldJob { job: job(n), attempt: 1, resource: name("compta"), state: HeldState::Finished };
    many.held = (0..200).map(held).collect();
    let (mut session, now) = open_with(many);
    hear(&mut session, offer(attempt(201), "t"), now);
    assert_eq!(events(&mut session), [AgentEvent::Offered(offer(attempt(201), "t"))]);
    assert!(session.is_open());
}

#[test]
fn a_report_is_sent_again_until_it_is_acknowledged() {
    let (mut session, now) = open();
    let done = report(attempt(1), success());
    session.report(&done, now).unwrap();
    session.report(&done, now).unwrap();
    assert_eq!(sent(&mut session), [ToHub::Report(done.clone())]);
    let just_before = now + RESEND - Duration::from_millis(1);
    session.handle_timeout(just_before);
    assert_eq!(sent(&mut session), []);
    assert_eq!(session.poll_timeout(), Some(now + RESEND));
    session.handle_timeout(now + RESEND);
    assert_eq!(sent(&mut session), [ToHub::Report(done.clone())]);
    assert_eq!(session.unacked(), 1);
    let ack = ReportAck { job: job(1), attempt: 1 };
    hear(&mut session, ack, now + RESEND);
    hear(&mut session, ack, now + RESEND);
    assert_eq!(events(&mut session), [AgentEvent::ReportAcked(attempt(1))]);
    assert_eq!(session.unacked(), 0);
    session.handle_timeout(now + RESEND * 2);
    assert_eq!(sent(&mut session), []);
}

#[test]
fn what_still_waits_to_be_sent_is_not_sent_again() {
    let (mut session, mut now) = open();
    session.report(&report(attempt(1), success()), now).unwrap();
    for _ in 0..10 {
        now += RESEND;
        session.handle_frame(Frame::Pong, now);
        session.handle_timeout(now);
    }
    assert_eq!(sent(&mut session).len(), 1, "the socket is stalled, copies would pile up");
}

#[test]
fn unacknowledged_reports_are_bounded_in_number_and_bytes() {
    let (mut session, now) = open();
    for n in 0..100 {
        session.report(&report(attempt(n), success()), now).unwrap();
    }
    assert_eq!(session.unacked(), MAX_UNACKED_REPORTS);
    assert!(!session.can_report());
    assert_eq!(sent(&mut session).len(), MAX_UNACKED_REPORTS);

    let (mut session, now) = open();
    let large = Outcome::Succeeded {
        result: serde_json::Value::from("x".repeat(MAX_JSON - 2)),
        output: None,
        receipt: None,
    };
    for n in 0..100 {
        session.report(&report(attempt(n), large.clone()), now).unwrap();
    }
    assert_eq!(session.unacked(), 4);
}

#[test]
fn a_report_past_the_limits_is_refused_and_the_session_goes_on() {
    let (mut session, now) = open();
    let result = serde_json::Value::from("x".repeat(MAX_JSON));
    let large = Outcome::Succeeded { result, output: None, receipt: None };
    let error = session.report(&report(attempt(1), large), now).unwrap_err();
    assert!(error.to_string().contains("larger than 262144"), "{error}");
    assert_eq!((sent(&mut session), session.unacked()), (vec![], 0));
    session.report(&report(attempt(1), success()), now).unwrap();
    assert_eq!(sent(&mut session).len(), 1);
}

#[test]
fn a_cancel_is_passed_on_while_the_attempt_is_held() {
    let (mut session, now) = open();
    let cancel = Cancel { job: job(1), attempt: 1 };
    hear(&mut session, cancel, now);
    assert_eq!(events(&mut session), [], "an attempt that was never offered; the hub asks again");
    hear(&mut session, offer(attempt(1), "t"), now);
    hear(&mut session, cancel, now);
    session.accept(attempt(1));
    hear(&mut session, cancel, now);
    let cancelled = AgentEvent::CancelRequested(attempt(1));
    assert_eq!(events(&mut session)[1..], [cancelled.clone(), cancelled]);
}

#[test]
fn a_cancel_of_a_reported_attempt_sends_the_report_again() {
    let (mut session, now) = open();
    let done = report(attempt(1), success());
    session.report(&done, now).unwrap();
    sent(&mut session);
    hear(&mut session, Cancel { job: job(1), attempt: 1 }, now);
    assert_eq!(sent(&mut session), [ToHub::Report(done)]);
    assert_eq!(events(&mut session), []);
}

#[test]
fn a_commit_is_asked_until_it_is_granted() {
    let (mut session, now) = open();
    let intent =
        Intent { part: None, target: Some("a".to_owned()), size: Some(1), sha256: None, state: None };
    session.commit(attempt(1), intent.clone(), now);
    assert_eq!(sent(&mut session), [], "only held attempts may ask");
    hear(&mut session, offer(attempt(1), "t"), now);
    session.accept(attempt(1));
    events(&mut session);
    sent(&mut session);
    session.commit(attempt(1), intent.clone(), now);
    session.commit(attempt(1), intent.clone(), now);
    let mut asked = sent(&mut session);
    session.handle_timeout(now + RESEND);
    asked.extend(sent(&mut session));
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|m| matches!(m, ToHub::Commit(commit) if commit.intent == intent)));
    let granted = CommitGranted { job: job(1), attempt: 1 };
    hear(&mut session, granted, now + RESEND);
    hear(&mut session, granted, now + RESEND);
    assert_eq!(events(&mut session), [AgentEvent::CommitGranted(attempt(1))]);
    session.handle_timeout(now + RESEND * 2);
    assert_eq!(sent(&mut session), []);
}

#[test]
fn what_is_asked_before_the_welcome_is_sent_with_it() {
    let now = start();
    let mut first = hello(4, &[("compta", 4)]);
    first.held =
        vec![HeldJob { job: job(1), attempt: 1, resource: name("compta"), state: HeldState::Running }];
    let mut session = AgentSession::new(first, now).unwrap();
    session.drain(30);
    session.commit(
        attempt(1),
        Intent { part: None, target: None, size: None, sha256: None, state: None },
        now,
    );
    assert_eq!(sent(&mut session).len(), 1, "only the hello");
    hear(&mut session, welcome(), now);
    assert!(matches!(sent(&mut session)[..], [ToHub::Draining(Draining { grace_s: 30 }), ToHub::Commit(_)]));
}

#[test]
fn an_offer_to_a_draining_agent_comes_as_an_event_and_the_hub_is_told_again() {
    let (mut session, now) = open();
    session.drain(30);
    session.drain(30);
    assert_eq!(sent(&mut session), [ToHub::Draining(Draining { grace_s: 30 })]);
    hear(&mut session, offer(attempt(1), "t"), now);
    assert_eq!(events(&mut session).len(), 1);
    session.decline(busy(attempt(1)));
    let heard = sent(&mut session);
    assert_eq!(heard, [ToHub::Draining(Draining { grace_s: 30 }), ToHub::Decline(busy(attempt(1)))]);
}

#[test]
fn progress_is_sent_for_held_attempts_and_dropped_behind_a_stalled_socket() {
    let (mut session, now) = open();
    let far = Progress {
        job: job(1),
        attempt: 1,
        started_at: jiff::Timestamp::UNIX_EPOCH,
        bytes_done: 1,
        bytes_total: None,
    };
    session.progress(far.clone());
    assert_eq!(sent(&mut session), []);
    hear(&mut session, offer(attempt(1), "t"), now);
    session.accept(attempt(1));
    (0..1000).for_each(|_| session.progress(far.clone()));
    assert!(sent(&mut session).len() <= 64);
}

#[test]
fn a_silent_hub_is_dead_and_pings_go_out_until_then() {
    let (mut session, now) = open();
    let mut pings = 0;
    let mut at = now;
    while session.closed().is_none() {
        at = session.poll_timeout().unwrap();
        session.handle_timeout(at);
        pings += std::iter::from_fn(|| session.poll_frame()).filter(|f| *f == Frame::Ping).count();
    }
    assert_eq!(session.closed(), Some(&CloseReason::PeerDead));
    assert_eq!((at - now, pings), (DEAD_AFTER, 2));
    assert!(DEAD_AFTER <= Duration::from_secs(30));
}

#[test]
fn a_hub_that_makes_the_agent_answer_without_reading_ends_the_session() {
    let (mut session, now) = open();
    let result = serde_json::Value::from("x".repeat(MAX_JSON - 2));
    let large = Outcome::Succeeded { result, output: None, receipt: None };
    session.report(&report(attempt(1), large), now).unwrap();
    for _ in 0..200 {
        hear(&mut session, Cancel { job: job(1), attempt: 1 }, now);
    }
    assert!(matches!(session.closed(), Some(CloseReason::PeerMisbehaved(_))));
    let bytes: usize = std::iter::from_fn(|| session.poll_frame())
        .map(|frame| if let Frame::Text(text) = frame { text.len() } else { 0 })
        .sum();
    assert!(bytes <= crate::limits::MAX_QUEUED_BYTES);
}

#[test]
fn long_sentences_are_cut_on_the_way_out_and_in() {
    let (mut session, now) = open();
    hear(&mut session, offer(attempt(1), "t"), now);
    session.decline(Decline { message: "é".repeat(2000), ..busy(attempt(1)) });
    let ToHub::Decline(decline) = sent(&mut session).remove(0) else { panic!("no decline") };
    assert_eq!(decline.message.len(), 1024);
    let (verdict, effect) = (crate::Verdict::Permanent, crate::Effect::NotApplied);
    let mut failure = Failure::new(verdict, effect, Code::Internal, "");
    failure.message = "x".repeat(5000);
    let text = serde_json::to_string(&ToHub::from(report(attempt(1), Outcome::Failed(failure)))).unwrap();
    let Ok(ToHub::Report(Report { outcome: Outcome::Failed(failure), .. })) = decode_to_hub(&text) else {
        panic!("no report")
    };
    assert_eq!(failure.message.len(), 1024);
    let media_type = format!("text/{}", "x".repeat(5000));
    let output = Some(OutputPayload { size: 0, sha256: Sha256::of(b""), media_type, data: None });
    let outcome = Outcome::Succeeded { result: serde_json::Value::Null, output, receipt: None };
    let text = ToHub::from(report(attempt(1), outcome)).encode().unwrap();
    let Ok(ToHub::Report(Report { outcome: Outcome::Succeeded { output, .. }, .. })) = decode_to_hub(&text)
    else {
        panic!("no report")
    };
    assert_eq!(output.unwrap().media_type.len(), 256);
}

#[test]
fn an_offer_whose_attempt_is_zero_is_garbage() {
    let (mut session, now) = open();
    let text = serde_json::to_string(&ToAgent::from(Offer { attempt: 0, ..offer(attempt(1), "t") })).unwrap();
    session.handle_frame(Frame::Text(text), now);
    assert_eq!(session.closed().map(CloseReason::close_code), Some(1002));
}
