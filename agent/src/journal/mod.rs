//! The durable memory of the agent: one row per attempt, in SQLite (`journal.db`).
//!
//! # Invariants
//! - Commit, then speak: every call that the hub will hear of returns only after its transaction is on disk
//!   (WAL, `synchronous=FULL`). Calls that arrive together share one transaction and one sync.
//! - A row goes `accepted → running → finished (output to be uploaded) → reportable → acked`, and never back, but for
//!   an acked one whose attempt is offered again: it becomes reportable again.
//! - An acked row is a tombstone. It keeps the attempt's number, so that a replay is refused, and a small outcome, so
//!   that a hub restored from a backup is told again. Tombstones live a day, and at least until the envelope expires.
//! - What was decided and done is a row of the audit in the same transaction: see the `audit` module.
//! - Payloads above 256 KiB are not here but in `spool/`; names there come from our ids alone.
//! - `running`, `granted` and `acked` are written lazily, with the next transaction or within a second: losing them
//!   costs nothing (see below).
//! - What an attempt may leave at its target (`part`) is in its row from the start, and stays until it is known to be
//!   gone, or the attempt succeeded. See `leftovers`.
//!
//! # What a crash leaves
//! | crash | found at the next start | what happens |
//! |---|---|---|
//! | before `accepted` is committed | nothing | the hub offers again |
//! | after it, before `Accept` was sent | `accepted` | it runs; the hub hears of it in `Hello` |
//! | while the connector works, no intent yet | `accepted` or `running` | it runs again from the start; nothing was applied |
//! | after the intent, before or after the effect | `running` with an intent | the connector looks what it finds |
//! | after the effect, before `finished` | as above | as above: the effect is recognised |
//! | after `finished`, before the report | `finished` or `reportable` | upload and report go on |
//! | after the ack, before `acked` is committed | `reportable` | it is reported again; the hub acknowledges again |
//!
//! SQLite is opened with `locking_mode=EXCLUSIVE` before WAL, so that no shared-memory file is needed (network
//! folders, Docker Desktop). A corrupt file is set aside, loudly; one of a newer schema is refused.

mod accept;
mod audit;
pub mod events;
mod found;
mod fresh;
mod leftovers;
mod reports;
mod row;
mod salvage;
mod schema;
pub mod told;
mod usage;
mod writer;

#[cfg(test)]
mod audit_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod events_tests;
#[cfg(test)]
mod leftovers_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod told_tests;

use crate::{
    audit::{Entry, chain, segments},
    job::Job,
};
use fresh::Fresh;
use jiff::Timestamp;
pub use leftovers::Leftover;
use passerelle_protocol::{HeldState, Name, Outcome, Report, session::Attempt};
use rusqlite::{Connection, params};
pub use schema::WAL;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};
use writer::Writer;

/// The journal's file in the state folder.
pub const FILE: &str = "journal.db";
/// The longest report that a tombstone keeps, as JSON text.
const KEPT_REPORT: usize = 8 * 1024;
/// How long tombstones live.
const TOMBSTONE_LIFE: i64 = 24 * 60 * 60;
/// How many tombstones there may be; past it those go first whose envelope has expired.
const MAX_TOMBSTONES: i64 = 100_000;

const ACCEPTED: i64 = 0;
const RUNNING: i64 = 1;
const FINISHED: i64 = 2;
const REPORTABLE: i64 = 3;
const ACKED: i64 = 4;

/// Why the journal cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// Written by a newer agent.
    #[error(
        "the journal {path} has format {found}, newer than this agent's {ours}: run the newer agent again, or move the \
         journal away after all its jobs are settled at the hub"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// Ours.
        ours: i64,
    },
    /// The file cannot be opened, or the disk is full, or it fails.
    #[error("the journal cannot be written: {0}")]
    Storage(String),
    /// The journal was closed.
    #[error("the journal is closed")]
    Closed,
}

impl From<rusqlite::Error> for JournalError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Storage(error.to_string())
    }
}

/// What came of [`Journal::accept`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// It is in the journal now.
    New,
    /// It is in the journal now, with the intent of an earlier attempt whose effect may have happened.
    Continues(Value),
    /// It was in the journal already, not acknowledged yet.
    Held,
    /// It was reported and acknowledged; it will be reported again.
    Again,
    /// A higher attempt of the job was seen, or this one or an earlier one is done and its outcome not kept.
    Replayed {
        /// The highest attempt seen.
        highest: u32,
    },
    /// An earlier attempt of the job took effect here. Its outcome is that of this one too, and will be reported.
    Done,
    /// An earlier attempt of the job is still under way here.
    Busy,
    /// This agent has accepted as many attempts of the job as its envelope allows.
    Spent {
        /// How many those are.
        allowed: u32,
    },
}

