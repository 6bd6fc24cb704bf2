//! What each message of the hub does to the agent's side of the session.

use super::{
    super::{
        Attempt,
        link::{CloseReason, Resend},
    },
    AgentEvent, AgentSession, Phase, State,
};
use crate::{Accept, Draining, Offer, Sha256, ToAgent, ToHub, VersionRange, limits::RESEND};
use std::time::Instant;

impl AgentSession {
    pub(super) fn handle_message(&mut self, message: ToAgent, now: Instant) -> Result<(), CloseReason> {
        match (&self.state, message) {
            (State::AwaitWelcome { .. }, ToAgent::Welcome(welcome)) => {
                let VersionRange { min, max } = self.versions;
                if !(min..=max).contains(&welcome.version) {
                    let reason =
                        format!("the hub chose version {}, we speak {min} to {max}", welcome.version);
                    return Err(CloseReason::PeerIncompatible(reason));
                }
                self.state = State::Open;
                self.events.push_back(AgentEvent::Welcomed(welcome));
                self.send_what_waited(now);
                Ok(())
            }
            (State::AwaitWelcome { .. } | State::Open, ToAgent::Refuse(refuse)) => {
                let reason = CloseReason::Refused(format!("{}: {}", refuse.code, refuse.message));
                self.events.push_back(AgentEvent::Refused(refuse));
                Err(reason)
            }
            // Reordered before the welcome: the hub sends it again.
            (State::AwaitWelcome { .. } | State::Closed(_), _) | (State::Open, ToAgent::Welcome(_)) => Ok(()),
            (State::Open, ToAgent::HubKeys(keys)) => {
                self.events.push_back(AgentEvent::HubKeys(keys));
                Ok(())
            }
            (State::Open, ToAgent::Offer(offer)) => self.handle_offer(offer),
            (State::Open, ToAgent::CommitGranted(granted)) => {
                let attempt = Attempt::new(granted.job, granted.attempt);
                if matches!(self.attempts.get(&attempt), Some(Phase::Asking { .. })) {
                    self.attempts.insert(attempt, Phase::Held);
                    self.events.push_back(AgentEvent::CommitGranted(attempt));
                }
                Ok(())
            }
            (State::Open, ToAgent::ReportAck(ack)) => {
                let attempt = Attempt::new(ack.job, ack.attempt);
                if let Some(Phase::Reported { text, .. }) = self.attempts.get(&attempt) {
                    self.unacked_bytes -= text.len();
                    self.unacked -= 1;
                    self.attempts.remove(&attempt);
                    self.events.push_back(AgentEvent::ReportAcked(attempt));
                }
                Ok(())
            }
            (State::Open, ToAgent::Cancel(cancel)) => {
                let attempt = Attempt::new(cancel.job, cancel.attempt);
                match self.attempts.get_mut(&attempt) {
                    Some(Phase::Reported { text, resend }) => {
                        // Too late: the outcome is the answer.
                        *resend = Resend::after(now, RESEND);
                        self.link.send(Ok(text.clone()))?;
                    }
                    Some(Phase::Offered { .. } | Phase::Held | Phase::Asking { .. }) => {
                        self.events.push_back(AgentEvent::CancelRequested(attempt));
                    }
                    None => {}
                }
                Ok(())
            }
            (State::Open, ToAgent::EventAck(ack)) => {
                if self.sent_events.answered(ack.id) {
                    self.events.push_back(AgentEvent::EventAcked(ack));
                }
                Ok(())
            }
            (State::Open, ToAgent::EventRefused(refused)) => {
                if self.sent_events.answered(refused.id) {
                    self.events.push_back(AgentEvent::EventRefused(refused));
                }
                Ok(())
            }
            (State::Open, ToAgent::Triggers(triggers)) => {
                // An older list that comes late would give back what the newer one took away.
                if self.triggers.is_none_or(|latest| latest < triggers.serial) {
                    self.triggers = Some(triggers.serial);
                    self.events.push_back(AgentEvent::Triggers(triggers.leases));
                }
                Ok(())
            }
            (State::Open, ToAgent::Call(call)) => self.handle_call(call),
            (State::Open, ToAgent::CallCancel(cancel)) => {
                self.handle_call_cancel(cancel.call);
                Ok(())
            }
            (State::Open, ToAgent::Unsupported(unsupported)) => {
                self.events.push_back(AgentEvent::Unsupported(unsupported.of));
                Ok(())
            }
        }
    }

    fn handle_offer(&mut self, offer: Offer) -> Result<(), CloseReason> {
        let attempt = Attempt::new(offer.job, offer.attempt);
        if let Some(grace_s) = self.draining {
            // The hub offers all the same, so it has not heard.
            self.link.send(ToHub::from(Draining { grace_s }).encode())?;
        }
        match self.attempts.get(&attempt) {
            None => {
                let ticket = Sha256::of(offer.ticket.as_bytes());
                // A copy of what was declined: answered alike, or hub and agent could end with different ideas.
                if let Some((declined, decline)) = self.declined.get(attempt)
                    && *declined == ticket
                {
                    return self.link.send(ToHub::from(decline.clone()).encode());
                }
                // Twice the credit: offers may cross with reports that free a place, a flood may not fill memory.
                let unanswered =
                    self.attempts.values().filter(|phase| matches!(phase, Phase::Offered { .. })).count();
                if unanswered >= self.max_jobs.saturating_mul(2).max(64) {
                    return Err(CloseReason::PeerMisbehaved("more offers than the agent takes".to_owned()));
                }
                self.declined.remove(attempt);
                self.attempts.insert(attempt, Phase::Offered { ticket });
                self.events.push_back(AgentEvent::Offered(offer));
                Ok(())
            }
            Some(Phase::Offered { .. }) => Ok(()),
            Some(Phase::Held | Phase::Asking { .. } | Phase::Reported { .. }) => {
                self.link.send(ToHub::from(Accept { job: attempt.job, attempt: attempt.number }).encode())
            }
        }
    }
}
