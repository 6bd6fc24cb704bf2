//! Who adds to an upload: one request at a time.
//!
//! A newer request ends an older one that is silent, whose connection may be gone. One that bytes still come from goes on,
//! and the newer one is refused: if each ended the other, none of two clients would ever get anywhere.

use crate::store::Error;
use passerelle_protocol::BlobId;
use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// A request from which nothing came for so long is ended by a newer one.
const SILENT: Duration = Duration::from_millis(500);
/// How long a newer request waits for one that is not silent. What came from a connection that was cut is read by then.
const PATIENCE: Duration = Duration::from_secs(2);

/// The request that adds to an upload.
#[derive(Debug, Clone)]
struct Holder {
    end: CancellationToken,
    /// When bytes came last.
    seen: Instant,
    /// Where the upload stands with them, while they come.
    at: Option<u64>,
}

impl Holder {
    fn new() -> Self {
        Self { end: CancellationToken::new(), seen: Instant::now(), at: None }
    }
}

#[derive(Debug)]
struct Shared {
    lock: Arc<tokio::sync::Mutex<()>>,
    holder: Mutex<Holder>,
}

impl Shared {
    fn holder(&self) -> MutexGuard<'_, Holder> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turns of the uploads under way in this process.
static TURNS: LazyLock<Mutex<HashMap<BlobId, Weak<Shared>>>> = LazyLock::new(Mutex::default);

/// The right to add to an upload, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    shared: Arc<Shared>,
    /// A newer request waits, and this one is silent.
    pub(super) ended: CancellationToken,
    _guard: tokio::sync::OwnedMutexGuard<()>,
}

impl Turn {
    /// Waits until nobody else adds to this upload, and ends who is silent. `from`: where the request wants to go on; one
    /// that is wrong about it ends nobody.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Offset`].
    pub(super) async fn take(id: BlobId, from: Option<u64>) -> Result<Self, Error> {
        let shared = {
            let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let shared = turns.get(&id).and_then(Weak::upgrade).unwrap_or_else(|| {
                Arc::new(Shared { lock: Arc::default(), holder: Mutex::new(Holder::new()) })
            });
            turns.insert(id, Arc::downgrade(&shared));
            shared
        };
        let until = Instant::now() + PATIENCE;
        let guard = loop {
            let Holder { end, seen, at } = shared.holder().clone();
            let now = Instant::now();
            let look = match at {
                Some(at) if now < seen + SILENT => {
                    if now >= until {
                        return Err(Error::Busy(at));
                    }
                    until.min(seen + SILENT)
                }
                Some(at) if from.is_some_and(|from| from != at) => return Err(Error::Offset(at)),
                Some(_) => {
                    end.cancel();
                    now + SILENT
                }
                // It is about to begin, or all is here and is being checked.
                None => now + SILENT,
            };
            if let Ok(guard) = timeout_at(look, Arc::clone(&shared.lock).lock_owned()).await {
                break guard;
            }
        };
        let holder = Holder::new();
        let ended = holder.end.clone();
        *shared.holder() = holder;
        Ok(Self { shared, ended, _guard: guard })
    }

    /// Bytes come, from this offset on.
    pub(super) fn begin(&self, offset: u64) {
        let mut holder = self.shared.holder();
        (holder.seen, holder.at) = (Instant::now(), Some(offset));
    }

    /// So many came.
    pub(super) fn came(&self, count: usize) {
        let mut holder = self.shared.holder();
        holder.seen = Instant::now();
        holder.at = holder.at.map(|at| at.saturating_add(count as u64));
    }

    /// No more come.
    pub(super) fn stop(&self) {
        self.shared.holder().at = None;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.stop();
    }
}
