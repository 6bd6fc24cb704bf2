//! What the journal's side of triggers hands in and out: taken files and told changes, and what is to become of them.

use bytes::Bytes;
use jiff::Timestamp;
use passerelle_connectors::Seen;
use passerelle_protocol::{EventId, FileEvent, Name, Sha256};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Which trigger.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The resource.
    pub resource: Name,
    /// The trigger.
    pub trigger: Name,
}

/// What follows once the hub has the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Follow {
    /// It stays, and is remembered.
    Keep,
    /// It is deleted.
    Delete,
    /// It is moved to this path.
    MoveTo(String),
}

/// Where the content of a taken file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// In its row.
    Row(Bytes),
    /// In the spool.
    Spool(Uuid),
}

/// A file that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The event's id.
    pub id: EventId,
    /// By which trigger.
    pub key: Key,
    /// Of which kind.
    pub kind: Name,
    /// Under which lease.
    pub lease: u64,
    /// When.
    pub occurred_at: Timestamp,
    /// The file.
    pub seen: Seen,
    /// Its content's digest.
    pub sha256: Sha256,
    /// Its content.
    pub content: Content,
    /// The file that said it was whole.
    pub marker: Option<Seen>,
    /// What follows.
    pub follow: Follow,
    /// What is told of it, if it is no file. Its name then stands in the place of a path.
    pub told: Option<Told>,
}

/// What is told of an event that is no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// JSON.
    pub data: String,
    /// What the content is; `None`: there is no content.
    pub media_type: Option<String>,
}

/// What is told of a file.
pub fn file_event(seen: &Seen, sha256: Sha256) -> FileEvent {
    FileEvent { path: seen.path.clone(), size: seen.size, sha256, modified_at: seen.modified }
}

/// A taken file that waits for the hub.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Its place in the order.
    pub seq: i64,
    /// What it is.
    pub taken: Taken,
    /// Whether the hub has its content already.
    pub uploaded: bool,
}

/// What is to follow for a file that the hub has.
#[derive(Debug, Clone)]
pub struct Unsettled {
    /// The event.
    pub id: EventId,
    /// By which trigger it was taken.
    pub key: Key,
    /// The file.
    pub seen: Seen,
    /// Its content's digest.
    pub sha256: Sha256,
    /// The file that said it was whole.
    pub marker: Option<Seen>,
    /// What follows.
    pub follow: Follow,
}

/// What came of an answer of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// By which trigger it was taken.
    pub key: Key,
    /// Bytes of the content.
    pub size: u64,
    /// The content's file in the spool, of no use any more.
    pub spool: Option<Uuid>,
    /// Whether something follows.
    pub follows: bool,
}

/// A waiting event.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its place in the order.
    pub seq: i64,
    /// Its trigger.
    pub key: Key,
    /// The trigger's kind.
    pub kind: Name,
    /// The file.
    pub path: String,
}

/// How much a trigger has under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting for the hub.
    pub waiting: u64,
    /// To be deleted or moved.
    pub unsettled: u64,
    /// Refused by the hub for good.
    pub dead: u64,
    /// Bytes of the waiting ones.
    pub bytes: u64,
}
