//! Jobs that go on being submitted while an operator pulls cables, and what their targets saw of them.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use passerelle_tests::{Api, PATIENCE, docker::unique, ended, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, VecDeque},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

/// Who submits at the same time.
const LANES: usize = 2;
/// How many pairs of jobs a lane has under way.
const DEPTH: usize = 4;
/// How often a lane submits a pair: a business day's traffic in a minute, not a benchmark.
const PACE: Duration = Duration::from_millis(150);
/// How long a job may take while everything around it fails.
const SETTLES: Duration = Duration::from_secs(240);
/// How long, in seconds, a target may be silent: one behind a cable that was pulled says nothing for ever.
const SILENT: u32 = 20;

/// Submits notifications to `orders-app`, and drops into `accounting` if there is such a resource.
pub struct Load<'a> {
    api: &'a Api,
    site: &'a str,
    drops: bool,
    stop: AtomicBool,
    ended: AtomicUsize,
}

/// The jobs that were submitted, all of which succeeded.
#[derive(Debug, Default)]
pub struct Done {
    /// The ids of the notifications, which are their idempotency keys.
    pub notified: BTreeSet<String>,
    /// The files that were dropped; each holds its own name.
    pub dropped: BTreeSet<String>,
    /// The agents that carried them out.
    pub agents: BTreeSet<String>,
}

impl<'a> Load<'a> {
    /// Prepares it.
    pub fn new(api: &'a Api, site: &'a str, drops: bool) -> Self {
        Self { api, site, drops, stop: AtomicBool::new(false), ended: AtomicUsize::new(0) }
    }

    /// Submits until [`Self::stop`], and waits for the end of all.
    pub async fn run(&self) -> Done {
        let lanes = (0..LANES).map(|lane| self.lane(lane));
        let mut done = Done::default();
        for jobs in futures_util::future::join_all(lanes).await {
            for (job, file) in jobs {
                let id = job["id"].as_str().unwrap().to_owned();
                assert_eq!(job["state"], "succeeded", "{job:#}");
                let attempts = job["attempts"].as_array().unwrap();
                done.agents.insert(attempts.last().unwrap()["agent"].as_str().unwrap().to_owned());
                match file {
                    Some(file) => done.dropped.insert(file),
                    None => done.notified.insert(id),
                };
            }
        }
        eprintln!("{} notifications and {} drops", done.notified.len(), done.dropped.len());
        done
    }

    /// No new ones.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Waits until some more jobs have ended.
    pub async fn goes_on(&self) {
        let before = self.ended.load(Ordering::SeqCst);
        until("jobs to end", SETTLES, async || {
            (self.ended.load(Ordering::SeqCst) >= before + 12).then_some(())
        })
        .await;
    }

    async fn lane(&self, lane: usize) -> Vec<(Value, Option<String>)> {
        let (mut under_way, mut done) = (VecDeque::new(), Vec::new());
        let mut pace = tokio::time::interval(PACE);
        for number in 0.. {
            pace.tick().await;
            if self.stop.load(Ordering::SeqCst) {
                break;
            }
            let order = format!("orders/{lane}-{number}/validated");
            under_way.push_back((self.submit(&self.notification(&order)).await, None));
            if self.drops {
                let file = format!("{lane}/{number}.txt");
                under_way.push_back((self.submit(&self.drop_of(&file)).await, Some(file)));
            }
            while under_way.len() > 2 * DEPTH {
                let (id, file) = under_way.pop_front().unwrap();
                done.push((self.end_of(&id).await, file));
                self.ended.fetch_add(1, Ordering::SeqCst);
            }
        }
        for (id, file) in under_way {
            done.push((self.end_of(&id).await, file));
        }
        done
    }

    fn notification(&self, path: &str) -> Value {
        json!({
            "site": self.site, "resource": "orders-app", "operation": "notify", "params": {"path": path},
            "payload": {"text": "{\"EventKind\":\"CommandeValidee\"}", "media_type": "application/json"},
            "max_attempts": 100, "deadline_s": 3600, "timeout_s": SILENT,
        })
    }

    /// A file that is there already fails the job: done twice, it would show.
    fn drop_of(&self, path: &str) -> Value {
        json!({
            "site": self.site, "resource": "accounting", "operation": "drop",
            "params": {"path": path, "create_dirs": true, "on_conflict": "fail"},
            "payload": {"text": path}, "max_attempts": 100, "deadline_s": 3600, "timeout_s": SILENT,
        })
    }

    /// Submits under a key until the hub answers: it may be away.
    async fn submit(&self, job: &Value) -> String {
        let key = unique("job");
        until("the hub to take a job", SETTLES, async || {
            let request =
                self.api.request(Method::POST, "/v1/jobs").header("idempotency-key", &key).json(job);
            let answer = self.api.try_send(request.timeout(PATIENCE)).await.ok()?;
            assert!([200, 201, 503].contains(&answer.status), "{} {}", answer.status, answer.body);
            answer.body["id"].as_str().map(str::to_owned)
        })
        .await
    }

    /// The hub may be frozen meanwhile.
    async fn end_of(&self, id: &str) -> Value {
        until(&format!("the end of job {id}"), SETTLES, async || {
            let request = self.api.request(Method::GET, &format!("/v1/jobs/{id}")).timeout(PATIENCE);
            let answer = self.api.try_send(request).await.ok()?;
            (answer.status == 200 && ended(&answer.body)).then_some(answer.body)
        })
        .await
    }
}
