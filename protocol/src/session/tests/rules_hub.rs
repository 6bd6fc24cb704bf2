//! The rules of the hub's side, one by one, against a scripted agent.

use super::{attempt, hello, job, name, offer, report, start, success, welcome};
use crate::{
    Accept, Cancel, Code, Commit, CommitGranted, Decline, Draining, Held, HeldAction, HeldJob, HeldState,
    Hello, Intent, PayloadSource, Progress, Refuse, ReportAck, ToAgent, ToHub, Unsupported, VersionRange,
    decode_to_agent,
    limits::{DEAD_AFTER, HANDSHAKE, MAX_INLINE_PAYLOAD, MAX_UNANSWERED_OFFER_BYTES, RESEND},
    session::{Attempt, CloseReason, Frame, HubEvent, HubSession, Initiator, NotOffered},
};
use std::time::{Duration, Instant};

fn hear(session: &mut HubSession, message: impl Into<ToHub>, now: Instant) {
    session.handle_frame(Frame::Text(message.into().encode().unwrap()), now);
}

/// What the hub sent since the last look, heartbeats aside.
fn sent(session: &mut HubSession) -> Vec<ToAgent> {
    let frames = std::iter::from_fn(|| session.poll_frame());
    frames
        .filter_map(|frame| match frame {
            Frame::Text(text) => Some(decode_to_agent(&text).unwrap()),
            Frame::Ping | Frame::Pong => None,
        })
        .collect()
}

fn events(session: &mut HubSession) -> Vec<HubEvent> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

fn greeted(hello: Hello) -> (HubSession, Instant) {
    let now = start();
    let mut session = HubSession::new(now);
    hear(&mut session, hello.clone(), now);
    assert_eq!(events(&mut session), [HubEvent::Hello(Box::new(hello))]);
    (session, now)
}

fn open() -> (HubSession, Instant) {
    let (mut session, now) = greeted(hello(3, &[("compta", 2), ("crm", 5)]));
    session.welcome(welcome());
    assert_eq!(sent(&mut session), [ToAgent::Welcome(welcome())]);
    (session, now)
}

fn give(session: &mut HubSession, n: u8, resource: &str, now: Instant) -> Result<(), NotOffered> {
    session.offer(offer(attempt(n), "t"), name(resource), now)
}

fn accept(of: Attempt) -> Accept {
    Accept { job: of.job, attempt: of.number }
}

fn busy(of: Attempt) -> Decline {
    let (job, attempt) = (of.job, of.number);
    Decline { job, attempt, code: Code::Busy, message: "full".to_owned(), retry_after_ms: None }
}

fn refuse() -> Refuse {
    Refuse {
        code: "version".to_owned(),
        message: "update the agent".to_owned(),
        permanent: true,
        retry_after_s: None,
        versions: VersionRange { min: 2, max: 3 },
        server_time: jiff::Timestamp::UNIX_EPOCH,
    }
}

#[test]
fn the_hub_waits_for_a_hello_and_says_nothing() {
    let now = start();
    let mut session = HubSession::new(now);
    assert_eq!(session.poll_frame(), None);
    session.handle_timeout(now + HANDSHAKE);
    assert_eq!(session.closed(), Some(&CloseReason::HandshakeTimeout));
    assert_eq!(session.closed().unwrap().close_code(), 1001);
}

#[test]
fn a_message_before_the_hello_closes() {
    let now = start();
    let mut session = HubSession::new(now);
    hear(&mut session, accept(attempt(1)), now);
    assert_eq!(
        session.closed().unwrap().to_string(),
        "the peer broke the protocol: hello must come first, got accept"
    );
    assert_eq!(session.closed().unwrap().close_code(), 1002);
}

#[test]
fn a_second_hello_changes_nothing() {
    let (mut session, now) = open();
    hear(&mut session, hello(1000, &[("compta", 1000)]), now);
    assert_eq!(events(&mut session), []);
    assert_eq!(session.credit(), 3);
    assert!(session.is_open());
}

#[test]
fn a_refusal_is_sent_before_the_session_closes() {
    let mut agent = hello(3, &[]);
    agent.versions = VersionRange { min: 1, max: 1 };
    let (mut session, _) = greeted(agent.clone());
    assert_eq!(agent.versions.common(refuse().versions), None);
    session.refuse(refuse());
    assert_eq!(sent(&mut session), [ToAgent::Refuse(refuse())]);
    assert_eq!(session.closed().unwrap().initiator(), Initiator::Remote);
    session.welcome(welcome());
    assert_eq!(sent(&mut session), [], "it is over");
    assert_eq!(session.credit(), 0);
}

