//! A real Samba server and a folder on its share, for agents.

use crate::{
    Agent, resources,
    samba::{Options, PASSWORD, Samba},
    server::Server as _,
};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A running `smbd` with a root folder for the files.
pub struct SmbServer {
    server: Samba,
    root: PathBuf,
    // Last, so that the server ends before its folder goes.
    _home: TempDir,
}

impl SmbServer {
    /// Starts it; its share may demand encryption.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(encrypted: bool) -> Self {
        let home = tempfile::Builder::new().prefix("passerelle-smbd-").tempdir().expect("a temporary folder");
        let root = home.path().join("share/root");
        fs::create_dir_all(&root).expect("a root folder");
        let options = Options { encrypted, ..Options::default() };
        let server = Samba::start(&home.path().join("samba"), &home.path().join("share"), options);
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

    /// The folder that the resources of [`Self::serve_to`] show.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Gives an agent the resource `name` on this server, with the password.
    pub fn serve_to(&self, agent: &Agent, name: &str) {
        self.serve_through(agent, name, self.port());
    }

    /// The same through another port, that of a fault proxy for example.
    pub fn serve_through(&self, agent: &Agent, name: &str, port: u16) {
        agent.secret("smb_password", PASSWORD);
        agent.resource(name, &resources::smb(name, port));
    }
}
