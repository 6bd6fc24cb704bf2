//! How much each rule with a daily limit has been used today (UTC): `volume.json` in the state folder.
//!
//! What an attempt takes is on disk before the attempt is accepted, so a restart forgets none of it. Attempts that come
//! together share one write. Outputs are counted as they come, in memory, and written with the end of their attempt: what
//! a crash cuts off in the middle is not counted. A rule is known by its number, as in receipts (`compta#1`).

use crate::{clock, exit::Stop, state::StateDir};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use passerelle_protocol::Name;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::io::AsyncWrite;

/// The file in the state folder.
pub const FILE: &str = "volume.json";

/// What a rule has been used for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Attempts accepted.
    pub attempts: u64,
    /// Bytes of payloads and outputs.
    pub bytes: u64,
}

/// What the rules of one resource have been used for today, by number.
pub type Spent = BTreeMap<usize, Used>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Day {
    day: Date,
    rules: BTreeMap<Name, Spent>,
    #[serde(skip)]
    changes: u64,
}

impl Day {
    fn at(now: Timestamp) -> Self {
        Self { day: day(now), rules: BTreeMap::new(), changes: 0 }
    }
}

fn day(now: Timestamp) -> Date {
    now.to_zoned(TimeZone::UTC).date()
}

/// How long until the counts begin anew.
pub fn until_tomorrow() -> Duration {
    let now = clock::now();
    let midnight = day(now).tomorrow().ok().and_then(|next| next.to_zoned(TimeZone::UTC).ok());
    let left = midnight.and_then(|next| Duration::try_from(next.timestamp().duration_since(now)).ok());
    left.unwrap_or(Duration::from_secs(3600))
}

/// The public sentence about it.
pub fn used_up(operation: &str) -> String {
    format!(
        "what operation {operation:?} is allowed here per day is used up; it is counted anew at midnight UTC"
    )
}

/// See the [module](self).
#[derive(Debug)]
pub struct Volume {
    state: Arc<StateDir>,
    today: Mutex<Day>,
    /// The last change that is on disk; held while writing.
    written: Mutex<u64>,
}

impl Volume {
    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be read: an agent that forgot it would do more than its owner allows.
    pub fn open(state: Arc<StateDir>) -> Result<Self, Stop> {
        let path = state.path().join(FILE);
        let failed = |what: &dyn std::fmt::Display| {
            Stop::Configuration(format!(
                "today's volume in {} cannot be read: {what}: mend the file, or remove it to count from zero",
                path.display()
            ))
        };
        let today = match state.read(FILE).map_err(|e| failed(&e))? {
            Some(text) => serde_json::from_slice(&text).map_err(|e| failed(&e))?,
            None => Day::at(clock::now()),
        };
        Ok(Self { state, today: Mutex::new(today), written: Mutex::new(0) })
    }

