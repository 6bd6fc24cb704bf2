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

mod types;

pub use types::{Answered, Content, Counts, Follow, Key, Place, Taken, Told, Unsettled, Waiting, file_event};

use super::{Journal, JournalError, json, parse};
use crate::audit::{Entry, chain};
use bytes::Bytes;
use jiff::Timestamp;
use passerelle_connectors::Seen;
use passerelle_protocol::{EventId, FileEvent, Name, Sha256};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use std::collections::{BTreeMap, HashSet};
use uuid::Uuid;

const WAITING: i64 = 0;
const ACKNOWLEDGED: i64 = 1;
const DEAD: i64 = 2;

/// How many remembered files are looked at in one write.
const AT_ONCE: u32 = 2000;

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

/// A row of `events`, as it is written.
pub(super) struct NewEvent {
    pub(super) id: [u8; 16],
    pub(super) resource: String,
    trigger: String,
    kind: String,
    lease: i64,
    pub(super) at: i64,
    path: String,
    seen: String,
    pub(super) sha256: [u8; 32],
    payload: Option<Bytes>,
    spool: Option<[u8; 16]>,
    marker: Option<String>,
    follow: String,
    data: Option<String>,
    media_type: Option<String>,
}

impl Taken {
    /// What is told of it.
    pub fn file(&self) -> FileEvent {
        file_event(&self.seen, self.sha256)
    }

    pub(super) fn into_row(self) -> Result<NewEvent, JournalError> {
        let (seen, follow) = (json(&self.seen)?, json(&self.follow)?);
        let marker = self.marker.as_ref().map(json).transpose()?;
        let (payload, spool) = match self.content {
            Content::Row(bytes) => (Some(bytes), None),
            Content::Spool(token) => (None, Some(*token.as_bytes())),
        };
        let (data, media_type) = self.told.map_or((None, None), |told| (Some(told.data), told.media_type));
        Ok(NewEvent {
            id: *self.id.uuid().as_bytes(),
            resource: self.key.resource.to_string(),
            trigger: self.key.trigger.to_string(),
            kind: self.kind.to_string(),
            lease: i64::try_from(self.lease).unwrap_or(i64::MAX),
            at: self.occurred_at.as_millisecond(),
            path: self.seen.path,
            seen,
            sha256: *self.sha256.bytes(),
            payload,
            spool,
            marker,
            follow,
            data,
            media_type,
        })
    }
}

