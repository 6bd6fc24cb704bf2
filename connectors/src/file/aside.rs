//! Replacing a file at targets that know no single step for it.
//!
//! What is there is set aside under a hidden name beside it, the other file gets its name, and only then what was set aside
//! is removed. So a refusal loses nothing, and neither does a file that is moved onto itself by another path (a link, another
//! case), which no path shows: it is put back, and that was the whole move.
//!
//! The hidden name is the job's ([`Place::taken`]): after a crash a later attempt finds it. [`restore`] is for what was not
//! replaced, [`forget`] for what was.

use super::{
    backend::{Backend, EntryKind, Existing, FsError, Links, Problem, Renamed, Stat},
    place::Place,
};

/// How often it begins anew when others take the name between the steps.
const MAX_REPEATED: usize = 20;

/// Whether a symbolic link can be given another name, rather than what it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkNames {
    Movable,
    /// A link is removed instead: nothing is lost with it but itself.
    Doubtful,
}

/// Gives `from` the name `to`, whatever file is there. Between the steps there is no file of that name, but never half a one.
pub(super) fn replace(
    fs: &mut dyn Backend,
    from: &Place,
    to: &Place,
    aside: &Place,
    links: LinkNames,
) -> Result<Renamed, FsError> {
    let mut gone = Gone::Nothing;
    let mut refused = FsError::new(Problem::Busy, format!("{to}: others put a file there again and again"));
    for _ in 0..MAX_REPEATED {
        match clear(fs, to, aside, links) {
            Ok(Gone::Nothing) => {}
            Ok(cleared) => gone = cleared,
            Err(error) => return put_back(fs, from, to, aside, gone, error),
        }
        match fs.rename(from, to, Existing::Refuse) {
            Ok(_) => {
                return match forget(fs, aside) {
                    Err(error) if error.is_broken() => Err(error),
                    Ok(_) | Err(_) => Ok(Renamed { atomic: false }),
                };
            }
            // Somebody else took the name, and may have removed that again.
            Err(error) if error.problem == Problem::Exists => refused = error,
            Err(error) if error.problem == Problem::Other && !is_gone(fs, from) => refused = error,
            Err(error) => return put_back(fs, from, to, aside, gone, error),
        }
    }
    put_back(fs, from, to, aside, gone, refused)
}

/// What became of what was at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    Nothing,
    Aside,
    /// It was a link.
    Removed,
}

/// Frees the name.
fn clear(fs: &mut dyn Backend, to: &Place, aside: &Place, links: LinkNames) -> Result<Gone, FsError> {
    let gone = match look(fs, to)?.map(|stat| stat.kind) {
        None => return Ok(Gone::Nothing),
        Some(EntryKind::Directory) => return Err(FsError::new(Problem::IsAFolder, to)),
        Some(EntryKind::Symlink) if links == LinkNames::Doubtful => fs.delete(to).map(|()| Gone::Removed),
        Some(_) => {
            // Of an earlier attempt or round, and replaced by what is there now.
            remove(fs, aside)?;
            fs.rename(to, aside, Existing::Refuse).map(|_| Gone::Aside)
        }
    };
    match gone {
        Err(error) if error.problem == Problem::NotFound => Ok(Gone::Nothing),
        other => other,
    }
}

/// Undoes it, after a refusal.
fn put_back(
    fs: &mut dyn Backend,
    from: &Place,
    to: &Place,
    aside: &Place,
    gone: Gone,
    refused: FsError,
) -> Result<Renamed, FsError> {
    if refused.is_broken() {
        return Err(refused);
    }
    match gone {
        // Set aside though that was refused.
        Gone::Nothing if is_gone(fs, to) && !is_gone(fs, aside) => {}
        Gone::Nothing => return Err(refused),
        // Not as it was: so nobody may say that nothing was done.
        Gone::Removed => {
            return Err(FsError::new(Problem::Lost, format!("the link {to} was removed: {refused}")));
        }
        Gone::Aside => {}
    }
    let refused = FsError { in_steps: true, ..refused };
    let went_along = is_gone(fs, from);
    match restore(fs, to, aside) {
        Ok(true) => {}
        Ok(false) => return Err(refused),
        Err(error) => {
            let detail = format!("{to} lies at {aside} and cannot be put back: {error}; after: {refused}");
            return Err(FsError::new(Problem::Lost, detail));
        }
    }
    // Away and back with what was set aside: the two are one file.
    if went_along && !is_gone(fs, from) {
        return Ok(Renamed { atomic: false });
    }
    Err(refused)
}

/// Puts back what was set aside and not replaced; whether there was anything. Where somebody else has the name by now, it goes:
/// they replaced it.
pub(super) fn restore(fs: &mut dyn Backend, to: &Place, aside: &Place) -> Result<bool, FsError> {
    if look(fs, aside)?.is_none() {
        return Ok(false);
    }
    match fs.rename(aside, to, Existing::Refuse) {
        Ok(_) => {
            drop(fs.sync_folder(to.folder()));
            Ok(true)
        }
        Err(error) if error.problem == Problem::Exists => remove(fs, aside),
        Err(error) => Err(error),
    }
}

/// Removes what was set aside and replaced; whether there was anything. What cannot be removed stays: the effect has happened.
pub(super) fn forget(fs: &mut dyn Backend, aside: &Place) -> Result<bool, FsError> {
    match remove(fs, aside) {
        Err(error) if !error.is_broken() => {
            tracing::warn!(detail = %error.detail, "a file that was replaced stays under a hidden name: remove it by hand");
            Ok(true)
        }
        other => other,
    }
}

/// What is at a place, if anything is.
pub(super) fn look(fs: &mut dyn Backend, place: &Place) -> Result<Option<Stat>, FsError> {
    match fs.stat(place.as_str(), Links::Keep) {
        Ok(stat) => Ok(Some(stat)),
        // A name that cannot be is nobody's.
        Err(error) if matches!(error.problem, Problem::NotFound | Problem::NameTooLong) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether it is known that nothing is there.
fn is_gone(fs: &mut dyn Backend, place: &Place) -> bool {
    matches!(look(fs, place), Ok(None))
}

fn remove(fs: &mut dyn Backend, aside: &Place) -> Result<bool, FsError> {
    if look(fs, aside)?.is_none() {
        return Ok(false);
    }
    match fs.delete(aside) {
        Ok(()) => Ok(true),
        Err(error) if error.problem == Problem::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
