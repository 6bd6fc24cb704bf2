//! The connections of a resource: a bounded number at once, warm ones first, broken ones thrown away.

use super::{
    backend::{Connect, FsError, Problem},
    worker::{Hands, Worker},
};
use crate::{Call, Code, Failure};
use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long a cancelled or parked connection may take to come to an end by itself before its socket is cut.
const GRACE: Duration = Duration::from_secs(3);
/// The same for one whose call has taken as long as the target may be silent.
const LAST_WORD: Duration = Duration::from_millis(200);
/// What a call may take beyond its own time limit before it counts as hung.
const SLACK: Duration = Duration::from_secs(10);

/// The connections of one resource.
pub(super) struct Pool {
    connect: Arc<dyn Connect>,
    permits: Arc<Semaphore>,
    parked: Arc<Mutex<Vec<Worker>>>,
}

impl Pool {
    pub(super) fn new(connect: Arc<dyn Connect>, max: usize) -> Self {
        Self { connect, permits: Arc::new(Semaphore::new(max)), parked: Arc::default() }
    }

    /// What connects.
    pub(super) fn connector(&self) -> Arc<dyn Connect> {
        Arc::clone(&self.connect)
    }

    /// A connection for one operation of `call`.
    pub(super) async fn lease_for(&self, call: &Call) -> Result<Lease, Failure> {
        self.lease(call.timeout, &call.cancel).await
    }

    /// A connection for one operation: a warm one that still lives, else a new one.
    pub(super) async fn lease(
        &self,
        timeout: Duration,
        cancel: &CancellationToken,
    ) -> Result<Lease, Failure> {
        let permit = within(timeout, cancel, Arc::clone(&self.permits).acquire_owned()).await?;
        let permit = match permit {
            Some(permit) => {
                Arc::new(permit.map_err(|e| Failure::retry(Code::Internal, "shutting down").detail(e))?)
            }
            None => {
                let message =
                    "all connections to the target are in use; raise max_sessions or send fewer jobs at once";
                return Err(Failure::retry(Code::TargetThrottled, message));
            }
        };
        loop {
            let warm = self.parked.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(worker) = warm else { break };
            let mut lease = self.leased(worker, &permit, timeout, cancel);
            match lease.run(move |hands| Ok(hands.take_up(timeout))).await {
                Ok(true) => return Ok(lease),
                Err(error) if error.problem == Problem::Cancelled => return Err(error.into()),
                // It broke while it was parked; nothing was asked of it yet, so the next one simply takes its place.
                Ok(false) | Err(_) => lease.throw_away(),
            }
        }
        let (worker, mut answer) = Worker::start(Arc::clone(&self.connect), timeout)?;
        match within(timeout.saturating_mul(2).saturating_add(SLACK), cancel, &mut answer).await {
            Ok(Some(Ok(Ok(())))) => {}
            Ok(Some(Ok(Err(failure)))) => return Err(failure),
            Ok(Some(Err(_))) => {
                return Err(Failure::retry(Code::Internal, "the connecting thread ended early"));
            }
            Ok(None) => {
                worker.interrupt.fire();
                return Err(FsError::new(Problem::TimedOut, "while connecting").into());
            }
            Err(cancelled) => {
                worker.interrupt.fire();
                return Err(cancelled);
            }
        }
        let mut lease = self.leased(worker, &permit, timeout, cancel);
        lease.run(move |hands| Ok(hands.take_up(timeout))).await?;
        Ok(lease)
    }

    fn leased(
        &self,
        worker: Worker,
        permit: &Arc<OwnedSemaphorePermit>,
        timeout: Duration,
        cancel: &CancellationToken,
    ) -> Lease {
        Lease {
            worker,
            permit: Arc::clone(permit),
            parked: Arc::clone(&self.parked),
            timeout,
            cancel: cancel.clone(),
            committed: false,
            broken: false,
            silent: false,
        }
    }
}

