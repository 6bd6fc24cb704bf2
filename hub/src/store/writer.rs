//! The one thread that writes, with group commit.
//!
//! Writes queue up while the transaction before them is being synced; then up to [`BATCH`] of them run in one
//! transaction, each in a savepoint of its own so that a refused one leaves no trace, and are answered after the
//! commit. *Lazy* writes (an acceptance, a progress) are owed no answer: they ride on the next commit, or start one
//! after [`LAZY`]. At the end of each transaction the queues that changed are dispatched (`dispatch.rs`), so that a
//! submission and its offer share one sync.
//!
//! The same thread keeps the timers (deadlines, backoffs, agents that asked for a pause) and notices what other
//! processes committed, through `PRAGMA data_version`.

use super::{
    Error,
    agents::{self, Unwelcome},
    dispatch::{self, Assignment},
    events, leases, notices, row, timers,
    work::Order,
};
use crate::{
    clock,
    mediations::store::OpenRun,
    model::ChangeKind,
    tunnel::registry::{Command, QueueKey},
};
use jiff::{SignedDuration, Timestamp};
use passerelle_protocol::{AgentId, JobId, Name, session::Attempt};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

/// How many writes share a transaction, at most.
const BATCH: usize = 512;
/// How long lazy writes wait for another one to ride with.
const LAZY: Duration = Duration::from_millis(20);
/// How often other processes' commits are looked for.
const POLL: Duration = Duration::from_millis(200);
/// When a transaction that failed is dispatched again.
const AGAIN: Duration = Duration::from_secs(1);
/// A clock that goes back by more than this was set.
const SET_BACK: SignedDuration = SignedDuration::from_secs(30);

/// What a write sees.
pub(crate) struct Tx<'a> {
    /// The connection, inside the transaction.
    pub(crate) conn: &'a Connection,
    /// The time of the transaction.
    pub(crate) now: Timestamp,
    /// What follows from the write once it is committed.
    pub(crate) effects: Effects,
    /// What the hub keeps in memory.
    pub(crate) shared: &'a super::Shared,
    /// Whether offers are made at all: not by an administrator's process.
    pub(crate) dispatches: bool,
    /// Offers to be made once the transaction is committed.
    pub(crate) assignments: &'a mut Vec<Assignment>,
    /// Queues in which something may wait since the transaction began.
    pub(crate) touched: BTreeSet<QueueKey>,
}

/// What follows from a write.
#[derive(Default)]
pub(crate) struct Effects {
    /// Things that changed: each becomes one event of the transaction.
    pub(crate) changes: Vec<(Name, ChangeKind)>,
    /// Jobs that came to a settled state.
    pub(crate) settled: Vec<JobId>,
    /// Queues to look at.
    pub(crate) queues: Vec<QueueKey>,
    /// Messages to live agents.
    pub(crate) commands: Vec<(AgentId, Command)>,
    /// The earliest time at which a timer is due.
    pub(crate) due: Option<Timestamp>,
    /// Keys, tokens, agents or tenants changed: the caches forget them.
    pub(crate) forget: bool,
    /// Agents may be welcome no more: their sessions end.
    pub(crate) dismiss: bool,
    /// The hub has a new signing key.
    pub(crate) keys: bool,
    /// Mediation runs that are to go on.
    pub(crate) runs: Vec<OpenRun>,
    /// Something is to be delivered to subscribers.
    pub(crate) deliveries: bool,
}

impl Effects {
    pub(crate) fn due_at(&mut self, at: Timestamp) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    fn merge(&mut self, other: Self) {
        self.changes.extend(other.changes);
        self.settled.extend(other.settled);
        self.queues.extend(other.queues);
        self.commands.extend(other.commands);
        self.forget |= other.forget;
        self.dismiss |= other.dismiss;
        self.keys |= other.keys;
        self.runs.extend(other.runs);
        self.deliveries |= other.deliveries;
        if let Some(due) = other.due {
            self.due_at(due);
        }
    }
}

