//! The audit: every decision and effect of this agent as a row of a hash chain.
//!
//! # Invariants
//! - A row is committed in the journal's own transaction, together with what it tells of: no sync is spent on it.
//! - A row is one line of JSON that names the hash of the row before it and ends with its own. See `line`, and for third
//!   parties `docs/audit.md`.
//! - Committed rows move on into files of the state folder (`segments`), where `audit verify`, `audit show` and the
//!   exports read them while the agent runs. They leave the journal once they are synced there; the newest one stays.
//! - What comes in floods (offers that are refused) is written lazily, the like of it counted instead of repeated, and
//!   what found no room is counted in the chain itself (`pending`).
//! - A row never holds a secret, a host, or a path outside a resource.

pub mod chain;
pub mod command;
pub mod export;
pub mod keeper;
pub mod line;
pub mod pending;
pub mod segments;
pub mod verify;

use crate::{clock, job::Job};
use jiff::Timestamp;
use passerelle_protocol::{Code, Effect, Failure, JobId, Outcome, Verdict, session::Attempt};
use serde::{Deserialize, Serialize};

/// The longest detail, in characters.
const MAX_DETAIL: usize = 512;
/// The longest code that the hub may choose.
const MAX_CODE: usize = 64;
/// The longest value of a parameter in a detail, in characters.
const MAX_VALUE: usize = 200;
/// The parameters that say where an operation acts, relative to the resource. Nothing else of them is written.
const PLACES: [&str; 4] = ["method", "path", "from", "to"];

/// Why the journal's rows cannot be read: the agent has it open.
pub const DATABASE_IN_USE: &str = "the agent is running";

/// What a row tells of. A closed list; `docs/audit.md` explains each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The first row of a chain.
    ChainStarted,
    /// The journal is another one than before: the chain goes on from the files.
    JournalReplaced,
    /// Rows that were seen before are not there any more.
    RowsMissing,
    /// Rows found no room to wait in.
    RowsLost,
    /// The oldest rows are removed, since the audit has reached its quota.
    Cut,
    /// The process started.
    AgentStarted,
    /// The process ends.
    AgentStopped,
    /// Nothing new is taken any more.
    Draining,
    /// The hub gave the agent its identity.
    Enrolled,
    /// The hub refused the enrolment, the connection or the session.
    RefusedByHub,
    /// The hub welcomed the agent.
    Connected,
    /// The connection ended.
    Disconnected,
    /// Another connection took this one's place.
    Fenced,
    /// A changed configuration counts from here on.
    ConfigurationApplied,
    /// A changed configuration was refused.
    ConfigurationRefused,
    /// A key was replaced.
    KeyRotated,
    /// The operator paused a resource.
    Paused,
    /// The operator let a resource go on.
    Resumed,
    /// A message of the hub was not believed, or is not known here.
    MessageRefused,
    /// An offer was refused: signature, audience, time, replay.
    OfferRefused,
    /// A local rule does not allow the job.
    Denied,
    /// A job was taken.
    Accepted,
    /// Its connector started.
    Started,
    /// It took effect.
    Succeeded,
    /// It failed without effect.
    Failed,
    /// It may have taken effect or not.
    Unknown,
    /// It was cancelled.
    Cancelled,
    /// It failed, and is to be tried again.
    Retry,
    /// A trigger took a file, to be sent to the hub.
    FileTaken,
    /// The hub has a file, and it was deleted.
    FileDeleted,
    /// The hub has a file, and it was moved.
    FileMoved,
    /// The hub refused what a trigger or a listener took.
    EventRefused,
    /// A trigger took a change of a record, to be sent to the hub.
    ChangeTaken,
    /// A listener took what was posted to it, to be sent to the hub.
    PostTaken,
    /// A listener refused what was posted to it.
    PostRefused,
}

/// What is to be written.
#[derive(Debug, Clone)]
pub struct Entry {
    /// When it happened.
    pub at: Timestamp,
    /// What.
    pub kind: Kind,
    /// The job.
    pub job: Option<JobId>,
    /// The attempt.
    pub attempt: Option<u32>,
    /// The resource.
    pub resource: Option<String>,
    /// The operation.
    pub operation: Option<String>,
    /// The local rule that allowed it, or came nearest, as `resource#n`.
    pub rule: Option<String>,
    /// The stable code.
    pub code: Option<String>,
    /// `applied`, `not_applied` or `unknown`.
    pub effect: Option<&'static str>,
    /// How many.
    pub count: Option<u64>,
    /// One short sentence.
    pub detail: Option<String>,
}

impl Entry {
    /// A row of this moment.
    pub fn new(kind: Kind) -> Self {
        Self {
            at: clock::now(),
            kind,
            job: None,
            attempt: None,
            resource: None,
            operation: None,
            rule: None,
            code: None,
            effect: None,
            count: None,
            detail: None,
        }
    }

    /// A row about an attempt.
    pub fn of(kind: Kind, attempt: Attempt) -> Self {
        Self { job: Some(attempt.job), attempt: Some(attempt.number), ..Self::new(kind) }
    }

