//! Lines: jobs of a resource with the same `order_key` run strictly in the order of their submission, one at a time,
//! whatever agent runs them.
//!
//! A job *blocks* its line from submission until it has succeeded or was cancelled, and, if it holds the line on failure,
//! beyond that until it is retried with success or resolved. At most one job that blocks is *ready*: only ready jobs are in
//! the queue that dispatch reads, so a long line costs nothing while it waits.

use super::{Error, attempts::JobRow, writer::Tx};
use crate::{
    model::{JobState, NewJob},
    tunnel::registry::QueueKey,
};
use rusqlite::{OptionalExtension as _, Row, params};

/// What of a job its line depends on.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) key: String,
    /// Whether its failure holds those behind it; unless it says `continue`.
    pub(crate) holds: bool,
    pub(crate) blocks: bool,
}

impl Line {
    /// Reads it from the columns `order_key`, `on_failure` and `blocks`.
    pub(crate) fn read(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<Self>> {
        let Some(key) = row.get(first)? else { return Ok(None) };
        let on_failure = row.get_ref(first + 1)?.as_str_or_null()?;
        Ok(Some(Self { key, holds: on_failure != Some("continue"), blocks: row.get(first + 2)? }))
    }

    fn blocks_in(&self, state: JobState) -> bool {
        match state {
            JobState::Succeeded | JobState::Cancelled => false,
            JobState::Failed | JobState::Denied | JobState::Expired | JobState::Unknown => self.holds,
            JobState::Queued | JobState::Offered | JobState::Running | JobState::Waiting => true,
        }
    }
}

/// The columns `blocks` and `ready` of a job that is being submitted.
pub(super) fn on_submission(tx: &Tx<'_>, job: &NewJob) -> Result<(bool, bool), Error> {
    match &job.order_key {
        None => Ok((false, true)),
        Some(key) => Ok((true, !is_held(tx, &QueueKey::of(job), key)?)),
    }
}

fn is_held(tx: &Tx<'_>, queue: &QueueKey, key: &str) -> Result<bool, Error> {
    let sql = "SELECT 1 FROM jobs INDEXED BY jobs_line \
               WHERE tenant = ?1 AND site = ?2 AND resource = ?3 AND order_key = ?4 AND blocks = 1 LIMIT 1";
    Ok(tx.conn.prepare_cached(sql)?.exists(params![
        queue.tenant.as_str(),
        queue.site.as_str(),
        queue.resource.as_str(),
        key
    ])?)
}

/// After `job` came to `state`: it leaves its line, or takes its place in it again.
pub(super) fn on_state(tx: &mut Tx<'_>, job: &JobRow, state: JobState) -> Result<(), Error> {
    let Some(line) = &job.line else { return Ok(()) };
    match (line.blocks, line.blocks_in(state)) {
        (true, false) => leave(tx, job, &line.key),
        (false, true) => come_back(tx, job, &line.key),
        (true, true) | (false, false) => Ok(()),
    }
}

/// Lets those behind a job go on.
pub(crate) fn leave(tx: &mut Tx<'_>, job: &JobRow, key: &str) -> Result<(), Error> {
    tx.conn.prepare_cached("UPDATE jobs SET blocks = 0, ready = 1 WHERE seq = ?1")?.execute([job.seq])?;
    if ready_one(tx, &job.queue, key)?.is_some() {
        return Ok(());
    }
    let queue = &job.queue;
    let next = tx
        .conn
        .prepare_cached(
            "SELECT seq FROM jobs INDEXED BY jobs_line \
             WHERE tenant = ?1 AND site = ?2 AND resource = ?3 AND order_key = ?4 AND blocks = 1 \
             AND ready = 0 ORDER BY seq LIMIT 1",
        )?
        .query_row(params![queue.tenant.as_str(), queue.site.as_str(), queue.resource.as_str(), key], |row| {
            row.get::<_, i64>(0)
        })
        .optional()?;
    if let Some(seq) = next {
        tx.conn.prepare_cached("UPDATE jobs SET ready = 1 WHERE seq = ?1")?.execute([seq])?;
        tx.effects.queues.push(queue.clone());
    }
    Ok(())
}

/// A job that had left its line is to run again: before those that were submitted later, but not beside one that runs.
fn come_back(tx: &mut Tx<'_>, job: &JobRow, key: &str) -> Result<(), Error> {
    let ready = match ready_one(tx, &job.queue, key)? {
        None => true,
        Some((other, state)) if state == "queued" && other > job.seq => {
            tx.conn.prepare_cached("UPDATE jobs SET ready = 0 WHERE seq = ?1")?.execute([other])?;
            true
        }
        Some(_) => false,
    };
    tx.conn
        .prepare_cached("UPDATE jobs SET blocks = 1, ready = ?2 WHERE seq = ?1")?
        .execute(params![job.seq, ready])?;
    Ok(())
}

/// The job of the line whose turn it is.
fn ready_one(tx: &Tx<'_>, queue: &QueueKey, key: &str) -> Result<Option<(i64, String)>, Error> {
    Ok(tx
        .conn
        .prepare_cached(
            "SELECT seq, state FROM jobs INDEXED BY jobs_line \
             WHERE tenant = ?1 AND site = ?2 AND resource = ?3 AND order_key = ?4 AND blocks = 1 AND ready = 1 LIMIT 1",
        )?
        .query_row(
            params![queue.tenant.as_str(), queue.site.as_str(), queue.resource.as_str(), key],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?)
}
