//! What the hub stores and shows: jobs, attempts, tenants, sites, agents, keys, tokens, blobs.

use crate::mediations::{DefinitionId, RunId};
use jiff::Timestamp;
use passerelle_protocol::{
    AgentId, BlobId, CommitMode, EventId, Intent, JobId, KeyId, Name, Repeat, Sha256, VerifyingKey,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::str::FromStr;

mod business;
mod event;
mod job;
mod notice;

pub use business::*;
pub use event::*;
pub use job::*;
pub use notice::*;

/// A tenant's subscription tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// The only one with hybrid mode.
    Enterprise,
    /// Without hybrid mode.
    Professional,
    /// Without hybrid mode.
    Standard,
}

impl Tier {
    /// The tier as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enterprise => "enterprise",
            Self::Professional => "professional",
            Self::Standard => "standard",
        }
    }
}

impl FromStr for Tier {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Enterprise, Self::Professional, Self::Standard]
            .into_iter()
            .find(|tier| tier.as_str() == text)
            .ok_or("a tier is enterprise, professional or standard")
    }
}

/// Who calls the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The API key's id.
    pub key: String,
    /// Its tenant.
    pub tenant: Name,
    /// Its scopes: `jobs:read`, `jobs:write`, `sites:read`, `agents:read`, `agents:write`, `blobs:write`, `events:read`,
    /// `mediations:read`, `mediations:write`.
    pub scopes: Vec<String>,
}

/// An enrolled agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRecord {
    /// Its id.
    pub id: AgentId,
    /// Its tenant.
    pub tenant: Name,
    /// Its site.
    pub site: Name,
    /// `orchestrator` or `hub`.
    pub application: String,
    /// Its name.
    pub name: Name,
    /// The keys that it ever had, oldest first.
    pub keys: Vec<AgentKeyRecord>,
    /// Its software version.
    pub version: String,
    /// When it enrolled.
    pub enrolled_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// Its current or last connection.
    pub connected_at: Option<Timestamp>,
    /// When it was last heard.
    pub last_seen_at: Option<Timestamp>,
    /// The agent that was enrolled in its place.
    pub replaced_by: Option<AgentId>,
    /// What was seen of other processes with its identity.
    pub clones: Option<CloneRecord>,
    /// Whether its tenant's tier has a hybrid mode.
    pub enterprise: bool,
}

impl AgentRecord {
    /// The keys whose tokens are taken at `now`.
    pub fn keys_at(&self, now: Timestamp) -> impl Iterator<Item = &VerifyingKey> {
        let taken = move |key: &&AgentKeyRecord| key.ends_at.is_none_or(|end| end > now);
        self.keys.iter().filter(taken).map(|key| &key.public_key)
    }
}

/// A public key of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct AgentKeyRecord {
    /// Its name: the thumbprint (RFC 7638), the `kid` of what is signed with it.
    #[schema(value_type = String)]
    pub id: KeyId,
    /// The key: 32 bytes of Ed25519 in base64url.
    #[schema(value_type = String)]
    pub public_key: VerifyingKey,
    /// When the hub learned of it.
    #[schema(value_type = String, format = "date-time")]
    pub added_at: Timestamp,
    /// When it was first used; null: not yet.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub used_at: Option<Timestamp>,
    /// Until when it is, or was, taken; null: it is taken.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub ends_at: Option<Timestamp>,
}

/// What was seen of two live processes with one agent's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct CloneRecord {
    /// When first.
    #[schema(value_type = String, format = "date-time")]
    pub first_at: Timestamp,
    /// When last.
    #[schema(value_type = String, format = "date-time")]
    pub last_at: Timestamp,
    /// How often one fenced the other.
    pub times: u64,
}

/// One of the hub's own signing keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SigningKeyRecord {
    /// Its place in the chain, from 1.
    pub seq: i64,
    /// Its name: the thumbprint (RFC 7638), the `kid` of what it signs.
    pub id: KeyId,
    /// The public key.
    pub public_key: VerifyingKey,
    /// When it was made.
    pub made_at: Timestamp,
    /// Whether it is the one that signs.
    pub signs: bool,
    /// The statement of the key before.
    pub statement: Option<String>,
}

