//! The journal's side of triggers and listeners: what was taken and waits for the hub, what is to follow once the hub has it, and what
//! is remembered of files that stay where they are.
//!
//! # Invariants
//! - A row of `events` is committed with the content (small ones in the row, larger ones in a synced file of the spool)
//!   and its row of the audit, before anything is sent.
//! - A row goes `waiting → acknowledged (what follows is to be done) → gone`; the acknowledged row is the intent of the
//!   delete or move, and stays until that is done. A file that stays is remembered in the same transaction in which its
//!   row goes. A refused one is kept as `dead`, without its content, until its file is gone.
//! - One file is one row, whichever trigger of the resource saw it.
//!
//! | crash | found at the next start | what happens |
//! |---|---|---|
//! | while the file is read | an orphan in the spool | it is swept; the file is taken anew |
//! | after the row is committed | `waiting` | it is sent |
//! | after the hub stored it, before its answer came | `waiting` | it is sent again; the hub knows the id |
//! | after the answer, before it is committed | `waiting` | as above |
//! | before, in or after the delete or move | `acknowledged` | it is finished, or found done |

mod remembered;
pub(super) mod row;
mod types;
mod under_way;

pub use types::{Answered, Content, Counts, Follow, Key, Place, Taken, Told, Unsettled, Waiting, file_event};

use super::{Journal, JournalError};
use crate::audit::{Entry, chain};
use bytes::Bytes;
use passerelle_protocol::{EventId, FileEvent};
use remembered::remember_file;
use row::{insert, taken};
use rusqlite::{Connection, OptionalExtension as _, params};

const WAITING: i64 = 0;
const ACKNOWLEDGED: i64 = 1;
const DEAD: i64 = 2;

pub(super) const TABLES: &str = "
CREATE TABLE events (
  seq         INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of taking and sending
  id          BLOB NOT NULL UNIQUE,  -- 16 bytes
  resource    TEXT NOT NULL,
  trigger     TEXT NOT NULL,
  kind        TEXT NOT NULL,
  lease       INTEGER NOT NULL,
  occurred_at INTEGER NOT NULL,      -- Unix milliseconds
  state       INTEGER NOT NULL,      -- 0 waiting, 1 acknowledged: what follows is to be done, 2 dead
  path        TEXT NOT NULL,
  seen        TEXT NOT NULL,         -- the file as it was seen, as JSON
  sha256      BLOB NOT NULL,
  payload     BLOB,                  -- a small content, while waiting
  spool       BLOB,                  -- 16 bytes: the spool file of a larger one, while waiting
  uploaded    INTEGER NOT NULL DEFAULT 0,
  marker      TEXT,                  -- the file that said it was whole, as JSON
  follow      TEXT NOT NULL,         -- what follows, as JSON
  why         TEXT                   -- why the hub refused it
);
CREATE INDEX events_in_order ON events (state, resource, trigger, seq);
CREATE INDEX events_by_path ON events (resource, path);
CREATE TABLE remembered (
  resource TEXT NOT NULL,
  kind     TEXT NOT NULL,
  path     TEXT NOT NULL,
  trigger  TEXT NOT NULL,
  seen     TEXT NOT NULL,
  sha256   BLOB NOT NULL,
  PRIMARY KEY (resource, kind, path)
) WITHOUT ROWID;
";

impl Taken {
    /// What of it goes into the journal, roughly.
    pub fn row_bytes(&self) -> usize {
        let content = match &self.content {
            Content::Row(bytes) => Bytes::len(bytes),
            Content::Spool(_) => 0,
        };
        content + self.told.as_ref().map_or(0, |told| told.data.len())
    }

    /// What is told of it.
    pub fn file(&self) -> FileEvent {
        file_event(&self.seen, self.sha256)
    }
}

impl Journal {
    /// Writes a taken file, with a row of the audit; `false` if it was taken before. With `remember` it is remembered at
    /// once, in the place of what was remembered under its path.
    ///
    /// # Errors
    /// If it could not be written; then it is not taken.
    pub async fn take(&self, taken: Taken, remember: bool, entry: Entry) -> Result<bool, JournalError> {
        let (cost, key) = (self.writer.cost(), taken.key.clone());
        let row = taken.into_row()?;
        self.grow(row.payload.as_ref().map_or(0, Bytes::len));
        let write = move |c: &Connection| {
            if remember {
                remember_file(c, &key, &row.kind, &row.path, &row.seen, &row.sha256)?;
            }
            let new = insert(c, &row)?;
            if new {
                chain::append(c, &entry, &cost)?;
            } else {
                // The same content, time and place: the same event, even if the file is a copy by now.
                c.prepare_cached("UPDATE events SET seen = ?2 WHERE id = ?1")?
                    .execute(params![row.id, row.seen])?;
            }
            Ok(new)
        };
        self.writer.write(write).await
    }

