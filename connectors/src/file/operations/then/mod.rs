//! What follows a fetch: the very file that was read is deleted or moved away, once its content is stored for good.
//!
//! It first goes to a hidden name beside its place, by one rename, is looked at there, and only then deleted or given its
//! new name. So a file that a producer puts in its place meanwhile is never taken for it: it is put back.
//!
//! After a crash or a lost reply, under the journalled intent:
//!
//! | hidden | place | then |
//! |---|---|---|
//! | the file that was read | | go on: delete it, or give it its new name |
//! | another file | | put it back |
//! | nothing | the file that was read | nothing was done: ask the gate again and begin |
//! | nothing | nothing | it was done, as the content is stored and the intent was written |
//! | nothing | another file | the same, and the newer one stays |

mod taking;

use super::{
    super::{
        backend::{Backend, EntryKind, Existing, FsError, Links, Problem, Stat},
        params::After,
        place::Place,
        pool::{Lease, Pool},
    },
    Fingerprint, MAX_SUFFIX,
    fetch::{self, Read},
    finish::has_content,
    look, no_free_name, of_another_job, plain, state,
};
use crate::{Call, Code, Failure, Intent, Outcome, Output};
use taking::Taking;

/// What became of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Followed {
    Deleted,
    Moved,
    /// Another file, or other content, is at its place by now, and stays.
    Changed,
    /// Somebody took it away.
    Gone,
}

impl Followed {
    /// As results show it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Moved => "moved",
            Self::Changed => "changed",
            Self::Gone => "gone",
        }
    }
}

/// Performs one attempt.
pub(super) async fn fetch(
    pool: &Pool,
    call: &Call,
    place: Place,
    after: After,
    output: &mut Output,
) -> Result<Outcome, Failure> {
    let hidden = place.taken(call.job);
    let (taking, followed) = match &call.prior_intent {
        Some(intent) => {
            let (taking, produced) = Taking::again(call, place, after, hidden, intent)?;
            let followed = taking.look_back(pool).await?;
            output.recall(produced);
            (taking, followed)
        }
        None => {
            let read = read(pool, call, &place, &after, &hidden, output).await?;
            output.keep().await?;
            let taking = Taking::new(call, place, after, hidden, read);
            let followed = taking.begin(pool).await?;
            (taking, followed)
        }
    };
    Ok(taking.outcome(followed))
}

/// Reads the file, after a look at whether it can be taken away at all.
async fn read(
    pool: &Pool,
    call: &Call,
    place: &Place,
    after: &After,
    hidden: &Place,
    output: &mut Output,
) -> Result<(Stat, Read), Failure> {
    let mut lease = pool.lease_for(call).await?;
    let read = async {
        if call.attempt > 1 {
            // Set aside under an intent that nobody knows any more: it is a file like any other again.
            let (hidden, place) = (hidden.clone(), place.clone());
            lease.run(move |hands| put_back(hands.fs.as_mut(), &hidden, &place)).await?;
        }
        let stat = prepare(&mut lease, place, after).await?;
        Ok((stat, fetch::read(&mut lease, call, place.clone(), output).await?))
    };
    let read = read.await;
    lease.release().await;
    read
}

/// What is at the place, if it is a file; for a move also whether there is room for it at the new one.
async fn prepare(lease: &mut Lease, place: &Place, after: &After) -> Result<Stat, Failure> {
    let looked_at = place.clone();
    let stat = lease.run(move |hands| hands.fs.stat(looked_at.as_str(), Links::Keep)).await?;
    match stat.kind {
        EntryKind::File => {}
        EntryKind::Directory => return Err(FsError::new(Problem::IsAFolder, place).into()),
        EntryKind::Symlink | EntryKind::Other => return Err(FsError::new(Problem::NotAFile, place).into()),
    }
    if let After::MoveTo(to) = after {
        let place = to.clone();
        let found = lease.run(move |hands| {
            let fs = hands.fs.as_mut();
            let folder = if !fs.has_folders() {
                Some(EntryKind::Directory)
            } else {
                match fs.stat(place.folder(), Links::Follow) {
                    Err(error) if error.problem == Problem::NotFound => None,
                    other => Some(other?.kind),
                }
            };
            // In a folder that is not there nothing is asked for: some servers have no answer to that.
            let there = if folder.is_some() { look(fs, &place, Links::Keep)? } else { None };
            Ok((folder, there))
        });
        match found.await? {
            (None, _) => {
                let message = "the folder that the file is to be moved to is not there";
                return Err(Failure::permanent(Code::TargetNotFound, message).detail(to));
            }
            (Some(EntryKind::Directory), None) => {}
            (Some(EntryKind::Directory), Some(_)) => return Err(FsError::new(Problem::Exists, to).into()),
            (Some(_), _) => return Err(FsError::new(Problem::NotAFolder, to).into()),
        }
    }
    Ok(stat)
}

/// Brings what was set aside back to its place, or beside it if that is taken; `false` if nothing was set aside.
fn put_back(fs: &mut dyn Backend, hidden: &Place, place: &Place) -> Result<bool, FsError> {
    if look(fs, hidden, Links::Keep)?.is_none() {
        return Ok(false);
    }
    for number in 1..=MAX_SUFFIX {
        match fs.rename(hidden, &place.nth(number), Existing::Refuse) {
            Err(error) if error.problem == Problem::Exists => {}
            other => {
                other?;
                drop(fs.sync_folder(place.folder()));
                return Ok(true);
            }
        }
    }
    Err(FsError::new(Problem::Exists, no_free_name()))
}
