//! What pickup and watch need of a private system, beside the operations of jobs: finding files page by page, reading
//! one exactly as it was seen, and taking away the very file that was read.

use crate::{Failure, Output};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A file as it was seen: what tells it from a later one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Relative to the resource's root.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// The last change, where the target tells; in whole seconds where there is no inode, since such targets tell it now
    /// and then with more digits and now and then with fewer.
    pub modified: Option<Timestamp>,
    /// Device and inode, where they are known.
    pub inode: Option<(u64, u64)>,
}

/// What to look for.
#[derive(Clone)]
pub struct Scan {
    /// The folder, relative to the root; the root is `""`.
    pub folder: String,
    /// Whether a file counts, by its path relative to the folder.
    pub wanted: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// Whether a folder below is entered, by its path relative to the folder.
    pub entered: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// Where the page before ended.
    pub after: Option<String>,
    /// At most so many files.
    pub limit: usize,
}

/// One page of files, folder by folder in the byte order of their names.
#[derive(Debug, Default)]
pub struct Scanned {
    /// The files.
    pub files: Vec<Seen>,
    /// Where the next page begins; `None` if this was the last.
    pub next: Option<String>,
    /// How many names cannot be told of: they are not UTF-8, or no names.
    pub unreadable: u64,
}

/// What becomes of a file that has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settle {
    /// Makes up the name that the file has in between: the same one each time.
    pub id: Uuid,
    /// The file.
    pub file: Seen,
    /// Its content, which decides where the target tells neither inode nor time; `None`: then its size does.
    pub sha256: Option<[u8; 32]>,
    /// Where to move it, with its name; `None`: delete it.
    pub move_to: Option<String>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// It is deleted.
    Deleted,
    /// It lies here now.
    Moved(String),
    /// It was not there any more: somebody else, or an earlier try, had taken it away.
    Gone,
    /// There is another file of that name by now, which was left alone.
    Replaced,
}

/// How long one wait on the target may take, and what ends it early.
#[derive(Debug, Clone)]
pub struct Patience {
    /// For each wait.
    pub timeout: Duration,
    /// Ends it.
    pub cancel: CancellationToken,
}

/// What pickup and watch need.
pub trait Triggers: Send + Sync {
    /// One page of files. Symbolic links and whatever else is no regular file are left out.
    ///
    /// # Errors
    /// What a listing would meet.
    fn scan<'a>(&'a self, scan: Scan, patience: &'a Patience) -> Boxed<'a, Result<Scanned, Failure>>;

    /// The file at a path; `None` if there is none.
    ///
    /// # Errors
    /// What a stat would meet.
    fn look<'a>(&'a self, path: &'a str, patience: &'a Patience) -> Boxed<'a, Result<Option<Seen>, Failure>>;

    /// Reads the whole file, and nothing but the file that was seen.
    ///
    /// # Errors
    /// `target_conflict` (retry) if it is another one by now or changed while it was read; else what a fetch would meet.
    fn read<'a>(
        &'a self,
        seen: &'a Seen,
        output: &'a mut Output,
        patience: &'a Patience,
    ) -> Boxed<'a, Result<(), Failure>>;

    /// Deletes or moves the very file that was read, or finds that this was done before: it may be called again after a
    /// crash at any point. Another file of the same name is never touched for good.
    ///
    /// # Errors
    /// If the target cannot be asked, or refuses: call it again later.
    fn settle<'a>(
        &'a self,
        settle: &'a Settle,
        patience: &'a Patience,
    ) -> Boxed<'a, Result<Settled, Failure>>;

    /// Tells of changes below a folder, where the system does. A hint only: whoever waits must look now and then by
    /// himself too.
    fn notices(&self, _folder: &str) -> Option<Box<dyn Notices>> {
        None
    }
}

/// Hints that something changed.
pub trait Notices: Send {
    /// Has these folders told of too, beside those of earlier calls.
    fn cover(&mut self, folders: &[String]);

    /// Waits for the next change.
    ///
    /// # Cancel safety
    /// Cancel safe.
    fn changed(&mut self) -> Boxed<'_, ()>;
}
