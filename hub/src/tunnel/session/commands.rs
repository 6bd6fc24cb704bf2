//! What the hub wants of a session, command by command.

use super::Session;
use crate::{
    model::AttemptToOffer,
    store::sessions::Opened,
    tunnel::{offer, registry::Command},
};
use passerelle_protocol::{
    Commit, Decline,
    session::{Attempt, HubEvent, NotOffered},
};
use std::time::{Duration, Instant};

/// After how long a grant is asked for again while another attempt acts on the same path: that is a rename, mostly.
const ASK_AGAIN: Duration = Duration::from_millis(50);

impl Session {
    pub(super) async fn obey(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Opened(Ok(Opened::Welcome { welcome, cancel, triggers })) => {
                self.epoch = welcome.epoch;
                tracing::info!(session_id = %self.id, epoch = welcome.epoch, held = welcome.held.len(), "Session open");
                self.machine.welcome(*welcome);
                self.tell_keys();
                if let Some(leases) = triggers {
                    self.tell_triggers(leases);
                }
                for attempt in cancel {
                    self.machine.cancel(attempt, now);
                }
            }
            Command::Opened(Ok(Opened::Revoked)) | Command::Revoked => {
                self.refuse("revoked", "this agent's identity was revoked: enrol it again", true, None);
            }
            Command::Keys => drop(self.tell_keys()),
            Command::Opened(Ok(Opened::TierRequired)) | Command::TierRequired => {
                let message = "hybrid mode needs the Enterprise tier: have the tenant's tier changed";
                self.refuse("tier_required", message, true, None);
            }
            Command::Opened(Err(error)) | Command::StoreFailed(error) => self.give_up(&error),
            Command::Offer(to_offer) => self.offer(*to_offer).await,
            Command::Call(order) => self.call(*order),
            Command::CancelCall(call) => self.machine.cancel_call(call),
            Command::Ack(attempt) => self.machine.ack_report(attempt),
            Command::EventAck { id, duplicate } => self.machine.ack_event(id, duplicate),
            Command::EventRefused(refused) => self.refuse_event(refused),
            Command::Triggers(leases) => self.tell_triggers(leases),
            Command::Cancel(attempt) => self.machine.cancel(attempt, now),
            Command::Grant(attempt) => self.machine.grant_commit(attempt),
            Command::GrantLater(commit) => self.ask_again(commit),
            Command::GrantNow(commit) => {
                self.asking.remove(&Attempt::new(commit.job, commit.attempt));
                self.unstored.push_back(HubEvent::CommitRequested(*commit));
            }
            Command::Fenced { clone, wait_s } => {
                self.clone = clone;
                tracing::warn!(session_id = %self.id, clone, "A newer connection of the same agent fences this one");
                let message = if clone {
                    "another process uses this agent's identity, and is connected: a copy of the state folder runs \
                     elsewhere"
                } else {
                    "a newer connection with this agent's identity is open"
                };
                self.refuse("fenced", message, false, Some(wait_s));
            }
        }
    }

    /// Has a wish for a grant stored again in a moment; once for each attempt, however often the agent repeats it.
    fn ask_again(&mut self, commit: Box<Commit>) {
        if !self.asking.insert(Attempt::new(commit.job, commit.attempt)) {
            return;
        }
        let own = self.own.clone();
        tokio::spawn(async move {
            tokio::time::sleep(ASK_AGAIN).await;
            // The session may be gone: its agent asks anew.
            drop(own.send(Command::GrantNow(commit)).await);
        });
    }

    /// Signs and sends an offer. One that cannot be sent is given back, so that the job does not hang on it.
    async fn offer(&mut self, to_offer: AttemptToOffer) {
        let attempt = Attempt::new(to_offer.job.id, to_offer.attempt);
        let resource = to_offer.job.resource.clone();
        // The agent hears of a key before it gets what that key signed.
        let key = self.tell_keys();
        let made = offer::make(&self.store, &key, self.agent.id, self.epoch, to_offer).await;
        let code = match made.map(|offer| self.machine.offer(offer, resource, Instant::now())) {
            Ok(Ok(())) => return,
            Ok(Err(error @ NotOffered::NoCredit)) => {
                tracing::debug!(job_id = %attempt.job, attempt = attempt.number, %error, "Offer taken back");
                passerelle_protocol::Code::Busy
            }
            Ok(Err(NotOffered::Unsendable(error))) => {
                tracing::error!(job_id = %attempt.job, attempt = attempt.number, %error, "A job cannot be offered");
                passerelle_protocol::Code::TooLarge
            }
            Err(error) => {
                tracing::error!(job_id = %attempt.job, attempt = attempt.number, error = %error, "Could not make an offer");
                passerelle_protocol::Code::Internal
            }
        };
        let message = "the hub could not make the offer".to_owned();
        let back = Decline { job: attempt.job, attempt: attempt.number, code, message, retry_after_ms: None };
        self.unstored.push_back(HubEvent::Declined(back));
    }
}
