//! A real squid: the proxy of a company, with Basic authentication and a DNS of its own.

use crate::{PATIENCE, Process, free_port, until};
use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// Who may use it.
pub const PROXY_USER: &str = "svc-passerelle";
/// With this password.
pub const PROXY_PASSWORD: &str = "p@ss:word-of-the-proxy";
/// A name that only the proxy resolves, to this machine.
pub const PROXY_ONLY_NAME: &str = "hub.known-to-the-proxy.test";
/// A name that the proxy forbids.
pub const FORBIDDEN_NAME: &str = "forbidden.test";

/// A proxy that wants a user name and a password. It closes connections on which nothing is heard for 18 seconds.
pub struct Squid {
    /// Its port for plain HTTP.
    pub port: u16,
    /// Its port for clients that speak TLS with the proxy itself.
    pub tls_port: u16,
    /// The certificate of that port, for `localhost`, PEM.
    pub certificate: String,
    process: Process,
    home: TempDir,
}

impl Squid {
    /// Starts it.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start() -> Self {
        let home =
            tempfile::Builder::new().prefix("passerelle-squid-").tempdir().expect("a temporary folder");
        // Started as root it goes on as another user, who has to write its logs here.
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).expect("the rights of a folder");
        let write =
            |name: &str, text: &str| fs::write(home.path().join(name), text).expect("a file for squid");
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let certificate = pair.cert.pem();
        write("cert.pem", &certificate);
        write("key.pem", &pair.signing_key.serialize_pem());
        write("users", &format!("{PROXY_USER}:{}\n", password_hash()));
        write("hosts", &format!("127.0.0.1 localhost {PROXY_ONLY_NAME} {FORBIDDEN_NAME}\n"));
        let (port, tls_port) = (free_port(), free_port());
        write("squid.conf", &configuration(home.path(), port, tls_port));
        let process = spawn(home.path(), port);
        let mut squid = Self { port, tls_port, certificate, process, home };
        squid.listens().await;
        squid
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends it as a crash would, with all connections through it.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same ports after it was killed.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = spawn(self.home.path(), self.port);
        self.listens().await;
    }

    /// Its access log: one line per connection that ended.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("access.log")).unwrap_or_default()
    }

    async fn listens(&mut self) {
        let (port, process) = (self.port, &mut self.process);
        until("squid to listen", PATIENCE, async || {
            assert!(process.is_running(), "squid ended:\n{}", process.log());
            tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()
        })
        .await;
    }
}

fn spawn(home: &Path, port: u16) -> Process {
    let mut command = Command::new("squid");
    // In the foreground, under a name of its own: squid's shared memory is named after it.
    command.args(["-N", "-d", "1", "-n", &format!("test{port}"), "-f"]).arg(home.join("squid.conf"));
    Process::spawn("squid", &mut command, &home.join("squid.log"))
}

/// As `htpasswd` makes it; `openssl` is there wherever squid is.
fn password_hash() -> String {
    let made = Command::new("openssl")
        .args(["passwd", "-apr1", PROXY_PASSWORD])
        .stdin(Stdio::null())
        .output()
        .expect("openssl cannot be run: apt-get install openssl");
    assert!(made.status.success(), "openssl passwd: {}", made.status);
    String::from_utf8_lossy(&made.stdout).trim().to_owned()
}

fn configuration(home: &Path, port: u16, tls_port: u16) -> String {
    // Squid takes no free port by itself; that both are free is known since they were given out just now.
    debug_assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok());
    let home = home.display();
    format!(
        "http_port 127.0.0.1:{port}\n\
         https_port 127.0.0.1:{tls_port} tls-cert={home}/cert.pem tls-key={home}/key.pem\n\
         visible_hostname proxy.test\n\
         hosts_file {home}/hosts\n\
         dns_nameservers 127.0.0.1\n\
         dns_timeout 2 seconds\n\
         auth_param basic program /usr/lib/squid/basic_ncsa_auth {home}/users\n\
         auth_param basic children 2\n\
         auth_param basic realm test\n\
         acl known proxy_auth REQUIRED\n\
         acl forbidden dstdomain {FORBIDDEN_NAME}\n\
         http_access deny !known\n\
         http_access deny forbidden\n\
         http_access allow known\n\
         http_access deny all\n\
         cache deny all\n\
         memory_cache_shared off\n\
         read_timeout 18 seconds\n\
         shutdown_lifetime 0 seconds\n\
         pid_filename none\n\
         coredump_dir {home}\n\
         cache_log {home}/cache.log\n\
         access_log stdio:{home}/access.log\n"
    )
}
