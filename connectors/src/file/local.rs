//! Local and mounted folders: every path is resolved beneath the root's handle (`openat2` where the kernel has it), so
//! that no symbolic link, not even one put there meanwhile, leads out.
//!
//! The root is opened anew for each operation: when the share behind it is mounted again or replaced, that shows.

use super::{
    backend::{
        Backend, Connect, EntryKind, Existing, Features, FsError, Interrupt, Links, Page, PartFile, Problem,
        Renamed, Smallest, SourceFile, Stat,
    },
    place::{MARKER, Place},
};
use crate::{Code, Failure};
use cap_std::{
    ambient_authority,
    fs::{Dir, DirBuilder, MetadataExt as _, OpenOptions, OpenOptionsExt as _},
};
use jiff::Timestamp;
use rustix::{
    fs::{
        Advice, AtFlags, FileType, Mode, OFlags, RenameFlags, fadvise, fstat, fsync, linkat, openat,
        renameat, renameat_with, statat, unlinkat,
    },
    io::Errno,
};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    num::NonZeroU64,
    path::{Path, PathBuf},
    time::Duration,
};

const SLICE: usize = 1024 * 1024;
/// How much is written before the disk is asked to begin with it: else it would stand idle until the sync at the end.
const AHEAD: u64 = 8 * 1024 * 1024;

/// A local folder that can be opened.
#[derive(Debug, Clone)]
pub(super) struct LocalFolder {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Whether it is a folder of ours only while [`MARKER`] lies in it: the mount point of a share.
    pub(super) marked: bool,
}

