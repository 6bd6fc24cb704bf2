//! A run: where it stands, what it was told, what flows through it.

mod state;

pub use state::RunState;

use super::{
    definition::Definition,
    ids::{DefinitionId, FlowId, RunId},
};
use jiff::Timestamp;
use passerelle_protocol::{BlobId, JobId, Name, Sha256};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

/// How many messages a run keeps.
pub const MAX_MESSAGES: usize = 1000;
/// The longest message, in characters.
pub const MAX_MESSAGE: usize = 2000;
/// How many flows a run may have.
pub const MAX_FLOWS: usize = 10_000;
/// How many watermarks a definition may have.
pub const MAX_WATERMARKS: usize = 100;
/// The most that the result of a step may have, as JSON, to be kept for the steps behind it.
pub const MAX_RESULT: usize = 256 * 1024;

/// A run as the engine and its steps see it.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its guid, the same over its restarts.
    pub guid: RunId,
    /// Its row: grows with the time at which runs began.
    pub seq: i64,
    /// Its tenant.
    pub tenant: Name,
    /// The definition in the version that it began with.
    pub definition: Arc<Definition>,
    /// That version.
    pub version: u32,
    /// Where it stands.
    pub state: RunState,
    /// How many units are finished.
    pub position: usize,
    /// How often it was restarted.
    pub restarts: u32,
    /// When it began.
    pub created_at: Timestamp,
    /// What it began from.
    pub occurrence: OccurrenceView,
    /// All its flows so far, oldest first.
    pub flows: Vec<Flow>,
    /// What earlier steps told, by the names of the steps.
    pub results: Map<String, Value>,
    /// The definition's watermarks, those that this run has set already included.
    pub watermarks: BTreeMap<String, Value>,
    /// How often a hub began with the unit that comes now.
    pub tries: u32,
}

/// What a run began from.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct OccurrenceView {
    /// The kind of trigger, or `api`.
    pub kind: String,
    /// What tells it from all others of the definition.
    pub key: String,
    /// When it happened.
    #[schema(value_type = String, format = "date-time")]
    pub at: Timestamp,
    /// What is known of it.
    #[schema(value_type = Value)]
    pub data: Value,
}

/// Content in a run.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Flow {
    /// Its guid, the same when its content is replaced.
    #[schema(value_type = String, format = "uuid")]
    pub guid: FlowId,
    /// Its label, often the name of a file.
    pub label: String,
    /// `trigger`, or the step that made it.
    pub source: String,
    /// Whether it came in or was made to go out.
    pub direction: Direction,
    /// Whether a unit that read it is finished.
    pub processed: bool,
    /// Size in bytes.
    pub size: u64,
    /// Digest.
    #[schema(value_type = String)]
    pub sha256: Sha256,
    /// Media type.
    pub media_type: String,
    /// When it was made.
    #[schema(value_type = String, format = "date-time")]
    pub created_at: Timestamp,
    /// When an operator replaced its content.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub replaced_at: Option<Timestamp>,
    /// The blob of its content.
    #[serde(skip)]
    pub blob: BlobId,
}

/// Whether a flow came in or is to go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// It came with the trigger, or a job brought it.
    In,
    /// A step made it.
    Out,
}

impl Direction {
    /// The word of it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// One line of a run's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Message {
    /// Grows with each message; where a reader goes on.
    pub seq: i64,
    /// When.
    #[schema(value_type = String, format = "date-time")]
    pub at: Timestamp,
    /// `information` or `error`.
    pub kind: MessageKind,
    /// The words: public, without hosts, paths outside of resources, or secrets.
    pub text: String,
}

/// The kind of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MessageKind {
    /// Something happened as it should.
    Information,
    /// Something did not.
    Error,
}

impl MessageKind {
    /// The word of it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Information => "information",
            Self::Error => "error",
        }
    }
}

/// A run as lists show it.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct RunSummary {
    /// Its guid, the same over its restarts.
    #[schema(value_type = String, format = "uuid")]
    pub guid: RunId,
    /// Its definition.
    pub definition: DefinitionRef,
    /// Where it stands.
    pub state: RunState,
    /// The state in words.
    pub label: Labels,
    /// More words about it.
    pub detail: Option<String>,
    /// The kind of trigger that started it.
    pub trigger: String,
    /// When it began.
    #[schema(value_type = String, format = "date-time")]
    pub created_at: Timestamp,
    /// When it came to its end.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub finished_at: Option<Timestamp>,
    /// The last step or transfer that is finished.
    #[schema(value_type = Option<String>)]
    pub last_finished_step: Option<Name>,
    /// How often it was restarted.
    pub restarts: u32,
    /// Its row, for cursors.
    #[serde(skip)]
    pub seq: i64,
}

/// A state in the operators' languages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Labels {
    /// In English.
    pub en: &'static str,
    /// In French.
    pub fr: &'static str,
}

/// The definition of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct DefinitionRef {
    /// Its guid.
    #[schema(value_type = String, format = "uuid")]
    pub guid: DefinitionId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// What operators read.
    pub label: String,
    /// The version that the run began with.
    pub version: u32,
    /// The guid of the system mediation that it is.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub system: Option<Uuid>,
}

/// A run with all that belongs to it.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct RunView {
    /// What lists show.
    #[serde(flatten)]
    pub summary: RunSummary,
    /// What it began from.
    pub occurrence: OccurrenceView,
    /// Its steps and transfers.
    pub steps: Vec<UnitView>,
    /// Its flows, oldest first; at most 1000.
    pub flows: Vec<Flow>,
    /// Its newest messages, oldest first; at most 1000.
    pub messages: Vec<Message>,
    /// What it sets when it succeeds.
    #[schema(value_type = Object)]
    pub watermarks: BTreeMap<String, Value>,
}

/// A step or transfer of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct UnitView {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// The kind of step, or `transfer`.
    pub kind: String,
    /// `pending`, `running`, `finished`, `failed`.
    pub state: String,
    /// Its jobs; at most 100.
    pub jobs: Vec<UnitJob>,
}

/// A job of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct UnitJob {
    /// The job.
    #[schema(value_type = String, format = "uuid")]
    pub id: JobId,
    /// Where it stands; null: it was removed, its retention is over.
    pub state: Option<crate::model::JobState>,
    /// Why it is not `succeeded`, and what its last attempt did.
    pub error: Option<crate::model::ErrorView>,
}
