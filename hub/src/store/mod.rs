//! The hub's store: one SQLite database and the files beside it.
//!
//! All writes go through one thread that shares a sync among them (`writer.rs`) and dispatches jobs in the same
//! transaction (`dispatch.rs`); reads have connections of their own (`reader.rs`). What a job becomes is decided in one
//! pure place (`transition.rs`). Another process may administer the same database meanwhile: its commits are noticed
//! within 250 ms.

pub(crate) mod absences;
mod admin;
mod agent_keys;
mod agents;
mod apps;
pub(crate) mod attempts;
pub(crate) mod business;
mod clones;
pub(crate) mod cursor;
mod dispatch;
pub mod due;
mod error;
mod events;
mod facts;
pub(crate) mod grants;
pub(crate) mod identity;
pub(crate) mod jobs;
pub(crate) mod keyring;
mod leases;
pub(crate) mod lines;
mod memory;
pub(crate) mod notices;
mod open;
pub mod quota;
mod reader;
pub(crate) mod received;
pub(crate) mod restored;
pub mod retention;
pub(crate) mod row;
pub(crate) mod schema;
mod senders;
pub(crate) mod sessions;
pub(crate) mod signed;
pub mod standard;
pub(crate) mod submission;
pub mod subscriptions;
mod timers;
pub(crate) mod transition;
pub(crate) mod triggers;
mod wait;
mod work;
pub(crate) mod writer;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod received_tests;
#[cfg(test)]
mod tests;

pub use admin::APPLICATIONS;
pub use error::{Error, OpenError};
pub use transition::Resolution;

use crate::{
    blobs::Files,
    model::{Change, Job},
    tunnel::registry::Registry,
};
use bytes::Bytes;
use memory::{Caches, Waiters};
use rusqlite::Connection;
use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, oneshot};
use work::{Order, Write};
use writer::Tx;

/// The database's file in the data folder.
pub const DATABASE: &str = "hub.sqlite";

/// How many writes may wait for the writer; more wait before they are queued.
const QUEUED_WRITES: usize = 2048;

/// The answer to a submission.
#[derive(Debug, Clone, PartialEq)]
pub struct Submitted {
    /// The job as stored.
    pub job: Job,
    /// False if its idempotency key was seen before.
    pub created: bool,
}

/// Where a payload is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Small content, kept in the database.
    Bytes(Bytes),
    /// A file.
    File(PathBuf),
}

/// Figures for metrics and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Transactions committed.
    pub commits: u64,
    /// Writes carried by them.
    pub writes: u64,
    /// Writes that wait for the writer.
    pub queued: u64,
    /// The size of the database and its log.
    pub database_bytes: u64,
    /// The size of all files of payloads and outputs.
    pub blob_bytes: u64,
    /// How often one process of an agent fenced another that lives.
    pub clones: u64,
    /// Events stored.
    pub events: u64,
    /// Events that were stored before.
    pub events_repeated: u64,
    /// Events that were refused.
    pub events_refused: u64,
}

/// What the writer shares with everybody else.
pub(crate) struct Shared {
    pub(crate) registry: Registry,
    pub(crate) caches: Caches,
    pub(crate) waiters: Waiters,
    pub(crate) shares: quota::Shares,
    pub(crate) changes: broadcast::Sender<Change>,
    pub(crate) keyring: keyring::Keyring,
    pub(crate) events: EventCounts,
    /// Mediation runs that are to go on.
    pub(crate) runs: Arc<crate::mediations::store::RunQueue>,
    pub(crate) outbox: notices::Outbox,
    /// The largest payload that is taken.
    pub(crate) max_blob: AtomicU64,
    /// When this process opened the store.
    pub(crate) opened_at: jiff::Timestamp,
    commits: AtomicU64,
    writes: AtomicU64,
    clones: AtomicU64,
}

/// What became of the events of agents.
#[derive(Debug, Default)]
pub(crate) struct EventCounts {
    pub(crate) stored: AtomicU64,
    pub(crate) duplicates: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// The store: a cheap handle. The writer ends with the last one, or with [`Store::close`].
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    data: PathBuf,
    files: Files,
    audience: String,
    shared: Arc<Shared>,
    readers: reader::Readers,
    orders: Mutex<Option<mpsc::Sender<Order>>>,
    places: Arc<Semaphore>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Held while this process serves.
    _serving: Option<File>,
}

