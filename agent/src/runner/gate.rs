//! The gate before a final effect: the intent is journalled, and granted by the hub where it wants to be asked.

use crate::{agent::Agent, job::Job, translate};
use passerelle_connectors::{Code, Failure, Gate, Intent};
use passerelle_protocol::CommitMode;
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio_util::sync::CancellationToken;

/// The gate of one run of an attempt.
pub struct AttemptGate {
    agent: Arc<Agent>,
    job: Job,
    started_at: jiff::Timestamp,
    cancel: CancellationToken,
    evidence: bool,
    passed: AtomicBool,
    waiting: AtomicBool,
    closed: AtomicBool,
}

impl AttemptGate {
    /// A gate that is open until the run ends. With `evidence` the intent is on disk before the effect; without, a
    /// sync is saved.
    pub fn new(
        agent: Arc<Agent>,
        job: &Job,
        started_at: jiff::Timestamp,
        cancel: CancellationToken,
        evidence: bool,
    ) -> Self {
        Self {
            agent,
            // The payload is not needed here and may be large.
            job: Job { payload: crate::job::Payload::None, ..job.clone() },
            started_at,
            cancel,
            evidence,
            passed: AtomicBool::new(job.intent.is_some()),
            waiting: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    /// Whether an effect may have happened.
    pub fn passed(&self) -> bool {
        self.passed.load(Ordering::SeqCst)
    }

    /// Whether the hub is being asked: no progress is expected meanwhile.
    pub fn waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Lets nothing through any more: a connector that was given up may still be at work in a thread of its own.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    async fn try_pass(&self, intent: &Intent) -> Result<(), Failure> {
        let attempt = self.job.attempt;
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
        if self.closed.load(Ordering::SeqCst) || self.cancel.is_cancelled() {
            return Err(Failure::cancelled());
        }
        self.passed.store(true, Ordering::SeqCst);
        Ok(())
    }
}

impl Gate for AttemptGate {
    fn pass<'a>(
        &'a self,
        intent: &'a Intent,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        Box::pin(self.try_pass(intent))
    }
}
