//! A real OpenSSH server in a folder of its own, on a free loopback port, for tests. Needs Debian's `openssh-server`
//! and `openssh-client`. Self-contained: another crate's library can include it as a public module with `#[path]`.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How a server differs from the ordinary one.
#[derive(Debug, Clone)]
pub struct Options {
    /// The SFTP server: `internal-sftp`, or with `-P` and requests it shall not offer.
    pub sftp: String,
    /// Lines added to `sshd_config`.
    pub extra: String,
    /// Types of host keys, as `ssh-keygen -t` takes them.
    pub host_keys: &'static [&'static str],
}

impl Default for Options {
    fn default() -> Self {
        Self { sftp: "internal-sftp".to_owned(), extra: String::new(), host_keys: &["ed25519"] }
    }
}

/// A running server. Stopped when dropped, with all its sessions.
pub struct Sshd {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    /// Who may log in.
    pub user: String,
    dir: PathBuf,
    options: Options,
    child: Option<Child>,
}

impl Sshd {
    /// Starts a server that keeps its keys, configuration and log in `dir`.
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, Options::default())
    }

    /// Starts a server that differs from the ordinary one.
    pub fn start_with(dir: &Path, options: Options) -> Self {
        fs::create_dir_all(dir).unwrap();
        for kind in options.host_keys {
            keygen(&dir.join(format!("host_{kind}")), kind, &[]);
        }
        keygen(&dir.join("client_ed25519"), "ed25519", &[]);
        fs::copy(dir.join("client_ed25519.pub"), dir.join("authorized_keys")).unwrap();
        let user = Command::new("id").arg("-un").output().unwrap();
        let user = String::from_utf8(user.stdout).unwrap().trim().to_owned();
        let mut server = Self { port: free_port(), user, dir: dir.to_owned(), options, child: None };
        for _ in 0..5 {
            if server.try_start() {
                return server;
            }
            // Someone took the port between looking and listening.
            server.port = free_port();
        }
        panic!("sshd does not start: {}", server.log());
    }

    /// Starts it again after [`Self::stop`], on the same port.
    pub fn restart(&mut self) {
        self.stop();
        assert!(self.try_start(), "sshd does not start again: {}", self.log());
    }

    fn try_start(&mut self) -> bool {
        let mut config = format!(
            "Port {}\nListenAddress 127.0.0.1\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             MaxStartups 200\nSubsystem sftp {}\n",
            self.port,
            self.dir.join("authorized_keys").display(),
            self.options.sftp,
        );
        for kind in self.options.host_keys {
            config += &format!("HostKey {}\n", self.dir.join(format!("host_{kind}")).display());
        }
        config += &self.options.extra;
        fs::write(self.dir.join("sshd_config"), config).unwrap();
        // Where sshd, as root, confines its unprivileged half.
        drop(fs::create_dir_all("/run/sshd"));
        let mut child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-E"])
            .arg(self.dir.join("sshd.log"))
            .arg("-f")
            .arg(self.dir.join("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own, so that its sessions can be stopped with it.
            .process_group(0)
            .spawn()
            .expect("sshd cannot be run: apt-get install openssh-server");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let deadline = Instant::now() + Duration::from_secs(20);
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
            self.signal(&child, "KILL");
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Freezes the server and its sessions: connections stay, nothing answers.
    pub fn freeze(&self) {
        self.signal(self.child.as_ref().unwrap(), "STOP");
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        self.signal(self.child.as_ref().unwrap(), "CONT");
    }

    /// The server is the leader of its process group; the group's sessions are its children's children too.
    fn signal(&self, child: &Child, signal: &str) {
        for pid in descendants(child.id()) {
            drop(
                Command::new("kill")
                    .args([&format!("-{signal}"), &pid.to_string()])
                    .stderr(Stdio::null())
                    .status(),
            );
        }
    }

    /// The client's ed25519 key, in OpenSSH's format.
    pub fn client_key(&self) -> PathBuf {
        self.dir.join("client_ed25519")
    }

    /// Makes another client key and lets it in: `ssh-keygen -t kind` with more arguments.
    pub fn authorize(&self, name: &str, kind: &str, arguments: &[&str]) -> PathBuf {
        let path = self.dir.join(name);
        keygen(&path, kind, arguments);
        let mut keys = fs::read_to_string(self.dir.join("authorized_keys")).unwrap();
        keys += &fs::read_to_string(path.with_extension("pub")).unwrap();
        fs::write(self.dir.join("authorized_keys"), keys).unwrap();
        path
    }

    /// An RSA client key in PEM format, let in.
    pub fn rsa_client_key(&self) -> PathBuf {
        self.authorize("client_rsa", "rsa", &["-b", "2048", "-m", "PEM"])
    }

    /// The line of a `known_hosts` file for a host key of this type.
    pub fn known_hosts_line(&self, kind: &str) -> String {
        let key = fs::read_to_string(self.dir.join(format!("host_{kind}.pub"))).unwrap();
        let key = key.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        format!("[127.0.0.1]:{} {key}\n", self.port)
    }

    /// The lines for all its host keys.
    pub fn known_hosts(&self) -> String {
        self.options.host_keys.iter().map(|kind| self.known_hosts_line(kind)).collect()
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("sshd.log")).unwrap_or_default()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A port that is free at the moment.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Makes a key pair without a passphrase unless `arguments` give one.
pub fn keygen(path: &Path, kind: &str, arguments: &[&str]) {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", kind, "-C", "test"]).args(arguments);
    if !arguments.contains(&"-N") {
        command.args(["-N", ""]);
    }
    let made = command.arg("-f").arg(path).stdin(Stdio::null()).status();
    assert!(made.expect("ssh-keygen cannot be run: apt-get install openssh-client").success());
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A process and all that it started, from `/proc`.
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
