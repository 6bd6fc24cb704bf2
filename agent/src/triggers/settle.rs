//! What follows once the hub has a file: it is deleted or moved, by the journal's word alone. Each resource has a task of
//! its own, which does one file after the other in the order that `turns` says: no resource waits for another one.

use super::{
    take::{TIMEOUT, entry},
    turns::{Next, Target, Turns},
};
use crate::{
    agent::Agent,
    audit::Kind,
    journal::events::{Follow, Key, Unsettled},
    settings::Resource,
};
use passerelle_connectors::{Code, Failure, Patience, Settle, Settled};
use passerelle_protocol::{Name, PICKUP};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument as _, debug, info, warn};
use uuid::Uuid;

/// How often the journal is looked at without a hint.
const LOOK: Duration = Duration::from_secs(5);
/// With hints, so many times as long as a look takes is left between two.
const GAP: u32 = 10;
/// How many places in the order are read at once.
const AT_ONCE: u32 = 1000;
/// A try that fails after this long says that the target does not answer, whatever it says else.
const SLOW: Duration = Duration::from_secs(10);

/// Settles until it is aborted.
pub async fn run(agent: Arc<Agent>) {
    let mut workers: BTreeMap<Name, AbortOnDropHandle<()>> = BTreeMap::new();
    loop {
        let stirred = agent.triggers.answered.notified();
        workers.retain(|_, worker| !worker.is_finished());
        let settings = agent.settings();
        for Key { resource, trigger: _ } in agent.triggers.board.unsettled() {
            if settings.resources.contains_key(&resource) && !workers.contains_key(&resource) {
                let work = work(Arc::clone(&agent), resource.clone()).in_current_span();
                workers.insert(resource, AbortOnDropHandle::new(tokio::spawn(work)));
            }
        }
        drop(settings);
        // Timing out is as good as a hint.
        drop(timeout(LOOK, stirred).await);
    }
}

/// Puts the files of a resource away, until it is not configured any more.
async fn work(agent: Arc<Agent>, name: Name) {
    let mut turns = Turns::default();
    let mut last: Option<Arc<Resource>> = None;
    let (mut look, mut earliest) = (Instant::now(), Instant::now());
    loop {
        let stirred = agent.triggers.answered.notified();
        let Some(resource) = agent.settings().resources.get(&name).cloned() else { return };
        if last.as_ref().is_some_and(|last| !Arc::ptr_eq(last, &resource)) {
            // Whatever was wrong may be right now.
            turns = Turns::default();
            look = Instant::now();
        }
        last = Some(Arc::clone(&resource));
        // What the operator paused is left as it is; so is everything while the agent is being stopped.
        if agent.pauses.of(&name).is_some() || agent.is_draining() {
            drop(timeout(LOOK, stirred).await);
            continue;
        }
        let begun = Instant::now();
        if look <= begun {
            look_up(&agent, &name, &mut turns).await;
            earliest = Instant::now() + begun.elapsed() * GAP;
            look = Instant::now() + LOOK;
        }
        let until = match turns.next(Instant::now()) {
            Next::File(trigger, place) => {
                put_away(&agent, &resource, &trigger, place, &mut turns).await;
                None
            }
            Next::At(at) => Some(at.min(look)),
            Next::Nothing => Some(look),
        };
        let rest = async {
            // A timer of no time takes a millisecond, for each file.
            if let Some(until) = until {
                sleep_until(until).await;
            }
        };
        tokio::select! {
            biased;
            () = stirred => look = look.min(earliest),
            () = rest => {}
        }
    }
}

/// Finds out what there is to put away.
async fn look_up(agent: &Agent, name: &Name, turns: &mut Turns) {
    for key in agent.triggers.board.unsettled().into_iter().filter(|key| key.resource == *name) {
        let mut after = Some(0);
        while let Some(from) = after {
            match agent.journal.unsettled(key.clone(), from, AT_ONCE).await {
                Ok(places) => {
                    after = places.last().copied().filter(|_| places.len() == AT_ONCE as usize);
                    turns.note(&key.trigger, places);
                }
                Err(error) => {
                    debug!(%error, "What follows for the files that the hub has cannot be looked up");
                    return;
                }
            }
        }
    }
}

