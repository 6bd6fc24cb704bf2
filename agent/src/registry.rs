//! The attempts that this process holds, in memory: what `Hello` tells, what can be cancelled, what counts as full.
//! The journal is the truth; this is its reflection.

use jiff::Timestamp;
use passerelle_protocol::{HeldJob, HeldState, Name, session::Attempt};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Why an attempt is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The hub wants it so: the outcome is `cancelled`.
    Hub,
    /// The agent stops, and the attempt has not started or the grace time is over: it is to be tried again.
    Drain,
}

/// Stops an attempt, and says why.
#[derive(Debug, Clone, Default)]
pub struct StopHandle {
    token: CancellationToken,
    cause: Arc<AtomicU8>,
    given_up: Arc<AtomicBool>,
}

impl StopHandle {
    /// Stops it. The first cause stands.
    pub fn stop(&self, cause: Cause) {
        let value = match cause {
            Cause::Hub => 1,
            Cause::Drain => 2,
        };
        // Losing the race means that there is a cause already.
        let _ = self.cause.compare_exchange(0, value, Ordering::SeqCst, Ordering::SeqCst);
        self.token.cancel();
    }

    /// Why it stops, if it does.
    pub fn cause(&self) -> Option<Cause> {
        match self.cause.load(Ordering::SeqCst) {
            1 => Some(Cause::Hub),
            2 => Some(Cause::Drain),
            _ => None,
        }
    }

    /// Whether the hub has given the attempt up: another agent may have gone on with it.
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::SeqCst)
    }

    /// The token that fires.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }
}

#[derive(Debug)]
struct Entry {
    resource: Name,
    /// `None` while the journal has not answered yet: not told to the hub, but counted.
    state: Option<HeldState>,
    started_at: Option<Timestamp>,
    stop: StopHandle,
}

/// How full the agent is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Accepted or running.
    pub active: usize,
    /// Finished, not acknowledged.
    pub finished: usize,
    /// The connector has started.
    pub running: usize,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Registry {
    entries: Mutex<BTreeMap<Attempt, Entry>>,
    load: watch::Sender<Load>,
    /// Whether a hub has said since the start which of the attempts go on.
    heard: watch::Sender<bool>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            load: watch::Sender::new(Load::default()),
            heard: watch::Sender::new(false),
        }
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Attempt, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<Attempt, Entry>) -> T) -> T {
        let mut entries = self.lock();
        let result = change(&mut entries);
        let mut load = Load::default();
        for entry in entries.values() {
            match entry.state {
                Some(HeldState::Finished) => load.finished += 1,
                None | Some(HeldState::Accepted) => load.active += 1,
                Some(HeldState::Running) => {
                    load.active += 1;
                    load.running += 1;
                }
            }
        }
        self.load.send_replace(load);
        result
    }

    /// Reserves a place for an offered attempt, unless it is held already or `max` are active.
    pub fn reserve(&self, attempt: Attempt, resource: &Name, max: usize) -> Reserved {
        let entry =
            Entry { resource: resource.clone(), state: None, started_at: None, stop: StopHandle::default() };
        let load = *self.load.borrow();
        self.change(|entries| match entries.get(&attempt) {
            Some(Entry { state: None, .. }) => Reserved::Pending,
            Some(Entry { state: Some(_), .. }) => Reserved::Held,
            // Finished attempts wait for a hub that is away: they count too, so that they stay bounded.
            None if load.active >= max || entries.len() >= max.saturating_mul(2) => Reserved::Full,
            None => {
                let stop = entry.stop.clone();
                entries.insert(attempt, entry);
                Reserved::New(stop)
            }
        })
    }

    /// Holds an attempt that the journal gave back at the start.
    pub fn resume(&self, attempt: Attempt, resource: &Name, state: HeldState) -> StopHandle {
        let stop = StopHandle::default();
        let entry =
            Entry { resource: resource.clone(), state: Some(state), started_at: None, stop: stop.clone() };
        self.change(|entries| entries.insert(attempt, entry));
        stop
    }

    /// The attempt came further.
    pub fn set(&self, attempt: Attempt, state: HeldState) {
        self.change(|entries| {
            if let Some(entry) = entries.get_mut(&attempt) {
                entry.state = Some(state);
            }
        });
    }

    /// The connector started.
    pub fn started(&self, attempt: Attempt, at: Timestamp) {
        self.change(|entries| {
            if let Some(entry) = entries.get_mut(&attempt) {
                entry.state = Some(HeldState::Running);
                entry.started_at = Some(at);
            }
        });
    }

    /// The attempt is not held any more.
    pub fn remove(&self, attempt: Attempt) {
        self.change(|entries| entries.remove(&attempt));
    }

    /// Stops an attempt, if it is held.
    pub fn stop(&self, attempt: Attempt, cause: Cause) {
        if let Some(entry) = self.lock().get(&attempt) {
            entry.stop.stop(cause);
        }
    }

    /// Stops an attempt that the hub has given up, if it is held.
    pub fn give_up(&self, attempt: Attempt) {
        if let Some(entry) = self.lock().get(&attempt) {
            entry.stop.given_up.store(true, Ordering::SeqCst);
            entry.stop.stop(Cause::Hub);
        }
    }

    /// The hub has said which attempts go on.
    pub fn heard(&self) {
        self.heard.send_replace(true);
    }

    /// Waits until a hub has said, since the start of this process, which attempts go on.
    pub async fn until_heard(&self) {
        // The sender is this registry's own.
        let _ = self.heard.subscribe().wait_for(|heard| *heard).await;
    }

    /// Stops the attempts whose connector has not started; says how many.
    pub fn stop_waiting(&self, cause: Cause) -> usize {
        let entries = self.lock();
        let waiting = entries.values().filter(|e| matches!(e.state, None | Some(HeldState::Accepted)));
        waiting.inspect(|entry| entry.stop.stop(cause)).count()
    }

    /// Stops all attempts that have not finished; says how many.
    pub fn stop_all(&self, cause: Cause) -> usize {
        let entries = self.lock();
        let active = entries.values().filter(|e| e.state != Some(HeldState::Finished));
        active.inspect(|entry| entry.stop.stop(cause)).count()
    }

    /// What `Hello` tells: the attempts that are in the journal.
    pub fn held(&self) -> Vec<HeldJob> {
        let entries = self.lock();
        let held = entries.iter().filter_map(|(attempt, entry)| {
            let state = entry.state?;
            Some(HeldJob {
                job: attempt.job,
                attempt: attempt.number,
                resource: entry.resource.clone(),
                state,
            })
        });
        held.collect()
    }

    /// Watches how full the agent is.
    pub fn load(&self) -> watch::Receiver<Load> {
        self.load.subscribe()
    }
}

