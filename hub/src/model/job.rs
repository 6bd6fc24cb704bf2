//! A job: how it is submitted, where it stands, and how the API shows it.

use bytes::Bytes;
use jiff::Timestamp;
use passerelle_protocol::{
    AgentId, BlobId, Code, Effect, Envelope, EventId, JobId, JwsError, Name, Repeat, Sha256, Verdict,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, str::FromStr, sync::Arc};

/// The state of a job. `failed`, `cancelled`, `expired`, `unknown` are settled: only an explicit retry, an operator's
/// resolve or a late report of success changes them. `succeeded` and `denied` are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for a place at an agent.
    Queued,
    /// Offered to an agent, or accepted by it; the connector has not started.
    Offered,
    /// The connector has started.
    Running,
    /// Waits for the time of its next attempt.
    Waiting,
    /// Took effect.
    Succeeded,
    /// Failed; settled.
    Failed,
    /// The agent's local policy forbids it; final.
    Denied,
    /// Cancelled; settled.
    Cancelled,
    /// Not started by its deadline; settled.
    Expired,
    /// Nobody can tell whether it took effect; settled.
    Unknown,
}

impl JobState {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Queued,
        Self::Offered,
        Self::Running,
        Self::Waiting,
        Self::Succeeded,
        Self::Failed,
        Self::Denied,
        Self::Cancelled,
        Self::Expired,
        Self::Unknown,
    ];

    /// The state as it travels and is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Offered => "offered",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Denied => "denied",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Unknown => "unknown",
        }
    }

    /// Nothing changes it any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Denied)
    }

    /// Final, or changed only by a retry, an operator's resolve or a late report of success.
    #[must_use]
    pub fn is_settled(self) -> bool {
        match self {
            Self::Queued | Self::Offered | Self::Running | Self::Waiting => false,
            Self::Succeeded
            | Self::Failed
            | Self::Denied
            | Self::Cancelled
            | Self::Expired
            | Self::Unknown => true,
        }
    }
}

impl FromStr for JobState {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|state| state.as_str() == text).ok_or(())
    }
}

/// How a job is submitted, after validation.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// The id, made by the caller.
    pub id: JobId,
    /// The tenant.
    pub tenant: Name,
    /// The site; it exists.
    pub site: Name,
    /// The resource; need not be announced yet.
    pub resource: Name,
    /// The operation.
    pub operation: Name,
    /// Its parameters: a JSON object.
    pub params: Value,
    /// Its payload, already stored as a blob of the tenant.
    pub payload: Option<PayloadRef>,
    /// It starts by then.
    pub deadline: Timestamp,
    /// The `deadline_s` it was submitted with; `retry` counts a new deadline from it.
    pub deadline_s: u32,
    /// An attempt without progress for this many seconds ends.
    pub timeout_s: u32,
    /// How many attempts it may have.
    pub max_attempts: u32,
    /// Jobs of the same key on a resource run in order.
    pub order_key: Option<String>,
    /// `hold` or `continue`.
    pub on_failure: Option<String>,
    /// 0 to 9; 9 first.
    pub priority: u8,
    /// The client's labels.
    pub labels: BTreeMap<String, String>,
    /// The client's idempotency key and the digest of the submitted body.
    pub idempotency: Option<(String, Sha256)>,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// What its client signed; without it the hub signs at each offer.
    pub envelope: Option<ClientEnvelope>,
    /// The event that it is started from, whose payload is the job's.
    pub event: Option<EventId>,
}

impl NewJob {
    /// Whether the job may be offered to this agent, by what its client signed.
    #[must_use]
    pub fn may_go_to(&self, agent: AgentId) -> bool {
        let listed = self.envelope.as_ref().and_then(|envelope| envelope.agents.as_ref());
        listed.is_none_or(|agents| agents.contains(&agent))
    }

    /// How an operation repeats that an agent announced with `announced`: the envelope can only be stricter.
    #[must_use]
    pub fn repeat(&self, announced: Repeat) -> Repeat {
        let signed = self.envelope.as_ref().and_then(|envelope| envelope.repeat);
        signed.map_or(announced, |stricter| announced.max(stricter))
    }
}

/// An envelope that the client signed. The hub hands it on as it is, and cannot verify it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientEnvelope {
    /// The compact JWS.
    pub text: Arc<str>,
    /// Digest of the submission that brought it: the same one again is the same job.
    pub submission: Sha256,
    /// Only these agents may act.
    pub agents: Option<Vec<AgentId>>,
    /// Overrides how the operation repeats, towards stricter only.
    pub repeat: Option<Repeat>,
}

