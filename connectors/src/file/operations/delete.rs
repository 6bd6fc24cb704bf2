//! `delete`: one file; that it is absent already is a success.

use super::{
    super::{
        backend::{EntryKind, FsError, Links, Problem},
        place::Place,
        pool::{Lease, Pool},
    },
    Fingerprint, effect_failure, look, plain, state,
};
use crate::{Call, Failure, Intent, Outcome};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// What the connector keeps in the intent of a delete.
#[derive(Debug, Serialize, Deserialize)]
struct DeleteState {
    operation: String,
    file: Fingerprint,
}

/// Performs one attempt.
pub(super) async fn delete(pool: &Pool, call: &Call, place: &Place) -> Result<Outcome, Failure> {
    // Until it is known what the earlier attempt did, no failure may say that nothing was done.
    let mut lease = match (pool.lease_for(call).await, &call.prior_intent) {
        (Err(failure), Some(_)) => return Err(failure.effect_unknown()),
        (leased, _) => leased?,
    };
    let deleted = decide(&mut lease, call, place).await;
    lease.release().await;
    deleted.map(|deleted| plain(json!({ "deleted": deleted })))
}

async fn decide(lease: &mut Lease, call: &Call, place: &Place) -> Result<bool, Failure> {
    let looked_at = place.clone();
    let looked = lease.run(move |hands| match look(hands.fs.as_mut(), &looked_at, Links::Keep) {
        // Below a file there is nothing.
        Err(error) if error.problem == Problem::NotAFolder => Ok(None),
        other => other,
    });
    let found = looked.await?;
    if let Some(intent) = &call.prior_intent {
        // Gone, or another file by now: the one that was meant has been deleted. A newer one is not touched.
        let kept: DeleteState = state(intent)?;
        if !found.is_some_and(|found| kept.file.matches(found)) {
            return Ok(true);
        }
    }
    let Some(found) = found else { return Ok(false) };
    match found.kind {
        EntryKind::File | EntryKind::Symlink => {}
        EntryKind::Directory => return Err(FsError::new(Problem::IsAFolder, place).into()),
        EntryKind::Other => return Err(FsError::new(Problem::NotAFile, place).into()),
    }
    let intent = Intent {
        part: None,
        target: Some(place.to_string()),
        size: Some(found.size),
        sha256: None,
        state: json!(DeleteState { operation: "delete".to_owned(), file: found.into() }),
    };
    call.gate.pass(&intent).await?;
    lease.commit();
    let doomed = place.clone();
    let deleted = lease.run(move |hands| {
        match hands.fs.delete(&doomed) {
            // Someone else was faster: gone is gone.
            Err(error) if error.problem == Problem::NotFound => return Ok(false),
            // A refusal of what was done all the same.
            Err(error)
                if !error.is_broken()
                    && matches!(look(hands.fs.as_mut(), &doomed, Links::Keep), Ok(None)) => {}
            other => other?,
        }
        // The effect has happened: a folder that cannot be synced does not undo it.
        drop(hands.fs.sync_folder(doomed.folder()));
        Ok(true)
    });
    deleted.await.map_err(effect_failure)
}
