//! The command: what may be asked of it, what it prints, and how it ends.

use super::{Report, What, bundle, render, run};
use crate::{
    cli::{print, print_json},
    exit::Stop,
    settings::Settings,
};
use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

const EXAMPLES: &str = "\
Examples:
  passerelle-agent check                       everything
  passerelle-agent check compta orders-app     these two resources and nothing else
  passerelle-agent check --no-write            write no file for a try
  passerelle-agent check --json | jq '.items[] | select(.status == \"fail\")'
  passerelle-agent check --support-bundle /tmp/passerelle.tar.gz

Where a rule allows drops, a file `.passerelle-check-…` is written, renamed and deleted again.
Exit codes: 0 nothing failed, 1 something failed, 64 configuration.";

/// `check`
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Look at these resources only.
    #[arg(value_name = "RESOURCE")]
    resources: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Write no file for a try, even where drops are allowed.
    #[arg(long)]
    no_write: bool,
    /// Write an archive for whoever helps: what was found, status, metrics, configuration; no secrets. The file must
    /// not be there yet.
    #[arg(long, value_name = "FILE.tar.gz", conflicts_with = "resources")]
    support_bundle: Option<PathBuf>,
}

impl Args {
    /// Whether there is something to do although the configuration is wrong.
    pub fn survives_a_bad_configuration(&self) -> bool {
        self.support_bundle.is_some()
    }
}

/// Looks, prints, and ends as the exit codes say. `dir` is the configuration folder.
///
/// # Errors
/// If a link failed, or the configuration is wrong.
pub async fn command(dir: &Path, settings: Result<Settings, Stop>, args: Args) -> Result<(), Stop> {
    let bundle = match &args.support_bundle {
        // Before the time is spent.
        Some(file) => Some(bundle::Archive::create(file)?),
        None => None,
    };
    let settings = match settings {
        Ok(settings) => settings,
        Err(stop) => {
            if let Some(bundle) = bundle {
                tell(&bundle.write(dir, Err(&stop)).await?)?;
            }
            return Err(stop);
        }
    };
    let what = What { resources: args.resources, write: !args.no_write };
    let report = run(&settings, &what).await?;
    if args.json {
        print_json(&report)?;
    } else {
        print(&render(&report, io::stdout().is_terminal()))?;
    }
    if let Some(bundle) = bundle {
        tell(&bundle.write(dir, Ok((&settings, &report))).await?)?;
    }
    ended(&report)
}

fn ended(report: &Report) -> Result<(), Stop> {
    let failed = report.items.iter().filter(|item| item.status == super::State::Fail).count();
    match failed {
        0 => Ok(()),
        n => Err(Stop::Failed(format!("{n} of {} checks failed", report.items.len()))),
    }
}

/// Beside the report, which may be JSON for a program.
fn tell(listing: &str) -> Result<(), Stop> {
    use std::io::Write as _;
    io::stderr().lock().write_all(listing.as_bytes()).map_err(|e| Stop::Failed(format!("cannot print: {e}")))
}
