//! Whether there is room for another job: disk and journal. Offers are declined before either is full, so that what was
//! accepted can always be brought to its end and reported.

use crate::{agent::Agent, clock, journal::Journal, state::free_bytes};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use tokio::task::spawn_blocking;

/// Room on the disk of the state folder that new jobs do not use up: the outcomes of those that run must fit.
const FLOOR: u64 = 2 * 1024 * 1024;

/// See the [module](self).
#[derive(Debug)]
pub struct Pressure {
    disk_free: AtomicU64,
    journal_quota: AtomicU64,
    /// The audit has reached its quota, and the operator wants it kept whole.
    pub audit_full: AtomicBool,
}

impl Pressure {
    /// Room as long as nobody has looked.
    pub fn new(journal_quota: u64) -> Self {
        Self {
            disk_free: AtomicU64::new(u64::MAX),
            journal_quota: journal_quota.into(),
            audit_full: false.into(),
        }
    }

    /// Changes the most bytes that the journal may have.
    pub fn set_journal_quota(&self, bytes: u64) {
        self.journal_quota.store(bytes, Ordering::Relaxed);
    }

    /// Free bytes at the last look; `None` if nobody could look yet.
    pub fn disk_free(&self) -> Option<u64> {
        Some(self.disk_free.load(Ordering::Relaxed)).filter(|free| *free < u64::MAX)
    }

    /// Why no job is taken just now, in a public sentence; `None` if there is room.
    pub fn full(&self, journal: &Journal) -> Option<&'static str> {
        if !journal.writable() {
            Some("the agent's journal cannot be written (disk full?)")
        } else if self.disk_free.load(Ordering::Relaxed) < FLOOR {
            Some("the disk of the agent's state folder is almost full")
        } else if journal.bytes() >= self.journal_quota.load(Ordering::Relaxed) {
            Some("the agent's journal has reached its quota (agent.journal_quota)")
        } else if self.audit_full.load(Ordering::Relaxed) {
            Some("the agent's audit has reached its quota (agent.audit_quota)")
        } else {
            None
        }
    }

    /// Why nothing more is picked up just now: before jobs are turned away, so that they have the rest.
    pub fn full_for_events(&self, journal: &Journal) -> Option<&'static str> {
        self.full(journal).or_else(|| {
            (journal.bytes() >= self.journal_quota.load(Ordering::Relaxed) / 2).then_some(
                "half of the agent's journal is in use (agent.journal_quota): it goes on when the hub has taken what waits",
            )
        })
    }

    /// Whether keys of posts are worth less than room: well before the journal takes no more events.
    pub fn is_tight_for_keys(&self, journal: &Journal) -> bool {
        journal.bytes() >= self.journal_quota.load(Ordering::Relaxed) / 4
    }

    /// Whether the journal comes near its quota: then what it only remembers is worth less than room.
    fn is_tight(&self, journal: &Journal) -> bool {
        journal.bytes() / 4 >= self.journal_quota.load(Ordering::Relaxed) / 5
    }
}

/// Looks at disk and journal, and makes room in the journal if it comes near its quota.
pub async fn look(agent: &Arc<Agent>) {
    let path = agent.state.path().to_owned();
    // On a thread of its own: a network folder may hang. What cannot be told is left as it was.
    if let Ok(Ok(free)) = spawn_blocking(move || free_bytes(&path)).await {
        agent.pressure.disk_free.store(free, Ordering::Relaxed);
    }
    if let Err(error) = agent.journal.measure().await {
        tracing::debug!(%error, "The journal cannot be measured");
    }
    if agent.pressure.is_tight(&agent.journal) {
        match agent.journal.relieve(clock::unix_seconds()).await {
            Ok(0) => {}
            Ok(rows) => {
                tracing::info!(rows, "The journal nears its quota: old outcomes were forgotten early");
            }
            Err(error) => tracing::debug!(%error, "The journal cannot be relieved"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_are_turned_away_before_disk_or_journal_are_full() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap().journal;
        journal.measure().await.unwrap();
        let used = journal.bytes();
        assert!(used > 0);
        let pressure = Pressure::new(used * 2);
        assert_eq!((pressure.full(&journal), pressure.disk_free()), (None, None));
        assert!(!pressure.is_tight(&journal));
        pressure.set_journal_quota(used + used / 10);
        assert!(pressure.is_tight(&journal) && pressure.full(&journal).is_none());
        pressure.set_journal_quota(used);
        assert!(pressure.full(&journal).unwrap().contains("agent.journal_quota"));
        pressure.set_journal_quota(used * 2);
        pressure.audit_full.store(true, Ordering::Relaxed);
        assert!(pressure.full(&journal).unwrap().contains("agent.audit_quota"));
        pressure.audit_full.store(false, Ordering::Relaxed);
        pressure.disk_free.store(FLOOR - 1, Ordering::Relaxed);
        assert!(pressure.full(&journal).unwrap().contains("almost full"));
        pressure.disk_free.store(FLOOR, Ordering::Relaxed);
        assert_eq!(pressure.full(&journal), None);
    }
}