/// An attempt that the journal held at the start.
#[derive(Debug)]
pub enum Found {
    /// To be carried out.
    Job(Box<Job>, HeldState),
    /// Finished: its output is to be uploaded before it is reported.
    Upload(Attempt, Name),
    /// Finished, to be reported.
    Report(Attempt, Name),
}

/// What [`Journal::open`] found.
#[derive(Debug)]
pub struct Opened {
    /// The journal.
    pub journal: Journal,
    /// What it held.
    pub found: Vec<Found>,
    /// Where a corrupt file was put.
    pub set_aside: Option<PathBuf>,
}

/// The journal. Cheap to clone; one thread writes.
#[derive(Debug, Clone)]
pub struct Journal {
    writer: Arc<Writer>,
    seq: Arc<AtomicI64>,
    fresh: Arc<Fresh>,
    bytes: Arc<AtomicU64>,
    spare: Arc<AtomicU64>,
    wal: Arc<Path>,
}

impl Journal {
    /// Opens the journal in the state folder, or makes one.
    ///
    /// # Errors
    /// See [`JournalError`]. A corrupt file is no error: it is set aside.
    pub fn open(state: &Path) -> Result<Opened, JournalError> {
        let path = state.join(FILE);
        let (connection, set_aside) = schema::open(&path)?;
        let seq = connection.query_row("SELECT coalesce(max(seq), 0) FROM attempts", [], |row| row.get(0))?;
        leftovers::look_again(&connection)?;
        chain::begin(&connection, segments::known(state), set_aside.as_ref())?;
        let found = found::find(&connection)?;
        let writer = Arc::new(Writer::start(connection)?);
        let wal = state.join(format!("{FILE}-wal")).into();
        let journal = Self {
            writer,
            seq: Arc::new(AtomicI64::new(seq)),
            bytes: Arc::default(),
            spare: Arc::default(),
            wal,
            fresh: Arc::default(),
        };
        Ok(Opened { journal, found, set_aside })
    }

    /// Notes that the connector started. Lazy.
    pub fn started(&self, attempt: Attempt, at: Timestamp) {
        let key = key(attempt);
        self.writer.lazy_until_finished(key, move |c| {
            c.prepare_cached("UPDATE attempts SET state = ?3, started_at = ?4 WHERE job = ?1 AND attempt = ?2 AND state = ?5")?
                .execute(params![key.0, key.1, RUNNING, at.as_millisecond(), ACCEPTED])
        });
    }

    /// Writes what the final effect will be; only then may it happen.
    ///
    /// # Errors
    /// If it could not be written; then the effect must not happen.
    pub async fn intent(&self, attempt: Attempt, at: Timestamp, intent: &Value) -> Result<(), JournalError> {
        let (key, intent) = (key(attempt), intent.to_string());
        self.writer
            .write(move |c| {
                c.prepare_cached(
                    "UPDATE attempts SET state = ?3, intent = ?4, granted = 0, started_at = coalesce(started_at, ?5)
                     WHERE job = ?1 AND attempt = ?2 AND state <= ?3",
                )?
                .execute(params![key.0, key.1, RUNNING, intent, at.as_millisecond()])
            })
            .await
            .map(drop)
    }

    /// Notes that the hub granted the effect: evidence for whoever looks into the journal. Lazy.
    pub fn granted(&self, attempt: Attempt) {
        let key = key(attempt);
        self.writer.lazy(move |c| {
            c.prepare_cached("UPDATE attempts SET granted = 1 WHERE job = ?1 AND attempt = ?2")?
                .execute(params![key.0, key.1])
        });
    }

    /// Forgets the intents of the attempt and of those before it: they certainly had no effect.
    ///
    /// # Errors
    /// If it could not be written; then they still count.
    pub async fn withdraw(&self, attempt: Attempt) -> Result<(), JournalError> {
        let key = key(attempt);
        self.writer
            .write(move |c| {
                c.prepare_cached("UPDATE attempts SET intent = NULL WHERE job = ?1 AND attempt <= ?2")?
                    .execute(params![key.0, key.1])
            })
            .await
            .map(drop)
    }

