//! The peer of calls: `snyk-broker`, server and client on loopback, relaying to the same nginx.
//!
//! `tests/bench` installs it and names its folder in `PASSERELLE_BENCH_BROKER`.

use passerelle_tests::{PATIENCE, Process, free_port, http_client, until};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const TOKEN: &str = "11111111-2222-4333-8444-555555555555";

/// What both halves load first: whatever listens, listens on loopback.
const LOOPBACK: &str = "\
const net = require('net');
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  if (typeof port === 'object' && port !== null && port.port !== undefined) {
    return listen.call(this, { ...port, host: '127.0.0.1' }, ...rest);
  }
  if (/^[0-9]+$/.test(String(port))) {
    return listen.call(this, Number(port), '127.0.0.1', ...rest.filter((one) => typeof one !== 'string'));
  }
  return listen.call(this, port, ...rest);
};
";

/// Both halves, running.
pub struct Broker {
    /// What is asked, with a final `/`: the target's paths follow.
    pub url: String,
    client: Process,
    _server: Process,
    home: TempDir,
    package: PathBuf,
    server_port: u16,
}

impl Broker {
    /// Starts both, before `target`; nothing if it is not installed.
    pub async fn start(target: &str) -> Option<Self> {
        let package = PathBuf::from(std::env::var_os("PASSERELLE_BENCH_BROKER")?);
        let home = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: String| fs::write(home.path().join(name), text).expect("a file");
        let origin = target.trim_end_matches('/');
        write("loopback.js", LOOPBACK.to_owned());
        write("server.json", json!({"public": [{"method": "any", "path": "/*"}], "private": []}).to_string());
        let rule = json!([{"method": "any", "path": "/*", "origin": origin}]);
        write("client.json", json!({"public": [], "private": rule}).to_string());
        let server_port = free_port();
        let mut command = node(&package, home.path(), "server");
        command.env("PORT", server_port.to_string());
        let mut server =
            Process::spawn("snyk-broker's server", &mut command, &home.path().join("server.log"));
        let up = format!("http://127.0.0.1:{server_port}/healthcheck");
        until("snyk-broker's server", PATIENCE, async || {
            assert!(server.is_running(), "snyk-broker's server ended:\n{}", server.log());
            http_client().get(&up).send().await.ok().filter(|answer| answer.status() == 200)
        })
        .await;
        let url = format!("http://127.0.0.1:{server_port}/broker/{TOKEN}/");
        let client = client(&package, home.path(), server_port);
        let broker = Self { url, client, _server: server, home, package, server_port };
        broker.relays("static/small.json").await;
        Some(broker)
    }

    /// The client's process: what is the agent with us.
    pub fn client(&self) -> &Process {
        &self.client
    }

    /// Starts the client anew; the time until it relays.
    pub async fn restart(&mut self) -> Duration {
        self.client.kill();
        let start = Instant::now();
        self.client = client(&self.package, self.home.path(), self.server_port);
        self.relays("static/small.json").await;
        start.elapsed()
    }

    async fn relays(&self, path: &str) {
        let (http, url) = (http_client(), format!("{}{path}", self.url));
        let start = Instant::now();
        // What comes while its client starts may never be answered.
        let asked = || http.get(&url).timeout(Duration::from_millis(500)).send();
        while !asked().await.is_ok_and(|answer| answer.status() == 200) {
            assert!(start.elapsed() < PATIENCE, "snyk-broker does not relay:\n{}", self.client.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn client(package: &Path, home: &Path, server_port: u16) -> Process {
    let port = free_port().to_string();
    let mut command = node(package, home, "client");
    command
        .env("PORT", &port)
        .env("BROKER_SERVER_URL", format!("http://127.0.0.1:{server_port}"))
        .env("BROKER_CLIENT_URL", format!("http://127.0.0.1:{port}"))
        .env("BROKER_TOKEN", TOKEN)
        .env("PREFLIGHT_CHECKS_ENABLED", "false");
    Process::spawn("snyk-broker's client", &mut command, &home.join("client.log"))
}

fn node(package: &Path, home: &Path, half: &str) -> Command {
    let mut command = Command::new("node");
    command
        .arg("--require")
        .arg(home.join("loopback.js"))
        .arg(package.join("node_modules/snyk-broker/dist/cli/index.js"))
        .arg(half)
        .env("ACCEPT", home.join(format!("{half}.json")))
        .env("LOG_LEVEL", "error");
    for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"] {
        command.env_remove(name);
    }
    command
}
