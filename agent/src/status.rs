//! What the agent shows of itself at its local port. Nothing secret, nothing of a job's content.

use crate::{clock, exit::Stop, job::Job, pause::Paused, triggers::TriggerStatus};
use jiff::Timestamp;
use passerelle_protocol::{JobId, Name, SessionId};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Instant,
};

/// How many ended attempts are shown.
const LAST_JOBS: usize = 20;
/// The main loop ticks every second; without a tick for so long it hangs.
const STALLED_MS: i64 = 15_000;
/// A difference of the clocks that is worth telling, in seconds.
pub const CLOCK_TOLD: i64 = 10;

/// The connection to the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Link {
    /// Not tried yet: starting, enrolling, or waiting after a refusal.
    Starting {
        /// What the agent waits for.
        why: String,
    },
    /// Being dialled.
    Connecting,
    /// The hub has welcomed the agent.
    Connected {
        /// The connection.
        session: SessionId,
        /// Since when.
        since: Timestamp,
    },
    /// Lost, or did not come about; it is tried again.
    Disconnected {
        /// Why.
        why: String,
    },
}

/// Who the agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Its id.
    pub agent: String,
    /// Its tenant.
    pub tenant: Name,
    /// Its site.
    pub site: Name,
}

/// The last probe of a resource, or what the last job that reached it or did not has shown since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// When.
    pub at: Timestamp,
    /// What was wrong, in a public sentence; absent if nothing.
    pub problem: Option<String>,
}

/// A resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceStatus {
    /// Its kind.
    pub connector: Name,
    /// What at least one rule allows.
    pub operations: Vec<String>,
    /// The last probe.
    pub probe: Option<Probe>,
}

impl ResourceStatus {
    /// What jobs may do there, in words.
    pub fn allowed(&self) -> String {
        // One that only has triggers, say.
        if self.operations.is_empty() {
            "no operations allowed".to_owned()
        } else {
            self.operations.join(", ")
        }
    }
}

/// The configuration that counts, and what became of the last change to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// When the folder was last read.
    pub at: Timestamp,
    /// What was wrong with it then, one finding each; nothing if it counts since.
    pub refused: Vec<String>,
    /// Changed settings that take effect at the next start only.
    pub needs_restart: Vec<String>,
}

/// An ended attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// The resource.
    pub resource: Name,
    /// The operation.
    pub operation: Name,
    /// `succeeded`, `failed`, `retry`, `denied` or `cancelled`.
    pub outcome: String,
    /// When.
    pub at: Timestamp,
}

/// Everything shown, as JSON at `/status.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The agent's name.
    pub name: Name,
    /// Its version.
    pub version: String,
    /// When the process started.
    pub started_at: Timestamp,
    /// The hub.
    pub hub: String,
    /// Who the agent is, once enrolled.
    pub identity: Option<Who>,
    /// The connection.
    pub connection: Link,
    /// How far this machine's clock is off the hub's, in a sentence, if it is by more than ten seconds.
    #[serde(default)]
    pub clock: Option<String>,
    /// Whether jobs are taken.
    pub ready: bool,
    /// Why not.
    pub reasons: Vec<String>,
    /// The configuration.
    pub configuration: Reload,
    /// Attempts accepted and not finished.
    pub jobs_held: usize,
    /// Attempts whose connector has started.
    pub jobs_running: usize,
    /// Attempts finished and not acknowledged.
    pub jobs_unreported: usize,
    /// The resources by name.
    pub resources: BTreeMap<Name, ResourceStatus>,
    /// What takes no jobs for a while, by resource.
    #[serde(default)]
    pub pauses: BTreeMap<Name, Paused>,
    /// What is sent by itself.
    #[serde(default)]
    pub triggers: Vec<TriggerStatus>,
    /// The last ended attempts, latest first.
    pub last_jobs: VecDeque<JobStatus>,
}

#[derive(Debug)]
struct Inner {
    link: Link,
    /// What the hub's clock said, and when by the monotonic one here; while it is connected.
    hub_clock: Option<(Timestamp, Instant)>,
    who: Option<Who>,
    resources: BTreeMap<Name, ResourceStatus>,
    last_jobs: VecDeque<JobStatus>,
    reload: Reload,
}

