//! `drop`: a whole file that appears at once, once.
//!
//! The content goes to a part beside the target, is synced and measured, and gets its name by one rename after the
//! gate has passed the intent. Until then any failure removes the part. From the gate on, the part belongs to the
//! intent and is left alone: `finish` decides by it, now or in a later attempt, whether the rename happened. Only where
//! somebody else has the name, which is no doubt, the intent is withdrawn and the part removed.

use super::{
    super::{
        backend::{EntryKind, Existing, FsError, Links, PartFile, Problem},
        params::{Drop, OnConflict},
        place::{Place, join},
        pool::{Lease, Pool},
        worker::Hands,
    },
    MAX_SUFFIX, effect_failure,
    finish::{Finished, finish},
    look, no_free_name,
    refusal::{self, Refusal},
};
use crate::{Call, Code, Effect, Failure, Input, Intent, Outcome};
use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Of how many attempts before it one clears away the parts.
const CLEARED: u32 = 16;

/// What the connector keeps in the intent of a drop.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct DropState {
    /// Always `drop`.
    pub(super) operation: String,
    /// Whether the content was on the target's disk before the intent.
    pub(super) synced: bool,
    /// The identity of the folder that part and target are in, as a digest.
    pub(super) folder: Value,
}

/// What the target is like, and what was chosen before the part was opened.
struct Prepared {
    slice: usize,
    /// Set where a part is bound to its target from the beginning.
    bound: Option<Place>,
}

/// A part that is complete, and where it lies.
struct Written {
    synced: bool,
    folder: Value,
}

/// Performs one attempt.
pub(super) async fn drop(
    pool: &Pool,
    call: &Call,
    params: &Drop,
    input: Option<Input>,
) -> Result<Outcome, Failure> {
    if let Some(intent) = &call.prior_intent {
        let content = input.as_ref().map(|input| (input.size(), input.sha256()));
        match finish(pool, call, params, intent, content).await? {
            Finished::Done(outcome) => return Ok(outcome),
            Finished::Afresh => {}
        }
    }
    let Some(input) = input else {
        return Err(Failure::permanent(Code::InvalidParams, "drop needs a payload"));
    };
    let mut lease = pool.lease_for(call).await?;
    let dropped = write_and_name(&mut lease, call, params, input).await;
    lease.release().await;
    match dropped {
        Ok(outcome) => Ok(outcome),
        // The connection broke while the rename was under way. What is there now tells whether it happened.
        Err(Stopped::InEffect(intent, failure)) => {
            // An effect that has begun is brought to its end: cancelling comes too late.
            let uncancelled = Call { cancel: CancellationToken::new(), ..call.clone() };
            match finish(pool, &uncancelled, params, &intent, None).await {
                Ok(Finished::Done(outcome)) => Ok(outcome),
                Ok(Finished::Afresh) => Err(Failure { effect: Effect::NotApplied, ..failure }),
                Err(second) => {
                    let detail = format!("{failure}; then, when looking again: {second}");
                    Err(second.detail(detail))
                }
            }
        }
        Err(Stopped::Before(failure)) => Err(failure),
    }
}

/// Where an attempt stopped.
enum Stopped {
    /// The effect certainly did not happen.
    Before(Failure),
    /// It may have.
    InEffect(Box<Intent>, Failure),
}

impl<E: Into<Failure>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Before(error.into())
    }
}

