//! The state machine as a table: one row per event and state that matters.

use super::*;
use JobState::{Cancelled, Denied, Expired, Failed, Offered, Queued, Running, Succeeded, Unknown, Waiting};

const NOW: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn facts(state: JobState) -> Facts {
    Facts {
        state,
        counted: 1,
        allowed: 5,
        max_attempts: 5,
        deadline: at(NOW + 3600),
        cancel_requested: false,
        refused: 0,
        last_effect: None,
        granted: false,
    }
}

fn failure(verdict: Verdict, effect: Effect, code: Code) -> Failure {
    Failure::new(verdict, effect, code, "it failed")
}

fn state_after(job: &Facts, event: &Event<'_>) -> Option<JobState> {
    match next(job, event, at(NOW), 0.5) {
        Decision::Become(next) => Some(next.state),
        Decision::Ignore | Decision::Forbidden | Decision::AskAgent => None,
    }
}

#[test]
fn each_event_in_each_state() {
    let spent = failure(Verdict::Permanent, Effect::NotApplied, Code::TargetRefused);
    let failed = Event::Failed { failure: &spent, repeat: Repeat::Safe };
    let declined = Event::Declined { code: Code::Busy, message: "busy", retry_after_ms: None };
    let lost = Event::Lost { repeat: Repeat::Never, asked: true };
    // In the order queued, offered, running, waiting, succeeded, failed, denied, cancelled, expired, unknown.
    let s = Some;
    let table: &[(&str, Event<'_>, [Option<JobState>; 10])] = &[
        ("started", Event::Started, [None, s(Running), None, None, None, None, None, None, None, None]),
        (
            "succeeded",
            Event::Succeeded,
            [
                s(Succeeded),
                s(Succeeded),
                s(Succeeded),
                s(Succeeded),
                None,
                s(Succeeded),
                None,
                s(Succeeded),
                s(Succeeded),
                s(Succeeded),
            ],
        ),
        ("failed", failed, [None, s(Failed), s(Failed), None, None, None, None, None, None, None]),
        ("declined", declined, [None, s(Queued), s(Queued), None, None, None, None, None, None, None]),
        ("not held", Event::NotHeld, [None, s(Queued), s(Queued), None, None, None, None, None, None, None]),
        ("lost", lost, [None, s(Unknown), s(Unknown), None, None, None, None, None, None, None]),
        (
            "cancel",
            Event::Cancel,
            [s(Cancelled), None, None, s(Cancelled), None, None, None, None, None, None],
        ),
        (
            "retry",
            Event::Retry,
            [None, None, None, None, None, s(Queued), None, s(Queued), s(Queued), s(Queued)],
        ),
        (
            "deadline",
            Event::DeadlinePassed,
            [s(Expired), None, None, s(Expired), None, None, None, None, None, None],
        ),
        ("due", Event::Due, [None, None, None, s(Queued), None, None, None, None, None, None]),
    ];
    for (what, event, expected) in table {
        for (state, expected) in JobState::ALL.iter().zip(expected) {
            assert_eq!(state_after(&facts(*state), event), *expected, "{what} in {state:?}");
        }
    }
}

#[test]
fn clients_are_told_when_the_state_forbids_it() {
    for state in JobState::ALL {
        let cancel = next(&facts(*state), &Event::Cancel, at(NOW), 0.0);
        let retry = next(&facts(*state), &Event::Retry, at(NOW), 0.0);
        assert_eq!(cancel == Decision::Forbidden, state.is_settled(), "cancel in {state:?}");
        assert_eq!(cancel == Decision::AskAgent, matches!(state, Offered | Running), "cancel in {state:?}");
        assert_eq!(
            retry == Decision::Forbidden,
            !state.is_settled() || state.is_final(),
            "retry in {state:?}"
        );
    }
}

#[test]
fn a_failure_is_judged_by_verdict_effect_repeat_attempts_deadline_and_cancel() {
    use Effect::NotApplied as Not;
    let unknown = Effect::Unknown;
    let check = |verdict, effect, code, repeat, change: &dyn Fn(&mut Facts), expected: JobState| {
        let mut job = facts(Running);
        change(&mut job);
        let failure = failure(verdict, effect, code);
        let state = state_after(&job, &Event::Failed { failure: &failure, repeat });
        assert_eq!(state, Some(expected), "{verdict:?} {effect:?} {code} {repeat:?}");
    };
    let same: &dyn Fn(&mut Facts) = &|_| {};
    let last: &dyn Fn(&mut Facts) = &|job| job.counted = 5;
    let late: &dyn Fn(&mut Facts) = &|job| job.deadline = at(NOW);
    let stop: &dyn Fn(&mut Facts) = &|job| job.cancel_requested = true;
    let (code, safe, never) = (Code::TargetUnreachable, Repeat::Safe, Repeat::Never);
    check(Verdict::Denied, Not, Code::PolicyDenied, safe, same, Denied);
    check(Verdict::Cancelled, Not, Code::Cancelled, safe, same, Cancelled);
    check(Verdict::Cancelled, unknown, Code::Cancelled, safe, same, Unknown);
    check(Verdict::Permanent, Not, code, safe, same, Failed);
    check(Verdict::Permanent, unknown, code, safe, same, Unknown);
    check(Verdict::Permanent, Not, Code::Deadline, safe, same, Expired);
    check(Verdict::Retry, Not, code, safe, same, Waiting);
    check(Verdict::Retry, Not, code, never, same, Waiting);
    check(Verdict::Retry, unknown, code, safe, same, Waiting);
    check(Verdict::Retry, unknown, code, Repeat::WithKey, same, Waiting);
    check(Verdict::Retry, unknown, code, never, same, Unknown);
    check(Verdict::Retry, Not, code, safe, last, Failed);
    check(Verdict::Retry, unknown, code, safe, last, Unknown);
    check(Verdict::Retry, Not, code, safe, late, Expired);
    check(Verdict::Retry, unknown, code, safe, late, Unknown);
    check(Verdict::Retry, Not, code, safe, stop, Cancelled);
    check(Verdict::Retry, unknown, code, safe, stop, Unknown);
}

#[test]
fn what_an_agent_hands_back_is_not_counted() {
    for code in [Code::Busy, Code::Paused, Code::TargetUnreachable] {
        let mut job = facts(Running);
        job.counted = job.allowed - u32::from(code == Code::TargetUnreachable);
        let failure = failure(Verdict::Retry, Effect::NotApplied, code);
        let event = Event::Failed { failure: &failure, repeat: Repeat::Never };
        let Decision::Become(next) = next(&job, &event, at(NOW), 0.0) else { panic!("{code} did nothing") };
        assert_eq!((next.state, next.uncounted), (Waiting, code != Code::TargetUnreachable), "{code}");
    }
}

#[test]
fn a_decline_is_judged_by_its_code() {
    let check = |code, change: &dyn Fn(&mut Facts), state, withdraw, held: Option<u64>| {
        let mut job = facts(Offered);
        change(&mut job);
        let event = Event::Declined { code, message: "no", retry_after_ms: None };
        let Decision::Become(next) = next(&job, &event, at(NOW), 0.0) else { panic!("{code} did nothing") };
        assert_eq!(
            (next.state, next.withdraw, next.hold.map(|d| d.as_secs())),
            (state, withdraw, held),
            "{code}"
        );
    };
    let same: &dyn Fn(&mut Facts) = &|_| {};
    for code in [Code::Busy, Code::Paused, Code::BreakerOpen] {
        check(code, same, Queued, true, Some(1));
    }
    check(Code::Internal, same, Queued, true, Some(5));
    check(Code::EnvelopeExpired, same, Queued, true, Some(1));
    check(Code::Replayed, same, Queued, true, None);
    check(Code::Replayed, &|job| job.refused = 7, Unknown, false, None);
    check(Code::TooLarge, same, Failed, false, None);
    check(Code::EnvelopeExpired, &|job| job.refused = 7, Failed, false, None);
    check(Code::SignatureInvalid, same, Denied, false, None);
    // What an earlier attempt may have done stays open.
    check(Code::SignatureInvalid, &|job| job.granted = true, Unknown, false, None);
    check(Code::SignatureInvalid, &|job| job.last_effect = Some(Effect::Unknown), Unknown, false, None);
    check(Code::EnvelopeExpired, &|job| (job.refused, job.granted) = (7, true), Unknown, false, None);
    check(Code::Deadline, same, Expired, true, None);
    check(Code::Busy, &|job| job.cancel_requested = true, Cancelled, true, Some(1));
    check(Code::Busy, &|job| job.deadline = at(NOW), Expired, true, Some(1));
}

#[test]
fn an_agent_s_loss_is_repeated_only_where_it_is_known_what_happened() {
    let check = |repeat, asked, change: &dyn Fn(&mut Facts), expected| {
        let mut job = facts(Running);
        change(&mut job);
        let lost = Event::Lost { repeat, asked };
        assert_eq!(state_after(&job, &lost), Some(expected), "{repeat:?} {asked} {job:?}");
    };
    // It had to ask and was not granted: nothing happened.
    check(Repeat::Safe, true, &|_| {}, Queued);
    check(Repeat::Safe, true, &|job| job.counted = 5, Failed);
    check(Repeat::Safe, true, &|job| job.deadline = at(NOW), Expired);
    check(Repeat::Safe, true, &|job| job.cancel_requested = true, Cancelled);
    // It was granted: another attempt finds out.
    check(Repeat::Safe, true, &|job| job.granted = true, Queued);
    check(Repeat::Safe, true, &|job| (job.granted, job.deadline) = (true, at(NOW)), Queued);
    check(Repeat::Safe, true, &|job| (job.granted, job.counted) = (true, 5), Unknown);
    check(Repeat::Safe, true, &|job| (job.granted, job.cancel_requested) = (true, true), Unknown);
    // The evidence was in the journal that is lost, or there never was any.
    check(Repeat::Safe, false, &|_| {}, Unknown);
    check(Repeat::WithKey, true, &|_| {}, Unknown);
    check(Repeat::Never, true, &|_| {}, Unknown);
}

#[test]
fn what_a_silent_agent_held_moves_only_where_it_is_known_or_can_be_found_out() {
    let check = |repeat, change: &dyn Fn(&mut Facts), expected, effect| {
        let mut job = facts(Running);
        change(&mut job);
        let Decision::Become(next) = next(&job, &Event::Moved { repeat }, at(NOW), 0.0) else {
            panic!("{job:?}")
        };
        let told = next.error.as_ref().map(|error| error.effect);
        assert_eq!((next.state, told, next.uncounted), (expected, Some(effect), true), "{repeat:?} {job:?}");
    };
    let (no, unknown) = (Effect::NotApplied, Effect::Unknown);
    for repeat in [Repeat::Safe, Repeat::Never] {
        check(repeat, &|_| {}, Queued, no);
        check(repeat, &|job| job.counted = 5, Queued, no);
        check(repeat, &|job| job.deadline = at(NOW), Expired, no);
        check(repeat, &|job| job.cancel_requested = true, Cancelled, no);
    }
    check(Repeat::Safe, &|job| (job.granted, job.deadline) = (true, at(NOW)), Queued, unknown);
    check(Repeat::Safe, &|job| (job.granted, job.cancel_requested) = (true, true), Unknown, unknown);
    check(Repeat::Never, &|job| job.granted = true, Unknown, unknown);
    // Notifications need no grant: they are sent again under the same key.
    check(Repeat::WithKey, &|_| {}, Queued, unknown);
    check(Repeat::WithKey, &|job| job.deadline = at(NOW), Unknown, unknown);
}

#[test]
fn the_wait_doubles_with_full_jitter_and_honours_a_clamped_hint() {
    let wait = |counted, allowed, retry_after_ms, jitter| {
        let mut job = facts(Running);
        (job.counted, job.allowed) = (counted, allowed);
        let mut failure = failure(Verdict::Retry, Effect::NotApplied, Code::TargetThrottled);
        failure.retry_after_ms = retry_after_ms;
        let event = Event::Failed { failure: &failure, repeat: Repeat::Safe };
        let Decision::Become(next) = next(&job, &event, at(NOW), jitter) else { panic!("did nothing") };
        next.next_attempt_at.unwrap().as_millisecond() - NOW * 1000
    };
    assert_eq!(wait(1, 50, None, 0.0), 0);
    assert_eq!(wait(46, 50, None, 1.0), 1_000, "the first attempt of a round");
    assert_eq!(wait(48, 50, None, 1.0), 4_000);
    assert_eq!(wait(1, 5, None, 0.5), 500);
    assert_eq!(wait(40, 41, Some(0), 1.0), 8_000);
    assert_eq!(wait(1, 5, Some(30_000), 0.5), 30_000);
    assert_eq!(wait(1, 5, Some(u64::MAX), 0.5), 3_600_000);
    let mut job = facts(Running);
    (job.counted, job.allowed, job.max_attempts) = (30, 100, 100);
    assert_eq!(backoff(&job, 1.0), Duration::from_secs(300));
}

#[test]
fn a_waiting_job_whose_last_effect_is_unknown_does_not_end_as_expired() {
    let job = Facts { last_effect: Some(Effect::Unknown), ..facts(Waiting) };
    assert_eq!(state_after(&job, &Event::DeadlinePassed), Some(Unknown));
    let Decision::Become(cancelled) = next(&job, &Event::Cancel, at(NOW), 0.0) else { panic!("did nothing") };
    assert_eq!(cancelled.error.unwrap().effect, Effect::Unknown);
    for (state, event) in [(Waiting, Event::Due), (Offered, Event::NotHeld), (Offered, Event::Started)] {
        let Decision::Become(next) = next(&facts(state), &event, at(NOW), 0.0) else { panic!("did nothing") };
        assert!(next.keep_error, "{event:?} must not make the last effect forgotten");
    }
}
