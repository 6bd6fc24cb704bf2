//! Where the control socket lies. A socket's path has at most 107 bytes, a state folder's any length: a longer one is
//! reached through the folder's own handle.

use rustix::fs::{Mode, OFlags, open};
use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    },
    path::{Path, PathBuf},
};
use tokio::net::{UnixListener, UnixStream};

/// Its name in the state folder.
pub const FILE: &str = "control.sock";
/// The longest path that a socket's address holds on every system.
const MAX_ADDRESS: usize = 100;

/// The address of the socket, and what keeps it good.
fn address(state: &Path) -> io::Result<(PathBuf, Option<OwnedFd>)> {
    let path = state.join(FILE);
    if path.as_os_str().as_bytes().len() <= MAX_ADDRESS {
        return Ok((path, None));
    }
    let folder = open(state, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{FILE}", folder.as_raw_fd())), Some(folder)))
}

/// Makes the socket, for the agent's user alone. Called by whoever holds the folder's lock: what lies there is left over.
pub fn bind(state: &Path) -> io::Result<UnixListener> {
    let path = state.join(FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let (address, _folder) = address(state)?;
    let listener = UnixListener::bind(address)?;
    // The folder is closed to others already, and the kernel tells who asks.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to the agent that listens there.
pub async fn connect(state: &Path) -> io::Result<UnixStream> {
    let (address, _folder) = address(state)?;
    UnixStream::connect(address).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_of_any_length_has_a_socket_that_is_private() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["short", &"long".repeat(40)] {
            let state = dir.path().join(name);
            fs::create_dir(&state).unwrap();
            fs::write(state.join(FILE), "left over").unwrap();
            let listener = bind(&state).unwrap();
            assert_eq!(fs::metadata(state.join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
            let (asked, heard) = tokio::join!(connect(&state), listener.accept());
            assert!(asked.is_ok() && heard.is_ok(), "{name}");
            drop(listener);
            assert_eq!(connect(&state).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        }
    }
}
