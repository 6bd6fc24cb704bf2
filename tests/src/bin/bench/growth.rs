//! How large the hub's store grows, and whether a job takes longer, with many finished jobs in it.

use crate::{
    Effort,
    line::{Line, Target},
    load::{Site, many},
};
use serde_json::json;
use std::{fs, path::Path};

/// The clients that fill the store.
const CLIENTS: usize = 64;

/// Fills the store through the API and measures at each level.
pub async fn measure(effort: Effort) -> Vec<Line> {
    let levels: &[usize] = match (effort.quick, effort.long) {
        (true, _) => &[400, 2_000],
        (false, false) => &[10_000, 100_000],
        (false, true) => &[10_000, 100_000, 1_000_000],
    };
    let site = Site::start(1, 2 * CLIENTS).await;
    let empty = store_size(site.hub.data());
    let (mut lines, mut finished, mut first) = (Vec::new(), 0, None);
    for &level in levels {
        let fill = (level - finished).next_multiple_of(CLIENTS);
        site.rate(CLIENTS, fill).await;
        finished += fill;
        let size = store_size(site.hub.data());
        let (alone, _) = many(1, effort.repetitions / 2, &|| site.submit_and_wait()).await;
        finished += effort.repetitions / 2;
        let base = *first.get_or_insert(alone.p99());
        lines.push(Line {
            name: format!("notify_p99_ms_at_{level}_finished_jobs"),
            value: alone.p99(),
            baseline: (format!("the_same_at_{}", levels[0]), base),
            target: (level != levels[0])
                .then(|| (Target::AtMost(1.5 * base), format!("1.5 × that at {}", levels[0]))),
            more: json!({
                "p50_ms": alone.p50(), "store_mib": size as f64 / 1_048_576.0,
                "store_bytes_per_job": size.saturating_sub(empty) / level as u64,
            }),
        });
    }
    lines
}

/// The bytes of the database with its log.
fn store_size(data: &Path) -> u64 {
    let entries = fs::read_dir(data).expect("the hub's data").map(|entry| entry.expect("an entry"));
    entries
        .filter(|entry| entry.file_name().to_string_lossy().contains("sqlite"))
        .map(|entry| entry.metadata().map_or(0, |found| found.len()))
        .sum()
}
