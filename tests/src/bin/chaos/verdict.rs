//! Whether every promise was kept, seen from the targets.

use crate::{
    application::Told,
    consumer::Taken,
    plan::{Job, Line, Work},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

/// What the targets and the hub know in the end.
pub struct Evidence<'a> {
    /// What was asked for.
    pub jobs: &'a [Job],
    /// The hub's view of each.
    pub ends: &'a BTreeMap<u64, Value>,
    /// The files, folder by folder in the order in which they came.
    pub taken: &'a [Taken],
    /// The notifications.
    pub told: &'a [Told],
}

/// Broken promises by kind, each with what is wrong with which job; and figures.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Broken promises.
    pub broken: BTreeMap<&'static str, Vec<(u64, String)>>,
    /// How many jobs ended in each state.
    pub states: BTreeMap<String, u64>,
    /// Jobs whose effect the product says it does not know, and what the target saw.
    pub unknown: Vec<(u64, String)>,
    /// Attempts in all.
    pub attempts: u64,
    /// Notifications that came more than once.
    pub repeats: u64,
    /// Jobs that stand behind one that holds their line.
    pub held: u64,
}

/// The promises, so that the summary names each, kept or not.
pub const PROMISES: [&str; 8] =
    ["lost", "twice", "partial", "disorder", "keys", "unsettled", "inconsistent", "leftover"];

impl Verdict {
    /// Writes down a broken promise.
    pub fn breaks(&mut self, promise: &'static str, job: u64, what: impl Into<String>) {
        self.broken.entry(promise).or_default().push((job, what.into()));
    }

    /// Judges.
    pub fn of(evidence: &Evidence<'_>) -> Self {
        let mut verdict = Self::default();
        verdict.files(evidence);
        verdict.notifications(evidence);
        for job in evidence.jobs {
            verdict.job(evidence, job);
        }
        verdict.order(evidence);
        verdict
    }

    /// Each file whole, of a job that wanted it, and once.
    fn files(&mut self, evidence: &Evidence<'_>) {
        let mut seen = BTreeSet::new();
        for taken in evidence.taken {
            let number = taken.job.unwrap_or(u64::MAX);
            let job = evidence.jobs.get(usize::try_from(number).unwrap_or(usize::MAX));
            let what = format!("{} of {} bytes on {}", taken.name, taken.size, taken.resource);
            match job {
                Some(job) if job.sha256 == taken.sha256 && job.resource() == taken.resource => {
                    if !seen.insert(number) {
                        self.breaks("twice", number, what);
                    }
                }
                _ => self.breaks("partial", number, what),
            }
        }
    }

    /// Each notification whole and always with the same key, that of its job.
    fn notifications(&mut self, evidence: &Evidence<'_>) {
        let mut seen = BTreeSet::new();
        for told in evidence.told {
            let id = evidence.ends.get(&told.job).map_or("", |end| end["id"].as_str().unwrap_or_default());
            if told.key != id {
                self.breaks("keys", told.job, format!("key {:?} for job {id:?}", told.key));
            }
            if !told.whole {
                self.breaks("partial", told.job, "a notification with another body");
            }
            if !seen.insert(told.job) {
                self.repeats += 1;
            }
        }
    }

