//! Payloads on their way, in `state/spool/`: `JOB-ATTEMPT.in` from the hub, `JOB-ATTEMPT.out` to it. Names come from
//! our ids alone. Small outputs never touch the disk.
//!
//! A download is not synced: what a power cut leaves of it is found out by its digest and fetched again. An output is
//! synced before its attempt counts as finished, since nothing else has it.

use bytes::Bytes;
use passerelle_protocol::{limits::MAX_INLINE_PAYLOAD, session::Attempt};
use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// The spool folder.
#[derive(Debug, Clone)]
pub struct Spool {
    path: PathBuf,
    /// Attempts whose output may be in a file: the others need no look at the disk.
    outputs: Arc<Mutex<BTreeSet<Attempt>>>,
}

impl Spool {
    /// Makes the folder if need be.
    pub fn open(state: &Path) -> io::Result<Self> {
        let path = state.join("spool");
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(Self { path, outputs: Arc::default() })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where an attempt's payload is.
    pub fn input(&self, attempt: Attempt) -> PathBuf {
        self.path.join(format!("{}-{}.in", attempt.job, attempt.number))
    }

    /// Where an attempt's output is.
    pub fn output(&self, attempt: Attempt) -> PathBuf {
        self.path.join(format!("{}-{}.out", attempt.job, attempt.number))
    }

    /// Removes an attempt's payload.
    pub fn forget_input(&self, attempt: Attempt) {
        remove(&self.input(attempt));
    }

    fn outputs(&self) -> MutexGuard<'_, BTreeSet<Attempt>> {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that an attempt's output is in its file.
    pub fn holds_output(&self, attempt: Attempt) {
        self.outputs().insert(attempt);
    }

    /// Removes an attempt's output, if it has one here.
    pub fn forget_output(&self, attempt: Attempt) {
        if self.outputs().remove(&attempt) {
            remove(&self.output(attempt));
        }
    }

    /// Removes files of attempts that the journal does not hold: left by a crash after the acknowledgement.
    pub fn sweep(&self, held: &BTreeSet<Attempt>) -> io::Result<()> {
        let kept: BTreeSet<PathBuf> = held.iter().flat_map(|a| [self.input(*a), self.output(*a)]).collect();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if !kept.contains(&path) {
                remove(&path);
            }
        }
        self.outputs().extend(held.iter().filter(|attempt| self.output(**attempt).exists()));
        Ok(())
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, file = %path.display(), "A spool file cannot be removed");
    }
}

/// Where a finished output is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// In memory: it travels with the report.
    Memory(Bytes),
    /// In its spool file, synced: it is uploaded before the report.
    File,
}

#[derive(Debug)]
enum Content {
    Memory(Vec<u8>),
    File(tokio::fs::File),
}

/// Takes an output: in memory up to what a report carries, then in a file.
#[derive(Debug, Clone)]
pub struct OutputSpool {
    path: PathBuf,
    content: Arc<Mutex<Content>>,
}

impl OutputSpool {
    /// An empty output.
    pub fn new(path: PathBuf) -> Self {
        Self { path, content: Arc::new(Mutex::new(Content::Memory(Vec::new()))) }
    }

    /// Where the output is, after its writer was shut down; a file is synced, with its folder.
    pub fn store(self) -> io::Result<Stored> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *content {
            Content::Memory(bytes) => Ok(Stored::Memory(std::mem::take(bytes).into())),
            Content::File(_) => {
                File::open(&self.path)?.sync_all()?;
                if let Some(folder) = self.path.parent() {
                    File::open(folder)?.sync_all()?;
                }
                Ok(Stored::File)
            }
        }
    }

    /// The attempt made no output that counts.
    pub fn discard(&self) {
        if let Content::File(_) = &*self.content.lock().unwrap_or_else(PoisonError::into_inner) {
            remove(&self.path);
        }
    }
}

impl AsyncWrite for OutputSpool {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        if let Content::Memory(memory) = &mut *content {
            if memory.len() + bytes.len() <= MAX_INLINE_PAYLOAD {
                memory.extend_from_slice(bytes);
                return Poll::Ready(Ok(bytes.len()));
            }
            // Once per output, 256 KiB into the page cache.
            let mut file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&self.path)?;
            file.write_all(memory)?;
            *content = Content::File(tokio::fs::File::from_std(file));
        }
        match &mut *content {
            Content::File(file) => Pin::new(file).poll_write(cx, bytes),
            Content::Memory(_) => Poll::Ready(Err(io::Error::other("unreachable: the output is in a file"))),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.content.lock().unwrap_or_else(PoisonError::into_inner) {
            Content::File(file) => Pin::new(file).poll_flush(cx),
            Content::Memory(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.content.lock().unwrap_or_else(PoisonError::into_inner) {
            Content::File(file) => {
                ready!(Pin::new(&mut *file).poll_flush(cx))?;
                Pin::new(file).poll_shutdown(cx)
            }
            Content::Memory(_) => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use passerelle_protocol::JobId;
    use tokio::io::AsyncWriteExt as _;

    fn attempt(n: u8) -> Attempt {
        Attempt::new(JobId::new(1, &[n; 10]), 1)
    }

    #[tokio::test]
    async fn a_small_output_stays_in_memory_and_a_large_one_goes_to_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        let small = OutputSpool::new(spool.output(attempt(1)));
        let mut writer = small.clone();
        writer.write_all(&vec![7; MAX_INLINE_PAYLOAD]).await.unwrap();
        writer.shutdown().await.unwrap();
        assert_eq!(small.store().unwrap(), Stored::Memory(vec![7; MAX_INLINE_PAYLOAD].into()));
        assert!(!spool.output(attempt(1)).exists());

        let large = OutputSpool::new(spool.output(attempt(2)));
        let mut writer = large.clone();
        writer.write_all(&vec![1; MAX_INLINE_PAYLOAD]).await.unwrap();
        writer.write_all(&[2; 10]).await.unwrap();
        writer.shutdown().await.unwrap();
        assert_eq!(large.store().unwrap(), Stored::File);
        let bytes = fs::read(spool.output(attempt(2))).unwrap();
        assert_eq!((bytes.len(), bytes.last()), (MAX_INLINE_PAYLOAD + 10, Some(&2)));
    }

    #[test]
    fn files_of_attempts_that_are_not_held_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        for n in 1..=2 {
            fs::write(spool.input(attempt(n)), b"x").unwrap();
        }
        spool.sweep(&BTreeSet::from([attempt(2)])).unwrap();
        assert!(!spool.input(attempt(1)).exists() && spool.input(attempt(2)).exists());
        spool.forget_input(attempt(2));
        assert!(!spool.input(attempt(2)).exists());
    }

    #[test]
    fn an_output_found_at_the_start_or_kept_since_goes_with_its_acknowledgement() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        for n in 1..=2 {
            fs::write(spool.output(attempt(n)), b"x").unwrap();
        }
        spool.sweep(&BTreeSet::from([attempt(1), attempt(2), attempt(3)])).unwrap();
        fs::write(spool.output(attempt(4)), b"x").unwrap();
        spool.holds_output(attempt(4));
        for n in 1..=4 {
            spool.forget_output(attempt(n));
            assert!(!spool.output(attempt(n)).exists());
        }
    }
}
