//! Everything that runs: the hub, two agents behind a fault proxy each, sshd, the application, folders and a small disk;
//! and the hand that breaks and mends it.

use crate::{
    application::{self, Ledger},
    faults::{Action, LEASE},
    options::Options,
    plan::{Job, KEPT, SITE},
};
use passerelle_tests::{Agent, App, Hub, Proxy, SmallDisk, SshServer, is_root, resources};
use rustix::process::Signal;
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// What a kept file holds.
pub const KEPT_CONTENT: &str = "this was here before";

/// The running things of one run.
pub struct World {
    /// The hub.
    pub hub: Hub,
    /// The folder that both agents share.
    pub depot: TempDir,
    /// The file server.
    pub ssh: SshServer,
    /// What the application was told.
    pub ledger: Arc<Ledger>,
    /// What was done to them, and when.
    pub timeline: Vec<String>,
    /// How often each kind of fault happened.
    pub faults: BTreeMap<&'static str, u64>,
    /// Ends of programs that nobody asked for.
    pub crashes: Vec<String>,
    agents: [Agent; 2],
    tunnels: [Proxy; 2],
    ssh_line: Proxy,
    app_line: Proxy,
    _app: App,
    // After the agents, whose state lies on it.
    disk: Option<SmallDisk>,
    hub_wanted: bool,
    hub_started: Instant,
    wanted: [bool; 2],
    frozen: [bool; 2],
    full: bool,
    /// When the disk was full last.
    was_full: Option<Instant>,
    /// When an agent was started again last.
    revived: [Option<Instant>; 2],
    started: Instant,
}

impl World {
    /// Starts everything and waits until both agents are connected.
    pub async fn start(options: &Options, jobs: &[Job]) -> Self {
        let hub = Hub::start_with_lease(LEASE).await;
        let (app, ledger) = application::start(jobs).await;
        let ssh = SshServer::start();
        let depot = tempfile::Builder::new().prefix("passerelle-depot-").tempdir().expect("a folder");
        for root in [depot.path(), ssh.root()] {
            fs::write(root.join(KEPT), KEPT_CONTENT).expect("the kept file");
        }
        let (ssh_line, app_line) = (Proxy::start(ssh.port()).await, Proxy::start(app.port()).await);
        let tunnels = [Proxy::start(hub.port()).await, Proxy::start(hub.port()).await];
        let disk = (options.with("disk") && is_root()).then(|| SmallDisk::mount("48m"));
        let mut agents = [Agent::new(&hub, SITE, "paris-1"), Agent::new(&hub, SITE, "paris-2")];
        for (agent, tunnel) in agents.iter_mut().zip(&tunnels) {
            ssh.serve_through(agent, "sftp", ssh_line.port());
            agent.resource("depot", &resources::folder("depot", depot.path()));
            agent.resource("orders", &resources::application("orders", &app_line.url()));
            agent.through(&tunnel.url());
        }
        if let Some(disk) = &disk {
            agents[1].agent_key(&format!("state_dir = \"{}\"", disk.path().join("state").display()));
        }
        for agent in &mut agents {
            agent.start().await;
        }
        hub.api.agents_online(SITE, 2).await;
        Self {
            hub,
            depot,
            ssh,
            ledger,
            timeline: Vec::new(),
            faults: BTreeMap::new(),
            crashes: Vec::new(),
            agents,
            tunnels,
            ssh_line,
            app_line,
            _app: app,
            disk,
            hub_wanted: true,
            hub_started: Instant::now(),
            wanted: [true; 2],
            frozen: [false; 2],
            full: false,
            was_full: None,
            revived: [None; 2],
            started: Instant::now(),
        }
    }

    /// Whether there is a disk to fill.
    pub fn has_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Since when it runs.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Does what the timeline says, each step at its time, and starts again what ended by itself, as an operator's
    /// `--restart=always` does.
    pub async fn suffer(&mut self, steps: &[(Duration, Action)], until: Duration) {
        let mut steps = steps.iter().peekable();
        while self.started.elapsed() < until {
            let next = steps.peek().map_or(until, |(at, _)| *at);
            let now = self.started.elapsed();
            if now < next {
                self.supervise().await;
                tokio::time::sleep((next - now).min(Duration::from_millis(100))).await;
            } else if let Some((_, action)) = steps.next() {
                self.act(*action).await;
            }
        }
    }