async fn write_and_name(
    lease: &mut Lease,
    call: &Call,
    params: &Drop,
    mut input: Input,
) -> Result<Outcome, Stopped> {
    let part = params.place.part(call.job, call.attempt);
    let sha256 = input.sha256();
    let size = input.size();
    call.progress.set_total(size);
    input.report_to(&call.progress);
    let prepared = lease.run(prepare(params, call, part.clone(), size)).await?;
    let Prepared { slice, bound } = prepared.ok_or_else(no_free_name)?;
    stream(lease, call, &mut input, slice).await?;
    let written = lease.run(move |hands| complete(hands, size)).await?;
    call.progress.beat();

    let mut candidate = 1;
    loop {
        let on_conflict = params.on_conflict;
        let (target, number) = match (on_conflict, &bound) {
            (_, Some(bound)) => (bound.clone(), candidate),
            (OnConflict::Replace | OnConflict::Fail, None) => (params.place.clone(), candidate),
            (OnConflict::Suffix, None) => free_name(lease, &params.place, candidate).await?,
        };
        // From here on the part is no longer this attempt's to remove: the intent may be on disk already when the
        // gate fails, and a part that is gone would then count as renamed.
        lease
            .run(|hands| {
                hands.doomed = None;
                Ok(())
            })
            .await?;
        let state = DropState {
            operation: "drop".to_owned(),
            synced: written.synced,
            folder: written.folder.clone(),
        };
        let intent = Intent {
            part: Some(part.to_string()),
            target: Some(target.to_string()),
            size: Some(size),
            sha256: Some(sha256),
            state: json!(state),
        };
        call.gate.pass(&intent).await?;
        lease.commit();
        let error = match name(lease, call, &part, &target, on_conflict).await {
            Ok(named) => return Ok(named.outcome(&intent, written.synced)),
            Err(error) if error.is_broken() => {
                return Err(Stopped::InEffect(Box::new(intent), effect_failure(error)));
            }
            Err(error) => error,
        };
        let refusal = refusal::of_a_part(lease, call, &part, &target, on_conflict, &intent, error).await;
        let error = match refusal {
            Refusal::Meant(error) => error,
            Refusal::Untrue { atomic } => {
                return Ok(named_anyhow(lease, &target, &intent, written.synced, atomic).await);
            }
            Refusal::Unclear(failure) => return Err(Stopped::Before(failure)),
            Refusal::Unseen(error) => {
                return Err(Stopped::InEffect(Box::new(intent), effect_failure(error)));
            }
        };
        match (error.problem, on_conflict) {
            (Problem::Exists, OnConflict::Suffix) if bound.is_none() => candidate = number + 1,
            (Problem::Exists, OnConflict::Fail | OnConflict::Suffix) => {
                return Err(lost(lease, call, part, on_conflict, error).await.into());
            }
            _ => return Err(error.into()),
        }
    }
}

/// Makes missing folders if allowed, looks at the target, clears away what dead attempts of the job left, and opens
/// the part. `None` if no name is free.
fn prepare(
    params: &Drop,
    call: &Call,
    part: Place,
    size: u64,
) -> impl FnOnce(&mut Hands) -> Result<Option<Prepared>, FsError> + Send + 'static {
    let Drop { place, on_conflict, create_dirs } = params;
    let (place, on_conflict, create_dirs) = (place.clone(), *on_conflict, *create_dirs);
    let (job, attempt) = (call.job, call.attempt);
    move |hands| {
        if create_dirs {
            make_folders(hands, place.folder())?;
        }
        let is_free = on_conflict == OnConflict::Replace && hands.fs.is_free(&place)?;
        let there = if is_free { None } else { look(hands.fs.as_mut(), &place, Links::Keep)? };
        if let Some(there) = there {
            match (there.kind, on_conflict) {
                (EntryKind::Directory, OnConflict::Replace) => {
                    return Err(FsError::new(Problem::IsAFolder, &place));
                }
                (_, OnConflict::Fail) => return Err(FsError::new(Problem::Exists, &place)),
                // Replacing takes the link's own place; one that leads out of the root is refused all the same.
                (EntryKind::Symlink, OnConflict::Replace) => {
                    look(hands.fs.as_mut(), &place, Links::Follow)?;
                }
                (EntryKind::Other, OnConflict::Replace) => {
                    return Err(FsError::new(Problem::NotAFile, &place));
                }
                (EntryKind::File, OnConflict::Replace) | (_, OnConflict::Suffix) => {}
            }
        }
        // Numbers may have gaps, and any size: what earlier ones left is known to the agent's journal, and swept.
        for dead in attempt.saturating_sub(CLEARED).max(1)..attempt {
            remove_if_there(hands, &place.part(job, dead))?;
        }
        let bound = if hands.fs.binds_parts() {
            match on_conflict {
                OnConflict::Replace | OnConflict::Fail => Some(place.clone()),
                OnConflict::Suffix => match set_aside(hands, &place)? {
                    Some(free) => Some(free),
                    None => return Ok(None),
                },
            }
        } else {
            None
        };
        let target = bound.as_ref().unwrap_or(&place);
        let file = match hands.create_part(&part, target, size) {
            // Left by this very attempt when it was cut off before its intent.
            Err(error) if error.problem == Problem::Exists => {
                remove_if_there(hands, &part)?;
                hands.create_part(&part, target, size)
            }
            other => other,
        }?;
        hands.part = Some(file);
        hands.doomed = Some(part);
        Ok(Some(Prepared { slice: hands.fs.features().write, bound }))
    }
}

