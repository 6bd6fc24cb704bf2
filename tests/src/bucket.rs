//! A real S3-compatible object store and a prefix in a bucket of it, for agents.

use crate::{
    Agent, resources,
    s3::{ACCESS_KEY_ID, Kind, S3, SECRET_ACCESS_KEY},
};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A running store, whose objects are files in a folder.
pub struct ObjectStore {
    server: S3,
    root: PathBuf,
    // Last, so that the store ends before its folder goes.
    _home: TempDir,
}

impl ObjectStore {
    /// Starts it.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(kind: Kind) -> Self {
        let home = tempfile::Builder::new().prefix("passerelle-s3-").tempdir().expect("a temporary folder");
        let server = S3::start(kind, &home.path().join("s3"));
        let root = server.bucket().join("root");
        fs::create_dir(&root).expect("a folder in the bucket");
        Self { server, root, _home: home }
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Kills the store, as a power cut would.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// Starts it again on the same port.
    pub fn restart(&mut self) {
        self.server.restart();
    }

    /// The folder that the resources of [`Self::serve_through`] show.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How many uploads are open.
    #[must_use]
    pub fn uploads(&self) -> usize {
        self.server.uploads()
    }

    /// Gives an agent the resource `name` in this store, reached by `port`: its own, or that of a fault proxy.
    pub fn serve_through(&self, agent: &Agent, name: &str, port: u16) {
        agent.secret("s3_id", ACCESS_KEY_ID);
        agent.secret("s3_key", SECRET_ACCESS_KEY);
        agent.resource(name, &resources::bucket(name, port));
    }
}