    /// What the hub says of a job is what its target saw.
    fn job(&mut self, evidence: &Evidence<'_>, job: &Job) {
        let Some(end) = evidence.ends.get(&job.number).filter(|end| !end.is_null()) else {
            return self.breaks("lost", job.number, "the hub does not know it any more");
        };
        let state = end["state"].as_str().unwrap_or("?");
        *self.states.entry(state.to_owned()).or_default() += 1;
        self.attempts += end["attempts"].as_array().map_or(0, Vec::len) as u64;
        let happened = match job.work {
            Work::Notify(_) => evidence.told.iter().any(|t| t.job == job.number && t.status == 200),
            Work::Drop { .. } | Work::Conflict { .. } => {
                evidence.taken.iter().any(|t| t.job == Some(job.number))
            }
        };
        let tried = happened || evidence.told.iter().any(|told| told.job == job.number);
        let seen =
            format!("{state} ({}); the target saw {}", end["error"], if happened { "it" } else { "nothing" });
        match state {
            "succeeded" if job.is_refused() => self.breaks("inconsistent", job.number, seen),
            "succeeded" if happened => {}
            "succeeded" => self.breaks("lost", job.number, seen),
            "failed" if job.is_refused() && !happened => {}
            "cancelled" if job.cancelled => {
                let effect = end["error"]["effect"].as_str().unwrap_or("?");
                if happened && effect != "unknown" || !happened && tried && effect == "applied" {
                    self.breaks("inconsistent", job.number, seen);
                }
            }
            // A notification repeats under its key: nothing about it needs to stay unknown, unless it was cancelled.
            "unknown" if matches!(job.work, Work::Notify(_)) && !job.cancelled => {
                self.breaks("inconsistent", job.number, seen);
            }
            "unknown" => self.unknown.push((job.number, seen)),
            "failed" | "denied" | "expired" | "cancelled" => self.breaks("lost", job.number, seen),
            _ if self.stands_behind_a_held_job(evidence, job) => self.held += 1,
            _ => self.breaks("unsettled", job.number, seen),
        }
    }

    /// A job that says `hold` and ended `unknown` holds its line until somebody resolves it: that is the contract.
    fn stands_behind_a_held_job(&self, evidence: &Evidence<'_>, job: &Job) -> bool {
        job.line.is_some_and(|line| {
            evidence.jobs[..usize::try_from(job.number).unwrap_or_default()].iter().any(|earlier| {
                earlier.line == Some(line)
                    && line.hold
                    && evidence.ends.get(&earlier.number).is_some_and(|end| end["state"] == "unknown")
            })
        })
    }

    /// In each line the first deliveries come in the order of submission, and none before the one ahead was answered.
    fn order(&mut self, evidence: &Evidence<'_>) {
        let mut lines: BTreeMap<(Line, &str), Vec<&Job>> = BTreeMap::new();
        for job in evidence.jobs {
            if let Some(line) = job.line {
                lines.entry((line, job.resource())).or_default().push(job);
            }
        }
        for jobs in lines.values() {
            let mut last: Option<(u64, Instant)> = None;
            for job in jobs {
                let Some((first, done)) = delivery(evidence, job) else { continue };
                if let Some((before, over)) = last
                    && first < over
                {
                    let early = over.duration_since(first);
                    self.breaks(
                        "disorder",
                        job.number,
                        format!("{early:?} before job {before} was delivered"),
                    );
                }
                last = Some((job.number, done));
            }
        }
    }

    /// Whether every promise was kept.
    pub fn kept(&self) -> bool {
        self.broken.is_empty()
    }

    /// The figures for the summary.
    pub fn figures(&self) -> Value {
        let mut figures = json!({
            "states": self.states, "unknown": self.unknown.len(), "held": self.held,
            "attempts": self.attempts, "notifications_repeated": self.repeats,
        });
        for promise in PROMISES {
            figures[promise] = json!(self.broken.get(promise).map_or(0, Vec::len));
        }
        figures
    }
}

