//! What the hub keeps in memory beside the database: identities looked up on every request, and who waits for a job.

use crate::model::{AgentRecord, Caller, Job};
use passerelle_protocol::{AgentId, JobId};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;

/// How many entries a cache holds before it starts anew.
const MAX_CACHED: usize = 10_000;

/// An API key: its holder and the digest of its secret.
pub(super) type Key = (Arc<Caller>, [u8; 32]);

/// Keys and agents. All is forgotten when any of them changes, in whatever process.
#[derive(Default)]
pub(crate) struct Caches {
    state: Mutex<Cached>,
}

#[derive(Default)]
struct Cached {
    /// Counts the times of forgetting: what was read before one is not kept after it.
    generation: u64,
    keys: HashMap<String, Key>,
    agents: HashMap<AgentId, Arc<AgentRecord>>,
}

impl Caches {
    fn state(&self) -> MutexGuard<'_, Cached> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn generation(&self) -> u64 {
        self.state().generation
    }

    pub(super) fn forget(&self) {
        let mut state = self.state();
        let generation = state.generation + 1;
        *state = Cached { generation, ..Cached::default() };
    }

    pub(super) fn key(&self, id: &str) -> Option<Key> {
        self.state().keys.get(id).cloned()
    }

    pub(super) fn keep_key(&self, generation: u64, key: &Key) {
        let mut state = self.state();
        if state.generation == generation {
            if state.keys.len() >= MAX_CACHED {
                state.keys.clear();
            }
            state.keys.insert(key.0.key.clone(), key.clone());
        }
    }

    pub(super) fn agent(&self, id: AgentId) -> Option<Arc<AgentRecord>> {
        self.state().agents.get(&id).cloned()
    }

    pub(super) fn keep_agent(&self, generation: u64, agent: &Arc<AgentRecord>) {
        let mut state = self.state();
        if state.generation == generation {
            if state.agents.len() >= MAX_CACHED {
                state.agents.clear();
            }
            state.agents.insert(agent.id, Arc::clone(agent));
        }
    }
}

/// Who waits for a job to settle.
#[derive(Default)]
pub(crate) struct Waiters {
    waiting: Mutex<HashMap<JobId, Vec<oneshot::Sender<Arc<Job>>>>>,
}

impl Waiters {
    fn waiting(&self) -> MutexGuard<'_, HashMap<JobId, Vec<oneshot::Sender<Arc<Job>>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn register(&self, job: JobId) -> oneshot::Receiver<Arc<Job>> {
        let (sender, receiver) = oneshot::channel();
        self.waiting().entry(job).or_default().push(sender);
        receiver
    }

    /// Hands the settled job to those who wait for it. `read` is called only if there are any; if it gives nothing they
    /// look for themselves.
    pub(super) fn wake(&self, id: JobId, read: impl FnOnce() -> Option<Job>) {
        let Some(waiters) = self.waiting().remove(&id) else { return };
        let Some(job) = read().map(Arc::new) else { return };
        for waiter in waiters {
            if waiter.send(Arc::clone(&job)).is_err() {
                tracing::trace!(job_id = %id, "Waiter had given up");
            }
        }
    }

    /// Takes one that waits no more off the list.
    pub(super) fn tidy(&self, job: JobId, receiver: oneshot::Receiver<Arc<Job>>) {
        drop(receiver);
        let mut waiting = self.waiting();
        if let Some(waiters) = waiting.get_mut(&job) {
            waiters.retain(|waiter| !waiter.is_closed());
            if waiters.is_empty() {
                waiting.remove(&job);
            }
        }
    }
}
