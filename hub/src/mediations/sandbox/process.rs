//! A worker as the hub has it: started, asked, and why it ended.

use super::{
    frames::{self, Kind},
    size::Size,
};
use serde::Serialize;
use std::{
    io,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// A worker that computes is ended by its own limit; this is for one that does not even run.
const WALL: u32 = 10;
/// How long a worker that closed its pipe may take to end.
const ENDING: Duration = Duration::from_secs(5);
/// The longest message after which a worker is kept: memory that is not given back would stay for long.
const KEPT: usize = 1024 * 1024;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The templates' own fault, in words that may be public.
    Unfit(String),
    /// The same, of an answer that took too much or is too long: for fewer items it may fit.
    TooMuch(String),
    /// It may go well the next time.
    Passing(String),
}

impl Fault {
    /// What it says, after the place; and whether it may go well the next time.
    pub(crate) fn said(self, place: &str) -> (String, bool) {
        match self {
            Self::Unfit(why) | Self::TooMuch(why) => (format!("{place}{why}"), false),
            Self::Passing(why) => (why, true),
        }
    }
}

/// A running worker. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    size: Size,
    longest: usize,
    last: bool,
}

impl Worker {
    /// Starts one.
    ///
    /// # Errors
    /// The system has no process for it.
    pub(super) fn start(program: &Path, size: Size) -> Result<Self, Fault> {
        let mut command = Command::new(program);
        command
            .arg0("passerelle-hub")
            .arg(super::TEMPLATES_PART)
            .args(size.words())
            .env_clear()
            // The allocator would reserve a gibibyte at once, which is all that a worker has.
            .env("MIMALLOC_ARENA_RESERVE", "16M")
            .envs(std::env::var_os("TZDIR").map(|folder| ("TZDIR", folder)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // What a terminal sends is for the hub, which ends its workers itself.
            .process_group(0)
            .kill_on_drop(true);
        let started = command.spawn().and_then(|mut child| {
            let pipes = child.stdin.take().zip(child.stdout.take());
            let (input, output) = pipes.ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(Self { child, input, output: BufReader::new(output), size, longest: 0, last: false })
        });
        started.map_err(|error| {
            tracing::error!(%error, "Could not start a process for templates");
            Fault::Passing("the hub could not start a process for templates: its log says more".to_owned())
        })
    }

    /// Whether it can be asked again.
    pub(super) fn is_fit(&mut self) -> bool {
        !self.last && self.longest <= KEPT && matches!(self.child.try_wait(), Ok(None))
    }

    /// Hands a message over.
    ///
    /// # Errors
    /// Why the worker ended.
    pub(super) async fn ask(&mut self, message: &impl Serialize) -> Result<(), Fault> {
        let body = serde_json::to_vec(message)
            .map_err(|_| Fault::Unfit("a value cannot be written as JSON".to_owned()))?;
        self.longest = self.longest.max(body.len());
        let writing = async {
            self.input.write_all(&frames::head(Kind::Asked, body.len())?).await?;
            self.input.write_all(&body).await?;
            self.input.flush().await
        };
        match timeout(self.size.computing * WALL, writing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.ended(&error).await),
            Err(_) => Err(stuck()),
        }
    }

    /// The next frame of its answer.
    ///
    /// # Errors
    /// Why the worker ended; what the template said.
    pub(super) async fn answer(&mut self) -> Result<(Kind, Vec<u8>), Fault> {
        let (kind, body) =
            match timeout(self.size.computing * WALL, frames::read_answer(&mut self.output)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => return Err(self.ended(&error).await),
                Err(_) => return Err(stuck()),
            };
        self.longest = self.longest.max(body.len());
        match kind {
            Kind::Unfit => Err(Fault::Unfit(String::from_utf8_lossy(&body).into_owned())),
            kind => Ok((kind, body)),
        }
    }

    /// The end of an answer.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub(super) async fn done<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, Fault> {
        let (kind, body) = self.answer().await?;
        self.last = kind == Kind::Last;
        serde_json::from_slice(&body)
            .map_err(|_| Fault::Unfit("the templates give values that are nested too deeply".to_owned()))
    }

    async fn ended(&mut self, error: &io::Error) -> Fault {
        if error.kind() == io::ErrorKind::FileTooLarge {
            let most = frames::MAX_ANSWER / 1024 / 1024;
            return Fault::TooMuch(format!("the templates give more than {most} MiB"));
        }
        match timeout(ENDING, self.child.wait()).await {
            Ok(Ok(status)) => judge(status, self.size),
            Ok(Err(error)) => confused(&error),
            Err(_) => confused(error),
        }
    }
}

/// What a worker's end says of the template that it had.
fn judge(status: ExitStatus, size: Size) -> Fault {
    let signal = |wanted: rustix::process::Signal| status.signal() == Some(wanted.as_raw());
    if signal(rustix::process::Signal::XCPU) {
        return Fault::TooMuch(format!("the template computes for more than {} s", size.computing.as_secs()));
    }
    // Memory that is not given ends the program; so does a stack that is too deep.
    if [rustix::process::Signal::ABORT, rustix::process::Signal::SEGV].into_iter().any(signal) {
        let most = size.memory / 1024 / 1024;
        return Fault::TooMuch(format!("the template takes more than {most} MiB of memory"));
    }
    tracing::error!(%status, "A process for templates ended");
    Fault::Passing("the process for the hub's templates ended: the hub's log says more".to_owned())
}

fn stuck() -> Fault {
    tracing::error!("A process for templates gave no answer, and is killed");
    Fault::Passing("the process for the hub's templates gave no answer".to_owned())
}

fn confused(error: &io::Error) -> Fault {
    tracing::error!(%error, "A process for templates gave an answer that is none");
    Fault::Passing("the process for the hub's templates gave no answer".to_owned())
}