impl Connect for LocalFolder {
    fn links(&self) -> &'static [&'static str] {
        &["folder"]
    }

    fn local_root(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn connect_telling(
        &self,
        _: Duration,
        _: &Interrupt,
        passed: &mut dyn FnMut(&'static str, String),
    ) -> Result<Box<dyn Backend>, Failure> {
        let root = self.open()?;
        let marked = if self.marked { format!(", with {MARKER} in it") } else { String::new() };
        passed("folder", format!("{} is there{marked}", self.path.display()));
        Ok(Box::new(Local { folder: self.clone(), root: Some(root) }))
    }
}

impl LocalFolder {
    fn open(&self) -> Result<Dir, Failure> {
        let root = open_root(&self.path)?;
        if self.marked {
            let looked = statat(&root, MARKER, AtFlags::SYMLINK_NOFOLLOW);
            let (message, detail) = match looked {
                Ok(found) if FileType::from_raw_mode(found.st_mode).is_file() => return Ok(root),
                Ok(_) => (format!("the {MARKER} of the resource's folder is no file"), String::new()),
                Err(Errno::NOENT) => (
                    format!(
                        "the resource's folder holds no {MARKER}, so its share is taken for not mounted; mount it, or make that file in the share once"
                    ),
                    String::new(),
                ),
                Err(error) => (
                    format!("the {MARKER} of the resource's folder cannot be looked at"),
                    format!(": {error}"),
                ),
            };
            let failure = Failure::retry(Code::TargetUnreachable, message);
            return Err(failure.detail(format!("{}{detail}", self.path.display())));
        }
        Ok(root)
    }
}

fn open_root(path: &Path) -> Result<Dir, Failure> {
    Dir::open_ambient_dir(path, ambient_authority()).map_err(|error| {
        let failure = match error.kind() {
            io::ErrorKind::NotFound => Failure::permanent(
                Code::TargetNotFound,
                "the resource's folder does not exist; create or mount it where the agent runs",
            ),
            io::ErrorKind::PermissionDenied => {
                Failure::permanent(Code::TargetAuth, "the agent's account may not open the resource's folder")
            }
            io::ErrorKind::NotADirectory => {
                Failure::permanent(Code::TargetNotFound, "the resource's folder is not a folder")
            }
            _ => Failure::retry(Code::TargetUnreachable, "the resource's folder cannot be opened"),
        };
        failure.detail(format!("{}: {error}", path.display()))
    })
}

/// An opened root.
struct Local {
    folder: LocalFolder,
    /// `None` while it waits for the next operation: a folder that somebody has open cannot be unmounted.
    root: Option<Dir>,
}

impl Local {
    fn root(&self) -> Result<&Dir, FsError> {
        self.root.as_ref().ok_or_else(|| FsError::new(Problem::Lost, "the folder is not open"))
    }

    /// The folder itself, resolved beneath the root.
    fn folder(&self, folder: &str) -> Result<Dir, FsError> {
        if folder.is_empty() {
            return self.root()?.try_clone().map_err(from_io(folder));
        }
        self.root()?.open_dir(folder).map_err(from_io(folder))
    }

    fn parent(&self, place: &Place) -> Result<Dir, FsError> {
        self.folder(place.folder())
    }
}

impl Backend for Local {
    fn features(&self) -> Features {
        Features { read: SLICE, write: SLICE, rereads_parts: true, claims_names: true }
    }

    fn begin(&mut self, _: Duration) {}

    fn alive(&mut self, _: Duration) -> bool {
        match self.folder.open() {
            Ok(root) => {
                self.root = Some(root);
                true
            }
            Err(_) => false,
        }
    }

    fn rest(&mut self) {
        self.root = None;
    }

    fn create(&mut self, place: &Place) -> Result<Box<dyn PartFile>, FsError> {
        let parent = self.parent(place)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // The process's umask decides who may read the file, as for any other program that exports one.
        let file = openat(&parent, place.name(), flags, Mode::from_raw_mode(0o666))
            .map_err(from_errno(place.as_str()))?;
        Ok(Box::new(Part { file: File::from(file), path: place.to_string(), written: 0, begun: 0 }))
    }

    fn open(&mut self, place: &Place) -> Result<Box<dyn SourceFile>, FsError> {
        // Looked at before it is opened: opening a device or a pipe can have effects, or wait for ever.
        regular(self.stat(place.as_str(), Links::Follow)?.kind, place.as_str())?;
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let file =
            self.root()?.open_with(place.as_str(), &options).map_err(from_io(place.as_str()))?.into_std();
        let mut source = Source { file, path: place.to_string() };
        regular(source.stat()?.kind, place.as_str())?;
        Ok(Box::new(source))
    }

    fn stat(&mut self, path: &str, links: Links) -> Result<Stat, FsError> {
        let at = if path.is_empty() { "." } else { path };
        let metadata = match links {
            Links::Follow => self.root()?.metadata(at),
            Links::Keep => self.root()?.symlink_metadata(at),
        };
        let metadata = metadata.map_err(from_io(path))?;
        Ok(Stat {
            kind: EntryKind::from_mode(metadata.mode()),
            size: metadata.size(),
            modified: timestamp(metadata.mtime(), metadata.mtime_nsec()),
            inode: Some((metadata.dev(), metadata.ino())),
        })
    }

    fn list(&mut self, folder: &str, after: Option<&str>, max: usize) -> Result<Page, FsError> {
        let dir = self.folder(folder)?;
        let mut smallest = Smallest::new(after, max);
        for entry in dir.entries().map_err(from_io(folder))? {
            let entry = entry.map_err(from_io(folder))?;
            smallest.offer(entry.file_name().as_encoded_bytes(), ());
        }
        let (kept, more, unreadable) = smallest.finish();
        let mut page = Page { entries: Vec::with_capacity(kept.len()), more, unreadable };
        for name in kept.into_keys() {
            match statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) => page.entries.push((name, from_stat(&found))),
                // Gone between reading the folder and looking at it.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(from_errno(folder)(error)),
            }
        }
        Ok(page)
    }

    fn rename(&mut self, from: &Place, to: &Place, existing: Existing<'_>) -> Result<Renamed, FsError> {
        let (source, target) = (self.parent(from)?, self.parent(to)?);
        let result = match existing {
            Existing::Replace { aside: _ } => renameat(&source, from.name(), &target, to.name()),
            Existing::Refuse => {
                match renameat_with(&source, from.name(), &target, to.name(), RenameFlags::NOREPLACE) {
                    // The file system cannot (NFS, old FUSE): a hard link fails just as atomically if there is one.
                    Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                        link_then_unlink(&source, from.name(), &target, to.name())
                    }
                    other => other,
                }
            }
        };
        result.map(|()| Renamed { atomic: true }).map_err(from_errno(to.as_str()))
    }

    fn delete(&mut self, place: &Place) -> Result<(), FsError> {
        unlinkat(self.parent(place)?, place.name(), AtFlags::empty()).map_err(from_errno(place.as_str()))
    }

    fn make_folder(&mut self, path: &str) -> Result<(), FsError> {
        let place = Place::own(path.to_owned());
        let parent = self.parent(&place)?;
        parent.create_dir_with(place.name(), &DirBuilder::new()).map_err(from_io(path))?;
        sync_dir(&parent, path).map(drop)
    }

    fn sync_folder(&mut self, folder: &str) -> Result<bool, FsError> {
        sync_dir(&self.folder(folder)?, folder)
    }

    fn identity(&mut self, folder: &str) -> Result<Value, FsError> {
        let found = fstat(self.folder(folder)?).map_err(from_errno(folder))?;
        Ok(json!({ "device": found.st_dev, "inode": found.st_ino }))
    }
}