#[test]
fn nothing_is_heard_between_hello_and_decision() {
    let (mut session, now) = greeted(hello(3, &[("compta", 2)]));
    assert_eq!(give(&mut session, 1, "compta", now), Err(NotOffered::NoCredit));
    hear(&mut session, report(attempt(1), success()), now);
    assert_eq!((events(&mut session), sent(&mut session)), (vec![], vec![]));
}

#[test]
fn garbage_closes_with_1002_and_unknown_types_do_not() {
    let (mut session, now) = open();
    session.handle_frame(Frame::Text(r#"{"type":"teleport","id":1}"#.to_owned()), now);
    assert_eq!(sent(&mut session), [ToAgent::Unsupported(Unsupported { of: "teleport".to_owned() })]);
    assert_eq!(events(&mut session), [HubEvent::Unsupported("teleport".to_owned())]);
    session.handle_frame(Frame::Text("\u{0}".to_owned()), now);
    assert_eq!(session.closed().map(CloseReason::close_code), Some(1002));
    assert_eq!(session.poll_timeout(), None);
}

#[test]
fn a_hello_must_make_sense() {
    let unannounced = Hello { connectors: std::collections::BTreeMap::new(), ..hello(3, &[("compta", 1)]) };
    let twice = hello(3, &[("compta", 1), ("compta", 2)]);
    let wordy = Hello { instance: "x".repeat(257), ..hello(3, &[]) };
    let nothing = hello(3, &[("compta", 0)]);
    for bad in [unannounced, twice, wordy, nothing] {
        assert!(ToHub::from(bad.clone()).encode().is_err());
        let now = start();
        let mut session = HubSession::new(now);
        session.handle_frame(Frame::Text(serde_json::to_string(&ToHub::from(bad)).unwrap()), now);
        assert_eq!(session.closed().map(CloseReason::close_code), Some(1002));
    }
}

#[test]
fn credit_counts_for_the_agent_and_for_each_resource() {
    let (mut session, now) = open();
    assert_eq!(session.credit_for(&name("compta")), 2);
    assert_eq!(session.credit_for(&name("crm")), 3);
    assert_eq!(session.credit_for(&name("unknown")), 0);
    give(&mut session, 1, "compta", now).unwrap();
    give(&mut session, 1, "compta", now).unwrap();
    give(&mut session, 2, "compta", now).unwrap();
    assert_eq!(give(&mut session, 3, "compta", now), Err(NotOffered::NoCredit));
    give(&mut session, 3, "crm", now).unwrap();
    assert_eq!(give(&mut session, 4, "crm", now), Err(NotOffered::NoCredit));
    assert_eq!(sent(&mut session).len(), 3, "an attempt is offered once, whatever the owner says");
    hear(&mut session, accept(attempt(1)), now);
    assert_eq!(session.credit(), 0, "accepting frees nothing");
    hear(&mut session, report(attempt(1), success()), now);
    assert_eq!(session.credit(), 0, "nor does a report that is not stored");
    session.ack_report(attempt(1));
    hear(&mut session, busy(attempt(2)), now);
    assert_eq!(session.credit_for(&name("compta")), 2);
    assert_eq!(session.attempts().collect::<Vec<_>>(), [attempt(3)]);
}

#[test]
fn an_offer_that_no_frame_can_hold_is_not_sent_and_the_session_goes_on() {
    let (mut session, now) = open();
    let mut long = offer(attempt(1), "t");
    long.envelope = "x".repeat(crate::limits::MAX_FRAME);
    let refused = session.offer(long, name("compta"), now);
    assert!(matches!(refused, Err(NotOffered::Unsendable(_))), "{refused:?}");
    assert_eq!(session.credit_for(&name("compta")), 2, "it takes no place");
    assert_eq!(give(&mut session, 2, "compta", now), Ok(()));
    assert_eq!(sent(&mut session), [ToAgent::Offer(offer(attempt(2), "t"))]);
}

#[test]
fn a_code_of_another_version_is_taken_as_internal() {
    let (mut session, now) = open();
    give(&mut session, 1, "compta", now).unwrap();
    let of = attempt(1);
    let text = format!(
        r#"{{"type":"decline","job":"{}","attempt":{},"code":"out_of_paper","message":"later"}}"#,
        of.job, of.number
    );
    session.handle_frame(Frame::Text(text), now);
    let told = events(&mut session);
    let [HubEvent::Declined(decline)] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((decline.code, decline.message.as_str()), (Code::Internal, "later"));
}

#[test]
fn an_intent_that_no_offer_could_carry_closes() {
    let (mut session, now) = open();
    give(&mut session, 1, "compta", now).unwrap();
    let (job, attempt) = (attempt(1).job, attempt(1).number);
    let part = "p".repeat(crate::limits::MAX_INTENT_PATH + 1);
    let text = format!(
        r#"{{"type":"commit","job":"{job}","attempt":{attempt},"intent":{{"part":"{part}","target":"a"}}}}"#
    );
    session.handle_frame(Frame::Text(text), now);
    assert!(matches!(session.closed(), Some(CloseReason::PeerMisbehaved(_))), "{:?}", session.closed());
}

#[test]
fn an_agent_cannot_announce_more_jobs_than_the_limit() {
    let (mut session, _) = greeted(hello(u32::MAX, &[("compta", u32::MAX)]));
    session.welcome(welcome());
    assert_eq!(session.credit_for(&name("compta")), crate::limits::MAX_JOBS as usize);
}

#[test]
fn unanswered_offers_are_bounded_in_bytes() {
    let (mut session, now) = greeted(hello(1024, &[("compta", 1024)]));
    session.welcome(welcome());
    let data = "A".repeat(MAX_INLINE_PAYLOAD / 3 * 4);
    let mut offered = 0;
    for n in 0..200 {
        let mut large = offer(attempt(n), "t");
        large.payload = Some(PayloadSource::Inline { data: data.clone() });
        if session.offer(large, name("compta"), now).is_err() {
            break;
        }
        offered += 1;
    }
    let all = MAX_UNANSWERED_OFFER_BYTES.div_ceil(data.len());
    assert!(offered == all || offered + 1 == all, "{offered}");
    assert_eq!(session.credit(), 0);
    hear(&mut session, accept(attempt(0)), now);
    hear(&mut session, busy(attempt(1)), now);
    assert!(session.credit() > 0, "answers make room");
    assert!(give(&mut session, 201, "compta", now).is_ok());
}

#[test]
fn an_offer_is_sent_again_until_it_is_answered() {
    let (mut session, now) = open();
    give(&mut session, 1, "compta", now).unwrap();
    sent(&mut session);
    assert_eq!(session.poll_timeout(), Some(now + RESEND));
    session.handle_timeout(now + RESEND);
    assert_eq!(sent(&mut session), [ToAgent::Offer(offer(attempt(1), "t"))]);
    hear(&mut session, accept(attempt(1)), now + RESEND);
    hear(&mut session, accept(attempt(1)), now + RESEND);
    assert_eq!(events(&mut session), [HubEvent::Accepted(attempt(1))]);
    session.handle_timeout(now + RESEND * 2);
    assert_eq!(sent(&mut session), []);
}

#[test]
fn progress_or_a_commit_mean_that_the_offer_was_accepted() {
    let (mut session, now) = open();
    give(&mut session, 1, "compta", now).unwrap();
    give(&mut session, 2, "compta", now).unwrap();
    let far = Progress {
        job: job(1),
        attempt: 1,
        started_at: jiff::Timestamp::UNIX_EPOCH,
        bytes_done: 1,
        bytes_total: None,
    };
    hear(&mut session, far.clone(), now);
    hear(&mut session, Progress { job: job(9), ..far.clone() }, now);
    let intent = Intent { part: None, target: None, size: None, sha256: None, state: None };
    let commit = Commit { job: job(2), attempt: 1, intent };
    hear(&mut session, commit.clone(), now);
    hear(&mut session, commit.clone(), now);
    assert_eq!(
        events(&mut session),
        [
            HubEvent::Accepted(attempt(1)),
            HubEvent::Progress(far),
            HubEvent::Accepted(attempt(2)),
            HubEvent::CommitRequested(commit.clone()),
            HubEvent::CommitRequested(commit),
        ]
    );
    sent(&mut session);
    session.grant_commit(attempt(2));
    assert_eq!(sent(&mut session), [ToAgent::CommitGranted(CommitGranted { job: job(2), attempt: 1 })]);
}

#[test]
fn a_declined_attempt_is_not_offered_again_under_its_number() {
    let (mut session, now) = open();
    give(&mut session, 1, "compta", now).unwrap();
    hear(&mut session, busy(attempt(1)), now);
    hear(&mut session, busy(attempt(1)), now);
    assert_eq!(events(&mut session), [HubEvent::Declined(busy(attempt(1)))]);
    assert_eq!(session.credit(), 3);
    assert_eq!(give(&mut session, 1, "compta", now), Err(NotOffered::NoCredit));
    let next = Attempt::new(job(1), 2);
    session.offer(offer(next, "t"), name("compta"), now).unwrap();
    hear(&mut session, busy(attempt(1)), now);
    hear(&mut session, accept(attempt(1)), now);
    assert_eq!(events(&mut session), [], "late copies change nothing");
    hear(&mut session, accept(next), now);
    hear(&mut session, accept(attempt(9)), now);
    assert_eq!(events(&mut session), [HubEvent::Accepted(next)]);
}

#[test]
fn a_report_is_told_once_until_much_later_and_acknowledged_as_often_as_asked() {
    let (mut session, now) = open();
    give(&mut session, 1, "compta", now).unwrap();
    sent(&mut session);
    let done = report(attempt(1), success());
    hear(&mut session, done.clone(), now);
    hear(&mut session, done.clone(), now + RESEND / 2);
    assert_eq!(events(&mut session), [HubEvent::Reported(done.clone())], "it is being stored");
    hear(&mut session, done.clone(), now + RESEND);
    assert_eq!(events(&mut session), [HubEvent::Reported(done.clone())], "the owner may have failed");
    session.ack_report(attempt(1));
    hear(&mut session, done.clone(), now + RESEND);
    assert_eq!(events(&mut session), [HubEvent::Reported(done)], "the acknowledgement was lost");
    session.ack_report(attempt(1));
    let ack = ToAgent::ReportAck(ReportAck { job: job(1), attempt: 1 });
    assert_eq!(sent(&mut session), [ack.clone(), ack]);
}

#[test]
fn a_report_of_an_attempt_that_the_hub_does_not_know_is_passed_on() {
    let (mut session, now) = open();
    hear(&mut session, report(attempt(77), success()), now);
    assert_eq!(events(&mut session), [HubEvent::Reported(report(attempt(77), success()))]);
}

#[test]
fn a_cancel_is_sent_again_until_the_report() {
    let (mut session, now) = open();
    session.cancel(attempt(1), now);
    assert_eq!(sent(&mut session), [], "nothing to cancel");
    give(&mut session, 1, "compta", now).unwrap();
    hear(&mut session, accept(attempt(1)), now);
    sent(&mut session);
    session.cancel(attempt(1), now);
    session.cancel(attempt(1), now);
    let cancel = [ToAgent::Cancel(Cancel { job: job(1), attempt: 1 })];
    session.handle_timeout(now + RESEND);
    assert_eq!(sent(&mut session), cancel, "it has not been written yet");
    session.handle_timeout(now + RESEND * 2);
    assert_eq!(sent(&mut session), cancel);
    hear(&mut session, report(attempt(1), success()), now + RESEND * 2);
    session.cancel(attempt(1), now + RESEND * 2);
    session.handle_timeout(now + RESEND * 3);
    assert_eq!(sent(&mut session), []);
}

#[test]
fn kept_attempts_take_up_credit_and_stopped_ones_do_not() {
    let mut agent = hello(3, &[("compta", 2)]);
    let held = |n| HeldJob { job: job(n), attempt: 1, resource: name("compta"), state: HeldState::Running };
    agent.held = vec![held(1), held(2)];
    let (mut session, now) = greeted(agent);
    let mut answer = welcome();
    let verdict = |n, action| Held { job: job(n), attempt: 1, action, granted: false };
    answer.held =
        vec![verdict(1, HeldAction::Keep), verdict(2, HeldAction::Stop), verdict(3, HeldAction::Keep)];
    session.welcome(answer);
    assert_eq!(session.attempts().collect::<Vec<_>>(), [attempt(1)], "the third was never held");
    assert_eq!((session.credit(), session.credit_for(&name("compta"))), (2, 1));
    hear(&mut session, report(attempt(2), success()), now);
    assert_eq!(events(&mut session).len(), 1, "a stopped attempt reports all the same");
}

#[test]
fn a_draining_agent_is_offered_nothing() {
    let (mut session, now) = open();
    give(&mut session, 1, "compta", now).unwrap();
    hear(&mut session, Draining { grace_s: 30 }, now);
    hear(&mut session, Draining { grace_s: 30 }, now);
    assert_eq!(events(&mut session), [HubEvent::Draining]);
    assert_eq!((session.credit(), give(&mut session, 2, "compta", now)), (0, Err(NotOffered::NoCredit)));
    hear(&mut session, accept(attempt(1)), now);
    hear(&mut session, report(attempt(1), success()), now);
    assert_eq!(events(&mut session).len(), 2, "what it holds is finished");
}

#[test]
fn an_agent_that_answers_pings_lives_and_a_silent_one_dies() {
    let (mut session, mut now) = open();
    for _ in 0..20 {
        now += Duration::from_secs(10);
        session.handle_timeout(now);
        assert_eq!(session.poll_frame(), Some(Frame::Ping));
        session.handle_frame(Frame::Pong, now);
    }
    assert!(session.is_open());
    session.handle_timeout(now + DEAD_AFTER);
    assert_eq!(session.closed(), Some(&CloseReason::PeerDead));
}
