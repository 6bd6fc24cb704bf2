//! Whether there is room for another job: disk and journal. Offers are declined before either is full, so that what was
//! accepted can always be brought to its end and reported.

use crate::{
    agent::Agent,
    clock,
    journal::{self, Journal},
    state::free_bytes,
};
use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::task::spawn_blocking;

/// Room on the disk of the state folder that new jobs do not use up: the outcomes of those that run must fit.
const FLOOR: u64 = 2 * 1024 * 1024;
/// Room that contents of events do not use up either: that the hub has them must be noted before theirs is free again. So
/// the WAL must be able to grow as far as it does, and what is in it to be copied into the file.
const RESERVE: u64 = FLOOR + journal::WAL;
/// Below it no more contents are looked for: a small one would still leave the reserve.
const TIGHT: u64 = RESERVE + 2 * 512 * 1024;
/// What an event takes beside its content; generous.
const ROW: u64 = 8 * 1024;
/// What of the journal's file is worth giving back to a disk that is almost full.
const SPARE: u64 = 256 * 1024;

/// Said of a disk that has no room for more.
pub const ALMOST_FULL: &str = "the disk of the agent's state folder is almost full";

/// See the [module](self).
#[derive(Debug)]
pub struct Pressure {
    disk_free: AtomicU64,
    /// Room for contents that are being written to the journal.
    promised: AtomicU64,
    journal_quota: AtomicU64,
    /// The journal's file, as it was at the first look.
    file: OnceLock<FileId>,
    /// It is not where it was: what is written there is lost with this process.
    journal_gone: AtomicBool,
    /// The audit has reached its quota, and the operator wants it kept whole.
    pub audit_full: AtomicBool,
}

impl Pressure {
    /// Room as long as nobody has looked.
    pub fn new(journal_quota: u64) -> Self {
        Self {
            disk_free: AtomicU64::new(u64::MAX),
            promised: AtomicU64::new(0),
            journal_quota: journal_quota.into(),
            file: OnceLock::new(),
            journal_gone: false.into(),
            audit_full: false.into(),
        }
    }

    /// Changes the most bytes that the journal may have.
    pub fn set_journal_quota(&self, bytes: u64) {
        self.journal_quota.store(bytes, Ordering::Relaxed);
    }

    /// Free bytes at the last look; `None` if nobody could look yet.
    pub fn disk_free(&self) -> Option<u64> {
        Some(self.disk_free.load(Ordering::Relaxed)).filter(|free| *free < u64::MAX)
    }

    /// Why no job is taken just now, in a public sentence; `None` if there is room.
    pub fn full(&self, journal: &Journal) -> Option<&'static str> {
        if self.journal_gone.load(Ordering::Relaxed) {
            Some("the agent's state folder was removed or replaced while it ran: restart the agent")
        } else if !journal.writable() {
            Some("the agent's journal cannot be written (disk full?)")
        } else if self.disk_free.load(Ordering::Relaxed) < FLOOR {
            Some(ALMOST_FULL)
        } else if journal.bytes() >= self.journal_quota.load(Ordering::Relaxed) {
            Some("the agent's journal has reached its quota (agent.journal_quota)")
        } else if self.audit_full.load(Ordering::Relaxed) {
            Some("the agent's audit has reached its quota (agent.audit_quota)")
        } else {
            None
        }
    }

    /// Why nothing more is picked up just now: before jobs are turned away, so that they have the rest.
    pub fn full_for_events(&self, journal: &Journal) -> Option<&'static str> {
        self.full(journal).or_else(|| self.is_disk_tight().then_some(ALMOST_FULL)).or_else(|| {
            (journal.bytes() >= self.journal_quota.load(Ordering::Relaxed) / 2).then_some(
                "half of the agent's journal is in use (agent.journal_quota): it goes on when the hub has taken what waits, and the outcomes of jobs whose envelopes can still be replayed may be forgotten",
            )
        })
    }

    /// Whether keys of posts are worth less than room: well before the journal takes no more events.
    pub fn is_tight_for_keys(&self, journal: &Journal) -> bool {
        journal.bytes() >= self.journal_quota.load(Ordering::Relaxed) / 4
    }

    fn is_disk_tight(&self) -> bool {
        self.disk_free.load(Ordering::Relaxed) < TIGHT
    }

    /// Whether the journal comes near what events may use of it: then what it only remembers is worth less than room.
    fn is_tight(&self, journal: &Journal) -> bool {
        journal.bytes() / 2 >= self.journal_quota.load(Ordering::Relaxed) / 5
    }
}

/// Device and inode.
type FileId = (u64, u64);

/// The file behind a name; `None` if it is not there, an error if that cannot be told.
fn file_id(path: &Path) -> io::Result<Option<FileId>> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Pressure {
    /// Notes which file in the state folder the journal is, as it is open now.
    pub fn note_journal(&self, state: &Path) {
        if let Ok(found) = file_id(&state.join(journal::FILE)) {
            self.note_file(found);
        }
    }

    fn note_file(&self, found: Option<FileId>) {
        let gone = match found {
            Some(found) => *self.file.get_or_init(|| found) != found,
            None => self.file.get().is_some(),
        };
        if self.journal_gone.swap(gone, Ordering::Relaxed) != gone && gone {
            tracing::error!(
                "The state folder was removed or replaced: no more jobs are taken. Restart the agent; without its old state \
                 folder it has to be enrolled again"
            );
        }
    }
}