    /// The files of a trigger that wait for the hub, from a place in the order on.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn waiting(&self, key: Key, after: i64, limit: u32) -> Result<Vec<Waiting>, JournalError> {
        let rows = self
            .writer
            .read(move |c| {
                c.prepare_cached(
                    "SELECT * FROM events WHERE state = 0 AND resource = ?1 AND trigger = ?2 AND seq > ?3
                     ORDER BY seq LIMIT ?4",
                )?
                .query_map(params![key.resource.as_str(), key.trigger.as_str(), after, limit], |row| {
                    Ok((row.get("seq")?, row.get("uploaded")?, taken(row)))
                })?
                .collect::<Result<Vec<(i64, bool, Result<Taken, JournalError>)>, _>>()
            })
            .await?;
        rows.into_iter().map(|(seq, uploaded, taken)| Ok(Waiting { seq, uploaded, taken: taken? })).collect()
    }

    /// Notes that the hub has an event's content.
    ///
    /// # Errors
    /// If it could not be written; then it is uploaded again.
    pub async fn event_uploaded(&self, id: EventId) -> Result<(), JournalError> {
        let id = *id.uuid().as_bytes();
        self.writer
            .write(move |c| {
                c.prepare_cached("UPDATE events SET uploaded = 1 WHERE id = ?1")?.execute([id]).map(drop)
            })
            .await
    }

    /// The hub has the event: what follows may be done, or the file is remembered. `None` if that was known.
    ///
    /// # Errors
    /// If it could not be written; then it is sent again.
    pub async fn event_acked(&self, id: EventId) -> Result<Option<Answered>, JournalError> {
        let id = *id.uuid().as_bytes();
        let found = self
            .writer
            .write(move |c| {
                let Some(taken) = find(c, &id, WAITING)? else { return Ok(None) };
                let Ok(row) = &taken else { return Ok(Some(taken)) };
                if row.follow == Follow::Keep {
                    let seen: String = c
                        .prepare_cached("SELECT seen FROM events WHERE id = ?1")?
                        .query_row([id], |row| row.get(0))?;
                    // A watched file is remembered since it was taken; a newer content may be by now.
                    if row.kind.as_str() == passerelle_protocol::PICKUP {
                        remember_file(
                            c,
                            &row.key,
                            row.kind.as_str(),
                            &row.seen.path,
                            &seen,
                            row.sha256.bytes(),
                        )?;
                    }
                    c.prepare_cached("DELETE FROM events WHERE id = ?1")?.execute([id])?;
                } else {
                    c.prepare_cached(
                        "UPDATE events SET state = 1, payload = NULL, spool = NULL WHERE id = ?1",
                    )?
                    .execute([id])?;
                }
                Ok(Some(taken))
            })
            .await?;
        found.transpose().map(|found| found.map(answered))
    }

    /// The hub refused the event for good: it is kept without its content. `None` if that was known.
    ///
    /// # Errors
    /// If it could not be written; then it is sent again.
    pub async fn event_refused(
        &self,
        id: EventId,
        why: String,
        entry: Entry,
    ) -> Result<Option<Answered>, JournalError> {
        let (id, cost) = (*id.uuid().as_bytes(), self.writer.cost());
        let found = self
            .writer
            .write(move |c| {
                let Some(taken) = find(c, &id, WAITING)? else { return Ok(None) };
                c.prepare_cached(
                    "UPDATE events SET state = 2, payload = NULL, spool = NULL, why = ?2 WHERE id = ?1",
                )?
                .execute(params![id, why])?;
                chain::append(c, &entry, &cost)?;
                Ok(Some(taken))
            })
            .await?;
        found.transpose().map(|found| found.map(answered))
    }

    /// The files of a trigger that the hub has and that something is to follow for: their places in the order, from one on.
    /// The index alone is read: most of them may have to wait.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn unsettled(&self, key: Key, after: i64, limit: u32) -> Result<Vec<i64>, JournalError> {
        self.writer
            .read(move |c| {
                c.prepare_cached(
                    "SELECT seq FROM events WHERE state = 1 AND resource = ?1 AND trigger = ?2 AND seq > ?3
                     ORDER BY seq LIMIT ?4",
                )?
                .query_map(params![key.resource.as_str(), key.trigger.as_str(), after, limit], |row| {
                    row.get(0)
                })?
                .collect()
            })
            .await
    }

    /// What is to follow for the one at a place in the order; `None` if that is done.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn unsettled_at(&self, seq: i64) -> Result<Option<Unsettled>, JournalError> {
        let found = self
            .writer
            .read(move |c| {
                c.prepare_cached("SELECT * FROM events WHERE seq = ?1 AND state = 1")?
                    .query_row([seq], |row| Ok(taken(row)))
                    .optional()
            })
            .await?;
        let unsettled = |taken: Taken| {
            let Taken { id, key, seen, sha256, marker, follow, .. } = taken;
            Unsettled { id, key, seen, sha256, marker, follow }
        };
        found.map(|taken| taken.map(unsettled)).transpose()
    }

    /// What was to follow is done.
    ///
    /// # Errors
    /// If it could not be written; then it is found done once more.
    pub async fn settled(&self, id: EventId, entry: Option<Entry>) -> Result<(), JournalError> {
        let (id, cost) = (*id.uuid().as_bytes(), self.writer.cost());
        self.writer
            .write(move |c| {
                c.prepare_cached("DELETE FROM events WHERE id = ?1 AND state = ?2")?
                    .execute(params![id, ACKNOWLEDGED])?;
                entry.iter().try_for_each(|entry| chain::append(c, entry, &cost))
            })
            .await
    }
}

fn answered(taken: Taken) -> Answered {
    let spool = match taken.content {
        Content::Spool(token) => Some(token),
        Content::Row(_) => None,
    };
    Answered { key: taken.key, size: taken.seen.size, spool, follows: taken.follow != Follow::Keep }
}

fn find(c: &Connection, id: &[u8; 16], state: i64) -> rusqlite::Result<Option<Result<Taken, JournalError>>> {
    c.prepare_cached("SELECT * FROM events WHERE id = ?1 AND state = ?2")?
        .query_row(params![id, state], |row| Ok(taken(row)))
        .optional()
}
