//! Opening a session in the store: who may come in, the connection's epoch, and the reconciliation of what the agent
//! holds with what the hub believes.
//!
//! | the hub believes | the agent holds it | outcome |
//! |---|---|---|
//! | under way at this agent | yes | keep |
//! | under way at this agent, but the job has ended | yes | stop |
//! | reported | yes | keep: the report comes again and is acknowledged again |
//! | given up, withdrawn, another agent's, unknown | yes | stop |
//! | offered, not accepted | no | withdrawn, queued again at once under a new number |
//! | accepted or running | no | the agent lost its state: `agent_lost`; again if the operation repeats safely |

use super::{
    Error,
    agents::{self, open_attempts},
    attempts::{self, AttemptRow, JobRow},
    clones, grants,
    row::ms,
    triggers,
    writer::Tx,
};
use crate::{
    clock,
    model::ChangeKind,
    tunnel::registry::{Arrival, Command},
};
use passerelle_protocol::{
    AgentId, Held, HeldAction, HeldJob, HeldState, Hello, SessionId, TriggerLease, Welcome, session::Attempt,
};
use rusqlite::params;
use std::collections::{HashMap, HashSet};

/// Whether the session is open.
#[derive(Debug)]
pub(crate) enum Opened {
    /// It is; then what to send after it.
    Welcome {
        welcome: Box<Welcome>,
        cancel: Vec<Attempt>,
        /// The triggers that it may run; nothing for an agent that has none.
        triggers: Option<Vec<TriggerLease>>,
    },
    Revoked,
    TierRequired,
}

/// Opens a session: fences the agent's older one, counts the epoch, reconciles, and registers it for dispatch.
pub(crate) fn open(tx: &mut Tx<'_>, hello: &Hello, arrival: Arrival) -> Result<Opened, Error> {
    let id = arrival.agent;
    let Some(agent) = agents::agent(tx.conn, id)?.filter(|agent| agent.revoked_at.is_none()) else {
        return Ok(Opened::Revoked);
    };
    if !agent.enterprise {
        return Ok(Opened::TierRequired);
    }
    // From here on nothing is dispatched to the older session; what it still reports is taken by job and attempt.
    let clone = tx.shared.registry.is_another(id, &arrival.instance);
    let wait_s = clones::wait(tx.conn, id, tx.now)?;
    tx.shared.registry.send(id, Command::Fenced { clone, wait_s });
    tx.shared.registry.forget(id);
    let epoch: i64 = tx
        .conn
        .prepare_cached(
            "UPDATE agents SET epoch = epoch + 1, connected_at = ?2, last_seen_at = ?2, version = ?3, name = ?4 \
             WHERE id = ?1 RETURNING epoch",
        )?
        .query_row(
            params![
                id.uuid().as_bytes(),
                ms(tx.now),
                hello.agent_version.chars().take(64).collect::<String>(),
                hello.name.as_str()
            ],
            |row| row.get(0),
        )?;
    let epoch = u64::try_from(epoch).unwrap_or_default();
    let (held, kept, cancel) = reconcile(tx, id, hello)?;
    let session = arrival.session;
    let queues = tx.shared.registry.register(arrival, epoch, hello, &kept);
    tx.effects.queues.extend(queues);
    tx.effects.changes.push((agent.tenant.clone(), ChangeKind::Agent(id)));
    triggers::announced(tx, id, hello)?;
    let triggers = if hello.triggers.is_empty() { None } else { Some(triggers::refresh(tx, id)?) };
    let welcome = Welcome {
        version: 1,
        session,
        epoch,
        tenant: agent.tenant,
        site: agent.site,
        server_time: clock::now(),
        held,
    };
    Ok(Opened::Welcome { welcome: Box::new(welcome), cancel, triggers })
}

type Reconciled = (Vec<Held>, Vec<(Attempt, passerelle_protocol::Name)>, Vec<Attempt>);

fn reconcile(tx: &mut Tx<'_>, agent: AgentId, hello: &Hello) -> Result<Reconciled, Error> {
    let open = open_attempts(tx.conn, agent)?;
    let believed: HashMap<Attempt, (JobRow, AttemptRow)> =
        open.into_iter().map(|(job, row)| (Attempt::new(job.id, row.number), (job, row))).collect();
    let mut seen = HashSet::new();
    let (mut held, mut kept, mut cancel) = (Vec::new(), Vec::new(), Vec::new());
    for holding in &hello.held {
        let attempt = Attempt::new(holding.job, holding.attempt);
        if !seen.insert(attempt) {
            continue;
        }
        let action = match believed.get(&attempt) {
            Some((job, _)) if job.facts.state.is_settled() || job.attempt != attempt.number => {
                HeldAction::Stop
            }
            Some((job, row)) => {
                take_up(tx, job, row, holding)?;
                kept.push((attempt, job.queue.resource.clone()));
                if job.facts.cancel_requested {
                    cancel.push(attempt);
                }
                HeldAction::Keep
            }
            None if is_reported(tx, agent, attempt)? => HeldAction::Keep,
            None => HeldAction::Stop,
        };
        let granted = action == HeldAction::Stop && grants::was_granted(tx, agent, attempt)?;
        held.push(Held { job: holding.job, attempt: holding.attempt, action, granted });
    }
    let mut absent: Vec<_> = believed.into_iter().filter(|(attempt, _)| !seen.contains(attempt)).collect();
    absent.sort_unstable_by_key(|(_, (job, _))| job.seq);
    for (_, (job, row)) in absent {
        attempts::not_held(tx, &job, &row, row.repeat)?;
    }
    Ok((held, kept, cancel))
}

/// Notes what the agent says of an attempt that goes on.
fn take_up(tx: &mut Tx<'_>, job: &JobRow, row: &AttemptRow, holding: &HeldJob) -> Result<(), Error> {
    match holding.state {
        HeldState::Accepted | HeldState::Finished => attempts::mark_accepted(tx, job, row.number),
        HeldState::Running => attempts::mark_started(tx, job, row.number, tx.now),
    }
}

fn is_reported(tx: &Tx<'_>, agent: AgentId, attempt: Attempt) -> Result<bool, Error> {
    let Some(job) = JobRow::by_id(tx.conn, attempt.job)? else { return Ok(false) };
    match AttemptRow::find(tx.conn, job.seq, attempt.number)?.filter(|row| row.reported) {
        Some(row) => agents::stands_for(tx.conn, agent, row.agent),
        None => Ok(false),
    }
}

/// Notes that a session has ended.
pub(crate) fn closed(tx: &mut Tx<'_>, agent: AgentId, session: SessionId) -> Result<(), Error> {
    tx.shared.registry.remove(agent, session);
    if let Some(record) = agents::agent(tx.conn, agent)? {
        tx.conn
            .prepare_cached("UPDATE agents SET last_seen_at = ?2 WHERE id = ?1")?
            .execute(params![agent.uuid().as_bytes(), ms(tx.now)])?;
        triggers::left(tx, agent)?;
        tx.effects.changes.push((record.tenant, ChangeKind::Agent(agent)));
    }
    Ok(())
}
