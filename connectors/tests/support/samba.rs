//! A real SMB server (Samba) in a folder of its own, on a free loopback port, for tests. Needs Debian's `samba`, and
//! root, whose SMB password is the tests'. Only NTLMv2, and only signed.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use super::sshd::{descendants, free_port};
use std::{
    fs,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What the tests log in with.
pub const PASSWORD: &str = "correct horse é";

/// What the server is like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// The share demands encryption.
    pub encrypted: bool,
    /// More lines for the whole server.
    pub global: &'static str,
    /// More lines for the share.
    pub share: &'static str,
}

/// A running server with one share, `files`. Stopped when dropped, with all its sessions.
pub struct Samba {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    dir: PathBuf,
    root: PathBuf,
    options: Options,
    child: Option<Child>,
}

impl Samba {
    /// Starts a server whose share is `root`.
    pub fn start(dir: &Path, root: &Path, options: Options) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mut server =
            Self { port: free_port(), dir: dir.to_owned(), root: root.to_owned(), options, child: None };
        server.configure();
        let mut smbpasswd = Command::new("smbpasswd")
            .arg("-c")
            .arg(dir.join("smb.conf"))
            .args(["-a", "-s", "root"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("smbpasswd cannot be run: apt-get install samba");
        write!(smbpasswd.stdin.take().unwrap(), "{PASSWORD}\n{PASSWORD}\n").unwrap();
        assert!(smbpasswd.wait().unwrap().success());
        for _ in 0..5 {
            if server.try_start() {
                return server;
            }
            // Someone took the port between looking and listening.
            server.port = free_port();
            server.configure();
        }
        panic!("smbd does not start: {}", server.log());
    }

    fn configure(&self) {
        let at = |name: &str| {
            fs::create_dir_all(self.dir.join(name)).unwrap();
            self.dir.join(name).display().to_string()
        };
        let encrypt = if self.options.encrypted { "smb encrypt = required" } else { "" };
        let config = format!(
            "[global]\nserver role = standalone server\nsmb ports = {}\ninterfaces = 127.0.0.1/8\n\
             bind interfaces only = yes\ndisable netbios = yes\nload printers = no\nprintcap name = /dev/null\n\
             disable spoolss = yes\nserver signing = mandatory\nntlm auth = ntlmv2-only\n\
             passdb backend = tdbsam:{}/passdb.tdb\nprivate dir = {}\nlock directory = {}\nstate directory = {}\n\
             cache directory = {}\npid directory = {}\nncalrpc dir = {}\nlog file = {}/log\nlog level = 1\n{}\n\
             [files]\npath = {}\nread only = no\ncreate mask = 0644\n{encrypt}\n{}\n\
             [print]\npath = /tmp\nprintable = yes\n",
            self.port,
            at("private"),
            at("private"),
            at("lock"),
            at("state"),
            at("cache"),
            at("pid"),
            at("ncalrpc"),
            self.dir.display(),
            self.options.global,
            self.root.display(),
            self.options.share,
        );
        fs::write(self.dir.join("smb.conf"), config).unwrap();
    }

    /// Starts it again after [`Self::stop`], on the same port.
    pub fn restart(&mut self) {
        self.stop();
        assert!(self.try_start(), "smbd does not start again: {}", self.log());
    }

    fn try_start(&mut self) -> bool {
        let output = fs::File::create(self.dir.join("output")).unwrap();
        let mut child = Command::new("/usr/sbin/smbd")
            .args(["--foreground", "--no-process-group", "--configfile"])
            .arg(self.dir.join("smb.conf"))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .expect("smbd cannot be run: apt-get install samba");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let deadline = Instant::now() + Duration::from_secs(30);
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
        drop(child.kill());
        drop(child.wait());
        false
    }

    /// Kills the server and all its sessions, as a power cut would.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(&child, "KILL");
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Freezes the server and its sessions: connections stay, nothing answers.
    pub fn freeze(&self) {
        signal(self.child.as_ref().unwrap(), "STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        signal(self.child.as_ref().unwrap(), "CONT");
    }

    /// What it said and logged.
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        read("output") + &read("log")
    }

    /// The settings of a resource whose folder is the share, or a folder in it.
    pub fn settings(&self, folder: &str, more: &str) -> String {
        format!(
            "connector = \"file\"\nurl = \"smb://127.0.0.1:{}/files{folder}\"\nusername = \"root\"\n\
             password = {{ file = \"smb-password\" }}\n{more}",
            self.port,
        )
    }
}

impl Drop for Samba {
    fn drop(&mut self) {
        self.stop();
    }
}

fn signal(child: &Child, signal: &str) {
    for pid in descendants(child.id()) {
        let told = Command::new("kill")
            .args([&format!("-{signal}"), &pid.to_string()])
            .stderr(Stdio::null())
            .status();
        drop(told);
    }
}
