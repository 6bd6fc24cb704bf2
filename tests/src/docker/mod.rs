//! Containers on a real Docker engine: what `tests/docker` builds, run as an operator runs it.
//!
//! Every container, network and volume has a name of its own and goes with the value that stands for it.

mod container;
mod folder;
mod hub;

pub use container::{Container, Health};
pub use folder::{ACCOUNT, Folder, give};
pub use hub::HubContainer;

use crate::process;
use std::{
    env,
    ffi::OsStr,
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

/// The agent's image.
pub const AGENT: &str = "passerelle/agent:dev";
/// The hub's image.
pub const HUB: &str = "passerelle/hub:dev";
/// The client's image.
pub const CLIENT: &str = "passerelle/passerelle:dev";
/// What makes a container as locked down as a careful operator has it.
pub const HARDENED: [&str; 5] = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"];

/// A command of the Docker client; Debian's, since another one that stands before it in the path may have no builder.
#[must_use]
pub fn command() -> Command {
    let program = env::var_os("DOCKER").unwrap_or_else(|| {
        let debian = Path::new("/usr/bin/docker");
        if debian.exists() { debian.as_os_str() } else { OsStr::new("docker") }.to_owned()
    });
    Command::new(program)
}

/// Runs a command of the Docker client to its end, however it ends.
pub fn docker_output<S: AsRef<OsStr>>(arguments: &[S]) -> Output {
    process::run(command().args(arguments))
}

/// Runs a command of the Docker client that must succeed, and gives what it printed, trimmed.
///
/// # Panics
/// If it fails.
pub fn docker<S: AsRef<OsStr>>(arguments: &[S]) -> String {
    let output = docker_output(arguments);
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(
        output.status.success(),
        "docker {:?} failed ({}); without an engine and images run `bash tests/docker`:\n{said}\n{}",
        arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect::<Vec<_>>(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// Both outputs of an ended command as one text.
#[must_use]
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A name that nothing else on the engine has.
#[must_use]
pub fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("passerelle-test-{}-{}-{what}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A network of its own.
pub struct Bridge(String);

impl Bridge {
    /// Makes one; `more` are further arguments of `docker network create`.
    #[must_use]
    pub fn new(more: &[&str]) -> Self {
        let name = unique("net");
        docker(&[&["network", "create"], more, &[&name]].concat());
        Self(name)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        docker_output(&["network", "rm", &self.0]);
    }
}

/// A volume of its own.
pub struct Volume(String);

impl Volume {
    /// Makes one; its owner is that of the folder on which it is mounted first.
    #[must_use]
    pub fn new() -> Self {
        let name = unique("volume");
        docker(&["volume", "create", &name]);
        Self(name)
    }

    /// `NAME:PATH`, as `docker run -v` takes it.
    #[must_use]
    pub fn at(&self, path: &str) -> String {
        format!("{}:{path}", self.0)
    }
}

impl Default for Volume {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        docker_output(&["volume", "rm", "--force", &self.0]);
    }
}