/// Writes a waiting event; `false` if it is there already.
pub(super) fn insert(c: &Connection, row: &NewEvent) -> rusqlite::Result<bool> {
    let new = c
        .prepare_cached(
            "INSERT OR IGNORE INTO events (id, resource, trigger, kind, lease, occurred_at, state, path, seen,
               sha256, payload, spool, marker, follow, data, media_type)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )?
        .execute(params![
            row.id,
            row.resource,
            row.trigger,
            row.kind,
            row.lease,
            row.at,
            row.path,
            row.seen,
            row.sha256,
            row.payload.as_deref(),
            row.spool,
            row.marker,
            row.follow,
            row.data,
            row.media_type
        ])?;
    Ok(new > 0)
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

    /// Remembers a file without an event: its content is the one that was sent last.
    ///
    /// # Errors
    /// If it could not be written.
    pub async fn remember(
        &self,
        key: Key,
        kind: Name,
        seen: &Seen,
        sha256: Sha256,
    ) -> Result<(), JournalError> {
        let (text, path) = (json(seen)?, seen.path.clone());
        self.writer.write(move |c| remember_file(c, &key, kind.as_str(), &path, &text, sha256.bytes())).await
    }

    /// What is remembered of a path.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn remembered(
        &self,
        resource: Name,
        kind: Name,
        path: String,
    ) -> Result<Option<(Seen, Sha256)>, JournalError> {
        let found: Option<(String, [u8; 32])> = self
            .writer
            .read(move |c| {
                c.prepare_cached(
                    "SELECT seen, sha256 FROM remembered WHERE resource = ?1 AND kind = ?2 AND path = ?3",
                )?
                .query_row(params![resource.as_str(), kind.as_str(), path], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()
            })
            .await?;
        found.map(|(seen, sha256)| Ok((parse(&seen)?, Sha256::from(sha256)))).transpose()
    }

    /// Leaves out the files that were taken before, exactly as they are.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn unknown(
        &self,
        resource: Name,
        kind: Name,
        files: Vec<Seen>,
    ) -> Result<Vec<Seen>, JournalError> {
        let texts = files.iter().map(json).collect::<Result<Vec<_>, _>>()?;
        self.writer
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM events WHERE resource = ?1 AND path = ?3 AND kind = ?2 AND seen = ?4)
                       OR EXISTS (SELECT 1 FROM remembered WHERE resource = ?1 AND kind = ?2 AND path = ?3 AND seen = ?4)",
                )?;
                let mut unknown = Vec::new();
                for (file, text) in files.into_iter().zip(texts) {
                    let row = params![resource.as_str(), kind.as_str(), file.path, text];
                    if !statement.query_row(row, |row| row.get::<_, bool>(0))? {
                        unknown.push(file);
                    }
                }
                Ok(unknown)
            })
            .await
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

    /// What is to follow for files that the hub has, in order; from a place in the order on.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn unsettled(&self, after: i64, limit: u32) -> Result<Vec<(i64, Unsettled)>, JournalError> {
        let rows = self
            .writer
            .read(move |c| {
                c.prepare_cached("SELECT * FROM events WHERE state = 1 AND seq > ?1 ORDER BY seq LIMIT ?2")?
                    .query_map(params![after, limit], |row| Ok((row.get("seq")?, taken(row))))?
                    .collect::<Result<Vec<(i64, Result<Taken, JournalError>)>, _>>()
            })
            .await?;
        let unsettled = |(seq, taken): (i64, Result<Taken, JournalError>)| {
            let Taken { id, key, seen, sha256, marker, follow, .. } = taken?;
            Ok((seq, Unsettled { id, key, seen, sha256, marker, follow }))
        };
        rows.into_iter().map(unsettled).collect()
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

    /// How much each trigger has under way.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn trigger_counts(&self) -> Result<BTreeMap<Key, Counts>, JournalError> {
        let rows: Vec<(String, String, i64, i64, i64)> = self
            .writer
            .read(|c| {
                c.prepare_cached(
                    "SELECT resource, trigger, state, count(*), sum(CASE WHEN state = 0 THEN seen ->> 'size' ELSE 0 END)
                     FROM events GROUP BY resource, trigger, state",
                )?
                .query_map([], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
                })?
                .collect()
            })
            .await?;
        let mut counts = BTreeMap::<Key, Counts>::new();
        for (resource, trigger, state, number, bytes) in rows {
            let (number, bytes) = (positive(number), positive(bytes));
            let of = counts.entry(key(&resource, &trigger)?).or_default();
            match state {
                WAITING => (of.waiting, of.bytes) = (number, bytes),
                ACKNOWLEDGED => of.unsettled = number,
                _ => of.dead = number,
            }
        }
        Ok(counts)
    }

    /// What waiting events take of the spool: each with its file there, if it has one, and its size.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn spooled_events(&self) -> Result<Vec<(EventId, Option<Uuid>, u64)>, JournalError> {
        let rows: Vec<([u8; 16], Option<[u8; 16]>, i64)> = self
            .writer
            .read(|c| {
                c.prepare("SELECT id, spool, seen ->> 'size' FROM events WHERE state = 0")?
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                    .collect()
            })
            .await?;
        let spooled = |(id, token, size): ([u8; 16], Option<[u8; 16]>, i64)| {
            (EventId::from(Uuid::from_bytes(id)), token.map(Uuid::from_bytes), positive(size))
        };
        Ok(rows.into_iter().map(spooled).collect())
    }

    /// Where a waiting event is in the order, of which trigger it is, and of which kind and file; `None` if it does not wait any more.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn event_place(&self, id: EventId) -> Result<Option<Place>, JournalError> {
        let id = *id.uuid().as_bytes();
        let found: Option<(i64, String, String, String, String)> = self
            .writer
            .read(move |c| {
                c.prepare_cached(
                    "SELECT seq, resource, trigger, kind, path FROM events WHERE id = ?1 AND state = 0",
                )?
                .query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))
                .optional()
            })
            .await?;
        let place = |(seq, resource, trigger, kind, path): (i64, String, String, String, String)| {
            Ok(Place { seq, key: key(&resource, &trigger)?, kind: name(&kind)?, path })
        };
        found.map(place).transpose()
    }

    /// Forgets what is remembered or was refused of files that are not there any more; `there` tells paths. Says how many
    /// are left.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub async fn forget_gone(
        &self,
        key: Key,
        kind: Name,
        there: HashSet<u64>,
        hash: fn(&str) -> u64,
    ) -> Result<u64, JournalError> {
        let there = std::sync::Arc::new(there);
        let (mut after, mut left) = (Some(String::new()), 0);
        while let Some(from) = after.take() {
            let (key, kind, there) = (key.clone(), kind.clone(), std::sync::Arc::clone(&there));
            let (next, kept) = self
                .writer
                .write(move |c| {
                    let rows: Vec<String> = c
                        .prepare_cached(
                            "SELECT path FROM remembered WHERE resource = ?1 AND kind = ?2 AND path > ?3 AND trigger = ?4
                             ORDER BY path LIMIT ?5",
                        )?
                        .query_map(
                            params![key.resource.as_str(), kind.as_str(), from, key.trigger.as_str(), AT_ONCE],
                            |row| row.get(0),
                        )?
                        .collect::<Result<_, _>>()?;
                    let mut kept = 0;
                    for path in &rows {
                        if there.contains(&hash(path)) {
                            kept += 1;
                            continue;
                        }
                        c.prepare_cached("DELETE FROM remembered WHERE resource = ?1 AND kind = ?2 AND path = ?3")?
                            .execute(params![key.resource.as_str(), kind.as_str(), path])?;
                    }
                    let full = rows.len() == AT_ONCE as usize;
                    Ok((rows.into_iter().next_back().filter(|_| full), kept))
                })
                .await?;
            left += kept;
            after = next;
        }
        let dead = move |c: &Connection| {
            let rows: Vec<(i64, String)> = c
                .prepare_cached(
                    "SELECT seq, path FROM events WHERE state = ?1 AND resource = ?2 AND trigger = ?3 AND kind = ?4",
                )?
                .query_map(params![DEAD, key.resource.as_str(), key.trigger.as_str(), kind.as_str()], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?
                .collect::<Result<_, _>>()?;
            for (seq, _) in rows.iter().filter(|(_, path)| !there.contains(&hash(path))) {
                c.prepare_cached("DELETE FROM events WHERE seq = ?1")?.execute([seq])?;
            }
            Ok(())
        };
        self.writer.write(dead).await?;
        Ok(left)
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

fn remember_file(
    c: &Connection,
    key: &Key,
    kind: &str,
    path: &str,
    seen: &str,
    sha256: &[u8; 32],
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "INSERT OR REPLACE INTO remembered (resource, kind, path, trigger, seen, sha256)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![key.resource.as_str(), kind, path, key.trigger.as_str(), seen, sha256])
    .map(drop)
}

/// What SQLite holds as a signed number.
fn positive(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn key(resource: &str, trigger: &str) -> Result<Key, JournalError> {
    Ok(Key { resource: name(resource)?, trigger: name(trigger)? })
}

pub(super) fn name(text: &str) -> Result<Name, JournalError> {
    text.parse().map_err(|e| JournalError::Storage(format!("a row cannot be read: {e}")))
}

fn taken(row: &Row<'_>) -> Result<Taken, JournalError> {
    let text = |column: &str| row.get::<_, String>(column);
    let payload: Option<Vec<u8>> = row.get("payload")?;
    let spool: Option<[u8; 16]> = row.get("spool")?;
    let marker: Option<String> = row.get("marker")?;
    Ok(Taken {
        id: EventId::from(Uuid::from_bytes(row.get("id")?)),
        key: key(&text("resource")?, &text("trigger")?)?,
        kind: name(&text("kind")?)?,
        lease: positive(row.get("lease")?),
        occurred_at: Timestamp::from_millisecond(row.get("occurred_at")?)
            .map_err(|e| JournalError::Storage(format!("time: {e}")))?,
        seen: parse(&text("seen")?)?,
        sha256: Sha256::from(row.get::<_, [u8; 32]>("sha256")?),
        content: match spool {
            Some(token) => Content::Spool(Uuid::from_bytes(token)),
            None => Content::Row(payload.unwrap_or_default().into()),
        },
        marker: marker.map(|text| parse(&text)).transpose()?,
        follow: parse(&text("follow")?)?,
        told: match row.get("data")? {
            Some(data) => Some(Told { data, media_type: row.get("media_type")? }),
            None => None,
        },
    })
}
