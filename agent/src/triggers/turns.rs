//! Which of a resource's files that the hub has is put away next. Pure: the time is passed in.
//!
//! - The triggers of a resource take turns, file by file.
//! - A file that cannot be put away waits by itself, twice as long each time; the others do not wait for it.
//! - Tries again that fail take at most a tenth of the time, however many files there are: a first try is no more work
//!   than reading the file was, but there is no end of tries again.
//! - When the target as a whole does not answer, nothing of the resource is tried for a while. The file that was tried
//!   then waits as well, so that each look at the target is another file: one that never comes to an end holds up none.
//! - A line holds what the journal holds, whose quota is the limit.

use passerelle_protocol::Name;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::Duration,
};
use tokio::time::Instant;

/// What failed is left alone for so long, twice as long each time.
pub const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));
/// After a try again that failed there is none for so many times as long as it took.
const REST: u32 = 9;
/// The longest wait that the target may ask for.
const MOST_WAIT: Duration = Duration::from_secs(600);

/// What a try that failed says of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// It answers: the file is what cannot be put away.
    Answers,
    /// It does not, and may have said how long to leave it alone.
    Fails(Option<Duration>),
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Put this one away.
    File(Name, i64),
    /// Nothing before this time, as far as is known.
    At(Instant),
    /// Nothing.
    Nothing,
}

/// Something that waits.
#[derive(Debug, Clone, Copy)]
struct Wait {
    until: Instant,
    length: Duration,
}

impl Wait {
    fn after(before: Option<Self>, now: Instant) -> Self {
        let length = before.map_or(AGAIN.0, |before| (before.length * 2).min(AGAIN.1));
        Self { until: now + length, length }
    }
}

/// The files of one trigger.
#[derive(Debug, Default)]
struct Line {
    /// Not tried yet.
    fresh: BTreeSet<i64>,
    /// Those that could not be put away.
    stuck: BTreeMap<i64, Wait>,
    /// The same, by the end of their wait.
    due: BTreeSet<(Instant, i64)>,
    /// Whether the last one was tried again: then a fresh one comes before the next of these.
    again: bool,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Turns {
    lines: BTreeMap<Name, Line>,
    /// Whose turn it was.
    last: Option<Name>,
    /// When something may be tried again.
    rest: Option<Instant>,
    /// The target fails.
    target: Option<Wait>,
}

impl Turns {
    /// These are to be put away; those that are known stay as they are.
    pub fn note(&mut self, trigger: &Name, files: impl IntoIterator<Item = i64>) {
        let line = self.lines.entry(trigger.clone()).or_default();
        line.fresh.extend(files.into_iter().filter(|file| !line.stuck.contains_key(file)));
    }

    /// What to do now.
    pub fn next(&mut self, now: Instant) -> Next {
        if let Some(wait) = self.target.filter(|wait| now < wait.until) {
            return Next::At(wait.until);
        }
        let resting = self.rest.is_some_and(|rest| now < rest);
        let after = self.last.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let others = self.lines.range::<Name, _>((after, Bound::Unbounded));
        let found = others.chain(&self.lines).find_map(|(trigger, line)| {
            let due = line.due.first().filter(|(until, _)| !resting && *until <= now);
            let (due, fresh) =
                (due.map(|(_, file)| (*file, true)), line.fresh.first().map(|file| (*file, false)));
            let (file, again) = if line.again { fresh.or(due) } else { due.or(fresh) }?;
            Some((trigger.clone(), file, again))
        });
        if let Some((trigger, file, again)) = found {
            if let Some(line) = self.lines.get_mut(&trigger) {
                line.again = again;
            }
            self.last = Some(trigger.clone());
            return Next::File(trigger, file);
        }
        let soonest = self.lines.values().filter_map(|line| line.due.first()).map(|(until, _)| *until).min();
        soonest.map_or(Next::Nothing, |soonest| Next::At(self.rest.map_or(soonest, |rest| rest.max(soonest))))
    }

    /// It could not be put away; trying took so long.
    pub fn failed(&mut self, trigger: &Name, file: i64, target: Target, took: Duration, now: Instant) {
        let line = self.lines.entry(trigger.clone()).or_default();
        line.fresh.remove(&file);
        let before = line.stuck.get(&file).copied();
        if let Some(before) = before {
            line.due.remove(&(before.until, file));
            self.rest = Some(now + (took * REST).min(AGAIN.1));
        }
        let wait = Wait::after(before, now);
        line.stuck.insert(file, wait);
        line.due.insert((wait.until, file));
        if let Target::Fails(asked) = target {
            // The same file once more says nothing new.
            let same = self.target.filter(|_| before.is_some());
            let length = same.map_or_else(|| Wait::after(self.target, now).length, |same| same.length);
            let asked = asked.unwrap_or_default().min(MOST_WAIT);
            self.target = Some(Wait { until: now + length.max(asked), length });
        }
    }

    /// It is put away. Whether that had failed before.
    pub fn done(&mut self, trigger: &Name, file: i64) -> bool {
        self.target = None;
        let Some(line) = self.lines.get_mut(trigger) else { return false };
        line.fresh.remove(&file);
        let before = line.stuck.remove(&file);
        if let Some(before) = before {
            line.due.remove(&(before.until, file));
        }
        if line.fresh.is_empty() && line.stuck.is_empty() {
            self.lines.remove(trigger);
        }
        before.is_some()
    }
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;
