//! The journal's side of events that are no files: what was posted to a listener, and the changes of a feed.
//!
//! # Invariants
//! - A post is committed with its content, its key and its row of the audit before it is answered. A key is remembered for
//!   [`KEPT`], the newest [`MOST`] of all listeners, also when the hub has long had its event; fewer in a journal without
//!   much room. The hub remembers the ids of events for longer, so that a forgotten key makes no second event.
//! - The changes of a page are committed in one transaction with the cursor after it: no crash leaves a cursor whose page
//!   is not journalled, and a page that is read twice is journalled once.

use super::{
    Journal, JournalError,
    events::{
        Key, Taken,
        row::{insert, name},
    },
};
use crate::audit::{Entry, chain};
use jiff::Timestamp;
use passerelle_protocol::{CHANGE, EventId, NOTIFICATION, Name, Sha256};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::time::Duration;

/// How long the key of a post is remembered.
pub const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many keys are remembered at most; the oldest go first.
pub const MOST: i64 = 1_000_000;
/// How many are forgotten in one write.
const AT_ONCE: u32 = 5_000;

pub(super) const TABLES: &str = "
ALTER TABLE events ADD COLUMN data TEXT;        -- what is told, as JSON; NULL: the file
ALTER TABLE events ADD COLUMN media_type TEXT;  -- of the content; NULL with `data`: there is none
CREATE TABLE posted (
  seq      INTEGER PRIMARY KEY AUTOINCREMENT,   -- the order of posting
  listener TEXT NOT NULL,
  key      TEXT NOT NULL,
  sha256   BLOB NOT NULL,
  at       INTEGER NOT NULL,                    -- Unix milliseconds
  UNIQUE (listener, key)
);
CREATE TABLE cursors (
  resource TEXT NOT NULL,
  trigger  TEXT NOT NULL,
  lease    INTEGER NOT NULL,                    -- under which it was read
  cursor   TEXT NOT NULL,
  PRIMARY KEY (resource, trigger)
) WITHOUT ROWID;
";

/// What came of a post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// It is journalled.
    New,
    /// The same was posted under this key before.
    Known,
    /// Something else was posted under this key before.
    Other,
}

/// How far a feed was read here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// The lease under which it was read.
    pub lease: u64,
    /// Where to go on.
    pub cursor: String,
}

