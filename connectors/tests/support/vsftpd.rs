//! A real FTP server (vsftpd) in a folder of its own, on a free loopback port, for tests. Needs Debian's `vsftpd` and
//! `openssl`, and root: in a mount namespace of its own the server finds an account whose password is the tests'.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use super::sshd::{descendants, free_port};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What the tests log in with.
pub const PASSWORD: &str = "correct horse";

/// Whether the server speaks TLS, and when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    None,
    /// Demanded for log-in and content; content only on a resumed session.
    Explicit,
    Implicit,
}

/// A running server. Stopped when dropped, with all its sessions.
pub struct Vsftpd {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    pub tls: Tls,
    extra: String,
    dir: PathBuf,
    child: Option<Child>,
}

impl Vsftpd {
    /// Starts a server with more lines in its configuration.
    pub fn start(dir: &Path, tls: Tls, extra: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        fs::write(dir.join("server.pem"), certificate.cert.pem()).unwrap();
        fs::write(dir.join("server.key"), certificate.signing_key.serialize_pem()).unwrap();
        let hash = Command::new("openssl").args(["passwd", "-6", PASSWORD]).output();
        let hash = String::from_utf8(hash.expect("openssl cannot be run").stdout).unwrap();
        fs::write(dir.join("shadow"), format!("root:{}:19000:0:99999:7:::\n", hash.trim())).unwrap();
        let pam =
            "auth required pam_unix.so\naccount required pam_permit.so\nsession required pam_permit.so\n";
        fs::write(dir.join("pam"), pam).unwrap();
        let mut server =
            Self { port: free_port(), tls, extra: extra.to_owned(), dir: dir.to_owned(), child: None };
        for _ in 0..5 {
            if server.try_start() {
                return server;
            }
            // Someone took the port between looking and listening.
            server.port = free_port();
        }
        panic!("vsftpd does not start: {}", server.log());
    }

    /// Starts it again after [`Self::stop`], on the same port.
    pub fn restart(&mut self) {
        self.stop();
        assert!(self.try_start(), "vsftpd does not start again: {}", self.log());
    }

    fn try_start(&mut self) -> bool {
        let at = |name: &str| self.dir.join(name).display().to_string();
        let mut config = format!(
            "listen=YES\nlisten_address=127.0.0.1\nlisten_port={}\nbackground=NO\nanonymous_enable=NO\n\
             local_enable=YES\nwrite_enable=YES\nlocal_umask=022\npam_service_name=vsftpd\nseccomp_sandbox=NO\n\
             utf8_filesystem=YES\nxferlog_enable=YES\nlog_ftp_protocol=YES\nvsftpd_log_file={}\n{}",
            self.port,
            at("log"),
            self.extra,
        );
        if self.tls != Tls::None {
            config += &format!(
                "ssl_enable=YES\nrsa_cert_file={}\nrsa_private_key_file={}\nrequire_ssl_reuse=YES\n\
                 force_local_data_ssl=YES\nforce_local_logins_ssl=YES\nssl_ciphers=HIGH\nimplicit_ssl={}\n",
                at("server.pem"),
                at("server.key"),
                if self.tls == Tls::Implicit { "YES" } else { "NO" },
            );
        }
        fs::write(self.dir.join("vsftpd.conf"), config).unwrap();
        drop(fs::create_dir_all("/var/run/vsftpd/empty"));
        let script = "mount --bind \"$0/pam\" /etc/pam.d/vsftpd && mount --bind \"$0/shadow\" /etc/shadow && \
                      exec /usr/sbin/vsftpd \"$0/vsftpd.conf\"";
        let output = fs::File::create(self.dir.join("output")).unwrap();
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .expect("unshare cannot be run: apt-get install util-linux");
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
            signal(&child, "KILL");
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Freezes the server and its sessions: connections stay, nothing answers.
    pub fn freeze(&self) {
        signal(self.child.as_ref().unwrap(), "STOP");
    }

    /// What it said and logged.
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        read("output") + &read("log")
    }

    /// The settings of a resource for `root` on it.
    pub fn settings(&self, root: &Path, more: &str) -> String {
        let (scheme, tls) = match self.tls {
            Tls::None => ("ftp", String::new()),
            Tls::Explicit => ("ftps", self.trust()),
            Tls::Implicit => ("ftps", format!("tls = \"implicit\"\n{}", self.trust())),
        };
        format!(
            "connector = \"file\"\nurl = \"{scheme}://127.0.0.1:{}{}\"\nusername = \"root\"\n\
             password = {{ file = \"ftp-password\" }}\n{tls}{more}",
            self.port,
            root.display(),
        )
    }

    fn trust(&self) -> String {
        format!("ca_file = \"{}\"\n", self.dir.join("server.pem").display())
    }
}

impl Drop for Vsftpd {
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
