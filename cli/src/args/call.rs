//! `call`.

use super::{Connection, duration, pair};
use clap::Args;
use std::{path::PathBuf, time::Duration};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle call --site paris --resource catalogue --operation request --param method=GET --param path=articles/42
  passerelle call --site paris --resource compta --operation list --param path=2026 --json
  passerelle call --site paris --resource compta --operation fetch --param path=FEC.txt --output FEC.txt
  passerelle call --site paris --resource orders-app --operation notify --param path=orders/42/validated \\
      --payload event.json --timeout 10s
  passerelle call --site paris --resource compta --operation stat --param path=FEC.txt --sign-key orchestrator.pem

A call is carried out at once or not at all: nothing is stored, nothing is tried again, and Ctrl-C cancels it. For what
must not be lost submit a job: `passerelle jobs submit`.

Exit codes: 0 success, 1 the call failed (its effect is told), 2 usage, 3 the hub cannot be reached or refused")]
pub(crate) struct Call {
    /// The site
    #[arg(long)]
    pub(crate) site: String,
    /// The resource, by the name its operator gave it
    #[arg(long)]
    pub(crate) resource: String,
    /// The operation, as request, list, stat, fetch
    #[arg(long)]
    pub(crate) operation: String,
    /// One parameter; may be repeated
    #[arg(long = "param", value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) param: Vec<(String, String)>,
    /// All parameters as a JSON object, or @FILE with one
    #[arg(long, value_name = "JSON|@FILE")]
    pub(crate) params: Option<String>,
    /// The file to send as the payload; over 256 KiB it is uploaded first
    #[arg(long, value_name = "FILE")]
    pub(crate) payload: Option<PathBuf>,
    /// The payload's media type
    #[arg(long, value_name = "TYPE", requires = "payload")]
    pub(crate) media_type: Option<String>,
    /// How long it may take in all, at most 60s
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    pub(crate) timeout: Duration,
    /// Write the output payload to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Sign the call with this Ed25519 key (PEM, PKCS#8), for agents that pinned its public half
    #[arg(long, value_name = "FILE")]
    pub(crate) sign_key: Option<PathBuf>,
    /// The tenant to sign for; default: what the hub says
    #[arg(long, value_name = "NAME", requires = "sign_key")]
    pub(crate) tenant: Option<String>,
    /// Sign for this agent alone, by its id; may be repeated. Default: every agent of the site
    #[arg(long = "agent", value_name = "ID", requires = "sign_key")]
    pub(crate) agents: Vec<String>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}
