//! A real OpenSSH server in a folder of its own, on a free loopback port, for tests. Needs Debian's `openssh-server`
//! and `openssh-client`. Another crate's library can include it as a public module with `#[path]`, beside `server`.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use super::server::{Core, Server};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
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
    /// Who may log in.
    pub user: String,
    options: Options,
    core: Core,
}

impl Sshd {
    /// Starts a server that keeps its keys, configuration and log in `dir`.
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, Options::default())
    }

    /// Starts a server that differs from the ordinary one.
    pub fn start_with(dir: &Path, options: Options) -> Self {
        let user = Command::new("id").arg("-un").output().unwrap();
        let user = String::from_utf8(user.stdout).unwrap().trim().to_owned();
        let mut server = Self { user, options, core: Core::new(dir) };
        server.make_host_keys();
        keygen(&server.core.at("client_ed25519"), "ed25519", &[]);
        fs::copy(server.core.at("client_ed25519.pub"), server.core.at("authorized_keys")).unwrap();
        server.start_somewhere();
        server
    }

    fn make_host_keys(&self) {
        for kind in self.options.host_keys {
            let path = self.core.at(&format!("host_{kind}"));
            drop(fs::remove_file(&path));
            keygen(&path, kind, &[]);
        }
    }

    /// The client's ed25519 key, in OpenSSH's format.
    pub fn client_key(&self) -> PathBuf {
        self.core.at("client_ed25519")
    }

    /// Makes another client key and lets it in: `ssh-keygen -t kind` with more arguments.
    pub fn authorize(&self, name: &str, kind: &str, arguments: &[&str]) -> PathBuf {
        let path = self.core.at(name);
        keygen(&path, kind, arguments);
        let mut keys = fs::read_to_string(self.core.at("authorized_keys")).unwrap();
        keys += &fs::read_to_string(path.with_extension("pub")).unwrap();
        fs::write(self.core.at("authorized_keys"), keys).unwrap();
        path
    }

    /// An RSA client key in PEM format, let in.
    pub fn rsa_client_key(&self) -> PathBuf {
        self.authorize("client_rsa", "rsa", &["-b", "2048", "-m", "PEM"])
    }

    /// The line of a `known_hosts` file for a host key of this type.
    pub fn known_hosts_line(&self, kind: &str) -> String {
        let key = fs::read_to_string(self.core.at(&format!("host_{kind}.pub"))).unwrap();
        let key = key.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        format!("[127.0.0.1]:{} {key}\n", self.port())
    }

    /// The lines for all its host keys.
    pub fn known_hosts(&self) -> String {
        self.options.host_keys.iter().map(|kind| self.known_hosts_line(kind)).collect()
    }
}

impl Server for Sshd {
    fn core(&self) -> &Core {
        &self.core
    }

    fn core_mut(&mut self) -> &mut Core {
        &mut self.core
    }

    fn command(&self) -> Command {
        let mut config = format!(
            "Port {}\nListenAddress 127.0.0.1\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             MaxStartups 200\nSubsystem sftp {}\n",
            self.port(),
            self.core.at("authorized_keys").display(),
            self.options.sftp,
        );
        for kind in self.options.host_keys {
            config += &format!("HostKey {}\n", self.core.at(&format!("host_{kind}")).display());
        }
        config += &self.options.extra;
        self.core.write("sshd_config", config);
        // Where sshd, as root, confines its unprivileged half.
        drop(fs::create_dir_all("/run/sshd"));
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-E"]).arg(self.core.at("log")).arg("-f").arg(self.core.at("sshd_config"));
        command
    }

    fn become_another(&mut self) -> bool {
        self.make_host_keys();
        true
    }
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
