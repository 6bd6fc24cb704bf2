//! A real OpenSSH server and a folder on it, for agents and for OpenSSH's own client.

use crate::{Agent, resources, server::Server as _, sshd::Sshd};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A running `sshd` with a root folder for the files.
pub struct SshServer {
    server: Sshd,
    root: PathBuf,
    // Last, so that the server ends before its folder goes.
    _home: TempDir,
}

impl SshServer {
    /// Starts it.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start() -> Self {
        let home = tempfile::Builder::new().prefix("passerelle-sshd-").tempdir().expect("a temporary folder");
        let root = home.path().join("root");
        fs::create_dir(&root).expect("a root folder");
        let server = Sshd::start(&home.path().join("sshd"));
        Self { server, root, _home: home }
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Kills the server with all its sessions, as a power cut would, and starts it again on the same port.
    pub fn restart(&mut self) {
        self.server.restart();
    }

    /// Kills the server with all its sessions.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// What it logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// The folder that the resources of [`Self::serve_to`] show.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Who may log in: the user who runs the tests.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.server.user
    }

    /// The private key's file.
    #[must_use]
    pub fn user_key(&self) -> PathBuf {
        self.server.client_key()
    }

    /// The lines of `known_hosts` for this server as seen through `port`.
    #[must_use]
    pub fn known_hosts(&self, port: u16) -> String {
        self.server.known_hosts().replace(&format!("]:{} ", self.server.port()), &format!("]:{port} "))
    }

    /// Gives an agent the resource `name` on this server, with the key and the known host.
    pub fn serve_to(&self, agent: &Agent, name: &str) {
        self.serve_through(agent, name, self.port());
    }

    /// The same through another port, that of a fault proxy for example.
    ///
    /// # Panics
    /// If the key has gone.
    pub fn serve_through(&self, agent: &Agent, name: &str, port: u16) {
        let key = fs::read_to_string(self.user_key()).expect("the user key");
        agent.secret("ssh_key", &key);
        agent.file("known_hosts", self.known_hosts(port));
        agent.resource(name, &resources::sftp(name, port, &self.root, self.user()));
    }
}
