//! The journal's one thread: it drains the queue into a transaction, commits once, and only then answers.

use super::{JournalError, Key};
use crate::audit::{
    Entry,
    chain::{self, Cost},
    pending::Pending,
};
use rusqlite::Connection;
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};
use tokio::sync::{mpsc, oneshot};

/// How many writes share a transaction at most.
const BATCH: usize = 512;
/// How many calls may wait; past it callers wait their turn.
const QUEUE: usize = 1024;

type Answer = Box<dyn FnOnce(Result<(), JournalError>) + Send>;
/// Does its work in the open transaction, or hears why there is none.
type Write = Box<dyn FnOnce(Result<&Connection, JournalError>) -> Answer + Send>;
type Read = Box<dyn FnOnce(&Connection) + Send>;
type Lazy = Box<dyn FnOnce(&Connection) -> rusqlite::Result<usize> + Send>;
/// A lazy write, and the attempt whose end makes it needless.
type Waiting = (Option<Key>, Lazy);

enum Call {
    Write(Write),
    Read(Read),
    Close(oneshot::Sender<()>),
}

pub(super) struct Shared {
    lazy: Mutex<Vec<Waiting>>,
    commits: AtomicU64,
    healthy: AtomicBool,
    pub(super) audit: Pending,
    pub(super) cost: Arc<Cost>,
}

impl Shared {
    pub(super) fn take_lazy(&self) -> Vec<Lazy> {
        let waiting = std::mem::take(&mut *self.lazy.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().map(|(_, lazy)| lazy).collect()
    }
}

/// The handle of the thread.
pub struct Writer {
    queue: mpsc::Sender<Call>,
    shared: Arc<Shared>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("healthy", &self.healthy()).finish_non_exhaustive()
    }
}

impl Writer {
    /// Starts the thread.
    pub fn start(connection: Connection) -> Result<Self, JournalError> {
        let (queue, calls) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            lazy: Mutex::default(),
            commits: AtomicU64::new(0),
            healthy: AtomicBool::new(true),
            audit: Pending::default(),
            cost: Arc::default(),
        });
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                let closing = serve(&connection, calls, &theirs);
                // Whoever waits for the end may open the file again.
                drop(connection);
                if let Some(done) = closing {
                    let _ = done.send(());
                }
            })
            .map_err(|e| JournalError::Storage(format!("no thread for the journal: {e}")))?;
        Ok(Self { queue, shared })
    }

    /// Runs `work` inside a transaction; returns when it is committed.
    pub async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, JournalError> {
        self.write_then(work, |_| ()).await
    }

    /// The same; calls `then` on the thread once it is committed, in the order of the writes.
    pub async fn write_then<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        then: impl FnOnce(&T) + Send + 'static,
    ) -> Result<T, JournalError> {
        let (answer, wait) = oneshot::channel();
        let write: Write = Box::new(move |connection| {
            let result = connection.and_then(|connection| work(connection).map_err(JournalError::from));
            Box::new(move |committed| {
                let result = result.and_then(|value| committed.map(|()| value));
                if let Ok(value) = &result {
                    then(value);
                }
                // The caller may have gone; the row is written all the same.
                drop(answer.send(result));
            })
        });
        self.queue.send(Call::Write(write)).await.map_err(|_| JournalError::Closed)?;
        wait.await.map_err(|_| JournalError::Closed)?
    }

    /// Has what waits written now; nobody waits for it.
    pub fn commit_soon(&self) {
        // A full queue means that a transaction is about to begin anyway.
        drop(self.queue.try_send(Call::Write(Box::new(|_| Box::new(|_| ())))));
    }

    /// Runs `work` on what is committed.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, JournalError> {
        let (answer, wait) = oneshot::channel();
        let read: Read = Box::new(move |connection| {
            drop(answer.send(work(connection).map_err(JournalError::from)));
        });
        self.queue.send(Call::Read(read)).await.map_err(|_| JournalError::Closed)?;
        wait.await.map_err(|_| JournalError::Closed)?
    }

    /// Leaves `work` for the next transaction. One that fails is forgotten.
    pub fn lazy(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<usize> + Send + 'static) {
        self.waiting().push((None, Box::new(work)));
    }

    /// The same, unless the attempt ends before that: see [`Self::supersede`].
    pub fn lazy_until_finished(
        &self,
        attempt: Key,
        work: impl FnOnce(&Connection) -> rusqlite::Result<usize> + Send + 'static,
    ) {
        self.waiting().push((Some(attempt), Box::new(work)));
    }

    /// Drops what waits of an attempt that is about to be written as finished.
    pub fn supersede(&self, attempt: Key) {
        self.waiting().retain(|(of, _)| *of != Some(attempt));
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.shared.lazy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something lazy waits.
    pub fn has_lazy(&self) -> bool {
        !self.waiting().is_empty() || self.shared.audit.is_waiting(Instant::now())
    }

    /// Rows of the audit that wait for the next transaction: in it they come before the writes that were called later.
    pub fn audit(&self) -> &Pending {
        &self.shared.audit
    }

    /// What the audit has cost.
    pub fn cost(&self) -> Arc<Cost> {
        Arc::clone(&self.shared.cost)
    }

    /// How many calls wait.
    pub fn queue_len(&self) -> usize {
        QUEUE.saturating_sub(self.queue.capacity())
    }

    /// Whether the last commit succeeded.
    pub fn healthy(&self) -> bool {
        self.shared.healthy.load(Ordering::Relaxed)
    }

    /// How many transactions were committed.
    #[cfg(test)]
    pub fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    /// What the thread shares with its handle.
    #[cfg(test)]
    pub(super) fn shared_for_test(&self) -> &Shared {
        &self.shared
    }

    /// Ends the thread once everything before is on disk; later calls fail.
    pub async fn close(&self) {
        let (done, wait) = oneshot::channel();
        if self.queue.send(Call::Close(done)).await.is_ok() {
            // An error means that the thread ended already.
            drop(wait.await);
        }
    }
}

