//! Pickup, watch and changes: what the agent sends to the cloud by itself, by the operator's own rules.
//!
//! - `leases`: which triggers may run here, as the hub says; `gate`: whether one may go on
//! - `pickup`, `watch`: one task per trigger, which looks and takes; `steady`: whether a file is whole
//! - `changes`: one task per change feed, which reads it page by page
//! - `take`: one file into spool and journal; `send`: from there to the hub; `settle`: what follows once the hub has it;
//!   `turns`: which file is next then
//! - `board`: what is shown of all this
//!
//! Each step is committed to the journal before the next one begins: see `journal::events` for what a crash leaves.

mod board;
mod changes;
mod gate;
mod leases;
mod pickup;
pub mod send;
pub mod settle;
mod steady;
mod take;
mod turns;
mod watch;

use crate::{
    agent::Agent,
    journal::{JournalError, events::Key},
    settings::Resource,
};
pub use board::TriggerStatus;
use passerelle_protocol::{CHANGE, NOTIFICATION, Name, PICKUP, TriggerLease, WATCH, session::Attempt};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
pub use take::{entry, spooled};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument as _, debug};

/// How often the configuration is compared with what runs.
const LOOK: Duration = Duration::from_millis(500);
/// How long a trigger may take to stop before it is cut off; the journal knows what it did.
const STOP_TIME: Duration = Duration::from_secs(10);

/// What the parts of this module share.
#[derive(Debug, Default)]
pub struct Triggers {
    leases: leases::Leases,
    /// What is shown.
    pub board: board::Board,
    course: send::Course,
    /// Something was taken, or may be sent again.
    filled: Notify,
    /// The hub answered: something is to follow.
    answered: Notify,
    /// Leases or room in the spool are others than before.
    stirred: Notify,
}

impl Triggers {
    /// The hub says which triggers may run here.
    pub fn leased(&self, leases: Vec<TriggerLease>) {
        debug!(triggers = leases.len(), "The hub says which triggers run here");
        self.leases.replace(leases, Instant::now());
        self.stirred.notify_waiters();
    }

    /// Something with a content of this size was written to the journal, to be sent.
    pub fn journalled(&self, key: &Key, size: u64) {
        self.board.taken(key, size);
        self.filled.notify_waiters();
    }
}

/// Counts what the journal holds, and tells which files of the spool are needed for it.
///
/// # Errors
/// If the journal cannot be read.
pub async fn begin(agent: &Agent) -> Result<Vec<Attempt>, JournalError> {
    agent.triggers.board.begin(agent.journal.trigger_counts().await?);
    let mut held = Vec::new();
    for (id, token, size) in agent.journal.spooled_events().await? {
        match token {
            Some(token) => held.push(spooled(token)),
            None => agent.spool.resume_input(spooled(id.uuid()), size),
        }
    }
    Ok(held)
}

/// One trigger that runs.
struct Running {
    resource: Arc<Resource>,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Running {
    /// Stops it, patiently: at no time do two run for the same trigger.
    async fn stop(mut self) {
        self.stop.cancel();
        drop(timeout(STOP_TIME, &mut self.task).await);
    }
}

/// Has those triggers run that are configured, until it is dropped.
pub async fn run(agent: Arc<Agent>) {
    let _settling = AbortOnDropHandle::new(tokio::spawn(settle::run(Arc::clone(&agent)).in_current_span()));
    let mut running: BTreeMap<Key, Running> = BTreeMap::new();
    loop {
        let settings = agent.settings();
        let mut wanted = BTreeMap::new();
        for resource in settings.resources.values() {
            for (trigger, kind) in resource.triggers() {
                wanted.insert(Key { resource: resource.name.clone(), trigger }, (Arc::clone(resource), kind));
            }
        }
        let listeners = settings.listeners.values().map(|listener| (listener.key(), NOTIFICATION));
        let stale: BTreeSet<Key> = running
            .iter()
            .filter(|(key, one)| {
                wanted.get(*key).is_none_or(|(resource, _)| !Arc::ptr_eq(resource, &one.resource))
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in stale {
            if let Some(one) = running.remove(&key) {
                one.stop().await;
            }
        }
        agent.triggers.board.configured(
            &wanted.iter().map(|(key, (_, kind))| (key.clone(), *kind)).chain(listeners).collect(),
        );
        for (key, (resource, _)) in wanted {
            if !running.contains_key(&key)
                && let Some(one) = start(&agent, &resource, &key)
            {
                running.insert(key, one);
            }
        }
        sleep(LOOK).await;
    }
}

fn start(agent: &Arc<Agent>, resource: &Arc<Resource>, key: &Key) -> Option<Running> {
    let stop = CancellationToken::new();
    let (agent, shared) = (Arc::clone(agent), Arc::clone(resource));
    let name = key.trigger.as_str();
    let task = if let Some(rule) = resource.pickups.iter().find(|rule| rule.name == name) {
        let kind = pickup::kind()?;
        let one = pickup::Running::new(agent, shared, rule.clone(), key.clone(), kind, stop.clone());
        tokio::spawn(one.run().in_current_span())
    } else if let Some(rule) = resource.changes.iter().find(|rule| rule.name == name) {
        let kind = changes::kind()?;
        let one = changes::Running::new(agent, shared, rule.clone(), key.clone(), kind, stop.clone());
        tokio::spawn(one.run().in_current_span())
    } else {
        let rule = resource.watches.iter().find(|rule| rule.name == name)?;
        let kind = watch::kind()?;
        let one = watch::Running::new(agent, shared, rule.clone(), key.clone(), kind, stop.clone());
        tokio::spawn(one.run().in_current_span())
    };
    Some(Running { resource: Arc::clone(resource), stop, task: AbortOnDropHandle::new(task) })
}

impl Resource {
    /// Its triggers, with their kinds.
    pub fn triggers(&self) -> impl Iterator<Item = (Name, &'static str)> {
        let pickups = self.pickups.iter().map(|rule| (&rule.name, PICKUP));
        let watches = self.watches.iter().map(|rule| (&rule.name, WATCH));
        let changes = self.changes.iter().map(|rule| (&rule.name, CHANGE));
        pickups.chain(watches).chain(changes).filter_map(|(name, kind)| Some((name.parse().ok()?, kind)))
    }
}
