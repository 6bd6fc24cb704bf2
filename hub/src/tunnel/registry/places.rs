//! Places of a resource: how many the site has left, who gets one, and when those that are held back are free again.

use super::{QueueKey, Registry, State, rate::Rate};
use passerelle_protocol::{AgentId, Name, Repeat, SessionId, session::Attempt};
use std::time::{Duration, Instant};

/// A reserved place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) agent: AgentId,
    pub(crate) session: SessionId,
    pub(crate) epoch: u64,
    /// How the operation repeats, as the agent announced it.
    pub(crate) repeat: Repeat,
}

impl State {
    /// An attempt has ended, told of its target or not.
    pub(super) fn ended(&mut self, key: &QueueKey, attempt: Attempt) {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.breaker.ended(attempt);
        }
    }

    /// How many more attempts of a resource the site bears; or when to ask again.
    pub(super) fn bears(&mut self, key: &QueueKey, now: Instant) -> Result<usize, Instant> {
        let (most, rate) = self.limits(key);
        let here: usize = self
            .at(&key.tenant, &key.site)
            .filter_map(|session| session.resources.get(&key.resource))
            .map(|of| of.in_flight)
            .sum();
        let away = self.away.values().filter(|(_, of)| of == key).count();
        let flow = self.flows.entry(key.clone()).or_default();
        let places = flow.breaker.places(now)?.min(most.saturating_sub(here + away));
        match (rate, flow.next_turn) {
            (Some(rate), Some(next)) if places > 0 => match rate.turns(next, now) {
                0 => Err(next),
                turns => Ok(places.min(turns)),
            },
            (Some(rate), None) => Ok(places.min(rate.burst())),
            (Some(_), Some(_)) | (None, _) => Ok(places),
        }
    }

    /// The strictest limits that its agents announce.
    pub(super) fn limits(&self, key: &QueueKey) -> (usize, Option<Rate>) {
        let announced = || {
            self.at(&key.tenant, &key.site)
                .filter_map(|session| session.resources.get(&key.resource))
                .map(|of| &of.announced)
        };
        let most = announced().map(|of| of.max_concurrent).min().unwrap_or(0);
        (most as usize, announced().filter_map(|of| of.rate_per_minute).min().map(Rate))
    }
}

impl Registry {
    /// How many places the site has for a resource.
    pub(crate) fn capacity(&self, key: &QueueKey) -> usize {
        let mut state = self.state();
        let free: usize = state.at(&key.tenant, &key.site).map(|session| session.free(&key.resource)).sum();
        if free == 0 {
            return 0;
        }
        match state.bears(key, Instant::now()) {
            // Somebody waits for a call, and nobody for a job in that sense.
            Ok(places) => free.min(places).saturating_sub(state.calls_waiting(key)),
            Err(at) => {
                state.throttled.insert(key.clone(), at);
                state.next_hold = Some(state.next_hold.map_or(at, |next| next.min(at)));
                0
            }
        }
    }

    /// Reserves a place for an attempt, at the agent that has most of them.
    /// `only`: at no other agent than this one.
    pub(crate) fn reserve(
        &self,
        key: &QueueKey,
        operation: &Name,
        attempt: Attempt,
        may: impl Fn(AgentId) -> bool,
    ) -> Option<Place> {
        let mut state = self.state();
        let now = Instant::now();
        if !state.bears(key, now).is_ok_and(|places| places > 0) {
            return None;
        }
        let rate = state.limits(key).1;
        let best = state
            .at(&key.tenant, &key.site)
            .filter(|session| may(session.arrival.agent))
            .filter(|session| session.free(&key.resource) > 0)
            .max_by_key(|session| {
                let announced = session
                    .resources
                    .get(&key.resource)
                    .is_some_and(|of| of.announced.operations.contains(operation));
                let spare = session.max_jobs.saturating_sub(session.attempts.len());
                (announced, spare, session.free(&key.resource))
            })?;
        let agent = best.arrival.agent;
        let session = state.sessions.get_mut(&agent)?;
        session.take(attempt, &key.resource);
        let of = session.resources.get(&key.resource)?;
        let repeat = of.operations.iter().find(|o| o.name == *operation).map_or(Repeat::Never, |o| o.repeat);
        let place = Place { agent, session: session.arrival.session, epoch: session.epoch, repeat };
        let flow = state.flows.entry(key.clone()).or_default();
        flow.breaker.starts(attempt);
        if let Some(rate) = rate {
            flow.next_turn = Some(rate.after(flow.next_turn, now));
        }
        Some(place)
    }

    /// Gives a place back; the answer is the queues that may use it.
    pub(crate) fn release(&self, agent: AgentId, attempt: Attempt) -> Vec<QueueKey> {
        let mut state = self.state();
        if let Some((_, key)) = state.away.remove(&attempt) {
            state.ended(&key, attempt);
            state.next_in_line(&key);
            return vec![key];
        }
        let Some(session) = state.sessions.get_mut(&agent) else { return Vec::new() };
        let Some(resource) = session.attempts.remove(&attempt) else { return Vec::new() };
        let key = session.key(&resource);
        if let Some(of) = session.resources.get_mut(&resource) {
            of.in_flight = of.in_flight.saturating_sub(1);
        }
        state.ended(&key, attempt);
        state.next_in_line(&key);
        let State { sessions, backlog, .. } = &*state;
        if backlog.is_empty() {
            return Vec::new();
        }
        sessions
            .get(&agent)
            .map(|session| session.keys().filter(|key| backlog.contains(key)).collect())
            .unwrap_or_default()
    }

    /// Offers nothing of a resource to an agent for a while.
    pub(crate) fn hold(&self, agent: AgentId, resource: &Name, wait: Duration) {
        let Some(until) = Instant::now().checked_add(wait) else { return };
        let mut state = self.state();
        if let Some(of) = state.sessions.get_mut(&agent).and_then(|s| s.resources.get_mut(resource)) {
            of.hold = Some(until);
            state.next_hold = Some(state.next_hold.map_or(until, |next| next.min(until)));
        }
    }

    /// How long until the next hold is over.
    pub(crate) fn next_hold(&self) -> Option<Duration> {
        self.state().next_hold.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Ends the holds that are over; the answer is their queues.
    pub(crate) fn holds_over(&self) -> Vec<QueueKey> {
        let now = Instant::now();
        let mut keys = Vec::new();
        let mut state = self.state();
        if state.next_hold.is_none_or(|at| at > now) {
            return keys;
        }
        let mut next = None;
        for session in state.sessions.values_mut() {
            let mut over = Vec::new();
            for (name, of) in &mut session.resources {
                match of.hold {
                    Some(at) if at <= now => {
                        of.hold = None;
                        over.push(name.clone());
                    }
                    Some(at) => next = Some(next.map_or(at, |next: Instant| next.min(at))),
                    None => {}
                }
            }
            keys.extend(over.iter().map(|name| session.key(name)));
        }
        let over: Vec<QueueKey> =
            state.throttled.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in &over {
            state.throttled.remove(key);
        }
        keys.extend(over);
        state.next_hold = next.into_iter().chain(state.throttled.values().copied()).min();
        keys
    }
}