/// The first name that is free, and that no other drop of this resource is about to take.
fn set_aside(hands: &mut Hands, place: &Place) -> Result<Option<Place>, FsError> {
    for number in 1..=MAX_SUFFIX {
        let candidate = place.nth(number);
        // In this order: whoever had it aside has taken it by the time that it is let go.
        if hands.fs.reserve(&candidate) && look(hands.fs.as_mut(), &candidate, Links::Keep)?.is_none() {
            return Ok(Some(candidate));
        }
    }
    Ok(None)
}

/// Somebody took the only name that a part could get: the intent had no effect, and the part goes before that is told.
pub(super) async fn lost(
    lease: &mut Lease,
    call: &Call,
    part: Place,
    on_conflict: OnConflict,
    error: FsError,
) -> Failure {
    if let Err(failure) = call.gate.withdraw().await {
        return failure;
    }
    let doomed = lease.run(move |hands| {
        hands.doomed = Some(part);
        Ok(())
    });
    if let Err(error) = doomed.await {
        tracing::debug!(%error, "an unfinished part stays until it is swept");
    }
    match on_conflict {
        OnConflict::Suffix => {
            let message =
                "the free name was taken by somebody else meanwhile; the next attempt takes the next one";
            Failure::retry(Code::TargetConflict, message).detail(error)
        }
        OnConflict::Replace | OnConflict::Fail => error.into(),
    }
}

