//! Takes away the very file that was read: under a name of our own first, where nobody replaces it any more; then it is
//! looked at again; only then it goes. A newer file that was caught so is put back under its name, or, if yet another one
//! has taken that meanwhile, under the next free one: never deleted unsent.
//!
//! | a crash after | leaves | and the next try |
//! |---|---|---|
//! | nothing | the file | takes it aside |
//! | it was taken aside | our name | looks at it, then deletes, moves or puts it back |
//! | it was deleted or moved | neither name | finds it gone |
//! | it was put back | the newer file | finds that one, and leaves it alone |

use super::{
    super::{
        backend::{Backend, Existing, FsError, Problem},
        place::{Place, join},
    },
    look,
};
use crate::{Failure, Seen, Settle, Settled};
use aws_lc_rs::digest::{Context, SHA256};

/// How many names are tried for a file that cannot have its own.
const MAX_NAMES: u32 = 1000;

/// One file to take away.
pub(super) struct Work {
    place: Place,
    aside: Place,
    file: Seen,
    sha256: Option<[u8; 32]>,
    move_to: Option<Place>,
}

impl Work {
    pub(super) fn new(settle: &Settle) -> Result<Self, Failure> {
        let place = Place::new(&settle.file.path)?;
        Ok(Self {
            aside: place.aside(settle.id),
            place,
            file: settle.file.clone(),
            sha256: settle.sha256,
            move_to: settle.move_to.as_deref().map(Place::new).transpose()?,
        })
    }

    /// Begins, or goes on where an earlier try was cut off.
    pub(super) fn go_on(&self, fs: &mut dyn Backend) -> Result<Settled, FsError> {
        if !fs.renames_keep_files() {
            return self.at_once(fs);
        }
        if look(fs, self.aside.as_str())?.is_none() {
            match look(fs, self.place.as_str())? {
                None => return Ok(Settled::Gone),
                Some(now) if !super::same(&now, &self.file) => return Ok(Settled::Replaced),
                Some(_) => {}
            }
            match fs.rename(&self.place, &self.aside, Existing::Refuse) {
                Err(error) if error.problem == Problem::NotFound => return Ok(Settled::Gone),
                other => drop(other?),
            }
        }
        let Some(aside) = look(fs, self.aside.as_str())? else { return Ok(Settled::Gone) };
        if !self.is_it(fs, &aside)? {
            name(fs, &self.aside, &self.place)?;
            return Ok(Settled::Replaced);
        }
        match &self.move_to {
            None => {
                fs.delete(&self.aside)?;
                // It is gone: a folder that cannot be synced does not bring it back.
                drop(fs.sync_folder(self.place.folder()));
                Ok(Settled::Deleted)
            }
            Some(target) => {
                make_folders(fs, target.folder())?;
                let target = name(fs, &self.aside, target)?;
                drop(fs.sync_folder(target.folder()));
                drop(fs.sync_folder(self.place.folder()));
                Ok(Settled::Moved(target.to_string()))
            }
        }
    }

    /// Where renaming makes a copy, nothing is gained by taking a file aside: a look right before has to do. A copy that an
    /// earlier try has made says of itself what it was.
    fn at_once(&self, fs: &mut dyn Backend) -> Result<Settled, FsError> {
        let there = look(fs, self.place.as_str())?;
        let replaced = there.as_ref().is_some_and(|now| !super::same(now, &self.file));
        let modified = self.file.modified.map(|time| time.to_string());
        let was = Some((self.file.size, modified.as_deref()));
        let targets = self.move_to.iter().flat_map(|target| (1..=MAX_NAMES).map(|number| target.nth(number)));
        for target in targets {
            let copied = fs.came_from(&target, &self.place, was)?;
            match (copied, &there) {
                // The mark does not tell two files of one size and second apart.
                (true, Some(_)) if !replaced && self.holds(fs, &target)? => fs.delete(&self.place)?,
                (true, None) => {}
                (true, Some(_)) if replaced => {}
                (_, Some(_)) if !replaced => match fs.rename(&self.place, &target, Existing::Refuse) {
                    Err(error) if error.problem == Problem::Exists => continue,
                    other => drop(other?),
                },
                (_, _) => break,
            }
            return Ok(Settled::Moved(target.to_string()));
        }
        match there {
            None => Ok(Settled::Gone),
            Some(_) if replaced => Ok(Settled::Replaced),
            Some(_) if self.move_to.is_none() => {
                fs.delete(&self.place)?;
                Ok(Settled::Deleted)
            }
            Some(_) => Err(FsError::new(Problem::Exists, format!("{MAX_NAMES} names with a suffix"))),
        }
    }

    /// Whether what was taken aside is what was read. Where neither inode nor time proves it, its content does.
    fn is_it(&self, fs: &mut dyn Backend, aside: &Seen) -> Result<bool, FsError> {
        if aside.size != self.file.size {
            return Ok(false);
        }
        if aside.inode.is_some() && self.file.inode.is_some() {
            return Ok(aside.inode == self.file.inode && aside.modified == self.file.modified);
        }
        if aside.modified.is_some() && aside.modified == self.file.modified {
            return Ok(true);
        }
        match self.sha256 {
            Some(_) => self.holds(fs, &self.aside),
            None => Ok(aside.modified == self.file.modified),
        }
    }

    /// Whether a place has the content that was read, as far as its digest is known.
    fn holds(&self, fs: &mut dyn Backend, place: &Place) -> Result<bool, FsError> {
        let Some(sha256) = self.sha256 else { return Ok(false) };
        let mut source = fs.open(place)?;
        let mut context = Context::new(&SHA256);
        let mut buffer = vec![0; fs.features().read];
        loop {
            match source.read(&mut buffer)? {
                0 => break,
                n => context.update(buffer.get(..n).unwrap_or_default()),
            }
        }
        Ok(context.finish().as_ref() == sha256)
    }
}

/// Gives a file its name, or the next free one.
fn name(fs: &mut dyn Backend, from: &Place, to: &Place) -> Result<Place, FsError> {
    for number in 1..=MAX_NAMES {
        let candidate = to.nth(number);
        match fs.rename(from, &candidate, Existing::Refuse) {
            Ok(_) => return Ok(candidate),
            Err(error) if error.problem == Problem::Exists => {}
            Err(error) => return Err(error),
        }
    }
    Err(FsError::new(Problem::Exists, format!("{to}, and {MAX_NAMES} names with a suffix")))
}

/// Makes the folders that are missing on the way.
fn make_folders(fs: &mut dyn Backend, folder: &str) -> Result<(), FsError> {
    if folder.is_empty() || fs.stat(folder, super::super::backend::Links::Follow).is_ok() {
        return Ok(());
    }
    let mut path = String::new();
    for part in folder.split('/') {
        path = join(&path, part);
        match fs.make_folder(&path) {
            Err(error) if error.problem == Problem::Exists => {}
            other => other?,
        }
    }
    Ok(())
}