    /// Writes how the attempt ended, with a row of the audit. With `upload`, its output must reach the hub before it is reported.
    ///
    /// # Errors
    /// If it could not be written; try again.
    pub async fn finish(
        &self,
        report: &Report,
        upload: bool,
        entry: Option<Entry>,
    ) -> Result<(), JournalError> {
        self.finish_leaving(report, upload, false, entry).await
    }

    /// The same; `leaves` says that something of the attempt's part is still there, though it succeeded.
    ///
    /// # Errors
    /// As of [`Self::finish`].
    pub async fn finish_leaving(
        &self,
        report: &Report,
        upload: bool,
        leaves: bool,
        entry: Option<Entry>,
    ) -> Result<(), JournalError> {
        let key = key(Attempt::new(report.job, report.attempt));
        let (started, finished) =
            (report.started_at.map(Timestamp::as_millisecond), report.finished_at.as_millisecond());
        let (text, seq, fresh) = (json(report)?, Arc::clone(&self.seq), Arc::clone(&self.fresh));
        let cost = self.writer.cost();
        let copy = (text.len() <= fresh::MAX_KEPT).then(|| Arc::new(report.clone()));
        // The row says all of it in a moment.
        self.writer.supersede(key);
        // What succeeded has given its part the final name.
        let leaves_part = leaves || !matches!(report.outcome, Outcome::Succeeded { .. });
        let write =
            move |c: &Connection| {
                entry.iter().try_for_each(|entry| chain::append(c, entry, &cost))?;
                let (state, seq) = if upload { (FINISHED, None) } else { (REPORTABLE, Some(next(&seq))) };
                // What led here is not needed any more: the row shrinks to its report.
                c.prepare_cached(
                "UPDATE attempts SET state = ?3, seq = ?4, report = ?5, started_at = ?6, finished_at = ?7,
                   payload = NULL, ticket = '', part = CASE WHEN ?9 THEN part END, sweep_at = 0
                 WHERE job = ?1 AND attempt = ?2 AND state <= ?8",
            )?
            .execute(params![key.0, key.1, state, seq, text, started, finished, FINISHED, leaves_part])?;
                Ok(seq)
            };
        let told = move |seq: &Option<i64>| {
            if let Some(seq) = *seq {
                fresh.push(seq, copy);
            }
        };
        self.writer.write_then(write, told).await.map(drop)
    }

    /// Writes what is lazy, prunes old tombstones, and learns whether the disk takes writes again.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub async fn maintain(&self, now: i64) -> Result<(), JournalError> {
        self.writer
            .write(move |c| {
                leftovers::outlive(c, now - TOMBSTONE_LIFE, now)?;
                c.prepare_cached(
                    "DELETE FROM attempts WHERE state = 4 AND acked_at < ?1 AND expires < ?2 AND part IS NULL",
                )?
                .execute(params![now - TOMBSTONE_LIFE, now])?;
                c.prepare_cached(
                    "DELETE FROM attempts WHERE rowid IN (SELECT rowid FROM attempts WHERE state = 4 AND expires < ?1
                       ORDER BY acked_at DESC LIMIT -1 OFFSET ?2)",
                )?
                .execute(params![now, MAX_TOMBSTONES])?;
                // Gives the room of pruned rows back to the disk, a little at a time.
                usage::vacuum(c, 256)
            })
            .await
    }

    /// Writes what is lazy.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub async fn flush(&self) -> Result<(), JournalError> {
        self.writer.write(|_| Ok(())).await
    }

    /// Whether the last write succeeded.
    #[must_use]
    pub fn writable(&self) -> bool {
        self.writer.healthy()
    }

    /// Whether something lazy waits, or the last write failed: [`Self::flush`] is worth a try.
    #[must_use]
    pub fn needs_flush(&self) -> bool {
        !self.writer.healthy() || self.writer.has_lazy()
    }

    /// Ends the writer after everything before this call is on disk.
    pub async fn close(&self) {
        self.writer.close().await;
    }
}

type Key = ([u8; 16], u32);

fn key(attempt: Attempt) -> Key {
    (attempt.job.uuid().into_bytes(), attempt.number)
}

fn next(seq: &AtomicI64) -> i64 {
    seq.fetch_add(1, Ordering::Relaxed) + 1
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, JournalError> {
    serde_json::to_string(value).map_err(|e| JournalError::Storage(e.to_string()))
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, JournalError> {
    serde_json::from_str(text).map_err(|e| JournalError::Storage(format!("a row cannot be read: {e}")))
}
