//! A small CRM with a REST interface (Django REST framework on SQLite, see `rest_server.py`) in a folder of its own, on a
//! free loopback port, for tests. `tests/run` installs it into `target/test-rest`. Self-contained: another crate's library
//! can include it as a public module with `#[path]`.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use super::port::free_port;
use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What the server wants to see in `Authorization: Token …`.
pub const TOKEN: &str = "geheimes-token-der-tests";

/// A running CRM. Killed when dropped; its records stay in the folder.
pub struct RestServer {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    dir: PathBuf,
    child: Option<Child>,
}

impl RestServer {
    /// Starts one that keeps its records in `dir`.
    pub fn start(dir: &Path) -> Self {
        let mut server = Self { port: free_port(), dir: dir.to_owned(), child: None };
        server.restart();
        server
    }

    /// The address of its interface.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/api/", self.port)
    }

    /// Starts it again, on the same port, with the same records.
    pub fn restart(&mut self) {
        self.stop();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let log = File::create(self.dir.join("server.log")).unwrap();
        let child = Command::new(root.join("target/test-rest/bin/python3"))
            .arg(root.join("connectors/tests/support/rest_server.py"))
            .args([&self.port.to_string(), &self.dir.join("crm.sqlite").display().to_string(), TOKEN])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("target/test-rest holds Django: tests/run installs it");
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.listens() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "the CRM does not start: {}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    fn listens(&self) -> bool {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("server.log")).unwrap_or_default()
    }
}

impl Drop for RestServer {
    fn drop(&mut self) {
        self.stop();
    }
}
