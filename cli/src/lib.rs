//! The cloud-side developer's `passerelle`: client commands over the hub's API, and `dev`, which runs hub, agent and
//! sample resources as one process tree by executing itself again.

mod args;
mod call;
mod client;
mod dev;
mod events;
mod jobs;
mod keys;
mod lists;
mod mediations;
mod out;
mod receipts;
mod render;
mod sample;
mod signed;
mod submission;

pub use args::Cli;

use args::{Command, Receipts};
use clap::{CommandFactory as _, Parser as _, error::ErrorKind};
use out::Out;
use std::{ffi::OsString, process::ExitCode};

/// The job did not succeed, or the output could not be written.
pub const JOB_FAILED: u8 = 1;
/// The command line, or a file it names, is wrong.
pub const USAGE: u8 = 2;
/// The hub cannot be reached, or said no.
pub const HUB: u8 = 3;

/// Why the program ends without success.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, message: message.into() }
    }

    pub(crate) fn hub(message: impl Into<String>) -> Self {
        Self { code: HUB, message: message.into() }
    }

    pub(crate) fn job(message: impl Into<String>) -> Self {
        Self { code: JOB_FAILED, message: message.into() }
    }
}

/// Runs the program; `args[0]` is its name.
pub fn run(args: Vec<OsString>) -> ExitCode {
    // The hub of `dev` starts this program again to fill templates.
    if let Some(ended) = passerelle_hub::mediations::sandbox::part(&args) {
        return ended;
    }
    // The two parts of `dev` that are processes of their own. They are not for people, so they are not in the help.
    match args.get(1).and_then(|first| first.to_str()) {
        Some(dev::HUB_PART) => return dev::part("passerelle-hub", &args, passerelle_hub::run),
        Some(dev::AGENT_PART) => return dev::part("passerelle-agent", &args, passerelle_agent::run),
        _ => {}
    }
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too; a closed pipe is no reason to fail.
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
        }
    };
    // An error says that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return end(Err(Failure::hub(format!("the program cannot start its threads: {error}"))));
        }
    };
    end(runtime.block_on(Box::pin(perform(cli))))
}

async fn perform(cli: Cli) -> Result<(), Failure> {
    let out = Out::stdout();
    let done = perform_to(cli.command, &out).await;
    match (done, out.lost()) {
        (Ok(()), Some(error)) => {
            Err(Failure { code: JOB_FAILED, message: format!("the output could not be written: {error}") })
        }
        (done, _) => done,
    }
}

async fn perform_to(command: Command, out: &Out) -> Result<(), Failure> {
    match command {
        Command::Dev(dev) => dev::run(dev, out).await,
        Command::Jobs(command) => jobs::run(command, out).await,
        Command::Call(command) => call::run(&command, out).await,
        Command::Events(command) => events::run(command, out).await,
        Command::Keys(command) => keys::run(&command, out),
        Command::Mediations(command) => mediations::run(command, out).await,
        Command::Sites(command) => lists::sites(&command, out).await,
        Command::Agents(command) => lists::agents(&command, out).await,
        Command::Receipts(Receipts::Verify(command)) => receipts::verify(&command, out).await,
        Command::Sample(command) => sample::run(command, out).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "passerelle", &mut script);
            out.bytes(&script);
            Ok(())
        }
    }
}

fn end(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            if !message.is_empty() {
                eprintln!("error: {message}");
            }
            ExitCode::from(code)
        }
    }
}
