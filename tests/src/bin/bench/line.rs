//! One printed figure with its baseline and target, and the statistics behind it.

use serde_json::{Value, json};
use std::time::Duration;

/// Whether less or more is better.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// The figure should be at most this.
    AtMost(f64),
    /// The figure should be at least this.
    AtLeast(f64),
}

/// One figure.
#[derive(Debug)]
pub struct Line {
    /// What was measured, with its unit at the end (`_ms`, `_mib`, `_per_s`).
    pub name: String,
    /// The figure.
    pub value: f64,
    /// What it is compared with, and its figure in the same run.
    pub baseline: (String, f64),
    /// The target, and how it follows from the baseline.
    pub target: Option<(Target, String)>,
    /// Further figures of the same measurement.
    pub more: Value,
}

impl Line {
    /// Whether the target is met, if there is one.
    pub fn met(&self) -> Option<bool> {
        self.target.as_ref().map(|(target, _)| match target {
            Target::AtMost(limit) => self.value <= *limit,
            Target::AtLeast(limit) => self.value >= *limit,
        })
    }

    /// The line as JSON.
    pub fn to_json(&self) -> Value {
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        let (baseline, figure) = &self.baseline;
        let mut line = json!({
            "bench": self.name, "value": round(self.value), "baseline": baseline, "baseline_value": round(*figure),
            "ratio": round(self.value / figure),
        });
        if let Some((target, rule)) = &self.target {
            let (key, limit) = match target {
                Target::AtMost(limit) => ("at_most", limit),
                Target::AtLeast(limit) => ("at_least", limit),
            };
            line["target"] = json!({key: round(*limit), "rule": rule});
            line["met"] = json!(self.met());
        }
        for (key, value) in self.more.as_object().into_iter().flatten() {
            line[key] = match value.as_f64() {
                Some(number) if value.is_f64() => json!(round(number)),
                _ => value.clone(),
            };
        }
        line
    }
}

/// Durations in milliseconds, sorted.
pub struct Sorted(Vec<f64>);

impl Sorted {
    /// Sorts what was measured.
    pub fn new(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut times: Vec<f64> = times.into_iter().map(|t| t.as_secs_f64() * 1000.0).collect();
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    /// The value that this share of all is not above.
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.0.len() - 1;
        self.0[((last as f64) * share).round() as usize]
    }

    /// The middle one.
    pub fn p50(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The value that one in a hundred is above.
    pub fn p99(&self) -> f64 {
        self.quantile(0.99)
    }
}