/// Room for contents on their way into the journal; given up when dropped.
#[derive(Debug)]
pub struct Promise {
    pressure: Arc<Pressure>,
    bytes: u64,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.pressure.promised.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Promises events room on the disk, looking at it now: thousands can come from one look to the next. `bytes` are those
/// that go into the journal. To be kept until they are there; `None` if the reserve would be touched.
pub async fn promise(agent: &Agent, events: usize, bytes: u64) -> Option<Promise> {
    let pressure = Arc::clone(&agent.pressure);
    // Twice: what is committed is in the WAL, and then in the file too.
    let bytes = (events as u64).saturating_mul(ROW).saturating_add(bytes).saturating_mul(2);
    // Before the look: whatever is not counted any more is on the disk then.
    let others = pressure.promised.fetch_add(bytes, Ordering::Relaxed);
    let promise = Promise { pressure, bytes };
    let path = agent.state.path().to_owned();
    if let Ok(Ok(free)) = spawn_blocking(move || free_bytes(&path)).await {
        agent.pressure.disk_free.store(free, Ordering::Relaxed);
    }
    let free = agent.pressure.disk_free.load(Ordering::Relaxed);
    (free.saturating_sub(others).saturating_sub(bytes) >= RESERVE).then_some(promise)
}

/// Looks at disk and journal, and makes room in the journal if it comes near its quota.
pub async fn look(agent: &Arc<Agent>) {
    let path = agent.state.path().to_owned();
    // On a thread of its own: a network folder may hang. What cannot be told is left as it was.
    let looked = spawn_blocking(move || (free_bytes(&path), file_id(&path.join(journal::FILE))));
    if let Ok((free, file)) = looked.await {
        if let Ok(free) = free {
            agent.pressure.disk_free.store(free, Ordering::Relaxed);
        }
        if let Ok(file) = file {
            agent.pressure.note_file(file);
        }
    }
    if let Err(error) = agent.journal.measure().await {
        tracing::debug!(%error, "The journal cannot be measured");
    }
    if agent.pressure.is_disk_tight()
        && agent.journal.spare() >= SPARE
        && let Err(error) = agent.journal.give_back().await
    {
        tracing::debug!(%error, "The journal cannot give room back");
    }
    if agent.pressure.is_tight(&agent.journal) {
        match agent.journal.relieve(clock::unix_seconds()).await {
            Ok(0) => {}
            Ok(rows) => {
                tracing::info!(rows, "The journal nears its quota: old outcomes were forgotten early");
            }
            Err(error) => tracing::debug!(%error, "The journal cannot be relieved"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_are_turned_away_before_disk_or_journal_are_full() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap().journal;
        journal.measure().await.unwrap();
        let used = journal.bytes();
        assert!(used > 0);
        let pressure = Pressure::new(used * 3);
        assert_eq!((pressure.full_for_events(&journal), pressure.disk_free()), (None, None));
        assert!(!pressure.is_tight(&journal));
        // What is only remembered is forgotten before it keeps events out.
        pressure.set_journal_quota(used * 2);
        assert!(pressure.is_tight(&journal) && pressure.full(&journal).is_none());
        assert!(pressure.full_for_events(&journal).unwrap().contains("half"));
        pressure.set_journal_quota(used * 9 / 4);
        assert!(pressure.is_tight(&journal) && pressure.full_for_events(&journal).is_none());
        pressure.set_journal_quota(used + used / 10);
        assert!(pressure.is_tight(&journal) && pressure.full(&journal).is_none());
        pressure.set_journal_quota(used);
        assert!(pressure.full(&journal).unwrap().contains("agent.journal_quota"));
        pressure.set_journal_quota(used * 2);
        pressure.audit_full.store(true, Ordering::Relaxed);
        assert!(pressure.full(&journal).unwrap().contains("agent.audit_quota"));
        pressure.audit_full.store(false, Ordering::Relaxed);
        pressure.disk_free.store(FLOOR - 1, Ordering::Relaxed);
        assert!(pressure.full(&journal).unwrap().contains("almost full"));
        pressure.disk_free.store(FLOOR, Ordering::Relaxed);
        assert_eq!(pressure.full(&journal), None);
        // Events end earlier: what follows of them must fit.
        assert_eq!(pressure.full_for_events(&journal), Some(ALMOST_FULL));
        pressure.set_journal_quota(used * 3);
        pressure.disk_free.store(TIGHT, Ordering::Relaxed);
        assert_eq!(pressure.full_for_events(&journal), None);
    }

    #[tokio::test]
    async fn a_journal_that_is_not_where_it_was_takes_no_jobs() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap().journal;
        let pressure = Pressure::new(u64::MAX);
        let path = dir.path().join(journal::FILE);
        let look = || pressure.note_file(file_id(&path).unwrap());
        look();
        assert_eq!(pressure.full(&journal), None);
        let aside = dir.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        look();
        assert!(pressure.full(&journal).unwrap().contains("restart the agent"));
        fs::write(&path, "another").unwrap();
        look();
        assert!(pressure.full(&journal).is_some());
        fs::rename(&aside, &path).unwrap();
        look();
        assert_eq!(pressure.full(&journal), None);
    }
}
