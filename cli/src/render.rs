//! Jobs, sites and agents as short aligned text.

use serde::Deserialize;
use serde_json::Value;
use std::fmt::Write as _;

/// A job as the hub shows it, as far as people want to see it.
#[derive(Debug, Deserialize)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) state: String,
    #[serde(default)]
    site: String,
    #[serde(default)]
    resource: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    created_at: String,
    #[serde(default)]
    pub(crate) finished_at: Option<String>,
    #[serde(default)]
    next_attempt_at: Option<String>,
    #[serde(default)]
    attempts: Vec<Attempt>,
    #[serde(default)]
    progress: Option<Progress>,
    #[serde(default)]
    result: Option<Value>,
    #[serde(default)]
    pub(crate) output: Option<Output>,
    #[serde(default)]
    pub(crate) error: Option<JobError>,
}

#[derive(Debug, Deserialize)]
struct Attempt {
    number: u32,
    #[serde(default)]
    agent: String,
    #[serde(default)]
    started_at: Option<String>,
    #[serde(default)]
    finished_at: Option<String>,
    #[serde(default)]
    effect: Option<String>,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Progress {
    bytes_done: u64,
    #[serde(default)]
    bytes_total: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Output {
    pub(crate) size: u64,
    pub(crate) sha256: String,
    #[serde(default)]
    media_type: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct JobError {
    pub(crate) code: String,
    pub(crate) message: String,
    #[serde(default)]
    effect: String,
}

impl Job {
    /// Whether it stays as it is unless somebody acts.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.state.as_str(), "succeeded" | "failed" | "denied" | "cancelled" | "expired" | "unknown")
    }
}

/// A job in full.
pub(crate) fn job(job: &Job, colour: bool) -> String {
    let mut lines: Vec<(&str, String)> = vec![
        ("job", job.id.clone()),
        ("state", job.state.clone()),
        ("what", format!("{} on {} at {}", job.operation, job.resource, job.site)),
        ("submitted", job.created_at.clone()),
    ];
    if let Some(at) = &job.finished_at {
        lines.push(("finished", at.clone()));
    }
    if let Some(at) = &job.next_attempt_at {
        lines.push(("next try", at.clone()));
    }
    if let (Some(Progress { bytes_done, bytes_total }), false) = (&job.progress, job.is_settled()) {
        let of = bytes_total.map(|total| format!(" of {total}")).unwrap_or_default();
        lines.push(("progress", format!("{bytes_done}{of} bytes")));
    }
    for attempt in &job.attempts {
        lines.push(("attempt", attempt_line(attempt)));
    }
    if let Some(result) = &job.result {
        lines.push(("result", result.to_string()));
    }
    if let Some(Output { size, sha256, media_type }) = &job.output {
        lines.push(("output", format!("{size} bytes, {media_type}, SHA-256 {sha256}")));
    }
    if let Some(JobError { code, message, effect }) = &job.error {
        lines.push(("error", format!("{code}: {message}")));
        lines.push(("effect", effect.clone()));
    }
    let mut text = String::new();
    for (name, value) in lines {
        let value = if name == "state" { paint(&value, &value, colour) } else { clean(&value) };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<10} {value}");
    }
    text
}

fn attempt_line(attempt: &Attempt) -> String {
    let mut line = format!("{} by {}", attempt.number, attempt.agent);
    let times = [("started", &attempt.started_at), ("ended", &attempt.finished_at)];
    for (what, at) in times {
        if let Some(at) = at {
            let _ = write!(line, ", {what} {at}");
        }
    }
    if let Some(effect) = &attempt.effect {
        let _ = write!(line, ", {effect}");
    }
    if let (Some(code), Some(message)) = (&attempt.code, &attempt.message) {
        let _ = write!(line, ", {code}: {message}");
    }
    line
}

/// Jobs, one a line.
pub(crate) fn jobs(jobs: &[Job], colour: bool) -> String {
    let rows = jobs.iter().map(|job| {
        let note = job.error.as_ref().map(|error| error.code.clone()).unwrap_or_default();
        vec![
            job.id.clone(),
            job.state.clone(),
            job.site.clone(),
            job.resource.clone(),
            job.operation.clone(),
            job.created_at.clone(),
            note,
        ]
    });
    table(&["ID", "STATE", "SITE", "RESOURCE", "OPERATION", "SUBMITTED", "NOTE"], rows.collect(), colour)
}

/// An aligned table; the column STATE is coloured.
pub(crate) fn table(head: &[&str], rows: Vec<Vec<String>>, colour: bool) -> String {
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|name| name.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: Vec<(String, &str)>| {
        let mut line = String::new();
        for ((cell, state), width) in cells.into_iter().zip(&widths) {
            let padded = format!("{cell:<width$}");
            line.push_str(&paint(&padded, state, colour));
            line.push_str("  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line(head.iter().map(|name| ((*name).to_owned(), "")).collect());
    for row in &rows {
        let state = |name: &&str, cell: &str| if *name == "STATE" { cell.to_owned() } else { String::new() };
        let states: Vec<String> = head.iter().zip(row).map(|(name, cell)| state(name, cell)).collect();
        line(row.iter().cloned().zip(states.iter().map(String::as_str)).collect());
    }
    text
}

/// Text from elsewhere, without what would move a terminal's cursor or change its colours.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn paint(text: &str, state: &str, colour: bool) -> String {
    let code = match state {
        "succeeded" => 32,
        "failed" | "denied" | "expired" | "unknown" => 31,
        "running" | "offered" | "waiting" => 33,
        _ => return text.to_owned(),
    };
    if colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::{Job, job, jobs, table};
    use serde_json::json;

    fn sample() -> Job {
        serde_json::from_value(json!({
            "id": "0193", "tenant": "acme", "site": "paris", "resource": "compta", "operation": "drop",
            "params": { "path": "a" }, "state": "failed", "created_at": "2026-11-21T06:00:00Z",
            "finished_at": "2026-11-21T06:00:01Z", "progress": { "bytes_done": 5, "bytes_total": null },
            "attempts": [{
                "number": 1, "agent": "0192", "accepted_at": null, "started_at": "2026-11-21T06:00:00Z",
                "finished_at": "2026-11-21T06:00:01Z", "verdict": "permanent", "effect": "not_applied",
                "code": "target_full", "message": "no space\u{1b}[2J left",
            }],
            "result": null, "output": { "size": 5, "sha256": "ab", "media_type": "text/csv" }, "receipt": null,
            "error": { "code": "target_full", "message": "no space left", "effect": "not_applied" },
        }))
        .unwrap()
    }

    #[test]
    fn a_job_is_told_line_by_line_and_harmless_to_the_terminal() {
        let expected = "\
job        0193
state      failed
what       drop on compta at paris
submitted  2026-11-21T06:00:00Z
finished   2026-11-21T06:00:01Z
attempt    1 by 0192, started 2026-11-21T06:00:00Z, ended 2026-11-21T06:00:01Z, not_applied, target_full: no space\u{fffd}[2J left
output     5 bytes, text/csv, SHA-256 ab
error      target_full: no space left
effect     not_applied
";
        assert_eq!(job(&sample(), false), expected);
        assert!(job(&sample(), true).contains("state      \u{1b}[31mfailed\u{1b}[0m\n"));
        let least: Job =
            serde_json::from_value(json!({ "id": "1", "state": "queued", "later": true })).unwrap();
        assert!(!least.is_settled());
        assert!(job(&least, false).starts_with("job        1\nstate      queued\n"));
    }

    #[test]
    fn lists_are_aligned() {
        let expected = "\
ID    STATE   SITE   RESOURCE  OPERATION  SUBMITTED             NOTE
0193  failed  paris  compta    drop       2026-11-21T06:00:00Z  target_full
";
        assert_eq!(jobs(&[sample()], false), expected);
        assert!(jobs(&[sample()], true).contains("\u{1b}[31mfailed\u{1b}[0m"));
        let rows = vec![vec!["é".to_owned(), "1".to_owned()], vec!["long".to_owned(), "2".to_owned()]];
        assert_eq!(table(&["A", "B"], rows, false), "A     B\né     1\nlong  2\n");
    }
}
