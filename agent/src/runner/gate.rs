//! The gate before a final effect: the intent is journalled, and granted by the hub where it wants to be asked.

use crate::{agent::Agent, job::Job, registry::StopHandle, translate};
use passerelle_connectors::{Code, Company, Failure, Gate, Intent};
use passerelle_protocol::CommitMode;
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};
use tokio_util::sync::CancellationToken;

/// The gate of one run of an attempt.
pub struct AttemptGate {
    agent: Arc<Agent>,
    job: Job,
    started_at: jiff::Timestamp,
    stop: StopHandle,
    cancel: CancellationToken,
    evidence: bool,
    passage: Passage,
    waiting: AtomicBool,
}

/// Passed and closed in one: what is closed before it was passed is never passed, whatever thread is quicker.
#[derive(Debug)]
struct Passage(AtomicU8);

const PASSED: u8 = 1;
const CLOSED: u8 = 2;

impl Passage {
    fn new(passed: bool) -> Self {
        Self(AtomicU8::new(if passed { PASSED } else { 0 }))
    }

    /// Passes unless it is closed.
    fn enter(&self) -> bool {
        let open = |state: u8| (state & CLOSED == 0).then_some(state | PASSED);
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, open).is_ok()
    }

    /// What was passed had no effect after all.
    fn leave(&self) {
        self.0.fetch_and(!PASSED, Ordering::SeqCst);
    }

    /// Says whether it was passed.
    fn close(&self) -> bool {
        self.0.fetch_or(CLOSED, Ordering::SeqCst) & PASSED != 0
    }
}

impl AttemptGate {
    /// A gate that is open until the run ends. With `evidence` the intent is on disk before the effect; without, a
    /// sync is saved. `stop` is the attempt's, with the token of this run.
    pub fn new(
        agent: Arc<Agent>,
        job: &Job,
        started_at: jiff::Timestamp,
        stop: (&StopHandle, &CancellationToken),
        evidence: bool,
    ) -> Self {
        Self {
            agent,
            // The payload is not needed here and may be large.
            job: Job { payload: crate::job::Payload::None, ..job.clone() },
            started_at,
            stop: stop.0.clone(),
            cancel: stop.1.clone(),
            evidence,
            passage: Passage::new(job.intent.is_some()),
            waiting: AtomicBool::new(false),
        }
    }

    /// Whether the hub is being asked: no progress is expected meanwhile.
    pub fn waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Lets nothing through any more: a connector that was given up may still be at work in a thread of its own. Says
    /// whether an effect may have happened.
    pub fn close(&self) -> bool {
        self.passage.close()
    }

    async fn try_pass(&self, intent: &Intent) -> Result<(), Failure> {
        let attempt = self.job.attempt;
        if self.job.is_call() {
            // Nothing is written for a call, and its ticket is always free.
            return self.enter();
        }
        if self.evidence {
            let value = serde_json::to_value(intent)
                .map_err(|e| Failure::permanent(Code::Internal, "the intent cannot be written").detail(e))?;
            self.agent.journal.intent(attempt, self.started_at, &value).await.map_err(|e| {
                Failure::retry(Code::Internal, "the agent's journal cannot be written").detail(e)
            })?;
        }
        // What may be repeated under its key, or only reads, needs no leave: unless its order counts.
        let asks = self.evidence || self.job.envelope.order_key.is_some();
        if asks && self.job.ticket.commit == CommitMode::Ask {
            let granted = self.agent.outbox.ask(attempt, translate::intent(intent));
            self.waiting.store(true, Ordering::Relaxed);
            let answer = tokio::select! {
                answer = granted => answer.is_ok(),
                () = self.cancel.cancelled() => false,
            };
            self.waiting.store(false, Ordering::Relaxed);
            if !answer {
                self.agent.outbox.forget(attempt);
                return Err(Failure::cancelled());
            }
        }
        self.enter()
    }

    fn enter(&self) -> Result<(), Failure> {
        if self.cancel.is_cancelled() || !self.passage.enter() {
            return Err(Failure::cancelled());
        }
        Ok(())
    }
}

impl Gate for AttemptGate {
    fn company(&self) -> Company {
        match self.job.ticket.commit {
            // A hub that was restored does not know it, perhaps; but nobody else does either.
            CommitMode::Free => Company::Alone,
            CommitMode::Ask if self.stop.is_given_up() => Company::Certain,
            CommitMode::Ask => Company::Possible,
        }
    }

    fn pass<'a>(
        &'a self,
        intent: &'a Intent,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        Box::pin(self.try_pass(intent))
    }

    fn withdraw(&self) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + '_>> {
        Box::pin(async {
            if self.job.is_call() {
                self.passage.leave();
                return Ok(());
            }
            self.agent.journal.withdraw(self.job.attempt).await.map_err(|e| {
                Failure::retry(Code::Internal, "the agent's journal cannot be written").detail(e)
            })?;
            self.passage.leave();
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Passage;
    use std::{sync::Arc, thread};

    #[test]
    fn a_closed_gate_is_never_passed_and_says_whether_it_was() {
        let closed = Passage::new(false);
        assert!(!closed.close() && !closed.enter() && !closed.close());
        let passed = Passage::new(false);
        assert!(passed.enter() && passed.enter() && passed.close() && !passed.enter());
        let earlier = Passage::new(true);
        earlier.leave();
        assert!(!earlier.close(), "the earlier run's intent was withdrawn");
        assert!(Passage::new(true).close(), "an earlier run had passed it");
    }

    #[test]
    fn whoever_is_told_that_nothing_passed_can_rely_on_it() {
        for _ in 0..2000 {
            let passage = Arc::new(Passage::new(false));
            let theirs = Arc::clone(&passage);
            let entering = thread::spawn(move || theirs.enter());
            let passed = passage.close();
            assert_eq!(entering.join().unwrap(), passed);
        }
    }
}
