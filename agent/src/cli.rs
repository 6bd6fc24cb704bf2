//! The command line.

use crate::{
    audit::command::{self as audit, AuditCommand},
    check,
    config_schema::config_schema,
    daemon,
    enrol::{EnrolError, enrol},
    exit::Stop,
    hub::Hub,
    identity::Identity,
    init::{self, InitArgs},
    local::ask::{ask, not_an_agent, without_folder},
    logs,
    pause::command::{self as pauses, PauseArgs, ResumeArgs},
    policy::command::{self as policy, PolicyCommand},
    public_key,
    re_enrol::{self, Done},
    settings::Settings,
    state::StateDir,
    status::{Link, Readiness, Snapshot},
};
use clap::{CommandFactory as _, Parser, Subcommand};
use std::{
    ffi::OsString,
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

const EXAMPLES: &str = "\
Examples:
  passerelle-agent init --hub https://hub…   an annotated configuration folder to begin with
  passerelle-agent check                     look at every link, with cause and fix
  passerelle-agent run                       enrol on the first start, then take jobs
  passerelle-agent re-enrol                  a new identity for one that was revoked or lost
  passerelle-agent --config ./config status  what the running agent is doing
  passerelle-agent audit verify              nothing in the audit was changed or taken out
  passerelle-agent policy explain            all that the cloud can do here, in plain words
  passerelle-agent pause compta --until 2h   take no jobs for a resource; `resume compta` ends it
  passerelle-agent config schema > agent.schema.json

Exit codes: 0 drained or all right, 1 something is not right (check, health, status),
64 configuration, 69 refused by the hub for good, 70 a fault of the agent.";

/// Carries out jobs of a cloud hub on private systems, within what its operator allows.
#[derive(Debug, Parser)]
#[command(name = "passerelle-agent", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// The configuration folder (agent.toml, resources.d, secrets, state).
    #[arg(long, global = true, value_name = "DIR", env = "PASSERELLE_CONFIG", default_value = passerelle_config::DEFAULT_DIR)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write an annotated configuration folder to begin with. Changes nothing that is there.
    #[command(
        after_help = "Examples:\n  passerelle-agent init --hub https://hub.example.com --token-file token.txt\n  \
        docker run --rm -v /srv/passerelle:/config passerelle/agent init"
    )]
    Init(InitArgs),
    /// Take jobs until stopped; enrols by itself on the first start.
    #[command(
        after_help = "SIGTERM or Ctrl-C drains: running jobs end within agent.shutdown_grace, reports are \
        delivered, the exit code is 0. A second signal stops at once; jobs go on at the next start."
    )]
    Run,
    /// Enrol once with the configured token and end.
    Enrol {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Enrol anew in the place of an identity that is lost, revoked or copied; no agent runs meanwhile.
    #[command(
        name = "re-enrol",
        after_help = "\
Examples:
  passerelle-agent re-enrol                          with the token of hub.enrolment_token
  passerelle-agent re-enrol --token-file token.txt   with this one

The journal stays: the hub hears what became of the jobs of the old identity, which ends."
    )]
    ReEnrol {
        /// File with a new enrolment token; default: hub.enrolment_token.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Look at every link: state folder, DNS, proxy, TLS, hub, clock, each resource.
    Check(check::Args),
    /// Ask the running agent whether it is alive and ready (for container health checks).
    #[command(
        after_help = "Examples:\n  passerelle-agent health          alive, and connected to the hub\n  \
        passerelle-agent health --live   alive: for what restarts an agent that hangs, since a hub that is away is no \
        reason to"
    )]
    Health {
        /// Ask only whether it is alive: an agent that waits for its hub is.
        #[arg(long)]
        live: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// What the running agent is doing.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check and print the audit: every decision and effect of this agent.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print the agent's public key as PEM, for those who check its receipts.
    #[command(
        after_help = "Example: passerelle-agent public-key > agent.pub.pem   # then: passerelle receipts verify JOB \
        --agent-key agent.pub.pem"
    )]
    PublicKey {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// What the cloud can do here, and whether it may do this.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Pause a resource: it takes no jobs, the hub holds them and shows who, why and until when.
    #[command(
        after_help = "Running jobs finish. The pause survives restarts; without a running agent it counts from its next start.\n\n\
        Examples:\n  passerelle-agent pause compta --until 2h30m --reason \"stock-taking\"\n  \
        passerelle-agent pause compta --until 2026-11-21T18:00:00Z\n  passerelle-agent resume compta"
    )]
    Pause(PauseArgs),
    /// End the pause of a resource: its jobs run again at once.
    #[command(after_help = "Example: passerelle-agent resume compta")]
    Resume(ResumeArgs),
    /// About the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print completions for a shell.
    #[command(
        after_help = "Example: passerelle-agent completions bash > /etc/bash_completion.d/passerelle-agent"
    )]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the JSON Schema of agent.toml and resources.d/*.toml, for editors.
    #[command(after_help = "\
Example:
  passerelle-agent config schema > /config/agent.schema.json

Then write `#:schema agent.schema.json` into the first line of agent.toml: editors that know TOML (Even Better TOML and
others built on taplo) complete keys, show their descriptions and mark what is wrong.")]
    Schema,
}

/// The whole program: `args[0]` is its name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { crate::CONFIGURATION } else { crate::DRAINED };
            // A closed terminal is no reason for another exit code.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    // Another crate of the process may have installed it already.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => {
            let text = stop.to_string();
            let text = text.trim_end();
            let prefix = if text.starts_with("error: ") { "" } else { "error: " };
            drop(writeln!(io::stderr().lock(), "{prefix}{text}"));
            ExitCode::from(&stop)
        }
    }
}

fn execute(cli: Cli) -> Result<(), Stop> {
    match &cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "passerelle-agent", &mut script);
            return print(&String::from_utf8_lossy(&script));
        }
        Command::Config(ConfigCommand::Schema) => return print_json(&config_schema()),
        Command::Init(args) => return print(&init::init(&cli.config, args)?),
        Command::Audit(command) => return audit::run(command, &state_dir(&cli.config)),
        Command::PublicKey { json } => {
            let key = public_key::read(&state_dir(&cli.config))?;
            let pem = public_key::pem(&key);
            return if *json {
                print_json(&serde_json::json!({ "key": key, "kid": key.id(), "pem": pem }))
            } else {
                print(&pem)
            };
        }
        Command::Run
        | Command::Enrol { .. }
        | Command::Check(_)
        | Command::ReEnrol { .. }
        | Command::Health { .. }
        | Command::Pause(_)
        | Command::Policy(_)
        | Command::Resume(_)
        | Command::Status { .. } => {}
    }
    let settings = match &cli.command {
        // These ask the running agent, which may have a better configuration than the one that lies there now.
        Command::Health { .. } | Command::Status { .. } | Command::Pause(_) | Command::Resume(_) => None,
        // These judge the folder themselves.
        Command::Policy(_) => None,
        Command::Check(args) if args.survives_a_bad_configuration() => Some(Settings::load(&cli.config)),
        _ => Some(Ok(Settings::load(&cli.config)?)),
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|e| Stop::Bug(format!("no runtime: {e}")))?;
    let result = runtime.block_on(async {
        let listen = || passerelle_config::listen_address(&cli.config);
        match (cli.command, settings) {
            (Command::Run, Some(Ok(settings))) => Box::pin(daemon::run(settings)).await,
            (Command::Enrol { json }, Some(Ok(settings))) => Box::pin(enrol_once(settings, json)).await,
            (Command::ReEnrol { token_file, json }, Some(Ok(settings))) => {
                Box::pin(enrol_anew(settings, token_file, json)).await
            }
            (Command::Check(args), Some(settings)) => {
                Box::pin(check::command(&cli.config, settings, args)).await
            }
            (Command::Health { live, json }, _) => {
                health(listen(), live, json).await.map_err(|stop| without_folder(&cli.config, stop))
            }
            (Command::Status { json }, _) => {
                status(listen(), json).await.map_err(|stop| without_folder(&cli.config, stop))
            }
            (Command::Policy(command), _) => {
                let (text, end) = policy::run(&cli.config, command)?;
                print(&text)?;
                end
            }
            (Command::Pause(args), _) => print(&pauses::pause(&cli.config, args).await?),
            (Command::Resume(args), _) => print(&pauses::resume(&cli.config, args).await?),
            (_, _) => Ok(()),
        }
    });
    // A connector that blocks a thread must not keep a drained agent.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

/// The state folder; as it is by default if the configuration cannot be read: the audit of an agent that cannot start
/// can still be looked at.
fn state_dir(config: &std::path::Path) -> PathBuf {
    passerelle_config::load(config)
        .map_or_else(|_| config.join(passerelle_config::defaults::STATE_DIR), |config| config.agent.state_dir)
}

async fn enrol_once(settings: Settings, json: bool) -> Result<(), Stop> {
    let _logs = logs::start(&settings.config.log)?;
    let state = StateDir::open_patiently(&settings.state_dir()).await?;
    let before = Identity::load(&state)?;
    let was_enrolled = before.is_some();
    let identity = match before {
        Some(identity) => identity,
        None => enrol(&settings, &state, &Hub::new(&settings)?).await.map_err(|error| match error {
            EnrolError::Later { message, .. } => Stop::Failed(message),
            EnrolError::Stop(stop) => stop,
        })?,
    };
    let enrolled = &identity.enrolled;
    if json {
        return print_json(&identity.stored());
    }
    let mut text = format!(
        "enrolled as agent {} of site {} (tenant {}, application {}) at {}\n",
        enrolled.agent, enrolled.site, enrolled.tenant, enrolled.application, enrolled.hub
    );
    if was_enrolled {
        text.push_str(
            "it was enrolled before, and nothing has changed: `check` tells whether the hub still takes this identity, \
             `re-enrol` puts another in its place\n",
        );
    }
    print(&text)
}

async fn enrol_anew(settings: Settings, token_file: Option<PathBuf>, json: bool) -> Result<(), Stop> {
    let _logs = logs::start(&settings.config.log)?;
    let state = StateDir::open(&settings.state_dir())?;
    let Done { identity, before, replaced, set_aside } =
        re_enrol::re_enrol(&settings, &state, token_file.as_deref()).await?;
    let enrolled = &identity.enrolled;
    if json {
        return print_json(&serde_json::json!({
            "agent": enrolled.agent, "tenant": enrolled.tenant, "site": enrolled.site,
            "application": enrolled.application, "hub": enrolled.hub, "before": before, "replaced": replaced,
            "journal_set_aside": set_aside,
        }));
    }
    let mut text = format!(
        "enrolled as agent {} of site {} (tenant {}, application {}) at {}\n",
        enrolled.agent, enrolled.site, enrolled.tenant, enrolled.application, enrolled.hub
    );
    match (before, replaced) {
        (Some(old), true) => text.push_str(&format!("it stands in the place of agent {old}, which has ended\n")),
        (Some(old), false) => text.push_str(&format!(
            "the hub does not count it as the successor of agent {old}: revoke that one at the hub, if it is not yet\n"
        )),
        (None, _) => text.push_str("there was no usable identity before: revoke the old agent at the hub\n"),
    }
    if set_aside {
        text.push_str(
            "the journal of the old site was put aside in the state folder (before-*.journal.db)\n",
        );
    }
    print(&text)
}

async fn health(listen: SocketAddr, live: bool, json: bool) -> Result<(), Stop> {
    let (status, said) = ask(listen, "/healthz").await?;
    let alive = status == 200;
    let why = || format!("not alive: {}", String::from_utf8_lossy(&said).trim());
    if live {
        if json {
            print_json(&serde_json::json!({ "alive": alive }))?;
        } else if alive {
            print("alive\n")?;
        }
        return if alive { Ok(()) } else { Err(Stop::Failed(why())) };
    }
    if !alive {
        return Err(Stop::Failed(why()));
    }
    let (_, body) = ask(listen, "/readyz").await?;
    let readiness: Readiness = serde_json::from_slice(&body).map_err(|_| not_an_agent(listen))?;
    if json {
        print_json(&readiness)?;
    } else if readiness.ready {
        print("ready\n")?;
    }
    readiness.into_result()
}

async fn status(listen: SocketAddr, json: bool) -> Result<(), Stop> {
    let (_, body) = ask(listen, "/status.json").await?;
    let status: Snapshot = serde_json::from_slice(&body).map_err(|_| not_an_agent(listen))?;
    if json {
        return print_json(&status);
    }
    let connection = match &status.connection {
        Link::Connected { since, .. } => format!("connected since {since}"),
        Link::Connecting => "connecting".to_owned(),
        Link::Starting { why } | Link::Disconnected { why } => why.clone(),
    };
    let mut text = format!(
        "agent {} {}, started {}\nhub {}: {connection}\njobs: {} held, {} running, {} not yet reported\n",
        status.name,
        status.version,
        status.started_at,
        status.hub,
        status.jobs_held,
        status.jobs_running,
        status.jobs_unreported
    );
    for reason in &status.reasons {
        text.push_str(&format!("not ready: {reason}\n"));
    }
    if let Some(clock) = &status.clock {
        text.push_str(&format!("clock: {clock}\n"));
    }
    for trigger in &status.triggers {
        text.push_str(&trigger.sentence());
    }
    let configuration = &status.configuration;
    if !configuration.needs_restart.is_empty() {
        let keys = configuration.needs_restart.join(", ");
        text.push_str(&format!("configuration: changed, but in effect at the next start only: {keys}\n"));
    }
    if !configuration.refused.is_empty() {
        text.push_str(&format!("configuration: refused at {}; the one before goes on\n", configuration.at));
    }
    for finding in &configuration.refused {
        text.push_str(&format!("  {finding}\n"));
    }
    for (name, resource) in &status.resources {
        let probe = resource.probe.as_ref().map_or("not probed yet".to_owned(), |probe| {
            probe.problem.clone().unwrap_or_else(|| "reachable".to_owned())
        });
        text.push_str(&format!(
            "resource {name} ({}): {}; {probe}\n",
            resource.connector,
            resource.allowed()
        ));
    }
    for (name, paused) in &status.pauses {
        text.push_str(&format!("{}\n", paused.sentence(name)));
    }
    for job in &status.last_jobs {
        text.push_str(&format!(
            "job {} attempt {} {} {}: {} at {}\n",
            job.job, job.attempt, job.resource, job.operation, job.outcome, job.at
        ));
    }
    print(&text)
}

pub(crate) fn print(text: &str) -> Result<(), Stop> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        // `passerelle-agent status | head` is no error.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Stop::Failed(format!("cannot print: {e}"))),
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(crate) fn print_json<T: serde::Serialize>(value: &T) -> Result<(), Stop> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Stop::Bug(e.to_string()))?;
    print(&(text + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        let run = |args: &[&str]| format!("{:?}", run(args.iter().map(OsString::from)));
        let code = |n: u8| format!("{:?}", ExitCode::from(n));
        assert_eq!(run(&["passerelle-agent", "--version"]), code(0));
        assert_eq!(run(&["passerelle-agent", "no-such-command"]), code(64));
        assert_eq!(run(&["passerelle-agent", "--config", "/does/not/exist", "run"]), code(64));
        assert_eq!(crate::REFUSED, 69);
        assert_eq!(crate::BUG, 70);
    }
}
