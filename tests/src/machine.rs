//! A machine with a systemd of its own, for what operators do as root: its files are those of this machine, and what is
//! changed in it goes when it does. Its network is a loopback of its own, so every port is free.

use crate::{PATIENCE, Process, is_root, until};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const SYSTEMD: &str = "/lib/systemd/systemd";
const SCRIPT: &str = include_str!("machine.sh");
/// Where control groups are, by the layouts that there are.
const GROUPS: [&str; 3] = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// How long its processes may take to end once their first one has.
const LONGEST_END: Duration = Duration::from_secs(10);

/// A booted machine.
pub struct Machine {
    process: Process,
    init: u32,
    group: String,
    _home: TempDir,
}

impl Machine {
    /// Why there can be none here, if so.
    #[must_use]
    pub fn missing() -> Option<&'static str> {
        if !is_root() {
            return Some("it needs root");
        }
        (!Path::new(SYSTEMD).exists()).then_some("it needs the package systemd")
    }

    /// Boots one.
    ///
    /// # Panics
    /// If systemd does not come up.
    pub async fn boot() -> Self {
        let home =
            tempfile::Builder::new().prefix("passerelle-machine-").tempdir().expect("a temporary folder");
        let group = format!("passerelle-machine-{}", uuid::Uuid::now_v7());
        let mut command = Command::new("bash");
        command.arg("-c").arg(SCRIPT).arg("machine").arg(home.path()).arg(&group);
        let mut process = Process::spawn("the machine", &mut command, &home.path().join("machine.log"));
        let init = until("the machine's first process", PATIENCE, async || {
            assert!(process.is_running(), "the machine did not start:\n{}", process.log());
            let children = format!("/proc/{0}/task/{0}/children", process.id());
            let child = fs::read_to_string(children).ok()?.trim().parse().ok()?;
            let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            (name.trim() == "systemd").then_some(child)
        })
        .await;
        let machine = Self { process, init, group, _home: home };
        until("the machine to be up", PATIENCE, async || {
            let told = machine.run("systemctl is-system-running");
            matches!(String::from_utf8_lossy(&told.stdout).trim(), "running" | "degraded").then_some(())
        })
        .await;
        machine
    }

    /// Runs a script in it, in its folder `/root`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn run(&self, script: &str) -> Output {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--all"]);
        command.args(["env", "-i", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "SYSTEMD_PAGER=cat"]);
        command.arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let script = format!("cd /root\n{script}");
        command.args(["bash", "-euo", "pipefail", "-c", &script]);
        crate::run(&mut command)
    }

    /// Runs a script that must succeed, and gives what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn succeed(&self, script: &str) -> String {
        let output = self.run(script);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{} of:\n{script}\n──── it printed\n{said}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        said
    }

    /// One of its files, as seen from outside.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        Path::new("/proc").join(self.init.to_string()).join("root").join(inside.trim_start_matches('/'))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = self.run("journalctl --no-pager -n 80 -u 'passerelle*'");
            eprintln!("──── journal of the machine\n{}", String::from_utf8_lossy(&journal.stdout));
        }
        // With its first process all others of it end.
        self.process.kill();
        let begin = Instant::now();
        for group in GROUPS.map(|tree| Path::new(tree).join(&self.group)) {
            while !gone(&group) && begin.elapsed() < LONGEST_END {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Removes a control group, which goes when those below it have, and their processes; says whether it is gone.
fn gone(group: &Path) -> bool {
    let below = fs::read_dir(group).into_iter().flatten().filter_map(Result::ok);
    for entry in below.filter(|entry| entry.path().is_dir()) {
        gone(&entry.path());
    }
    let _not_yet = fs::remove_dir(group);
    !group.exists()
}
