//! What all servers of the tests have in common: a folder and a free loopback port of their own, and processes that are
//! waited for, frozen, killed and started again. Another crate's library can include it as a module with `#[path]`.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use super::port::free_port;
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long a server may take to come or go on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often another port is tried, where somebody took the one that was free.
const TRIES: u32 = 5;

/// A server's folder, port and processes. They end with this value.
pub struct Core {
    /// Where it listens, on 127.0.0.1.
    port: u16,
    /// Its configuration, keys and log.
    dir: PathBuf,
    child: Option<Child>,
}

impl Core {
    /// For a server that keeps all that is its own in `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        Self { port: free_port(), dir: dir.to_owned(), child: None }
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of one of its own files.
    #[must_use]
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes one of its own files.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.at(name), content).unwrap();
    }

    /// What is in one of its own files, if there is one.
    #[must_use]
    pub fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.at(name)).unwrap_or_default()).into_owned()
    }

    fn try_start(&mut self, mut command: Command) -> bool {
        let output = fs::File::options().create(true).append(true).open(self.at("output")).unwrap();
        let started = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            // A group of its own, so that all of it can be stopped.
            .process_group(0)
            .spawn();
        let mut child = started.unwrap_or_else(|error| {
            panic!("{command:?}: {error}; bash tests/run installs all servers that the tests need")
        });
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            if listens(self.port) {
                self.child = Some(child);
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.child = Some(child);
        self.stop();
        false
    }

    fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        signal(&child, "KILL");
        drop(child.kill());
        drop(child.wait());
        // Its other processes go a moment later; until then they hold the port.
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && listens(self.port) {
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, name: &str) {
        signal(self.child.as_ref().expect("the server was stopped"), name);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A real server of some kind, as the tests treat all of them.
pub trait Server: Send + Sync {
    /// What they have in common.
    fn core(&self) -> &Core;

    /// The same, to change it.
    fn core_mut(&mut self) -> &mut Core;

    /// Writes the configuration for its port and gives the command that serves in the foreground.
    fn command(&self) -> Command;

    /// Takes another host key or certificate than the one that clients know: what a stranger in its place would have.
    /// Holds from the next start. `false` where the protocol has none.
    fn become_another(&mut self) -> bool {
        false
    }

    /// What it said and logged.
    fn log(&self) -> String {
        let core = self.core();
        ["output", "log", "error.log", "access.log"].map(|name| core.read(name)).concat()
    }

    /// Where it listens, on 127.0.0.1.
    fn port(&self) -> u16 {
        self.core().port
    }

    /// Starts it for the first time.
    fn start_somewhere(&mut self) {
        for _ in 0..TRIES {
            let command = self.command();
            if self.core_mut().try_start(command) {
                return;
            }
            // Someone took the port between looking and listening.
            self.core_mut().port = free_port();
        }
        panic!("the server does not start: {}", self.log());
    }

    /// Kills it with all its sessions, as a power cut would, and starts it again on the same port.
    fn restart(&mut self) {
        self.stop();
        let command = self.command();
        assert!(self.core_mut().try_start(command), "the server does not start again: {}", self.log());
    }

    /// Kills it with all its sessions.
    fn stop(&mut self) {
        self.core_mut().stop();
    }

    /// Freezes it and its sessions: connections stay, nothing answers.
    fn freeze(&self) {
        self.core().signal("STOP");
    }

    /// Lets it go on.
    fn thaw(&self) {
        self.core().signal("CONT");
    }
}

fn listens(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// To the group that the server leads, and to sessions that left it.
fn signal(child: &Child, name: &str) {
    let sessions = descendants(child.id()).into_iter().map(|pid| pid.to_string());
    let told = Command::new("kill")
        .args([&format!("-{name}"), "--", &format!("-{}", child.id())])
        .args(sessions)
        .stderr(Stdio::null())
        .status();
    drop(told);
}

/// A process and all that it started, from `/proc`.
#[must_use]
pub fn descendants(root: u32) -> Vec<u32> {
    let mut all = vec![root];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        next += 1;
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    all
}
