//! What a hub that was restored from a backup cannot know of the jobs that the backup has as open.
//!
//! An agent that carried one out since answers its next offer with what its journal has kept. At a site of several agents
//! that offer may go to another one, which would do it a second time. So at such sites whether the job took effect is not
//! known, and that is said.

use super::{
    Error, Store,
    attempts::{self, AttemptRow, JobRow},
    events,
    row::ms,
    transition::{Event, next},
    writer::Tx,
};
use jiff::Timestamp;
use passerelle_protocol::session::Attempt;
use rusqlite::{Connection, OptionalExtension as _};

/// How many jobs one transaction settles.
const AT_ONCE: i64 = 500;

const DOUBTFUL: &str = "FROM jobs INDEXED BY jobs_open WHERE finished_at IS NULL AND (tenant, site) IN \
                        (SELECT tenant, site FROM agents WHERE revoked_at IS NULL GROUP BY tenant, site HAVING count(*) > 1)";

/// Notes in a copy of a backup when that was made, for [`Store::settle_restored`]; how many jobs that will be.
pub(crate) fn mark(copy: &Connection, made_at: Timestamp) -> rusqlite::Result<u64> {
    copy.execute_batch("CREATE TABLE restored (made_at INTEGER NOT NULL) STRICT")?;
    copy.execute("INSERT INTO restored (made_at) VALUES (?1)", [ms(made_at)])?;
    events::leave_numbers_out(copy)?;
    let jobs: i64 = copy.query_row(&format!("SELECT count(*) {DOUBTFUL}"), [], |row| row.get(0))?;
    Ok(u64::try_from(jobs).unwrap_or_default())
}

impl Store {
    /// Settles, once after a restore, the jobs of which nobody can tell whether they took effect since the backup; how many.
    /// Call it before agents connect.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub async fn settle_restored(&self) -> Result<u64, Error> {
        let (mut all, mut after) = (0, Some(0));
        while let Some(seq) = after {
            let settled = self.write(move |tx| settle(tx, seq)).await?;
            all += settled.0;
            after = settled.1;
        }
        Ok(all)
    }
}

/// Settles some of those after a job; how many, and the last one if there may be more.
fn settle(tx: &mut Tx<'_>, after: i64) -> Result<(u64, Option<i64>), Error> {
    let marked = tx.conn.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'restored'")?.exists([])?;
    let made_at: Option<i64> = match marked {
        true => tx.conn.query_row("SELECT made_at FROM restored", [], |row| row.get(0)).optional()?,
        false => return Ok((0, None)),
    };
    let made_at =
        made_at.and_then(|at| Timestamp::from_millisecond(at).ok()).unwrap_or(Timestamp::UNIX_EPOCH);
    let jobs: Vec<i64> = {
        let sql = format!("SELECT seq {DOUBTFUL} AND seq > ?1 ORDER BY seq LIMIT ?2");
        let mut statement = tx.conn.prepare(&sql)?;
        let rows = statement.query_map([after, AT_ONCE], |row| row.get(0))?;
        rows.collect::<Result<_, _>>()?
    };
    let Some(last) = jobs.last().copied() else {
        tx.conn.execute_batch("DROP TABLE restored")?;
        return Ok((0, None));
    };
    for seq in &jobs {
        let Some(job) = JobRow::by_seq(tx.conn, *seq)? else { continue };
        let event = Event::Restored { made_at };
        match AttemptRow::find(tx.conn, job.seq, job.attempt)? {
            Some(row) if row.finished_at.is_none() => {
                attempts::release(tx, row.agent, Attempt::new(job.id, row.number));
                attempts::give_up(tx, &job, &row, event)?;
            }
            _ => {
                attempts::apply(tx, &job, next(&job.facts, &event, tx.now, 0.0))?;
            }
        }
    }
    Ok((jobs.len() as u64, Some(last)))
}