/// When a job's effect first reached its target, and when the target had it for good.
fn delivery(evidence: &Evidence<'_>, job: &Job) -> Option<(Instant, Instant)> {
    if matches!(job.work, Work::Notify(_)) {
        let mut told = evidence.told.iter().filter(|told| told.job == job.number);
        let first = told.next()?;
        let last = std::iter::once(first).chain(told).find(|told| matches!(told.status, 200 | 404));
        Some((first.at, last.map_or(first.answered, |told| told.answered)))
    } else {
        let taken = evidence.taken.iter().find(|taken| taken.job == Some(job.number))?;
        Some((taken.at, taken.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{options::Options, plan};
    use std::time::Duration;

    /// A run of two lines of drops and notifications in which everything went well.
    #[derive(Clone)]
    struct Story {
        jobs: Vec<Job>,
        ends: BTreeMap<u64, Value>,
        taken: Vec<Taken>,
        told: Vec<Told>,
    }

    impl Story {
        fn good() -> Self {
            let options = ["--jobs", "200", "--seed", "7"].map(str::to_owned);
            let options = Options::read(options.into_iter()).unwrap().unwrap();
            let jobs = plan::jobs(&options);
            let start = Instant::now();
            let mut story =
                Self { jobs: Vec::new(), ends: BTreeMap::new(), taken: Vec::new(), told: Vec::new() };
            for job in &jobs {
                let (number, at) = (job.number, start + Duration::from_secs(job.number));
                let state = if job.is_refused() { "failed" } else { "succeeded" };
                let id = format!("id-{number}");
                story.ends.insert(number, json!({"id": id, "state": state, "attempts": [{}]}));
                if matches!(job.work, Work::Notify(_)) {
                    let status = if job.is_refused() { 404 } else { 200 };
                    story.told.push(Told { job: number, key: id, whole: true, status, at, answered: at });
                } else if !job.is_refused() {
                    let name = format!("{number}.csv");
                    let sha256 = job.sha256.clone();
                    let size = job.size as u64;
                    story.taken.push(Taken {
                        resource: job.resource(),
                        name,
                        job: Some(number),
                        sha256,
                        size,
                        at,
                    });
                }
            }
            story.jobs = jobs;
            story
        }

        fn broken(&self) -> Vec<&'static str> {
            let Self { jobs, ends, taken, told } = self;
            Verdict::of(&Evidence { jobs, ends, taken, told }).broken.into_keys().collect()
        }

        /// Two files of one line, by their places in `taken`.
        fn neighbours(&self) -> (usize, usize) {
            let line = |n: usize| {
                let job = &self.jobs[usize::try_from(self.taken[n].job.unwrap()).unwrap()];
                job.line.map(|line| (line, job.resource()))
            };
            let all = 0..self.taken.len();
            all.clone()
                .flat_map(|one| all.clone().map(move |other| (one, other)))
                .find(|&(one, other)| one < other && line(one).is_some() && line(one) == line(other))
                .unwrap()
        }
    }

    #[test]
    fn a_run_in_which_all_went_well_keeps_every_promise() {
        assert_eq!(Story::good().broken(), Vec::<&str>::new());
    }

    #[test]
    fn every_broken_promise_is_seen() {
        let good = Story::good();
        let check = |expected: &[&str], spoil: &dyn Fn(&mut Story)| {
            let mut story = good.clone();
            spoil(&mut story);
            assert_eq!(story.broken(), expected);
        };
        check(&["lost"], &|story| drop(story.taken.pop()));
        check(&["lost"], &|story| story.told.retain(|told| told.status != 200 || told.job % 2 == 0));
        check(&["lost"], &|story| drop(story.ends.insert(0, Value::Null)));
        check(&["lost"], &|story| {
            let done = story.taken[0].job.unwrap();
            story.ends.insert(done, json!({"id": "x", "state": "failed"}));
        });
        check(&["twice"], &|story| story.taken.push(story.taken[0].clone()));
        check(&["lost", "partial"], &|story| {
            story.taken[0].sha256.clear();
            story.taken[0].job = None;
        });
        check(&["disorder"], &|story| {
            let (one, other) = story.neighbours();
            let at = story.taken[one].at;
            story.taken[one].at = story.taken[other].at;
            story.taken[other].at = at;
        });
        check(&["keys"], &|story| "another".clone_into(&mut story.told[0].key));
        check(&["partial"], &|story| story.told[0].whole = false);
        check(&["unsettled"], &|story| {
            let done = story.taken[0].job.unwrap();
            story.ends.insert(done, json!({"id": "x", "state": "running"}));
        });
        check(&["inconsistent"], &|story| {
            let refused = story.jobs.iter().find(|job| matches!(job.work, Work::Conflict { .. })).unwrap();
            story.ends.insert(refused.number, json!({"id": "x", "state": "succeeded"}));
        });
    }

    #[test]
    fn what_is_said_to_be_unknown_is_counted_and_no_promise_broken() {
        let mut story = Story::good();
        let gone = story.taken.remove(0).job.unwrap();
        story.ends.insert(gone, json!({"id": "x", "state": "unknown", "error": {"effect": "unknown"}}));
        assert_eq!(story.broken(), Vec::<&str>::new());
        let Story { jobs, ends, taken, told } = &story;
        assert_eq!(Verdict::of(&Evidence { jobs, ends, taken, told }).unknown.len(), 1);
    }
}
