//! What changes of identities and keys mean for live sessions.

use super::{Command, QueueKey, Registry};
use passerelle_protocol::{AgentId, session::Attempt};
use std::collections::HashSet;

impl Registry {
    /// Takes an agent off that is lost for good, with the places that its attempts had; the answer is their queues.
    pub(crate) fn lost(&self, agent: AgentId) -> Vec<QueueKey> {
        let mut state = self.state();
        state.remove(agent);
        state.away_since.remove(&agent);
        let gone: Vec<(Attempt, QueueKey)> = state
            .away
            .iter()
            .filter(|(_, (of, _))| *of == agent)
            .map(|(attempt, (_, key))| (*attempt, key.clone()))
            .collect();
        for (attempt, key) in &gone {
            state.away.remove(attempt);
            state.ended(key, *attempt);
        }
        gone.into_iter().map(|(_, key)| key).collect()
    }

    /// Whether the agent's live session is that of another process.
    pub(crate) fn is_another(&self, agent: AgentId, instance: &str) -> bool {
        self.state().sessions.get(&agent).is_some_and(|live| live.arrival.instance != instance)
    }

    /// Tells every session that the signing key is another one now.
    pub(crate) fn tell_keys(&self) {
        for agent in self.agents() {
            self.send(agent, Command::Keys);
        }
    }

    /// The agents with a live session, and those whose attempts still take up room.
    pub(crate) fn known(&self) -> Vec<AgentId> {
        let state = self.state();
        let away = state.away.values().map(|(agent, _)| *agent);
        state.sessions.keys().copied().chain(away).collect::<HashSet<_>>().into_iter().collect()
    }
}
