//! A real FTP server (vsftpd) in a folder of its own, on a free loopback port, for tests. Needs Debian's `vsftpd` and
//! `openssl`, and root: in a mount namespace of its own the server finds an account whose password is the tests'.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use super::server::{Core, Server};
use std::{fs, path::Path, process::Command};

/// What the tests log in with.
pub const PASSWORD: &str = "correct horse";

/// Whether the server speaks TLS, and when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Everything in the clear.
    None,
    /// Demanded for log-in and content; content only on a resumed session.
    Explicit,
    /// The same from the first byte on.
    Implicit,
}

/// A running server. Stopped when dropped, with all its sessions.
pub struct Vsftpd {
    /// How it speaks TLS.
    pub tls: Tls,
    extra: String,
    core: Core,
}

impl Vsftpd {
    /// Starts a server with more lines in its configuration.
    pub fn start(dir: &Path, tls: Tls, extra: &str) -> Self {
        let mut server = Self { tls, extra: extra.to_owned(), core: Core::new(dir) };
        write_certificate(&server.core);
        server.core.write("shadow", format!("root:{}:19000:0:99999:7:::\n", password_hash()));
        server.core.write(
            "pam",
            "auth required pam_unix.so\naccount required pam_permit.so\nsession required pam_permit.so\n",
        );
        server.start_somewhere();
        server
    }

    /// The settings of a resource for `root` on it.
    #[must_use]
    pub fn settings(&self, root: &Path, more: &str) -> String {
        let (scheme, tls) = match self.tls {
            Tls::None => ("ftp", String::new()),
            Tls::Explicit => ("ftps", trust(&self.core)),
            Tls::Implicit => ("ftps", format!("tls = \"implicit\"\n{}", trust(&self.core))),
        };
        format!(
            "connector = \"file\"\nurl = \"{scheme}://127.0.0.1:{}{}\"\nusername = \"root\"\n\
             password = {{ file = \"ftp-password\" }}\n{tls}{more}",
            self.port(),
            root.display(),
        )
    }
}

impl Server for Vsftpd {
    fn core(&self) -> &Core {
        &self.core
    }

    fn core_mut(&mut self) -> &mut Core {
        &mut self.core
    }

    fn command(&self) -> Command {
        let at = |name: &str| self.core.at(name).display().to_string();
        // Its data connections keep clear of the ports of other servers and of outgoing connections: it takes any.
        let mut config = format!(
            "listen=YES\nlisten_address=127.0.0.1\nlisten_port={}\nbackground=NO\nanonymous_enable=NO\n\
             local_enable=YES\nwrite_enable=YES\nlocal_umask=022\npam_service_name=vsftpd\nseccomp_sandbox=NO\n\
             utf8_filesystem=YES\npasv_min_port=61000\npasv_max_port=65535\nxferlog_enable=YES\nlog_ftp_protocol=YES\nvsftpd_log_file={}\n{}",
            self.port(),
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
        self.core.write("vsftpd.conf", config);
        drop(fs::create_dir_all("/var/run/vsftpd/empty"));
        let script = "mount --bind \"$0/pam\" /etc/pam.d/vsftpd && mount --bind \"$0/shadow\" /etc/shadow && \
                      exec /usr/sbin/vsftpd \"$0/vsftpd.conf\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(self.core.dir());
        command
    }

    fn become_another(&mut self) -> bool {
        // What clients trust is the file `trusted.pem`, written once.
        write_certificate(&self.core);
        self.tls != Tls::None
    }
}

/// A certificate for 127.0.0.1 and its key; the first one of a server is the one that its clients trust.
pub(super) fn write_certificate(core: &Core) {
    let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    core.write("server.pem", certificate.cert.pem());
    core.write("server.key", certificate.signing_key.serialize_pem());
    if !core.at("trusted.pem").exists() {
        core.write("trusted.pem", certificate.cert.pem());
    }
}

/// The line of a resource's settings that trusts the first certificate.
pub(super) fn trust(core: &Core) -> String {
    format!("ca_file = \"{}\"\n", core.at("trusted.pem").display())
}

/// [`PASSWORD`] as the files of accounts hold it.
pub(super) fn password_hash() -> String {
    let hash = Command::new("openssl").args(["passwd", "-6", PASSWORD]).output();
    String::from_utf8(hash.expect("openssl cannot be run").stdout).unwrap().trim().to_owned()
}
