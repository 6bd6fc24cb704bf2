//! The control messages: JSON objects with a `type`, one per WebSocket text frame.
//!
//! Unknown fields are ignored, so messages grow by addition. A message of unknown `type` is answered with
//! [`Unsupported`] by the session and otherwise ignored.

use crate::{
    AgentId, CallsAnnouncement, Code, JobId, KeyId, ListenerAnnouncement, Name, SessionId, Sha256,
    TriggerAnnouncement, code::lenient, outcome::Outcome,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The protocol versions one side speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The lowest.
    pub min: u16,
    /// The highest.
    pub max: u16,
}

impl VersionRange {
    /// The highest version that both speak.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u16> {
        let highest = self.max.min(other.max);
        (highest >= self.min.max(other.min)).then_some(highest)
    }
}

/// How an operation may be repeated after an attempt whose effect is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repeat {
    /// Doing it twice has the effect of doing it once.
    Safe,
    /// The target tells repetitions by the idempotency key.
    WithKey,
    /// Never blindly.
    Never,
}

/// One operation of a connector, as announced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationAnnouncement {
    /// Its name.
    pub name: Name,
    /// JSON Schema (2020-12) of its parameters.
    pub params_schema: Value,
    /// How it repeats.
    pub repeat: Repeat,
}

/// A kind of connector, as announced: said once, however many resources use it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConnectorAnnouncement {
    /// What it can do.
    pub operations: Vec<OperationAnnouncement>,
}

/// One resource, as announced. Never a host, path or secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceAnnouncement {
    /// Its name.
    pub name: Name,
    /// Its kind of connector: a key of [`Hello::connectors`].
    pub connector: Name,
    /// The operations that at least one local rule allows.
    pub operations: Vec<Name>,
    /// How many of its jobs the agent takes at once.
    pub max_concurrent: u32,
    /// How many attempts may start per minute; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_minute: Option<u32>,
    /// Set while the agent's operator has paused it: nothing of it is to be offered to this agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Pause>,
}

/// Why a resource takes no jobs at an agent: its operator said so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// When it ends by itself; absent: when the operator resumes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Why, in the operator's words, at most [`crate::limits::MAX_TEXT`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who paused it, at most [`crate::limits::MAX_TEXT`] bytes.
    pub by: String,
}

/// How far the agent is with an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldState {
    /// Accepted, the connector has not started.
    Accepted,
    /// The connector has started.
    Running,
    /// Finished; its report follows.
    Finished,
}

/// An attempt that the agent holds when it connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldJob {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// The resource.
    pub resource: Name,
    /// How far it is.
    pub state: HeldState,
}

/// Agent to hub, first frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The versions the agent speaks.
    pub versions: VersionRange,
    /// The agent; must be the one of the token.
    pub agent: AgentId,
    /// Its name, as its operator wrote it.
    pub name: Name,
    /// Its software version.
    pub agent_version: String,
    /// Random per process start: tells a reconnect from a second process with the same identity.
    pub instance: String,
    /// How many jobs the agent holds at once, at most.
    pub max_jobs: u32,
    /// The kinds of connector its resources use.
    pub connectors: BTreeMap<Name, ConnectorAnnouncement>,
    /// Its resources.
    pub resources: Vec<ResourceAnnouncement>,
    /// The attempts it holds.
    pub held: Vec<HeldJob>,
    /// The hub's signing keys that it trusts, so that the hub sends what follows them; empty: not told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hub_keys: Vec<KeyId>,
    /// The triggers of its resources; it runs those that [`crate::Triggers`] lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub triggers: Vec<TriggerAnnouncement>,
    /// Whether it takes calls, and how many; absent: it takes none, or does not know them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<CallsAnnouncement>,
    /// Its listeners: no resource, and no lease.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<ListenerAnnouncement>,
}

/// What the agent is to do with a held attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldAction {
    /// Go on.
    Keep,
    /// The hub does not know it, or gave it up: stop before the effect if still possible, and report.
    Stop,
}