    /// The counts, which begin anew with each day. A clock that is set back counts on.
    fn today(&self) -> MutexGuard<'_, Day> {
        let mut today = self.today.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Day::at(clock::now());
        if now.day > today.day {
            *today = Day { changes: today.changes + 1, ..now };
        }
        today
    }

    /// What the rules of a resource have been used for today.
    pub fn spent(&self, resource: &Name) -> Spent {
        self.today().rules.get(resource).cloned().unwrap_or_default()
    }

    /// Counts an attempt, if `limits` leave room for it: bytes of its payload and itself. Decided and counted in one step,
    /// so that attempts that come together do not share what is left.
    pub fn take(&self, resource: &Name, rule: usize, bytes: u64, limits: Daily) -> bool {
        let mut today = self.today();
        let used = today.rules.entry(resource.clone()).or_default().entry(rule).or_default();
        if !limits.leave_room(*used, bytes) {
            return false;
        }
        used.attempts += 1;
        used.bytes = used.bytes.saturating_add(bytes);
        today.changes += 1;
        true
    }

    /// Takes back what [`Self::take`] counted for an attempt that was not accepted.
    pub fn give_back(&self, resource: &Name, rule: usize, bytes: u64) {
        let mut today = self.today();
        if let Some(used) = today.rules.get_mut(resource).and_then(|rules| rules.get_mut(&rule)) {
            used.attempts = used.attempts.saturating_sub(1);
            used.bytes = used.bytes.saturating_sub(bytes);
            today.changes += 1;
        }
    }

    fn grow(&self, resource: &Name, rule: usize, bytes: u64, most: u64) -> bool {
        let mut today = self.today();
        let used = today.rules.entry(resource.clone()).or_default().entry(rule).or_default();
        if used.bytes.saturating_add(bytes) > most {
            return false;
        }
        used.bytes += bytes;
        today.changes += 1;
        true
    }

    fn shrink(&self, resource: &Name, rule: usize, bytes: u64) {
        let mut today = self.today();
        if bytes > 0
            && let Some(used) = today.rules.get_mut(resource).and_then(|rules| rules.get_mut(&rule))
        {
            used.bytes = used.bytes.saturating_sub(bytes);
        }
    }

    /// Returns once everything counted so far is on disk.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn flush(self: &Arc<Self>) -> io::Result<()> {
        let mine = self.today().changes;
        let volume = Arc::clone(self);
        tokio::task::spawn_blocking(move || volume.write(mine)).await.map_err(io::Error::other)?
    }

    fn write(&self, mine: u64) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody's write, made while this one waited, holds it already.
        if *written >= mine {
            return Ok(());
        }
        let today = self.today().clone();
        let result = serde_json::to_vec(&today)
            .map_err(io::Error::other)
            .and_then(|text| self.state.write(FILE, &text));
        if result.is_ok() {
            *written = today.changes;
        }
        result
    }
}

/// A rule's limits per day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Daily {
    /// Attempts.
    pub attempts: Option<u64>,
    /// Bytes of payloads and outputs.
    pub bytes: Option<u64>,
}

impl Daily {
    /// Whether there are any.
    pub fn is_limited(self) -> bool {
        self.attempts.is_some() || self.bytes.is_some()
    }

    /// Whether another attempt of so many bytes fits.
    pub fn leave_room(self, used: Used, bytes: u64) -> bool {
        self.attempts.is_none_or(|most| used.attempts < most)
            && self.bytes.is_none_or(|most| used.bytes < most && used.bytes.saturating_add(bytes) <= most)
    }
}

/// Why a meter took no more.
#[derive(Debug, Default)]
pub struct Stopped {
    /// What is left of the day is not enough.
    pub used_up: AtomicBool,
    /// No whole day is.
    pub too_large: AtomicBool,
}

/// Counts an output as it is written, and takes no more than the day allows.
pub struct Metered<W> {
    writer: W,
    volume: Arc<Volume>,
    resource: Name,
    rule: usize,
    most: u64,
    own: u64,
    stopped: Arc<Stopped>,
}

