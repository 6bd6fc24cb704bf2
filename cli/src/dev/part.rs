//! A part of `dev` that is a process of its own: started, watched, stopped; and what it does on its side.

use crate::Failure;
use rustix::process::{Pid, Signal, getpid, kill_process};
use std::{
    ffi::OsString,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    thread,
    time::Duration,
};
use tokio::process::{Child, ChildStdin, Command};

/// The hidden first argument that makes this program the hub.
pub(crate) const HUB_PART: &str = "__hub";
/// The hidden first argument that makes this program the agent.
pub(crate) const AGENT_PART: &str = "__agent";

/// How long a part may take to end before it is killed; jobs of `dev` are short.
const GRACE: Duration = Duration::from_secs(10);
const LAST_LINES: usize = 15;
/// A log longer than this is not read whole for its last lines.
const LAST_BYTES: usize = 64 * 1024;

/// Settings of other agents and hubs, and proxies: what `dev` starts must not hear of them.
const NOT_FOR_PARTS: &[&str] = &[
    "PASSERELLE_CONFIG",
    "PASSERELLE_LISTEN",
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Runs a part in this process: `args` are the program, the hidden argument, and the part's own arguments.
pub(crate) fn part(name: &str, args: &[OsString], run: impl FnOnce(Vec<OsString>) -> ExitCode) -> ExitCode {
    thread::spawn(end_with_parent);
    let own = std::iter::once(name.into()).chain(args.iter().skip(2).cloned());
    run(own.collect())
}

/// The parent holds the other end of standard input; when that closes, it is gone or wants this to end.
fn end_with_parent() {
    let mut byte = [0];
    while matches!(std::io::stdin().read(&mut byte), Ok(1)) {}
    // The polite way first; if the process is already past its handlers, this just ends it.
    let _ = kill_process(getpid(), Signal::TERM);
    thread::sleep(GRACE);
    std::process::exit(1);
}

/// A running part.
pub(super) struct Part {
    pub(super) name: &'static str,
    child: Child,
    /// Open for as long as this process lives: the part's sign that it does.
    _lifeline: Option<ChildStdin>,
    log: PathBuf,
}

impl Part {
    /// Starts this program again as a part; what it says goes into the file `log`.
    pub(super) fn start(
        name: &'static str,
        part: &str,
        arguments: &[OsString],
        log: PathBuf,
    ) -> Result<Self, Failure> {
        let failed = |e: std::io::Error| Failure::hub(format!("cannot start the {name}: {e}"));
        let file = File::create(&log).map_err(failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command
            .arg(part)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file)
            // Ctrl-C at the terminal is for this process, which then stops its parts in order.
            .process_group(0)
            .kill_on_drop(true);
        for variable in NOT_FOR_PARTS {
            command.env_remove(variable);
        }
        let mut child = command.spawn().map_err(failed)?;
        let lifeline = child.stdin.take();
        Ok(Self { name, child, _lifeline: lifeline, log })
    }

    /// Fails if the part has ended.
    pub(super) fn check(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(Failure::hub(format!("the {} ended ({status})\n{}", self.name, self.last_words())))
            }
            Err(e) => Err(Failure::hub(format!("cannot see whether the {} still runs: {e}", self.name))),
        }
    }

    /// The end of the part's log, for messages.
    pub(super) fn last_words(&self) -> String {
        let lines = last_lines(&self.log);
        format!("--- the end of the {}'s log\n{lines}", self.name)
    }

    /// Asks the part to end, and waits for it.
    pub(super) async fn stop(&mut self) {
        let id = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        // Without an id it has ended already.
        let Some(id) = id else { return };
        let _ = kill_process(id, Signal::TERM);
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            eprintln!("the {} did not end within {} s and is killed", self.name, GRACE.as_secs());
            let _ = self.child.kill().await;
        }
    }
}

fn last_lines(log: &Path) -> String {
    let content = fs::read(log).unwrap_or_default();
    let tail = content.get(content.len().saturating_sub(LAST_BYTES)..).unwrap_or_default();
    let text = String::from_utf8_lossy(tail);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default();
    last.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::last_lines;

    #[test]
    fn the_last_lines_of_a_log_are_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text: String = (0..5000).map(|n| format!("line number {n}\n")).collect();
        std::fs::write(file.path(), text).unwrap();
        let last = last_lines(file.path());
        assert_eq!(last.lines().count(), 15);
        assert!(last.starts_with("line number 4985\n") && last.ends_with("line number 4999\n"));
        assert_eq!(last_lines(std::path::Path::new("/no/such/log")), "");
    }
}
