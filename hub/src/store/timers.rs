//! Deadlines, backoffs, and the planned times of mediations. The writer runs this when the nearest of them is due; nothing is polled.

use super::{
    Error,
    attempts::{self, JobRow},
    row::ms,
    transition::{Event, MAX_HINT, next as transition},
    writer::Tx,
};
use crate::mediations::trigger::times;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _};

// 500 at once: the rest follows in the next transaction.
const EXPIRED: &str = "SELECT seq FROM jobs WHERE state IN ('queued', 'waiting') AND granted = 0 AND deadline <= ?1 ORDER BY deadline LIMIT 500";
const DUE: &str = "SELECT seq FROM jobs WHERE state = 'waiting' AND next_attempt_at <= ?1 ORDER BY next_attempt_at LIMIT 500";
const AHEAD: &str = "SELECT seq FROM jobs WHERE state = 'waiting' AND next_attempt_at > ?1 ORDER BY next_attempt_at DESC LIMIT 500";

const NEXT_EXPIRED: &str = "SELECT deadline FROM jobs WHERE state IN ('queued', 'waiting') AND granted = 0 ORDER BY deadline LIMIT 1";
const NEXT_DUE: &str =
    "SELECT next_attempt_at FROM jobs WHERE state = 'waiting' ORDER BY next_attempt_at LIMIT 1";

/// All of them, for the test of their plans.
#[cfg(test)]
pub(super) const QUERIES: &[&str] = &[EXPIRED, DUE, AHEAD, NEXT_EXPIRED, NEXT_DUE];

/// Expires what was not started in time, and queues again what waited long enough: also what waits for a time that is
/// farther ahead than any wait, since the clock was set back.
pub(super) fn run(tx: &mut Tx<'_>) -> Result<(), Error> {
    let ahead = tx.now.checked_add(MAX_HINT).unwrap_or(Timestamp::MAX);
    for (sql, at, event) in
        [(EXPIRED, tx.now, Event::DeadlinePassed), (DUE, tx.now, Event::Due), (AHEAD, ahead, Event::Due)]
    {
        let jobs: Vec<i64> = {
            let mut statement = tx.conn.prepare_cached(sql)?;
            let rows = statement.query_map([ms(at)], |row| row.get(0))?;
            rows.collect::<Result<_, _>>()?
        };
        for seq in jobs {
            if let Some(job) = JobRow::by_seq(tx.conn, seq)? {
                let decision = transition(&job.facts, &event, tx.now, 0.0);
                attempts::apply(tx, &job, decision)?;
            }
        }
    }
    times::run(tx)
}

/// When [`run`] is next due.
pub(super) fn next(conn: &Connection) -> Result<Option<Timestamp>, Error> {
    let mut nearest = times::next(conn)?;
    for sql in [NEXT_EXPIRED, NEXT_DUE] {
        let at: Option<i64> = conn.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?;
        if let Some(at) = at.and_then(|at| Timestamp::from_millisecond(at).ok()) {
            nearest = Some(nearest.map_or(at, |other: Timestamp| other.min(at)));
        }
    }
    Ok(nearest)
}
