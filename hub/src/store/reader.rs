//! A small pool of connections that read, used on blocking threads.

use super::{Error, schema};
use rusqlite::Connection;
use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Semaphore;

/// How many reads run at once.
const READERS: usize = 4;

/// The pool.
#[derive(Clone)]
pub(super) struct Readers {
    idle: Arc<Mutex<Vec<Connection>>>,
    places: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn open(path: &Path) -> Result<Self, rusqlite::Error> {
        let connections = (0..READERS).map(|_| schema::open_reader(path)).collect::<Result<_, _>>()?;
        Ok(Self { idle: Arc::new(Mutex::new(connections)), places: Arc::new(Semaphore::new(READERS)) })
    }

    /// Runs `read` on one state of the database.
    pub(super) async fn read<T, F>(&self, read: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    {
        let closed = || Error::Internal("the store is closed".to_owned());
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| closed())?;
        let idle = Arc::clone(&self.idle);
        tokio::task::spawn_blocking(move || {
            let lock = || idle.lock().unwrap_or_else(PoisonError::into_inner);
            let conn = lock().pop().ok_or_else(closed)?;
            let result = snapshot(&conn, read);
            lock().push(conn);
            drop(place);
            result
        })
        .await
        .map_err(|e| Error::Internal(format!("a read ended early: {e}")))?
    }
}

fn snapshot<T>(conn: &Connection, read: impl FnOnce(&Connection) -> Result<T, Error>) -> Result<T, Error> {
    let transaction = conn.unchecked_transaction()?;
    read(&transaction)
}
