//! The in-house application: answers as the plan says and keeps a ledger of all it was told.

use crate::plan::{Job, Mood, Work};
use passerelle_tests::{App, Content, Reply, Request};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// One notification as it arrived.
#[derive(Debug, Clone)]
pub struct Told {
    /// The job that its path names.
    pub job: u64,
    /// Its `Idempotency-Key`.
    pub key: String,
    /// Whether the body was the job's payload.
    pub whole: bool,
    /// What was answered.
    pub status: u16,
    /// When it arrived.
    pub at: Instant,
    /// When it was answered.
    pub answered: Instant,
}

/// All notifications in the order of their arrival.
#[derive(Default)]
pub struct Ledger(Mutex<Vec<Told>>);

impl Ledger {
    /// Everything so far.
    ///
    /// # Panics
    /// If the application failed.
    pub fn all(&self) -> Vec<Told> {
        self.0.lock().expect("the ledger").clone()
    }

    fn take(&self, jobs: &BTreeMap<u64, (Mood, String)>, request: &Request) -> Reply {
        let number = request.uri.rsplit('/').next().and_then(|last| last.parse::<u64>().ok());
        let Some((job, (mood, sha256))) = number.and_then(|n| Some((n, jobs.get(&n)?))) else {
            return Reply::status(400);
        };
        let mut all = self.0.lock().expect("the ledger");
        let before = all.iter().filter(|told| told.job == job).count();
        let (status, delay) = match *mood {
            Mood::Ready => (200, Duration::ZERO),
            Mood::Later { status, times } if before < times as usize => (status, Duration::ZERO),
            Mood::Later { .. } => (200, Duration::ZERO),
            Mood::Slow(delay) => (200, delay),
            Mood::Refuses => (404, Duration::ZERO),
        };
        all.push(Told {
            job,
            key: request.header("idempotency-key").to_owned(),
            whole: Content::digest(&request.body) == *sha256,
            status,
            at: request.at,
            answered: request.at + delay,
        });
        let reply = Reply::status(status).after(delay);
        if matches!(status, 429 | 503) { reply.header("retry-after", "1") } else { reply }
    }
}

/// Starts the application for these jobs.
pub async fn start(jobs: &[Job]) -> (App, Arc<Ledger>) {
    let moods: BTreeMap<u64, (Mood, String)> = jobs
        .iter()
        .filter_map(|job| match job.work {
            Work::Notify(mood) => Some((job.number, (mood, job.sha256.clone()))),
            Work::Drop { .. } | Work::Conflict { .. } => None,
        })
        .collect();
    let ledger = Arc::new(Ledger::default());
    let of_app = Arc::clone(&ledger);
    let app = App::with(move |request, _| of_app.take(&moods, request)).await;
    (app, ledger)
}