impl Store {
    /// The data folder.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.inner.data
    }

    /// The `aud` of the agents' tokens: `urn:passerelle:hub:<uuid>`.
    #[must_use]
    pub fn audience(&self) -> &str {
        &self.inner.audience
    }

    /// How long an agent may be silent before its attempts move to another one of the site.
    pub fn set_lease(&self, lease: std::time::Duration) {
        self.shared().registry.set_lease(lease);
    }

    /// The largest payload of an event from now on.
    pub(crate) fn set_max_blob(&self, bytes: u64) {
        self.shared().max_blob.store(bytes, Ordering::Relaxed);
    }

    /// How much the store did, and how much it holds.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = self.shared();
        let size = |name: &str| std::fs::metadata(self.inner.data.join(name)).map_or(0, |found| found.len());
        Stats {
            queued: (QUEUED_WRITES.saturating_sub(self.inner.places.available_permits())) as u64,
            database_bytes: size(DATABASE) + size(&format!("{DATABASE}-wal")),
            blob_bytes: self.files().bytes(),
            commits: shared.commits.load(Ordering::Relaxed),
            writes: shared.writes.load(Ordering::Relaxed),
            clones: shared.clones.load(Ordering::Relaxed),
            events: shared.events.stored.load(Ordering::Relaxed),
            events_repeated: shared.events.duplicates.load(Ordering::Relaxed),
            events_refused: shared.events.refused.load(Ordering::Relaxed),
        }
    }

    /// Whether the store takes writes, for readiness.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn check(&self) -> Result<(), Error> {
        self.write(|tx| {
            let sql = "INSERT INTO meta (key, value) VALUES ('checked_at', ?1) \
                       ON CONFLICT (key) DO UPDATE SET value = excluded.value";
            tx.conn.prepare_cached(sql)?.execute([tx.now.to_string()])?;
            Ok(())
        })
        .await
    }

    /// Takes no more writes, commits those under way, and ends the writer.
    pub async fn close(&self) {
        let lock = |orders: &Mutex<Option<mpsc::Sender<Order>>>| {
            drop(orders.lock().unwrap_or_else(PoisonError::into_inner).take());
        };
        lock(&self.inner.orders);
        let thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && tokio::task::spawn_blocking(move || thread.join()).await.is_err()
        {
            tracing::error!("The store's writer ended by a fault");
        }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    /// The same, for a task of its own.
    pub(crate) fn shared_handle(&self) -> Arc<Shared> {
        Arc::clone(&self.inner.shared)
    }

    pub(crate) fn files(&self) -> &Files {
        &self.inner.files
    }

    pub(crate) async fn read<T, F>(&self, read: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    {
        self.inner.readers.read(read).await
    }

    /// Runs `write` in a transaction and answers after its commit.
    pub(crate) async fn write<T, F>(&self, write: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
    {
        let place = self.place().await?;
        let (answer, answered) = oneshot::channel();
        // Nobody waits for the answer any more: the write stands all the same.
        self.order(place, false, write, move |result| drop(answer.send(result)))?;
        answered.await.map_err(|_| closed())?
    }

    /// A place in the queue of writes.
    pub(crate) async fn place(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.inner.places).acquire_owned().await.map_err(|_| closed())
    }

    /// The same, if there is one now.
    pub(crate) fn try_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.inner.places).try_acquire_owned().ok()
    }

    /// Queues a write; `done` is called on the writer's thread after the commit, in the order of the queue.
    pub(crate) fn order<T, F, D>(
        &self,
        place: OwnedSemaphorePermit,
        lazy: bool,
        write: F,
        done: D,
    ) -> Result<(), Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
        D: FnOnce(Result<T, Error>) + Send + 'static,
    {
        let work = Box::new(Write { write: Some(write), result: None, done });
        let orders = self.inner.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let orders = orders.as_ref().ok_or_else(closed)?;
        orders.send(Order { work, lazy, place: Some(place) }).map_err(|_| closed())
    }
}

fn closed() -> Error {
    Error::Internal("the store is closed".to_owned())
}
