//! What a dialect gives: how one product's interface reads and writes records. All that is the same for every product
//! (mapping, keys, repetition, races, cursors, policy) is done once, above it.
//!
//! - Values come in their type's canonical form ([`super::vocabulary::FieldType`]) and go out through
//!   [`super::vocabulary::FieldType::read`].
//! - A dialect makes its requests through [`super::exchange::Exchange`] alone.
//! - It repeats nothing by itself, except where a session or token has to be renewed, and never a write whose fate is
//!   unknown: that is [`super::error::Problem::Ambiguous`].
//! - It puts nothing of a target's body into an error but field names and what [`super::error::clean`] lets pass.

use super::{
    error::{CrmError, Problem},
    exchange::Talk,
    settings::CallSpec,
    vocabulary::{Entity, Field, FieldType, Given, Record},
};
use crate::ChangeOp;
use jiff::Timestamp;
use serde_json::{Map, Value};
use std::{future::Future, pin::Pin, time::Duration};

/// A future of a dialect: `Box::pin(async move { … })`.
pub(crate) type Boxed<'a, T> = Pin<Box<dyn Future<Output = Result<T, CrmError>> + Send + 'a>>;

/// What a target can do, through this dialect. It may depend on the settings, not on the target's mood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// [`Dialect::upsert_native`] is there and atomic: two at once of one new key make one record.
    pub(crate) native_upsert: bool,
    /// Records have versions, and `update` and `delete` with `if_version` refuse a stale one atomically.
    pub(crate) versions: bool,
    /// The target itself refuses a second record of a key (`create` fails with a conflict then).
    pub(crate) unique_keys: bool,
    /// How it tells what changed.
    pub(crate) feed: Feed,
    /// The most records of one page.
    pub(crate) max_page: usize,
}

/// How a target tells what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feed {
    /// Not at all.
    None,
    /// By the time of the last change: [`Dialect::changed`]. Deletions leave no trace.
    Time {
        /// The granularity of the times that records tell (1 s where the wire cuts off what the database knows).
        granularity: Duration,
        /// Whether [`Span::after`] is honoured: order by (modified, id), strictly after that pair. Only where the
        /// order within one told time is by id (not where the wire cuts times off).
        keyset: bool,
        /// Records of one told time come in the same order each time, whatever the page: where not, the time is read
        /// again from its beginning.
        ties_ordered: bool,
    },
    /// By tokens of its own: [`Dialect::delta`].
    Token {
        /// Whether every deletion shows.
        complete_deletes: bool,
    },
}

/// A page of a search.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page<'a> {
    /// At most so many records; never more than [`Abilities::max_page`].
    pub(crate) limit: usize,
    /// What [`Listed::next`] of the page before said; `None` for the first.
    pub(crate) cursor: Option<&'a str>,
}

/// Records found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listed {
    /// At most as many as the limit.
    pub(crate) records: Vec<Record>,
    /// Where the next page begins, in the dialect's own words (at most 1 KiB, no host); `None` after the last one.
    pub(crate) next: Option<String>,
}

/// A record was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// The target's id.
    pub(crate) id: String,
    /// Its version now, where the answer tells.
    pub(crate) version: Option<String>,
}

/// What an upsert did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// Made the record.
    Created,
    /// Changed it.
    Updated,
    /// Found it as wanted.
    Unchanged,
}

/// Which records, from which time on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span<'a> {
    /// Those that changed at this time or later, by the target's clock; `None`: all. A target of coarser times is asked
    /// for a time that is certainly not later.
    pub(crate) since: Option<Timestamp>,
    /// With [`Feed::Time`]'s `keyset`: strictly after this pair of time and id. Else always `None`.
    pub(crate) after: Option<(Timestamp, &'a str)>,
    /// So many of the records that fit are left out first.
    pub(crate) offset: usize,
    /// A [`Changed::next`] of this very reading: its page follows, and `offset` does not count.
    pub(crate) next: Option<&'a str>,
    /// At most so many records.
    pub(crate) limit: usize,
}

/// A page of changed records.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changed {
    /// In the order of (modified, id), each with [`Record::modified`]. May be fewer than the limit without being the last.
    pub(crate) records: Vec<Record>,
    /// Nothing follows.
    pub(crate) end: bool,
    /// Where the target itself goes on right after the last record, without a host; `None` where it does not tell. What is
    /// left out first by an offset is read again by targets that cannot skip.
    pub(crate) next: Option<String>,
}

/// A change that a target's own feed told.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    /// What happened.
    pub(crate) op: ChangeOp,
    /// The record; for a deletion only its id, and its key field where the target still tells it.
    pub(crate) record: Record,
}

/// A page of a target's own feed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Delta {
    /// In the target's order.
    pub(crate) changes: Vec<Told>,
    /// Where to go on, at most 2 KiB, without a host: also after the last page.
    pub(crate) token: String,
    /// There is more at once.
    pub(crate) more: bool,
}

