//! The command line of `mediations`.

use super::{Connection, Page, pair};
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Mediations {
    /// List mediation definitions, with the newest run of each
    List(ListDefinitions),
    /// Show a mediation definition, or a run with its steps, flows and messages
    Show(ShowMediation),
    /// Create and change definitions by a TOML file, all or none
    Apply(ApplyDefinitions),
    /// Start a run
    Run(RunMediation),
    /// Go on with a failed run after its last finished step
    Restart(OneRun),
    /// Close a failed run and clear its error
    Ignore(OneRun),
    /// List runs, newest first
    Runs(ListRuns),
    /// Print what a run tells
    Logs(Logs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle mediations list
  passerelle mediations list --json")]
pub(crate) struct ListDefinitions {
    #[command(flatten)]
    pub(crate) page: Page,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle mediations show accounting-export
  passerelle mediations show 0193a5c2-5c1e-7d0a-9d2f-0a1b2c3d4e5f
      A run, by its guid
  passerelle mediations show accounting-export --json")]
pub(crate) struct ShowMediation {
    /// The definition's name or guid, or a run's guid
    #[arg(value_name = "NAME|GUID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle mediations apply -f mediations.toml --dry-run
      What would change, and nothing is
  passerelle mediations apply -f mediations.toml
  passerelle mediations apply < mediations.toml

A definition without a guid is that of the same name; what the file does not name stays as it is. Every mistake is told
at once, with file, line and column.")]
pub(crate) struct ApplyDefinitions {
    /// The file; default: what comes on standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Only tell what would change
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle mediations run accounting-export --follow
  passerelle mediations run accounting-export --file entries.csv=export.csv
      With a file as the first flow, under the label entries.csv
  passerelle mediations run order-validated --data @event.json --json

With --follow the exit code tells how the run ended: 0 it succeeded, 1 it did not.")]
pub(crate) struct RunMediation {
    /// The definition's name or guid
    #[arg(value_name = "NAME|GUID")]
    pub(crate) definition: String,
    /// What templates see as trigger.data: JSON, or @FILE with it
    #[arg(long, value_name = "JSON|@FILE")]
    pub(crate) data: Option<String>,
    /// A file as a flow of the run, under this label; may be repeated
    #[arg(long = "file", value_name = "LABEL=FILE", value_parser = pair)]
    pub(crate) files: Vec<(String, String)>,
    /// Makes starting twice the same as once; default: a new one
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Print what the run tells until it ends
    #[arg(long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle mediations runs --state failed
  passerelle mediations restart 0193a5c2-5c1e-7d0a-9d2f-0a1b2c3d4e5f
  passerelle mediations ignore 0193a5c2-5c1e-7d0a-9d2f-0a1b2c3d4e5f

What took effect is never done again by a restart. A run whose effect is unknown goes on once its job is resolved:
passerelle jobs resolve.")]
pub(crate) struct OneRun {
    /// The run's guid
    #[arg(value_name = "GUID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle mediations runs accounting-export
  passerelle mediations runs --state failed --since 2026-11-21T00:00:00Z --json")]
pub(crate) struct ListRuns {
    /// Only of this definition, by its name or guid
    #[arg(value_name = "NAME|GUID")]
    pub(crate) definition: Option<String>,
    /// Only in this state: queued, running, succeeded, failed, unknown, ignored, superseded, skipped
    #[arg(long)]
    pub(crate) state: Option<String>,
    /// Begun at this time or later, as 2026-11-21T06:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Begun before this time
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    #[command(flatten)]
    pub(crate) page: Page,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle mediations logs 0193a5c2-5c1e-7d0a-9d2f-0a1b2c3d4e5f
  passerelle mediations logs 0193a5c2-5c1e-7d0a-9d2f-0a1b2c3d4e5f --follow
  passerelle mediations logs 0193a5c2-5c1e-7d0a-9d2f-0a1b2c3d4e5f --json
      One JSON object a line

With --follow it ends with the run; the exit code tells how: 0 it succeeded, 1 it did not.")]
pub(crate) struct Logs {
    /// The run's guid
    #[arg(value_name = "GUID")]
    pub(crate) id: String,
    /// Go on until the run ends
    #[arg(long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
}
