//! Dispatch: gives queued jobs to agents that have a place for them, inside the writer's transaction, so that the
//! attempt is stored before it is offered and a submission and its offer share one sync.
//!
//! Within a queue (tenant, site, resource) jobs go by priority, then in the order of submission; those that wait for their
//! turn in a line (`lines.rs`) are not in it. Of the agents with a place the one with most of them is chosen, first among
//! those that announced the operation; an operation that nobody announced is offered all the same, so that the agent's
//! policy denies it in plain words.

use super::{
    Error, agents,
    attempts::{self, JobRow},
    row::{self, as_word, ms},
    transition::{Event, next},
    writer::Tx,
};
use crate::{
    model::{AttemptToOffer, ChangeKind, NewJob},
    tunnel::registry::{Place, QueueKey},
};
use passerelle_protocol::{AgentId, CommitMode, Intent, Repeat, SessionId, session::Attempt};
use rusqlite::{Connection, OptionalExtension as _, params};

/// How many offers one queue gets in one transaction.
const AT_ONCE: usize = 256;

/// An offer for a session.
#[derive(Debug)]
pub(crate) struct Assignment {
    pub(super) agent: AgentId,
    pub(super) session: SessionId,
    pub(super) offer: AttemptToOffer,
}

/// Fills the free places for a queue.
pub(super) fn run(tx: &mut Tx<'_>, key: &QueueKey) -> Result<(), Error> {
    let registry = &tx.shared.registry;
    let free = registry.capacity(key).min(AT_ONCE);
    if free == 0 {
        registry.set_backlog(key, true);
        return Ok(());
    }
    // Those for agents that have no place stay; others behind them go.
    let mut passed = 0;
    loop {
        let queued = queued(tx.conn, key, free, passed)?;
        let (found, before) = (queued.len(), passed);
        tx.shared.registry.set_backlog(key, found == free || passed > 0);
        if found == 0 {
            return Ok(());
        }
        let full = give(tx, key, queued, &mut passed)?;
        if full || found < free || passed == before || passed >= AT_ONCE {
            return Ok(());
        }
    }
}

/// Offers what it can of these, in their order; whether no place is left. Counts what it had to pass over.
fn give(tx: &mut Tx<'_>, key: &QueueKey, queued: Vec<Queued>, passed: &mut usize) -> Result<bool, Error> {
    let commit = commit_mode(tx.conn, key)?;
    for Queued { seq, mut job, last, granted } in queued {
        if granted == 0 && job.deadline <= tx.now {
            if let Some(row) = JobRow::by_seq(tx.conn, seq)? {
                attempts::apply(tx, &row, next(&row.facts, &Event::DeadlinePassed, tx.now, 0.0))?;
            }
            continue;
        }
        let number = last + 1;
        let attempt = Attempt::new(job.id, number);
        let only = if last > 0 && granted == 0 { bound_to(tx.conn, seq, last)? } else { None };
        let may = |agent| only.is_none_or(|only| only == agent) && job.may_go_to(agent);
        let Some(place) = tx.shared.registry.reserve(key, &job.operation, attempt, may) else {
            tx.shared.registry.set_backlog(key, true);
            let listed = job.envelope.as_ref().is_some_and(|envelope| envelope.agents.is_some());
            if only.is_some() || listed {
                *passed += 1;
                continue;
            }
            return Ok(true);
        };
        let granted = if granted > 0 { granted_intent(tx.conn, seq, granted)? } else { None };
        // Withdrawn attempts do not count but have numbers: the signed bound holds for the numbers.
        job.max_attempts = job.max_attempts.max(number);
        let (id, tenant, repeat) = (job.id, job.tenant.clone(), job.repeat(place.repeat));
        assign(tx, &place, AttemptToOffer { job, attempt: number, commit, granted });
        store_attempt(tx, seq, number, &place, repeat, commit)?;
        tx.conn
            .prepare_cached(
                "UPDATE jobs SET state = 'offered', attempt = ?2, counted = counted + 1, next_attempt_at = NULL \
                 WHERE seq = ?1",
            )?
            .execute(params![seq, number])?;
        tx.effects.changes.push((tenant, ChangeKind::Job(id)));
    }
    Ok(false)
}