    /// Ends all faults.
    pub async fn heal(&mut self) {
        self.note("all faults end");
        for agent in 0..2 {
            self.act(Action::Thaw(agent)).await;
            self.act(Action::Heal(agent)).await;
        }
        self.act(Action::FreeDisk).await;
        self.act(Action::HealSsh).await;
        self.act(Action::StartHub).await;
        for agent in 0..2 {
            self.act(Action::StartAgent(agent)).await;
        }
        // An agent that just ended for want of space is started again once more.
        self.suffer(&[], self.started.elapsed() + Duration::from_millis(1500)).await;
    }

    async fn act(&mut self, action: Action) {
        let done = match action {
            Action::KillAgent(n) => {
                self.frozen[n] = false;
                std::mem::take(&mut self.wanted[n]).then(|| self.agents[n].kill()).is_some()
            }
            Action::StartAgent(n) => {
                let start = !std::mem::replace(&mut self.wanted[n], true);
                start.then(|| self.agents[n].spawn()).is_some()
            }
            Action::KillHub => {
                std::mem::take(&mut self.hub_wanted).then(|| self.hub.process.kill()).is_some()
            }
            Action::StartHub => {
                let start = !std::mem::replace(&mut self.hub_wanted, true);
                if start {
                    self.hub.restart().await;
                    self.hub_started = Instant::now();
                }
                start
            }
            Action::Freeze(n) => {
                let freeze = self.wanted[n] && !self.frozen[n] && self.agents[n].process().is_running();
                if freeze {
                    self.agents[n].process().signal(Signal::STOP);
                    self.frozen[n] = true;
                }
                freeze
            }
            Action::Thaw(n) => {
                let thaw = std::mem::take(&mut self.frozen[n]) && self.agents[n].process().is_running();
                if thaw {
                    self.agents[n].process().signal(Signal::CONT);
                }
                thaw
            }
            Action::Repeat(n) => self.repeat(n).await,
            Action::FillDisk => {
                let fill = !self.full && self.disk.is_some();
                if fill && let Some(disk) = &self.disk {
                    disk.fill();
                    self.full = true;
                }
                fill
            }
            Action::FreeDisk => {
                let free = std::mem::take(&mut self.full);
                if free && let Some(disk) = &self.disk {
                    disk.free();
                }
                free
            }
            Action::Cut(_)
            | Action::HalfOpen(_)
            | Action::Stall(_)
            | Action::Slow(_)
            | Action::Heal(_)
            | Action::RestartSsh
            | Action::CutSsh
            | Action::StallSsh
            | Action::HealSsh
            | Action::CutApp => {
                self.act_on_a_line(action);
                true
            }
        };
        if done {
            self.note(&format!("{action:?}"));
            if let Some(kind) = kind(action) {
                *self.faults.entry(kind).or_default() += 1;
            }
        }
    }

    fn act_on_a_line(&mut self, action: Action) {
        match action {
            Action::Cut(n) => self.tunnels[n].cut(),
            Action::HalfOpen(n) => self.tunnels[n].half_open(),
            Action::Stall(n) => self.tunnels[n].stall(true),
            Action::Slow(n) => self.tunnels[n].slow(Some(100_000)),
            Action::Heal(n) => self.tunnels[n].heal(),
            Action::RestartSsh => self.ssh.restart(),
            Action::CutSsh => self.ssh_line.cut(),
            Action::StallSsh => self.ssh_line.stall(true),
            Action::HealSsh => self.ssh_line.heal(),
            Action::CutApp => self.app_line.cut(),
            Action::KillAgent(_)
            | Action::StartAgent(_)
            | Action::KillHub
            | Action::StartHub
            | Action::Freeze(_)
            | Action::Thaw(_)
            | Action::Repeat(_)
            | Action::FillDisk
            | Action::FreeDisk => {}
        }
    }

