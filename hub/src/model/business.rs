//! Business events that applications send in, and who may sign them.

use jiff::Timestamp;
use passerelle_protocol::{Name, Sha256};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

/// A business event in the vendor's envelope.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct BusinessEvent {
    /// Its id here.
    #[schema(value_type = String, format = "uuid")]
    pub id: Uuid,
    /// Its tenant.
    #[schema(value_type = String)]
    pub tenant: Name,
    /// When the hub stored it.
    #[schema(value_type = String, format = "date-time")]
    pub received_at: Timestamp,
    /// The envelope as it came: `EventKind`, `EventCategory`, `Data`.
    #[schema(value_type = Object)]
    pub envelope: Value,
}

/// A business event on its way in.
#[derive(Debug, Clone)]
pub struct NewBusinessEvent {
    /// Its tenant.
    pub tenant: Name,
    /// The sender's own id for it, if it gave one.
    pub key: Option<String>,
    /// The digest of the body.
    pub digest: Sha256,
    /// Its kind: `EventKind`.
    pub kind: String,
    /// Its category: `EventCategory`, or nothing.
    pub category: String,
    /// The whole envelope.
    pub envelope: Value,
}

/// What became of a business event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct TakenEvent {
    /// Its id here: the same whenever it is sent again.
    #[schema(value_type = String, format = "uuid")]
    pub id: Uuid,
    /// Whether it was here before: nothing is done a second time.
    pub duplicate: bool,
}

/// Which business events to list; newest first.
#[derive(Debug, Clone)]
pub struct BusinessFilter {
    /// Of this tenant.
    pub tenant: Name,
    /// Of this kind.
    pub kind: Option<String>,
    /// At most so many.
    pub limit: usize,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

/// Who may send business events with signatures, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SenderRecord {
    /// Its id.
    pub id: String,
    /// Its tenant.
    pub tenant: Name,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}
