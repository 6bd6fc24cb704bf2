//! Payloads on their way, in `state/spool/`: `JOB-ATTEMPT.in` from the hub, `JOB-ATTEMPT.out` to it. Names come from
//! our ids alone. Small outputs never touch the disk, nor do those of calls that are a little larger.
//!
//! A download is not synced: what a power cut leaves of it is found out by its digest and fetched again. An output is
//! synced before its attempt counts as finished, since nothing else has it.

use bytes::Bytes;
use passerelle_protocol::{limits::MAX_INLINE_PAYLOAD, session::Attempt};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::{
    io::AsyncWrite,
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// The largest output of a call that is held in memory: whoever called waits for it, and nothing has to outlive us.
pub const MAX_HELD: usize = 4 << 20;
/// How many such outputs there are at once; further ones go to their files.
const HELD_AT_ONCE: usize = 8;

/// The spool folder, and what it holds or is promised: never more than the quota.
#[derive(Debug, Clone)]
pub struct Spool {
    path: PathBuf,
    quota: Arc<AtomicU64>,
    ledger: Arc<Mutex<Ledger>>,
    held: Arc<Semaphore>,
}

/// Bytes by attempt.
#[derive(Debug, Default)]
struct Ledger {
    /// Payloads, in full from the moment that their job was accepted.
    inputs: BTreeMap<Attempt, u64>,
    /// Outputs that went to a file, as far as they are written: the others need no look at the disk.
    outputs: BTreeMap<Attempt, u64>,
}

impl Ledger {
    fn total(&self) -> u64 {
        self.inputs.values().chain(self.outputs.values()).fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

impl Spool {
    /// Makes the folder if need be.
    pub fn open(state: &Path, quota: u64) -> io::Result<Self> {
        let path = state.join("spool");
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let held = Arc::new(Semaphore::new(HELD_AT_ONCE));
        Ok(Self { path, quota: Arc::new(quota.into()), ledger: Arc::default(), held })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The most bytes it may hold.
    pub fn quota(&self) -> u64 {
        self.quota.load(Ordering::Relaxed)
    }

    /// Changes the quota; what is there stays.
    pub fn set_quota(&self, bytes: u64) {
        self.quota.store(bytes, Ordering::Relaxed);
    }

    /// Bytes that it holds or has promised.
    pub fn bytes(&self) -> u64 {
        self.ledger().total()
    }

    /// Where an attempt's payload is.
    pub fn input(&self, attempt: Attempt) -> PathBuf {
        self.path.join(format!("{}-{}.in", attempt.job, attempt.number))
    }

    /// Where an attempt's output is.
    pub fn output(&self, attempt: Attempt) -> PathBuf {
        self.path.join(format!("{}-{}.out", attempt.job, attempt.number))
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises room for an attempt's payload; `false` if there is not enough left.
    pub fn promise_input(&self, attempt: Attempt, size: u64) -> bool {
        let mut ledger = self.ledger();
        if ledger.total().saturating_add(size) > self.quota() {
            return false;
        }
        ledger.inputs.insert(attempt, size);
        true
    }

    /// Counts a payload that was promised room by an earlier run of this program.
    pub fn resume_input(&self, attempt: Attempt, size: u64) {
        self.ledger().inputs.insert(attempt, size);
    }

    /// Takes back the promise for a payload that does not come.
    pub fn release_input(&self, attempt: Attempt) {
        self.ledger().inputs.remove(&attempt);
    }

    /// Removes an attempt's payload.
    pub fn forget_input(&self, attempt: Attempt) {
        remove(&self.input(attempt));
        self.release_input(attempt);
    }

    /// Counts bytes that an output is about to add to its file; `false` if there is no room for them.
    fn grow_output(&self, attempt: Attempt, bytes: u64) -> bool {
        let mut ledger = self.ledger();
        let fits = ledger.total().saturating_add(bytes) <= self.quota();
        // Entered even so: a file may be there to be removed.
        *ledger.outputs.entry(attempt).or_default() += if fits { bytes } else { 0 };
        fits
    }

    /// Removes an attempt's output, if it has one here.
    pub fn forget_output(&self, attempt: Attempt) {
        if self.ledger().outputs.remove(&attempt).is_some() {
            remove(&self.output(attempt));
        }
    }

    /// Removes files of attempts that the journal does not hold, left by a crash after the acknowledgement, and counts
    /// the others.
    pub fn sweep(&self, held: &BTreeSet<Attempt>) -> io::Result<()> {
        let kept: BTreeSet<PathBuf> = held.iter().flat_map(|a| [self.input(*a), self.output(*a)]).collect();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if !kept.contains(&path) {
                remove(&path);
            }
        }
        let mut ledger = self.ledger();
        let size = |path: PathBuf| fs::metadata(path).ok().map(|meta| meta.len());
        for attempt in held {
            if let Some(size) = size(self.input(*attempt)) {
                ledger.inputs.insert(*attempt, size);
            }
            if let Some(size) = size(self.output(*attempt)) {
                ledger.outputs.insert(*attempt, size);
            }
        }
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
    /// In memory, larger than a report may carry: the output of a call, uploaded before it is answered.
    Held(Bytes),
    /// In its spool file, synced: it is uploaded before the report.
    File,
    /// At the hub, stored by an earlier run of the job.
    AtHub,
}

#[derive(Debug)]
enum Content {
    Memory(Vec<u8>),
    Held(Held),
    File(tokio::fs::File),
}

/// A larger output in memory, with the place that it takes of few.
#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Takes an output: in memory up to what a report carries (that of a call a little longer), then in a file.
#[derive(Debug, Clone)]
pub struct OutputSpool {
    spool: Spool,
    attempt: Attempt,
    of_call: bool,
    content: Arc<Mutex<Content>>,
    refused: Arc<AtomicBool>,
}

impl OutputSpool {
    /// An empty output.
    pub fn new(spool: &Spool, attempt: Attempt) -> Self {
        Self {
            spool: spool.clone(),
            attempt,
            of_call: false,
            content: Arc::new(Mutex::new(Content::Memory(Vec::new()))),
            refused: Arc::default(),
        }
    }

    /// The same for a call.
    pub fn of_call(spool: &Spool, attempt: Attempt) -> Self {
        Self { of_call: true, ..Self::new(spool, attempt) }
    }

    /// Takes more into memory, if it may be there and has room.
    fn keep_in_memory(&self, content: &mut Content, bytes: &[u8]) -> bool {
        match content {
            Content::Memory(memory) if memory.len() + bytes.len() <= MAX_INLINE_PAYLOAD => {
                memory.extend_from_slice(bytes);
                true
            }
            Content::Memory(memory) if self.of_call && memory.len() + bytes.len() <= MAX_HELD => {
                let Ok(place) = Arc::clone(&self.spool.held).try_acquire_owned() else { return false };
                let mut held = Held { bytes: std::mem::take(memory), _place: place };
                held.bytes.extend_from_slice(bytes);
                *content = Content::Held(held);
                true
            }
            Content::Held(held) if held.bytes.len() + bytes.len() <= MAX_HELD => {
                held.bytes.extend_from_slice(bytes);
                true
            }
            Content::Memory(_) | Content::Held(_) | Content::File(_) => false,
        }
    }

    /// Whether the spool had no room for it.
    pub fn was_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Asks the spool for room.
    fn grow(&self, bytes: usize) -> io::Result<()> {
        if self.spool.grow_output(self.attempt, bytes as u64) {
            return Ok(());
        }
        self.refused.store(true, Ordering::Relaxed);
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, "the spool is full (agent.spool_quota)"))
    }

    /// Puts what is in memory into the output's file.
    fn spill(&self, memory: &[u8]) -> io::Result<tokio::fs::File> {
        // What an earlier run may have left here goes, and counts no more.
        self.spool.forget_output(self.attempt);
        self.grow(memory.len())?;
        // Once per output, 256 KiB into the page cache.
        let path = self.spool.output(self.attempt);
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
        file.write_all(memory)?;
        Ok(tokio::fs::File::from_std(file))
    }

    /// Has the output in its file, however small it is, after its writer was shut down; synced, with its folder.
    pub fn settle(&self) -> io::Result<()> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        self.move_to_file(&mut content)?;
        self.sync()
    }

    fn move_to_file(&self, content: &mut Content) -> io::Result<()> {
        let memory = match content {
            Content::Memory(memory) => memory.as_slice(),
            Content::Held(held) => held.bytes.as_slice(),
            Content::File(_) => return Ok(()),
        };
        let file = self.spill(memory)?;
        *content = Content::File(file);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        File::open(self.spool.output(self.attempt))?.sync_all()?;
        File::open(self.spool.path())?.sync_all()
    }

    /// Whether it went to its file.
    pub fn is_in_file(&self) -> bool {
        matches!(&*self.content.lock().unwrap_or_else(PoisonError::into_inner), Content::File(_))
    }

    /// Where the output is, after its writer was shut down; nothing is synced.
    pub fn store_as_it_is(self) -> Stored {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*content, Content::File(_)) {
            return Stored::File;
        }
        match std::mem::replace(&mut *content, Content::Memory(Vec::new())) {
            Content::Memory(bytes) => Stored::Memory(bytes.into()),
            Content::Held(held) => Stored::Held(Bytes::from_owner(held)),
            Content::File(_) => Stored::File,
        }
    }

    /// Where the output is, after its writer was shut down; a file is synced, with its folder.
    pub fn store(self) -> io::Result<Stored> {
        let stored = self.clone().store_as_it_is();
        if stored == Stored::File {
            self.sync()?;
        }
        Ok(stored)
    }

    /// Where an output is that an earlier run had stored at the hub: also here, if that run was this attempt's.
    pub fn recall(&self) -> Stored {
        if self.spool.output(self.attempt).exists() { Stored::File } else { Stored::AtHub }
    }

    /// The attempt made no output that counts.
    pub fn discard(&self) {
        if let Content::File(_) = &*self.content.lock().unwrap_or_else(PoisonError::into_inner) {
            self.spool.forget_output(self.attempt);
        }
    }
}

impl AsyncWrite for OutputSpool {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        if self.keep_in_memory(&mut content, bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        self.move_to_file(&mut content)?;
        match &mut *content {
            Content::File(file) => {
                let written = ready!(Pin::new(file).poll_write(cx, bytes))?;
                // Counted once taken: a write that waits is asked again, and one piece too many is bounded.
                self.grow(written)?;
                Poll::Ready(Ok(written))
            }
            Content::Memory(_) | Content::Held(_) => {
                Poll::Ready(Err(io::Error::other("unreachable: the output is in a file")))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.content.lock().unwrap_or_else(PoisonError::into_inner) {
            Content::File(file) => Pin::new(file).poll_flush(cx),
            Content::Memory(_) | Content::Held(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.content.lock().unwrap_or_else(PoisonError::into_inner) {
            Content::File(file) => {
                ready!(Pin::new(&mut *file).poll_flush(cx))?;
                Pin::new(file).poll_shutdown(cx)
            }
            Content::Memory(_) | Content::Held(_) => Poll::Ready(Ok(())),
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
        let spool = Spool::open(dir.path(), 1 << 30).unwrap();
        let small = OutputSpool::new(&spool, attempt(1));
        let mut writer = small.clone();
        writer.write_all(&vec![7; MAX_INLINE_PAYLOAD]).await.unwrap();
        writer.shutdown().await.unwrap();
        assert_eq!(small.store().unwrap(), Stored::Memory(vec![7; MAX_INLINE_PAYLOAD].into()));
        assert!(!spool.output(attempt(1)).exists());

        let large = OutputSpool::new(&spool, attempt(2));
        let mut writer = large.clone();
        writer.write_all(&vec![1; MAX_INLINE_PAYLOAD]).await.unwrap();
        writer.write_all(&[2; 10]).await.unwrap();
        writer.shutdown().await.unwrap();
        assert_eq!(large.store().unwrap(), Stored::File);
        let bytes = fs::read(spool.output(attempt(2))).unwrap();
        assert_eq!((bytes.len(), bytes.last()), (MAX_INLINE_PAYLOAD + 10, Some(&2)));
    }

    #[tokio::test]
    async fn a_larger_output_of_a_call_stays_in_memory_as_long_as_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 1 << 30).unwrap();
        let write = async |n: u8, size: usize| {
            let output = OutputSpool::of_call(&spool, attempt(n));
            let mut writer = output.clone();
            for _ in 0..size / 1024 {
                writer.write_all(&[n; 1024]).await.unwrap();
            }
            writer.shutdown().await.unwrap();
            output.store_as_it_is()
        };
        assert_eq!(write(1, MAX_INLINE_PAYLOAD).await, Stored::Memory(vec![1; MAX_INLINE_PAYLOAD].into()));
        assert_eq!(write(2, MAX_HELD).await, Stored::Held(vec![2; MAX_HELD].into()));
        assert_eq!(write(3, MAX_HELD + 1024).await, Stored::File);
        assert_eq!(fs::read(spool.output(attempt(3))).unwrap(), vec![3; MAX_HELD + 1024]);
        assert_eq!(spool.held.available_permits(), HELD_AT_ONCE, "given back with what was held");
        let mut held = Vec::new();
        for n in 0..HELD_AT_ONCE {
            held.push(write(10 + n as u8, 1 << 20).await);
        }
        assert!(held.iter().all(|stored| matches!(stored, Stored::Held(_))), "{held:?}");
        assert_eq!(write(4, 1 << 20).await, Stored::File, "no more are held at once");
        held.pop();
        assert!(matches!(write(5, 1 << 20).await, Stored::Held(_)));
    }

    #[tokio::test]
    async fn an_output_that_has_to_be_kept_is_in_its_file_however_small() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 1 << 30).unwrap();
        for (n, content) in [(1, &b"small"[..]), (2, b"")] {
            let output = OutputSpool::new(&spool, attempt(n));
            assert_eq!(output.recall(), Stored::AtHub);
            let mut writer = output.clone();
            writer.write_all(content).await.unwrap();
            writer.shutdown().await.unwrap();
            output.settle().unwrap();
            assert_eq!(fs::read(spool.output(attempt(n))).unwrap(), content);
            assert_eq!(output.recall(), Stored::File);
            assert_eq!(output.store().unwrap(), Stored::File);
        }
        assert_eq!(spool.bytes(), 5);
        spool.forget_output(attempt(1));
        assert!(!spool.output(attempt(1)).exists());
    }

    #[test]
    fn files_of_attempts_that_are_not_held_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 1 << 30).unwrap();
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
        let spool = Spool::open(dir.path(), 1 << 30).unwrap();
        for n in 1..=2 {
            fs::write(spool.output(attempt(n)), b"x").unwrap();
        }
        spool.sweep(&BTreeSet::from([attempt(1), attempt(2), attempt(3)])).unwrap();
        fs::write(spool.output(attempt(4)), b"x").unwrap();
        assert_eq!(spool.bytes(), 2);
        assert!(spool.grow_output(attempt(4), 1));
        for n in 1..=4 {
            spool.forget_output(attempt(n));
            assert!(!spool.output(attempt(n)).exists());
        }
    }
    #[test]
    fn payloads_are_promised_room_up_to_the_quota() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 100).unwrap();
        assert!(spool.promise_input(attempt(1), 60) && !spool.promise_input(attempt(2), 41));
        assert!(spool.promise_input(attempt(2), 40));
        assert_eq!(spool.bytes(), 100);
        spool.forget_input(attempt(1));
        assert!(spool.promise_input(attempt(3), 60));
        spool.release_input(attempt(3));
        // What runs already is never turned away; a smaller quota counts for what comes.
        spool.set_quota(10);
        spool.resume_input(attempt(4), 1000);
        assert_eq!(spool.bytes(), 1040);
        assert!(!spool.promise_input(attempt(5), 1));
    }

    #[tokio::test]
    async fn an_output_past_the_quota_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let quota = MAX_INLINE_PAYLOAD as u64 + 100_000;
        let spool = Spool::open(dir.path(), quota).unwrap();
        let output = OutputSpool::new(&spool, attempt(1));
        let mut writer = output.clone();
        writer.write_all(&vec![1; MAX_INLINE_PAYLOAD]).await.unwrap();
        assert_eq!(spool.bytes(), 0, "in memory");
        writer.write_all(&vec![1; 50_000]).await.unwrap();
        let mut failed = None;
        for _ in 0..20 {
            if let Err(error) = writer.write_all(&[1; 10_000]).await {
                failed = Some(error.kind());
                break;
            }
        }
        assert_eq!(failed, Some(io::ErrorKind::QuotaExceeded));
        assert!(output.was_refused() && spool.bytes() <= quota);
        output.discard();
        assert!(!spool.output(attempt(1)).exists());
        assert_eq!(spool.bytes(), 0);
    }
}
