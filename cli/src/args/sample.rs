//! `sample`: parts of a demonstration that runs in containers. Not for everyday use, so it is not in the help.

use clap::{Args, Subcommand};
use std::{net::SocketAddr, path::PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum Sample {
    /// Be the sample in-house application, which is told of validated orders
    App(App),
    /// Ask the sample application whether it is well (for container health checks)
    Health(Health),
    /// Submit the sample accounting export and notification, and look at what arrived
    Submit(Submit),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  SAMPLE_APP_TOKEN=secret passerelle sample app --listen '[::]:8080' --dir /received

POST /api/orders/{order}/validated takes a notification once per Idempotency-Key; GET /api/received lists them.")]
pub(crate) struct App {
    /// Where it listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// Keep each notification as a file of this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// What callers send as their bearer token
    #[arg(long, env = "SAMPLE_APP_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub(crate) token: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  passerelle sample health http://127.0.0.1:8080/healthz")]
pub(crate) struct Health {
    /// What answers 200 if all is well
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8080/healthz")]
    pub(crate) url: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  passerelle sample submit --bootstrap /bootstrap --share /share --notified /received

Exit codes: 0 both arrived whole, 1 one did not, 2 usage, 3 the hub cannot be reached or refused")]
pub(crate) struct Submit {
    /// The folder that `passerelle-hub serve --bootstrap` wrote
    #[arg(long, value_name = "DIR")]
    pub(crate) bootstrap: PathBuf,
    /// The folder that the agent's resource `accounting` drops into, to look at what arrived
    #[arg(long, value_name = "DIR")]
    pub(crate) share: PathBuf,
    /// The folder of `sample app --dir`
    #[arg(long, value_name = "DIR")]
    pub(crate) notified: PathBuf,
    /// How long the agent may take to connect, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) patience: u64,
    /// Print what arrived as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
