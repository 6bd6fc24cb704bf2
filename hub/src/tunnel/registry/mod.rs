//! The live sessions: who is there, what they announced, and how many places they have left.
//!
//! A place is reserved in the writer's transaction that stores the attempt, and given back in the one that stores its
//! end. The session's own state machine counts the same places; both see the same events in the same order.
//!
//! Limits of a resource hold across the site: its agents share one private system. Attempts of agents that are away count
//! until their lease is over or they come back.

mod calls;
#[cfg(test)]
mod calls_tests;
mod identity;
mod places;
mod rate;
mod session;
mod silence;
mod views;

pub(crate) use calls::{CallPlace, InLine, NoAgent};
pub(crate) use places::Place;
pub(crate) use silence::Heard;

use super::breaker::{Breaker, Health};
use crate::{
    clock,
    model::{AttemptToOffer, NewJob, OperationView},
};
use passerelle_protocol::{
    AgentId, Commit, EventId, EventRefused, Hello, JobId, Name, SessionId, TriggerLease, limits::MAX_JOBS,
    session::Attempt,
};
use session::{Resource, Session};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How many commands may wait for a session: its offers are bounded by its places, so this is never reached by one
/// whose task runs.
pub(super) const COMMANDS: usize = 4 * MAX_JOBS as usize;
/// How long an agent may be silent before its attempts move, unless set.
pub(crate) const LEASE: Duration = Duration::from_secs(30);
/// How often silences are looked at, at most, in milliseconds.
const LOOK: u64 = 500;

/// Jobs of one queue compete for the same places.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct QueueKey {
    pub(crate) tenant: Name,
    pub(crate) site: Name,
    pub(crate) resource: Name,
}

impl QueueKey {
    pub(crate) fn of(job: &NewJob) -> Self {
        Self { tenant: job.tenant.clone(), site: job.site.clone(), resource: job.resource.clone() }
    }
}

/// What the hub wants of a session.
#[derive(Debug)]
pub(crate) enum Command {
    /// The session is open, or not; the first command.
    Opened(Result<crate::store::sessions::Opened, crate::store::Error>),
    /// Sign and offer.
    Offer(Box<AttemptToOffer>),
    /// The report is stored.
    Ack(Attempt),
    /// The event is stored, now or before.
    EventAck { id: EventId, duplicate: bool },
    /// The event is not stored.
    EventRefused(EventRefused),
    /// All the triggers that the agent may run from now on.
    Triggers(Vec<TriggerLease>),
    /// A client wants the attempt stopped, or it is no longer needed.
    Cancel(Attempt),
    /// The grant is stored.
    Grant(Attempt),
    /// Another attempt acts on the same path: the wish is to be stored again in a moment.
    GrantLater(Box<Commit>),
    /// That moment is over.
    GrantNow(Box<Commit>),
    /// A newer connection of the same agent is here: of the same process, or of another one.
    Fenced { clone: bool, wait_s: u32 },
    /// The agent was revoked.
    Revoked,
    /// The tenant's tier has no hybrid mode any more.
    TierRequired,
    /// The hub signs with another key from now on.
    Keys,
    /// Send a call.
    Call(Box<super::session::calls::CallOrder>),
    /// Nobody waits for the call any more.
    CancelCall(JobId),
    /// What the agent told could not be stored.
    StoreFailed(crate::store::Error),
}

/// A session on its way into the registry.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) agent: AgentId,
    pub(crate) session: SessionId,
    pub(crate) tenant: Name,
    pub(crate) site: Name,
    /// The process, as its hello names it.
    pub(crate) instance: String,
    pub(crate) commands: mpsc::Sender<Command>,
    /// When the agent was last heard.
    pub(crate) heard: Arc<Heard>,
    /// Ends the session.
    pub(crate) stop: CancellationToken,
}

/// What the hub holds a resource of a site to, whatever agent its jobs run at.
#[derive(Debug, Default)]
struct Flow {
    breaker: Breaker,
    /// When the next attempt may start, by the rate.
    next_turn: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    flows: HashMap<QueueKey, Flow>,
    /// Attempts of agents that are away.
    away: HashMap<Attempt, (AgentId, QueueKey)>,
    /// Since when agents with such attempts are away, by the clock that nobody sets.
    away_since: HashMap<AgentId, u64>,
    /// Queues that must wait until then: for the rate, or for the breaker.
    throttled: BTreeMap<QueueKey, Instant>,
    sessions: HashMap<AgentId, Session>,
    sites: HashMap<(Name, Name), BTreeSet<AgentId>>,
    /// Queues that may hold more than there were places for.
    backlog: BTreeSet<QueueKey>,
    /// Calls that wait for a place.
    lines: calls::Lines,
    /// When the first hold is over.
    next_hold: Option<Instant>,
}

impl State {
    fn at(&self, tenant: &Name, site: &Name) -> impl Iterator<Item = &Session> {
        let agents = self.sites.get(&(tenant.clone(), site.clone()));
        agents.into_iter().flatten().filter_map(|agent| self.sessions.get(agent))
    }

    fn remove(&mut self, agent: AgentId) {
        if let Some(session) = self.sessions.remove(&agent) {
            if !session.attempts.is_empty() {
                let heard = session.arrival.heard.monotonic_ms.load(Ordering::Relaxed);
                self.away_since.insert(agent, heard);
            }
            let keys =
                session.attempts.iter().map(|(attempt, resource)| (*attempt, (agent, session.key(resource))));
            self.away.extend(keys);
            let site = (session.arrival.tenant, session.arrival.site);
            if let Some(agents) = self.sites.get_mut(&site) {
                agents.remove(&agent);
                if agents.is_empty() {
                    self.sites.remove(&site);
                }
            }
        }
    }
}

