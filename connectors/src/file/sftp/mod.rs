//! Folders on an SFTP server, through libssh2.
//!
//! - `connect`: TCP, host key, log-in, root; `known_hosts`: which keys the server may have
//! - `posix_rename`: the atomic replace that the `ssh2` crate does not offer
//! - `chacha`: a faster cipher for libssh2; these two are the only unsafe code
//! - `transfer`: content on its way
//! - `error`: libssh2's errors as problems
//!
//! The protocol has no handles on folders: a path is resolved by the server (`realpath` of its folder) and must be
//! beneath the root before it is used. Someone who can swap a folder for a link on the server between the two steps
//! can write there anyhow; `docs/connectors/file.md` says so.

mod chacha;
mod connect;
mod error;
mod known_hosts;
mod posix_rename;
mod transfer;

pub(super) use connect::{Login, SftpServer};

use super::{
    aside::{self, LinkNames},
    backend::{
        Backend, EntryKind, Existing, Features, FsError, Interrupt, Links, Page, PartFile, Problem, Renamed,
        Smallest, SourceFile, Stat, fits,
    },
    place::{Place, join},
};
use error::{from_ssh, is_status};
use jiff::Timestamp;
use posix_rename::PosixRename;
use serde_json::{Value, json};
use ssh2::{ErrorCode, FileStat, OpenFlags, OpenType, RenameFlags, Session, Sftp};
use std::{
    collections::HashMap,
    io,
    net::TcpStream,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use transfer::{Part, Source};

/// libssh2 keeps many reads in flight within one call only: large slices are what makes it fast.
const READ: usize = 4 * 1024 * 1024;
/// Writes go on in flight from call to call: a slice is only as large as the change of hands is worth.
const WRITE: usize = 1024 * 1024;
/// How many links are followed in a row, where the server does not do it.
const MAX_LINKS: usize = 8;
/// How long a parked session is trusted without asking the server.
const TRUSTED: Duration = Duration::from_secs(5);
/// How long a server may take to say that it is still there.
const CHECK: Duration = Duration::from_secs(5);

/// A logged-in session.
struct Remote {
    // Fields are dropped in this order: handles before the session they belong to.
    posix_rename: Option<PosixRename>,
    sftp: Sftp,
    session: Session,
    /// A second handle on the session's socket: to look at it, and to cut it.
    socket: TcpStream,
    interrupt: Interrupt,
    /// The root, resolved by the server.
    root: String,
    host_key: String,
    /// Whether the server is OpenSSH's, which takes links for themselves and a free name in one step. Of others (seen:
    /// ProFTPD) neither is certain.
    is_openssh: bool,
    /// Held while a name is looked at and then taken on a server that is not.
    naming: Arc<Mutex<()>>,
    /// Folders of the current operation, resolved by the server and found beneath the root.
    resolved: HashMap<String, String>,
    timeout: Duration,
}

impl Remote {
    /// The server's own path of a folder of ours, checked to be beneath the root.
    fn folder(&mut self, folder: &str) -> Result<String, FsError> {
        if folder.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some(real) = self.resolved.get(folder) {
            return Ok(real.clone());
        }
        let path = below(&self.root, folder);
        fits(&path)?;
        let real = self.real(&path)?;
        self.resolved.insert(folder.to_owned(), real.clone());
        Ok(real)
    }

    /// Resolves a path and checks that it is beneath the root.
    fn real(&mut self, path: &str) -> Result<String, FsError> {
        let mut real = self.realpath(path)?;
        // Not every server resolves a link at the end of the path.
        for _ in 0..MAX_LINKS {
            let Some(target) = self.link_target(&real)? else { break };
            let folder = real.rsplit_once('/').map_or("", |(folder, _)| folder);
            real = self.realpath(&match target.starts_with('/') {
                true => target,
                false => format!("{folder}/{target}"),
            })?;
        }
        if beneath(&real, &self.root) && self.link_target(&real)?.is_none() {
            Ok(real)
        } else {
            Err(FsError::new(
                Problem::Escapes,
                format!("{path} is {real} on the server, outside {}", self.root),
            ))
        }
    }

    fn realpath(&self, path: &str) -> Result<String, FsError> {
        let real = self.sftp.realpath(Path::new(path)).map_err(|error| self.failed(path, &error))?;
        Ok(String::from_utf8_lossy(real.as_os_str().as_bytes()).into_owned())
    }

    /// Where a path leads that is a link, on a server whose other answers may hide that it is one.
    fn link_target(&self, path: &str) -> Result<Option<String>, FsError> {
        if self.is_openssh {
            return Ok(None);
        }
        match self.sftp.readlink(Path::new(path)) {
            Ok(target) => Ok(Some(String::from_utf8_lossy(target.as_os_str().as_bytes()).into_owned())),
            Err(error) => match self.failed(path, &error) {
                broken if broken.is_broken() => Err(broken),
                _ => Ok(None),
            },
        }
    }

    fn path(&mut self, place: &Place) -> Result<String, FsError> {
        let path = below(&self.folder(place.folder())?, place.name());
        fits(&path).map(|()| path)
    }

    /// An error of the server or the session. A session that broke is cut at once: closing what is open on it would
    /// else wait for the same dead server again.
    fn failed(&self, path: &str, error: &ssh2::Error) -> FsError {
        let error = from_ssh(path, error);
        if error.is_broken() {
            self.interrupt.fire();
        }
        error
    }

    fn lstat(&self, path: &str) -> Result<Stat, FsError> {
        let found = self.sftp.lstat(Path::new(path)).map_err(|error| self.explain(path, &error))?;
        let mut found = from_attributes(&found);
        if self.link_target(path)?.is_some() {
            found.kind = EntryKind::Symlink;
        }
        Ok(found)
    }

    /// One exchange with the server, within a time of its own.
    fn answers(&self) -> bool {
        self.session.set_timeout(milliseconds(self.timeout.min(CHECK)));
        let answered = self.sftp.lstat(Path::new(&self.root)).is_ok();
        self.session.set_timeout(milliseconds(self.timeout));
        if !answered {
            self.interrupt.fire();
        }
        answered
    }

    /// Takes a name only if it is free. On servers of which that is not certain one session of ours after the other looks
    /// first; others may slip in between.
    fn rename_to_free(&self, from: &str, to: &str) -> Result<Renamed, FsError> {
        if self.is_openssh {
            return self.plain_rename(from, to).map(|()| Renamed { atomic: true });
        }
        let _one_at_a_time = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        match self.lstat(to) {
            Ok(_) => Err(FsError::new(Problem::Exists, to)),
            Err(error) if error.problem == Problem::NotFound => {
                self.plain_rename(from, to).map(|()| Renamed { atomic: false })
            }
            Err(error) => Err(error),
        }
    }

    /// Plain `SSH_FXP_RENAME`: by the protocol it never replaces.
    fn plain_rename(&self, from: &str, to: &str) -> Result<(), FsError> {
        let (source, target) = (Path::new(from), Path::new(to));
        let Err(error) = self.sftp.rename(source, target, Some(RenameFlags::ATOMIC | RenameFlags::NATIVE))
        else {
            return Ok(());
        };
        // Servers of version 3 of the protocol say only "failure" when the target exists.
        if is_status(&error, libssh2_sys::LIBSSH2_FX_FAILURE) && self.sftp.lstat(target).is_ok() {
            return Err(FsError::new(Problem::Exists, to));
        }
        Err(self.failed(to, &error))
    }
}

impl Backend for Remote {
    fn features(&self) -> Features {
        Features { read: READ, write: WRITE, rereads_parts: false, claims_names: self.is_openssh }
    }

    fn begin(&mut self, timeout: Duration) {
        self.resolved.clear();
        self.timeout = timeout;
        self.session.set_timeout(milliseconds(timeout));
    }

    fn alive(&mut self, idle: Duration) -> bool {
        // libssh2 has made the socket non-blocking, so this only looks.
        match self.socket.peek(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => idle < TRUSTED || self.answers(),
            // Something came meanwhile: a question whether we are there, or a goodbye.
            Ok(1..) => self.answers(),
            Ok(0) | Err(_) => false,
        }
    }

    fn keep_warm(&mut self) {
        self.answers();
    }

    fn create(&mut self, place: &Place) -> Result<Box<dyn PartFile>, FsError> {
        let path = self.path(place)?;
        let flags = OpenFlags::WRITE | OpenFlags::EXCLUSIVE;
        match self.sftp.open_mode(Path::new(&path), flags, 0o666, OpenType::File) {
            Ok(file) => Ok(Box::new(Part::new(file, path, self.interrupt.clone()))),
            Err(error) if is_status(&error, libssh2_sys::LIBSSH2_FX_FAILURE) && self.lstat(&path).is_ok() => {
                Err(FsError::new(Problem::Exists, path))
            }
            Err(error) => Err(self.why_absent(&path, self.explain(&path, &error))),
        }
    }

    fn open(&mut self, place: &Place) -> Result<Box<dyn SourceFile>, FsError> {
        let path = self.path(place)?;
        let path = match self.lstat(&path) {
            Ok(found) if found.kind == EntryKind::Symlink => self.real(&path)?,
            Ok(_) => path,
            Err(error) => return Err(self.why_absent(&path, error)),
        };
        // Looked at before it is opened: the server would open a pipe or a device, and wait for ever.
        match self.lstat(&path)?.kind {
            EntryKind::File => {}
            EntryKind::Directory => return Err(FsError::new(Problem::IsAFolder, path)),
            EntryKind::Symlink | EntryKind::Other => return Err(FsError::new(Problem::NotAFile, path)),
        }
        let file = self.sftp.open(Path::new(&path)).map_err(|error| self.failed(&path, &error))?;
        Ok(Box::new(Source::new(file, path, self.interrupt.clone())))
    }

    fn stat(&mut self, path: &str, links: Links) -> Result<Stat, FsError> {
        let real = if path.is_empty() { self.root.clone() } else { self.path(&Place::own(path.to_owned()))? };
        let found = self.lstat(&real)?;
        if links == Links::Keep || found.kind != EntryKind::Symlink {
            return Ok(found);
        }
        let real = self.real(&real)?;
        self.lstat(&real)
    }

    fn list(&mut self, folder: &str, after: Option<&str>, max: usize) -> Result<Page, FsError> {
        let real = self.folder(folder)?;
        let mut dir =
            self.sftp.opendir(Path::new(&real)).map_err(|error| self.not_a_folder(&real, &error))?;
        let mut smallest = Smallest::new(after, max);
        loop {
            match dir.readdir() {
                Ok((name, found)) => smallest.offer(name.as_os_str().as_bytes(), from_attributes(&found)),
                Err(error) if error.code() == ErrorCode::Session(libssh2_sys::LIBSSH2_ERROR_FILE) => break,
                Err(error) => return Err(self.failed(&real, &error)),
            }
        }
        let (kept, more, unreadable) = smallest.finish();
        Ok(Page { entries: kept.into_iter().collect(), more, unreadable })
    }

    fn rename(&mut self, from: &Place, to: &Place, existing: Existing<'_>) -> Result<Renamed, FsError> {
        let (source, target) = (self.path(from)?, self.path(to)?);
        let aside = match existing {
            Existing::Refuse => return self.rename_to_free(&source, &target),
            Existing::Replace { aside } => aside,
        };
        let links = if self.is_openssh { LinkNames::Movable } else { LinkNames::Doubtful };
        // A server may rename to where a link leads, outside the root even.
        if self.link_target(&target)?.is_some() {
            return aside::replace(self, from, to, aside, links);
        }
        if self.posix_rename.is_none() {
            let opened = PosixRename::open(&self.session);
            self.posix_rename = opened.map_err(|error| self.failed(&target, &error))?;
        }
        let atomic = match &self.posix_rename {
            Some(renamer) => renamer.rename(&source, &target),
            None => Err(posix_rename::not_offered()),
        };
        match atomic {
            Ok(()) => return Ok(Renamed { atomic: true }),
            Err(error) if is_status(&error, libssh2_sys::LIBSSH2_FX_OP_UNSUPPORTED) => {}
            Err(error) => return Err(self.failed(&target, &error)),
        }
        // Without the extension: a free name is taken in one step, an occupied one in several.
        match self.plain_rename(&source, &target) {
            Ok(()) => Ok(Renamed { atomic: true }),
            Err(error) if error.problem == Problem::Exists => aside::replace(self, from, to, aside, links),
            // Somebody else had the name, and has removed it meanwhile.
            Err(error) if error.problem == Problem::Other && self.lstat(&source).is_ok() => {
                match self.plain_rename(&source, &target) {
                    Err(error) if error.problem == Problem::Exists => {
                        aside::replace(self, from, to, aside, links)
                    }
                    other => other.map(|()| Renamed { atomic: true }),
                }
            }
            Err(error) => Err(error),
        }
    }

    fn delete(&mut self, place: &Place) -> Result<(), FsError> {
        let path = self.path(place)?;
        self.sftp.unlink(Path::new(&path)).map_err(|error| self.failed(&path, &error))
    }

    fn make_folder(&mut self, path: &str) -> Result<(), FsError> {
        let real = self.path(&Place::own(path.to_owned()))?;
        match self.sftp.mkdir(Path::new(&real), 0o777) {
            Ok(()) => Ok(()),
            Err(error) if is_status(&error, libssh2_sys::LIBSSH2_FX_FAILURE) && self.lstat(&real).is_ok() => {
                Err(FsError::new(Problem::Exists, real))
            }
            Err(error) => Err(self.why_absent(&real, self.explain(&real, &error))),
        }
    }

    fn sync_folder(&mut self, _: &str) -> Result<bool, FsError> {
        // The protocol has no such request; `docs/connectors/file.md` says what that means.
        Ok(true)
    }

    fn identity(&mut self, folder: &str) -> Result<Value, FsError> {
        let real = self.folder(folder)?;
        // Resolving a path does not say that it exists.
        match self.lstat(&real)?.kind {
            EntryKind::Directory => Ok(json!({ "host_key": self.host_key, "folder": real })),
            _ => Err(FsError::new(Problem::NotAFolder, real)),
        }
    }
}

impl Remote {
    /// Why a path cannot be used: some servers say only "failure" when its folder is none.
    fn explain(&self, path: &str, error: &ssh2::Error) -> FsError {
        let told = self.failed(path, error);
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        if told.problem == Problem::Other
            && !folder.is_empty()
            && self.sftp.lstat(Path::new(folder)).is_ok_and(|found| found.is_file())
        {
            return FsError::new(Problem::NotAFolder, told.detail);
        }
        told
    }

    /// OpenSSH says "no such file" below a file too. Asked only where the absence is a failure: it takes one exchange more.
    fn why_absent(&self, path: &str, told: FsError) -> FsError {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        if told.problem == Problem::NotFound
            && !folder.is_empty()
            && self.sftp.lstat(Path::new(folder)).is_ok_and(|found| found.is_file())
        {
            return FsError::new(Problem::NotAFolder, told.detail);
        }
        told
    }

    /// Servers say "failure" or "no such file" when what is to be listed is a file.
    fn not_a_folder(&self, real: &str, error: &ssh2::Error) -> FsError {
        match self.failed(real, error) {
            error if error.is_broken() => error,
            _ if self.lstat(real).is_ok_and(|found| found.kind != EntryKind::Directory) => {
                FsError::new(Problem::NotAFolder, real)
            }
            error => error,
        }
    }
}

fn from_attributes(found: &FileStat) -> Stat {
    Stat {
        kind: EntryKind::from_mode(found.perm.unwrap_or_default()),
        size: found.size.unwrap_or_default(),
        modified: found
            .mtime
            .and_then(|seconds| i64::try_from(seconds).ok())
            .and_then(|seconds| Timestamp::from_second(seconds).ok()),
        inode: None,
    }
}

/// Whether `path` is `root` or lies in it.
fn beneath(path: &str, root: &str) -> bool {
    root == "/" || path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn below(folder: &str, name: &str) -> String {
    if folder == "/" { format!("/{name}") } else { join(folder, name) }
}

/// Never zero, which libssh2 takes for "wait for ever".
fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_the_root_is_beneath_it() {
        for (path, root, expected) in [
            ("/srv/in", "/srv/in", true),
            ("/srv/in/a", "/srv/in", true),
            ("/srv/inside", "/srv/in", false),
            ("/srv", "/srv/in", false),
            ("/etc", "/", true),
        ] {
            assert_eq!(beneath(path, root), expected, "{path} {root}");
        }
    }

    #[test]
    fn a_time_limit_is_never_none() {
        assert_eq!(milliseconds(Duration::ZERO), 1);
        assert_eq!(milliseconds(Duration::from_secs(30)), 30_000);
        assert_eq!(milliseconds(Duration::MAX), u32::MAX);
    }
}
