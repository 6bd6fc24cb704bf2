//! A real ProFTPD in a folder of its own, on a free loopback port, for tests: FTP with `MLSD`, plain and with TLS, and
//! an SFTP server that is not OpenSSH's. Debian's `proftpd-core` cannot be installed beside `vsftpd`: `tests/run` unpacks
//! it, and `proftpd-mod-crypto`, into `target/test-proftpd`.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use super::{
    server::{Core, Server},
    sshd::keygen,
    vsftpd::{PASSWORD, password_hash, trust, write_certificate},
};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What the server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// FTP in the clear.
    Ftp,
    /// TLS is demanded for log-in and content; content only on a resumed session.
    Ftps,
    /// SFTP, by `mod_sftp`.
    Sftp,
}

/// A running server. Stopped when dropped, with all its sessions.
pub struct Proftpd {
    speaks: Speaks,
    extra: String,
    core: Core,
}

impl Proftpd {
    /// Starts a server with more lines in its configuration.
    pub fn start(dir: &Path, speaks: Speaks, extra: &str) -> Self {
        let mut server = Self { speaks, extra: extra.to_owned(), core: Core::new(dir) };
        let core = &server.core;
        core.write("passwd", format!("root:{}:0:0::/root:/bin/sh\n", password_hash()));
        core.write("group", "root:x:0:\n");
        for name in ["passwd", "group"] {
            fs::set_permissions(core.at(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        match speaks {
            Speaks::Ftp => {}
            Speaks::Ftps => write_certificate(core),
            Speaks::Sftp => server.make_host_key(),
        }
        server.start_somewhere();
        server
    }

    fn make_host_key(&self) {
        let path = self.core.at("host_ed25519");
        drop(fs::remove_file(&path));
        keygen(&path, "ed25519", &[]);
    }

    /// What the configuration folder of a resource on it must hold: the password, and the known host.
    pub fn prepare(&self, base: &Path) {
        fs::write(base.join("ftp-password"), PASSWORD).unwrap();
        if self.speaks == Speaks::Sftp {
            let key = fs::read_to_string(self.core.at("host_ed25519.pub")).unwrap();
            let key = key.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
            fs::write(base.join("known_hosts"), format!("[127.0.0.1]:{} {key}\n", self.port())).unwrap();
        }
    }

    /// The settings of a resource for `root` on it.
    #[must_use]
    pub fn settings(&self, root: &Path, more: &str) -> String {
        let (scheme, its_own) = match self.speaks {
            Speaks::Ftp => ("ftp", String::new()),
            Speaks::Ftps => ("ftps", trust(&self.core)),
            Speaks::Sftp => ("sftp", "known_hosts = \"known_hosts\"\n".to_owned()),
        };
        format!(
            "connector = \"file\"\nurl = \"{scheme}://127.0.0.1:{}{}\"\nusername = \"root\"\n\
             password = {{ file = \"ftp-password\" }}\n{its_own}{more}",
            self.port(),
            root.display(),
        )
    }

    /// Makes the table of quotas that `mod_quotatab` reads: so many bytes in all for the tests' account.
    pub fn limit_to(&mut self, bytes: u64) {
        let ftpquota = || {
            let mut command = Command::new(unpacked().join("usr/sbin/ftpquota"));
            command.stdin(Stdio::null()).stdout(Stdio::null());
            command
        };
        for kind in ["limit", "tally"] {
            let path = self.core.at(&format!("quota-{kind}"));
            let table = format!("--table-path={}", path.display());
            let made = ftpquota().args(["--create-table", &format!("--type={kind}"), &table]).status();
            assert!(made.unwrap().success(), "no table of quotas");
            if kind == "limit" {
                let limit = format!("--bytes-upload={bytes}");
                let words = ["--add-record", "--type=limit", "--name=root", "--quota-type=user", "--units=B"];
                assert!(ftpquota().args(words).args([&table, &limit]).status().unwrap().success());
            }
        }
        let dir = self.core.dir().display();
        self.extra += &format!(
            "LoadModule mod_quotatab.c\nLoadModule mod_quotatab_file.c\nQuotaEngine on\n\
             QuotaLimitTable file:{dir}/quota-limit\nQuotaTallyTable file:{dir}/quota-tally\nQuotaLog {dir}/log\n"
        );
    }
}

impl Server for Proftpd {
    fn core(&self) -> &Core {
        &self.core
    }

    fn core_mut(&mut self) -> &mut Core {
        &mut self.core
    }

    fn command(&self) -> Command {
        let (dir, home) = (self.core.dir().display(), unpacked());
        let speaks = match self.speaks {
            Speaks::Ftp => String::new(),
            Speaks::Ftps => format!(
                "LoadModule mod_tls.c\nTLSEngine on\nTLSRequired on\nTLSProtocol TLSv1.2 TLSv1.3\n\
                 TLSLog {dir}/log\nTLSECCertificateFile {dir}/server.pem\nTLSECCertificateKeyFile {dir}/server.key\n"
            ),
            Speaks::Sftp => {
                format!(
                    "LoadModule mod_sftp.c\nSFTPEngine on\nSFTPHostKey {dir}/host_ed25519\nSFTPLog {dir}/log\n"
                )
            }
        };
        self.core.write(
            "proftpd.conf",
            format!(
                "ServerType standalone\nServerName files\nPort {}\nDefaultAddress 127.0.0.1\nUseIPv6 off\n\
                 UseReverseDNS off\nModulePath {}\nUser root\nGroup root\nRootLogin on\nUseFtpUsers off\n\
                 AuthOrder mod_auth_file.c\nAuthUserFile {dir}/passwd\nAuthGroupFile {dir}/group\n\
                 RequireValidShell off\nPidFile {dir}/pid\nScoreboardFile {dir}/scoreboard\nDelayEngine off\n\
                 ControlsEngine off\nSystemLog {dir}/log\nTransferLog none\nWtmpLog off\nAllowOverwrite on\n\
                 FactsOptions UseSlink\nMaxLoginAttempts 9\n{speaks}{}",
                self.port(),
                home.join("usr/lib/proftpd").display(),
                self.extra,
            ),
        );
        let mut command = Command::new(home.join("usr/sbin/proftpd"));
        command.args(["--nodaemon", "--quiet", "--config"]).arg(self.core.at("proftpd.conf"));
        command
    }

    fn become_another(&mut self) -> bool {
        match self.speaks {
            Speaks::Ftp => return false,
            Speaks::Ftps => write_certificate(&self.core),
            Speaks::Sftp => self.make_host_key(),
        }
        true
    }
}

/// Where `tests/run` unpacks it.
fn unpacked() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-proftpd")
}
