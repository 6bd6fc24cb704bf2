//! What a kind of place can do: one small blocking trait, its capabilities as data, and its one error type (`problem`).
//!
//! Paths are relative to the resource's root, `/` between names, `""` is the root. A backend never follows a symbolic
//! link out of the root, and never opens anything but regular files and folders.

pub(super) use super::problem::{FsError, Problem};

use super::place::Place;
use crate::Failure;
use jiff::Timestamp;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// What a backend is like, as data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Features {
    /// How many bytes one read should ask for.
    pub(super) read: usize,
    /// How many bytes one write should carry.
    pub(super) write: usize,
    /// Whether a part found after a crash is read back and digested even if it was synced (cheap where it is local).
    pub(super) rereads_parts: bool,
    /// Whether a name that must be free is taken in one step, whoever else wants it at the same moment.
    pub(super) claims_names: bool,
}

/// Whether a symbolic link in the last name is followed (within the root) or looked at itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    Follow,
    Keep,
}

/// Whether a rename may take the place of what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing<'a> {
    Replace {
        /// Where what is there waits meanwhile, at targets that cannot replace in one step.
        aside: &'a Place,
    },
    Refuse,
}

/// What lies at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    File,
    Directory,
    Symlink,
    Other,
}

impl EntryKind {
    /// As results show it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
            Self::Other => "other",
        }
    }

    /// From the format bits of a Unix mode.
    pub(super) fn from_mode(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFREG => Self::File,
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            _ => Self::Other,
        }
    }
}

/// What is known of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) kind: EntryKind,
    pub(super) size: u64,
    pub(super) modified: Option<Timestamp>,
    /// Device and inode, where the backend knows them.
    pub(super) inode: Option<(u64, u64)>,
}

/// Some entries of a folder in the byte order of their names.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) entries: Vec<(String, Stat)>,
    /// Whether the folder holds more after the last entry.
    pub(super) more: bool,
    /// How many names of the folder cannot be shown: they are not UTF-8, or no names.
    pub(super) unreadable: u64,
}

/// Keeps the first `max` names after `after`, however many there are: listing a huge folder takes bounded memory.
pub(super) struct Smallest<'a, T> {
    after: Option<&'a str>,
    max: usize,
    kept: BTreeMap<String, T>,
    more: bool,
    unreadable: u64,
}

impl<'a, T> Smallest<'a, T> {
    pub(super) fn new(after: Option<&'a str>, max: usize) -> Self {
        Self { after, max, kept: BTreeMap::new(), more: false, unreadable: 0 }
    }

    /// Whether names came that had no place.
    pub(super) fn has_more(&self) -> bool {
        self.more
    }

    /// The last name that is kept.
    pub(super) fn last(&self) -> Option<&str> {
        self.kept.last_key_value().map(|(name, _)| name.as_str())
    }

    pub(super) fn offer(&mut self, name: &[u8], entry: T) {
        if matches!(name, b"." | b"..") || super::place::is_hidden(name) {
            return;
        }
        // What servers tell may be made up: a name that leads elsewhere is nobody's here, whatever lies there.
        let leads_elsewhere = name.is_empty() || name.contains(&b'/') || name.contains(&b'\0');
        let Some(name) = std::str::from_utf8(name).ok().filter(|_| !leads_elsewhere) else {
            self.unreadable += 1;
            return;
        };
        if self.after.is_some_and(|after| name <= after) {
            return;
        }
        // Object stores have files and folders of the same name: the first one counts.
        if self.kept.contains_key(name) {
            return;
        }
        if self.kept.len() == self.max {
            self.more = true;
            match self.kept.last_key_value() {
                Some((last, _)) if name < last.as_str() => self.kept.pop_last(),
                _ => return,
            };
        }
        self.kept.insert(name.to_owned(), entry);
    }

    pub(super) fn finish(self) -> (BTreeMap<String, T>, bool, u64) {
        (self.kept, self.more, self.unreadable)
    }
}

/// How a rename went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Renamed {
    /// Whether what was there was replaced, or found to be nothing, in one step with taking the name.
    pub(super) atomic: bool,
}

/// An open file that is being written. Dropping it closes it.
pub(super) trait PartFile: Send {
    /// Writes all of `bytes`. Some of it may still be under way: that it arrived, only `sync` and `size` tell.
    fn write(&mut self, bytes: &[u8]) -> Result<(), FsError>;
    /// Brings the content to the disk: `false` if the server does not offer that.
    fn sync(&mut self) -> Result<bool, FsError>;
    /// The size that the target sees.
    fn size(&mut self) -> Result<u64, FsError>;
}

