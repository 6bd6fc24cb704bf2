//! Dispatch: gives queued jobs to agents that have a place for them, inside the writer's transaction, so that the
//! attempt is stored before it is offered and a submission and its offer share one sync.
//!
//! Within a queue (tenant, site, resource) jobs go by priority, then in the order of submission. Of the agents with a
//! place the one with most of them is chosen, first among those that announced the operation; an operation that nobody
//! announced is offered all the same, so that the agent's policy denies it in plain words.

use super::{
    Error,
    attempts::{self, JobRow},
    row::{self, as_word, ms},
    transition::{Event, next},
    writer::Tx,
};
use crate::{
    model::{AttemptToOffer, ChangeKind},
    tunnel::registry::QueueKey,
};
use passerelle_protocol::{AgentId, CommitMode, SessionId, session::Attempt};
use rusqlite::{Connection, params};

/// How many offers one queue gets in one transaction.
const AT_ONCE: usize = 256;

/// An offer for a session.
#[derive(Debug)]
pub(super) struct Assignment {
    pub(super) agent: AgentId,
    pub(super) session: SessionId,
    pub(super) offer: AttemptToOffer,
}

/// Fills the free places for a queue.
pub(super) fn run(tx: &mut Tx<'_>, key: &QueueKey, out: &mut Vec<Assignment>) -> Result<(), Error> {
    let registry = &tx.shared.registry;
    let free = registry.capacity(key).min(AT_ONCE);
    if free == 0 {
        registry.set_backlog(key, true);
        return Ok(());
    }
    let queued = queued(tx.conn, key, free)?;
    registry.set_backlog(key, queued.len() == free);
    let commit = if queued.is_empty() { CommitMode::Free } else { commit_mode(tx.conn, key)? };
    for (seq, mut job, last) in queued {
        if job.deadline <= tx.now {
            if let Some(row) = JobRow::by_seq(tx.conn, seq)? {
                attempts::apply(tx, &row, next(&row.facts, &Event::DeadlinePassed, tx.now, 0.0))?;
            }
            continue;
        }
        let number = last + 1;
        let attempt = Attempt::new(job.id, number);
        let Some(place) = tx.shared.registry.reserve(key, &job.operation, attempt) else { break };
        // Withdrawn attempts do not count but have numbers: the signed bound holds for the numbers.
        job.max_attempts = job.max_attempts.max(number);
        let (id, tenant) = (job.id, job.tenant.clone());
        // Known to the caller at once, which gives the place back if anything fails from here on.
        let offer = AttemptToOffer { job, attempt: number, commit };
        out.push(Assignment { agent: place.agent, session: place.session, offer });
        tx.conn
            .prepare_cached(
                "INSERT INTO attempts (job, number, agent, epoch, commit_mode, repeat, offered_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                seq,
                number,
                place.agent.uuid().as_bytes(),
                i64::try_from(place.epoch).unwrap_or(i64::MAX),
                as_word(&commit),
                as_word(&place.repeat),
                ms(tx.now)
            ])?;
        tx.conn
            .prepare_cached(
                "UPDATE jobs SET state = 'offered', attempt = ?2, counted = counted + 1, next_attempt_at = NULL \
                 WHERE seq = ?1",
            )?
            .execute(params![seq, number])?;
        tx.effects.changes.push((tenant, ChangeKind::Job(id)));
    }
    Ok(())
}

pub(super) fn queue_sql() -> String {
    format!(
        "SELECT {} FROM jobs j INDEXED BY jobs_queue LEFT JOIN blobs b ON b.id = j.payload \
         LEFT JOIN contents c ON c.blob = j.payload \
         WHERE j.tenant = ?1 AND j.site = ?2 AND j.resource = ?3 AND j.state = 'queued' \
         ORDER BY j.priority DESC, j.seq LIMIT ?4",
        row::TO_OFFER
    )
}

fn queued(
    conn: &Connection,
    key: &QueueKey,
    limit: usize,
) -> Result<Vec<(i64, crate::model::NewJob, u32)>, Error> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = conn.prepare_cached(&queue_sql())?;
    let rows = statement.query_map(
        params![key.tenant.as_str(), key.site.as_str(), key.resource.as_str(), limit],
        row::to_offer,
    )?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// `ask` when the site has more than one enrolled, unrevoked agent: the attempt may then move.
fn commit_mode(conn: &Connection, key: &QueueKey) -> Result<CommitMode, Error> {
    let agents: u32 = conn
        .prepare_cached("SELECT count(*) FROM agents WHERE tenant = ?1 AND site = ?2 AND revoked_at IS NULL")?
        .query_row([key.tenant.as_str(), key.site.as_str()], |row| row.get(0))?;
    Ok(if agents > 1 { CommitMode::Ask } else { CommitMode::Free })
}
