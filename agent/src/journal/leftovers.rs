//! What dead attempts may have left at their targets: unfinished files, to be removed once nothing can need them.
//!
//! The part of an attempt is swept when the attempt has ended without success, no attempt of its job runs here, and no
//! intent of the job is open: by an open intent a later attempt decides from the part whether the effect happened, so
//! such a part is never removed. An intent closes when a later attempt has decided, or with its tombstone.

use super::{ACKED, Journal, JournalError, key};
use crate::job::Job;
use passerelle_protocol::{JobId, Name, session::Attempt};
use rusqlite::{Connection, params};

/// How many are looked after at once.
const AT_ONCE: u32 = 64;
/// A call has ended after so many seconds, one way or another.
const CALL_OVER: i64 = 180;
/// After so many seconds a part whose resource cannot be asked is given up.
const GIVEN_UP: i64 = 30 * 24 * 60 * 60;

/// What an ended attempt may have left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The attempt.
    pub attempt: Attempt,
    /// Where it acted.
    pub resource: Name,
    /// What it left, in its connector's words.
    pub part: String,
    /// When it ended, in Unix seconds.
    pub finished_at: i64,
}

impl Journal {
    /// The leftovers that nothing needs any more and whose time has come, oldest first.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn leftovers(&self, now: i64) -> Result<Vec<Leftover>, JournalError> {
        let rows: Vec<([u8; 16], u32, String, String, i64)> = self
            .writer
            .read(move |c| {
                c.prepare_cached(
                    "SELECT job, attempt, resource, part, coalesce(finished_at, accepted_at) / 1000 FROM attempts AS dead
                     WHERE part IS NOT NULL AND state >= 2 AND sweep_at <= ?1 AND NOT EXISTS (
                       SELECT 1 FROM attempts AS other WHERE other.job = dead.job
                         AND (other.state < 2 OR other.intent IS NOT NULL))
                     ORDER BY sweep_at LIMIT ?2",
                )?
                .query_map(params![now, AT_ONCE], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
                })?
                .collect()
            })
            .await?;
        let leftover = |(job, attempt, resource, part, finished_at): (_, _, String, _, _)| {
            let job = JobId::from(uuid::Uuid::from_bytes(job));
            let resource = resource.parse().map_err(|e| JournalError::Storage(format!("resource: {e}")))?;
            Ok(Leftover { attempt: Attempt::new(job, attempt), resource, part, finished_at })
        };
        rows.into_iter().map(leftover).collect()
    }

    /// Notes that an attempt has left nothing, or nothing any more. Lazy.
    pub fn swept(&self, attempt: Attempt) {
        let key = key(attempt);
        self.writer.lazy(move |c| {
            c.prepare_cached(
                "UPDATE attempts SET part = NULL WHERE job = ?1 AND attempt = ?2 AND state >= 2",
            )?
            .execute(params![key.0, key.1])
        });
    }

    /// Notes that the hub has given an attempt up whose effect it had granted: its part may be the only evidence of what happened for the agent that
    /// goes on in its place, so it is no longer this one's to remove. Lazy.
    pub fn disowned(&self, attempt: Attempt) {
        let key = key(attempt);
        self.writer.lazy(move |c| {
            c.prepare_cached("UPDATE attempts SET part = NULL WHERE job = ?1 AND attempt = ?2")?
                .execute(params![key.0, key.1])
        });
    }

    /// Notes what a call may leave at its target, before it begins. Of a call nothing else is written.
    ///
    /// # Errors
    /// If it could not be written; then the call must not begin.
    pub async fn expect_leftover_of_call(&self, job: &Job, part: String) -> Result<(), JournalError> {
        let (key, resource) = (key(job.attempt), job.envelope.resource.to_string());
        let (expires, at) = (job.envelope.exp, job.accepted_at.as_millisecond());
        self.writer
            .write(move |c| {
                c.prepare_cached(
                    "INSERT OR IGNORE INTO attempts (job, attempt, state, resource, envelope, ticket, at_hub, expires,
                       accepted_at, finished_at, acked_at, part, sweep_at)
                     VALUES (?1, ?2, ?3, ?4, '', '', 0, ?5, ?6, ?6, ?6 / 1000, ?7, ?6 / 1000 + ?8)",
                )?
                .execute(params![key.0, key.1, ACKED, resource, expires, at, part, CALL_OVER])
            })
            .await
            .map(drop)
    }

    /// Notes that a call has ended: one that succeeded has left nothing, of another the sweeper looks for it. Lazy.
    pub fn leftover_of_call_decided(&self, attempt: Attempt, succeeded: bool) {
        let key = key(attempt);
        self.writer.lazy(move |c| {
            let sql = if succeeded {
                "DELETE FROM attempts WHERE job = ?1 AND attempt = ?2 AND state = 4"
            } else {
                "UPDATE attempts SET sweep_at = 0 WHERE job = ?1 AND attempt = ?2 AND state = 4"
            };
            c.prepare_cached(sql)?.execute(params![key.0, key.1])
        });
    }

    /// Has a leftover looked at again at a time in Unix seconds. Lazy.
    pub fn sweep_again(&self, attempt: Attempt, at: i64) {
        let key = key(attempt);
        self.writer.lazy(move |c| {
            c.prepare_cached("UPDATE attempts SET sweep_at = ?3 WHERE job = ?1 AND attempt = ?2")?
                .execute(params![key.0, key.1, at])
        });
    }
}

/// At the start every leftover is worth a look.
pub(super) fn look_again(c: &Connection) -> rusqlite::Result<()> {
    c.execute("UPDATE attempts SET sweep_at = 0 WHERE part IS NOT NULL AND state >= 2", []).map(drop)
}

/// Tombstones that would be pruned but for their part: their intent goes with the time, so that the part can be swept;
/// and one that could not be swept for long is given up.
pub(super) fn outlive(c: &Connection, acked_before: i64, now: i64) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE attempts SET intent = NULL
         WHERE part IS NOT NULL AND state >= 2 AND state = 4 AND acked_at < ?1 AND expires < ?2 AND intent IS NOT NULL",
    )?
    .execute(params![acked_before, now])?;
    c.prepare_cached(
        "UPDATE attempts SET part = NULL WHERE part IS NOT NULL AND state >= 2 AND finished_at < ?1",
    )?
    .execute(params![(now - GIVEN_UP) * 1000])
    .map(drop)
}
