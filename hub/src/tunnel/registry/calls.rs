//! Places for calls: the limits of a resource are the same as for jobs, and those who wait for a call come first.

use super::{Health, QueueKey, Registry, State};
use passerelle_protocol::{AgentId, JobId, Name, Pause, SessionId, session::Attempt};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// How many calls may wait for a place at one resource.
pub(super) const MOST_WAITING: usize = 1024;
/// When to come back to a resource whose breaker lets one try.
const HALF_OPEN: Duration = Duration::from_secs(1);

/// Why no agent takes a call now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoAgent {
    /// None that offers the resource is connected.
    Offline,
    /// Those that do know nothing of calls.
    NotMade,
    /// Its operator has paused it.
    Paused(Pause),
    /// The resource's circuit breaker is open.
    Broken(Duration),
    /// They have as many calls as they take, or are about to stop.
    Busy,
    /// The resource bears no more just now: wait for a turn, or until then at most.
    Wait(Option<Instant>),
}

/// A reserved place for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallPlace {
    pub(crate) agent: AgentId,
    pub(crate) session: SessionId,
    pub(crate) epoch: u64,
    /// Envelopes that were issued in this second or before may be refused.
    pub(crate) issued_after: i64,
}

/// Calls that wait for a place at a resource.
#[derive(Debug, Default)]
pub(super) struct Line {
    count: usize,
    /// How many of them cannot take just any agent: whose turn it is cannot be told then, and all look.
    choosy: usize,
    turn: Arc<Notify>,
}

/// The lines, by resource.
pub(super) type Lines = HashMap<QueueKey, Line>;

/// A place in the line; left when dropped.
pub(crate) struct InLine<'a> {
    registry: &'a Registry,
    key: QueueKey,
    choosy: bool,
    /// Told when there may be a place.
    pub(crate) turn: Arc<Notify>,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let mut state = self.registry.state();
        if let Some(line) = state.lines.get_mut(&self.key) {
            line.count -= 1;
            line.choosy -= usize::from(self.choosy);
            if line.count == 0 {
                state.lines.remove(&self.key);
            }
        }
    }
}

impl State {
    /// How many calls wait for a place at the resource: jobs leave them that many.
    pub(super) fn calls_waiting(&self, key: &QueueKey) -> usize {
        self.lines.get(key).map_or(0, |line| line.count)
    }

    /// There may be a place for a call that waits.
    pub(super) fn next_in_line(&self, key: &QueueKey) {
        if let Some(line) = self.lines.get(key) {
            match line.choosy {
                0 => line.turn.notify_one(),
                _ => line.turn.notify_waiters(),
            }
        }
    }

    /// How many more calls the site's resource bears now.
    fn bears_call(&mut self, key: &QueueKey, now: Instant) -> Result<(), NoAgent> {
        let flow = self.flows.entry(key.clone()).or_default();
        match flow.breaker.places(now) {
            Err(at) => return Err(NoAgent::Broken(at.saturating_duration_since(now))),
            Ok(0) => return Err(NoAgent::Broken(HALF_OPEN)),
            Ok(_) => {}
        }
        match self.bears(key, now) {
            Ok(0) => Err(NoAgent::Wait(None)),
            Ok(_) => Ok(()),
            Err(at) => Err(NoAgent::Wait(Some(at))),
        }
    }
}

