//! The chaos harness: a seeded, re-runnable storm of faults around two agents and a hub that carry mixed jobs, and at the
//! end a look at every promise from the target's side.
//!
//! `plan` says what is submitted, `faults` what breaks when; both follow from the seed alone. `world` runs and breaks,
//! `submit` are the clients, `consumer` and `application` the targets, `verdict` the judge.

mod application;
mod consumer;
mod faults;
mod options;
mod plan;
mod submit;
mod verdict;
mod world;

use consumer::{Consumer, leftovers};
use options::{HELP, Options};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};
use verdict::{Evidence, Verdict};
use world::{KEPT_CONTENT, World};

/// How long the jobs may take to settle when the faults have stopped.
const SETTLED: Duration = Duration::from_secs(60);
/// How many broken promises of a kind are printed; the kept files have all.
const SHOWN: usize = 10;

#[tokio::main]
async fn main() -> ExitCode {
    let options = match Options::read(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print(HELP);
            return ExitCode::SUCCESS;
        }
        Err(wrong) => {
            eprintln!("{wrong}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    eprintln!("seed {}: {} jobs, {} s of faults", options.seed, options.jobs, options.seconds);
    if run(&options).await { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One run; `true` if every promise was kept.
async fn run(options: &Options) -> bool {
    let jobs = plan::jobs(options);
    let mut world = World::start(options, &jobs).await;
    let steps = faults::timeline(options, world.has_disk());
    let roots = [("sftp", world.ssh.root().to_owned()), ("depot", world.depot.path().to_owned())];
    let consumers = roots.each_ref().map(|(resource, root)| Consumer::start(resource, root));

    let (api, start) = (world.hub.api.clone(), world.started());
    let submitting = {
        let (jobs, api) = (jobs.clone(), api.clone());
        tokio::spawn(async move { submit::submit(&api, &jobs, start).await })
    };
    world.suffer(&steps, Duration::from_secs(options.seconds)).await;
    let healed = Instant::now();
    world.heal().await;
    let ids = match tokio::time::timeout(SETTLED, submitting).await {
        Ok(ids) => ids.expect("the clients"),
        Err(_) => {
            world.keep(&options.keep);
            eprintln!(
                "the hub does not take the jobs; seed {}, logs in {}",
                options.seed,
                options.keep.display()
            );
            return false;
        }
    };
    let submitted = healed.elapsed();
    let (ends, _) = submit::settle(&api, &ids, SETTLED.saturating_sub(submitted)).await;
    let settled = healed.elapsed();
    // Parts of attempts that died are removed by those who live: within the same minute. Not that of a job that ended
    // `unknown`: it is what an operator can still tell from whether the file arrived, and no intent's part is removed.
    let evidence: Vec<&str> =
        ends.values().filter(|end| end["state"] == "unknown").filter_map(|end| end["id"].as_str()).collect();
    let leftovers = |root: &Path| -> Vec<PathBuf> {
        let is_evidence = |path: &PathBuf| evidence.iter().any(|id| path.to_string_lossy().contains(id));
        leftovers(root).into_iter().filter(|path| !is_evidence(path)).collect()
    };
    while roots.iter().any(|(_, root)| !leftovers(root).is_empty()) && healed.elapsed() < SETTLED {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let taken: Vec<_> = consumers.into_iter().flat_map(Consumer::finish).collect();
    let told = world.ledger.all();
    let mut verdict = Verdict::of(&Evidence { jobs: &jobs, ends: &ends, taken: &taken, told: &told });
    for (_, root) in &roots {
        for path in leftovers(root) {
            verdict.breaks("leftover", u64::MAX, path.display().to_string());
        }
        let kept = fs::read_to_string(root.join(plan::KEPT)).unwrap_or_default();
        if kept != KEPT_CONTENT {
            verdict.breaks("inconsistent", u64::MAX, format!("the kept file now holds {kept:?}"));
        }
    }
    let passed = verdict.kept() && world.crashes.is_empty();
    tell(options, &mut world, &verdict, &ends, &taken, &told, passed);

    let mut summary = json!({
        "chaos": if passed { "passed" } else { "failed" }, "seed": options.seed, "jobs": options.jobs,
        "seconds": options.seconds, "settled_after_s": (settled.as_secs_f64() * 10.0).round() / 10.0,
        "faults": world.faults, "crashes": world.crashes.len(), "files_taken": taken.len(), "notifications": told.len(),
    });
    for (name, figure) in verdict.figures().as_object().into_iter().flatten() {
        summary[name] = figure.clone();
    }
    print(&summary.to_string());
    passed
}

/// Says what went wrong, and keeps all that is needed to find out why.
fn tell(
    options: &Options,
    world: &mut World,
    verdict: &Verdict,
    ends: &BTreeMap<u64, Value>,
    taken: &[consumer::Taken],
    told: &[application::Told],
    passed: bool,
) {
    for (job, what) in &verdict.unknown {
        eprintln!("unknown: job {job}: {what}");
    }
    if passed {
        return;
    }
    for crash in &world.crashes {
        eprintln!("{crash}");
    }
    let mut history = String::new();
    for (promise, cases) in &verdict.broken {
        for (n, (job, what)) in cases.iter().enumerate() {
            let end = ends.get(job).map_or_else(String::new, |end| format!("{end:#}\n"));
            let seen: String = told
                .iter()
                .filter(|told| told.job == *job)
                .map(|told| format!("{told:?}\n"))
                .chain(
                    taken.iter().filter(|taken| taken.job == Some(*job)).map(|taken| format!("{taken:?}\n")),
                )
                .collect();
            let text = format!("{promise}: job {job}: {what}\n{end}{seen}\n");
            if n < SHOWN {
                eprint!("{text}");
            }
            history.push_str(&text);
        }
    }
    eprintln!("the faults:\n{}", world.timeline.join("\n"));
    world.keep(&options.keep);
    fs::write(options.keep.join("broken.txt"), history).expect("the broken promises");
    let all: Vec<&Value> = ends.values().collect();
    fs::write(options.keep.join("jobs.json"), json!(all).to_string()).expect("the jobs");
    eprintln!(
        "logs are in {}; the same again: tests/chaos --jobs {} --seconds {} --seed {}",
        options.keep.display(),
        options.jobs,
        options.seconds,
        options.seed
    );
}

fn print(line: &str) {
    // A reader that went away is no reason to panic.
    let _broken_pipe = writeln!(std::io::stdout().lock(), "{line}");
}
