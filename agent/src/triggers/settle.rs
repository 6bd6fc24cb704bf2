//! What follows once the hub has a file: it is deleted or moved, by the journal's word alone.

use super::take::{TIMEOUT, entry};
use crate::{
    agent::Agent,
    audit::Kind,
    journal::events::{Follow, Unsettled},
    settings::Resource,
};
use passerelle_connectors::{Failure, Patience, Settle, Settled};
use passerelle_protocol::{Name, PICKUP};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

/// How often the journal is looked at without a hint.
const LOOK: Duration = Duration::from_secs(5);
/// How many are read at once.
const AT_ONCE: u32 = 64;
/// A resource that fails is left alone for so long, twice as long each time.
const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// A resource that failed.
struct Failing {
    until: Instant,
    wait: Duration,
}

/// Settles until it is aborted.
pub async fn run(agent: Arc<Agent>) {
    let mut failing: BTreeMap<Name, Failing> = BTreeMap::new();
    loop {
        let stirred = agent.triggers.answered.notified();
        pass(&agent, &mut failing).await;
        let soonest = failing.values().map(|one| one.until.saturating_duration_since(Instant::now())).min();
        // Timing out is as good as a hint.
        drop(timeout(soonest.map_or(LOOK, |soonest| soonest.min(LOOK)), stirred).await);
    }
}

async fn pass(agent: &Arc<Agent>, failing: &mut BTreeMap<Name, Failing>) {
    let mut after = 0;
    loop {
        let rows = match agent.journal.unsettled(after, AT_ONCE).await {
            Ok(rows) => rows,
            Err(error) => {
                debug!(%error, "What follows for the files that the hub has cannot be looked up");
                return;
            }
        };
        let Some((last, _)) = rows.last() else { return };
        after = *last;
        for (_, unsettled) in rows {
            let resource = &unsettled.key.resource;
            let fails = failing.get(resource).is_some_and(|failing| Instant::now() < failing.until);
            // What the operator took out or paused is left as it is; so is everything while the agent is being stopped.
            let paused = agent.pauses.of(resource).is_some() || agent.is_draining();
            let configured = agent.settings().resources.get(resource).cloned();
            let Some(configured) = configured.filter(|_| !fails && !paused) else { continue };
            match one(agent, &configured, &unsettled).await {
                Ok(()) => drop(failing.remove(resource)),
                Err(failure) => {
                    let before = failing.get(resource).map(|failing| failing.wait);
                    let wait = before.map_or(AGAIN.0, |wait| (wait * 2).min(AGAIN.1));
                    if before.is_none() {
                        warn!(
                            event_id = %unsettled.id, %resource, trigger = %unsettled.key.trigger, error = %failure,
                            "A file that the hub has cannot be deleted or moved yet; trying again"
                        );
                    }
                    let problem = format!("a file that the hub has stays where it is: {}", failure.message);
                    agent.triggers.board.left(&unsettled.key, &unsettled.seen.path, &problem);
                    failing.insert(resource.clone(), Failing { until: Instant::now() + wait, wait });
                }
            }
        }
    }
}

async fn one(agent: &Arc<Agent>, resource: &Resource, unsettled: &Unsettled) -> Result<(), Failure> {
    let Some(triggers) = resource.connector.triggers() else { return Ok(()) };
    let Unsettled { id, key, seen, sha256, marker, follow } = unsettled;
    let patience = Patience { timeout: TIMEOUT, cancel: CancellationToken::new() };
    let move_to = match follow {
        Follow::Keep => return Ok(()),
        Follow::Delete => None,
        Follow::MoveTo(path) => Some(path.clone()),
    };
    let settle = Settle { id: id.uuid(), file: seen.clone(), sha256: Some(*sha256.bytes()), move_to };
    let settled = triggers.settle(&settle, &patience).await?;
    if let Some(marker) = marker.as_ref().filter(|_| settled != Settled::Replaced) {
        // The marker of a newer file is another one than was seen.
        let id = beside(id.uuid());
        let settle = Settle { id, file: marker.clone(), sha256: None, move_to: None };
        triggers.settle(&settle, &patience).await?;
    }
    let kind: Option<Name> = PICKUP.parse().ok();
    let row = |of: Kind, more| kind.as_ref().map(|kind| entry(of, key, kind, &seen.path, *id, more));
    let entry = match &settled {
        Settled::Deleted => row(Kind::FileDeleted, None),
        Settled::Moved(to) => row(Kind::FileMoved, Some(format!("to {to:?}"))),
        Settled::Gone | Settled::Replaced => {
            info!(event_id = %id, resource = %key.resource, trigger = %key.trigger, ?settled, "A file that the hub has is not there any more");
            None
        }
    };
    agent.journal.settled(*id, entry).await.map_err(|error| {
        Failure::retry(passerelle_connectors::Code::Internal, "the agent's journal cannot be written")
            .detail(error)
    })?;
    agent.triggers.board.settled(key);
    Ok(())
}

/// Another id, for the name that the marker has in between.
fn beside(id: Uuid) -> Uuid {
    Uuid::from_u128(!id.as_u128())
}
