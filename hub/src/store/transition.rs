//! The state machine of a job, pure: what an event makes of it.
//!
//! ```text
//! queued ─► offered ─► running ─► succeeded | denied                      (final)
//!   ▲          │           ├────► failed | cancelled | expired | unknown  (settled)
//!   │◄─────────┘ withdrawn └────► waiting ─► queued
//! ```
//! Settled states change by an explicit retry, an operator's resolve or a late report of success, final ones by nothing.

use crate::model::{ErrorView, JobState};
use jiff::{SignedDuration, Timestamp};
use passerelle_protocol::{Code, Effect, Failure, Repeat, Verdict};
use std::time::Duration;

/// The first backoff; doubled with each attempt.
const BACKOFF: Duration = Duration::from_secs(1);
/// The longest backoff of our own.
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// The longest wait that a target or an agent may ask for.
pub(super) const MAX_HINT: Duration = Duration::from_secs(3600);
/// For how long a resource is not offered to an agent that declined without saying for how long.
const HOLD: Duration = Duration::from_secs(1);
/// The same for an agent that told of a fault of its own.
const HOLD_INTERNAL: Duration = Duration::from_secs(5);
/// When a job is tried again that an agent handed back without saying when.
const HANDED_BACK: Duration = Duration::from_millis(200);
/// How many offers in a row may be refused as expired or replayed.
const MAX_REFUSED: u32 = 8;

/// What the decision depends on.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) state: JobState,
    /// Attempts that were not withdrawn, the current one included.
    pub(crate) counted: u32,
    /// What `counted` may reach.
    pub(crate) allowed: u32,
    /// How many of them a round has: `allowed` grows by it with each retry.
    pub(crate) max_attempts: u32,
    pub(crate) deadline: Timestamp,
    pub(crate) cancel_requested: bool,
    /// Offers in a row that were refused as expired or replayed.
    pub(crate) refused: u32,
    /// What the last failed attempt did.
    pub(crate) last_effect: Option<Effect>,
    /// The final effect of an attempt was granted, and nobody has told that it did not happen.
    pub(crate) granted: bool,
}

/// What happened.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event<'a> {
    /// The connector has started; the current attempt.
    Started,
    /// An attempt, the current one or an earlier one, reports success.
    Succeeded,
    /// The current attempt reports failure.
    Failed { failure: &'a Failure, repeat: Repeat },
    /// The current attempt was declined.
    Declined { code: Code, message: &'a str, retry_after_ms: Option<u64> },
    /// The current attempt was never accepted, and its agent does not know it.
    NotHeld,
    /// The current attempt was accepted and its agent has lost it, or is itself lost for good.
    /// `asked`: its ticket said that it must ask before its final effect.
    Lost { repeat: Repeat, asked: bool },
    /// The current attempt's agent was not heard for the length of a lease: it may no longer act unless it was granted.
    Moved { repeat: Repeat },
    /// A client gives the current attempt up: its agent does not answer.
    GivenUp,
    /// The hub was restored from a backup of this time, and another agent of the site may have carried the job out since.
    Restored { made_at: Timestamp },
    /// An operator found out what became of an `unknown` job, or wants the jobs behind it to go on.
    Resolved(Resolution),
    /// A client wants it stopped.
    Cancel,
    /// A client wants more attempts.
    Retry,
    /// The deadline has passed.
    DeadlinePassed,
    /// The backoff is over.
    Due,
}

/// What an operator found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// It took effect.
    Applied,
    /// It did not.
    NotApplied,
    /// It does not matter any more.
    Skipped,
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// Nothing.
    Ignore,
    /// Tell the client that the state forbids it.
    Forbidden,
    /// Remember the wish and send `Cancel` to the agent.
    AskAgent,
    /// The job changes.
    Become(Next),
}

