//! A thread that owns one connection and does blocking work on it, one piece at a time.
//!
//! The thread keeps what an operation has open ([`Hands`]) and cleans up by itself, whatever became of the operation:
//! when it is parked, or when nobody can ask it any more, an unfinished part is removed and all handles are closed.

use super::{
    backend::{Backend, Connect, EntryKind, FsError, Interrupt, Links, PartFile, Problem, SourceFile},
    place::Place,
};
use crate::{Code, Failure};
use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How often an unasked connection is kept warm.
const KEEP_WARM: Duration = Duration::from_secs(15);
/// How long a parked connection is kept.
pub(super) const KEEP_PARKED: Duration = Duration::from_secs(60);

/// What a worker holds.
pub(super) struct Hands {
    pub(super) fs: Box<dyn Backend>,
    pub(super) part: Option<Box<dyn PartFile>>,
    pub(super) source: Option<Box<dyn SourceFile>>,
    /// A part to remove unless it was given up for the final effect.
    pub(super) doomed: Option<Place>,
    parked: Option<Instant>,
}

impl Hands {
    /// Takes up a new operation; whether the connection is fit for it.
    pub(super) fn take_up(&mut self, timeout: Duration) -> bool {
        let idle = self.parked.take().map(|since| since.elapsed());
        self.fs.begin(timeout);
        idle.is_none_or(|idle| self.fs.alive(idle))
    }

    /// Creates a part, and tells a missing folder from a target that hides names like that of a part.
    pub(super) fn create_part(
        &mut self,
        part: &Place,
        target: &Place,
        size: u64,
    ) -> Result<Box<dyn PartFile>, FsError> {
        match self.fs.create_for(part, target, size) {
            Err(error)
                if error.problem == Problem::NotFound
                    // Such a part is more than a name, and what is missing may be the store's whole bucket.
                    && !self.fs.binds_parts()
                    && self.is_folder(part.folder()) => {}
            other => return other,
        }
        // The folder may have come meanwhile.
        self.fs.create_for(part, target, size).map_err(|error| match error.problem {
            Problem::NotFound => FsError::new(Problem::HiddenPart, error.detail),
            _ => error,
        })
    }

    fn is_folder(&mut self, path: &str) -> bool {
        self.fs.stat(path, Links::Follow).is_ok_and(|found| found.kind == EntryKind::Directory)
    }

    /// Closes what is open, removes an unfinished part.
    fn settle(&mut self) {
        self.part = None;
        self.source = None;
        if let Some(part) = self.doomed.take()
            && let Err(error) = self.fs.delete(&part)
        {
            tracing::debug!(detail = %error.detail, "an unfinished part stays until the job's next attempt");
        }
    }

    /// Settles and waits for the next operation.
    pub(super) fn park(&mut self) {
        self.settle();
        self.fs.rest();
        self.parked = Some(Instant::now());
    }
}

/// A piece of work.
pub(super) type Job = Box<dyn FnOnce(&mut Hands) + Send>;

/// The handle to a worker's thread. Dropped, the thread ends after what it is doing.
pub(super) struct Worker {
    jobs: Sender<Job>,
    pub(super) interrupt: Interrupt,
}

impl Worker {
    /// Starts a thread, which connects and says how that went.
    pub(super) fn start(
        connect: Arc<dyn Connect>,
        timeout: Duration,
    ) -> Result<(Self, oneshot::Receiver<Result<(), Failure>>), Failure> {
        let (jobs, received) = channel();
        let (connected, answer) = oneshot::channel();
        let interrupt = Interrupt::default();
        let inner = interrupt.clone();
        thread::Builder::new()
            .name("file".to_owned())
            .spawn(move || match connect.connect(timeout, &inner) {
                Ok(fs) => {
                    let hands = Hands { fs, part: None, source: None, doomed: None, parked: None };
                    if connected.send(Ok(())).is_ok() {
                        serve(hands, &received);
                    }
                }
                Err(failure) => drop(connected.send(Err(failure))),
            })
            .map_err(|e| Failure::retry(Code::Internal, "the agent cannot start a thread").detail(e))?;
        Ok((Self { jobs, interrupt }, answer))
    }

    /// Hands over a piece of work; `false` if the thread has ended.
    pub(super) fn send(&self, job: Job) -> bool {
        self.jobs.send(job).is_ok()
    }
}

fn serve(mut hands: Hands, jobs: &Receiver<Job>) {
    loop {
        match jobs.recv_timeout(KEEP_WARM) {
            Ok(job) => job(&mut hands),
            Err(RecvTimeoutError::Timeout) => {
                if hands.parked.is_some_and(|since| since.elapsed() >= KEEP_PARKED) {
                    break;
                }
                hands.fs.keep_warm();
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    hands.settle();
}