/// `None` if the time is up, an error if cancelled.
async fn within<T>(
    limit: Duration,
    cancel: &CancellationToken,
    future: impl Future<Output = T>,
) -> Result<Option<T>, Failure> {
    tokio::select! {
        biased;
        value = future => Ok(Some(value)),
        () = cancel.cancelled() => Err(Failure::cancelled()),
        () = sleep(limit) => Ok(None),
    }
}

/// A connection in the hands of one operation. Dropped without [`Lease::release`], it is closed.
pub(super) struct Lease {
    worker: Worker,
    /// Also held by each piece of work, so that one left behind in a hung call still counts.
    permit: Arc<OwnedSemaphorePermit>,
    parked: Arc<Mutex<Vec<Worker>>>,
    timeout: Duration,
    cancel: CancellationToken,
    committed: bool,
    broken: bool,
    /// Whether the target did not answer in time.
    silent: bool,
}

impl Lease {
    /// From here on, cancelling no longer cuts the work short: the final effect has begun.
    pub(super) fn commit(&mut self) {
        self.committed = true;
    }

    /// Does a piece of blocking work on the connection's thread.
    pub(super) async fn run<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Hands) -> Result<T, FsError> + Send + 'static,
    ) -> Result<T, FsError> {
        if !self.committed && self.cancel.is_cancelled() {
            return Err(FsError::new(Problem::Cancelled, ""));
        }
        let (since, (done, mut answer)) = (Instant::now(), oneshot::channel());
        let permit = Arc::clone(&self.permit);
        let sent = self.worker.send(Box::new(move |hands| {
            // The receiver may have given up: then the outcome interests nobody.
            drop(done.send(work(hands)));
            drop(permit);
        }));
        if !sent {
            self.broken = true;
            return Err(FsError::new(Problem::Lost, "the connection had been closed"));
        }
        tokio::select! {
            biased;
            answered = &mut answer => return self.note(answered),
            () = self.cancel.cancelled(), if !self.committed => {}
            () = sleep(self.timeout.saturating_add(SLACK)) => {
                self.broken = true;
                self.worker.interrupt.fire();
                return Err(FsError::new(Problem::TimedOut, "the call hangs"));
            }
        }
        // What has had all its time without an answer is what the attempt was cancelled for.
        let grace = if since.elapsed() < self.timeout { GRACE } else { LAST_WORD };
        match timeout(grace, &mut answer).await {
            Ok(answered) => drop(self.note(answered)),
            Err(_) => {
                (self.broken, self.silent) = (true, true);
                self.worker.interrupt.fire();
            }
        }
        Err(FsError::new(Problem::Cancelled, ""))
    }

    fn note<T>(
        &mut self,
        answered: Result<Result<T, FsError>, oneshot::error::RecvError>,
    ) -> Result<T, FsError> {
        let result = answered.unwrap_or_else(|_| Err(FsError::new(Problem::Lost, "the thread ended early")));
        self.broken |= result.as_ref().is_err_and(FsError::is_broken);
        self.silent |= result.as_ref().is_err_and(|error| error.problem == Problem::TimedOut);
        result
    }

    /// Gives the connection back: an unfinished part is removed first, then it waits for the next operation. Where the target
    /// was silent for as long as it may be, nobody waits for that: it would most likely be silent again.
    pub(super) async fn release(self) {
        if self.silent {
            tokio::spawn(self.settle());
        } else {
            self.settle().await;
        }
    }

    async fn settle(mut self) {
        // Cleaning up is no longer subject to cancelling.
        self.committed = true;
        let settled = self.run(|hands| {
            hands.park();
            Ok(())
        });
        let settled = match timeout(GRACE, settled).await {
            Ok(settled) => settled.is_ok(),
            Err(_) => {
                self.worker.interrupt.fire();
                false
            }
        };
        let Self { worker, parked, broken, .. } = self;
        if settled && !broken {
            parked.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
        }
    }

    fn throw_away(self) {
        self.worker.interrupt.fire();
    }
}
