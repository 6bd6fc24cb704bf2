//! The hub's side of calls: how many are out, and that each gets one answer or is given up.

use super::{super::link::CloseReason, HubEvent, HubSession, NoCredit, State, ToAgent};
use crate::{
    Call, CallCancel, CallDeclined, CallResult, CallsAnnouncement, JobId,
    limits::{MAX_CALLS, MAX_UNANSWERED_OFFER_BYTES},
};
use std::{collections::BTreeMap, time::Instant};

/// The calls of one connection.
#[derive(Debug, Default)]
pub(super) struct OpenCalls {
    max: usize,
    /// Until when each may be answered.
    open: BTreeMap<JobId, Instant>,
}

impl OpenCalls {
    /// What the agent's hello says.
    pub(super) fn announced(&mut self, calls: Option<CallsAnnouncement>) {
        self.max = calls.map_or(0, |calls| calls.max.min(MAX_CALLS) as usize);
    }

    /// When the first one is given up.
    pub(super) fn next(&self) -> Option<Instant> {
        self.open.values().min().copied()
    }

    /// Those that are given up at `now`.
    pub(super) fn over(&mut self, now: Instant) -> Vec<JobId> {
        let over: Vec<JobId> =
            self.open.iter().filter(|(_, until)| **until <= now).map(|(call, _)| *call).collect();
        self.open.retain(|_, until| *until > now);
        over
    }
}

impl HubSession {
    /// How many more calls the agent takes. None while it drains.
    #[must_use]
    pub fn call_credit(&self) -> usize {
        if self.is_open() && !self.draining {
            self.calls.max.saturating_sub(self.calls.open.len())
        } else {
            0
        }
    }

    /// Sends a call, once. [`HubEvent::CallEnded`] or [`HubEvent::CallDeclined`] answers it, or at `until`
    /// [`HubEvent::CallLost`]; if the session ends before, nothing does.
    ///
    /// # Errors
    /// [`NoCredit`] if the agent takes no more, or does not read what was sent before.
    pub fn call(&mut self, call: Call, until: Instant) -> Result<(), NoCredit> {
        let id = call.call;
        if self.call_credit() == 0 || self.calls.open.contains_key(&id) {
            return Err(NoCredit);
        }
        match ToAgent::from(call).encode() {
            Ok(text) if self.link.queued_bytes() + text.len() > MAX_UNANSWERED_OFFER_BYTES => Err(NoCredit),
            Ok(text) => {
                self.calls.open.insert(id, until);
                let done = self.link.send(Ok(text));
                self.close_on(done);
                Ok(())
            }
            Err(error) => {
                self.close_on(Err(CloseReason::Local(error.to_string())));
                Ok(())
            }
        }
    }

    /// Asks the agent to stop a call; it still answers it.
    pub fn cancel_call(&mut self, call: JobId) {
        if self.calls.open.contains_key(&call) {
            self.send(CallCancel { call });
        }
    }

    /// How many calls wait for their answer.
    #[must_use]
    pub fn open_calls(&self) -> usize {
        self.calls.open.len()
    }

    pub(super) fn handle_call_result(&mut self, result: CallResult) {
        if self.calls.open.remove(&result.call).is_some() {
            self.events.push_back(HubEvent::CallEnded(result));
        }
    }

    pub(super) fn handle_call_declined(&mut self, declined: CallDeclined) {
        if self.calls.open.remove(&declined.call).is_some() {
            self.events.push_back(HubEvent::CallDeclined(declined));
        }
    }

    pub(super) fn give_calls_up(&mut self, now: Instant) {
        if matches!(self.state, State::Open) {
            self.events.extend(self.calls.over(now).into_iter().map(HubEvent::CallLost));
        }
    }
}
