//! Opening the store: the folder, its locks, the database, the keys, and the writer's thread.

use super::{
    DATABASE, EventCounts, Inner, OpenError, QUEUED_WRITES, Shared, Store, attempts, identity, keyring,
    memory::{Caches, Waiters},
    notices, quota, reader, schema,
    writer::Writer,
};
use crate::{blobs::Files, tunnel::registry::Registry};
use rusqlite::{Connection, OptionalExtension as _};
use std::{
    fs::File,
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicU64, mpsc},
};
use tokio::sync::{Semaphore, broadcast};

/// How far a listener for changes may lag behind.
const CHANGES: usize = 4096;

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