fn remove_if_there(hands: &mut Hands, place: &Place) -> Result<(), FsError> {
    match hands.fs.delete(place) {
        Err(error) if error.problem != Problem::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn make_folders(hands: &mut Hands, folder: &str) -> Result<(), FsError> {
    if folder.is_empty() || hands.fs.stat(folder, Links::Follow).is_ok() {
        return Ok(());
    }
    let mut path = String::new();
    for name in folder.split('/') {
        path = join(&path, name);
        match hands.fs.make_folder(&path) {
            Err(error) if error.problem != Problem::Exists => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Writes the payload through two buffers: one is filled while the other is written.
async fn stream(lease: &mut Lease, call: &Call, input: &mut Input, slice: usize) -> Result<(), Failure> {
    // One byte more than a small payload needs, so that one round both reads it and verifies its end.
    let length = usize::try_from(input.size()).unwrap_or(usize::MAX).saturating_add(1).min(slice);
    let mut next = vec![0; length];
    let mut spare = Vec::new();
    let mut filled = cancellable(call, input.fill(&mut next)).await?;
    while filled > 0 {
        let last = filled < length;
        let full = next;
        next = spare;
        let writing = lease.run(move |hands| {
            if let (Some(part), Some(bytes)) = (&mut hands.part, full.get(..filled)) {
                part.write(bytes)?;
            }
            Ok(full)
        });
        let following = if last {
            spare = writing.await?;
            0
        } else {
            next.resize(length, 0);
            let writing = async { writing.await.map_err(Failure::from) };
            let (written, read) = tokio::try_join!(writing, cancellable(call, input.fill(&mut next)))?;
            spare = written;
            read
        };
        call.progress.add(filled as u64);
        filled = following;
    }
    Ok(())
}

async fn cancellable<T>(
    call: &Call,
    reading: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = call.cancel.cancelled() => Err(Failure::cancelled()),
        read = reading => read,
    }
}

/// Syncs and closes the part, and checks that all of it is there.
fn complete(hands: &mut Hands, size: u64) -> Result<Written, FsError> {
    let Some(mut part) = hands.part.take() else {
        return Err(FsError::new(Problem::Other, "no part is open"));
    };
    let synced = part.sync()?;
    let found = part.size()?;
    close(part);
    if found != size {
        return Err(FsError::new(Problem::NotKept, format!("the part has {found} bytes instead of {size}")));
    }
    let folder = hands.doomed.as_ref().map_or(String::new(), |part| part.folder().to_owned());
    Ok(Written { synced, folder: identity(hands, &folder)? })
}

/// Names the folder without telling where it is: the intent may travel through the hub.
pub(super) fn identity(hands: &mut Hands, folder: &str) -> Result<Value, FsError> {
    let identity = hands.fs.identity(folder)?.to_string();
    let digest = digest::digest(&digest::SHA256, identity.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Value::String(hex))
}

/// Closes the part before it is renamed, which some servers insist on.
fn close(part: Box<dyn PartFile>) {
    std::mem::drop(part);
}

/// The first name from the `from`-th on that is free at the moment.
pub(super) async fn free_name(lease: &mut Lease, place: &Place, from: u32) -> Result<(Place, u32), Failure> {
    let place = place.clone();
    let found = lease.run(move |hands| {
        for number in from..=MAX_SUFFIX {
            let candidate = place.nth(number);
            if look(hands.fs.as_mut(), &candidate, Links::Keep)?.is_none() {
                return Ok(Some((candidate, number)));
            }
        }
        Ok(None)
    });
    found.await?.ok_or_else(no_free_name)
}

/// What a rename may do to what is at its target.
pub(super) fn existing(on_conflict: OnConflict, aside: &Place) -> Existing<'_> {
    match on_conflict {
        OnConflict::Replace => Existing::Replace { aside },
        OnConflict::Fail | OnConflict::Suffix => Existing::Refuse,
    }
}

/// How the part got its name.
pub(super) struct Named {
    /// Whether the folder was synced afterwards.
    pub(super) synced: bool,
    /// As [`Renamed`](super::super::backend::Renamed) says it.
    pub(super) atomic: bool,
    /// Whether something of the part may still be there.
    pub(super) leaves: bool,
}

/// The final effect.
pub(super) async fn name(
    lease: &mut Lease,
    call: &Call,
    part: &Place,
    target: &Place,
    on_conflict: OnConflict,
) -> Result<Named, FsError> {
    let (part, target, aside) = (part.clone(), target.clone(), target.taken(call.job));
    lease
        .run(move |hands| {
            let renamed = hands.fs.rename(&part, &target, existing(on_conflict, &aside))?;
            // The effect has happened: from here on nothing may turn it into a failure.
            let synced = hands.fs.sync_folder(target.folder()).unwrap_or_else(|error| {
            tracing::warn!(detail = %error.detail, "a folder could not be synced after a file was put there");
            false
        });
            Ok(Named { synced, atomic: renamed.atomic, leaves: hands.fs.leaves_part() })
        })
        .await
}

impl Named {
    /// The result of a drop whose content was synced or not before.
    pub(super) fn outcome(&self, intent: &Intent, synced: bool) -> Outcome {
        Outcome { leaves: self.leaves, ..outcome(intent, synced && self.synced, self.atomic) }
    }
}

/// The result where the target refused what it did all the same.
pub(super) async fn named_anyhow(
    lease: &mut Lease,
    target: &Place,
    intent: &Intent,
    synced: bool,
    atomic: bool,
) -> Outcome {
    let folder = target.folder().to_owned();
    let named = lease.run(move |hands| {
        let synced = hands.fs.sync_folder(&folder).unwrap_or(false);
        Ok(Named { synced, atomic, leaves: hands.fs.leaves_part() })
    });
    let named = named.await.unwrap_or(Named { synced: false, atomic, leaves: true });
    named.outcome(intent, synced)
}

/// The result of a drop under `intent`.
pub(super) fn outcome(intent: &Intent, synced: bool, atomic: bool) -> Outcome {
    let sha256 =
        intent.sha256.unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut result = json!({ "path": intent.target, "size": intent.size, "sha256": sha256 });
    if !atomic && let Some(result) = result.as_object_mut() {
        result.insert("atomic".to_owned(), Value::Bool(false));
    }
    Outcome { result, synced: Some(synced), leaves: false }
}
