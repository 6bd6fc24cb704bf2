//! What each message of the agent does to the hub's side of the session.

use super::{
    super::{
        Attempt,
        events::TooMany,
        link::{CloseReason, Resend},
    },
    HubEvent, HubSession, Phase, State, Tracked,
};
use crate::{
    ToHub,
    limits::{MAX_JOBS, RESEND},
};
use std::time::Instant;

impl HubSession {
    pub(super) fn handle_message(&mut self, message: ToHub, now: Instant) -> Result<(), CloseReason> {
        match (&self.state, message) {
            (State::AwaitHello { .. }, ToHub::Hello(hello)) => {
                self.state = State::AwaitDecision;
                self.calls.announced(hello.calls);
                self.max_jobs = hello.max_jobs.min(MAX_JOBS) as usize;
                self.max_concurrent =
                    hello.resources.iter().map(|r| (r.name.clone(), r.max_concurrent as usize)).collect();
                self.held =
                    hello.held.iter().map(|h| (Attempt::new(h.job, h.attempt), h.resource.clone())).collect();
                self.events.push_back(HubEvent::Hello(Box::new(hello)));
                Ok(())
            }
            (State::AwaitHello { .. }, other) => {
                Err(CloseReason::PeerMisbehaved(format!("hello must come first, got {}", kind(&other))))
            }
            (State::Closed(_) | State::AwaitDecision, _) | (State::Open, ToHub::Hello(_)) => Ok(()),
            (State::Open, ToHub::Accept(accept)) => {
                self.accepted(Attempt::new(accept.job, accept.attempt));
                Ok(())
            }
            (State::Open, ToHub::Decline(decline)) => {
                let attempt = Attempt::new(decline.job, decline.attempt);
                let offered =
                    self.attempts.get(&attempt).is_some_and(|t| matches!(t.phase, Phase::Offered { .. }));
                if offered {
                    self.forget(attempt);
                    self.declined.insert(attempt, ());
                    self.events.push_back(HubEvent::Declined(decline));
                }
                Ok(())
            }
            (State::Open, ToHub::Progress(progress)) => {
                let attempt = Attempt::new(progress.job, progress.attempt);
                // It runs, so it was accepted, even if the acceptance was lost or comes later.
                if self.accepted(attempt) {
                    self.events.push_back(HubEvent::Progress(progress));
                }
                Ok(())
            }
            (State::Open, ToHub::Commit(commit)) => {
                if self.accepted(Attempt::new(commit.job, commit.attempt)) {
                    self.events.push_back(HubEvent::CommitRequested(commit));
                }
                Ok(())
            }
            (State::Open, ToHub::Report(report)) => {
                let attempt = Attempt::new(report.job, report.attempt);
                self.answered(attempt);
                match self.attempts.get_mut(&attempt) {
                    // Told already: the owner's acknowledgement should be on its way.
                    Some(Tracked { phase: Phase::Reported { tell_again }, .. }) if now < tell_again.at() => {
                        return Ok(());
                    }
                    Some(tracked) => {
                        tracked.phase = Phase::Reported { tell_again: Resend::after(now, RESEND) };
                        tracked.cancel = None;
                    }
                    // Acknowledged before and the acknowledgement was lost, or an attempt that the hub gave up.
                    None => {}
                }
                self.events.push_back(HubEvent::Reported(report));
                Ok(())
            }
            (State::Open, ToHub::Event(event)) => match self.heard_events.heard(event.id, now) {
                Ok(tell) => {
                    self.events.extend(tell.then_some(HubEvent::Event(event)));
                    Ok(())
                }
                Err(TooMany) => {
                    Err(CloseReason::PeerMisbehaved("more events than may be unanswered".to_owned()))
                }
            },
            (State::Open, ToHub::CallResult(result)) => {
                self.handle_call_result(result);
                Ok(())
            }
            (State::Open, ToHub::CallDeclined(declined)) => {
                self.handle_call_declined(declined);
                Ok(())
            }
            (State::Open, ToHub::TriggerCursor(cursor)) => {
                self.events.push_back(HubEvent::Cursor(cursor));
                Ok(())
            }
            (State::Open, ToHub::Draining(_)) => {
                if !self.draining {
                    self.draining = true;
                    self.events.push_back(HubEvent::Draining);
                }
                Ok(())
            }
            (State::Open, ToHub::Unsupported(unsupported)) => {
                self.events.push_back(HubEvent::Unsupported(unsupported.of));
                Ok(())
            }
        }
    }

    /// Whether the agent holds the attempt, now that it spoke of it; the first time the owner is told.
    fn accepted(&mut self, attempt: Attempt) -> bool {
        self.answered(attempt);
        match self.attempts.get_mut(&attempt).map(|tracked| &mut tracked.phase) {
            Some(phase @ Phase::Offered { .. }) => {
                *phase = Phase::Accepted;
                self.events.push_back(HubEvent::Accepted(attempt));
                true
            }
            Some(Phase::Accepted) => true,
            Some(Phase::Reported { .. }) | None => false,
        }
    }
}

fn kind(message: &ToHub) -> &'static str {
    match message {
        ToHub::Hello(_) => "hello",
        ToHub::Accept(_) => "accept",
        ToHub::Decline(_) => "decline",
        ToHub::Progress(_) => "progress",
        ToHub::Commit(_) => "commit",
        ToHub::Report(_) => "report",
        ToHub::Event(_) => "event",
        ToHub::CallResult(_) => "call_result",
        ToHub::CallDeclined(_) => "call_declined",
        ToHub::TriggerCursor(_) => "trigger_cursor",
        ToHub::Draining(_) => "draining",
        ToHub::Unsupported(_) => "unsupported",
    }
}
