//! Benchmarks on the real programs: JSON lines, each figure beside a baseline of the same run.
//!
//! Run through `tests/bench`, which builds everything in release mode first.

mod baseline;
mod line;
mod memory;
mod round_trip;
mod sftp;
mod start;

use line::Line;
use std::{io::Write as _, process::ExitCode};

const HELP: &str = "\
Measures Passerelle on real processes and prints JSON lines.

Usage: tests/bench [--quick] [--check] [NAME…]

  NAME      start, memory, notify, sftp; all of them by default
  --quick   fewer repetitions, and 128 MiB in place of 1 GiB
  --check   exit with 1 if a target is not met
";

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    repetitions: usize,
    file_size: u64,
    rounds: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--help" || a == "-h") {
        print(HELP.trim_end());
        return ExitCode::SUCCESS;
    }
    let known = ["start", "memory", "notify", "sftp"];
    let (options, names): (Vec<&str>, Vec<&str>) =
        arguments.iter().map(String::as_str).partition(|a| a.starts_with('-'));
    if let Some(wrong) = options
        .iter()
        .find(|o| !["--quick", "--check"].contains(o))
        .or_else(|| names.iter().find(|n| !known.contains(n)))
    {
        eprintln!("unknown argument {wrong}\n{HELP}");
        return ExitCode::from(2);
    }
    let effort = if options.contains(&"--quick") {
        Effort { repetitions: 200, file_size: 128 << 20, rounds: 2 }
    } else {
        Effort { repetitions: 2000, file_size: 1 << 30, rounds: 3 }
    };
    let wanted = |name: &str| names.is_empty() || names.contains(&name);
    let mut missed = 0;
    let mut tell = |lines: Vec<Line>| {
        for line in lines {
            missed += usize::from(line.met() == Some(false));
            print(&line.to_json().to_string());
        }
    };
    if wanted("start") {
        tell(start::measure(effort).await);
    }
    if wanted("memory") {
        tell(memory::measure().await);
    }
    if wanted("notify") {
        tell(round_trip::measure(effort).await);
    }
    if wanted("sftp") {
        tell(sftp::measure(effort).await);
    }
    if missed > 0 && options.contains(&"--check") {
        eprintln!("{missed} targets not met");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn print(line: &str) {
    // A reader that went away is no reason to panic.
    let _broken_pipe = writeln!(std::io::stdout().lock(), "{line}");
}
