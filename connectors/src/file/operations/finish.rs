//! Finishing a drop whose intent is journalled: was it renamed or not?
//!
//! | part | folder | then |
//! |---|---|---|
//! | there, whole | | it was not: ask the gate again and rename |
//! | there, damaged | | it was not: withdraw the intent, remove the part and begin afresh |
//! | gone | the intent's, part had been synced | it was, even if a consumer has taken the file away since |
//! | gone | the same, but another agent was told to go on with it | it was, if the target is there with the intent's content |
//! | gone | the same at a site of several agents, and the name, which must not be replaced, is somebody else's | nobody can tell |
//! | gone | the intent's, part had not been synced | it was, if the target is there with the intent's content |
//! | there or gone | bound to its target (an object store's upload), which says that it came from it | it was |
//! | gone | bound to its target, which does not say so | it was, if the target has the intent's content; else nobody can tell |
//! | there, and what was to be replaced is set aside | | cut off between the steps of replacing: put it back first |
//! | gone | another one, or not synced and no such target | nobody can tell: `unknown` |

use super::{
    super::{
        aside::{self, forget, restore},
        backend::{EntryKind, FsError, Links, Problem},
        params::{Drop, OnConflict},
        place::Place,
        pool::{Lease, Pool},
        worker::Hands,
    },
    drop::{DropState, free_name, identity, lost, name, named_anyhow, outcome},
    effect_failure, intended, look, of_another_job,
    refusal::{self, Refusal},
    state,
};
use crate::{Call, Code, Company, Failure, Intent, Outcome};
use aws_lc_rs::digest::{Context, SHA256};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// What came of it.
pub(super) enum Finished {
    /// The file has its name, by now or since the earlier attempt.
    Done(Outcome),
    /// The earlier attempt certainly had no effect and left nothing to go on with.
    Afresh,
}

/// What is found at the place.
struct Found {
    /// The size of the part, if there is one.
    part: Option<u64>,
    /// The folder's identity, if there is a folder.
    folder: Option<Value>,
    /// Whether this kind of place reads a part back even if it was synced.
    rereads: bool,
    /// Whether a part is bound to its target, and one that is gone proves nothing.
    binds: bool,
    /// Whether a name that must be free is taken in one step.
    claims: bool,
    /// Whether something is where the attempt set aside what it was to replace.
    aside: bool,
}

impl Found {
    /// Whether an earlier attempt's rename, of which no answer is left, was one step.
    fn atomic(&self, params: &Drop) -> bool {
        match params.on_conflict {
            OnConflict::Replace => !self.aside,
            OnConflict::Fail | OnConflict::Suffix => self.claims,
        }
    }
}

/// Decides and, where it was not done, does it.
pub(super) async fn finish(
    pool: &Pool,
    call: &Call,
    params: &Drop,
    intent: &Intent,
    content: Option<(u64, [u8; 32])>,
) -> Result<Finished, Failure> {
    // The payload is the one that was signed: an intent for another content is of another job.
    if content.is_some_and(|(size, sha256)| (Some(size), Some(sha256)) != (intent.size, intent.sha256)) {
        return Err(of_another_job());
    }
    // Until it is known what the earlier attempt did, no failure may say that nothing was done: so cancelling does not keep
    // from looking either.
    let looking = Call { cancel: CancellationToken::new(), ..call.clone() };
    let mut lease = pool.lease_for(&looking).await.map_err(Failure::effect_unknown)?;
    let finished = decide(&mut lease, &looking, &call.cancel, params, intent).await;
    if let (Ok(Finished::Done(_)), Some(aside)) = (&finished, replaced(call, params)) {
        lease.commit();
        // It has happened: what cannot be removed turns it into no failure.
        if let Err(error) = lease.run(move |hands| forget(hands.fs.as_mut(), &aside)).await {
            tracing::debug!(detail = %error.detail, "a file that was replaced may stay under a hidden name");
        }
    }
    lease.release().await;
    finished
}

/// Where the job sets aside what it replaces, at targets that replace in several steps.
fn replaced(call: &Call, params: &Drop) -> Option<Place> {
    (params.on_conflict == OnConflict::Replace).then(|| params.place.taken(call.job))
}

