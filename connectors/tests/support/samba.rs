//! A real SMB server (Samba) in a folder of its own, on a free loopback port, for tests. Needs Debian's `samba`, and
//! root, whose SMB password is the tests'. Only NTLMv2, and only signed.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use super::server::{Core, Server};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
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
    root: PathBuf,
    options: Options,
    core: Core,
}

impl Samba {
    /// Starts a server whose share is `root`.
    pub fn start(dir: &Path, root: &Path, options: Options) -> Self {
        let mut server = Self { root: root.to_owned(), options, core: Core::new(dir) };
        server.configure();
        let mut smbpasswd = Command::new("smbpasswd")
            .arg("-c")
            .arg(server.core.at("smb.conf"))
            .args(["-a", "-s", "root"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("smbpasswd cannot be run: apt-get install samba");
        write!(smbpasswd.stdin.take().unwrap(), "{PASSWORD}\n{PASSWORD}\n").unwrap();
        assert!(smbpasswd.wait().unwrap().success());
        server.start_somewhere();
        server
    }

    fn configure(&self) {
        let at = |name: &str| {
            fs::create_dir_all(self.core.at(name)).unwrap();
            self.core.at(name).display().to_string()
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
            self.port(),
            at("private"),
            at("private"),
            at("lock"),
            at("state"),
            at("cache"),
            at("pid"),
            at("ncalrpc"),
            self.core.dir().display(),
            self.options.global,
            self.root.display(),
            self.options.share,
        );
        self.core.write("smb.conf", config);
    }

    /// The settings of a resource whose folder is the share, or a folder in it.
    pub fn settings(&self, folder: &str, more: &str) -> String {
        format!(
            "connector = \"file\"\nurl = \"smb://127.0.0.1:{}/files{folder}\"\nusername = \"root\"\n\
             password = {{ file = \"smb-password\" }}\n{more}",
            self.port(),
        )
    }
}

impl Server for Samba {
    fn core(&self) -> &Core {
        &self.core
    }

    fn core_mut(&mut self) -> &mut Core {
        &mut self.core
    }

    fn command(&self) -> Command {
        self.configure();
        let mut command = Command::new("/usr/sbin/smbd");
        command.args(["--foreground", "--no-process-group", "--configfile"]).arg(self.core.at("smb.conf"));
        command
    }
}
