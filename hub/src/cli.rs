//! The program `passerelle-hub`: its commands and exit codes.
//!
//! Exit codes: 0 done or drained, 1 not well (`health`), 64 configuration or refused by a rule, 70 a fault of the hub.

use crate::{admin, health, mediations::sandbox, serve};
use clap::{CommandFactory as _, Parser, Subcommand};
use std::{
    ffi::OsString,
    fmt,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

/// The hub that was asked does not take work.
const EXIT_UNWELL: u8 = 1;
/// Wrong use or configuration.
const EXIT_CONFIGURATION: u8 = 64;
/// A fault of the hub itself.
const EXIT_FAULT: u8 = 70;

const EXAMPLES: &str = "\
Examples:
  passerelle-hub serve
  passerelle-hub serve --listen 0.0.0.0:443 --tls-cert hub.pem --tls-key hub-key.pem --data /var/lib/passerelle-hub
  passerelle-hub admin tenant create acme --tier enterprise
  passerelle-hub admin api-key create --tenant acme --scopes jobs:read,jobs:write
  passerelle-hub admin enrolment-token create --tenant acme --site paris --application orchestrator";

/// The cloud side of Passerelle: takes jobs over HTTP and hands them to the agents that dial in.
#[derive(Parser)]
#[command(name = "passerelle-hub", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves the API and the tunnel.
    Serve(serve::Args),
    /// Manages tenants, keys, tokens and agents; works while the hub serves.
    Admin(admin::Args),
    /// Asks the serving hub whether it takes work (for container health checks).
    Health(health::Args),
    /// About the configuration file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Prints completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Prints the JSON Schema of the configuration file, for editors.
    #[command(after_help = "Example:\n  passerelle-hub config schema > hub.schema.json")]
    Schema,
}

/// Where configuration and data are.
#[derive(Debug, Clone, clap::Args)]
pub struct Place {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Data folder [default: passerelle-hub-data].
    #[arg(long, value_name = "DIR", global = true, env = "PASSERELLE_HUB_DATA")]
    pub data: Option<PathBuf>,
}

/// Why a command did not do its work.
#[derive(Debug)]
pub enum Failure {
    /// The hub that was asked does not take work: exit 1.
    Unwell(String),
    /// The operator can mend it: exit 64.
    Configuration(String),
    /// A fault of the hub: exit 70.
    Fault(String),
    /// Nobody reads the output any more (`| head`), which is the reader's choice: exit 0.
    Unread,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unwell(text) | Self::Configuration(text) | Self::Fault(text) => f.write_str(text),
            Self::Unread => f.write_str("nobody reads the output"),
        }
    }
}

impl From<crate::store::Error> for Failure {
    fn from(error: crate::store::Error) -> Self {
        match error {
            crate::store::Error::Internal(cause) => Self::Fault(format!("internal fault: {cause}")),
            error => Self::Configuration(error.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Unread,
            _ => Self::Fault(error.to_string()),
        }
    }
}

/// Runs the program; `args` begins with its name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if let Some(ended) = sandbox::part(&args) {
        return ended;
    }
    // Another part of the process may have installed it already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // To a closed pipe there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_CONFIGURATION) } else { ExitCode::SUCCESS };
        }
    };
    let done = match cli.command {
        Command::Serve(args) => serve::serve(args),
        Command::Admin(args) => admin::admin(args),
        Command::Health(args) => health::health(args),
        Command::Config(ConfigCommand::Schema) => {
            let text = format!("{:#}\n", crate::settings::schema());
            io::stdout().lock().write_all(text.as_bytes()).map_err(Failure::from)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "passerelle-hub", &mut script);
            io::stdout().lock().write_all(&script).map_err(Failure::from)
        }
    };
    match done {
        Ok(()) | Err(Failure::Unread) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr().lock(), "error: {failure}");
            ExitCode::from(match failure {
                Failure::Unwell(_) => EXIT_UNWELL,
                Failure::Configuration(_) => EXIT_CONFIGURATION,
                Failure::Unread | Failure::Fault(_) => EXIT_FAULT,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