/// A field as the target describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Described {
    /// The target's own name, as in [`Field::target`].
    pub(crate) target: String,
    /// A new record needs it.
    pub(crate) required: bool,
    /// The target does not let it be written.
    pub(crate) read_only: bool,
    /// Its type, where the target's one has a counterpart.
    pub(crate) kind: Option<FieldType>,
    /// The most characters, where the target tells.
    pub(crate) max_length: Option<usize>,
}

/// What a target says of an entity.
#[derive(Debug, Clone, Default)]
pub(crate) struct Description {
    /// Its fields.
    pub(crate) fields: Vec<Described>,
    /// All fields are there: one that is missing does not exist at the target.
    pub(crate) complete: bool,
}

/// One product's interface. `talk` says how long each wait may take and is told of progress.
pub(crate) trait Dialect: Send + Sync + 'static {
    /// What the target can do.
    fn abilities(&self) -> Abilities;

    /// Logs in, or reads something harmless, to see that target and credentials are as they should be.
    fn probe<'a>(&'a self, talk: &'a Talk) -> Boxed<'a, ()>;

    /// One record by its id; [`Problem::NotFound`] if there is none.
    fn get<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        id: &'a str,
        wanted: &'a [&'a Field],
    ) -> Boxed<'a, Record>;

    /// The records whose fields equal all of `filter`, archived ones too, in a stable order (by id). For a key it is
    /// called with one [`Given`] and a limit of 2. An empty page is no error.
    fn find<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        wanted: &'a [&'a Field],
        filter: &'a [Given<'a>],
        page: Page<'a>,
    ) -> Boxed<'a, Listed>;

    /// Makes a record of these fields, its key among them. A target that knows of another one of the same key:
    /// [`super::error::Clash::Duplicate`].
    fn create<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        fields: &'a [Given<'a>],
    ) -> Boxed<'a, Written>;

    /// Sets these fields of a record and leaves the others. A stale `if_version`: [`super::error::Clash::Version`].
    /// `if_version` is only given where [`Abilities::versions`] says so.
    fn update<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        id: &'a str,
        fields: &'a [Given<'a>],
        if_version: Option<&'a str>,
    ) -> Boxed<'a, Written>;

    /// Creates or updates by key in one step; `fields` do not hold the key. Only where [`Abilities::native_upsert`]
    /// says so.
    fn upsert_native<'a>(
        &'a self,
        _talk: &'a Talk,
        _entity: &'a Entity,
        _key: Given<'a>,
        _fields: &'a [Given<'a>],
    ) -> Boxed<'a, (Written, Done)> {
        unsupported("upsert in one step")
    }

    /// Deletes a record; [`Problem::NotFound`] if there is none (any more).
    fn delete<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        id: &'a str,
        if_version: Option<&'a str>,
    ) -> Boxed<'a, ()>;

    /// What changed, by time. Only with [`Feed::Time`].
    fn changed<'a>(
        &'a self,
        _talk: &'a Talk,
        _entity: &'a Entity,
        _wanted: &'a [&'a Field],
        _span: Span<'a>,
    ) -> Boxed<'a, Changed> {
        unsupported("tell what changed")
    }

    /// What changed, by the target's own token; without one: all that is there, then a token. A token that the target no
    /// longer knows: [`Problem::Unsupported`] with a reason. Only with [`Feed::Token`].
    fn delta<'a>(
        &'a self,
        _talk: &'a Talk,
        _entity: &'a Entity,
        _wanted: &'a [&'a Field],
        _token: Option<&'a str>,
        _limit: usize,
    ) -> Boxed<'a, Delta> {
        unsupported("tell what changed")
    }

    /// When a record was made, by the target's clock; `None` where the target does not tell. Only a record that is seconds
    /// old may be one that has just been made.
    fn made<'a>(
        &'a self,
        _talk: &'a Talk,
        _entity: &'a Entity,
        _id: &'a str,
    ) -> Boxed<'a, Option<Timestamp>> {
        Box::pin(async { Ok(None) })
    }

    /// Makes a call that the operator declared; `args` are checked.
    fn call<'a>(
        &'a self,
        _talk: &'a Talk,
        _call: &'a CallSpec,
        _args: &'a Map<String, Value>,
    ) -> Boxed<'a, Value> {
        unsupported("make calls")
    }

    /// What the target says of an entity: for dry runs, and so that a misspelt field is found before anything is
    /// written. `None` where it does not tell.
    fn describe<'a>(&'a self, _talk: &'a Talk, _entity: &'a Entity) -> Boxed<'a, Option<Description>> {
        Box::pin(async { Ok(None) })
    }
}

fn unsupported<'a, T>(what: &'static str) -> Boxed<'a, T> {
    Box::pin(async move { Err(CrmError::new(Problem::Unsupported).reason(&format!("it does not {what}"))) })
}