    /// A row about a job whose envelope is verified.
    pub fn about(kind: Kind, job: &Job) -> Self {
        Self {
            resource: Some(job.envelope.resource.to_string()),
            operation: Some(job.envelope.operation.to_string()),
            ..Self::of(kind, job.attempt)
        }
    }

    /// A job was taken, by this rule.
    pub fn accepted(job: &Job, rule: usize) -> Self {
        Self::about(Kind::Accepted, job).rule(job, rule).detail(&places(&job.envelope.params))
    }

    /// How an attempt ended.
    pub fn ended(job: &Job, outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Succeeded { .. } => {
                Self { effect: Some("applied"), ..Self::about(Kind::Succeeded, job) }
            }
            Outcome::Failed(failure) => Self::about(kind_of(failure), job).failed(failure),
        }
    }

    /// How a call ended: its only row.
    pub fn called(job: &Job, rule: Option<usize>, outcome: &Outcome) -> Self {
        let row = Self::ended(job, outcome);
        let places = places(&job.envelope.params);
        let parts = ["call", places.as_str(), row.detail.as_deref().unwrap_or_default()];
        let detail: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let detail = detail.join(": ");
        let row = row.detail(&detail);
        match rule {
            Some(rule) => row.rule(job, rule),
            None => row,
        }
    }

    /// An output that was made could not be handed over.
    pub fn output_lost(attempt: Attempt, failure: &Failure) -> Self {
        Self::of(kind_of(failure), attempt).failed(failure)
    }

    fn failed(self, failure: &Failure) -> Self {
        let effect = match failure.effect {
            Effect::Applied => "applied",
            Effect::NotApplied => "not_applied",
            Effect::Unknown => "unknown",
        };
        Self { effect: Some(effect), ..self }.code(failure.code).detail(&failure.message)
    }

    /// With a local rule of the job's resource, counted from 1.
    pub fn rule(self, job: &Job, rule: usize) -> Self {
        Self { rule: Some(format!("{}#{rule}", job.envelope.resource)), ..self }
    }

    /// With a code.
    pub fn code(self, code: Code) -> Self {
        Self { code: Some(code.as_str().to_owned()), ..self }
    }

    /// With a code that the hub chose.
    pub fn hub_code(self, code: &str) -> Self {
        Self { code: Some(code.chars().take(MAX_CODE).collect()), ..self }
    }

    /// With a short sentence, cut to its longest.
    pub fn detail(self, text: &str) -> Self {
        let text: String = text.chars().take(MAX_DETAIL).collect();
        Self { detail: Some(text).filter(|text| !text.is_empty()), ..self }
    }
}

/// The kind of row that a failure makes.
fn kind_of(failure: &Failure) -> Kind {
    match (failure.verdict, failure.effect) {
        (Verdict::Denied, _) => Kind::Denied,
        (Verdict::Retry, _) => Kind::Retry,
        (_, Effect::Unknown) => Kind::Unknown,
        (Verdict::Cancelled, _) => Kind::Cancelled,
        (Verdict::Permanent, _) => Kind::Failed,
    }
}

/// Where an operation acts, by its parameters, as `path "a/b.csv"`. Values are quoted, so that they cannot pass for
/// something else.
fn places(params: &serde_json::Value) -> String {
    let place = |key: &&str| {
        let value = params.get(*key)?.as_str()?;
        let value: String = value.chars().take(MAX_VALUE).collect();
        Some(format!("{key} {value:?}"))
    };
    PLACES.iter().filter_map(place).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_detail_tells_where_and_nothing_else_and_is_bounded() {
        let params =
            json!({"path": "2026/a.csv", "headers": {"authorization": "s3cret"}, "query": {"k": "v"}});
        assert_eq!(places(&params), r#"path "2026/a.csv""#);
        assert_eq!(places(&json!({"from": "a", "to": "b\nc"})), r#"from "a" to "b\nc""#);
        assert_eq!(places(&json!({"path": {"x": 1}})), "");
        let long = Entry::new(Kind::Failed).detail(&"é".repeat(10_000)).detail.unwrap();
        assert_eq!(long.chars().count(), MAX_DETAIL);
    }

    #[test]
    fn failures_have_the_kind_that_their_two_axes_say() {
        let kind = |verdict, effect| kind_of(&Failure::new(verdict, effect, Code::Internal, "x"));
        for (verdict, effect, expected) in [
            (Verdict::Denied, Effect::NotApplied, Kind::Denied),
            (Verdict::Retry, Effect::Unknown, Kind::Retry),
            (Verdict::Permanent, Effect::Unknown, Kind::Unknown),
            (Verdict::Cancelled, Effect::Unknown, Kind::Unknown),
            (Verdict::Cancelled, Effect::NotApplied, Kind::Cancelled),
            (Verdict::Permanent, Effect::NotApplied, Kind::Failed),
        ] {
            assert_eq!(kind(verdict, effect), expected, "{verdict:?} {effect:?}");
        }
    }
}