impl<W> Metered<W> {
    /// Puts the meter before a writer; the flags tell later whether it took no more.
    pub fn new(
        writer: W,
        volume: Arc<Volume>,
        resource: Name,
        rule: usize,
        most: u64,
    ) -> (Self, Arc<Stopped>) {
        let stopped = Arc::new(Stopped::default());
        (Self { writer, volume, resource, rule, most, own: 0, stopped: Arc::clone(&stopped) }, stopped)
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Metered<W> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let size = bytes.len() as u64;
        if !this.volume.grow(&this.resource, this.rule, size, this.most) {
            let flag = match this.own.saturating_add(size) > this.most {
                true => &this.stopped.too_large,
                false => &this.stopped.used_up,
            };
            flag.store(true, Ordering::SeqCst);
            return Poll::Ready(Err(io::Error::other("the daily volume of the rule is used up")));
        }
        let written = Pin::new(&mut this.writer).poll_write(cx, bytes);
        let taken = match &written {
            Poll::Ready(Ok(taken)) => *taken as u64,
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        this.own += taken;
        // Asked again, the rest is counted again.
        this.volume.shrink(&this.resource, this.rule, size - taken);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    fn volume(path: &std::path::Path) -> Arc<Volume> {
        Arc::new(Volume::open(Arc::new(StateDir::open(path).unwrap())).unwrap())
    }

    fn name() -> Name {
        "compta".parse().unwrap()
    }

    #[tokio::test]
    async fn what_was_taken_is_taken_after_a_restart_too() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Daily { attempts: Some(3), bytes: Some(100) };
        let first = volume(dir.path());
        assert!(first.take(&name(), 1, 60, limits));
        assert!(!first.take(&name(), 1, 41, limits), "60 and 41 are more than 100");
        assert!(first.take(&name(), 2, 100, limits), "each rule counts for itself");
        first.flush().await.unwrap();
        drop(first);
        let again = volume(dir.path());
        assert_eq!(again.spent(&name())[&1], Used { attempts: 1, bytes: 60 });
        assert!(again.take(&name(), 1, 40, limits));
        assert!(!again.take(&name(), 1, 0, limits), "the bytes are used up");
        again.give_back(&name(), 1, 40);
        assert!(again.take(&name(), 1, 0, limits));
        assert!(again.take(&name(), 1, 0, limits));
        assert!(!again.take(&name(), 1, 0, limits), "three attempts a day");
    }

    #[tokio::test]
    async fn each_day_begins_at_zero_and_a_clock_set_back_counts_on() {
        let dir = tempfile::tempdir().unwrap();
        let volume = volume(dir.path());
        let limits = Daily { attempts: Some(1), bytes: None };
        assert!(volume.take(&name(), 1, 0, limits));
        volume.today.lock().unwrap().day = day(clock::now()).yesterday().unwrap();
        assert!(volume.take(&name(), 1, 0, limits));
        volume.today.lock().unwrap().day = day(clock::now()).tomorrow().unwrap();
        assert!(!volume.take(&name(), 1, 0, limits));
        assert!(until_tomorrow() <= Duration::from_secs(24 * 3600));
    }

    #[tokio::test]
    async fn outputs_that_come_together_share_what_the_day_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let volume = volume(dir.path());
        let meter = || Metered::new(Vec::new(), Arc::clone(&volume), name(), 1, 100);
        let ((mut one, one_stopped), (mut two, two_stopped)) = (meter(), meter());
        one.write_all(&[0; 50]).await.unwrap();
        two.write_all(&[0; 50]).await.unwrap();
        one.write_all(&[0; 1]).await.unwrap_err();
        let flags = |stopped: &Stopped| {
            (stopped.used_up.load(Ordering::SeqCst), stopped.too_large.load(Ordering::SeqCst))
        };
        assert_eq!((flags(&one_stopped), flags(&two_stopped)), ((true, false), (false, false)));
        two.write_all(&[0; 51]).await.unwrap_err();
        assert_eq!(flags(&two_stopped), (false, true), "101 bytes fit into no day");
        assert_eq!(volume.spent(&name())[&1].bytes, 100);
        volume.flush().await.unwrap();
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(text.contains("\"bytes\":100"), "{text}");
    }

    #[tokio::test]
    async fn those_that_wait_together_share_one_write() {
        let dir = tempfile::tempdir().unwrap();
        let volume = volume(dir.path());
        let limits = Daily { attempts: Some(1000), bytes: None };
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let volume = Arc::clone(&volume);
            all.spawn(async move {
                assert!(volume.take(&name(), 1, 1, limits));
                volume.flush().await.unwrap();
                let text = std::fs::read_to_string(volume.state.path().join(FILE)).unwrap();
                assert!(!text.is_empty());
            });
        }
        all.join_all().await;
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(text.contains("\"attempts\":50"), "{text}");
    }
}
