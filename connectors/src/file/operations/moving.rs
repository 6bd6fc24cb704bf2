//! `move`: one file to another place below the root.
//!
//! After a crash or a lost reply the file's fingerprint decides: still at `from` → move it; at `to` → done; at neither
//! → nobody can tell, as someone may have taken it from either place. What was set aside to be replaced is put back before
//! that is decided, unless the file is at `to`. It may be the file itself, which was moved onto itself by another path.

use super::{
    super::{
        aside::{self, forget, restore},
        backend::{EntryKind, FsError, Links, Problem, Renamed, Stat},
        params::{Move, OnConflict},
        place::Place,
        pool::{Lease, Pool},
    },
    Fingerprint,
    drop::{existing, free_name},
    effect_failure, intended, look, plain, refusal, state,
};
use crate::{Call, Code, Failure, Intent, Outcome};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What the connector keeps in the intent of a move.
#[derive(Debug, Serialize, Deserialize)]
struct MoveState {
    operation: String,
    file: Fingerprint,
}

/// Performs one attempt.
pub(super) async fn move_file(pool: &Pool, call: &Call, params: &Move) -> Result<Outcome, Failure> {
    // Until it is known what the earlier attempt did, no failure may say that nothing was done.
    let mut lease = match (pool.lease_for(call).await, &call.prior_intent) {
        (Err(failure), Some(_)) => return Err(failure.effect_unknown()),
        (leased, _) => leased?,
    };
    let moved = match &call.prior_intent {
        Some(intent) => resume(&mut lease, call, params, intent).await,
        None => rename(&mut lease, call, params).await,
    };
    lease.release().await;
    moved.map(|Moved { path, atomic }| {
        let mut result = json!({ "path": path });
        // What takes a free name says nothing of it.
        if !atomic
            && params.on_conflict == OnConflict::Replace
            && let Some(result) = result.as_object_mut()
        {
            result.insert("atomic".to_owned(), Value::Bool(false));
        }
        plain(result)
    })
}

/// Where the file is now.
struct Moved {
    path: String,
    /// As [`Renamed`] says it.
    atomic: bool,
}

/// What is where after an attempt that was cut off.
struct Found {
    source: Option<Stat>,
    moved: Option<Stat>,
    /// What is at the target says that it was made from the source.
    copied: bool,
    /// What was replaced had been set aside.
    replaced: bool,
}

async fn resume(lease: &mut Lease, call: &Call, params: &Move, intent: &Intent) -> Result<Moved, Failure> {
    let kept: MoveState = state(intent)?;
    let Some(target) = intent.target.clone() else {
        let message = "what an earlier attempt intended is incomplete, so nothing is done";
        return Err(Failure::permanent(Code::Internal, message).effect_unknown());
    };
    let (from, to) = (params.from.clone(), intended(&params.to, params.on_conflict, &target)?);
    let (size, modified) = (kept.file.size, kept.file.modified.clone());
    let replaces = params.on_conflict == OnConflict::Replace;
    let (file, job) = (kept.file.clone(), call.job);
    let found = lease.run(move |hands| {
        let fs = hands.fs.as_mut();
        let aside = to.taken(job);
        let mut found = Found {
            copied: from != to && fs.came_from(&to, &from, Some((size, modified.as_deref())))?,
            source: look(fs, &from, Links::Keep)?,
            moved: look(fs, &to, Links::Keep)?,
            replaced: false,
        };
        if replaces && let Some(waiting) = aside::look(fs, &aside)? {
            let is_it = |stat: Option<Stat>| stat.is_some_and(|stat| file.matches(stat));
            if is_it(found.moved) && !is_it(found.source) || found.copied {
                found.replaced = forget(fs, &aside)?;
            } else if is_it(found.source) || found.source.is_none() && is_it(Some(waiting)) {
                restore(fs, &to, &aside)?;
                found.source = look(fs, &from, Links::Keep)?;
                found.moved = look(fs, &to, Links::Keep)?;
            }
        }
        Ok(found)
    });
    let Found { source, moved, copied, replaced } =
        found.await.map_err(|error| Failure::from(error).effect_unknown())?;
    let done = Moved { path: target.clone(), atomic: !replaced };
    let is_it = |stat: Option<Stat>| stat.is_some_and(|stat| kept.file.matches(stat));
    if copied {
        // Where a move is a copy and a delete, the second half may be missing.
        if is_it(source) {
            let from = params.from.clone();
            lease.commit();
            let deleted = lease.run(move |hands| hands.fs.delete(&from)).await;
            // The copy is there already: nobody may say that nothing was done.
            deleted.map_err(|error| Failure::from(error).effect_unknown())?;
        }
        return Ok(done);
    }
    let one_file = source
        .and_then(|stat| stat.inode)
        .is_some_and(|inode| Some(inode) == moved.and_then(|stat| stat.inode));
    match (is_it(source), is_it(moved)) {
        (true, false) if moved.is_none() => rename(lease, call, params).await,
        (false, true) => Ok(done),
        // Cut off between link and unlink, where a rename that replaces nothing is made of these two. With one that replaces
        // both paths may be of the same name.
        (true, true) if one_file && !replaces => {
            let from = params.from.clone();
            lease.commit();
            lease.run(move |hands| hands.fs.delete(&from)).await.map_err(effect_failure)?;
            Ok(done)
        }
        (true, _) => {
            let copies = lease.run(|hands| Ok(!hands.fs.renames_keep_files())).await;
            let copies = copies.map_err(|error| Failure::from(error).effect_unknown())?;
            let again = rename(lease, call, params).await;
            // Where a move is a copy and a deletion, what is there may be the copy.
            again.map_err(|failure| if copies { failure.effect_unknown() } else { failure })
        }
        (false, false) => {
            let message =
                "the file of an earlier attempt is at neither place: whether it was moved is not known";
            Err(Failure::permanent(Code::TargetConflict, message)
                .effect_unknown()
                .detail(format!("from {} to {target}", params.from)))
        }
    }
}