impl Registry {
    /// Reserves a place for a call, at the agent that has most of them. Whoever is not `in_line` comes behind those who are.
    pub(crate) fn begin_call(
        &self,
        key: &QueueKey,
        operation: &Name,
        call: JobId,
        in_line: bool,
        may: impl Fn(AgentId) -> bool,
    ) -> Result<CallPlace, NoAgent> {
        let mut state = self.state();
        let now = Instant::now();
        let offering = || {
            state
                .at(&key.tenant, &key.site)
                .filter(|session| may(session.arrival.agent))
                .filter_map(|session| Some((session, session.resources.get(&key.resource)?)))
        };
        if offering().next().is_none() {
            return Err(NoAgent::Offline);
        }
        if offering().all(|(session, _)| session.calls.is_none()) {
            return Err(NoAgent::NotMade);
        }
        let pauses = offering().map(|(_, of)| of.announced.paused.clone());
        if let Some(pauses) = pauses.collect::<Option<Vec<Pause>>>() {
            let first = pauses.into_iter().min_by_key(|pause| (pause.until.is_none(), pause.until));
            return Err(first.map_or(NoAgent::Offline, NoAgent::Paused));
        }
        if offering().all(|(session, _)| session.free_calls() == 0) {
            return Err(NoAgent::Busy);
        }
        if !in_line && state.calls_waiting(key) > 0 {
            return Err(NoAgent::Wait(None));
        }
        state.bears_call(key, now)?;
        let rate = state.limits(key).1;
        let best = state
            .at(&key.tenant, &key.site)
            .filter(|session| may(session.arrival.agent) && session.free_calls() > 0)
            .filter_map(|session| Some((session, session.resources.get(&key.resource)?)))
            .filter(|(_, of)| of.announced.paused.is_none())
            .map(|(session, of)| {
                let left = (of.announced.max_concurrent as usize).saturating_sub(of.in_flight);
                (left, of.announced.operations.contains(operation), session)
            })
            .filter(|(left, ..)| *left > 0)
            .max_by_key(|(left, announced, session)| (*announced, session.free_calls(), *left));
        let Some((.., best)) = best else { return Err(NoAgent::Wait(None)) };
        let agent = best.arrival.agent;
        let Some(session) = state.sessions.get_mut(&agent) else { return Err(NoAgent::Offline) };
        let Some(calls) = &mut session.calls else { return Err(NoAgent::NotMade) };
        calls.open.insert(call, key.resource.clone());
        let issued_after = calls.announced.issued_after;
        let place = CallPlace { agent, session: session.arrival.session, epoch: session.epoch, issued_after };
        if let Some(of) = session.resources.get_mut(&key.resource) {
            of.in_flight += 1;
        }
        let flow = state.flows.entry(key.clone()).or_default();
        flow.breaker.starts(Attempt::new(call, 1));
        if let Some(rate) = rate {
            flow.next_turn = Some(rate.after(flow.next_turn, now));
        }
        if state.calls_waiting(key) > 1 {
            // There may be room for more than one.
            state.next_in_line(key);
        }
        Ok(place)
    }

    /// Waits for a place; nothing if too many do. Whoever is `choosy` cannot take just any agent.
    pub(crate) fn stand_in_line(&self, key: &QueueKey, choosy: bool) -> Option<InLine<'_>> {
        let mut state = self.state();
        let line = state.lines.entry(key.clone()).or_default();
        if line.count >= MOST_WAITING {
            return None;
        }
        line.count += 1;
        line.choosy += usize::from(choosy);
        let turn = Arc::clone(&line.turn);
        Some(InLine { registry: self, key: key.clone(), choosy, turn })
    }

    /// A call has ended, or did not begin. The answer is the queue of jobs that may use its place.
    pub(crate) fn end_call(
        &self,
        agent: AgentId,
        session: SessionId,
        call: JobId,
        health: Option<Health>,
    ) -> Option<QueueKey> {
        let mut state = self.state();
        let live = state.sessions.get_mut(&agent).filter(|live| live.arrival.session == session)?;
        let resource = live.calls.as_mut()?.open.remove(&call)?;
        let key = live.key(&resource);
        if let Some(of) = live.resources.get_mut(&resource) {
            of.in_flight = of.in_flight.saturating_sub(1);
        }
        let attempt = Attempt::new(call, 1);
        match health {
            // A target that works needs no entry.
            Some(health) if health == Health::Down || state.flows.contains_key(&key) => {
                state.flows.entry(key.clone()).or_default().breaker.told(attempt, health, Instant::now());
            }
            Some(_) => {}
            None => state.ended(&key, attempt),
        }
        state.next_in_line(&key);
        state.backlog.contains(&key).then_some(key)
    }
}