/// Tries one.
async fn put_away(agent: &Arc<Agent>, resource: &Resource, trigger: &Name, place: i64, turns: &mut Turns) {
    let begun = Instant::now();
    let unsettled = match agent.journal.unsettled_at(place).await {
        Ok(Some(unsettled)) => unsettled,
        Ok(None) => {
            turns.done(trigger, place);
            return;
        }
        Err(error) => {
            debug!(%error, "What follows for a file that the hub has cannot be read");
            turns.failed(trigger, place, Target::Answers, begun.elapsed(), Instant::now());
            return;
        }
    };
    let Unsettled { id, key, seen, .. } = &unsettled;
    match one(agent, resource, place, &unsettled).await {
        Ok(()) => {
            if turns.done(trigger, place) {
                info!(event_id = %id, resource = %key.resource, %trigger, "A file that could not be deleted or moved is put away now");
            }
        }
        Err(failure) => {
            let took = begun.elapsed();
            let problem = format!("a file that the hub has stays where it is: {}", failure.message);
            if agent.triggers.board.stuck(key, place, &seen.path, &problem) {
                warn!(
                    event_id = %id, resource = %key.resource, %trigger, path = seen.path, error = %failure,
                    "A file that the hub has cannot be deleted or moved yet; trying again, and going on with the others"
                );
            }
            turns.failed(trigger, place, target(&failure, took), took, Instant::now());
        }
    }
}

/// Whether the file is the trouble, or the whole target.
fn target(failure: &Failure, took: Duration) -> Target {
    let answers = match failure.code {
        Code::PolicyDenied
        | Code::PathInvalid
        | Code::InvalidParams
        | Code::TooLarge
        | Code::DigestMismatch
        | Code::TargetRefused
        | Code::TargetNotFound
        | Code::TargetConflict
        | Code::TargetFull
        | Code::TargetUnsupported
        | Code::TargetProtocol => true,
        Code::TargetUnreachable
        | Code::TargetTimeout
        | Code::TargetAuth
        | Code::TargetThrottled
        | Code::Deadline
        | Code::Cancelled
        | Code::Internal => false,
    };
    if answers && took < SLOW { Target::Answers } else { Target::Fails(failure.retry_after) }
}

async fn one(
    agent: &Arc<Agent>,
    resource: &Resource,
    place: i64,
    unsettled: &Unsettled,
) -> Result<(), Failure> {
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
        Failure::retry(Code::Internal, "the agent's journal cannot be written").detail(error)
    })?;
    agent.triggers.board.settled(key, place);
    Ok(())
}

/// Another id, for the name that the marker has in between.
fn beside(id: Uuid) -> Uuid {
    Uuid::from_u128(!id.as_u128())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_target_says_of_one_file_is_not_held_against_the_others() {
        let quick = Duration::from_millis(5);
        let of = |code, took| target(&Failure::retry(code, "no"), took);
        for code in [Code::TargetRefused, Code::TargetConflict, Code::TargetProtocol, Code::PathInvalid] {
            assert_eq!(of(code, quick), Target::Answers, "{code:?}");
            assert_eq!(of(code, SLOW), Target::Fails(None), "{code:?}, after too long");
        }
        for code in [Code::TargetUnreachable, Code::TargetTimeout, Code::TargetAuth, Code::Internal] {
            assert_eq!(of(code, quick), Target::Fails(None), "{code:?}");
        }
        let asked = Some(Duration::from_secs(7));
        let busy = Failure::retry(Code::TargetThrottled, "later").retry_after(asked);
        assert_eq!(target(&busy, quick), Target::Fails(asked));
    }
}
