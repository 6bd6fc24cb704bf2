//! What the hub stores and shows: jobs, attempts, tenants, sites, agents, keys, tokens, blobs.

use jiff::Timestamp;
use passerelle_protocol::{AgentId, BlobId, CommitMode, Intent, JobId, Name, Repeat, Sha256};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::str::FromStr;

mod job;

pub use job::*;

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
    /// Its scopes: `jobs:read`, `jobs:write`, `sites:read`, `agents:read`, `agents:write`, `blobs:write`, `events:read`.
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
    /// Its public key, base64url.
    pub public_key: String,
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
    /// Whether it is paused locally; null until agents tell.
    #[schema(value_type = Option<Object>)]
    pub paused: Option<Value>,
    /// `closed`, `open`, `half_open`.
    pub breaker: String,
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
}
