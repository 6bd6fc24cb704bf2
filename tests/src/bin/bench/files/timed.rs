//! What a command takes: time, processor time and memory, of it and all it starts, by GNU time.

use std::{path::Path, process::Command, time::Instant};

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// By the clock.
    pub seconds: f64,
    /// Processor seconds, user and system.
    pub cpu: f64,
    /// The peak of the largest of its processes.
    pub peak_mib: f64,
}

/// Several runs of the same.
#[derive(Debug, Default)]
pub struct Runs(Vec<Cost>);

impl Runs {
    pub fn add(&mut self, cost: Cost) {
        self.0.push(cost);
    }

    /// The fastest.
    pub fn best(&self) -> &Cost {
        self.0.iter().min_by(|a, b| a.seconds.total_cmp(&b.seconds)).expect("at least one run")
    }

    pub fn least_cpu(&self) -> f64 {
        self.0.iter().map(|cost| cost.cpu).fold(f64::INFINITY, f64::min)
    }

    pub fn peak_mib(&self) -> f64 {
        self.0.iter().map(|cost| cost.peak_mib).fold(0.0, f64::max)
    }

    pub fn all(&self, figure: impl Fn(&Cost) -> f64) -> Vec<f64> {
        self.0.iter().map(|cost| (figure(cost) * 10.0).round() / 10.0).collect()
    }
}

/// Runs a command line of bash to its end.
///
/// # Panics
/// If it fails.
pub fn run(line: &str) -> Cost {
    assert!(Path::new("/usr/bin/time").exists(), "install Debian's package `time`");
    let start = Instant::now();
    let output = Command::new("/usr/bin/time")
        .args(["--quiet", "-f", "\n%U %S %M", "bash", "-euo", "pipefail", "-c", line])
        .output()
        .expect("GNU time");
    let seconds = start.elapsed().as_secs_f64();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}\n{told}{}", String::from_utf8_lossy(&output.stdout));
    let figures: Vec<f64> =
        told.lines().last().unwrap_or_default().split(' ').filter_map(|figure| figure.parse().ok()).collect();
    let [user, system, peak] = figures.as_slice() else { panic!("GNU time said {told}") };
    Cost { seconds, cpu: user + system, peak_mib: peak / 1024.0 }
}
