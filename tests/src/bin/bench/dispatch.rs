//! How long a submitted and synced job waits until its connector starts, on an idle machine.

use crate::{
    Effort, baseline,
    line::{Line, Sorted, Target},
    load::{Site, job},
};
use passerelle_tests::until;
use serde_json::json;
use std::time::{Duration, Instant};

/// Measures one job after the other: from the answer that says it is stored until the application is asked.
pub async fn measure(effort: Effort) -> Vec<Line> {
    let site = Site::remembering(1, 8).await;
    let sync = baseline::fdatasync(site.hub.data(), effort.repetitions);
    let (mut stored, mut posted) = (Vec::new(), Vec::new());
    // The first ones make connections and fill caches.
    for number in 0..effort.repetitions + 20 {
        let (order, before) = (number.to_string(), Instant::now());
        let id = site.hub.api.submit(&job(&order)).await;
        let answered = Instant::now();
        let path = format!("/orders/{order}/validated");
        let asked = until("the application to be asked", Duration::from_secs(30), async || {
            site.app.requests_after(number).into_iter().find(|request| request.uri == path).map(|r| r.at)
        })
        .await;
        site.hub.api.end_of(&id, Duration::from_secs(30)).await;
        if number >= 20 {
            // The application may be asked before the answer has been read: then the job did not wait at all.
            stored.push(asked.saturating_duration_since(answered));
            posted.push(asked.saturating_duration_since(before));
        }
    }
    let (stored, posted) = (Sorted::new(stored), Sorted::new(posted));
    vec![Line {
        name: "dispatch_p50_ms".to_owned(),
        value: stored.p50(),
        baseline: ("fdatasync_p50_ms".to_owned(), sync.p50()),
        target: Some((Target::AtMost(3.0 * sync.p50() + 1.0), "3 × fdatasync + 1 ms".to_owned())),
        more: json!({
            "p99_ms": stored.p99(), "from_submission_p50_ms": posted.p50(), "from_submission_p99_ms": posted.p99(),
        }),
    }]
}
