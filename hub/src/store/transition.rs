//! The state machine of a job, pure: what an event makes of it.
//!
//! ```text
//! queued ─► offered ─► running ─► succeeded | denied                      (final)
//!   ▲          │           ├────► failed | cancelled | expired | unknown  (settled)
//!   │◄─────────┘ withdrawn └────► waiting ─► queued
//! ```
//! Settled states change by an explicit retry or a late report of success, final ones by nothing.

use crate::model::{ErrorView, JobState};
use jiff::{SignedDuration, Timestamp};
use passerelle_protocol::{Code, Effect, Failure, Repeat, Verdict};
use std::time::Duration;

/// The first backoff; doubled with each attempt.
const BACKOFF: Duration = Duration::from_secs(1);
/// The longest backoff of our own.
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// The longest wait that a target or an agent may ask for.
const MAX_HINT: Duration = Duration::from_secs(3600);
/// For how long a resource is not offered to an agent that declined without saying for how long.
const HOLD: Duration = Duration::from_secs(1);
/// The same for an agent that told of a fault of its own.
const HOLD_INTERNAL: Duration = Duration::from_secs(5);
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
    Lost { repeat: Repeat },
    /// A client wants it stopped.
    Cancel,
    /// A client wants more attempts.
    Retry,
    /// The deadline has passed.
    DeadlinePassed,
    /// The backoff is over.
    Due,
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
    /// The current attempt does not count.
    pub(crate) withdraw: bool,
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
        (Event::Lost { repeat }, Offered | Running) => after_loss(job, *repeat, now).into(),
        (Event::Cancel, Queued | Waiting) => cancelled(job).into(),
        (Event::Cancel, Offered | Running) => Decision::AskAgent,
        (Event::Retry, Failed | Cancelled | Expired | Unknown) => Next::to(Queued).into(),
        (Event::DeadlinePassed, Queued | Waiting) => expired(job).into(),
        (Event::Due, Waiting) => Next::on(Queued).into(),
        (Event::Cancel | Event::Retry, _) => Decision::Forbidden,
        (
            Event::Started
            | Event::Succeeded
            | Event::Failed { .. }
            | Event::Declined { .. }
            | Event::NotHeld
            | Event::Lost { .. }
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
        Verdict::Denied => ended(JobState::Denied),
        Verdict::Cancelled => settled(JobState::Cancelled),
        Verdict::Permanent if failure.code == Code::Deadline => settled(JobState::Expired),
        Verdict::Permanent => settled(JobState::Failed),
        Verdict::Retry if job.cancel_requested => settled(JobState::Cancelled),
        Verdict::Retry if unknown && repeat == Repeat::Never => ended(JobState::Unknown),
        Verdict::Retry if job.counted >= job.allowed => settled(JobState::Failed),
        Verdict::Retry if now >= job.deadline && unknown => ended(JobState::Unknown),
        Verdict::Retry if now >= job.deadline => Next::ended(
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
    match code {
        Code::SignatureInvalid => Next::ended(JobState::Denied, code, message, Effect::NotApplied),
        Code::Deadline => expired(job).withdrawn(),
        Code::EnvelopeExpired | Code::Replayed if refused >= MAX_REFUSED => {
            Next::ended(JobState::Failed, code, message, Effect::NotApplied)
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

fn after_loss(job: &Facts, repeat: Repeat, now: Timestamp) -> Next {
    let again = repeat == Repeat::Safe && job.counted < job.allowed && now < job.deadline;
    let message = "the agent lost the attempt; whether it took effect is not known";
    let ended = Next::ended(JobState::Unknown, Code::AgentLost, message, Effect::Unknown);
    if again && !job.cancel_requested { Next { state: JobState::Queued, ..ended } } else { ended }
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
