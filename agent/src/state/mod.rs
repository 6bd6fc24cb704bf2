//! The state folder: one agent at a time, readable by nobody else, every file replaced whole or not at all.
//!
//! ```text
//! lock             held while an agent runs
//! identity.json    who the agent is, and which key is its own; written last at enrolment
//! agent-key*.pk8   its private key, and for a moment the one that follows; see `identity`
//! re-enrol-key.pk8 the key of a `re-enrol` whose answer was lost
//! refused.json     the hub's last refusal for good
//! pauses.json      what its owner has paused
//! volume.json      what rules with a limit per day were used for today
//! listen           where the running agent listens
//! control.sock     where commands of this machine change the running agent
//! journal.db       see `journal`
//! spool/           payloads on their way, named by job and attempt alone
//! ```

mod refusal;

pub use refusal::Refusal;

use crate::exit::Stop;
use passerelle_config::mapped;
use rustix::{
    fs::OFlags,
    process::{geteuid, getuid},
};
use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a start waits for the lock.
const PATIENCE: Duration = Duration::from_secs(5);
/// How the message about a held lock begins.
pub const IN_USE: &str = "another passerelle-agent is running";

/// The state folder, locked for this process.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// `None`: only looked at.
    lock: Option<File>,
}

impl StateDir {
    /// Makes the folder if need be, checks that it can be written, and locks it.
    pub fn open(path: &Path) -> Result<Self, Stop> {
        let failed = |e: &io::Error| Stop::Configuration(unwritable(path, e));
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| failed(&e))?;
        let mode = fs::metadata(path).map_err(|e| failed(&e))?.permissions().mode();
        if mode & 0o077 != 0 && fs::set_permissions(path, fs::Permissions::from_mode(0o700)).is_err() {
            tracing::warn!(state = %path.display(), "The state folder can be read by others and cannot be closed to them");
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            // Root runs commands here too, and the folder is another user's: no link of theirs is followed.
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path.join("lock"))
            .map_err(|e| failed(&e))?;
        keep_owner(path, &lock).map_err(|e| failed(&e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Stop::Configuration(format!(
                    "{IN_USE} with the state folder {}: stop it first, or give this one \
                     a configuration folder of its own",
                    path.display()
                )));
            }
            Err(TryLockError::Error(e)) => return Err(failed(&e)),
        }
        let dir = Self { path: path.to_owned(), lock: Some(lock) };
        dir.write("write-test", b"ok").map_err(|e| failed(&e))?;
        fs::remove_file(dir.path.join("write-test")).map_err(|e| failed(&e))?;
        Ok(dir)
    }

    /// As [`Self::open`], but waits a little for the lock: a killed agent keeps it until its last write is through.
    pub async fn open_patiently(path: &Path) -> Result<Self, Stop> {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            match Self::open(path) {
                Err(Stop::Configuration(message))
                    if message.starts_with(IN_USE) && tokio::time::Instant::now() < until =>
                {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                done => return done,
            }
        }
    }

    /// The folder of an agent that may be running, to be read and nothing else.
    pub fn look(path: &Path) -> Self {
        Self { path: path.to_owned(), lock: None }
    }

    /// Whether this process holds the lock; if not, another one may be writing here.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a file of the folder; `None` if there is none.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.path.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes a file of the folder whole or not at all, and durably: temporary file, sync, rename, sync of the folder.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.path.join(format!(".{name}.tmp"));
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&temporary)?;
        keep_owner(&self.path, &file)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }

    /// Removes a file of the folder, if it is there.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Root runs commands in the folder of the agent's user, who must be able to use what they leave there.
fn keep_owner(folder: &Path, file: &File) -> io::Result<()> {
    let (folder, own) = (fs::metadata(folder)?, file.metadata()?);
    if geteuid().is_root() && folder.uid() != own.uid() {
        std::os::unix::fs::fchown(file, Some(folder.uid()), Some(folder.gid()))?;
    }
    Ok(())
}

/// Why the state folder cannot be used, whose it is, and the command that mends it.
pub fn unwritable(path: &Path, error: &io::Error) -> String {
    unwritable_folder("state", path, error)
}

/// The same of any folder that the agent writes into.
pub fn unwritable_folder(what: &str, path: &Path, error: &io::Error) -> String {
    let uid = getuid().as_raw();
    let existing = path.ancestors().find(|p| p.exists());
    let owner = existing.and_then(|p| fs::metadata(p).ok().map(|m| (p, m.uid())));
    let whose = owner.map_or(String::new(), |(p, owner)| format!("; {} belongs to uid {owner}", p.display()));
    let mend = match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => mapped::writable(path),
        _ if existing.is_some_and(|p| !p.is_dir()) => {
            "that is no folder: name another place, or move away what stands there".to_owned()
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space on its disk".to_owned(),
        _ => mapped::give(path),
    };
    format!(
        "the {what} folder {} cannot be written: {error}{whose}; this agent runs as uid {uid}: {mend}",
        path.display()
    )
}

/// Free bytes on the disk of `path` for an unprivileged process.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_place_of_the_folder_is_told_as_such() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [file.path().to_owned(), file.path().join("state")] {
            let told = StateDir::open(&path).unwrap_err().to_string();
            assert!(told.contains("that is no folder") && !told.contains("chown"), "{told}");
        }
    }

    #[test]
    fn a_second_agent_is_refused_and_the_folder_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateDir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let error = StateDir::open(&path).unwrap_err();
        assert_eq!(error.code(), crate::CONFIGURATION);
        assert!(error.to_string().contains("another passerelle-agent is running"), "{error}");
        drop(first);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(state.read("x").unwrap(), None);
        state.write("x", b"one").unwrap();
        state.write("x", b"two").unwrap();
        assert_eq!(state.read("x").unwrap().as_deref(), Some(b"two".as_slice()));
        assert_eq!(fs::metadata(dir.path().join("x")).unwrap().permissions().mode() & 0o777, 0o600);
        state.remove("x").unwrap();
        state.remove("x").unwrap();
        assert_eq!(state.read("x").unwrap(), None);
    }

    /// Needs root, who alone can act for another user.
    #[test]
    fn what_root_leaves_in_the_folder_is_its_owners() {
        const OWNER: u32 = 65_534;
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(OWNER), Some(OWNER)).unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.write("identity.json", b"new").unwrap();
        for name in ["lock", "identity.json"] {
            let file = fs::metadata(dir.path().join(name)).unwrap();
            assert_eq!((file.uid(), file.gid(), file.mode() & 0o777), (OWNER, OWNER, 0o600), "{name}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_told_with_owner_and_command() {
        let dir = tempfile::tempdir().unwrap();
        // Root, who may run this, is refused nothing.
        let error = unwritable(&dir.path().join("state"), &io::ErrorKind::PermissionDenied.into());
        assert!(error.contains("cannot be written") && error.contains("belongs to uid"), "{error}");
        assert!(error.contains("chown -R"), "{error}");
    }
}