/// How the job changes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Next {
    pub(crate) state: JobState,
    /// Why it is not `succeeded`; kept while it waits.
    pub(crate) error: Option<ErrorView>,
    /// When a waiting job is due.
    pub(crate) next_attempt_at: Option<Timestamp>,
    /// The current attempt does not count, and is not shown: nothing of it ever began.
    pub(crate) withdraw: bool,
    /// The current attempt does not count, but is shown: it ended for a reason that is not the job's.
    pub(crate) uncounted: bool,
    /// What the last attempt failed of still holds: the job goes on because of it, or in spite of it.
    pub(crate) keep_error: bool,
    /// Offers refused in a row.
    pub(crate) refused: u32,
    /// For how long not to offer the resource to this agent.
    pub(crate) hold: Option<Duration>,
}

impl Next {
    fn to(state: JobState) -> Self {
        Self {
            state,
            error: None,
            next_attempt_at: None,
            withdraw: false,
            uncounted: false,
            keep_error: false,
            refused: 0,
            hold: None,
        }
    }

    /// The job goes on, and what its last attempt did still counts if it ends without another one.
    fn on(state: JobState) -> Self {
        Self { keep_error: true, ..Self::to(state) }
    }

    fn ended(state: JobState, code: Code, message: impl Into<String>, effect: Effect) -> Self {
        Self { error: Some(ErrorView { code, message: message.into(), effect }), ..Self::to(state) }
    }

    fn withdrawn(mut self) -> Self {
        self.withdraw = true;
        self
    }

    fn uncounted(mut self) -> Self {
        self.uncounted = true;
        self
    }
}

impl From<Next> for Decision {
    fn from(next: Next) -> Self {
        Self::Become(next)
    }
}

/// Decides. `jitter` is random in 0..1.
pub(crate) fn next(job: &Facts, event: &Event<'_>, now: Timestamp, jitter: f64) -> Decision {
    use JobState::{Cancelled, Expired, Failed, Offered, Queued, Running, Succeeded, Unknown, Waiting};
    match (event, job.state) {
        (Event::Started, Offered) => Next::on(Running).into(),
        (Event::Succeeded, Queued | Offered | Running | Waiting | Failed | Cancelled | Expired | Unknown) => {
            Next::to(Succeeded).into()
        }
        (Event::Failed { failure, repeat }, Offered | Running) => {
            after_failure(job, failure, *repeat, now, jitter).into()
        }
        (Event::Declined { code, message, retry_after_ms }, Offered | Running) => {
            after_decline(job, *code, message, *retry_after_ms, now).into()
        }
        (Event::NotHeld, Offered | Running) => back_to_queue(job, now).withdrawn().into(),
        (Event::Lost { repeat, asked }, Offered | Running) => after_loss(job, *repeat, *asked, now).into(),
        (Event::Moved { repeat }, Offered | Running) => after_move(job, *repeat, now).uncounted().into(),
        (Event::GivenUp, Offered | Running) => {
            let message = "given up on request; whether it took effect is not known";
            Next::ended(Unknown, Code::AgentLost, message, Effect::Unknown).into()
        }
        (Event::Restored { made_at }, Queued | Waiting | Offered | Running) => {
            let message = format!(
                "the hub was restored from a backup of {made_at}: whether the job took effect since then is not known; look at \
                 the target, then retry or resolve it"
            );
            Next::ended(Unknown, Code::AgentLost, message, Effect::Unknown).into()
        }
        (Event::Resolved(resolution), Unknown) => resolved(*resolution).into(),
        (Event::Cancel, Queued | Waiting) => cancelled(job).into(),
        (Event::Cancel, Offered | Running) => Decision::AskAgent,
        (Event::Retry, Failed | Cancelled | Expired | Unknown) => Next::to(Queued).into(),
        // What was granted has begun: it is brought to its end, however late.
        (Event::DeadlinePassed, Queued | Waiting) if job.granted => Decision::Ignore,
        (Event::DeadlinePassed, Queued | Waiting) => expired(job).into(),
        (Event::Due, Waiting) => Next::on(Queued).into(),
        (Event::Cancel | Event::Retry | Event::GivenUp | Event::Resolved(_), _) => Decision::Forbidden,
        (
            Event::Started
            | Event::Succeeded
            | Event::Failed { .. }
            | Event::Declined { .. }
            | Event::NotHeld
            | Event::Lost { .. }
            | Event::Moved { .. }
            | Event::Restored { .. }
            | Event::DeadlinePassed
            | Event::Due,
            _,
        ) => Decision::Ignore,
    }
}

