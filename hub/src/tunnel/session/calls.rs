//! A session's calls: who waits for each, and what the agent answered. Nothing of them goes to the store.

use super::Session;
use crate::tunnel::{breaker::Health, registry::QueueKey};
use passerelle_protocol::{Call, CallDeclined, CallResult, Code, JobId, Outcome};
use std::time::Instant;
use tokio::sync::oneshot;

/// A call to be sent.
#[derive(Debug)]
pub(crate) struct CallOrder {
    /// The message.
    pub(crate) call: Call,
    /// Until when an answer is waited for.
    pub(crate) until: Instant,
    /// Where the answer goes; dropped without one if the session ends before.
    pub(crate) answer: oneshot::Sender<Answered>,
}

/// What the agent answered.
#[derive(Debug)]
pub(crate) enum Answered {
    /// It was carried out, or not allowed.
    Ended(Box<CallResult>),
    /// It was not taken; certainly nothing happened.
    Declined(CallDeclined),
}

impl Session {
    pub(super) fn call(&mut self, order: CallOrder) {
        let CallOrder { call, until, answer } = order;
        let id = call.call;
        // The agent hears of a key before it gets what that key signed.
        self.tell_keys();
        if let Err(no_credit) = self.machine.call(call, until) {
            tracing::debug!(call_id = %id, error = %no_credit, "Call taken back");
            let message = "the agent takes no more calls at the moment".to_owned();
            let declined = CallDeclined { call: id, code: Code::Busy, message, retry_after_ms: Some(1000) };
            self.free_call(id, None);
            drop(answer.send(Answered::Declined(declined)));
        } else {
            self.calls.insert(id, answer);
        }
    }

    pub(super) fn call_ended(&mut self, result: CallResult) {
        let health = match &result.outcome {
            Outcome::Succeeded { .. } => Health::Up,
            Outcome::Failed(failure) => Health::of(failure.code),
        };
        self.free_call(result.call, Some(health));
        if let Some(answer) = self.calls.remove(&result.call) {
            // Whoever waited may have gone.
            drop(answer.send(Answered::Ended(Box::new(result))));
        }
    }

    pub(super) fn call_declined(&mut self, declined: CallDeclined) {
        tracing::debug!(call_id = %declined.call, code = %declined.code, "Call declined");
        self.free_call(declined.call, None);
        if let Some(answer) = self.calls.remove(&declined.call) {
            drop(answer.send(Answered::Declined(declined)));
        }
    }

    /// The agent did not answer in time: whoever waits hears that nothing is known.
    pub(super) fn call_lost(&mut self, call: JobId) {
        tracing::warn!(call_id = %call, "Call not answered");
        self.free_call(call, None);
        drop(self.calls.remove(&call));
    }

    /// Gives the call's place back; a job may wait for it.
    fn free_call(&self, call: JobId, health: Option<Health>) {
        let freed = self.store.shared().registry.end_call(self.agent.id, self.id, call, health);
        if let (Some(key), Some(place)) = (freed, self.store.try_place()) {
            self.look_at(key, place);
        }
    }

    fn look_at(&self, key: QueueKey, place: tokio::sync::OwnedSemaphorePermit) {
        let look = move |tx: &mut crate::store::writer::Tx<'_>| {
            tx.effects.queues.push(key);
            Ok(())
        };
        // The store is closing: then nothing is dispatched any more.
        drop(self.store.order(place, true, look, drop));
    }
}
