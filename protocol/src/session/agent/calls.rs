//! The agent's side of calls: each is told to the owner once, and answered once. Nothing is sent again.

use super::{super::link::CloseReason, AgentEvent, AgentSession, Draining, ToHub};
use crate::{
    Call, CallDeclined, CallResult, Code, JobId,
    limits::{MAX_CALLS, MAX_UNANSWERED_OFFER_BYTES},
    outcome::cut_message,
};
use std::collections::{BTreeSet, VecDeque};

/// The calls of one connection.
#[derive(Debug, Default)]
pub(super) struct OpenCalls {
    max: usize,
    open: BTreeSet<JobId>,
    /// Those that ended, or were cancelled before they came: a copy that comes late is declined, and tells nothing of the
    /// first.
    over: Recent,
}

/// The latest ids of a kind.
#[derive(Debug, Default)]
struct Recent(VecDeque<JobId>);

impl Recent {
    const KEPT: usize = 1024;

    fn insert(&mut self, call: JobId) {
        if self.0.len() >= Self::KEPT {
            self.0.pop_front();
        }
        self.0.push_back(call);
    }

    fn contains(&self, call: JobId) -> bool {
        self.0.iter().rev().any(|known| *known == call)
    }
}

impl OpenCalls {
    /// None of at most so many.
    pub(super) fn new(max: u32) -> Self {
        Self { max: max.min(MAX_CALLS) as usize, ..Self::default() }
    }
}

impl AgentSession {
    /// Answers a call. Does nothing for one that was answered.
    ///
    /// # Errors
    /// If the result breaks a limit; nothing was sent and the session goes on: answer with a failure in its place.
    pub fn end_call(&mut self, result: CallResult) -> Result<(), CloseReason> {
        if !self.calls.open.contains(&result.call) {
            return Ok(());
        }
        let call = result.call;
        let text = ToHub::from(result).encode().map_err(|e| CloseReason::Local(e.to_string()))?;
        self.close_call(call);
        let done = self.link.send(Ok(text));
        self.close_on(done);
        Ok(())
    }

    /// Says that a call was not taken. Does nothing for one that was answered.
    pub fn decline_call(&mut self, mut declined: CallDeclined) {
        if self.close_call(declined.call) {
            cut_message(&mut declined.message);
            self.send(declined);
        }
    }

    /// Whether a result may be handed over now: not while so much waits for a hub that reads slowly.
    #[must_use]
    pub fn can_end_call(&self) -> bool {
        self.is_open() && self.link.queued_bytes() < MAX_UNANSWERED_OFFER_BYTES / 2
    }

    /// Declines all further calls: the session is about to end.
    pub fn take_no_calls(&mut self) {
        self.calls.max = 0;
    }

    /// How many calls wait for their answer.
    #[must_use]
    pub fn open_calls(&self) -> usize {
        self.calls.open.len()
    }

    fn close_call(&mut self, call: JobId) -> bool {
        let open = self.calls.open.remove(&call);
        if open {
            self.calls.over.insert(call);
        }
        open
    }

    pub(super) fn handle_call(&mut self, call: Call) -> Result<(), CloseReason> {
        let id = call.call;
        if self.calls.open.contains(&id) {
            return Ok(());
        }
        if self.calls.over.contains(id) {
            let message = "the call was taken, or cancelled, before: make a new one".to_owned();
            let declined = CallDeclined { call: id, code: Code::Replayed, message, retry_after_ms: None };
            return self.link.send(ToHub::from(declined).encode());
        }
        if let Some(grace_s) = self.draining {
            // The hub calls all the same, so it has not heard.
            self.link.send(ToHub::from(Draining { grace_s }).encode())?;
        }
        if self.calls.open.len() >= self.calls.max {
            self.calls.over.insert(id);
            let message = "the agent takes no more calls at the moment".to_owned();
            let declined = CallDeclined { call: id, code: Code::Busy, message, retry_after_ms: Some(1000) };
            return self.link.send(ToHub::from(declined).encode());
        }
        self.calls.open.insert(id);
        self.events.push_back(AgentEvent::Called(call));
        Ok(())
    }

    pub(super) fn handle_call_cancel(&mut self, call: JobId) {
        if self.calls.open.contains(&call) {
            self.events.push_back(AgentEvent::CallCancelled(call));
        } else if !self.calls.over.contains(call) {
            // It overtook its call, which is not to start any more.
            self.calls.over.insert(call);
        }
    }
}
