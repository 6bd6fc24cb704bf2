//! A refusal is believed only as far as the target shows it.
//!
//! A target may refuse what it did: a proxy before it repeats the request, an object store answers 500, an export of NFS
//! repeats the call. Told as *not applied*, such an effect would happen a second time, or its only copy be given up.

use super::{
    super::{
        backend::{FsError, Links},
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
    /// The file has its name.
    Untrue,
    /// The part is gone, and nothing shows why.
    Unclear(Failure),
}

/// Looks whether the refused rename of a part to `target` was refused.
pub(super) async fn of_a_part(
    lease: &mut Lease,
    call: &Call,
    part: &Place,
    target: &Place,
    intent: &Intent,
    error: FsError,
) -> Refusal {
    match is_there(lease, part).await {
        Ok(true) => return Refusal::Meant(error),
        Ok(false) => {}
        Err(second) if second.is_broken() => return Refusal::Unclear(unclear(&error).detail(second)),
        // A target that refuses even the look is believed.
        Err(_) => return Refusal::Meant(error),
    }
    let bound = lease.run(|hands| Ok(hands.fs.binds_parts())).await.unwrap_or(false);
    if bound && lease.run(says_so(target, part)).await.unwrap_or(false) {
        return Refusal::Untrue;
    }
    let (Some(size), Some(sha256)) = (intent.size, intent.sha256) else {
        return Refusal::Unclear(unclear(&error));
    };
    match arrived(lease, call, target, size, sha256).await {
        Ok(true) => Refusal::Untrue,
        Ok(false) => Refusal::Unclear(unclear(&error)),
        Err(second) => Refusal::Unclear(unclear(&error).detail(second)),
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
