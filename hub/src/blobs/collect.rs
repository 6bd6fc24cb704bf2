//! Collection: removes what the retention no longer keeps, beside the hub's work.
//!
//! Rows go first, a few in a transaction; a content's file goes after the commit that took its last name, and only if
//! nobody is about to name it again (`Files::alone`). Whatever is cut short leaves rows for the next pass, or files
//! without a name for [`Blobs::sweep_files`]. Between two steps the collection rests for longer than the step took, so
//! it never has more than a fifth of the writer's time.

use super::Blobs;
use crate::mediations::store::retention as mediations;
use crate::store::{
    Error, business, received, retention,
    retention::{Key, Removed, Retention},
    writer::Tx,
};
use jiff::Timestamp;
use passerelle_protocol::Sha256;
use rusqlite::Connection;
use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

/// The rest after a step, in times of the step.
const REST: u32 = 4;
/// The shortest and the longest rest.
const RESTS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));

/// How long the sequence of what happened to mediation runs is kept: as long as runs can be.
const TOLD: Duration = Duration::from_secs(31 * 24 * 3600);
/// How long the ids of events are remembered, so that none is stored twice.
const PAST_EVENTS: Duration = Duration::from_secs(400 * 24 * 3600);

/// What a pass removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Collected {
    /// Settled jobs.
    pub jobs: u64,
    /// Blobs: uploaded ones, and payloads that came with jobs.
    pub blobs: u64,
    /// Outputs of jobs.
    pub outputs: u64,
    /// Uploads that were never finished.
    pub uploads: u64,
    /// Events of triggers.
    pub events: u64,
    /// Mediation runs.
    pub runs: u64,
    /// Files of content.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Collected {
    /// Whether nothing was removed.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

