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
mod dispatch;
mod events;
mod facts;
pub(crate) mod identity;
pub(crate) mod jobs;
pub(crate) mod keyring;
mod leases;
pub(crate) mod lines;
mod memory;
pub(crate) mod notices;
pub mod quota;
mod reader;
pub(crate) mod received;
pub mod retention;
pub(crate) mod row;
pub(crate) mod schema;
mod senders;
pub(crate) mod sessions;
mod signed;
pub mod standard;
pub mod subscriptions;
mod timers;
pub(crate) mod transition;
pub(crate) mod triggers;
mod wait;
pub(crate) mod writer;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod received_tests;
#[cfg(test)]
mod tests;

pub use admin::APPLICATIONS;
pub use transition::Resolution;

use crate::{
    blobs::Files,
    model::{Change, Job},
    tunnel::registry::Registry,
};
use bytes::Bytes;
use memory::{Caches, Waiters};
use passerelle_protocol::{ApiCode, BlobId, Name, Sha256};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _};
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
use writer::{Order, Tx, Write, Writer};

/// The database's file in the data folder.
pub const DATABASE: &str = "hub.sqlite";

/// How many writes may wait for the writer; more wait before they are queued.
const QUEUED_WRITES: usize = 2048;
/// How far a listener for changes may lag behind.
const CHANGES: usize = 4096;

/// Why the store did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The tenant has no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The state forbids it.
    #[error("{0}")]
    Conflict(String),
    /// The request itself is wrong: a malformed cursor, a body that breaks off.
    #[error("{0}")]
    BadRequest(String),
    /// More bytes than announced.
    #[error("{0}")]
    TooLarge(String),
    /// The idempotency key was seen with another body.
    #[error("the idempotency key was used before with another body: use a new key")]
    IdempotencyMismatch,
    /// The tenant has no such site.
    #[error("site {0} is unknown: create an enrolment token for it first")]
    SiteUnknown(Name),
    /// No valid credentials (enrolment token).
    #[error("{0}")]
    Unauthorized(String),
    /// Hybrid mode needs the Enterprise tier.
    #[error("hybrid mode needs the Enterprise tier, tenant {0} has another")]
    TierRequired(Name),
    /// The application has no hybrid mode.
    #[error("{0}")]
    ApplicationIncompatible(String),
    /// Not the digest that was announced.
    #[error("the content has the SHA-256 {actual}, announced was {expected}")]
    DigestMismatch {
        /// As announced.
        expected: Sha256,
        /// As found.
        actual: Sha256,
    },
    /// An upload goes on at another offset.
    #[error("the upload stands at offset {0}")]
    Offset(u64),
    /// The hub's disk is full.
    #[error("the hub's disk is full: free some space or raise the volume's size")]
    Full,
    /// The envelope that the client signed allows no more.
    #[error("{0}")]
    EnvelopeExpired(String),
    /// The tenant has as much as it may have.
    #[error("{0}")]
    Quota(String),
    /// A fault of the hub.
    #[error("internal fault: {0}")]
    Internal(String),
}

impl Error {
    pub(crate) fn no_blob(id: BlobId) -> Self {
        Self::NotFound(format!(
            "there is no blob {id}, or it was not used for so long that it was removed: upload it with POST /v1/blobs"
        ))
    }

    /// The code of its problem document.
    #[must_use]
    pub fn code(&self) -> ApiCode {
        match self {
            Self::NotFound(_) => ApiCode::NotFound,
            Self::Conflict(_) | Self::Offset(_) => ApiCode::Conflict,
            Self::BadRequest(_) => ApiCode::BadRequest,
            Self::TooLarge(_) => ApiCode::TooLarge,
            Self::IdempotencyMismatch => ApiCode::IdempotencyMismatch,
            Self::SiteUnknown(_) => ApiCode::SiteUnknown,
            Self::Unauthorized(_) => ApiCode::Unauthorized,
            Self::TierRequired(_) => ApiCode::TierRequired,
            Self::ApplicationIncompatible(_) => ApiCode::ApplicationIncompatible,
            Self::DigestMismatch { .. } => ApiCode::DigestMismatch,
            Self::EnvelopeExpired(_) => ApiCode::EnvelopeExpired,
            Self::Full | Self::Quota(_) => ApiCode::Quota,
            Self::Internal(_) => ApiCode::Internal,
        }
    }
}

/// Whether SQLite says that the file is not what it should be.
fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        // The shared memory beside the database could not grow: SQLite has no word of its own for that disk being full.
        let no_room = error
            .sqlite_error()
            .is_some_and(|cause| cause.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE);
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            _ if no_room => Self::Full,
            _ if is_damage(&error) => Self::Internal(format!(
                "the database is damaged ({error}): end the hub and restore the last backup with `passerelle-hub admin \
                 restore FILE`"
            )),
            _ => Self::Internal(format!("database: {error}")),
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Internal(format!("disk: {error}")),
        }
    }
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(pub(crate) String);

