//! One container.

use super::{docker, docker_output, said, unique};
use crate::until;
use serde_json::Value;
use std::{process::Output, time::Duration};

/// What the engine says of a container's health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Not asked often enough yet, or no check at all.
    Starting,
    /// The last check was well.
    Healthy,
    /// The last checks were not.
    Unhealthy,
}

/// A container. It is removed when this value goes; if the test is failing then, its log is printed.
pub struct Container {
    name: String,
}

impl Container {
    /// `docker run --detach` with these arguments: options, image, and what stands behind it.
    #[must_use]
    pub fn run(what: &str, arguments: &[&str]) -> Self {
        let container = Self { name: unique(what) };
        docker(&[&["run", "--detach", "--name", &container.name], arguments].concat());
        container
    }

    /// `docker create` with these arguments.
    #[must_use]
    pub fn create(what: &str, arguments: &[&str]) -> Self {
        let container = Self { name: unique(what) };
        docker(&[&["create", "--name", &container.name], arguments].concat());
        container
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All that it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        said(&docker_output(&["logs", &self.name]))
    }

    /// Waits for a line that contains `text`, and gives the line.
    pub async fn logged(&self, text: &str, within: Duration) -> String {
        until(&format!("{text:?} in the log of {}", self.name), within, async || {
            self.log().lines().find(|line| line.contains(text)).map(str::to_owned)
        })
        .await
    }

    /// What `docker inspect` says.
    ///
    /// # Panics
    /// If it is gone.
    #[must_use]
    pub fn inspect(&self) -> Value {
        let text = docker(&["inspect", &self.name]);
        let mut all: Vec<Value> = serde_json::from_str(&text).expect("a list of containers");
        all.pop().expect("one container")
    }

    /// How often the engine has started it again.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.inspect()["RestartCount"].as_u64().unwrap_or(0)
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.inspect()["State"]["Running"].as_bool().unwrap_or(false)
    }

    /// The exit code of its last end.
    #[must_use]
    pub fn exit_code(&self) -> i64 {
        self.inspect()["State"]["ExitCode"].as_i64().unwrap_or(-1)
    }

    /// What its health check says.
    #[must_use]
    pub fn health(&self) -> Health {
        match self.inspect()["State"]["Health"]["Status"].as_str() {
            Some("healthy") => Health::Healthy,
            Some("unhealthy") => Health::Unhealthy,
            Some(_) | None => Health::Starting,
        }
    }

    /// Waits until the engine says that it is healthy.
    ///
    /// # Panics
    /// If it ends meanwhile, or does not become so.
    pub async fn healthy(&self, within: Duration) {
        until(&format!("{} to be healthy", self.name), within, async || {
            assert!(self.is_running(), "{} ended:\n{}", self.name, self.log());
            (self.health() == Health::Healthy).then_some(())
        })
        .await;
    }

    /// Waits until a command in it succeeds; its programs are all there is to ask, since it has no shell.
    ///
    /// # Panics
    /// If it ends meanwhile, or the command does not succeed in time.
    pub async fn answers(&self, arguments: &[&str], within: Duration) {
        until(&format!("{arguments:?} in {}", self.name), within, async || {
            assert!(self.is_running(), "{} ended:\n{}", self.name, self.log());
            self.exec(arguments).status.success().then_some(())
        })
        .await;
    }

    /// `docker exec`.
    pub fn exec(&self, arguments: &[&str]) -> Output {
        docker_output(&[&["exec", &self.name], arguments].concat())
    }

    /// `docker stop`, which lets it have so many seconds; gives the exit code.
    pub fn stop(&self, seconds: u32) -> i64 {
        docker(&["stop", "--time", &seconds.to_string(), &self.name]);
        self.exit_code()
    }

    /// `docker start`.
    pub fn start(&self) {
        docker(&["start", &self.name]);
    }

    /// `docker rm --force`: it is gone at once, as when somebody replaces it.
    pub fn remove(self) {
        drop(self);
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("──── log of the container {} (its last lines)", self.name);
            lines[lines.len().saturating_sub(80)..].iter().for_each(|line| eprintln!("{line}"));
        }
        docker_output(&["rm", "--force", "--volumes", &self.name]);
    }
}