/// An attempt to be offered: all that envelope, ticket and offer are made from.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptToOffer {
    /// The job.
    pub job: NewJob,
    /// The attempt's number.
    pub attempt: u32,
    /// Whether it must ask before its effect.
    pub commit: CommitMode,
    /// What an earlier attempt was granted and never reported.
    pub granted: Option<Intent>,
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TenantRecord {
    /// Its name.
    pub name: Name,
    /// Its tier.
    pub tier: Tier,
    /// When it was created.
    pub created_at: Timestamp,
}

/// An API key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApiKeyRecord {
    /// Its id.
    pub id: String,
    /// Its tenant.
    pub tenant: Name,
    /// Its scopes.
    pub scopes: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// An enrolment token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EnrolmentTokenRecord {
    /// Its id.
    pub id: String,
    /// Its tenant.
    pub tenant: Name,
    /// Its site.
    pub site: Name,
    /// `orchestrator` or `hub`.
    pub application: String,
    /// How many agents it may still enrol.
    pub uses_left: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// Not taken after.
    pub expires_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A site, as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct SiteSummary {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its enrolled agents that are not revoked.
    pub agents: u64,
    /// Those with a live session.
    pub agents_online: u64,
    /// Its jobs in state `queued`.
    pub jobs_queued: u64,
}

/// A resource that at least one live agent of the site announces.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ResourceView {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its kind of connector.
    #[schema(value_type = String)]
    pub connector: Name,
    /// What it can do and the local policy allows.
    pub operations: Vec<OperationView>,
    /// Its limits, summed over the agents.
    pub limits: LimitsView,
    /// Set while its operators have paused it at every connected agent that has it: its jobs are held. The pause that ends
    /// first.
    pub paused: Option<PauseView>,
    /// Each agent's own pause; the jobs go to the agents that have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pauses: Vec<AgentPause>,
    /// `closed`, `open`, `half_open`.
    pub breaker: String,
}

/// Why a resource takes no jobs: the operator of an agent said so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct PauseView {
    /// When it ends by itself; null: when the operator resumes it.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub until: Option<Timestamp>,
    /// Why, in the operator's words.
    pub reason: Option<String>,
    /// Who paused it, there where the agent runs.
    pub by: String,
}

/// The pause of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct AgentPause {
    /// The agent.
    #[schema(value_type = String, format = "uuid")]
    pub agent: AgentId,
    /// The pause.
    #[serde(flatten)]
    pub pause: PauseView,
}

/// An operation of a resource.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct OperationView {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// JSON Schema of its parameters.
    #[schema(value_type = Object)]
    pub params_schema: Value,
    /// `safe`, `with_key`, `never`.
    #[schema(value_type = String)]
    pub repeat: Repeat,
}

/// A resource's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct LimitsView {
    /// Jobs at once.
    pub max_concurrent: u32,
    /// Attempts started per minute; null: no limit.
    pub rate_per_minute: Option<u32>,
}

/// A live session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    /// When the agent connected.
    pub connected_at: Timestamp,
    /// When it was last heard.
    pub last_seen_at: Timestamp,
    /// How many attempts it holds or is offered.
    pub jobs_running: u64,
}

/// Which jobs to list; newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFilter {
    /// Of this tenant.
    pub tenant: Name,
    /// Of this site.
    pub site: Option<Name>,
    /// Of this resource.
    pub resource: Option<Name>,
    /// In this state.
    pub state: Option<JobState>,
    /// Submitted at this time or later.
    pub since: Option<Timestamp>,
    /// Submitted before this time.
    pub until: Option<Timestamp>,
    /// At most so many (1 to 500; others are cut to it).
    pub limit: usize,
    /// Where the page before ended: its [`Page::next_cursor`].
    pub cursor: Option<String>,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page starts; `None` on the last one.
    pub next_cursor: Option<String>,
}

/// A stored blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its id.
    pub id: BlobId,
    /// Size in bytes.
    pub size: u64,
    /// Digest.
    pub sha256: Sha256,
    /// Media type, if it was told.
    pub media_type: Option<String>,
}

/// Something changed, committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Grows with each change; the id of its server-sent event.
    pub seq: u64,
    /// The tenant whose thing changed.
    pub tenant: Name,
    /// What changed.
    pub kind: ChangeKind,
}

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// A job.
    Job(JobId),
    /// An agent: enrolled, connected, gone, revoked.
    Agent(AgentId),
    /// An event of a trigger was stored.
    Received(EventId),
    /// A mediation run.
    Run(RunId),
    /// A mediation definition: created, changed, deleted, late.
    Definition(DefinitionId),
    /// Something happened that is told as a notice.
    Notice(uuid::Uuid),
}