fn after_failure(job: &Facts, failure: &Failure, repeat: Repeat, now: Timestamp, jitter: f64) -> Next {
    let unknown = failure.effect == Effect::Unknown;
    let ended = |state| Next::ended(state, failure.code, failure.message.clone(), failure.effect);
    let settled = |state| ended(if unknown { JobState::Unknown } else { state });
    match failure.verdict {
        Verdict::Denied if !unknown => ended(JobState::Denied),
        // What was denied has no effect: an agent that says both knows neither.
        Verdict::Denied => settled(JobState::Failed),
        Verdict::Cancelled => settled(JobState::Cancelled),
        Verdict::Permanent if failure.code == Code::Deadline => settled(JobState::Expired),
        Verdict::Permanent => settled(JobState::Failed),
        Verdict::Retry if job.cancel_requested => settled(JobState::Cancelled),
        Verdict::Retry if unknown && repeat == Repeat::Never => ended(JobState::Unknown),
        // Handed back by an agent that is being stopped or was told to pause: not the job's fault, and another agent may be
        // there.
        Verdict::Retry if matches!(failure.code, Code::Busy | Code::Paused) && now < job.deadline => {
            let wait = hint(failure.retry_after_ms).unwrap_or(HANDED_BACK);
            Next { next_attempt_at: Some(later(now, wait)), ..ended(JobState::Waiting) }.uncounted()
        }
        Verdict::Retry if job.counted >= job.allowed => settled(JobState::Failed),
        Verdict::Retry if now >= job.deadline && unknown && !job.granted => ended(JobState::Unknown),
        Verdict::Retry if now >= job.deadline && !unknown => Next::ended(
            JobState::Expired,
            Code::Deadline,
            format!("the deadline passed before another attempt; the last one failed: {}", failure.message),
            failure.effect,
        ),
        Verdict::Retry => {
            let wait = backoff(job, jitter).max(hint(failure.retry_after_ms).unwrap_or_default());
            Next { next_attempt_at: Some(later(now, wait)), ..ended(JobState::Waiting) }
        }
    }
}

fn after_decline(
    job: &Facts,
    code: Code,
    message: &str,
    retry_after_ms: Option<u64>,
    now: Timestamp,
) -> Next {
    let refused = job.refused.saturating_add(1);
    // No agent takes it any more: what an earlier attempt may have done stays as unknown as it is.
    let open = job.granted || job.last_effect == Some(Effect::Unknown);
    let ended = |state| match open {
        true => Next::ended(JobState::Unknown, code, message, Effect::Unknown),
        false => Next::ended(state, code, message, Effect::NotApplied),
    };
    match code {
        Code::SignatureInvalid => ended(JobState::Denied),
        // It would not be sent the next time either.
        Code::TooLarge => ended(JobState::Failed),
        Code::Deadline => expired(job).withdrawn(),
        Code::EnvelopeExpired if refused >= MAX_REFUSED => ended(JobState::Failed),
        // The agent knows of the job what the hub does not (a restored backup): it may well have happened.
        Code::Replayed if refused >= MAX_REFUSED => {
            Next::ended(JobState::Unknown, code, message, Effect::Unknown)
        }
        Code::EnvelopeExpired | Code::Replayed => {
            let hold = (code == Code::EnvelopeExpired).then(|| hint(retry_after_ms).unwrap_or(HOLD));
            Next { refused, hold, ..back_to_queue(job, now).withdrawn() }
        }
        Code::Busy | Code::Paused | Code::BreakerOpen => {
            let hold = Some(hint(retry_after_ms).unwrap_or(HOLD));
            Next { hold, refused: job.refused, ..back_to_queue(job, now).withdrawn() }
        }
        // `internal`, and what no agent should send here.
        _ => {
            let hold = Some(hint(retry_after_ms).unwrap_or(HOLD_INTERNAL));
            Next { hold, refused: job.refused, ..back_to_queue(job, now).withdrawn() }
        }
    }
}