/// An open file that is being read. Dropping it closes it.
pub(super) trait SourceFile: Send {
    /// Reads some bytes; 0 only at the end.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, FsError>;
    /// Size and time as they are now.
    fn stat(&mut self) -> Result<Stat, FsError>;
    /// What the target calls the version of the content that is being read, where it does.
    fn tag(&self) -> Option<String> {
        None
    }
}

/// One connection to the place (an open root folder, a logged-in session). Used by one thread.
pub(super) trait Backend: Send {
    fn features(&self) -> Features;
    /// A new operation begins, whose waits end after `timeout`.
    fn begin(&mut self, timeout: Duration);
    /// Whether it can still be used after having been idle.
    fn alive(&mut self, idle: Duration) -> bool;
    /// Whether the current operation left something of a part that has its final name: harmless, but to be cleaned up.
    fn leaves_part(&self) -> bool {
        false
    }
    /// Called now and then while nothing else is asked of it.
    fn keep_warm(&mut self) {}
    /// Lets go of what only operations need; [`Self::alive`] comes before the next one.
    fn rest(&mut self) {}
    /// Creates a file for writing; `Exists` if there is one.
    fn create(&mut self, place: &Place) -> Result<Box<dyn PartFile>, FsError>;
    /// The same for a file that will have `size` bytes, which some servers want to hear first.
    fn create_sized(&mut self, place: &Place, size: u64) -> Result<Box<dyn PartFile>, FsError> {
        let _ = size;
        self.create(place)
    }
    /// The same for a file that will be renamed to `target`, which some must know from the beginning.
    fn create_for(&mut self, place: &Place, target: &Place, size: u64) -> Result<Box<dyn PartFile>, FsError> {
        let _ = target;
        self.create_sized(place, size)
    }
    /// Whether a part can become nothing but the target it was created for. Such a part may also be given up by the
    /// target itself (as object stores do with old uploads): that it is gone proves nothing.
    fn binds_parts(&self) -> bool {
        false
    }
    /// Sets a name aside for this connection until the next operation; `false` if another one has it.
    fn reserve(&mut self, target: &Place) -> bool {
        let _ = target;
        true
    }
    /// Whether what lies at `target` itself says that it was `from`: a part, or a file that had this size and time.
    fn came_from(
        &mut self,
        target: &Place,
        from: &Place,
        was: Option<(u64, Option<&str>)>,
    ) -> Result<bool, FsError> {
        let _ = (target, from, was);
        Ok(false)
    }
    /// Whether there is nothing at `place` that a rename which replaces would have to heed, where that is told for less than
    /// a look costs. A link that leads nowhere is nothing. `false` is no statement.
    ///
    /// # Errors
    /// The connection broke.
    fn is_free(&mut self, place: &Place) -> Result<bool, FsError> {
        let _ = place;
        Ok(false)
    }
    /// Opens a regular file for reading.
    fn open(&mut self, place: &Place) -> Result<Box<dyn SourceFile>, FsError>;
    fn stat(&mut self, path: &str, links: Links) -> Result<Stat, FsError>;
    fn list(&mut self, folder: &str, after: Option<&str>, max: usize) -> Result<Page, FsError>;
    fn rename(&mut self, from: &Place, to: &Place, existing: Existing<'_>) -> Result<Renamed, FsError>;
    /// Whether a renamed file keeps what recognises it. Where renaming makes a copy it does not.
    fn renames_keep_files(&self) -> bool {
        true
    }
    /// Whether folders are there by themselves, rather than by what lies in them.
    fn has_folders(&self) -> bool {
        true
    }
    /// What the target calls the version of a file's content, where it does.
    fn tag(&mut self, place: &Place) -> Result<Option<String>, FsError> {
        let _ = place;
        Ok(None)
    }
    /// Deletes a file or a symbolic link itself.
    fn delete(&mut self, place: &Place) -> Result<(), FsError>;
    /// Makes one folder; `Exists` if there is something.
    fn make_folder(&mut self, path: &str) -> Result<(), FsError>;
    /// Brings the names of a folder to the disk: `false` if that is not offered.
    fn sync_folder(&mut self, folder: &str) -> Result<bool, FsError>;
    /// What recognises the folder again after a restart.
    fn identity(&mut self, folder: &str) -> Result<Value, FsError>;
}

/// The longest path that a server is asked about, in bytes from its own root on: Linux's limit. Beyond it some servers hang
/// up (seen: vsftpd, ProFTPD's SFTP), which would look like a broken line and be tried again.
const MAX_SERVER_PATH: usize = 4095;

/// Whether a server's own path is one that it can take.
pub(super) fn fits(path: &str) -> Result<(), FsError> {
    if path.len() <= MAX_SERVER_PATH {
        return Ok(());
    }
    Err(FsError::new(Problem::NameTooLong, format!("{} bytes on the server", path.len())))
}

/// Opens connections. Shared by all threads of a resource.
pub(super) trait Connect: Send + Sync + 'static {
    /// Connects, logs in, finds the root, and tells of each link that it has passed.
    fn connect_telling(
        &self,
        timeout: Duration,
        interrupt: &Interrupt,
        passed: &mut dyn FnMut(&'static str, String),
    ) -> Result<Box<dyn Backend>, Failure>;

    /// The links that [`Self::connect_telling`] tells of, in their order.
    fn links(&self) -> &'static [&'static str];