/// The first attempt of a job that is just being submitted, if there is a place for it and nothing that waits has a better
/// claim to it: the job is then stored as offered, and need not be queued and found again.
pub(super) fn at_once(tx: &mut Tx<'_>, job: &NewJob) -> Result<Option<FirstAttempt>, Error> {
    let key = QueueKey::of(job);
    let registry = &tx.shared.registry;
    let waits = tx.touched.contains(&key) || registry.has_backlog(&key);
    if !tx.dispatches || waits || job.deadline <= tx.now || registry.capacity(&key) == 0 {
        return Ok(None);
    }
    let commit = commit_mode(tx.conn, &key)?;
    let may = |agent| job.may_go_to(agent);
    let Some(place) = registry.reserve(&key, &job.operation, Attempt::new(job.id, 1), may) else {
        return Ok(None);
    };
    assign(tx, &place, AttemptToOffer { job: job.clone(), attempt: 1, commit, granted: None });
    let repeat = job.repeat(place.repeat);
    Ok(Some(FirstAttempt { place, repeat, commit }))
}

/// An attempt that is offered with the job's submission.
pub(super) struct FirstAttempt {
    place: Place,
    repeat: Repeat,
    commit: CommitMode,
}

impl FirstAttempt {
    /// Stores it, after its job.
    pub(super) fn store(&self, tx: &Tx<'_>, job: i64) -> Result<(), Error> {
        store_attempt(tx, job, 1, &self.place, self.repeat, self.commit)
    }
}

/// Known to the transaction from here on, which gives the place back if anything fails.
fn assign(tx: &mut Tx<'_>, place: &Place, offer: AttemptToOffer) {
    tx.assignments.push(Assignment { agent: place.agent, session: place.session, offer });
}

fn store_attempt(
    tx: &Tx<'_>,
    job: i64,
    number: u32,
    place: &Place,
    repeat: Repeat,
    commit: CommitMode,
) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT INTO attempts (job, number, agent, epoch, commit_mode, repeat, offered_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            job,
            number,
            place.agent.uuid().as_bytes(),
            i64::try_from(place.epoch).unwrap_or(i64::MAX),
            as_word(&commit),
            as_word(&repeat),
            ms(tx.now)
        ])?;
    Ok(())
}

pub(super) fn queue_sql() -> String {
    format!(
        "SELECT {} FROM jobs j INDEXED BY jobs_queue LEFT JOIN blobs b ON b.id = j.payload \
         LEFT JOIN contents c ON c.blob = j.payload \
         WHERE j.tenant = ?1 AND j.site = ?2 AND j.resource = ?3 AND j.state = 'queued' AND j.ready = 1 \
         ORDER BY j.priority DESC, j.seq LIMIT ?4 OFFSET ?5",
        row::TO_OFFER
    )
}

/// A job that may be offered.
struct Queued {
    seq: i64,
    job: NewJob,
    /// The number of its last attempt.
    last: u32,
    /// The attempt that was granted its effect, or 0.
    granted: u32,
}

fn queued(conn: &Connection, key: &QueueKey, limit: usize, offset: usize) -> Result<Vec<Queued>, Error> {
    let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let mut statement = conn.prepare_cached(&queue_sql())?;
    let rows = statement.query_map(
        params![key.tenant.as_str(), key.site.as_str(), key.resource.as_str(), number(limit), number(offset)],
        |row| {
            let (seq, job, last, granted) = row::to_offer(row)?;
            Ok(Queued { seq, job, last, granted })
        },
    )?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The agent whose journal alone holds the evidence of what the last attempt did: the site had no other one when it was
/// offered, so that it never asked, and its effect is not known.
fn bound_to(conn: &Connection, job: i64, number: u32) -> Result<Option<AgentId>, Error> {
    Ok(conn
        .prepare_cached(
            "SELECT agent FROM attempts WHERE job = ?1 AND number = ?2 AND commit_mode = 'free' \
             AND effect = 'unknown' AND repeat = 'safe'",
        )?
        .query_row(params![job, number], |row| row::from_uuid(row, 0))
        .optional()?)
}

fn granted_intent(conn: &Connection, job: i64, number: u32) -> Result<Option<Intent>, Error> {
    let found = conn
        .prepare_cached("SELECT intent FROM attempts WHERE job = ?1 AND number = ?2")?
        .query_row(params![job, number], |row| row::opt_json(row, 0))
        .optional()?;
    Ok(found.flatten())
}

/// `ask` when the site has more than one enrolled, unrevoked agent: the attempt may then move.
fn commit_mode(conn: &Connection, key: &QueueKey) -> Result<CommitMode, Error> {
    let lone = agents::is_lone(conn, &key.tenant, &key.site)?;
    Ok(if lone { CommitMode::Free } else { CommitMode::Ask })
}