async fn decide(
    lease: &mut Lease,
    call: &Call,
    cancel: &CancellationToken,
    params: &Drop,
    intent: &Intent,
) -> Result<Finished, Failure> {
    let kept: DropState = state(intent)?;
    let (Some(part), Some(target), Some(size), Some(sha256)) =
        (&intent.part, &intent.target, intent.size, intent.sha256)
    else {
        let message = "what an earlier attempt intended is incomplete, so nothing is done";
        return Err(Failure::permanent(Code::Internal, message).effect_unknown());
    };
    let part = params.place.own_part(call.job, part).ok_or_else(of_another_job)?;
    let target = intended(&params.place, params.on_conflict, target)?;
    let aside = replaced(call, params);
    let found = lease.run(find(&part, aside.clone())).await.map_err(unknown)?;
    if let (Some(_), true, Some(aside)) = (found.part, found.aside, aside) {
        // Cut off between the steps of replacing: whatever comes now, what was there is there again.
        let place = target.clone();
        lease.run(move |hands| restore(hands.fs.as_mut(), &place, &aside)).await.map_err(unknown)?;
    }
    call.progress.beat();
    let atomic = found.atomic(params);
    if found.binds && lease.run(says_so(&target, &part)).await.map_err(unknown)? {
        // Whoever died in between may not have taken away what the part was bound by.
        return Ok(Finished::Done(Outcome { leaves: true, ..outcome(intent, kept.synced, atomic) }));
    }
    let Some(found_size) = found.part else {
        let company = call.gate.company();
        // Whoever goes on with an intent takes the part away only where somebody else has the name.
        let may_be_lost = company == Company::Possible
            && params.on_conflict == OnConflict::Fail
            && holds(lease, call, &target, size, sha256).await.map_err(unknown)? == Holds::Another;
        let proves = kept.synced && !found.binds && company != Company::Certain && !may_be_lost;
        if proves && found.folder.as_ref() == Some(&kept.folder) {
            let folder = target.folder().to_owned();
            let synced = lease.run(move |hands| hands.fs.sync_folder(&folder)).await.unwrap_or(false);
            return Ok(Finished::Done(outcome(intent, synced, atomic)));
        }
        // Not synced, the part may have been lost with the target's power; or another agent has taken it away, since the hub has
        // given this attempt up. Content that is there was neither.
        if found.folder.as_ref() == Some(&kept.folder)
            && arrived(lease, call, &target, size, sha256).await.map_err(unknown)?
        {
            return Ok(Finished::Done(outcome(intent, false, atomic)));
        }
        let message = "the unfinished file of an earlier attempt is gone and the folder does not show why: whether the file arrived is not known";
        let detail = format!(
            "{company:?}, synced: {}, folder was {}, is {:?}",
            kept.synced, kept.folder, found.folder
        );
        return Err(Failure::permanent(Code::TargetConflict, message).effect_unknown().detail(detail));
    };
    if cancel.is_cancelled() {
        // Not renamed yet, and not any more: the part is left to those who clean up.
        call.gate.withdraw().await?;
        return Err(Failure::cancelled());
    }
    let whole = found_size == size
        && (kept.synced && !found.rereads
            || has_content(lease, call, &part, sha256).await.map_err(unknown)?);
    if !whole {
        call.gate.withdraw().await?;
        lease.run(remove(&part)).await?;
        return Ok(Finished::Afresh);
    }
    rename(lease, call, params, intent.clone(), &kept, (&part, target), &found).await
}

/// The part is whole: gives it its name.
async fn rename(
    lease: &mut Lease,
    call: &Call,
    params: &Drop,
    mut intent: Intent,
    kept: &DropState,
    (part, mut target): (&Place, Place),
    found: &Found,
) -> Result<Finished, Failure> {
    let mut candidate = 1;
    loop {
        call.gate.pass(&intent).await?;
        lease.commit();
        let error = match name(lease, call, part, &target, params.on_conflict).await {
            Ok(named) => {
                return Ok(Finished::Done(named.outcome(&intent, kept.synced)));
            }
            Err(error) if error.is_broken() => return Err(effect_failure(error)),
            Err(error) => error,
        };
        let on_conflict = params.on_conflict;
        match refusal::of_a_part(lease, call, part, &target, on_conflict, &intent, error).await {
            Refusal::Untrue { atomic } => {
                let named = named_anyhow(lease, &target, &intent, kept.synced, atomic);
                return Ok(Finished::Done(named.await));
            }
            Refusal::Unclear(failure) => return Err(failure),
            Refusal::Unseen(error) => return Err(effect_failure(error)),
            Refusal::Meant(error) if error.problem == Problem::Exists => {
                // Renaming without replacing is a link and an unlink on some targets: cut off between the two, it
                // left the same content under both names. Then the second half is all that is missing.
                let sha256 = intent.sha256.unwrap_or_default();
                if has_content(lease, call, &target, sha256).await.unwrap_or(false) {
                    lease.run(remove(part)).await.map_err(effect_failure)?;
                    return Ok(Finished::Done(outcome(&intent, kept.synced, found.atomic(params))));
                }
                if on_conflict == OnConflict::Fail || on_conflict == OnConflict::Suffix && found.binds {
                    return Err(lost(lease, call, part.clone(), on_conflict, error).await);
                }
                if on_conflict == OnConflict::Replace {
                    return Err(error.into());
                }
                let (next, number) = free_name(lease, &params.place, candidate).await?;
                candidate = number + 1;
                intent.target = Some(next.to_string());
                target = next;
            }
            Refusal::Meant(error) => return Err(error.into()),
        }
    }
}