    /// The root, where it is a folder of this machine, whose changes the system tells of.
    fn local_root(&self) -> Option<&std::path::Path> {
        None
    }

    /// Connects, logs in, finds the root.
    fn connect(&self, timeout: Duration, interrupt: &Interrupt) -> Result<Box<dyn Backend>, Failure> {
        self.connect_telling(timeout, interrupt, &mut |_, _| {})
    }
}

/// Cuts a blocking call short from outside by shutting its socket down, or by telling those who wait for [`Self::fired`].
/// Does nothing where there is neither.
#[derive(Debug, Clone, Default)]
pub(super) struct Interrupt {
    sockets: Arc<Mutex<Armed>>,
    fired: CancellationToken,
}

/// The sockets of a connection.
#[derive(Debug, Default)]
struct Armed {
    main: Option<TcpStream>,
    /// The second socket of protocols that move content beside their commands.
    data: Option<TcpStream>,
}

impl Interrupt {
    fn armed(&self) -> MutexGuard<'_, Armed> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the socket that it cuts; at once if it has fired before.
    pub(super) fn arm(&self, socket: TcpStream) {
        self.armed().main = Some(socket);
        if self.has_fired() {
            self.fire();
        }
    }

    /// Takes a second socket, or lets it go: the handle kept here keeps it from being closed.
    pub(super) fn arm_data(&self, socket: Option<TcpStream>) {
        self.armed().data = socket;
        if self.has_fired() {
            self.fire();
        }
    }

    pub(super) fn has_fired(&self) -> bool {
        self.fired.is_cancelled()
    }

    /// Cancelled when it fires.
    pub(super) fn fired(&self) -> CancellationToken {
        self.fired.clone()
    }

    pub(super) fn fire(&self) {
        self.fired.cancel();
        let armed = self.armed();
        for socket in [&armed.main, &armed.data].into_iter().flatten() {
            // An error says that the socket is down already.
            drop(socket.shutdown(Shutdown::Both));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_counted_and_never_shown() {
        let mut smallest = Smallest::new(None, 10);
        for name in ["../evil", "/etc/passwd", "a/b", "a/", "", "nul\0", ".", "..", "..a", "a.csv"] {
            smallest.offer(name.as_bytes(), ());
        }
        let (kept, _, unreadable) = smallest.finish();
        assert_eq!(
            (kept.into_keys().collect::<Vec<_>>(), unreadable),
            (vec!["..a".into(), "a.csv".into()], 6)
        );
    }

    #[test]
    fn a_huge_folder_is_listed_in_pages_of_bounded_size() {
        let names: Vec<String> = (0..1000).map(|n| format!("f{:04}", (n * 7919) % 1000)).collect();
        let mut seen = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut smallest = Smallest::new(after.as_deref(), 300);
            for name in &names {
                smallest.offer(name.as_bytes(), ());
                assert!(smallest.kept.len() <= 300);
            }
            smallest.offer(b"..", ());
            smallest.offer(b".passerelle-x-1.part", ());
            smallest.offer(b"\xff", ());
            let (kept, more, unreadable) = smallest.finish();
            assert_eq!(unreadable, 1);
            seen.extend(kept.into_keys());
            after = seen.last().cloned();
            if !more {
                break;
            }
        }
        assert_eq!(seen, (0..1000).map(|n| format!("f{n:04}")).collect::<Vec<_>>());
    }
}
