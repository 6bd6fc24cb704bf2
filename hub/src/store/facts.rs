//! What of a job and an attempt decides what becomes of them, read from their rows.

use super::{
    Error,
    lines::Line,
    row::{from_uuid, name, opt_time, opt_word, parsed, time, word},
    transition::Facts,
};
use crate::tunnel::registry::QueueKey;
use jiff::Timestamp;
use passerelle_protocol::{AgentId, CommitMode, JobId, Name, Repeat};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

/// What of a job decides its next state.
#[derive(Debug)]
pub(crate) struct JobRow {
    pub(crate) seq: i64,
    pub(crate) id: JobId,
    pub(crate) queue: QueueKey,
    /// The number of the current (last) attempt.
    pub(crate) attempt: u32,
    pub(crate) facts: Facts,
    /// The size of its payload.
    pub(crate) payload_size: Option<i64>,
    /// Its place in a line, if it has an order key.
    pub(crate) line: Option<Line>,
}

const FACTS: &str = "seq, id, tenant, site, resource, attempt, state, counted, allowed, max_attempts, deadline, \
    cancel_requested, refused, error_effect, granted, order_key, on_failure, blocks, payload_size";

impl JobRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            seq: row.get(0)?,
            id: from_uuid(row, 1)?,
            queue: QueueKey { tenant: name(row, 2)?, site: name(row, 3)?, resource: name(row, 4)? },
            attempt: row.get(5)?,
            facts: Facts {
                state: parsed(row, 6)?,
                counted: row.get(7)?,
                allowed: row.get(8)?,
                max_attempts: row.get(9)?,
                deadline: time(row, 10)?,
                cancel_requested: row.get(11)?,
                refused: row.get(12)?,
                last_effect: opt_word(row, 13)?,
                granted: row.get::<_, u32>(14)? > 0,
            },
            line: Line::read(row, 15)?,
            payload_size: row.get(18)?,
        })
    }

    pub(crate) fn by_seq(conn: &Connection, seq: i64) -> Result<Option<Self>, Error> {
        let sql = format!("SELECT {FACTS} FROM jobs WHERE seq = ?1");
        Ok(conn.prepare_cached(&sql)?.query_row([seq], Self::read).optional()?)
    }

    pub(crate) fn by_id(conn: &Connection, id: JobId) -> Result<Option<Self>, Error> {
        let sql = format!("SELECT {FACTS} FROM jobs WHERE id = ?1");
        Ok(conn.prepare_cached(&sql)?.query_row([id.uuid().as_bytes()], Self::read).optional()?)
    }

    pub(crate) fn tenant(&self) -> &Name {
        &self.queue.tenant
    }
}

/// What is stored of an attempt.
#[derive(Debug)]
pub(crate) struct AttemptRow {
    pub(crate) number: u32,
    pub(crate) agent: AgentId,
    pub(crate) repeat: Repeat,
    pub(crate) accepted_at: Option<Timestamp>,
    pub(crate) finished_at: Option<Timestamp>,
    pub(crate) reported: bool,
    /// Whether it may go on at another agent.
    pub(crate) commit: CommitMode,
}

impl AttemptRow {
    pub(crate) fn find(conn: &Connection, job: i64, number: u32) -> Result<Option<Self>, Error> {
        let sql = "SELECT number, agent, repeat, accepted_at, finished_at, reported, commit_mode FROM attempts \
                   WHERE job = ?1 AND number = ?2";
        let read = |row: &Row<'_>| {
            Ok(Self {
                number: row.get(0)?,
                agent: from_uuid(row, 1)?,
                repeat: word(row, 2)?,
                accepted_at: opt_time(row, 3)?,
                finished_at: opt_time(row, 4)?,
                reported: row.get(5)?,
                commit: word(row, 6)?,
            })
        };
        Ok(conn.prepare_cached(sql)?.query_row(params![job, number], read).optional()?)
    }
}