/// With its journal the agent has lost the intent by which an operation repeats safely. What had to ask and was not granted
/// certainly did not happen; what was granted another attempt can find out about; all else nobody knows.
fn after_loss(job: &Facts, repeat: Repeat, asked: bool, now: Timestamp) -> Next {
    let message = "the agent lost the attempt; whether it took effect is not known";
    let unknown = || Next::ended(JobState::Unknown, Code::AgentLost, message, Effect::Unknown);
    if repeat != Repeat::Safe || !asked {
        return unknown();
    }
    match (job.granted, job.cancel_requested) {
        (true, false) if job.counted < job.allowed => Next { state: JobState::Queued, ..unknown() },
        (true, _) => unknown(),
        (false, true) => cancelled(job),
        (false, false) if now >= job.deadline => expired(job),
        (false, false) => {
            let state = if job.counted < job.allowed { JobState::Queued } else { JobState::Failed };
            let message = "the agent lost the attempt before it had any effect";
            Next::ended(state, Code::AgentLost, message, Effect::NotApplied)
        }
    }
}

/// The lease ran out. Without a grant nothing that needs one can have happened.
fn after_move(job: &Facts, repeat: Repeat, now: Timestamp) -> Next {
    let effect = if job.granted || repeat == Repeat::WithKey { Effect::Unknown } else { Effect::NotApplied };
    let message = "its agent was not heard of for too long";
    let ended = |state| Next::ended(state, Code::AgentLost, message, effect);
    match effect {
        Effect::NotApplied if job.cancel_requested => cancelled(job),
        Effect::NotApplied if now >= job.deadline => expired(job),
        _ if job.cancel_requested || (job.granted && repeat == Repeat::Never) => ended(JobState::Unknown),
        Effect::Unknown if now >= job.deadline && !job.granted => ended(JobState::Unknown),
        _ => ended(JobState::Queued),
    }
}

fn resolved(resolution: Resolution) -> Next {
    match resolution {
        Resolution::Applied => Next::to(JobState::Succeeded),
        Resolution::NotApplied => {
            let message = "resolved by an operator: it did not take effect";
            Next::ended(JobState::Failed, Code::AgentLost, message, Effect::NotApplied)
        }
        Resolution::Skipped => {
            let message = "resolved by an operator: skipped";
            Next::ended(JobState::Cancelled, Code::Cancelled, message, Effect::Unknown)
        }
    }
}

/// Nothing happened: to the queue again, unless the time or the wish for it is over.
fn back_to_queue(job: &Facts, now: Timestamp) -> Next {
    if job.cancel_requested {
        cancelled(job)
    } else if now >= job.deadline {
        expired(job)
    } else {
        Next::on(JobState::Queued)
    }
}

fn cancelled(job: &Facts) -> Next {
    let effect = job.last_effect.unwrap_or(Effect::NotApplied);
    Next::ended(JobState::Cancelled, Code::Cancelled, "cancelled on request", effect)
}

fn expired(job: &Facts) -> Next {
    match job.last_effect {
        Some(Effect::Unknown) => Next::ended(
            JobState::Unknown,
            Code::Deadline,
            "the deadline passed, and whether the last attempt took effect is not known",
            Effect::Unknown,
        ),
        _ => Next::ended(
            JobState::Expired,
            Code::Deadline,
            "not started by its deadline: submit it again with a longer one, or retry it",
            Effect::NotApplied,
        ),
    }
}

/// Full jitter over a window that doubles with each attempt of the round.
fn backoff(job: &Facts, jitter: f64) -> Duration {
    let round = job.counted.saturating_sub(job.allowed.saturating_sub(job.max_attempts));
    let doublings = round.saturating_sub(1).min(16);
    let window = BACKOFF.saturating_mul(1 << doublings).min(MAX_BACKOFF);
    window.mul_f64(jitter.clamp(0.0, 1.0))
}

fn hint(retry_after_ms: Option<u64>) -> Option<Duration> {
    retry_after_ms.map(|ms| Duration::from_millis(ms).min(MAX_HINT))
}

fn later(now: Timestamp, wait: Duration) -> Timestamp {
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::ZERO);
    now.checked_add(wait).unwrap_or(now)
}

#[cfg(test)]
#[path = "transition_tests.rs"]
mod tests;
