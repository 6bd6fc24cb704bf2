//! Events in flight: what the agent's side sends until it is answered, and what the hub's side tells its owner once.

use super::link::Resend;
use crate::{
    EventId,
    limits::{MAX_UNACKED_EVENT_BYTES, MAX_UNACKED_EVENTS, RESEND},
};
use std::{collections::BTreeMap, time::Instant};

/// The agent's events that wait for their answer, in the order in which they were sent.
#[derive(Debug, Default)]
pub(super) struct SentEvents {
    waiting: BTreeMap<u64, Sent>,
    number: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Sent {
    id: EventId,
    text: String,
    resend: Resend,
}

impl SentEvents {
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < MAX_UNACKED_EVENTS
            && (self.waiting.is_empty() || self.bytes < MAX_UNACKED_EVENT_BYTES)
    }

    pub(super) fn contains(&self, id: EventId) -> bool {
        self.waiting.values().any(|sent| sent.id == id)
    }

    pub(super) fn insert(&mut self, id: EventId, text: String, now: Instant) {
        self.number += 1;
        self.bytes += text.len();
        self.waiting.insert(self.number, Sent { id, text, resend: Resend::after(now, RESEND) });
    }

    /// Forgets an event that was answered; whether it waited for that.
    pub(super) fn answered(&mut self, id: EventId) -> bool {
        let number = self.waiting.iter().find(|(_, sent)| sent.id == id).map(|(number, _)| *number);
        let sent = number.and_then(|number| self.waiting.remove(&number));
        self.bytes -= sent.as_ref().map_or(0, |sent| sent.text.len());
        sent.is_some()
    }

    /// What is due to be sent again.
    pub(super) fn due(&mut self, now: Instant) -> Vec<String> {
        let due =
            self.waiting.values_mut().filter_map(|sent| sent.resend.due(now, RESEND).then_some(&sent.text));
        due.cloned().collect()
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.values().map(|sent| sent.resend.at()).min()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

/// The events that the hub's owner was told of and has not answered.
#[derive(Debug, Default)]
pub(super) struct HeardEvents(BTreeMap<EventId, Resend>);

/// An agent that leaves more unanswered does not keep to its window; the rest is for what crosses on the wire.
const MOST: usize = 4 * MAX_UNACKED_EVENTS;

/// The agent sends more than it may.
pub(super) struct TooMany;

impl HeardEvents {
    /// Whether the owner is to be told of an event that came: not while it has the same one in hand.
    pub(super) fn heard(&mut self, id: EventId, now: Instant) -> Result<bool, TooMany> {
        if let Some(again) = self.0.get_mut(&id) {
            return Ok(again.due(now, RESEND));
        }
        if self.0.len() >= MOST {
            return Err(TooMany);
        }
        self.0.insert(id, Resend::after(now, RESEND));
        Ok(true)
    }

    pub(super) fn answered(&mut self, id: EventId) {
        self.0.remove(&id);
    }
}
