//! What triggers are doing, for the status page, the metrics, and the sender: counts of the journal's rows in memory.

use crate::{
    clock,
    journal::events::{Counts, Key},
};
use jiff::Timestamp;
use passerelle_protocol::Name;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// How many files of a trigger are shown that it does not take, and how many that cannot be put away.
const MAX_SHOWN: usize = 20;

/// A file that is not taken as it is, or that cannot be put away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftFile {
    /// The file, relative to the resource's root.
    pub path: String,
    /// Why.
    pub why: String,
}

/// One trigger, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerStatus {
    /// The resource.
    pub resource: Name,
    /// Its name.
    pub trigger: Name,
    /// `pickup`, `watch`, `change`, or `notification` for a listener.
    pub kind: String,
    /// Whether it runs; if not, why.
    pub paused: Option<String>,
    /// What went wrong at the last look; nothing if it went well.
    pub problem: Option<String>,
    /// When it last looked.
    pub looked_at: Option<Timestamp>,
    /// Files taken since the process started.
    pub taken: u64,
    /// Files seen that are not taken yet.
    pub seen: u64,
    /// Files that wait for the hub.
    pub waiting: u64,
    /// Bytes of those.
    pub waiting_bytes: u64,
    /// Files that the hub has, and that are to be deleted or moved yet.
    pub unsettled: u64,
    /// Files that the hub refused for good; they stay where they are.
    pub refused: u64,
    /// The first files that cannot be put away, then the last ones that were left where they are; and why.
    pub left: VecDeque<LeftFile>,
}

impl TriggerStatus {
    /// A few lines about it.
    pub fn sentence(&self) -> String {
        let told =
            [passerelle_protocol::CHANGE, passerelle_protocol::NOTIFICATION].contains(&self.kind.as_str());
        let mut text = if told {
            format!(
                "{} {}/{}: {} taken, {} wait for the hub, {} refused by the hub\n",
                self.kind, self.resource, self.trigger, self.taken, self.waiting, self.refused
            )
        } else {
            format!(
                "{} {}/{}: {} taken, {} not yet, {} wait for the hub, {} to be put away, {} refused by the hub\n",
                self.kind,
                self.resource,
                self.trigger,
                self.taken,
                self.seen,
                self.waiting,
                self.unsettled,
                self.refused
            )
        };
        let more = [("takes nothing for now", &self.paused), ("problem", &self.problem)];
        for (what, why) in more {
            text.extend(why.as_ref().map(|why| format!("  {what}: {why}\n")));
        }
        text.extend(
            self.left.iter().map(|left| format!("  left where it is: {:?}: {}\n", left.path, left.why)),
        );
        text
    }
}