/// The hub's word on one held attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// What to do with it.
    pub action: HeldAction,
    /// The hub has stored a grant of its effect: whatever it prepared may be evidence for another agent, and stays.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub granted: bool,
}

/// Hub to agent: the session is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both speak from here on.
    pub version: u16,
    /// This connection.
    pub session: SessionId,
    /// Counts the agent's connections; older ones are fenced.
    pub epoch: u64,
    /// The agent's tenant.
    pub tenant: Name,
    /// The agent's site.
    pub site: Name,
    /// The hub's clock.
    pub server_time: Timestamp,
    /// One entry per held attempt of `Hello`.
    pub held: Vec<Held>,
}

/// Hub to agent: no session; the hub closes the connection after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// Why: `version`, `revoked`, `tier_required`, `application_incompatible`, `bad_hello`, `fenced`, `hub_key`, `busy`.
    pub code: String,
    /// Why and what to do, in a sentence.
    pub message: String,
    /// Whether coming back is pointless until an operator acts.
    pub permanent: bool,
    /// When to come back, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
    /// The versions the hub speaks.
    pub versions: VersionRange,
    /// The hub's clock.
    pub server_time: Timestamp,
}

/// Hub to agent: the signing keys that follow those which the agent trusts, oldest first. Sent before the first offer that
/// is signed with the newest of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubKeys {
    /// [`crate::HubKey`] as compact JWS, each signed by the key before.
    pub statements: Vec<String>,
}

/// Where the agent finds an offered job's payload. Size and digest are in the envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub enum PayloadSource {
    /// Here, in base64; up to 256 KiB decoded.
    Inline {
        /// The content in base64 (RFC 4648 §4, padded).
        data: String,
    },
    /// At the hub, `GET` [`crate::http::payload_path`].
    Hub,
}

/// Hub to agent: one attempt of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The job.
    pub job: JobId,
    /// The attempt, counted from 1.
    pub attempt: u32,
    /// [`crate::Envelope`] as a compact JWS.
    pub envelope: String,
    /// [`crate::Ticket`] as a compact JWS.
    pub ticket: String,
    /// Where the payload is, if the job has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<PayloadSource>,
    /// W3C trace context of the client's request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Agent to hub: the attempt is in the agent's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
}

/// Agent to hub: the attempt was not taken and nothing happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decline {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// `busy`, `paused`, `breaker_open`, `signature_invalid`, `envelope_expired`, `replayed`, `deadline`, `internal`.
    #[serde(deserialize_with = "lenient")]
    pub code: Code,
    /// Why, in a public sentence.
    pub message: String,
    /// When to offer again, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// Agent to hub: the connector has started, or has come further.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// When the connector started.
    pub started_at: Timestamp,
    /// Bytes moved so far.
    pub bytes_done: u64,
    /// Bytes to move, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
}

/// What a final effect will be, said before it happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The part beside the target, relative to the resource's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// The final path, relative to the resource's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Size of the content in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Digest of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// What another agent of the site needs to tell later whether the effect happened; the connector's own, opaque to the
    /// hub, at most [`crate::limits::MAX_INTENT_STATE`] bytes as JSON. Never a host, a path outside the root, a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Value>,
}

/// Agent to hub: may the attempt have its final effect? Sent where the ticket says `commit: "ask"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// What the effect will be.
    pub intent: Intent,
}

/// Hub to agent: the attempt may have its final effect. Stored at the hub before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitGranted {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
}

/// Agent to hub: how the attempt ended. Sent until acknowledged, from the agent's journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// When the connector started; absent if it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// Hub to agent: the report is stored; the agent may forget the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAck {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
}

/// Hub to agent: stop the attempt if its effect has not happened; a report follows in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
}

/// Agent to hub: offer nothing more; running attempts are being finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// How long the agent will still be there, in seconds.
    pub grace_s: u32,
}

/// Either way: a message of this type is not known here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsupported {
    /// The `type` that was not understood, cut to 64 characters.
    pub of: String,
}
