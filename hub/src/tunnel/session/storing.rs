//! What the agent tells goes to the store's writer, in order; what follows from it comes back as a command.

use super::Session;
use crate::{
    store::{
        Error, attempts,
        grants::{self, Asked},
        sessions, triggers,
    },
    tunnel::{
        registry::{Arrival, Command},
        report::check_report,
    },
};
use passerelle_protocol::{
    Decline,
    session::{Attempt, HubEvent},
};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

impl Session {
    /// Hands one event to the store's writer; what follows comes back as a command.
    pub(super) fn store_event(&mut self, place: OwnedSemaphorePermit, event: HubEvent) {
        let (agent, own) = (self.agent.id, self.own.clone());
        let failed = move |own: mpsc::Sender<Command>, error: Error| {
            // Full or gone: the session is ending anyway.
            drop(own.try_send(Command::StoreFailed(error)));
        };
        let ordered = match event {
            HubEvent::Hello(hello) => {
                self.arrived = true;
                self.trusted.clone_from(&hello.hub_keys);
                let arrival = Arrival {
                    agent,
                    session: self.id,
                    tenant: self.agent.tenant.clone(),
                    site: self.agent.site.clone(),
                    instance: hello.instance.clone(),
                    commands: own.clone(),
                    heard: Arc::clone(&self.heard),
                    stop: self.closing.clone(),
                };
                self.store.order(
                    place,
                    false,
                    move |tx| sessions::open(tx, &hello, arrival),
                    move |opened| drop(own.try_send(Command::Opened(opened))),
                )
            }
            HubEvent::Accepted(attempt) => self.store.order(
                place,
                true,
                move |tx| attempts::accepted(tx, agent, attempt),
                move |done| done.unwrap_or_else(|e| failed(own, e)),
            ),
            HubEvent::Progress(progress) => self.store.order(
                place,
                true,
                move |tx| attempts::progressed(tx, agent, &progress),
                move |done| done.unwrap_or_else(|e| failed(own, e)),
            ),
            HubEvent::Declined(decline) => self.store_decline(place, decline),
            HubEvent::CommitRequested(commit) => {
                let attempt = Attempt::new(commit.job, commit.attempt);
                self.store.order(
                    place,
                    false,
                    move |tx| Ok((grants::commit_requested(tx, agent, &commit)?, commit)),
                    move |asked| match asked {
                        Ok((Asked::Granted, _)) => drop(own.try_send(Command::Grant(attempt))),
                        Ok((Asked::Later, commit)) => {
                            drop(own.try_send(Command::GrantLater(Box::new(commit))))
                        }
                        Ok((Asked::Never, _)) => {}
                        Err(error) => failed(own, error),
                    },
                )
            }
            HubEvent::Reported(report) => {
                let attempt = Attempt::new(report.job, report.attempt);
                self.progress.remove(&attempt);
                let checked = check_report(report);
                self.store.order(
                    place,
                    false,
                    move |tx| attempts::reported(tx, agent, &checked),
                    move |stored| match stored {
                        Ok(()) => drop(own.try_send(Command::Ack(attempt))),
                        Err(error) => failed(own, error),
                    },
                )
            }
            HubEvent::Event(event) => self.store_received(place, event),
            HubEvent::Cursor(cursor) => self.store.order(
                place,
                true,
                move |tx| triggers::advanced(tx, agent, &cursor),
                move |done| done.unwrap_or_else(|e| failed(own, e)),
            ),
            HubEvent::Draining
            | HubEvent::CallEnded(_)
            | HubEvent::CallDeclined(_)
            | HubEvent::CallLost(_)
            | HubEvent::Unsupported(_) => Ok(()),
        };
        if let Err(error) = ordered {
            self.give_up(&error);
        }
    }

    fn store_decline(&self, place: OwnedSemaphorePermit, decline: Decline) -> Result<(), Error> {
        let (agent, own) = (self.agent.id, self.own.clone());
        tracing::debug!(job_id = %decline.job, attempt = decline.attempt, code = %decline.code, "Offer declined");
        self.store.order(
            place,
            false,
            move |tx| attempts::declined(tx, agent, &decline),
            move |done| {
                if let Err(error) = done {
                    drop(own.try_send(Command::StoreFailed(error)));
                }
            },
        )
    }
}
