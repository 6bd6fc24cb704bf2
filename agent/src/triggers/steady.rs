//! Whether a file is whole, judged by how it looked over time. Pure: the time is passed in.

use passerelle_config::Stable;
use passerelle_connectors::Seen;
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use tokio::time::Instant;

/// How long a file must have looked the same where the target tells times in whole seconds and no inodes: what replaces
/// it after that cannot pass for it.
const COARSE: Duration = Duration::from_secs(2);
/// A look counts if it comes this much of the rhythm after the one before: hints make more of them.
const COUNTS: (u32, u32) = (9, 10);

#[derive(Debug)]
struct Track {
    seen: Seen,
    since: Instant,
    looked: Instant,
    looks: u32,
}

/// What is to be done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It is whole.
    Whole,
    /// Not before this time.
    Wait(Instant),
    /// It must be looked at again at the next turn.
    LookAgain,
}

/// The files of one trigger that are waited for.
#[derive(Debug)]
pub struct Steady {
    rule: Stable,
    every: Duration,
    tracks: HashMap<String, Track>,
}

impl Steady {
    /// Judges by a rule; the trigger looks `every` so often.
    pub fn new(rule: Stable, every: Duration) -> Self {
        Self { rule, every, tracks: HashMap::new() }
    }

    /// Forgets files that are not waited for any more.
    pub fn keep(&mut self, files: &[Seen]) {
        if self.tracks.len() > files.len() {
            let there: HashSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
            self.tracks.retain(|path, _| there.contains(path.as_str()));
        }
    }

    /// Forgets one.
    pub fn forget(&mut self, path: &str) {
        self.tracks.remove(path);
    }

    /// Notes how a file looks.
    pub fn note(&mut self, file: &Seen, now: Instant) {
        let every = self.every * COUNTS.0 / COUNTS.1;
        match self.tracks.get_mut(&file.path) {
            Some(track) if track.seen == *file => {
                if now.saturating_duration_since(track.looked) >= every {
                    track.looks += 1;
                    track.looked = now;
                }
            }
            _ => {
                let track = Track { seen: file.clone(), since: now, looked: now, looks: 1 };
                self.tracks.insert(file.path.clone(), track);
            }
        }
    }

    /// Judges a file that was noted. Where a marker says it, `marked` tells whether it is there.
    pub fn judge(&self, file: &Seen, marked: bool, now: Instant) -> Judgement {
        let Some(track) = self.tracks.get(&file.path) else { return Judgement::LookAgain };
        let least = if file.inode.is_some() { Duration::ZERO } else { COARSE };
        let quiet = match &self.rule {
            Stable::Rename => least,
            Stable::Quiet(quiet) => quiet.0.max(least),
            Stable::Looks(looks) if track.looks >= *looks => least,
            Stable::DoneMarker(_) if marked => least,
            Stable::Looks(_) | Stable::DoneMarker(_) => return Judgement::LookAgain,
        };
        let due = track.since + quiet;
        if now >= due { Judgement::Whole } else { Judgement::Wait(due) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use passerelle_config::HumanDuration;

    fn file(size: u64, inode: Option<(u64, u64)>) -> Seen {
        Seen { path: "a.csv".to_owned(), size, modified: None, inode }
    }

    const EVERY: Duration = Duration::from_secs(30);

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn quiet_begins_anew_with_each_change() {
        let (start, here) = (Instant::now(), Some((1, 1)));
        let mut steady = Steady::new(Stable::Quiet(HumanDuration(Duration::from_secs(10))), EVERY);
        assert_eq!(steady.judge(&file(1, here), false, start), Judgement::LookAgain);
        steady.note(&file(1, here), start);
        assert_eq!(steady.judge(&file(1, here), false, at(start, 9)), Judgement::Wait(at(start, 10)));
        steady.note(&file(2, here), at(start, 9));
        assert_eq!(steady.judge(&file(2, here), false, at(start, 10)), Judgement::Wait(at(start, 19)));
        steady.note(&file(2, here), at(start, 18));
        assert_eq!(steady.judge(&file(2, here), false, at(start, 19)), Judgement::Whole);
        // Another file of the same name and size is another file.
        steady.note(&file(2, Some((1, 2))), at(start, 19));
        assert_eq!(
            steady.judge(&file(2, Some((1, 2))), false, at(start, 19)),
            Judgement::Wait(at(start, 29))
        );
    }

    #[test]
    fn looks_count_only_in_their_rhythm() {
        let (start, here) = (Instant::now(), Some((1, 1)));
        let mut steady = Steady::new(Stable::Looks(3), EVERY);
        for seconds in [0, 1, 2, 3, 30] {
            steady.note(&file(1, here), at(start, seconds));
        }
        assert_eq!(steady.judge(&file(1, here), false, at(start, 30)), Judgement::LookAgain);
        steady.note(&file(1, here), at(start, 59));
        assert_eq!(steady.judge(&file(1, here), false, at(start, 59)), Judgement::Whole);
    }

    #[test]
    fn renamed_and_marked_files_are_whole_at_once_where_times_are_fine() {
        let start = Instant::now();
        let mut steady = Steady::new(Stable::Rename, EVERY);
        steady.note(&file(1, Some((1, 1))), start);
        assert_eq!(steady.judge(&file(1, Some((1, 1))), false, start), Judgement::Whole);
        steady.note(&file(1, None), start);
        assert_eq!(steady.judge(&file(1, None), false, start), Judgement::Wait(start + COARSE));
        let mut marked = Steady::new(Stable::DoneMarker("{name}.done".to_owned()), EVERY);
        marked.note(&file(1, Some((1, 1))), start);
        assert_eq!(marked.judge(&file(1, Some((1, 1))), false, start), Judgement::LookAgain);
        assert_eq!(marked.judge(&file(1, Some((1, 1))), true, start), Judgement::Whole);
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let start = Instant::now();
        let mut steady = Steady::new(Stable::Looks(2), Duration::from_secs(1));
        steady.note(&file(1, None), start);
        steady.keep(&[]);
        assert_eq!(steady.tracks.len(), 0);
    }
}
