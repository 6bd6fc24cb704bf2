//! The import at the other end of the drop folders: takes every file away as soon as it has its name, as it stands.
//!
//! It learns of names from the kernel in the order in which they appear (inotify), so that the order of drops can be
//! judged too. Names that begin with a dot are not for it: parts are none of its business until they are renamed.

use crate::plan::KEPT;
use passerelle_tests::Content;
use rustix::{
    fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init},
    io::Errno,
};
use std::{
    fs,
    mem::MaybeUninit,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// One file as the consumer found it.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The resource it came through.
    pub resource: &'static str,
    /// Its name.
    pub name: String,
    /// The job its first line names, if it names one.
    pub job: Option<u64>,
    /// The digest of all of it.
    pub sha256: String,
    /// Its size.
    pub size: u64,
    /// When.
    pub at: Instant,
}

/// The consumer of one folder; it ends with this value.
pub struct Consumer {
    taken: Arc<Mutex<Vec<Taken>>>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Consumer {
    /// Starts to take files away from `root`.
    ///
    /// # Panics
    /// If the folder cannot be watched.
    pub fn start(resource: &'static str, root: &Path) -> Self {
        let (taken, stop) = (Arc::new(Mutex::default()), Arc::new(AtomicBool::new(false)));
        let inotify = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).expect("inotify");
        // An SFTP server may give a name by a hard link, which is a creation and no move.
        add_watch(&inotify, root, WatchFlags::MOVED_TO | WatchFlags::CREATE).expect("a watch on the folder");
        let (root, out, ended) = (root.to_owned(), Arc::clone(&taken), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
            let mut events = Reader::new(inotify, &mut buffer);
            loop {
                match events.next() {
                    Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                        // Then the order is lost, but no file.
                        for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
                            take(resource, &entry.path(), &out);
                        }
                    }
                    Ok(event) => {
                        if let Some(name) = event.file_name().and_then(|name| name.to_str().ok()) {
                            take(resource, &root.join(name), &out);
                        }
                    }
                    Err(Errno::AGAIN) if ended.load(Ordering::SeqCst) => return,
                    Err(Errno::AGAIN) => thread::sleep(Duration::from_millis(1)),
                    Err(error) => panic!("inotify: {error}"),
                }
            }
        });
        Self { taken, stop, thread: Some(thread) }
    }

    /// Takes what is there and stops; gives all that was taken, in order.
    ///
    /// # Panics
    /// If the consumer failed.
    pub fn finish(mut self) -> Vec<Taken> {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the consumer");
        }
        std::mem::take(&mut self.taken.lock().expect("what was taken"))
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn take(resource: &'static str, path: &Path, out: &Mutex<Vec<Taken>>) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.starts_with('.') || name == KEPT {
        return;
    }
    let at = Instant::now();
    // Gone already: taken at an earlier event of the same name.
    let Ok(bytes) = fs::read(path) else { return };
    fs::remove_file(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let job = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .and_then(|line| std::str::from_utf8(line).ok())
        .and_then(|line| line.parse().ok());
    let taken = Taken { resource, name, job, sha256: Content::digest(&bytes), size: bytes.len() as u64, at };
    out.lock().expect("what was taken").push(taken);
}

/// What lies in a folder that neither the consumer takes away nor the harness put there: parts of dead attempts.
pub fn leftovers(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).expect("the folder");
    entries.map(|entry| entry.expect("an entry").path()).filter(|path| !path.ends_with(KEPT)).collect()
}
