//! The clients: submit each job at its time, again and again under its key until the hub has taken it.

use crate::plan::Job;
use passerelle_tests::{Api, Content};
use reqwest::Method;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// How many clients there are. All jobs of a line come from one of them, one after the other.
const CLIENTS: u64 = 16;
/// How long a client waits before it tries again.
const AGAIN: Duration = Duration::from_millis(100);

/// Submits all jobs; gives the id of each by its number.
///
/// # Panics
/// If the hub refuses a job.
pub async fn submit(api: &Api, jobs: &[Job], start: Instant) -> BTreeMap<u64, String> {
    let clients = (0..CLIENTS).map(|client| {
        let of_client = jobs
            .iter()
            .filter(move |job| job.line.map_or(job.number, |line| line.number) % CLIENTS == client);
        async move {
            let mut ids = Vec::new();
            for job in of_client {
                sleep(job.at.saturating_sub(start.elapsed())).await;
                ids.push((job.number, submit_one(api, job).await));
            }
            ids
        }
    });
    futures_util::future::join_all(clients).await.into_iter().flatten().collect()
}

async fn submit_one(api: &Api, job: &Job) -> String {
    let bytes = job.payload();
    let payload = if job.needs_blob() {
        json!({"blob": upload(api, &bytes).await})
    } else {
        json!({"text": String::from_utf8_lossy(&bytes)})
    };
    let body = job.submission(&payload);
    let taken = insist(api, || {
        // The key lets the hub tell a repetition, whose first answer was lost, from a second job.
        api.request(Method::POST, "/v1/jobs")
            .header("idempotency-key", format!("job-{}", job.number))
            .json(&body)
    })
    .await;
    let id = taken["id"].as_str().expect("a job id").to_owned();
    if job.cancelled {
        let path = format!("/v1/jobs/{id}/cancel");
        // Too late is an answer too; and when the hub is away it is not cancelled.
        let _whatever_comes = api.try_send(api.request(Method::POST, &path).json(&json!({}))).await;
    }
    id
}

async fn upload(api: &Api, bytes: &[u8]) -> String {
    let digest = Content::digest(bytes);
    let blob = insist(api, || api.request(Method::POST, "/v1/blobs").body(bytes.to_vec())).await;
    assert_eq!(blob["sha256"], json!(digest), "the hub stored another content");
    blob["id"].as_str().expect("a blob id").to_owned()
}

/// Sends a request until it is answered with success.
async fn insist(api: &Api, request: impl Fn() -> reqwest::RequestBuilder) -> Value {
    loop {
        match api.try_send(request().timeout(Duration::from_secs(10))).await {
            Ok(answer) if matches!(answer.status, 200 | 201) => return answer.body,
            // Busy or being restarted.
            Ok(answer) if answer.status >= 500 || answer.status == 429 => sleep(AGAIN).await,
            Ok(answer) => panic!("the hub answered {}: {}", answer.status, answer.body),
            Err(_away) => sleep(AGAIN).await,
        }
    }
}

/// Asks for all jobs until each has ended or the time is over; gives them by number, and how long it took.
pub async fn settle(
    api: &Api,
    ids: &BTreeMap<u64, String>,
    within: Duration,
) -> (BTreeMap<u64, Value>, Duration) {
    let start = Instant::now();
    let mut jobs: BTreeMap<u64, Value> = BTreeMap::new();
    loop {
        for (number, id) in ids {
            if jobs.get(number).is_some_and(passerelle_tests::ended) {
                continue;
            }
            if let Ok(answer) = api.try_send(api.request(Method::GET, &format!("/v1/jobs/{id}"))).await {
                let job = if answer.status == 200 { answer.body } else { Value::Null };
                jobs.insert(*number, job);
            }
        }
        let waiting = ids.keys().filter(|n| !jobs.get(n).is_some_and(passerelle_tests::ended)).count();
        if waiting == 0 || start.elapsed() > within {
            return (jobs, start.elapsed());
        }
        sleep(Duration::from_millis(250)).await;
    }
}
