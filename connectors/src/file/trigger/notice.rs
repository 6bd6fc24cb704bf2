//! Hints from the system that something changed in a local folder (inotify). Folders that another machine changes, as on
//! NFS and CIFS, give none: whoever waits for hints looks by himself too.

use crate::Notices;
use rustix::{
    fd::OwnedFd,
    fs::inotify::{CreateFlags, WatchFlags, add_watch, init},
    io::{Errno, read},
};
use std::{
    collections::BTreeSet,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
};
use tokio::io::unix::AsyncFd;

/// The most folders of a trigger that hints are asked for: each takes of what the system has for all its users.
const MAX_FOLDERS: usize = 256;

/// Asks for hints; `None` where the system gives none.
pub(super) fn watch(root: &Path, folder: &str) -> Option<Box<dyn Notices>> {
    let told = |error: &dyn std::fmt::Display| {
        tracing::debug!(%error, "The system gives no hints of changes; the folder is looked at now and then");
    };
    let fd = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).inspect_err(|error| told(error)).ok()?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe; an `OwnedFd` is one descriptor for as long as it lives"
    )]
    let fd = AsyncFd::new(fd).inspect_err(|error| told(error)).ok()?;
    let mut inotify = Inotify { fd, root: root.to_owned(), covered: BTreeSet::new() };
    inotify.cover(&[folder.to_owned()]);
    Some(Box::new(inotify))
}

struct Inotify {
    fd: AsyncFd<OwnedFd>,
    root: PathBuf,
    covered: BTreeSet<String>,
}

impl Inotify {
    /// Takes what waits; `true` if there was something.
    fn take(&self) -> Result<bool, Errno> {
        let mut buffer = [0_u8; 4096];
        let mut some = false;
        loop {
            match read(self.fd.get_ref(), &mut buffer) {
                Ok(0) | Err(Errno::WOULDBLOCK) => return Ok(some),
                Ok(_) => some = true,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Notices for Inotify {
    fn cover(&mut self, folders: &[String]) {
        let what = WatchFlags::CREATE | WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::ATTRIB;
        for folder in folders {
            if self.covered.len() >= MAX_FOLDERS || self.covered.contains(folder) {
                continue;
            }
            if add_watch(self.fd.get_ref(), self.root.join(folder), what | WatchFlags::ONLYDIR).is_ok() {
                self.covered.insert(folder.clone());
            }
        }
    }

    fn changed(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            loop {
                let Ok(mut ready) = self.fd.readable().await else { return std::future::pending().await };
                match self.take() {
                    Ok(some) => {
                        ready.clear_ready();
                        if some {
                            return;
                        }
                    }
                    Err(_) => return std::future::pending().await,
                }
            }
        })
    }
}