type Find<K> = fn(&Connection, K, Timestamp) -> Result<Vec<K>, Error>;
type Remove<K> = fn(&mut Tx<'_>, &[K], Timestamp) -> Result<Removed, Error>;

impl Blobs {
    /// One pass: removes all that was to be kept until `now` at most.
    ///
    /// # Errors
    /// If the database or a file cannot be used; the next pass goes on.
    pub async fn collect(&self, keep: &Retention, now: Timestamp) -> Result<Collected, Error> {
        let before = |kept: Duration| now.checked_sub(kept).unwrap_or(Timestamp::MIN);
        let mut done = Collected::default();
        done.jobs =
            self.walk(0, retention::old_jobs, retention::remove_jobs, before(keep.jobs), &mut done).await?;
        let outputs = before(keep.outputs);
        done.outputs =
            self.walk(0, retention::old_outputs, retention::remove_outputs, outputs, &mut done).await?;
        let find: Find<Key> = retention::old_output_files;
        done.outputs += self.walk([0; 16], find, retention::remove_output_files, outputs, &mut done).await?;
        done.events = self
            .walk(0, received::old_events, received::remove_events, before(keep.events), &mut done)
            .await?;
        done.events += self
            .walk(0, business::old_events, business::remove_events, before(keep.events), &mut done)
            .await?;
        // Before blobs: what a run made goes with it.
        done.runs = self.walk(0, mediations::old_runs, mediations::remove_runs, now, &mut done).await?;
        let told = before(TOLD);
        while self.store.write(move |tx| mediations::forget_changes(tx, told)).await? {
            rest(Instant::now()).await;
        }
        let past = before(PAST_EVENTS.max(keep.events));
        while self.store.write(move |tx| received::forget_past(tx, past)).await? {
            rest(Instant::now()).await;
        }
        let find: Find<Key> = retention::unneeded_blobs;
        done.blobs = self.walk([0; 16], find, retention::remove_blobs, before(keep.blobs), &mut done).await?;
        done.uploads = self.give_up_uploads(keep.uploads, now, &mut done).await?;
        loop {
            let started = Instant::now();
            if !self.store.write(retention::give_back).await? {
                return Ok(done);
            }
            rest(started).await;
        }
    }

    /// Goes through what `find` finds, in its order.
    async fn walk<K>(
        &self,
        mut after: K,
        find: Find<K>,
        remove: Remove<K>,
        before: Timestamp,
        done: &mut Collected,
    ) -> Result<u64, Error>
    where
        K: Copy + Send + Sync + 'static,
    {
        let mut count = 0;
        loop {
            let started = Instant::now();
            let found = self.store.read(move |conn| find(conn, after, before)).await?;
            let Some(last) = found.last() else { return Ok(count) };
            after = *last;
            let more = found.len() == retention::AT_ONCE;
            let removed = self.store.write(move |tx| remove(tx, &found, before)).await?;
            count += removed.count;
            self.remove_loose(removed.loose, done).await?;
            if !more {
                return Ok(count);
            }
            rest(started).await;
        }
    }

    pub(super) async fn remove_loose(&self, loose: Vec<Sha256>, done: &mut Collected) -> Result<(), Error> {
        for sha256 in loose {
            if let Some(bytes) = self.remove_content(sha256).await? {
                done.files += 1;
                done.bytes += bytes;
            }
        }
        Ok(())
    }

    /// Removes a content's file if nobody names it, or is about to.
    pub(super) async fn remove_content(&self, sha256: Sha256) -> Result<Option<u64>, Error> {
        let files = self.store.files().clone();
        // Taken: an upload of the same content is about to name it. If it fails, the sweep finds the file.
        let Some(alone) = files.alone(sha256) else { return Ok(None) };
        // Named since its last name went, perhaps.
        if self.store.read(move |conn| retention::unnamed(conn, &[sha256])).await?.is_empty() {
            return Ok(None);
        }
        tokio::task::spawn_blocking(move || {
            let removed = files.remove(sha256);
            drop(alone);
            removed
        })
        .await
        .map_err(|e| Error::Internal(format!("a file operation ended early: {e}")))?
        .map_err(Error::from)
    }

    /// Removes files of content that nobody names, left by a crash: those older than `older`, so that a database that was
    /// restored from an old backup by mistake does not cost them at once. Counts all that stay. Call it at the start and
    /// daily.
    ///
    /// # Errors
    /// If the folder or the database cannot be used.
    pub async fn sweep_files(&self, older: Duration, now: SystemTime) -> Result<Collected, Error> {
        let mut done = Collected::default();
        let files = self.store.files().clone();
        let folders = list(&files, |files| files.folders()).await?;
        let mut total = 0;
        for folder in folders {
            let started = Instant::now();
            let found = list(&files, move |files| files.contents(&folder)).await?;
            total += found.iter().map(|content| content.size).sum::<u64>();
            let old: Vec<Sha256> = found
                .iter()
                .filter(|content| now.duration_since(content.modified).is_ok_and(|age| age >= older))
                .map(|content| content.sha256)
                .collect();
            let loose = self.store.read(move |conn| retention::unnamed(conn, &old)).await?;
            self.remove_loose(loose, &mut done).await?;
            rest(started).await;
        }
        files.counted(total.saturating_sub(done.bytes));
        Ok(done)
    }
}

async fn list<T: Send + 'static>(
    files: &super::Files,
    look: impl FnOnce(&super::Files) -> std::io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let files = files.clone();
    tokio::task::spawn_blocking(move || look(&files))
        .await
        .map_err(|e| Error::Internal(format!("a look at the files ended early: {e}")))?
        .map_err(Error::from)
}

async fn rest(started: Instant) {
    let rest = started.elapsed().saturating_mul(REST);
    tokio::time::sleep(rest.clamp(RESTS.0, RESTS.1)).await;
}

/// Files in the uploads folder that nothing was added to for so long.
pub(super) fn stale_files(
    folder: &std::path::Path,
    older: Duration,
    now: SystemTime,
) -> std::io::Result<Vec<PathBuf>> {
    let mut stale = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // Meanwhile complete, and gone.
        let Ok(metadata) = entry.metadata() else { continue };
        if now.duration_since(metadata.modified()?).is_ok_and(|age| age >= older) {
            stale.push(entry.path());
        }
    }
    Ok(stale)
}
