//! Benchmarks on the real programs: JSON lines, each figure beside a baseline of the same run.
//!
//! Run through `tests/bench`, which builds everything in release mode first.

mod audit;
mod baseline;
mod calls;
mod celery;
mod crm;
mod dispatch;
mod files;
mod growth;
mod line;
mod load;
mod mediations;
mod memory;
mod rate;
mod round_trip;
mod sftp;
mod signing;
mod start;
mod waiting;

use line::Line;
use std::{io::Write as _, process::ExitCode};

const HELP: &str = "\
Measures Passerelle on real processes and prints JSON lines.

Usage: tests/bench [--quick | --long] [--check] [NAME…]

  NAME      start, memory, notify, dispatch, rate, waiting, growth, celery, crm, sftp, files, audit, signing, calls,
            mediations; all of them by default; files:sftp and the like measure one kind of file resource
  --quick   fewer repetitions, 128 MiB in place of 1 GiB, 200 small files in place of 2000, 2000 finished jobs in
            place of 100,000
  --long    1,000,000 finished jobs too
  --check   exit with 1 if a target is not met
";

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    repetitions: usize,
    file_size: u64,
    rounds: usize,
    quick: bool,
    long: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, rest @ ..] = arguments.as_slice()
        && first == files::ALONE
    {
        files::alone(rest).await;
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|a| a == "--help" || a == "-h") {
        print(HELP.trim_end());
        return ExitCode::SUCCESS;
    }
    let known = [
        "start",
        "memory",
        "notify",
        "dispatch",
        "rate",
        "waiting",
        "growth",
        "celery",
        "crm",
        "sftp",
        "files",
        "audit",
        "signing",
        "calls",
        "mediations",
    ];
    let is_known = |name: &str| {
        let kind = |kind: &str| files::Kind::ALL.iter().any(|known| known.name() == kind);
        known.contains(&name) || name.strip_prefix("files:").is_some_and(kind)
    };
    let (options, names): (Vec<&str>, Vec<&str>) =
        arguments.iter().map(String::as_str).partition(|a| a.starts_with('-'));
    if let Some(wrong) = options
        .iter()
        .find(|o| !["--quick", "--long", "--check"].contains(o))
        .or_else(|| names.iter().find(|n| !is_known(n)))
    {
        eprintln!("unknown argument {wrong}\n{HELP}");
        return ExitCode::from(2);
    }
    let (quick, long) = (options.contains(&"--quick"), options.contains(&"--long"));
    let effort = if quick {
        Effort { repetitions: 200, file_size: 128 << 20, rounds: 2, quick, long }
    } else {
        Effort { repetitions: 2000, file_size: 1 << 30, rounds: 3, quick, long }
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
    if wanted("dispatch") {
        tell(dispatch::measure(effort).await);
    }
    if wanted("rate") {
        tell(rate::measure(effort).await);
    }
    if wanted("waiting") {
        tell(waiting::measure(effort).await);
    }
    if wanted("growth") {
        tell(growth::measure(effort).await);
    }
    if wanted("celery") {
        tell(celery::measure(effort).await);
    }
    if wanted("crm") {
        tell(crm::measure(effort).await);
    }
    if wanted("sftp") {
        tell(sftp::measure(effort).await);
    }
    let kinds: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix("files:")).collect();
    if wanted("files") || !kinds.is_empty() {
        files::measure(effort, &kinds, &mut tell).await;
    }
    if wanted("audit") {
        tell(audit::measure(effort).await);
    }
    if wanted("signing") {
        tell(signing::measure(effort).await);
    }
    if wanted("calls") {
        tell(calls::measure(effort).await);
    }
    if wanted("mediations") {
        tell(mediations::measure(effort).await);
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
