//! Which jobs are submitted: all of it follows from the seed, before anything runs.

use crate::options::Options;
use passerelle_tests::{Content, Random};
use serde_json::{Value, json};
use std::time::Duration;

/// The site of both agents.
pub const SITE: &str = "paris";
/// A file that lies in both folders from the start and must stay as it is.
pub const KEPT: &str = "kept.csv";
/// How many jobs share an order key, about.
const LINE: u64 = 20;
/// Payloads above this go up as a blob first.
const BLOB: usize = 600_000;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Drops a file under a name of its own, or under one that many try.
    Drop { resource: &'static str, on_conflict: &'static str, shared_name: bool },
    /// Drops a file where one lies that must not be replaced.
    Conflict { resource: &'static str },
    /// Tells the application, which answers as the mood says.
    Notify(Mood),
}

/// How the application takes a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Answers 200.
    Ready,
    /// Answers this status so often, then 200.
    Later { status: u16, times: u32 },
    /// Answers 200 after so long.
    Slow(Duration),
    /// Answers 404 always.
    Refuses,
}

/// The line that a job stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// Its number; the order key is made of it.
    pub number: u64,
    /// Whether a failed job holds it.
    pub hold: bool,
}

/// One job.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its number, which its payload begins with.
    pub number: u64,
    /// What it does.
    pub work: Work,
    /// The size of its payload.
    pub size: usize,
    /// The payload's digest.
    pub sha256: String,
    /// Its line, if it stands in one.
    pub line: Option<Line>,
    /// When it is submitted, from the start of the run.
    pub at: Duration,
    /// Whether somebody wants it cancelled as soon as it is submitted.
    pub cancelled: bool,
    priority: u64,
    seed: u64,
}

impl Job {
    /// Its resource.
    pub fn resource(&self) -> &'static str {
        match self.work {
            Work::Drop { resource, .. } | Work::Conflict { resource } => resource,
            Work::Notify(_) => "orders",
        }
    }

    /// Whether it is to end without any effect.
    pub fn is_refused(&self) -> bool {
        matches!(self.work, Work::Conflict { .. } | Work::Notify(Mood::Refuses))
    }

    /// Its payload: a line with its number, then letters that follow from seed and number.
    pub fn payload(&self) -> Vec<u8> {
        payload(self.seed, self.number, self.size)
    }

    /// Whether the payload goes up before the job.
    pub fn needs_blob(&self) -> bool {
        self.size > BLOB
    }

    /// The submission, with this payload.
    pub fn submission(&self, payload: &Value) -> Value {
        let params = match self.work {
            Work::Drop { on_conflict, shared_name, .. } => {
                let name = if shared_name {
                    format!("shared-{}.csv", self.number % 3)
                } else {
                    format!("{}.csv", self.number)
                };
                json!({"path": name, "on_conflict": on_conflict})
            }
            Work::Conflict { .. } => json!({"path": KEPT, "on_conflict": "fail"}),
            Work::Notify(_) => json!({"path": format!("orders/{}", self.number)}),
        };
        let operation = if matches!(self.work, Work::Notify(_)) { "notify" } else { "drop" };
        let mut job = json!({
            "site": SITE, "resource": self.resource(), "operation": operation, "params": params, "payload": payload,
            // More attempts than there are faults: each of them may cost one.
            "max_attempts": 100, "timeout_s": 30, "deadline_s": 1800,
        });
        if let Some(line) = self.line {
            job["order_key"] = json!(format!("line-{}", line.number));
            job["on_failure"] = json!(if line.hold { "hold" } else { "continue" });
        } else {
            job["priority"] = json!(self.priority);
        }
        job
    }
}

fn payload(seed: u64, number: u64, size: usize) -> Vec<u8> {
    let mut bytes = format!("{number}\n").into_bytes();
    let mut random = Random::new(seed ^ number.wrapping_mul(0x9e37_79b9));
    while bytes.len() < size {
        bytes.extend(random.number().to_le_bytes().map(|byte| b'a' + byte % 26));
    }
    bytes.truncate(size);
    bytes
}

/// All jobs of a run, in the order of their submission.
pub fn jobs(options: &Options) -> Vec<Job> {
    let mut random = Random::new(options.seed);
    let lines = (options.jobs * 3 / 10 / LINE).max(2);
    // The last jobs come while things still fail.
    let span = options.seconds * 1000 * 9 / 10;
    (0..options.jobs)
        .map(|number| {
            let line = (options.with("order") && random.below(10) < 3).then(|| {
                let number = random.below(lines);
                Line { number, hold: number.is_multiple_of(2) }
            });
            let work = work(&mut random, line);
            let size = size(&mut random, work);
            let at = Duration::from_millis(number * span / options.jobs);
            let cancelled = options.with("cancel") && line.is_none() && random.below(50) == 0;
            let priority = random.below(10);
            let sha256 = Content::digest(&payload(options.seed, number, size));
            Job { number, work, size, sha256, line, at, cancelled, priority, seed: options.seed }
        })
        .collect()
}

fn work(random: &mut Random, line: Option<Line>) -> Work {
    // All jobs of a line are of one resource: order holds for a key on a resource.
    let kind = line.map_or_else(|| random.below(3), |line| line.number % 3);
    let resource = match kind {
        0 => "sftp",
        1 => "depot",
        _ => return Work::Notify(mood(random, line)),
    };
    let drop = |on_conflict, shared_name| Work::Drop { resource, on_conflict, shared_name };
    match random.below(20) {
        // A job that fails would hold its line for good.
        0 if line.is_none_or(|line| !line.hold) => Work::Conflict { resource },
        0..=7 => drop("fail", false),
        8..=13 => drop("replace", false),
        14..=16 => drop("suffix", false),
        _ => drop("suffix", true),
    }
}

fn mood(random: &mut Random, line: Option<Line>) -> Mood {
    match random.below(20) {
        0 if line.is_none_or(|line| !line.hold) => Mood::Refuses,
        1 | 2 => Mood::Later { status: 503, times: 1 },
        3 => Mood::Later { status: 503, times: 2 },
        4 => Mood::Later { status: 429, times: 1 },
        5 | 6 => Mood::Slow(Duration::from_millis(200 + random.below(2000))),
        _ => Mood::Ready,
    }
}

fn size(random: &mut Random, work: Work) -> usize {
    let most = match (random.below(100), work) {
        (0, Work::Drop { .. }) => {
            return usize::try_from(2_000_000 + random.below(3_000_000)).unwrap_or(2_000_000);
        }
        (0..=5, _) => return usize::try_from(262_145 + random.below(500_000)).unwrap_or(300_000),
        (6..=20, _) => 200_000,
        _ => 4_000,
    };
    usize::try_from(16 + random.below(most)).unwrap_or(16)
}
