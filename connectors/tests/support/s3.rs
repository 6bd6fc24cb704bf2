//! Real S3-compatible stores in folders of their own, on free loopback ports, for tests: nanio, which verifies
//! signatures, keeps uploads across a kill, and knows no conditions, as many stores; and s3s-fs, which obeys them. Both keep
//! objects as files, so that a test sees what is there. `tests/run` installs them into `target/test-s3`. Self-contained:
//! another crate's library can include it as a public module with `#[path]`.
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

/// Who may ask.
pub const ACCESS_KEY_ID: &str = "PASSERELLETESTS";
/// And with what.
pub const SECRET_ACCESS_KEY: &str = "a/secret+key=of the tests";
/// The bucket that every store has.
pub const BUCKET: &str = "files";

/// Which store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// nanio, from PyPI.
    Nanio,
    /// s3s-fs, from crates.io.
    S3s,
}

/// A running store. Stopped when dropped.
pub struct S3 {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    kind: Kind,
    dir: PathBuf,
    child: Option<Child>,
}

impl S3 {
    /// Starts a store that keeps everything in `dir`.
    pub fn start(kind: Kind, dir: &Path) -> Self {
        fs::create_dir_all(dir.join("data").join(BUCKET)).unwrap();
        let mut store = Self { port: free_port(), kind, dir: dir.to_owned(), child: None };
        for _ in 0..5 {
            if store.try_start() {
                return store;
            }
            // Someone took the port between looking and listening.
            store.port = free_port();
        }
        panic!("{kind:?} does not start: {}", store.log());
    }

    /// The folder that is the bucket.
    #[must_use]
    pub fn bucket(&self) -> PathBuf {
        self.dir.join("data").join(BUCKET)
    }

    /// The URL of the store, as resources write it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts it again after [`Self::stop`], on the same port.
    pub fn restart(&mut self) {
        self.stop();
        assert!(self.try_start(), "{:?} does not start again: {}", self.kind, self.log());
    }

    /// Kills it, as a power cut would.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(&child, "KILL");
            drop(child.kill());
            drop(child.wait());
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
            let deadline = Instant::now() + Duration::from_secs(90);
            while Instant::now() < deadline
                && TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
            {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Freezes it: connections stay, nothing answers.
    pub fn freeze(&self) {
        signal(self.child.as_ref().unwrap(), "STOP");
    }

    /// Lets a frozen one go on.
    pub fn thaw(&self) {
        signal(self.child.as_ref().unwrap(), "CONT");
    }

    /// What it logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("store.log")).unwrap_or_default()
    }

    /// How many uploads are open.
    #[must_use]
    pub fn uploads(&self) -> usize {
        let names = |folder: PathBuf| -> Vec<String> {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        match self.kind {
            Kind::Nanio => names(self.dir.join("data/.nanio/multipart")).len(),
            Kind::S3s => {
                let data = names(self.dir.join("data"));
                data.iter().filter(|name| name.starts_with(".upload-")).count()
            }
        }
    }

    fn try_start(&mut self) -> bool {
        let (data, port) = (self.dir.join("data"), self.port.to_string());
        let mut command = match self.kind {
            Kind::Nanio => {
                let mut command = Command::new(program("nanio"));
                command
                    .args(["serve", "--host", "127.0.0.1", "--port", &port, "--data-dir"])
                    .arg(&data)
                    .env("NANIO_ACCESS_KEY", ACCESS_KEY_ID)
                    .env("NANIO_SECRET_KEY", SECRET_ACCESS_KEY);
                command
            }
            Kind::S3s => {
                let mut command = Command::new(program("s3s-fs"));
                command
                    .args(["--host", "127.0.0.1", "--port", &port, "--access-key", ACCESS_KEY_ID])
                    .args(["--secret-key", SECRET_ACCESS_KEY])
                    .arg(&data)
                    .env("RUST_LOG", "warn");
                command
            }
        };
        let log = fs::File::options().create(true).append(true).open(self.dir.join("store.log")).unwrap();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("no S3-compatible store ({error}): `bash tests/run` installs nanio and s3s-fs")
            });
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let deadline = Instant::now() + Duration::from_secs(90);
        while Instant::now() < deadline {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok() {
                self.child = Some(child);
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        signal(&child, "KILL");
        drop(child.wait());
        false
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.stop();
    }
}

/// To all processes of the store: it leads a group of its own.
fn signal(child: &Child, signal: &str) {
    let group = format!("-{}", child.id());
    drop(Command::new("kill").args([&format!("-{signal}"), "--", &group]).stderr(Stdio::null()).status());
}

/// Where `tests/run` installs it, or on the path.
fn program(name: &str) -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let installed = me.ancestors().map(|dir| dir.join("test-s3/bin").join(name)).find(|path| path.is_file());
    installed.unwrap_or_else(|| name.into())
}
