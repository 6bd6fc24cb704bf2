//! Events that agents told of, as the API shows them.

use super::OutputView;
use jiff::Timestamp;
use passerelle_protocol::{AgentId, EventId, JobId, Name};
use serde::Serialize;
use serde_json::Value;

/// Something that happened at a private resource.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ReceivedEvent {
    /// Its id: a hash of what happened.
    #[schema(value_type = String, format = "uuid")]
    pub id: EventId,
    /// Its tenant.
    #[schema(value_type = String)]
    pub tenant: Name,
    /// The site.
    #[schema(value_type = String)]
    pub site: Name,
    /// The resource.
    #[schema(value_type = String)]
    pub resource: Name,
    /// The trigger that saw it.
    #[schema(value_type = String)]
    pub trigger: Name,
    /// `pickup`, `watch`, `change`, or `notification` for what was posted to a listener.
    #[schema(value_type = String)]
    pub kind: Name,
    /// The agent that told of it.
    #[schema(value_type = String, format = "uuid")]
    pub agent: AgentId,
    /// When the trigger saw it.
    #[schema(value_type = String, format = "date-time")]
    pub occurred_at: Timestamp,
    /// When the hub stored it.
    #[schema(value_type = String, format = "date-time")]
    pub received_at: Timestamp,
    /// What happened; for `pickup` and `watch` `path`, `size`, `sha256` and, where it is known, `modified_at`.
    #[schema(value_type = Value)]
    pub data: Value,
    /// The content that belongs to it; null: none.
    pub payload: Option<OutputView>,
    /// The jobs that were started from it, oldest first, at most 100.
    #[schema(value_type = Vec<String>)]
    pub jobs: Vec<JobId>,
}

/// Which events to list; newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFilter {
    /// Of this tenant.
    pub tenant: Name,
    /// Of this site.
    pub site: Option<Name>,
    /// Of this resource.
    pub resource: Option<Name>,
    /// Of triggers of this name.
    pub trigger: Option<Name>,
    /// Of this kind.
    pub kind: Option<Name>,
    /// Stored at this time or later.
    pub since: Option<Timestamp>,
    /// Stored before this time.
    pub until: Option<Timestamp>,
    /// At most so many (1 to 500; others are cut to it).
    pub limit: usize,
    /// Where the page before ended: its [`super::Page::next_cursor`].
    pub cursor: Option<String>,
}
