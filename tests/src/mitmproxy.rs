//! A real mitmproxy: a company's proxy that inspects TLS with a CA of its own.

use crate::{PATIENCE, Process, free_port, until};
use std::{fs, net::Ipv4Addr, path::PathBuf, process::Command};
use tempfile::TempDir;

/// A proxy that shows each client a certificate made by its own CA, and reads everything.
pub struct Mitmproxy {
    /// Its port.
    pub port: u16,
    /// Its CA's certificate, PEM.
    pub ca: String,
    process: Process,
    _home: TempDir,
}

impl Mitmproxy {
    /// Starts it; it takes whatever certificate the hub has.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start() -> Self {
        let home =
            tempfile::Builder::new().prefix("passerelle-mitmproxy-").tempdir().expect("a temporary folder");
        let port = free_port();
        let mut command = Command::new(mitmdump());
        command
            .args(["--listen-host", "127.0.0.1", "--listen-port", &port.to_string()])
            .arg("--ssl-insecure")
            // Large payloads as they come, as an inspecting proxy has to.
            .args(["--set", "stream_large_bodies=256k", "--set", "flow_detail=1"])
            .args(["--set", &format!("confdir={}", home.path().join("conf").display())]);
        let mut process = Process::spawn("mitmproxy", &mut command, &home.path().join("mitmproxy.log"));
        let ca_file = home.path().join("conf/mitmproxy-ca-cert.pem");
        until("mitmproxy to listen", PATIENCE, async || {
            assert!(process.is_running(), "mitmproxy ended:\n{}", process.log());
            tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()
        })
        .await;
        let ca = fs::read_to_string(&ca_file).expect("mitmproxy's CA");
        Self { port, ca, process, _home: home }
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it saw: one line per request and per WebSocket message.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// The program: `PASSERELLE_TEST_MITMDUMP`, or where `tests/run` installs it, or on the path.
fn mitmdump() -> PathBuf {
    if let Some(named) = std::env::var_os("PASSERELLE_TEST_MITMDUMP") {
        return named.into();
    }
    let me = std::env::current_exe().expect("the path of this program");
    let installed = me.ancestors().map(|dir| dir.join("test-venv/bin/mitmdump")).find(|path| path.is_file());
    installed.unwrap_or_else(|| "mitmdump".into())
}
