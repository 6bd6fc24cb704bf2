//! The command line.

pub(crate) mod call;
pub(crate) mod events;
pub(crate) mod mediations;
pub(crate) mod sample;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

const EXAMPLES: &str = "\
Examples:
  passerelle dev --once
      Hub, agent and sample resources on this machine: submits two jobs and shows what arrived where
  passerelle jobs submit --site paris --resource compta --operation drop \\
      --param path=2026/10/FEC.txt --payload FEC.txt --wait 60
  passerelle call --site paris --resource catalogue --operation request \\
      --param method=GET --param path=articles/42
  passerelle jobs list --state failed
  passerelle jobs show 0193a5c2-…  --output answer.csv
  passerelle events follow --resource compta
  passerelle mediations apply -f mediations.toml --dry-run

Exit codes: 0 success, 1 the job did not succeed, 2 usage, 3 the hub cannot be reached or refused";

/// Submits and follows Passerelle jobs, and runs a whole Passerelle on this machine.
#[derive(Debug, Parser)]
#[command(name = "passerelle", version, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run hub, agent and sample resources on this machine, and submit the sample jobs
    Dev(Dev),
    /// Submit, show, list, cancel, retry and resolve jobs
    #[command(subcommand)]
    Jobs(Jobs),
    /// Have an operation carried out at once, and wait for its answer
    Call(Box<call::Call>),
    /// List, show and follow what triggers on private resources saw
    #[command(subcommand)]
    Events(events::Events),
    /// Make keys that sign jobs
    #[command(subcommand)]
    Keys(Keys),
    /// Define mediations, start them, and follow and restart their runs
    #[command(subcommand)]
    Mediations(mediations::Mediations),
    /// List the sites
    Sites(Sites),
    /// List the agents, or revoke one
    Agents(Agents),
    /// Check what agents have signed
    #[command(subcommand)]
    Receipts(Receipts),
    /// Parts of a demonstration in containers
    #[command(subcommand, hide = true)]
    Sample(sample::Sample),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Which part of a list.
#[derive(Debug, Args)]
pub(crate) struct Page {
    /// At most so many
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u32>,
    /// Where the page before ended
    #[arg(long)]
    pub(crate) cursor: Option<String>,
}

/// Where the hub is and who asks.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// The hub's address, as https://hub.example.com
    #[arg(long, env = "PASSERELLE_URL", value_name = "URL", help_heading = "Hub")]
    pub(crate) url: Option<String>,
    /// An API key; better in the environment, where other users do not see it
    #[arg(
        long,
        env = "PASSERELLE_API_KEY",
        value_name = "KEY",
        hide_env_values = true,
        help_heading = "Hub"
    )]
    pub(crate) api_key: Option<String>,
    /// File with the API key, such as a secret of a container engine; --api-key comes before it
    #[arg(long, env = "PASSERELLE_API_KEY_FILE", value_name = "FILE", help_heading = "Hub")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// PEM file of certificates trusted beside the system's
    #[arg(long, env = "PASSERELLE_CA_FILE", value_name = "FILE", help_heading = "Hub")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Print the hub's JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle dev                    stays, with a curl command to paste, until Ctrl-C
  passerelle dev --once             ends after the samples, with 0 if both arrived
  passerelle dev --dir ./passerelle keeps everything in a folder")]
