//! The parts of a running agent, as they know each other.

use crate::{
    calls::Calls, hub::Hub, identity::Identity, journal::Journal, metrics::Metrics, outbox::Outbox,
    pause::Pauses, policy::volume::Volume, pressure::Pressure, registry::Registry, runner::spool::Spool,
    settings::Settings, state::StateDir, status::Status, triggers::Triggers,
};
use passerelle_protocol::session::Attempt;
use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A running, enrolled agent.
pub struct Agent {
    /// What the operator says, as it counts now.
    pub current: RwLock<Arc<Settings>>,
    /// Counts up when the hub is to be told anew what the agent can do.
    pub announced: watch::Sender<u64>,
    /// The locked state folder.
    pub state: Arc<StateDir>,
    /// Who the agent is.
    pub identity: Identity,
    /// How the hub is reached.
    pub hub: Hub,
    /// The durable memory.
    pub journal: Journal,
    /// The attempts held.
    pub registry: Registry,
    /// What is carried out for somebody who waits.
    pub calls: Calls,
    /// What is to be told to the hub.
    pub outbox: Outbox,
    /// What takes no jobs for a while.
    pub pauses: Arc<Pauses>,
    /// What the rules have been used for today.
    pub volume: Arc<Volume>,
    /// Payloads on their way.
    pub spool: Spool,
    /// What is sent by itself.
    pub triggers: Triggers,
    /// Whether there is room for another job.
    pub pressure: Arc<Pressure>,
    /// What the local port shows.
    pub status: Arc<Status>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Told when a report is ready in the journal.
    pub finished: Notify,
    /// Every task that works on an offer or attempt.
    pub tasks: TaskTracker,
    /// Fires when nothing new is taken any more.
    pub draining: AtomicBool,
    /// Fires when the tunnel shall say goodbye.
    pub close: CancellationToken,
    /// Fires when background work (uploads, downloads) shall stop where it is; the journal knows it.
    pub halt: CancellationToken,
    /// Names the agent in the log.
    pub span: tracing::Span,
    /// Random per process start.
    pub instance: String,
}

impl Agent {
    /// What the operator says. Whoever does several things by it takes it once: it may change in between.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on these count.
    pub fn set_settings(&self, settings: Settings) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    /// Has the session opened anew, since only its beginning tells what the agent can do.
    pub fn announce_again(&self) {
        self.announced.send_modify(|count| *count += 1);
    }

    /// Whether the agent takes nothing new.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// The hub has the report: the attempt may be forgotten.
    pub fn acknowledged(&self, attempt: Attempt) {
        self.journal.acked(attempt);
        self.registry.remove(attempt);
        self.spool.forget_output(attempt);
        self.metrics.reports_acknowledged.inc();
    }
}