/// What came of [`Registry::reserve`].
#[derive(Debug)]
pub enum Reserved {
    /// A place for it.
    New(StopHandle),
    /// It is being written to the journal by an earlier offer of the same attempt.
    Pending,
    /// It is in the journal.
    Held,
    /// No place.
    Full,
}

#[cfg(test)]
mod tests {
    use super::*;
    use passerelle_protocol::JobId;

    fn attempt(n: u8) -> Attempt {
        Attempt::new(JobId::new(1, &[n; 10]), 1)
    }

    #[test]
    fn an_attempt_is_told_to_the_hub_only_once_it_is_journalled() {
        let registry = Registry::default();
        let resource: Name = "compta".parse().unwrap();
        assert!(matches!(registry.reserve(attempt(1), &resource, 1), Reserved::New(_)));
        assert!(matches!(registry.reserve(attempt(1), &resource, 1), Reserved::Pending));
        assert!(matches!(registry.reserve(attempt(2), &resource, 1), Reserved::Full));
        assert_eq!(registry.held(), vec![]);
        registry.set(attempt(1), HeldState::Accepted);
        assert_eq!(registry.held().len(), 1);
        assert!(matches!(registry.reserve(attempt(1), &resource, 1), Reserved::Held));
        registry.set(attempt(1), HeldState::Finished);
        assert_eq!(*registry.load().borrow(), Load { active: 0, finished: 1, running: 0 });
        assert!(matches!(registry.reserve(attempt(2), &resource, 1), Reserved::New(_)));
        registry.set(attempt(2), HeldState::Finished);
        assert!(matches!(registry.reserve(attempt(3), &resource, 1), Reserved::Full));
        registry.remove(attempt(1));
        assert!(matches!(registry.reserve(attempt(3), &resource, 1), Reserved::New(_)));
    }

    #[test]
    fn the_first_cause_stands_and_finished_attempts_are_not_stopped() {
        let registry = Registry::default();
        let resource: Name = "compta".parse().unwrap();
        let running = registry.resume(attempt(1), &resource, HeldState::Running);
        let finished = registry.resume(attempt(2), &resource, HeldState::Finished);
        let waiting = registry.resume(attempt(3), &resource, HeldState::Accepted);
        assert_eq!(registry.stop_waiting(Cause::Drain), 1);
        assert_eq!((running.cause(), waiting.cause()), (None, Some(Cause::Drain)));
        registry.remove(attempt(3));
        registry.stop(attempt(1), Cause::Hub);
        assert_eq!(registry.stop_all(Cause::Drain), 1);
        assert_eq!((running.cause(), finished.cause()), (Some(Cause::Hub), None));
        assert!(running.token().is_cancelled());
    }
}
