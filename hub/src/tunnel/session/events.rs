//! A session's events and the leases of its triggers.

use super::{
    super::event::{check_event, no_room, refusal},
    Session,
};
use crate::{
    store::{
        Error,
        received::{self, Receipt},
        triggers,
    },
    tunnel::registry::Command,
};
use passerelle_protocol::{Event, EventRefused, TriggerLease};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};
use tokio::sync::OwnedSemaphorePermit;

impl Session {
    /// Has an event stored; the answer to the agent comes back as a command.
    pub(super) fn store_received(&mut self, place: OwnedSemaphorePermit, event: Event) -> Result<(), Error> {
        let id = event.id;
        let most = self.store.shared().max_blob.load(Ordering::Relaxed);
        let checked = match check_event(event, &self.agent.site, most) {
            Ok(checked) => checked,
            Err(refused) => {
                self.store.shared().events.refused.fetch_add(1, Ordering::Relaxed);
                self.refuse_event(refused);
                return Ok(());
            }
        };
        let (agent, own) = (Arc::clone(&self.agent), self.own.clone());
        self.store.order(
            place,
            false,
            move |tx| received::receive(tx, &agent, &checked),
            move |done| {
                let command = match done {
                    Ok(Receipt::Stored) => Command::EventAck { id, duplicate: false },
                    Ok(Receipt::Duplicate) => Command::EventAck { id, duplicate: true },
                    Ok(receipt) => match refusal(id, receipt) {
                        Some(refused) => Command::EventRefused(refused),
                        None => return,
                    },
                    Err(error) => match no_room(id, &error) {
                        Some(refused) => Command::EventRefused(refused),
                        None => Command::StoreFailed(error),
                    },
                };
                // Full or gone: the session is ending anyway.
                drop(own.try_send(command));
            },
        )
    }

    pub(super) fn refuse_event(&mut self, refused: EventRefused) {
        tracing::debug!(event_id = %refused.id, code = refused.code, "Event refused");
        self.machine.refuse_event(refused);
    }

    /// Tells the agent which triggers it may run, and comes back to that in time.
    pub(super) fn tell_triggers(&mut self, leases: Vec<TriggerLease>) {
        self.machine.tell_triggers(leases);
        self.renewal = Instant::now().checked_add(self.store.shared().registry.lease() / 3);
    }

    /// Renews the leases of an agent that was heard lately, and looks whether others are free by now.
    pub(super) fn renew_when_due(&mut self) {
        let now = Instant::now();
        if self.renewal.is_none_or(|at| at > now) || !self.machine.is_open() {
            return;
        }
        let lease = self.store.shared().registry.lease();
        self.renewal = now.checked_add(lease / 3);
        // A silent agent's leases run out.
        if self.heard.silence() > lease / 2 {
            return;
        }
        // The store is busy: the next time is soon enough, since a lease outlives two of them.
        let Some(place) = self.store.try_place() else { return };
        let (agent, own) = (self.agent.id, self.own.clone());
        let ordered = self.store.order(
            place,
            true,
            move |tx| triggers::refresh(tx, agent),
            move |done| match done {
                Ok(leases) => drop(own.try_send(Command::Triggers(leases))),
                Err(error) => tracing::error!(%error, "Could not renew the leases of an agent's triggers"),
            },
        );
        if let Err(error) = ordered {
            self.give_up(&error);
        }
    }
}