impl Inner {
    fn clock(&self, tolerated: i64) -> Option<String> {
        let (told, at) = self.hub_clock?;
        clock::difference(told.checked_add(at.elapsed()).unwrap_or(told), tolerated)
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Status {
    /// When the process started.
    pub started_at: Timestamp,
    ticked: AtomicI64,
    inner: Mutex<Inner>,
}

impl Status {
    /// Nothing has happened yet.
    pub fn new(resources: BTreeMap<Name, ResourceStatus>) -> Self {
        let link = Link::Starting { why: "the agent is starting".to_owned() };
        let now = clock::now();
        Self {
            started_at: now,
            ticked: AtomicI64::new(now.as_millisecond()),
            inner: Mutex::new(Inner {
                link,
                hub_clock: None,
                who: None,
                resources,
                last_jobs: VecDeque::new(),
                reload: Reload { at: now, refused: Vec::new(), needs_restart: Vec::new() },
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The main loop is alive.
    pub fn tick(&self) {
        self.ticked.store(clock::now().as_millisecond(), Ordering::Relaxed);
    }

    /// Whether the main loop is alive.
    pub fn alive(&self) -> bool {
        clock::now().as_millisecond().saturating_sub(self.ticked.load(Ordering::Relaxed)) < STALLED_MS
    }

    /// The connection changed.
    pub fn set_link(&self, link: Link) {
        let mut inner = self.lock();
        if !matches!(link, Link::Connected { .. }) {
            inner.hub_clock = None;
        }
        inner.link = link;
    }

    /// The hub has told its time.
    pub fn set_hub_clock(&self, server_time: Timestamp) {
        self.lock().hub_clock = Some((server_time, Instant::now()));
    }

    /// How far this machine's clock is off the hub's now, if it is connected and they differ by more than `tolerated`
    /// seconds. A clock that is set right, or wrong, while the connection lasts counts from then on.
    pub fn clock(&self, tolerated: i64) -> Option<String> {
        self.lock().clock(tolerated)
    }

    /// The agent is enrolled.
    pub fn set_who(&self, who: Who) {
        self.lock().who = Some(who);
    }

    /// The configuration was read again.
    pub fn reloaded(&self, change: impl FnOnce(&mut Reload)) {
        change(&mut self.lock().reload);
    }

    /// Other resources count; the last probe of one that did not change is kept.
    pub fn set_resources(&self, mut resources: BTreeMap<Name, ResourceStatus>, changed: &BTreeSet<Name>) {
        let mut inner = self.lock();
        for (name, resource) in resources.iter_mut().filter(|(name, _)| !changed.contains(*name)) {
            resource.probe = inner.resources.remove(name).and_then(|before| before.probe);
        }
        inner.resources = resources;
    }

    /// A resource was probed, or a job that used it showed the same.
    pub fn probed(&self, resource: &Name, problem: Option<String>) {
        if let Some(resource) = self.lock().resources.get_mut(resource) {
            resource.probe = Some(Probe { at: clock::now(), problem });
        }
    }

    /// An attempt ended.
    pub fn job_finished(&self, job: &Job, outcome: &'static str) {
        let mut inner = self.lock();
        inner.last_jobs.truncate(LAST_JOBS - 1);
        inner.last_jobs.push_front(JobStatus {
            job: job.attempt.job,
            attempt: job.attempt.number,
            resource: job.envelope.resource.clone(),
            operation: job.envelope.operation.clone(),
            outcome: outcome.to_owned(),
            at: clock::now(),
        });
    }

    /// Whether the hub has welcomed the agent.
    pub fn connected(&self) -> bool {
        matches!(self.lock().link, Link::Connected { .. })
    }

    /// Why the connection is not there; `None` if it is.
    pub fn not_connected(&self) -> Option<String> {
        match &self.lock().link {
            Link::Connected { .. } => None,
            Link::Starting { why } => Some(why.clone()),
            Link::Connecting => Some("connecting to the hub".to_owned()),
            Link::Disconnected { why } => Some(format!("not connected to the hub: {why}")),
        }
    }

    /// Everything, for the status page.
    pub fn snapshot(
        &self,
        name: &Name,
        hub: &str,
        load: crate::registry::Load,
        reasons: Vec<String>,
    ) -> Snapshot {
        let inner = self.lock();
        Snapshot {
            name: name.clone(),
            version: crate::VERSION.to_owned(),
            started_at: self.started_at,
            hub: hub.to_owned(),
            identity: inner.who.clone(),
            connection: inner.link.clone(),
            clock: inner.clock(CLOCK_TOLD),
            ready: reasons.is_empty(),
            reasons,
            configuration: inner.reload.clone(),
            jobs_held: load.active,
            jobs_running: load.running,
            jobs_unreported: load.finished,
            resources: inner.resources.clone(),
            pauses: BTreeMap::new(),
            triggers: Vec::new(),
            last_jobs: inner.last_jobs.clone(),
        }
    }
}

/// The answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether jobs are taken.
    pub ready: bool,
    /// Why not.
    pub reasons: Vec<String>,
}

impl Readiness {
    /// As an error of a command.
    pub fn into_result(self) -> Result<(), Stop> {
        if self.ready { Ok(()) } else { Err(Stop::Failed(format!("not ready: {}", self.reasons.join("; ")))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_of_the_clocks_is_told_while_connected() {
        let status = Status::new(BTreeMap::new());
        let hub = Timestamp::from_second(clock::unix_seconds() + 90).unwrap();
        assert_eq!(status.clock(CLOCK_TOLD), None);
        status.set_link(Link::Connected { session: SessionId::new(0, &[0; 10]), since: clock::now() });
        status.set_hub_clock(hub);
        let told = status.clock(60).unwrap();
        assert!(told.contains("90 s behind the hub's") || told.contains("89 s behind the hub's"), "{told}");
        assert_eq!(status.clock(120), None);
        status.set_link(Link::Disconnected { why: "gone".to_owned() });
        assert_eq!(status.clock(CLOCK_TOLD), None);
    }
}