#[derive(Debug, Default)]
struct Entry {
    /// `None`: not configured any more, but something of it is under way.
    kind: Option<&'static str>,
    paused: Option<String>,
    problem: Option<String>,
    looked_at: Option<Timestamp>,
    taken: u64,
    seen: u64,
    counts: Counts,
    left: VecDeque<LeftFile>,
    /// Those that cannot be put away, by their place in the order.
    stuck: BTreeMap<i64, LeftFile>,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Board(Mutex<BTreeMap<Key, Entry>>);

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, key: &Key, change: impl FnOnce(&mut Entry)) {
        change(self.lock().entry(key.clone()).or_default());
    }

    /// What the journal held at the start.
    pub fn begin(&self, counts: BTreeMap<Key, Counts>) {
        let mut entries = self.lock();
        for (key, counts) in counts {
            entries.entry(key).or_default().counts = counts;
        }
    }

    /// These are configured; of the others only what is under way is shown.
    pub fn configured(&self, kinds: &BTreeMap<Key, &'static str>) {
        let mut entries = self.lock();
        for entry in entries.values_mut() {
            entry.kind = None;
        }
        for (key, kind) in kinds {
            entries.entry(key.clone()).or_default().kind = Some(kind);
        }
        entries.retain(|_, entry| entry.kind.is_some() || entry.counts != Counts::default());
    }

    /// It does not run, and why; or it does. `true` if that is new.
    pub fn paused(&self, key: &Key, why: Option<String>) -> bool {
        let mut entries = self.lock();
        let entry = entries.entry(key.clone()).or_default();
        let new = entry.paused != why;
        entry.paused = why;
        new
    }

    /// It has looked. `true` if the problem is new.
    pub fn looked(&self, key: &Key, seen: Option<u64>, problem: Option<String>) -> bool {
        let mut entries = self.lock();
        let entry = entries.entry(key.clone()).or_default();
        entry.looked_at = Some(clock::now());
        entry.seen = seen.unwrap_or(entry.seen);
        let new = entry.problem != problem;
        entry.problem = problem;
        new
    }

    /// A file was left where it is.
    pub fn left(&self, key: &Key, path: &str, why: &str) {
        self.change(key, |entry| {
            entry.left.retain(|left| left.path != path);
            entry.left.truncate(MAX_SHOWN - 1);
            entry.left.push_front(LeftFile { path: path.to_owned(), why: why.to_owned() });
        });
    }

    /// Of the files that were left, these alone are still as they were.
    pub fn keep_left(&self, key: &Key, is_left: impl Fn(&str) -> bool) {
        self.change(key, |entry| entry.left.retain(|left| is_left(&left.path)));
    }

    /// A file that the hub has cannot be put away yet. `true` if it is shown, and that or the reason is new.
    pub fn stuck(&self, key: &Key, place: i64, path: &str, why: &str) -> bool {
        let mut entries = self.lock();
        let stuck = &mut entries.entry(key.clone()).or_default().stuck;
        let file = LeftFile { path: path.to_owned(), why: why.to_owned() };
        let new = stuck.get(&place) != Some(&file);
        stuck.insert(place, file);
        if stuck.len() > MAX_SHOWN {
            stuck.pop_last();
        }
        new && stuck.contains_key(&place)
    }

    /// A file was taken.
    pub fn taken(&self, key: &Key, size: u64) {
        self.change(key, |entry| {
            entry.taken += 1;
            entry.counts.waiting += 1;
            entry.counts.bytes += size;
            entry.seen = entry.seen.saturating_sub(1);
        });
    }

    /// The hub answered for a file.
    pub fn answered(&self, key: &Key, size: u64, follows: bool, refused: bool) {
        self.change(key, |entry| {
            entry.counts.waiting = entry.counts.waiting.saturating_sub(1);
            entry.counts.bytes = entry.counts.bytes.saturating_sub(size);
            entry.counts.dead += u64::from(refused);
            entry.counts.unsettled += u64::from(follows && !refused);
        });
    }

    /// What was to follow for the file at this place is done.
    pub fn settled(&self, key: &Key, place: i64) {
        self.change(key, |entry| {
            entry.counts.unsettled = entry.counts.unsettled.saturating_sub(1);
            entry.stuck.remove(&place);
        });
    }

    /// The triggers that have files to be put away.
    pub fn unsettled(&self) -> Vec<Key> {
        let entries = self.lock();
        entries.iter().filter(|(_, entry)| entry.counts.unsettled > 0).map(|(key, _)| key.clone()).collect()
    }

    /// The triggers of which something waits for the hub.
    pub fn waiting(&self) -> Vec<Key> {
        let entries = self.lock();
        entries.iter().filter(|(_, entry)| entry.counts.waiting > 0).map(|(key, _)| key.clone()).collect()
    }

    /// Whether something of it waits for the hub.
    pub fn has_waiting(&self, key: &Key) -> bool {
        self.lock().get(key).is_some_and(|entry| entry.counts.waiting > 0)
    }

    /// All triggers together.
    pub fn total(&self) -> Counts {
        self.lock().values().fold(Counts::default(), |sum, Entry { counts, .. }| Counts {
            waiting: sum.waiting + counts.waiting,
            unsettled: sum.unsettled + counts.unsettled,
            dead: sum.dead + counts.dead,
            bytes: sum.bytes + counts.bytes,
        })
    }

    /// Everything, as it is shown.
    pub fn snapshot(&self) -> Vec<TriggerStatus> {
        let entries = self.lock();
        let shown = |(key, entry): (&Key, &Entry)| TriggerStatus {
            resource: key.resource.clone(),
            trigger: key.trigger.clone(),
            kind: entry.kind.unwrap_or("removed").to_owned(),
            paused: entry.paused.clone().filter(|_| entry.kind.is_some()),
            problem: entry.problem.clone(),
            looked_at: entry.looked_at,
            taken: entry.taken,
            seen: entry.seen,
            waiting: entry.counts.waiting,
            waiting_bytes: entry.counts.bytes,
            unsettled: entry.counts.unsettled,
            refused: entry.counts.dead,
            left: entry.stuck.values().chain(&entry.left).cloned().collect(),
        };
        entries.iter().map(shown).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(trigger: &str) -> Key {
        Key { resource: "compta".parse().unwrap(), trigger: trigger.parse().unwrap() }
    }

    fn shown(board: &Board) -> Vec<String> {
        board.snapshot().iter().flat_map(|one| one.left.iter().map(|left| left.path.clone())).collect()
    }

    #[test]
    fn a_file_that_cannot_be_put_away_is_shown_until_it_is() {
        let board = Board::default();
        board.answered(&key("in"), 1, true, false);
        assert_eq!(board.unsettled(), [key("in")]);
        board.left(&key("in"), "in/large.csv", "too large");
        assert!(board.stuck(&key("in"), 7, "in/a.csv", "refused"), "it is new");
        assert!(!board.stuck(&key("in"), 7, "in/a.csv", "refused"), "and told of once");
        assert!(board.stuck(&key("in"), 7, "in/a.csv", "read-only"), "for each reason");
        assert_eq!(shown(&board), ["in/a.csv", "in/large.csv"]);
        board.settled(&key("in"), 7);
        assert_eq!(shown(&board), ["in/large.csv"]);
        board.keep_left(&key("in"), |_| false);
        assert!(shown(&board).is_empty() && board.unsettled().is_empty());
    }

    #[test]
    fn of_many_that_cannot_be_put_away_the_first_are_shown() {
        let board = Board::default();
        let told =
            (0..2000).filter(|n| board.stuck(&key("in"), 1999 - n, &(1999 - n).to_string(), "refused"));
        assert_eq!(told.count(), 2000, "each was the first when it came");
        assert_eq!(shown(&board), (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
        assert!(!board.stuck(&key("in"), 20, "20", "refused"), "what is not shown is not told of");
        assert!(!board.stuck(&key("in"), 19, "19", "refused"));
    }
}
