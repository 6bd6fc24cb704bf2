//! A real `passerelle-agent` process with a configuration folder of its own.

use crate::{Hub, PATIENCE, Process, binary, free_port, http_client, process, until};
use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

/// The environment in which a process sees a wall clock that is off by so much (`+1h`, `-90`); timers go on as they should.
///
/// # Panics
/// If libfaketime is not there.
#[must_use]
pub fn shifted_clock(by: &str) -> [(String, String); 4] {
    let library = ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .map(|arch| format!("/usr/lib/{arch}/faketime/libfaketime.so.1"))
        .into_iter()
        .find(|path| fs::exists(path).unwrap_or(false))
        .expect("libfaketime (package faketime)");
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    [
        set("LD_PRELOAD", &library),
        set("FAKETIME", by),
        set("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        set("DONT_FAKE_MONOTONIC", "1"),
    ]
}

/// An agent: first its configuration folder, then its process.
pub struct Agent {
    process: Option<Process>,
    hub_url: String,
    name: String,
    port: u16,
    agent_keys: String,
    hub_keys: String,
    log_keys: String,
    environment: Vec<(OsString, OsString)>,
    before: Vec<OsString>,
    folder: PathBuf,
    home: TempDir,
}

impl Agent {
    /// A configuration folder for an agent of `hub` at `site`, with an enrolment token.
    #[must_use]
    pub fn new(hub: &Hub, site: &str, name: &str) -> Self {
        let agent = Self::at(&hub.url, name);
        agent.secret("enrolment-token", &hub.enrolment_token(site, &[]));
        agent
    }

    /// A configuration folder for an agent of the hub at `hub_url`; its token is `token`.
    ///
    /// # Panics
    /// If the folder cannot be made.
    #[must_use]
    pub fn at(hub_url: &str, name: &str) -> Self {
        let home =
            tempfile::Builder::new().prefix("passerelle-agent-").tempdir().expect("a temporary folder");
        let folder = home.path().join("config");
        for dir in ["secrets", "resources.d"] {
            fs::create_dir_all(folder.join(dir)).expect("a configuration folder");
        }
        let agent = Self {
            process: None,
            hub_url: hub_url.to_owned(),
            name: name.to_owned(),
            port: free_port(),
            agent_keys: String::new(),
            hub_keys: String::new(),
            log_keys: String::new(),
            environment: Vec::new(),
            before: Vec::new(),
            folder,
            home,
        };
        agent.secret("enrolment-token", "token");
        agent
    }

    /// Lets the agent reach the hub at another address, that of a fault proxy for example.
    pub fn through(&mut self, hub_url: &str) -> &mut Self {
        hub_url.clone_into(&mut self.hub_url);
        self
    }

    /// Adds a line to `[agent]`.
    pub fn agent_key(&mut self, line: &str) -> &mut Self {
        self.agent_keys.push_str(line);
        self.agent_keys.push('\n');
        self
    }

    /// Adds a line to `[hub]`.
    pub fn hub_key(&mut self, line: &str) -> &mut Self {
        self.hub_keys.push_str(line);
        self.hub_keys.push('\n');
        self
    }

    /// Adds a line to `[log]`, the last section: more of them may follow.
    pub fn log_key(&mut self, line: &str) -> &mut Self {
        self.log_keys.push_str(line);
        self.log_keys.push('\n');
        self
    }

    /// Puts a line into `[hub]` in the place of all that were added there; a section may follow in it.
    pub fn hub_key_in_place(&mut self, line: &str) -> &mut Self {
        self.hub_keys.clear();
        self.hub_key(line)
    }

    /// Sets a variable of the process's environment.
    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Lets it see a wall clock that is off by so much (`+1h`); timers go on as they should.
    ///
    /// # Panics
    /// If libfaketime is not there.
    pub fn shift_clock(&mut self, by: &str) -> &mut Self {
        for (name, value) in shifted_clock(by) {
            self.env(name, value);
        }
        self
    }

    /// Puts words before the program's own, those of a command that starts it and becomes it (`ip netns exec NAME`).
    pub fn behind(&mut self, words: &[&str]) -> &mut Self {
        self.before = words.iter().map(OsString::from).collect();
        self
    }

    /// Writes a file of the configuration folder.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        fs::write(self.folder.join(path), content).expect("a file of the configuration folder");
        self
    }

    /// Writes a secret with the rights it should have.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn secret(&self, name: &str, content: &str) -> &Self {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.folder.join("secrets").join(name);
        fs::write(&path, content).expect("a secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the rights of a secret");
        self
    }

    /// Adds a resource: `text` is its TOML, see [`crate::resources`].
    pub fn resource(&self, name: &str, text: &str) -> &Self {
        self.file(&format!("resources.d/{name}.toml"), text)
    }

    /// The configuration folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes `agent.toml` from what was said so far.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self) -> &Self {
        let mut text = String::new();
        let Self { hub_url, name, port, agent_keys, hub_keys, log_keys, .. } = self;
        let _never_fails = write!(
            text,
            "[hub]\nurl = \"{hub_url}\"\nenrolment_token = {{ file = \"secrets/enrolment-token\" }}\n{hub_keys}\n\
             [agent]\nname = \"{name}\"\nlisten = \"127.0.0.1:{port}\"\n{agent_keys}\n[log]\nlevel = \"info\"\n{log_keys}"
        );
        self.file("agent.toml", text)
    }

    /// Starts `passerelle-agent run` and does not wait for it.
    pub fn spawn(&mut self) -> &mut Self {
        self.write();
        self.spawn_as_it_is()
    }

    /// Starts it without writing `agent.toml` first.
    pub fn spawn_as_it_is(&mut self) -> &mut Self {
        let log = self.home.path().join("agent.log");
        self.process = None;
        let name = format!("the agent {}", self.name);
        self.process = Some(Process::spawn(&name, &mut self.command(&["run"]), &log));
        self
    }

    /// Starts it and waits until it is ready.
    pub async fn start(&mut self) -> &mut Self {
        self.spawn();
        self.ready().await;
        self
    }

    /// Ends it as a crash would and starts it again.
    pub async fn restart(&mut self) -> &mut Self {
        self.kill();
        self.start().await
    }

    /// Ends it as a crash would and starts it again, without waiting for it.
    pub fn restart_without_waiting(&mut self) -> &mut Self {
        self.kill();
        self.spawn()
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill();
        }
    }

    /// Waits until it is connected and its journal can be written.
    ///
    /// # Panics
    /// If it ends or does not become ready.
    pub async fn ready(&mut self) {
        let client = http_client();
        let url = self.url("/readyz");
        let process = self.process.as_mut().expect("a started agent");
        until("the agent to be ready", PATIENCE, async || {
            assert!(process.is_running(), "the agent ended at its start:\n{}", process.log());
            client.get(&url).send().await.ok().filter(|answer| answer.status() == 200)
        })
        .await;
    }

    /// An address of its local port.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The status of `/readyz` now; `None` if nothing answers.
    pub async fn readiness(&self) -> Option<u16> {
        http_client().get(self.url("/readyz")).send().await.ok().map(|answer| answer.status().as_u16())
    }

    /// The value of a line of `/metrics`, with its labels as they stand there; 0 if there is none (yet).
    pub async fn metric(&self, name: &str) -> f64 {
        let Ok(answer) = http_client().get(self.url("/metrics")).send().await else { return 0.0 };
        let text = answer.text().await.unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(0.0)
    }

    /// Waits until a metric is at least `value`.
    pub async fn counted(&self, name: &str, value: f64) {
        until(&format!("{name} >= {value}"), PATIENCE, async || {
            (self.metric(name).await >= value).then_some(())
        })
        .await;
    }

    /// What it shows of itself at `/status.json`.
    ///
    /// # Panics
    /// If it does not answer.
    pub async fn status(&self) -> serde_json::Value {
        let answer = http_client().get(self.url("/status.json")).send().await.expect("the local port");
        answer.json().await.expect("a status")
    }

    /// The process.
    ///
    /// # Panics
    /// If it was not started.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("a started agent")
    }

    /// Runs another command of the agent's program on the folder.
    #[must_use]
    pub fn output(&self, arguments: &[&str]) -> Output {
        process::run(&mut self.command(arguments))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut words = self.before.iter().cloned().chain([binary("passerelle-agent").into_os_string()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).args(arguments).arg("--config").arg(&self.folder);
        // The machine's own proxy settings are no part of a test.
        for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]
            .into_iter()
            .chain(["NO_PROXY", "no_proxy"])
        {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().cloned());
        command
    }
}