/// The thread's state.
pub(super) struct Writer {
    conn: Connection,
    orders: Receiver<Order>,
    shared: Arc<super::Shared>,
    /// Whether this process serves: dispatches and keeps the timers.
    serving: bool,
    due: Option<Timestamp>,
    queues: BTreeSet<QueueKey>,
    last_event: i64,
    data_version: i64,
    polled: Instant,
    /// The clock when it was last looked at.
    clock: Timestamp,
}

impl Writer {
    pub(super) fn new(
        conn: Connection,
        orders: Receiver<Order>,
        shared: Arc<super::Shared>,
        serving: bool,
    ) -> Result<Self, Error> {
        let last_event = events::last(&conn)?;
        let data_version = data_version(&conn)?;
        // Whatever ran out while no hub was up is due at once.
        let due = serving.then(clock::now);
        let queues = BTreeSet::new();
        Ok(Self {
            conn,
            orders,
            shared,
            serving,
            due,
            queues,
            last_event,
            data_version,
            polled: Instant::now(),
            clock: clock::now(),
        })
    }

    pub(super) fn run(mut self) {
        loop {
            let batch = match self.orders.recv_timeout(self.idle()) {
                Ok(first) => self.collect(first),
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if self.polled.elapsed() >= POLL {
                self.polled = Instant::now();
                self.look_for_others();
            }
            if self.serving {
                self.queues.extend(self.shared.registry.holds_over());
            }
            let due = self.serving && self.is_due();
            let silent = if self.serving { self.shared.registry.silent() } else { Vec::new() };
            if !batch.is_empty() || due || !silent.is_empty() || !self.queues.is_empty() {
                self.commit(batch, due, &silent);
            }
        }
        tracing::debug!("Store writer ended");
    }

    /// Whether a timer is due, or the clock was set back: what waits by it may be too far ahead now.
    fn is_due(&mut self) -> bool {
        let now = clock::now();
        let was = std::mem::replace(&mut self.clock, now);
        let is_set_back = was.duration_since(now) > SET_BACK;
        if is_set_back {
            tracing::warn!(from = %was, to = %now, "The clock was set back");
        }
        is_set_back || self.due.is_some_and(|due| due <= now)
    }

    /// How long to wait for a write.
    fn idle(&self) -> Duration {
        let until_due = self.due.filter(|_| self.serving).map_or(POLL, |due| {
            Duration::try_from(due.duration_since(clock::now())).unwrap_or(Duration::ZERO)
        });
        let until_hold = if self.serving { self.shared.registry.next_hold() } else { None };
        until_due.min(until_hold.unwrap_or(POLL)).min(POLL)
    }

    /// Takes what is queued already; waits a little if all of it is lazy.
    fn collect(&self, first: Order) -> Vec<Order> {
        let mut batch = vec![first];
        self.drain(&mut batch);
        let ride = Instant::now() + LAZY;
        while batch.len() < BATCH && batch.iter().all(|order| order.lazy) {
            match self.orders.recv_timeout(ride.saturating_duration_since(Instant::now())) {
                Ok(order) => {
                    batch.push(order);
                    self.drain(&mut batch);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        for order in &mut batch {
            order.place = None;
        }
        batch
    }

    fn drain(&self, batch: &mut Vec<Order>) {
        while batch.len() < BATCH
            && let Ok(order) = self.orders.try_recv()
        {
            batch.push(order);
        }
    }

    /// One transaction: the writes, the timers that are due, the dispatch; then the answers.
    fn commit(&mut self, mut batch: Vec<Order>, due: bool, silent: &[AgentId]) {
        let queues = std::mem::take(&mut self.queues);
        let shared = Arc::clone(&self.shared);
        let mut assignments = Vec::new();
        let done = self.transaction(&mut batch, due, silent, &queues, &mut assignments);
        shared.writes.fetch_add(batch.len() as u64, Ordering::Relaxed);
        match done {
            Ok((effects, changes)) => {
                shared.commits.fetch_add(1, Ordering::Relaxed);
                if effects.forget {
                    shared.caches.forget();
                }
                if effects.keys {
                    self.take_up_keys();
                }
                // The answers first: an acknowledged report frees the place that an offer may take.
                for order in batch {
                    order.work.finish(Ok(()));
                }
                for (agent, command) in effects.commands {
                    shared.registry.send(agent, command);
                }
                for Assignment { agent, session, offer } in assignments {
                    shared.registry.send_to(agent, session, Command::Offer(Box::new(offer)));
                }
                if effects.deliveries {
                    shared.outbox.bell.notify_one();
                }
                if effects.dismiss {
                    self.dismiss_unwelcome();
                }
                shared.runs.push(effects.runs);
                for id in effects.settled {
                    self.wake(id);
                }
                for change in changes {
                    // Nobody listens: nobody misses it.
                    drop(shared.changes.send(change));
                }
            }
            Err(error) => {
                tracing::error!(error = %error, writes = batch.len(), "Could not commit to the hub's store");
                for Assignment { agent, session: _, offer } in &assignments {
                    shared.registry.release(*agent, Attempt::new(offer.job.id, offer.attempt));
                    self.queues.insert(QueueKey::of(&offer.job));
                }
                self.queues.extend(queues);
                self.due = clock::now().checked_add(AGAIN).ok();
                for order in batch {
                    order.work.finish(Err(error.clone()));
                }
            }
        }
    }

    /// Hands a job to those who wait for it. Read here, once, rather than by each of them on a thread of its own.
    fn wake(&self, id: JobId) {
        self.shared.waiters.wake(id, || {
            row::job_of_any_tenant(&self.conn, id)
                .map_err(
                    |error| tracing::error!(job_id = %id, error = %error, "Could not read a settled job"),
                )
                .ok()
        });
    }

    fn transaction(
        &mut self,
        batch: &mut [Order],
        due: bool,
        silent: &[AgentId],
        queues: &BTreeSet<QueueKey>,
        assignments: &mut Vec<Assignment>,
    ) -> Result<(Effects, Vec<crate::model::Change>), Error> {
        let transaction = Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate)?;
        let shared = Arc::clone(&self.shared);
        let mut tx = Tx {
            conn: &transaction,
            now: clock::now(),
            effects: Effects::default(),
            shared: &shared,
            dispatches: self.serving,
            assignments,
            touched: queues.clone(),
        };
        let mut total = Effects::default();
        for order in batch.iter_mut() {
            savepoint(&mut tx, &mut total, |tx| order.work.run(tx))?;
        }
        let timed = due && savepoint(&mut tx, &mut total, |tx| log_failure("timers", timers::run(tx)))?;
        for agent in silent {
            savepoint(&mut tx, &mut total, |tx| log_failure("leases", leases::run_out(tx, *agent)))?;
        }
        if self.serving {
            total.queues.extend(queues.iter().cloned());
            let keys: BTreeSet<QueueKey> = std::mem::take(&mut total.queues).into_iter().collect();
            for key in keys {
                savepoint(&mut tx, &mut total, |tx| log_failure("dispatch", dispatch::run(tx, &key)))?;
            }
        }
        if !total.settled.is_empty() && shared.outbox.is_subscribed() {
            let settled = total.settled.clone();
            savepoint(&mut tx, &mut total, |tx| log_failure("notices", notices::jobs_settled(tx, &settled)))?;
        }
        let changes = events::store(tx.conn, &mut self.last_event, &total.changes)?;
        let next = match due {
            false => self.due,
            true if timed => timers::next(tx.conn)?,
            // What failed is due still: not at once again, for ever.
            true => tx.now.checked_add(AGAIN).ok(),
        };
        transaction.commit()?;
        self.due = match (next, total.due) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Ok((total, changes))
    }

    /// Takes up what other processes committed: revocations, new keys, and their events.
    fn look_for_others(&mut self) {
        let seen = match data_version(&self.conn) {
            Ok(seen) if seen != self.data_version => seen,
            Ok(_) => return,
            Err(error) => {
                tracing::error!(error = %error, "Could not look for commits of other processes");
                return;
            }
        };
        self.data_version = seen;
        self.shared.caches.forget();
        match events::after(&self.conn, self.last_event) {
            Ok(changes) => {
                for change in changes {
                    self.last_event = self.last_event.max(i64::try_from(change.seq).unwrap_or(i64::MAX));
                    if let ChangeKind::Job(id) = change.kind {
                        self.wake(id);
                    }
                    drop(self.shared.changes.send(change));
                }
            }
            Err(error) => tracing::error!(error = %error, "Could not read other processes' events"),
        }
        if self.serving {
            self.dismiss_unwelcome();
            self.take_up_keys();
            self.queues.extend(self.shared.registry.queues());
            self.due = Some(clock::now());
        }
    }
}

impl Writer {
    /// Ends the sessions of agents that were revoked, or whose tenant's tier has no hybrid mode any more.
    fn dismiss_unwelcome(&mut self) {
        if !self.serving {
            return;
        }
        let registry = &self.shared.registry;
        match agents::unwelcome(&self.conn, &registry.known()) {
            Ok(unwelcome) => {
                for (agent, why) in unwelcome {
                    match why {
                        Unwelcome::Revoked => {
                            registry.send(agent, Command::Revoked);
                            self.queues.extend(registry.lost(agent));
                        }
                        Unwelcome::Tier => {
                            registry.send(agent, Command::TierRequired);
                            registry.forget(agent);
                        }
                    }
                }
            }
            Err(error) => {
                tracing::error!(error = %error, "Could not look for agents that are not welcome any more")
            }
        }
    }

    /// Signs with the newest key from here on, and has every session tell of it.
    fn take_up_keys(&self) {
        match self.shared.keyring.reload(&self.conn) {
            Ok(true) if self.serving => self.shared.registry.tell_keys(),
            Ok(_) => {}
            Err(error) => {
                tracing::error!(error = %error, "Could not take up the new signing key: the old one signs on")
            }
        }
    }
}

fn log_failure(what: &'static str, done: Result<(), Error>) -> bool {
    if let Err(error) = &done {
        tracing::error!(error = %error, what, "Could not do the store's own work");
    }
    done.is_ok()
}

/// Runs `work` in a savepoint; what it wrote and its effects are taken back if it says false.
///
/// # Errors
/// If the whole transaction is lost (SQLite rolls back by itself when the disk is full).
fn savepoint(
    tx: &mut Tx<'_>,
    total: &mut Effects,
    work: impl FnOnce(&mut Tx<'_>) -> bool,
) -> Result<bool, Error> {
    tx.conn.prepare_cached("SAVEPOINT one")?.execute([])?;
    let before = tx.assignments.len();
    let keep = work(tx);
    if tx.conn.is_autocommit() {
        return Err(Error::Full);
    }
    let effects = std::mem::take(&mut tx.effects);
    if keep {
        tx.touched.extend(effects.queues.iter().cloned());
        total.merge(effects);
    } else {
        for Assignment { agent, session: _, offer } in tx.assignments.drain(before..) {
            tx.shared.registry.release(agent, Attempt::new(offer.job.id, offer.attempt));
        }
        tx.conn.prepare_cached("ROLLBACK TO one")?.execute([])?;
    }
    tx.conn.prepare_cached("RELEASE one")?.execute([])?;
    Ok(keep)
}

fn data_version(conn: &Connection) -> Result<i64, Error> {
    Ok(conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?)
}