/// When silences were last looked at, and from when on they count.
#[derive(Debug, Clone, Copy, Default)]
struct Watch {
    looked: u64,
    not_before: u64,
}

/// The live sessions.
#[derive(Debug)]
pub(crate) struct Registry {
    state: Mutex<State>,
    watch: Mutex<Watch>,
    lease_ms: AtomicU64,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            watch: Mutex::new(Watch { looked: clock::monotonic_ms(), not_before: 0 }),
            lease_ms: AtomicU64::new(u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

impl Registry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a session with the attempts it keeps; the answer is every queue it serves.
    pub(crate) fn register(
        &self,
        arrival: Arrival,
        epoch: u64,
        hello: &Hello,
        kept: &[(Attempt, Name)],
    ) -> Vec<QueueKey> {
        let resources = hello.resources.iter().map(|announced| {
            let known = hello.connectors.get(&announced.connector);
            let operations = known
                .iter()
                .flat_map(|connector| &connector.operations)
                .filter(|operation| announced.operations.contains(&operation.name))
                .map(|operation| OperationView {
                    name: operation.name.clone(),
                    params_schema: operation.params_schema.clone(),
                    repeat: operation.repeat,
                })
                .collect();
            let resource = Resource { announced: announced.clone(), operations, in_flight: 0, hold: None };
            (announced.name.clone(), resource)
        });
        let mut session = Session {
            epoch,
            connected_at: clock::now(),
            max_jobs: hello.max_jobs.min(MAX_JOBS) as usize,
            resources: resources.collect(),
            attempts: HashMap::new(),
            calls: hello.calls.map(|announced| session::Calls { announced, open: HashMap::new() }),
            draining: false,
            arrival,
        };
        for (attempt, resource) in kept {
            session.take(*attempt, resource);
        }
        let keys = session.keys().collect();
        let mut state = self.state();
        let agent = session.arrival.agent;
        // What it no longer holds is released where that is found out.
        state.away.retain(|attempt, (of, _)| *of != agent || !session.attempts.contains_key(attempt));
        state.away_since.remove(&agent);
        let site = (session.arrival.tenant.clone(), session.arrival.site.clone());
        state.sites.entry(site).or_default().insert(agent);
        state.sessions.insert(agent, session);
        let keys: Vec<QueueKey> = keys;
        keys.iter().for_each(|key| state.next_in_line(key));
        keys
    }

    /// Takes a session off, unless a newer one of the agent has taken its place.
    pub(crate) fn remove(&self, agent: AgentId, session: SessionId) {
        let mut state = self.state();
        if state.sessions.get(&agent).is_some_and(|known| known.arrival.session == session) {
            state.remove(agent);
        }
    }

    /// Takes whatever session the agent has off.
    pub(crate) fn forget(&self, agent: AgentId) {
        self.state().remove(agent);
    }

    /// Sends a command to the agent's session, if it has one.
    pub(crate) fn send(&self, agent: AgentId, command: Command) {
        Self::deliver(&mut self.state(), agent, None, command);
    }

    /// Whether more may wait in a queue than there are places for.
    pub(crate) fn has_backlog(&self, key: &QueueKey) -> bool {
        self.state().backlog.contains(key)
    }

    /// What an attempt told of the target behind its resource. True if the queue should be looked at again.
    pub(crate) fn told_of(&self, key: &QueueKey, attempt: Attempt, health: Health) -> bool {
        let mut state = self.state();
        // A target that works needs no entry.
        if health != Health::Down && !state.flows.contains_key(key) {
            return false;
        }
        state.flows.entry(key.clone()).or_default().breaker.told(attempt, health, Instant::now())
    }

    /// Sends a command to this very session.
    pub(crate) fn send_to(&self, agent: AgentId, session: SessionId, command: Command) {
        Self::deliver(&mut self.state(), agent, Some(session), command);
    }

    fn deliver(state: &mut State, agent: AgentId, only: Option<SessionId>, command: Command) {
        let Some(session) = state.sessions.get(&agent) else { return };
        if only.is_some_and(|only| only != session.arrival.session) {
            return;
        }
        if session.arrival.commands.try_send(command).is_err() {
            // Its task hangs or has ended; the agent reconciles when it comes back.
            tracing::warn!(agent_id = %agent, "Session does not take commands");
            session.arrival.stop.cancel();
            state.remove(agent);
        }
    }

    /// Whether the queue may hold more than there are places for.
    pub(crate) fn set_backlog(&self, key: &QueueKey, more: bool) {
        let mut state = self.state();
        if !more {
            state.backlog.remove(key);
        } else if !state.backlog.contains(key) && state.at(&key.tenant, &key.site).next().is_some() {
            // Without a session nothing is freed, and a new one looks at all its queues.
            state.backlog.insert(key.clone());
        }
    }

    /// Offers nothing more to this session.
    pub(crate) fn drain(&self, agent: AgentId, session: SessionId) {
        if let Some(known) = self.state().sessions.get_mut(&agent)
            && known.arrival.session == session
        {
            known.draining = true;
        }
    }

    /// Every queue that a live session serves.
    pub(crate) fn queues(&self) -> Vec<QueueKey> {
        self.state().sessions.values().flat_map(Session::keys).collect()
    }

    /// The agents with a live session.
    pub(crate) fn agents(&self) -> Vec<AgentId> {
        self.state().sessions.keys().copied().collect()
    }
}
