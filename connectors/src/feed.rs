//! What a trigger on changes needs of a private system, beside the operations of jobs: reading its change feed page by page.

use crate::{Failure, Patience};
use serde_json::{Map, Value};
use std::{future::Future, pin::Pin};

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What happened to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeOp {
    /// It was created or changed.
    Upsert,
    /// It was deleted.
    Delete,
}

impl ChangeOp {
    /// As the contract writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Upsert => "upsert",
            Self::Delete => "delete",
        }
    }
}

/// One change of one record.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What happened.
    pub op: ChangeOp,
    /// The target's id of the record.
    pub id: String,
    /// Its external key `{field: value}`, where it has one.
    pub key: Option<Map<String, Value>>,
    /// Its version, where the target has versions.
    pub version: Option<String>,
    /// Its fields, by the names of our vocabulary; none for a deletion.
    pub fields: Option<Map<String, Value>>,
    /// Tells this change from an earlier one that left the record with the same content (version, or time of change):
    /// the same each time that this very change is read.
    pub stamp: String,
}

/// A page of changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Changes {
    /// In the order in which they are to be told.
    pub items: Vec<Change>,
    /// Where to go on, at most 4 KiB: also after the last page, for what changes later.
    pub next_cursor: String,
    /// Whether there is more at once.
    pub more: bool,
    /// Whether every deletion shows in the feed.
    pub complete_deletes: bool,
}

/// A change feed.
pub trait Feeds: Send + Sync {
    /// One page.
    ///
    /// # Errors
    /// `invalid_params` (permanent) for an unknown entity or a cursor that is not this feed's; else what the operation
    /// `changes` would meet.
    fn changes<'a>(
        &'a self,
        entity: &'a str,
        start: Start<'a>,
        limit: usize,
        patience: &'a Patience,
    ) -> Boxed<'a, Result<Changes, Failure>>;
}

/// Where a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start<'a> {
    /// With the first change after now.
    Now,
    /// With all that is there.
    Beginning,
    /// With what changed at this time or later.
    Since(jiff::Timestamp),
    /// Where an earlier page ended.
    Cursor(&'a str),
}
