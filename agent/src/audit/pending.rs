//! Rows that wait for the journal's next transaction: those that need no sync of their own.
//!
//! A peer can make the agent refuse offers as fast as it can send them. Of each kind and code the first few within a
//! window are written as they are; the rest is counted and told in one row. Past its bound the queue takes nothing more,
//! and the next row says how many found no room.

use super::{Entry, Kind};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How many rows may wait: what a burst of a thousand jobs makes, four times.
const MAX_WAITING: usize = 8192;
/// So many that wait are worth a transaction of their own.
const MANY: usize = 1024;
/// How long like is counted together with like.
const WINDOW: Duration = Duration::from_secs(10);
/// How many of a kind and code are written as they are within a window.
const WRITTEN: u32 = 20;
/// How many kinds and codes are told apart within a window; codes come from a closed list, so this is never reached.
const MAX_GROUPS: usize = 64;

#[derive(Debug, Default)]
struct Group {
    written: u32,
    more: u64,
}

#[derive(Debug, Default)]
struct Inner {
    rows: VecDeque<Entry>,
    lost: u64,
    since: Option<Instant>,
    groups: BTreeMap<(Kind, Option<String>), Group>,
}

impl Inner {
    fn push(&mut self, entry: Entry) {
        if self.rows.len() < MAX_WAITING {
            self.rows.push_back(entry);
        } else {
            self.lost += 1;
        }
    }

    /// Ends the window if it is over, or anyway: tells what was only counted.
    fn close(&mut self, now: Option<Instant>) {
        let over = match (self.since, now) {
            (Some(since), Some(now)) => now.saturating_duration_since(since) >= WINDOW,
            (since, None) => since.is_some(),
            (None, Some(_)) => false,
        };
        if !over {
            return;
        }
        self.since = None;
        for ((kind, code), group) in std::mem::take(&mut self.groups) {
            if group.more > 0 {
                let row = Entry { code, count: Some(group.more), ..Entry::new(kind) };
                self.push(row.detail(&format!("{} more like those before", group.more)));
            }
        }
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Pending(Mutex<Inner>);

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a row written.
    pub fn note(&self, entry: Entry) {
        self.lock().push(entry);
    }

    /// Has a row written; whether by now many wait.
    pub fn note_and_count(&self, entry: Entry) -> bool {
        let mut inner = self.lock();
        inner.push(entry);
        inner.rows.len() >= MANY
    }

    /// Whether hardly another row finds room.
    pub fn is_almost_full(&self) -> bool {
        self.lock().rows.len() >= MAX_WAITING / 4 * 3
    }

    /// Has a row written that others can cause in any number.
    pub fn refused(&self, entry: Entry, now: Instant) {
        let mut inner = self.lock();
        inner.close(Some(now));
        inner.since.get_or_insert(now);
        let key = (entry.kind, entry.code.clone());
        if inner.groups.len() >= MAX_GROUPS && !inner.groups.contains_key(&key) {
            inner.lost += 1;
            return;
        }
        let group = inner.groups.entry(key).or_default();
        if group.written < WRITTEN {
            group.written += 1;
            inner.push(entry);
        } else {
            group.more += 1;
        }
    }

    /// Whether something is to be written.
    pub fn is_waiting(&self, now: Instant) -> bool {
        let mut inner = self.lock();
        inner.close(Some(now));
        !inner.rows.is_empty() || inner.lost > 0
    }

    /// Takes what waits, in order. With `all` counted ones too, though their window is not over.
    pub fn take(&self, all: bool) -> Vec<Entry> {
        let mut inner = self.lock();
        inner.close((!all).then(Instant::now));
        let mut rows: Vec<Entry> = std::mem::take(&mut inner.rows).into();
        if inner.lost > 0 {
            let row = Entry { count: Some(inner.lost), ..Entry::new(Kind::RowsLost) };
            rows.push(row.detail("rows found no room while the journal could not be written fast enough"));
            inner.lost = 0;
        }
        rows
    }

    /// Puts back what could not be written.
    pub fn put_back(&self, rows: Vec<Entry>) {
        let mut inner = self.lock();
        for entry in rows.into_iter().rev() {
            match entry.kind {
                Kind::RowsLost => inner.lost += entry.count.unwrap_or(0),
                _ if inner.rows.len() < MAX_WAITING => inner.rows.push_front(entry),
                _ => inner.lost += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use passerelle_protocol::Code;

    fn refusal(code: Code) -> Entry {
        Entry::new(Kind::OfferRefused).code(code)
    }

    #[test]
    fn a_flood_is_counted_and_not_repeated() {
        let (pending, start) = (Pending::default(), Instant::now());
        for _ in 0..10_000 {
            pending.refused(refusal(Code::SignatureInvalid), start);
        }
        pending.refused(refusal(Code::Replayed), start);
        assert_eq!(pending.take(false).len(), WRITTEN as usize + 1);
        assert!(!pending.is_waiting(start + WINDOW / 2));
        assert!(pending.is_waiting(start + WINDOW));
        let rows = pending.take(false);
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((row.count, row.code.as_deref()), (Some(10_000 - 20), Some("signature_invalid")));
        assert!(!pending.is_waiting(start + WINDOW * 3));
        // At the end nothing waits for its window.
        for _ in 0..50 {
            pending.refused(refusal(Code::Replayed), start);
        }
        assert_eq!(pending.take(true).last().unwrap().count, Some(30));
    }

    #[test]
    fn what_finds_no_room_is_counted_even_when_the_journal_fails() {
        let pending = Pending::default();
        for _ in 0..MAX_WAITING + 7 {
            pending.note(Entry::new(Kind::Started));
        }
        let rows = pending.take(false);
        assert_eq!((rows.len(), rows.last().unwrap().count), (MAX_WAITING + 1, Some(7)));
        // The transaction failed, and meanwhile more came.
        pending.note(Entry::new(Kind::Succeeded));
        pending.put_back(rows);
        let rows = pending.take(false);
        assert_eq!((rows.len(), rows.last().unwrap().count), (MAX_WAITING + 1, Some(8)));
        assert_eq!(rows[rows.len() - 2].kind, Kind::Succeeded);
    }
}