impl Journal {
    /// What is known of a key before its post is read further.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn posted(
        &self,
        id: EventId,
        listener: Name,
        key: String,
    ) -> Result<Option<Sha256>, JournalError> {
        let id = *id.uuid().as_bytes();
        self.writer.read(move |c| known(c, &id, listener.as_str(), &key)).await
    }

    /// Writes what was posted under a key to a listener, with a row of the audit.
    ///
    /// # Errors
    /// If it could not be written; then it was not posted.
    pub async fn post(&self, taken: Taken, key: String, entry: Entry) -> Result<Posted, JournalError> {
        self.grow(key.len() + taken.row_bytes());
        let row = taken.into_row()?;
        let cost = self.writer.cost();
        let write = move |c: &Connection| {
            match known(c, &row.id, &row.resource, &key)? {
                Some(sha256) if *sha256.bytes() == row.sha256 => return Ok(Posted::Known),
                Some(_) => return Ok(Posted::Other),
                None => {}
            }
            insert(c, &row)?;
            c.prepare_cached("INSERT INTO posted (listener, key, sha256, at) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![row.resource, key, row.sha256, row.at])?;
            chain::append(c, &entry, &cost)?;
            Ok(Posted::New)
        };
        self.writer.write(write).await
    }

    /// The listeners of which something waits for the hub.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn waiting_listeners(&self) -> Result<Vec<Name>, JournalError> {
        let names = self.writer.read(|c| {
            c.prepare_cached("SELECT DISTINCT resource FROM events WHERE state = 0 AND kind = ?1")?
                .query_map([NOTIFICATION], |row| row.get::<_, String>(0))?
                .collect::<Result<Vec<_>, _>>()
        });
        names.await?.iter().map(|text| name(text)).collect()
    }

    /// Forgets keys that are old, or too many, and what the hub refused for good so long ago; with `tight` also the oldest
    /// of the other keys, a few. True if there may be more.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub async fn forget_posted(&self, now: Timestamp, tight: bool) -> Result<bool, JournalError> {
        let before = now.as_millisecond() - i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX);
        let write = move |c: &Connection| {
            let keys = c
                .prepare_cached(
                    "DELETE FROM posted WHERE seq IN (SELECT seq FROM posted
                       WHERE ?4 OR at < ?1 OR seq <= (SELECT coalesce(max(seq), 0) FROM posted) - ?2 ORDER BY seq LIMIT ?3)",
                )?
                .execute(params![before, MOST, AT_ONCE, tight])?;
            let dead = c
                .prepare_cached(
                    "DELETE FROM events WHERE seq IN (SELECT seq FROM events
                       WHERE state = 2 AND kind IN (?2, ?3) AND occurred_at < ?1 LIMIT ?4)",
                )?
                .execute(params![before, NOTIFICATION, CHANGE, AT_ONCE])?;
            Ok(keys == AT_ONCE as usize || dead == AT_ONCE as usize)
        };
        self.writer.write(write).await
    }

    /// Writes the changes of a page, each with a row of the audit, and the cursor after it: those that are new, by their
    /// ids and sizes.
    ///
    /// # Errors
    /// If it could not be written; then the page is to be read again.
    pub async fn changes(
        &self,
        key: Key,
        page: Vec<(Taken, Entry)>,
        read: Read,
    ) -> Result<Vec<EventId>, JournalError> {
        self.grow(read.cursor.len() + page.iter().map(|(taken, _)| taken.row_bytes()).sum::<usize>());
        let mut rows = Vec::with_capacity(page.len());
        for (taken, entry) in page {
            rows.push((taken.id, taken.into_row()?, entry));
        }
        let cost = self.writer.cost();
        let write = move |c: &Connection| {
            let mut new = Vec::new();
            for (id, row, entry) in &rows {
                if insert(c, row)? {
                    chain::append(c, entry, &cost)?;
                    new.push(*id);
                }
            }
            c.prepare_cached(
                "INSERT OR REPLACE INTO cursors (resource, trigger, lease, cursor) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                key.resource.as_str(),
                key.trigger.as_str(),
                i64::try_from(read.lease).unwrap_or(i64::MAX),
                read.cursor
            ])?;
            Ok(new)
        };
        self.writer.write(write).await
    }

    /// How far a trigger's feed was read here.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn cursor(&self, key: Key) -> Result<Option<Read>, JournalError> {
        self.writer
            .read(move |c| {
                c.prepare_cached("SELECT lease, cursor FROM cursors WHERE resource = ?1 AND trigger = ?2")?
                    .query_row(params![key.resource.as_str(), key.trigger.as_str()], |row| {
                        let lease: i64 = row.get(0)?;
                        Ok(Read { lease: u64::try_from(lease).unwrap_or(0), cursor: row.get(1)? })
                    })
                    .optional()
            })
            .await
    }
}

/// The digest of what was posted under a key; also while its event waits but its key was forgotten.
fn known(c: &Connection, id: &[u8; 16], listener: &str, key: &str) -> rusqlite::Result<Option<Sha256>> {
    let digest = |row: &rusqlite::Row<'_>| row.get::<_, [u8; 32]>(0).map(Sha256::from);
    let posted = c
        .prepare_cached("SELECT sha256 FROM posted WHERE listener = ?1 AND key = ?2")?
        .query_row(params![listener, key], digest)
        .optional()?;
    if posted.is_some() {
        return Ok(posted);
    }
    c.prepare_cached("SELECT sha256 FROM events WHERE id = ?1")?.query_row([id], digest).optional()
}