/// What a refusal was: the same if it was meant, `None` if the file is at its new place all the same.
async fn refused(
    lease: &mut Lease,
    from: &Place,
    to: &Place,
    file: &Fingerprint,
    error: FsError,
) -> Result<Option<FsError>, Failure> {
    let (source, target, kept) = (from.clone(), to.clone(), file.clone());
    let looked = lease.run(move |hands| {
        let fs = hands.fs.as_mut();
        let copied = source != target
            && fs.came_from(&target, &source, Some((kept.size, kept.modified.as_deref())))?;
        let is_it = |stat: Option<Stat>| stat.is_some_and(|stat| kept.matches(stat));
        let (there, moved) = (is_it(look(fs, &source, Links::Keep)?), is_it(look(fs, &target, Links::Keep)?));
        Ok((there, moved, copied))
    });
    match looked.await {
        // Where a move is a copy and a deletion, the copy is there, and what was to be deleted stays.
        Ok((true, _, true)) if error.problem != Problem::Exists => Err(Failure::from(error).effect_unknown()),
        Ok((true, ..)) => Ok(Some(error)),
        Ok((false, false, false)) => Err(refusal::unclear(&error)),
        Ok((false, ..)) => Ok(None),
        // The next attempt looks over a new connection.
        Err(second) if second.is_broken() => Err(effect_failure(second)),
        // A target that refuses even the look is believed.
        Err(_) => Ok(Some(error)),
    }
}

async fn rename(lease: &mut Lease, call: &Call, params: &Move) -> Result<Moved, Failure> {
    let Move { from, to, on_conflict } = params;
    let (source, target) = (from.clone(), to.clone());
    let looked = lease.run(move |hands| {
        let fs = hands.fs.as_mut();
        Ok((fs.stat(source.as_str(), Links::Keep)?, look(fs, &target, Links::Keep)?))
    });
    let (stat, there) = looked.await?;
    match stat.kind {
        EntryKind::File => {}
        EntryKind::Directory => return Err(FsError::new(Problem::IsAFolder, from).into()),
        EntryKind::Symlink | EntryKind::Other => return Err(FsError::new(Problem::NotAFile, from).into()),
    }
    match (there.map(|there| there.kind), on_conflict) {
        (Some(EntryKind::Directory), OnConflict::Replace) => {
            return Err(FsError::new(Problem::IsAFolder, to).into());
        }
        (Some(_), OnConflict::Fail) => return Err(FsError::new(Problem::Exists, to).into()),
        (Some(_) | None, OnConflict::Replace | OnConflict::Fail | OnConflict::Suffix) => {}
    }
    if from == to && *on_conflict == OnConflict::Replace {
        // It is where it shall be. Some servers would take it away first, as what is to be replaced.
        return Ok(Moved { path: to.to_string(), atomic: true });
    }
    let mut candidate = 1;
    loop {
        let (target, number) = match on_conflict {
            OnConflict::Replace | OnConflict::Fail => (to.clone(), candidate),
            OnConflict::Suffix => free_name(lease, to, candidate).await?,
        };
        let intent = Intent {
            part: None,
            target: Some(target.to_string()),
            size: Some(stat.size),
            sha256: None,
            state: json!(MoveState { operation: "move".to_owned(), file: stat.into() }),
        };
        call.gate.pass(&intent).await?;
        lease.commit();
        let (source, place, aside, on_conflict) =
            (from.clone(), target.clone(), target.taken(call.job), *on_conflict);
        let renamed = lease.run(move |hands| {
            let Renamed { atomic } = hands.fs.rename(&source, &place, existing(on_conflict, &aside))?;
            // The effect has happened: a folder that cannot be synced does not undo it.
            drop(hands.fs.sync_folder(place.folder()));
            drop(hands.fs.sync_folder(source.folder()));
            Ok(atomic)
        });
        let error = match renamed.await {
            Ok(atomic) => return Ok(Moved { path: target.to_string(), atomic }),
            Err(error) if error.is_broken() => return Err(effect_failure(error)),
            Err(error) => error,
        };
        match refused(lease, from, &target, &stat.into(), error).await? {
            None => return Ok(Moved { path: target.to_string(), atomic: true }),
            Some(error) if error.problem == Problem::Exists && on_conflict == OnConflict::Suffix => {
                candidate = number + 1;
            }
            Some(error) => return Err(error.into()),
        }
    }
}