pub(crate) struct Dev {
    /// End after the sample jobs; 0 only if all succeeded and arrived whole
    #[arg(long)]
    pub(crate) once: bool,
    /// Keep everything in this folder instead of a temporary one
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Where the hub listens; only loopback
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Print what arrived as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Jobs {
    /// Submit a job
    Submit(Box<Submit>),
    /// Show a job, or fetch its output
    Show(Show),
    /// List jobs, newest first
    List(List),
    /// Cancel a job
    Cancel(Cancel),
    /// Give a settled job another chance: a new deadline and new attempts
    Retry(Retry),
    /// Say what became of an unknown job, or let the jobs behind a failed one go on
    Resolve(Resolve),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle jobs submit --site paris --resource compta --operation drop --param path=2026/10/FEC.txt --payload FEC.txt
  passerelle jobs submit --site paris --resource orders-app --operation notify \\
      --param path=orders/42/validated --payload event.json --media-type application/json --wait 30
  passerelle jobs submit --site paris --resource crm --operation find --params @query.json --json
  passerelle jobs submit --site paris --resource compta --operation drop --param path=FEC.txt --payload FEC.txt \\
      --sign-key orchestrator.pem

A --param value that is JSON is taken as JSON: n=5 is a number, n='\"5\"' a text. Payloads over 256 KiB are uploaded
first, and go on where they were after a cut.")]
pub(crate) struct Submit {
    /// The site
    #[arg(long)]
    pub(crate) site: String,
    /// The resource, by the name its operator gave it
    #[arg(long)]
    pub(crate) resource: String,
    /// The operation, as drop, fetch, notify
    #[arg(long)]
    pub(crate) operation: String,
    /// One parameter; may be repeated
    #[arg(long = "param", value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) param: Vec<(String, String)>,
    /// All parameters as a JSON object, or @FILE with one
    #[arg(long, value_name = "JSON|@FILE")]
    pub(crate) params: Option<String>,
    /// The file to send as the payload
    #[arg(long, value_name = "FILE")]
    pub(crate) payload: Option<PathBuf>,
    /// Send the payload of this event, by its id
    #[arg(long, value_name = "ID", conflicts_with_all = ["payload", "sign_key"])]
    pub(crate) event: Option<String>,
    /// The payload's media type
    #[arg(long, value_name = "TYPE", requires = "payload")]
    pub(crate) media_type: Option<String>,
    /// The job starts by then, counted from now: 90s, 15m, 24h, 7d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) deadline: Option<Duration>,
    /// An attempt without progress for this long ends
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// How many attempts the job may have
    #[arg(long, value_name = "N")]
    pub(crate) max_attempts: Option<u32>,
    /// Jobs of the same key on a resource run in order
    #[arg(long, value_name = "KEY")]
    pub(crate) order_key: Option<String>,
    /// 0 to 9, 9 first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=9))]
    pub(crate) priority: Option<u8>,
    /// One label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) label: Vec<(String, String)>,
    /// Makes submitting twice the same as once; default: a new one
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// Sign the job with this Ed25519 key (PEM, PKCS#8), for agents that pinned its public half
    #[arg(long, value_name = "FILE")]
    pub(crate) sign_key: Option<PathBuf>,
    /// The tenant to sign for; default: what the hub says
    #[arg(long, value_name = "NAME", requires = "sign_key")]
    pub(crate) tenant: Option<String>,
    /// Sign for this agent alone, by its id; may be repeated. Default: every agent of the site
    #[arg(long = "agent", value_name = "ID", requires = "sign_key")]
    pub(crate) agents: Vec<String>,
    /// Wait for the job's end, at most so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub(crate) wait: Option<u64>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The job's id
    pub(crate) id: String,
    /// Write the job's output payload to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only of this site
    #[arg(long)]
    pub(crate) site: Option<String>,
    /// Only of this resource
    #[arg(long)]
    pub(crate) resource: Option<String>,
    /// Only in this state
    #[arg(long)]
    pub(crate) state: Option<String>,
    /// Submitted at this time or later, as 2026-11-21T06:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Submitted before this time
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    #[command(flatten)]
    pub(crate) page: Page,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The job's id
    pub(crate) id: String,
    /// End an attempt of a lost agent as unknown
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle jobs retry 0193a5c2-…
  passerelle jobs retry 0193a5c2-… --sign-key orchestrator.pem --deadline 2h

A job that was submitted with --sign-key keeps the deadline and attempts that were signed: past them it is signed anew.")]
pub(crate) struct Retry {
    /// The job's id
    pub(crate) id: String,
    /// Sign anew with the key that signed the job, for the same effect
    #[arg(long, value_name = "FILE")]
    pub(crate) sign_key: Option<PathBuf>,
    /// With --sign-key: the job starts by then, counted from now; default: as long as it had at first
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "sign_key")]
    pub(crate) deadline: Option<Duration>,
    /// With --sign-key: how many more attempts it may have [default: 5]
    #[arg(long, value_name = "N", requires = "sign_key")]
    pub(crate) max_attempts: Option<u32>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
pub(crate) struct Resolve {
    /// The job's id
    pub(crate) id: String,
    /// It took effect, it did not, or it does not matter any more
    #[arg(long, value_parser = ["applied", "not_applied", "skipped"])]
    pub(crate) outcome: String,
    /// Why, for whoever reads the job later
    #[arg(long, value_name = "TEXT")]
    pub(crate) note: Option<String>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Make an Ed25519 key pair that signs jobs
    Create(CreateKey),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle keys create orchestrator.pem     also writes orchestrator.pub.pem
  passerelle jobs submit … --sign-key orchestrator.pem

The agent's operator copies orchestrator.pub.pem into the configuration folder and names it:
  [trust]
  job_keys = [\"orchestrator.pub.pem\"]

The same with OpenSSL:
  openssl genpkey -algorithm ed25519 -out orchestrator.pem
  openssl pkey -in orchestrator.pem -pubout -out orchestrator.pub.pem")]
pub(crate) struct CreateKey {
    /// Where the private key goes; the public one goes beside it, as .pub.pem. Nothing is overwritten
    #[arg(value_name = "FILE", default_value = "job-key.pem")]
    pub(crate) file: PathBuf,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Sites {
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  passerelle agents --site paris
  passerelle agents revoke 01a16231-e700-7000-8000-0000000000a1"
)]
pub(crate) struct Agents {
    #[command(subcommand)]
    pub(crate) command: Option<AgentCommand>,
    /// Only of this site
    #[arg(long)]
    pub(crate) site: Option<String>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// End an agent's identity at once
    ///
    /// It is disconnected within a second. What it had started ends `unknown`, what it had not accepted goes to another agent
    /// of its site. To go on it has to be enrolled anew: `passerelle-agent re-enrol`.
    #[command(after_help = "\
Example:
  passerelle agents revoke 01a16231-e700-7000-8000-0000000000a1")]
    Revoke {
        /// Its id, as `passerelle agents` shows it
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Receipts {
    /// Check an agent's receipt of a job that succeeded; 1 if it does not hold
    Verify(VerifyReceipt),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle receipts verify 0193a5c2-7e1b-7c4d-9f00-1a2b3c4d5e6f
      The job and the agent's keys from the hub
  passerelle receipts verify 0193a5c2-7e1b-7c4d-9f00-1a2b3c4d5e6f --agent-key agent.pub.pem
      The job from the hub, the key from the agent's operator: a hub that lies about the key gains nothing
  passerelle receipts verify job.json --agent-key agent.pub.pem
      Without a hub: what `jobs show --json` printed, or the bare receipt")]
pub(crate) struct VerifyReceipt {
    /// The job's id, or a file with the job's JSON or a bare receipt
    #[arg(value_name = "JOB_ID|FILE")]
    pub(crate) subject: String,
    /// PEM file of the agent's public key, as `passerelle-agent public-key` prints it; may be repeated
    #[arg(long, value_name = "PEM")]
    pub(crate) agent_key: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected the like of 90s, 15m, 24h or 7d".to_owned();
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = number.parse().map_err(|_| wrong())?;
    count.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::{Cli, Command, Jobs, duration, pair};
    use clap::{CommandFactory as _, Parser as _, error::ErrorKind};
    use std::time::Duration;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_and_pairs_are_read() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("15m", 900), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "-1s", "1.5h", "1w", "99999999999999999999s", "999999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(pair("a="), Ok(("a".to_owned(), String::new())));
        assert!(pair("a").is_err() && pair("=b").is_err());
    }

    #[test]
    fn a_submission_is_read_and_a_wrong_one_refused() {
        let line = "passerelle jobs submit --site s --resource r --operation drop --param path=a --param n=5 \
                    --payload f --media-type text/plain --deadline 1h --priority 9 --label k=v --wait 5 --json";
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Jobs(Jobs::Submit(submit)) = cli.command else { panic!("{cli:?}") };
        assert_eq!(submit.param.len(), 2);
        assert_eq!((submit.deadline, submit.priority), (Some(Duration::from_secs(3600)), Some(9)));
        assert!(submit.connection.json);
        for (line, kind) in [
            ("passerelle", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("passerelle jobs submit --site s", ErrorKind::MissingRequiredArgument),
            (
                "passerelle jobs submit --site s --resource r --operation o --priority 10",
                ErrorKind::ValueValidation,
            ),
            (
                "passerelle jobs submit --site s --resource r --operation o --param a",
                ErrorKind::ValueValidation,
            ),
            (
                "passerelle jobs submit --site s --resource r --operation o --media-type a/b",
                ErrorKind::MissingRequiredArgument,
            ),
            ("passerelle dev --listen nowhere", ErrorKind::ValueValidation),
            ("passerelle --version", ErrorKind::DisplayVersion),
        ] {
            assert_eq!(Cli::try_parse_from(line.split_whitespace()).unwrap_err().kind(), kind, "{line}");
        }
    }
}
