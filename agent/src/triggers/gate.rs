//! Whether a trigger may go on: asked before each look and before each file.

use crate::{agent::Agent, journal::events::Key};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// How often it is looked whether a trigger may go on, beside the hints.
const LOOK: Duration = Duration::from_secs(1);

/// Why a trigger does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocked {
    /// The agent is being stopped.
    Stopping,
    /// The operator paused the resource.
    Paused(String),
    /// The hub has not given it to this agent, or to another one.
    NoLease,
    /// The spool is full.
    NoRoom,
    /// Journal or disk are.
    Full(&'static str),
}

impl Blocked {
    fn sentence(&self) -> String {
        match self {
            Self::Stopping => "the agent is being stopped".to_owned(),
            Self::Paused(sentence) => sentence.clone(),
            Self::NoLease => {
                "it waits for its turn: the hub has not said that it may run here, or another agent of the site runs it"
                    .to_owned()
            }
            Self::NoRoom => {
                "the spool is full (agent.spool_quota): it goes on when the hub has taken what waits".to_owned()
            }
            Self::Full(why) => (*why).to_owned(),
        }
    }
}

/// The number of the lease under which it may go on now.
pub fn pass(agent: &Agent, key: &Key) -> Result<u64, Blocked> {
    if agent.is_draining() {
        return Err(Blocked::Stopping);
    }
    if let Some(paused) = agent.pauses.of(&key.resource) {
        return Err(Blocked::Paused(paused.sentence(&key.resource)));
    }
    let lease = agent.triggers.leases.held(key, Instant::now()).ok_or(Blocked::NoLease)?;
    if let Some(why) = agent.pressure.full_for_events(&agent.journal) {
        return Err(Blocked::Full(why));
    }
    if agent.spool.bytes() >= agent.spool.quota() {
        return Err(Blocked::NoRoom);
    }
    Ok(lease)
}

/// Shows and logs that a trigger does not go on, or goes on again.
pub fn tell(agent: &Agent, key: &Key, why: Option<&Blocked>) {
    if agent.triggers.board.paused(key, why.map(Blocked::sentence)) {
        match why {
            Some(why) => info!(
                resource = %key.resource, trigger = %key.trigger, why = why.sentence(), "A trigger takes nothing for now"
            ),
            None => info!(resource = %key.resource, trigger = %key.trigger, "A trigger runs"),
        }
    }
}

/// Waits until it may go on; `None` once it is stopped.
pub async fn wait(agent: &Agent, key: &Key, stop: &CancellationToken) -> Option<u64> {
    loop {
        if stop.is_cancelled() {
            return None;
        }
        // Asked for before it is looked: what comes in between is not missed.
        let stirred = agent.triggers.stirred.notified();
        match pass(agent, key) {
            Ok(lease) => {
                tell(agent, key, None);
                return Some(lease);
            }
            Err(why) => tell(agent, key, Some(&why)),
        }
        tokio::select! {
            () = stirred => {}
            () = sleep(LOOK) => {}
            () = stop.cancelled() => return None,
        }
    }
}

/// Waits until a content of this size fits into the spool.
pub async fn wait_for_room(agent: &Agent, size: u64, stop: &CancellationToken) {
    while agent.spool.bytes().saturating_add(size) > agent.spool.quota() && !stop.is_cancelled() {
        let stirred = agent.triggers.stirred.notified();
        tokio::select! {
            () = stirred => {}
            () = sleep(LOOK) => {}
            () = stop.cancelled() => {}
        }
    }
}