fn find(
    part: &Place,
    aside: Option<Place>,
) -> impl FnOnce(&mut Hands) -> Result<Found, FsError> + Send + 'static {
    let part = part.clone();
    move |hands| {
        let features = hands.fs.features();
        let (rereads, claims, binds) =
            (features.rereads_parts, features.claims_names, hands.fs.binds_parts());
        let folder = match identity(hands, part.folder()) {
            Ok(identity) => Some(identity),
            Err(error) if error.problem == Problem::NotFound => None,
            Err(error) => return Err(error),
        };
        let aside = match (&folder, aside) {
            (Some(_), Some(aside)) => aside::look(hands.fs.as_mut(), &aside)?.is_some(),
            (Some(_) | None, _) => false,
        };
        let part = match folder {
            Some(_) => look(hands.fs.as_mut(), &part, Links::Keep)?.map(|stat| stat.size),
            None => None,
        };
        Ok(Found { part, folder, rereads, binds, claims, aside })
    }
}

pub(super) fn says_so(
    target: &Place,
    part: &Place,
) -> impl FnOnce(&mut Hands) -> Result<bool, FsError> + Send + 'static {
    let (target, part) = (target.clone(), part.clone());
    move |hands| hands.fs.came_from(&target, &part, None)
}

fn remove(place: &Place) -> impl FnOnce(&mut Hands) -> Result<(), FsError> + Send + 'static {
    let place = place.clone();
    move |hands| hands.fs.delete(&place)
}

/// What is at the target.
#[derive(PartialEq, Eq)]
enum Holds {
    Nothing,
    /// A file with the intent's content.
    Ours,
    Another,
}

/// Whether the target is a file with the intent's content.
pub(super) async fn arrived(
    lease: &mut Lease,
    call: &Call,
    target: &Place,
    size: u64,
    sha256: [u8; 32],
) -> Result<bool, FsError> {
    Ok(holds(lease, call, target, size, sha256).await? == Holds::Ours)
}

async fn holds(
    lease: &mut Lease,
    call: &Call,
    target: &Place,
    size: u64,
    sha256: [u8; 32],
) -> Result<Holds, FsError> {
    let looked_at = target.clone();
    let found = lease.run(move |hands| look(hands.fs.as_mut(), &looked_at, Links::Keep)).await?;
    let Some(stat) = found else { return Ok(Holds::Nothing) };
    let may_be = stat.kind == EntryKind::File && stat.size == size;
    let ours = may_be && has_content(lease, call, target, sha256).await?;
    Ok(if ours { Holds::Ours } else { Holds::Another })
}

/// Reads a file and compares its digest.
pub(super) async fn has_content(
    lease: &mut Lease,
    call: &Call,
    place: &Place,
    sha256: [u8; 32],
) -> Result<bool, FsError> {
    let opened = place.clone();
    let slice = lease.run(move |hands| {
        hands.source = Some(hands.fs.open(&opened)?);
        Ok(hands.fs.features().read)
    });
    let mut buffer = vec![0; slice.await?];
    let mut context = Context::new(&SHA256);
    loop {
        let (full, context_back, n) = lease
            .run(move |hands| {
                let n = match &mut hands.source {
                    Some(source) => source.read(&mut buffer)?,
                    None => 0,
                };
                context.update(buffer.get(..n).unwrap_or_default());
                Ok((buffer, context, n))
            })
            .await?;
        (buffer, context) = (full, context_back);
        call.progress.beat();
        if n == 0 {
            break;
        }
    }
    lease
        .run(|hands| {
            hands.source = None;
            Ok(())
        })
        .await?;
    Ok(context.finish().as_ref() == sha256)
}

fn unknown(error: FsError) -> Failure {
    Failure::from(error).effect_unknown()
}