/// Serves until it is asked to end, or nobody is left to ask; who asked is told by the caller.
fn serve(
    connection: &Connection,
    mut calls: mpsc::Receiver<Call>,
    shared: &Shared,
) -> Option<oneshot::Sender<()>> {
    let mut closing = None;
    while closing.is_none() {
        let Some(first) = calls.blocking_recv() else { break };
        let mut writes = Vec::new();
        let mut next = Some(first);
        while let Some(call) = next {
            match call {
                Call::Write(write) => writes.push(write),
                // Reads see what is committed and need not wait for the sync of this batch.
                Call::Read(read) => read(connection),
                Call::Close(done) => {
                    closing = Some(done);
                    break;
                }
            }
            next = if writes.len() < BATCH { calls.try_recv().ok() } else { None };
        }
        commit(connection, writes, shared, false);
    }
    commit(connection, Vec::new(), shared, true);
    closing
}

/// Runs a statement that is kept prepared.
fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

fn commit(connection: &Connection, writes: Vec<Write>, shared: &Shared, last: bool) {
    let lazy = shared.take_lazy();
    let audit = shared.audit.take(last);
    if writes.is_empty() && lazy.is_empty() && audit.is_empty() {
        return;
    }
    let (answers, result) = transaction(connection, writes, lazy, &audit, &shared.cost);
    if result.is_err() {
        shared.audit.put_back(audit);
    }
    shared.commits.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
    if let Err(error) = &result {
        if shared.healthy.swap(false, Ordering::Relaxed) {
            tracing::error!(%error, "The journal cannot be written; no job is taken until it can");
        }
    } else if !shared.healthy.swap(true, Ordering::Relaxed) {
        tracing::info!("The journal can be written again");
    }
    for answer in answers {
        answer(result.clone());
    }
}

fn transaction(
    connection: &Connection,
    writes: Vec<Write>,
    lazy: Vec<Lazy>,
    audit: &[Entry],
    cost: &Cost,
) -> (Vec<Answer>, Result<(), JournalError>) {
    if let Err(error) = run(connection, "BEGIN IMMEDIATE") {
        let error = JournalError::from(error);
        return (writes.into_iter().map(|write| write(Err(error.clone()))).collect(), Err(error));
    }
    for work in lazy {
        if let Err(error) = work(connection) {
            tracing::debug!(%error, "A lazy write failed and is forgotten");
        }
    }
    let noted = audit.iter().try_for_each(|entry| chain::append(connection, entry, cost));
    let answers: Vec<Answer> = writes.into_iter().map(|write| write(Ok(connection))).collect();
    // A full disk may end the transaction inside a statement: then nothing of it holds.
    if connection.is_autocommit() {
        return (
            answers,
            Err(JournalError::Storage("the transaction was rolled back (disk full?)".to_owned())),
        );
    }
    // A chain that lacks a row must not go on: then nothing of the transaction holds.
    let result = noted.and_then(|()| run(connection, "COMMIT")).map_err(JournalError::from);
    if result.is_err() && !connection.is_autocommit() && connection.execute_batch("ROLLBACK").is_err() {
        tracing::warn!("A failed transaction could not be rolled back");
    }
    (answers, result)
}