/// A rename that never replaces, for file systems without a call for it.
fn link_then_unlink(source: &Dir, from: &str, target: &Dir, to: &str) -> Result<(), Errno> {
    linkat(source, from, target, to, AtFlags::empty())?;
    unlinkat(source, from, AtFlags::empty())
}

/// `false` where a folder cannot be synced: some network file systems say so, or it may be written but not read.
fn sync_dir(dir: &Dir, path: &str) -> Result<bool, FsError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(dir, ".", flags, Mode::empty()).and_then(fsync) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::ACCESS) => Ok(false),
        Err(error) => Err(from_errno(path)(error)),
    }
}

fn regular(kind: EntryKind, path: &str) -> Result<(), FsError> {
    match kind {
        EntryKind::File => Ok(()),
        EntryKind::Directory => Err(FsError::new(Problem::IsAFolder, path)),
        EntryKind::Symlink | EntryKind::Other => Err(FsError::new(Problem::NotAFile, path)),
    }
}

struct Part {
    file: File,
    path: String,
    written: u64,
    /// Up to where the disk was asked to begin.
    begun: u64,
}

impl PartFile for Part {
    fn write(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        self.file.write_all(bytes).map_err(from_io(&self.path))?;
        self.written += bytes.len() as u64;
        if let Some(ahead) = NonZeroU64::new(self.written - self.begun).filter(|ahead| ahead.get() >= AHEAD) {
            // Linux begins to write what is not written yet, and waits for nothing. A file system that does not know it loses
            // nothing but time.
            let _ = fadvise(&self.file, self.begun, Some(ahead), Advice::DontNeed);
            self.begun = self.written;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<bool, FsError> {
        self.file.sync_all().map(|()| true).map_err(from_io(&self.path))
    }

    fn size(&mut self) -> Result<u64, FsError> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(from_io(&self.path))
    }
}

struct Source {
    file: File,
    path: String,
}

impl SourceFile for Source {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, FsError> {
        self.file.read(buffer).map_err(from_io(&self.path))
    }

