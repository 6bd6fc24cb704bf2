//! Leases: when agents were last heard, and which of them were silent for too long.

use super::{LOOK, QueueKey, Registry};
use crate::clock;
use passerelle_protocol::{AgentId, session::Attempt};
use std::{
    sync::{
        PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

/// When an agent was last heard: as people tell the time, and by a clock that nobody sets.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(super) unix_ms: AtomicI64,
    pub(super) monotonic_ms: AtomicU64,
}

impl Heard {
    pub(crate) fn now() -> Self {
        let heard = Self { unix_ms: AtomicI64::new(0), monotonic_ms: AtomicU64::new(0) };
        heard.again();
        heard
    }

    /// For how long nothing was heard.
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_millis(clock::monotonic_ms().saturating_sub(self.monotonic_ms.load(Ordering::Relaxed)))
    }

    pub(crate) fn again(&self) {
        self.unix_ms.store(clock::now().as_millisecond(), Ordering::Relaxed);
        self.monotonic_ms.store(clock::monotonic_ms(), Ordering::Relaxed);
    }
}

impl Registry {
    /// How long an agent may be silent before its attempts move.
    pub(crate) fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms.load(Ordering::Relaxed))
    }

    /// Sets it.
    pub(crate) fn set_lease(&self, lease: Duration) {
        self.lease_ms.store(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// At the start: attempts whose agents are expected to come back. Their silence counts from now.
    pub(crate) fn expect_back(&self, open: Vec<(AgentId, Attempt, QueueKey)>) {
        let now = clock::monotonic_ms();
        let mut state = self.state();
        for (agent, attempt, queue) in open {
            state.away_since.insert(agent, now);
            state.away.insert(attempt, (agent, queue));
        }
    }

    /// Agents with attempts that were not heard for as long as a lease; each is told once per silence. A live session among
    /// them is let go: its agent has to come back and hear what became of its attempts.
    pub(crate) fn silent(&self) -> Vec<AgentId> {
        let now = clock::monotonic_ms();
        let lease = self.lease_ms.load(Ordering::Relaxed);
        {
            let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
            let since = now.saturating_sub(watch.looked);
            if since < (lease / 20).min(LOOK) {
                return Vec::new();
            }
            // This process was stopped or starved itself: agents may have spoken meanwhile.
            if since > lease / 3 {
                watch.not_before = now + lease;
            }
            watch.looked = now;
            if now < watch.not_before {
                return Vec::new();
            }
        }
        let over = |heard: u64| now.saturating_sub(heard) > lease;
        let mut state = self.state();
        let hung: Vec<AgentId> = state
            .sessions
            .iter()
            .filter(|(_, session)| over(session.arrival.heard.monotonic_ms.load(Ordering::Relaxed)))
            .map(|(agent, _)| *agent)
            .collect();
        for agent in hung {
            if let Some(session) = state.sessions.get(&agent) {
                session.arrival.stop.cancel();
            }
            state.remove(agent);
        }
        let silent: Vec<AgentId> =
            state.away_since.iter().filter(|(_, since)| over(**since)).map(|(agent, _)| *agent).collect();
        for agent in &silent {
            state.away_since.remove(agent);
        }
        silent
    }
}