impl OpenError {
    pub(crate) fn database(path: &Path, error: &rusqlite::Error) -> Self {
        if is_damage(error) {
            return Self::damaged(path, &error.to_string());
        }
        let hint = match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => ": free some space on its disk",
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                ": give the hub's user the right to write it and its folder"
            }
            _ => "",
        };
        Self(format!("{}: {error}{hint}", path.display()))
    }

    fn damaged(path: &Path, damage: &str) -> Self {
        Self(format!(
            "{}: the database is damaged ({}): the hub does not serve from it, and changed nothing; restore the last \
             backup with `passerelle-hub admin restore FILE`, which keeps the damaged files beside it",
            path.display(),
            damage.trim().replace('\n', "; ")
        ))
    }
}

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
    /// Opens (makes, migrates) the store in the folder `data`, to administer it; another process may serve from it.
    ///
    /// # Errors
    /// If the folder, the database or the signing key cannot be used; the text says which and why.
    pub fn open(data: &Path) -> Result<Self, OpenError> {
        Self::open_as(data, false)
    }

    /// Opens it to serve: takes the lock that one serving hub holds, keeps the timers, dispatches.
    ///
    /// # Errors
    /// Those of [`Self::open`], and if another hub serves from the folder.
    pub fn open_to_serve(data: &Path) -> Result<Self, OpenError> {
        Self::open_as(data, true)
    }

    fn open_as(data: &Path, serve: bool) -> Result<Self, OpenError> {
        identity::make_folders(data)?;
        let serving = if serve { Some(Self::lock_to_serve(data)?) } else { None };
        let path = data.join(DATABASE);
        let told = |error: rusqlite::Error| OpenError::database(&path, &error);
        let (conn, keyring, audience) = {
            // Two processes may start at the same time on an empty folder.
            let _first = identity::lock(&data.join("setup.lock"), true)?;
            crate::admin::restore::refuse_unfinished(data)?;
            identity::make_private(&path)?;
            let conn = if serve { schema::open_to_serve(&path)? } else { schema::open_writer(&path)? };
            let audience = audience(&conn).map_err(told)?;
            let keyring = keyring::Keyring::open(data, &conn)?;
            // A crash may have come between a rotation and this.
            keyring::destroy_old(data, &conn)
                .map_err(|error| OpenError(format!("{}: an old signing key: {error}", data.display())))?;
            (conn, keyring, audience)
        };
        let readers = reader::Readers::open(&path).map_err(told)?;
        let outbox = notices::Outbox::read(&conn)
            .map_err(|error| OpenError(format!("{}: {error}", path.display())))?;
        let shared = Arc::new(Shared {
            registry: Registry::default(),
            caches: Caches::default(),
            waiters: Waiters::default(),
            shares: quota::Shares::default(),
            changes: broadcast::Sender::new(CHANGES),
            keyring,
            events: EventCounts::default(),
            runs: Arc::default(),
            outbox,
            max_blob: AtomicU64::new(u64::MAX),
            opened_at: crate::clock::now(),
            commits: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            clones: AtomicU64::new(0),
        });
        let (orders, queue) = mpsc::channel();
        let failed = |e: &dyn std::fmt::Display| OpenError(format!("{}: {e}", path.display()));
        if serve {
            // Whatever agents still hold takes up room at its resource until they come back, or their lease is over.
            shared.registry.expect_back(attempts::all_open(&conn).map_err(|e| failed(&e))?);
        }
        let writer = Writer::new(conn, queue, Arc::clone(&shared), serve).map_err(|e| failed(&e))?;
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| failed(&e))?;
        let inner = Inner {
            data: data.to_owned(),
            files: Files::new(data),
            audience,
            shared,
            readers,
            orders: Mutex::new(Some(orders)),
            places: Arc::new(Semaphore::new(QUEUED_WRITES)),
            thread: Mutex::new(Some(thread)),
            _serving: serving,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The lock that keeps all others from serving from this folder.
    pub(crate) fn lock_to_serve(data: &Path) -> Result<File, OpenError> {
        identity::lock(&data.join("hub.lock"), false)?.ok_or_else(|| {
            OpenError(format!(
                "{}: another hub serves from this folder: stop it first, or name another folder with --data",
                data.display()
            ))
        })
    }

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

/// The hub's id, made once.
fn audience(conn: &Connection) -> Result<String, rusqlite::Error> {
    let sql = "SELECT value FROM meta WHERE key = 'audience'";
    if let Some(audience) = conn.query_row(sql, [], |row| row.get(0)).optional()? {
        return Ok(audience);
    }
    let audience = format!("urn:passerelle:hub:{}", crate::clock::new_uuid7().hyphenated());
    conn.execute("INSERT INTO meta (key, value) VALUES ('audience', ?1)", [&audience])?;
    Ok(audience)
}
