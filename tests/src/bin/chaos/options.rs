//! What is asked for on the command line.

use std::path::PathBuf;

/// The help text.
pub const HELP: &str = "\
Submits mixed jobs to a site of two agents while everything around them fails, then checks every promise.

Usage: tests/chaos [--jobs N] [--seconds N] [--seed S] [--without FAULT,…] [--keep DIR]

  --jobs N      how many jobs (default 2000)
  --seconds N   how long things fail (default 120); afterwards the jobs have 60 s to settle
  --seed S      the same jobs and the same faults at the same moments again (default: from the clock, printed)
  --without …   leaves out: kill, hub, freeze, tunnel, ssh, app, disk (faults), order, cancel (jobs)
  --keep DIR    where the logs go if a promise was broken (default target/chaos/SEED)

The last line is a summary in JSON; the exit code is 0 if every promise was kept, else 1.";

/// The settings of a run.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many jobs.
    pub jobs: u64,
    /// How long things fail.
    pub seconds: u64,
    /// From which everything random follows.
    pub seed: u64,
    /// What is left out.
    pub without: Vec<String>,
    /// Where the logs of a failed run go.
    pub keep: PathBuf,
}

/// What can be left out.
const PARTS: [&str; 9] = ["kill", "hub", "freeze", "tunnel", "ssh", "app", "disk", "order", "cancel"];

impl Options {
    /// Reads the arguments; `None`: help is wanted.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read(arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let clock = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
        let (mut jobs, mut seconds, mut seed) = (2000, 120, clock);
        let (mut without, mut keep) = (Vec::new(), None);
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            let number =
                |text: String| text.parse::<u64>().map_err(|_| format!("{argument}: {text:?} is no number"));
            match argument.as_str() {
                "--help" | "-h" => return Ok(None),
                "--jobs" => jobs = number(value()?)?.max(1),
                "--seconds" => seconds = number(value()?)?.max(1),
                "--seed" => seed = number(value()?)?,
                "--without" => without.extend(value()?.split(',').map(str::to_owned)),
                "--keep" => keep = Some(PathBuf::from(value()?)),
                _ => return Err(format!("unknown argument {argument}")),
            }
        }
        if let Some(wrong) = without.iter().find(|part| !PARTS.contains(&part.as_str())) {
            return Err(format!("--without {wrong}: expected {}", PARTS.join(", ")));
        }
        let keep = keep.unwrap_or_else(|| PathBuf::from(format!("target/chaos/{seed}")));
        Ok(Some(Self { jobs, seconds, seed, without, keep }))
    }

    /// Whether a part of the chaos is wanted.
    pub fn with(&self, part: &str) -> bool {
        !self.without.iter().any(|left_out| left_out == part)
    }
}
