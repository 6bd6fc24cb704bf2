//! The parts of a running agent, as they know each other.

use crate::{
    hub::Hub,
    identity::Identity,
    journal::Journal,
    metrics::Metrics,
    outbox::Outbox,
    registry::Registry,
    runner::{limits::ResourceLimits, spool::Spool},
    settings::Settings,
    state::StateDir,
    status::Status,
};
use passerelle_protocol::{Name, session::Attempt};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A running, enrolled agent.
pub struct Agent {
    /// What the operator says.
    pub settings: Arc<Settings>,
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
    /// What is to be told to the hub.
    pub outbox: Outbox,
    /// Payloads on their way.
    pub spool: Spool,
    /// Concurrency and rate per resource.
    pub limits: BTreeMap<Name, ResourceLimits>,
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
    /// Whether the agent takes nothing new.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The hub has the report: the attempt may be forgotten.
    pub fn acknowledged(&self, attempt: Attempt) {
        self.journal.acked(attempt);
        self.registry.remove(attempt);
        self.spool.forget_output(attempt);
        self.metrics.reports_acknowledged.inc();
    }
}