    /// A connection request heard on the way and sent again is of no use, once the hub has answered it, until the hub is
    /// started again: it remembers in memory what it has seen. Otherwise it fences the agent's own connection, and that
    /// is a fault like others.
    async fn repeat(&mut self, agent: usize) -> bool {
        let known = self.tunnels[agent].newest_answered().is_some_and(|newest| newest > self.hub_started);
        match self.tunnels[agent].try_replay().await {
            // The tunnel's upgrade or a payload's request, whichever was the newest connection.
            Ok(line) if line.contains(" 101 ") => {
                self.note(&format!("the repeated request was let in: {line}"));
                if known {
                    self.crashes.push(format!("a repeated tunnel request was answered {line:?}"));
                }
                true
            }
            Ok(_) => true,
            // The hub is away just now.
            Err(_) => false,
        }
    }

    /// Starts again what ended without being told to, at most once a second each.
    async fn supervise(&mut self) {
        let lately = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < Duration::from_secs(1));
        if self.full {
            self.was_full = Some(Instant::now());
        }
        for n in 0..2 {
            if self.wanted[n] && !self.agents[n].process().is_running() && !lately(self.revived[n]) {
                self.revived[n] = Some(Instant::now());
                let code = self.agents[n].process().exit_code(Duration::from_secs(1)).await;
                let said = format!("agent {n} ended by itself with {code:?}");
                self.note(&said);
                // A full disk at its start is the operator's to mend; everything else is a bug.
                if n == 0 || !lately(self.was_full) {
                    self.crashes.push(said);
                }
                self.agents[n].spawn();
            }
        }
        if self.hub_wanted && !self.hub.process.is_running() {
            self.note("the hub ended by itself");
            self.crashes.push("the hub ended by itself".to_owned());
            self.hub.restart().await;
            self.hub_started = Instant::now();
        }
    }

    fn note(&mut self, what: &str) {
        self.timeline.push(format!("{:9.3} {what}", self.started.elapsed().as_secs_f64()));
    }

    /// Copies all logs and databases to `folder`.
    ///
    /// # Panics
    /// If they cannot be copied.
    pub fn keep(&mut self, folder: &Path) {
        fs::create_dir_all(folder).expect("a folder for the logs");
        fs::write(folder.join("timeline.txt"), self.timeline.join("\n")).expect("the timeline");
        fs::write(folder.join("hub.log"), self.hub.process.log()).expect("the hub's log");
        fs::write(folder.join("sshd.log"), self.ssh.log()).expect("sshd's log");
        for (n, agent) in self.agents.iter_mut().enumerate() {
            let log = agent.process().log();
            fs::write(folder.join(format!("agent-{}.log", n + 1)), log).expect("an agent's log");
        }
        for entry in fs::read_dir(self.hub.data()).into_iter().flatten().flatten() {
            if entry.path().is_file() {
                let _best_effort = fs::copy(entry.path(), folder.join(entry.file_name()));
            }
        }
    }
}

/// The fault that a step begins, if it begins one.
fn kind(action: Action) -> Option<&'static str> {
    Some(match action {
        Action::KillAgent(_) => "agent_killed",
        Action::KillHub => "hub_killed",
        Action::Freeze(_) => "agent_frozen",
        Action::Cut(_) => "tunnel_cut",
        Action::HalfOpen(_) => "tunnel_half_open",
        Action::Stall(_) => "tunnel_stalled",
        Action::Slow(_) => "tunnel_slow",
        Action::Repeat(_) => "tunnel_repeated",
        Action::RestartSsh => "sshd_restarted",
        Action::CutSsh => "sshd_cut",
        Action::StallSsh => "sshd_stalled",
        Action::CutApp => "application_cut",
        Action::FillDisk => "disk_filled",
        Action::StartAgent(_)
        | Action::StartHub
        | Action::Thaw(_)
        | Action::Heal(_)
        | Action::HealSsh
        | Action::FreeDisk => return None,
    })
}
