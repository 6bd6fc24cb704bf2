//! A refusal is believed only as far as the target shows it.
//!
//! A target may refuse what it did: a proxy before it repeats the request, an object store answers 500, an export of NFS
//! repeats the call. Told as *not applied*, such an effect would happen a second time, or its only copy be given up.

use super::{
    super::{
        backend::{FsError, Links},
        params::OnConflict,
        place::Place,
        pool::Lease,
    },
    finish::{arrived, says_so},
    look,
};
use crate::{Call, Code, Failure, Intent};

/// What a refused rename of a part was.
pub(super) enum Refusal {
    /// The part is where it was.
    Meant(FsError),
    /// The file has its name, in one step or in several.
    Untrue { atomic: bool },
    /// The part is gone, and nothing shows why.
    Unclear(Failure),
    /// The connection broke before that was seen.
    Unseen(FsError),
}

/// Looks whether the refused rename of a part to `target` was refused.
pub(super) async fn of_a_part(
    lease: &mut Lease,
    call: &Call,
    part: &Place,
    target: &Place,
    on_conflict: OnConflict,
    intent: &Intent,
    error: FsError,
) -> Refusal {
    match is_there(lease, part).await {
        Ok(true) => return Refusal::Meant(error),
        Ok(false) => {}
        Err(second) if second.is_broken() => return Refusal::Unseen(second),
        // A target that refuses even the look is believed.
        Err(_) => return Refusal::Meant(error),
    }
    match has_its_name(lease, call, part, target, intent).await {
        Ok(true) => {}
        Ok(false) => return Refusal::Unclear(unclear(&error)),
        Err(second) if second.is_broken() => return Refusal::Unseen(second),
        Err(second) => return Refusal::Unclear(unclear(&error).detail(second)),
    }
    let atomic = match on_conflict {
        OnConflict::Replace => !error.in_steps,
        OnConflict::Fail | OnConflict::Suffix => {
            lease.run(|hands| Ok(hands.fs.features().claims_names)).await.unwrap_or(false)
        }
    };
    Refusal::Untrue { atomic }
}

/// Whether the target is what the part was.
async fn has_its_name(
    lease: &mut Lease,
    call: &Call,
    part: &Place,
    target: &Place,
    intent: &Intent,
) -> Result<bool, FsError> {
    let (of, at) = (part.clone(), target.clone());
    let says_so = lease.run(move |hands| Ok(hands.fs.binds_parts() && says_so(&at, &of)(hands)?));
    match says_so.await {
        Ok(true) => return Ok(true),
        Err(error) if error.is_broken() => return Err(error),
        Ok(false) | Err(_) => {}
    }
    match (intent.size, intent.sha256) {
        (Some(size), Some(sha256)) => arrived(lease, call, target, size, sha256).await,
        _ => Ok(false),
    }
}

/// Whether something is at a place.
async fn is_there(lease: &mut Lease, place: &Place) -> Result<bool, FsError> {
    let place = place.clone();
    lease.run(move |hands| Ok(look(hands.fs.as_mut(), &place, Links::Keep)?.is_some())).await
}

/// The failure where the target says no, and what it should have left is gone.
pub(super) fn unclear(error: &FsError) -> Failure {
    let message =
        "the target refused, yet the file is no longer where it was: whether it was done is not known";
    Failure::permanent(Code::TargetConflict, message).effect_unknown().detail(error)
}