impl ClientEnvelope {
    /// What of `claims` decides whom `text` is offered to.
    #[must_use]
    pub fn new(text: &str, claims: &Envelope, submission: Sha256) -> Self {
        let (agents, repeat) = (claims.agents.clone(), claims.repeat);
        Self { text: text.into(), submission, agents, repeat }
    }

    /// Reads a stored one again.
    ///
    /// # Errors
    /// If it is none.
    pub fn read(text: &str, submission: Sha256) -> Result<Self, JwsError> {
        Envelope::read_unverified(text).map(|(_, claims)| Self::new(text, &claims, submission))
    }
}

/// A payload: a stored blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadRef {
    /// The blob.
    pub blob: BlobId,
    /// Size in bytes.
    pub size: u64,
    /// Digest.
    pub sha256: Sha256,
    /// Media type.
    pub media_type: String,
    /// The content, if it came with the job (at most [`MAX_INLINE_PAYLOAD`](passerelle_protocol::limits::MAX_INLINE_PAYLOAD)
    /// bytes): stored in the job's own transaction under the new id `blob`. `None`: `blob` is stored already.
    pub data: Option<Bytes>,
}

/// A job, as the API shows it (contract §3).
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Job {
    /// UUID v7.
    #[schema(value_type = String, format = "uuid")]
    pub id: JobId,
    /// The tenant.
    #[schema(value_type = String)]
    pub tenant: Name,
    /// The site.
    #[schema(value_type = String)]
    pub site: Name,
    /// The resource.
    #[schema(value_type = String)]
    pub resource: Name,
    /// The operation.
    #[schema(value_type = String)]
    pub operation: Name,
    /// Its parameters.
    #[schema(value_type = Object)]
    pub params: Value,
    /// Where it stands.
    pub state: JobState,
    /// When it was submitted.
    #[schema(value_type = String, format = "date-time")]
    pub created_at: Timestamp,
    /// It starts by then.
    #[schema(value_type = String, format = "date-time")]
    pub deadline: Timestamp,
    /// When it came to a final or settled state.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub finished_at: Option<Timestamp>,
    /// When a `waiting` job is tried again.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub next_attempt_at: Option<Timestamp>,
    /// 0 to 9; 9 first.
    pub priority: u8,
    /// How many attempts it may have.
    pub max_attempts: u32,
    /// Without progress for this many seconds an attempt ends.
    pub timeout_s: u32,
    /// Jobs of the same key on a resource run in order.
    pub order_key: Option<String>,
    /// `hold` or `continue`: whether its failure holds those behind it.
    pub on_failure: Option<String>,
    /// It is its line's turn: those with the same order key behind it wait until it has succeeded, was cancelled, or was
    /// resolved.
    pub holds_line: bool,
    /// What an operator wrote when resolving it.
    pub note: Option<String>,
    /// The client's labels.
    pub labels: BTreeMap<String, String>,
    /// Its attempts so far.
    pub attempts: Vec<AttemptView>,
    /// How far the current attempt is.
    pub progress: Option<ProgressView>,
    /// The operation's result; null until it succeeded.
    #[schema(value_type = Option<Object>)]
    pub result: Option<Value>,
    /// The output payload.
    pub output: Option<OutputView>,
    /// The agent's receipt, a compact JWS.
    pub receipt: Option<String>,
    /// Why it is not `succeeded`.
    pub error: Option<ErrorView>,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct AttemptView {
    /// Counted from 1.
    pub number: u32,
    /// The agent.
    #[schema(value_type = String, format = "uuid")]
    pub agent: AgentId,
    /// When the agent said that it is in its journal.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub accepted_at: Option<Timestamp>,
    /// When the connector started.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub finished_at: Option<Timestamp>,
    /// `retry`, `permanent`, `denied`, `cancelled`; null on success.
    #[schema(value_type = Option<String>)]
    pub verdict: Option<Verdict>,
    /// `applied`, `not_applied`, `unknown`.
    #[schema(value_type = Option<String>)]
    pub effect: Option<Effect>,
    /// The code of its failure.
    #[schema(value_type = Option<String>)]
    pub code: Option<Code>,
    /// The public sentence of its failure.
    pub message: Option<String>,
}

/// How far an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ProgressView {
    /// Bytes moved.
    pub bytes_done: u64,
    /// Bytes to move, if known.
    pub bytes_total: Option<u64>,
}

/// An output payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct OutputView {
    /// Size in bytes.
    pub size: u64,
    /// Digest.
    #[schema(value_type = String)]
    pub sha256: Sha256,
    /// Media type.
    pub media_type: String,
}

/// Why a job is not `succeeded`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ErrorView {
    /// The stable code.
    #[schema(value_type = String)]
    pub code: Code,
    /// One public sentence.
    pub message: String,
    /// What the last attempt did.
    #[schema(value_type = String)]
    pub effect: Effect,
}
