//! A program under test as a process of its own, with its log in a file.

use crate::until;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

/// Where a program of the workspace was built: beside the running test or benchmark.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("the path of this program");
    me.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file()).unwrap_or_else(|| {
        panic!(
            "{name} is not built beside {}: run `cargo build --workspace --bins` first (with `--release` for benchmarks)",
            me.display()
        )
    })
}

/// Runs a command to its end.
///
/// # Panics
/// If it cannot be started.
pub fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"))
}

/// A running program. It is killed when this value goes; if the test is failing then, its log is printed.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; its output is added to the file `log`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("a log file");
        let copy = file.try_clone().expect("a second handle of the log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {name} ({command:?}): {e}"));
        Self { child, name: name.to_owned(), log: log.to_owned(), ended: None }
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far, over all starts with the same log file.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits for a line that contains `text`, and gives the line.
    ///
    /// # Panics
    /// If it does not come in time.
    pub async fn logged(&self, text: &str, within: Duration) -> String {
        until(&format!("{text:?} in the log of {}", self.name), within, async || {
            self.log().lines().find(|line| line.contains(text)).map(str::to_owned)
        })
        .await
    }

    /// Whether it still runs.
    ///
    /// # Panics
    /// If the system does not tell.
    pub fn is_running(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("the state of a child");
        }
        self.ended.is_none()
    }

    /// Ends it at once, as a crash would.
    ///
    /// # Panics
    /// If the system refuses.
    pub fn kill(&mut self) {
        if self.is_running() {
            self.child.kill().expect("SIGKILL");
            self.ended = Some(self.child.wait().expect("the end of a killed child"));
        }
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If the system refuses.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.id().cast_signed()).expect("a process id");
        kill_process(pid, signal).unwrap_or_else(|e| panic!("cannot signal {}: {e}", self.name));
    }

    /// Waits until it has ended by itself and gives the exit code (`None`: ended by a signal).
    ///
    /// # Panics
    /// If it does not end in time.
    pub async fn exit_code(&mut self, within: Duration) -> Option<i32> {
        let name = self.name.clone();
        until(
            &format!("the end of {name}"),
            within,
            async || {
                if self.is_running() { None } else { self.ended }
            },
        )
        .await
        .code()
    }

    /// The most memory that the process held, in KiB, beside the pages of its program: an unoptimised build has many of
    /// those, how many are mapped differs with what the page cache holds, and they take no memory that is needed.
    pub fn peak_kib(&self) -> u64 {
        self.memory_kib("VmHWM") - self.memory_kib("RssFile")
    }

    /// A field of `/proc/PID/status` in KiB: `VmHWM` (the peak of resident memory), `VmRSS`.
    ///
    /// # Panics
    /// If the process is gone.
    #[must_use]
    pub fn memory_kib(&self, field: &str) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the status of a child");
        status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok())
            .unwrap_or_else(|| panic!("{} has no {field}", self.name))
    }
}

/// The processor time that a process has taken so far, in user and system mode.
///
/// # Panics
/// If the process is gone.
#[must_use]
pub fn cpu_time(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("the state of a process");
    // proc(5): behind the name in parentheses, utime and stime are the 12th and 13th field, in ticks of 1/100 s.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

impl Drop for Process {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _status = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(120);
            eprintln!("──── log of {} ({}; its last lines)", self.name, self.log.display());
            lines[from..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}