    fn stat(&mut self) -> Result<Stat, FsError> {
        fstat(&self.file).map(|found| from_stat(&found)).map_err(from_errno(&self.path))
    }
}

#[expect(clippy::useless_conversion, reason = "the field's types differ between platforms")]
fn from_stat(found: &rustix::fs::Stat) -> Stat {
    Stat {
        kind: EntryKind::from_mode(found.st_mode.into()),
        size: u64::try_from(found.st_size).unwrap_or_default(),
        modified: timestamp(found.st_mtime.into(), i64::try_from(found.st_mtime_nsec).unwrap_or_default()),
        inode: Some((found.st_dev.into(), found.st_ino.into())),
    }
}

fn timestamp(seconds: i64, nanoseconds: i64) -> Option<Timestamp> {
    Timestamp::new(seconds, i32::try_from(nanoseconds).ok()?).ok()
}

fn from_errno(path: &str) -> impl Fn(Errno) -> FsError {
    move |errno| from_io(path)(errno.into())
}

fn from_io(path: &str) -> impl Fn(io::Error) -> FsError {
    move |error| FsError::new(problem(&error), format!("{path}: {error}"))
}

/// Local errors as problems.
fn problem(error: &io::Error) -> Problem {
    let Some(code) = error.raw_os_error() else {
        // The jail's own refusal carries no system error.
        return if error.kind() == io::ErrorKind::PermissionDenied {
            Problem::Escapes
        } else {
            Problem::Other
        };
    };
    match Errno::from_raw_os_error(code) {
        Errno::NOENT => Problem::NotFound,
        Errno::EXIST | Errno::NOTEMPTY => Problem::Exists,
        Errno::NOTDIR => Problem::NotAFolder,
        Errno::ISDIR => Problem::IsAFolder,
        Errno::ACCESS | Errno::PERM => Problem::Refused,
        Errno::ROFS => Problem::ReadOnly,
        Errno::NOSPC => Problem::Full,
        Errno::DQUOT => Problem::Quota,
        Errno::FBIG => Problem::TooLarge,
        Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ => Problem::NameTooLong,
        Errno::LOOP => Problem::Escapes,
        Errno::XDEV => Problem::CrossDevice,
        Errno::OPNOTSUPP | Errno::NOSYS => Problem::Unsupported,
        Errno::NXIO | Errno::NODEV => Problem::NotAFile,
        Errno::STALE | Errno::NOTCONN | Errno::HOSTDOWN | Errno::CONNRESET | Errno::IO => Problem::Lost,
        Errno::TIMEDOUT => Problem::TimedOut,
        _ => Problem::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_map_to_problems() {
        for (errno, expected) in [
            (Errno::NOENT, Problem::NotFound),
            (Errno::EXIST, Problem::Exists),
            (Errno::ACCESS, Problem::Refused),
            (Errno::ROFS, Problem::ReadOnly),
            (Errno::NOSPC, Problem::Full),
            (Errno::DQUOT, Problem::Quota),
            (Errno::NAMETOOLONG, Problem::NameTooLong),
            (Errno::XDEV, Problem::CrossDevice),
            (Errno::STALE, Problem::Lost),
            (Errno::MFILE, Problem::Other),
        ] {
            assert_eq!(problem(&errno.into()), expected, "{errno:?}");
        }
    }

    #[test]
    fn both_ways_of_renaming_without_replacing_refuse_and_move_alike() {
        for in_one_call in [true, false] {
            let way = |dir: &Dir, from: &str, to: &str| match in_one_call {
                true => renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE),
                false => link_then_unlink(dir, from, dir, to),
            };
            let folder = tempfile::tempdir().unwrap();
            let dir = Dir::open_ambient_dir(folder.path(), ambient_authority()).unwrap();
            std::fs::write(folder.path().join("a"), "a").unwrap();
            std::fs::write(folder.path().join("b"), "b").unwrap();
            assert_eq!(way(&dir, "a", "b"), Err(Errno::EXIST));
            assert_eq!(std::fs::read(folder.path().join("b")).unwrap(), b"b");
            assert_eq!(way(&dir, "a", "c"), Ok(()));
            assert!(!folder.path().join("a").exists());
            assert_eq!(std::fs::read(folder.path().join("c")).unwrap(), b"a");
        }
    }
}
