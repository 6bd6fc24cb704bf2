//! A real rsyslogd, as most Debian machines run it: on a local socket, and over UDP and TCP.

use crate::{PATIENCE, Process, free_port, until};
use std::{fs, net::Ipv4Addr, os::unix::net::UnixDatagram, path::PathBuf, process::Command};
use tempfile::TempDir;

/// A daemon that writes what it has read of each message: `INPUT|PRIORITY|PROGRAM|PROCESS|KIND|HOST|TEXT`.
pub struct Rsyslog {
    /// Its port for UDP.
    pub udp: u16,
    /// Its port for TCP.
    pub tcp: u16,
    home: TempDir,
    _process: Process,
}

impl Rsyslog {
    /// Starts it.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start() -> Self {
        let home =
            tempfile::Builder::new().prefix("passerelle-rsyslog-").tempdir().expect("a temporary folder");
        let (udp, tcp) = (free_port(), free_port());
        let folder = home.path().display();
        // The inputs as Debian's own configuration has them, but for where they listen.
        let text = format!(
            "global(workDirectory=\"{folder}\")\n\
             module(load=\"imuxsock\" SysSock.Use=\"off\")\n\
             input(type=\"imuxsock\" Socket=\"{folder}/log\")\n\
             module(load=\"imudp\")\n\
             input(type=\"imudp\" address=\"127.0.0.1\" port=\"{udp}\")\n\
             module(load=\"imtcp\")\n\
             input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{tcp}\")\n\
             template(name=\"read\" type=\"string\" \
             string=\"%inputname%|%pri%|%app-name%|%procid%|%msgid%|%hostname%|%msg%\\n\")\n\
             action(type=\"omfile\" file=\"{folder}/read\" template=\"read\")\n"
        );
        fs::write(home.path().join("rsyslog.conf"), text).expect("a file for rsyslogd");
        let mut command = Command::new("rsyslogd");
        command.arg("-n").arg("-f").arg(home.path().join("rsyslog.conf"));
        command.arg("-i").arg(home.path().join("pid"));
        let process = Process::spawn("rsyslogd", &mut command, &home.path().join("rsyslogd.log"));
        let rsyslog = Self { udp, tcp, home, _process: process };
        until("rsyslogd to listen", PATIENCE, async || {
            let probe = UnixDatagram::unbound().ok()?;
            probe.connect(rsyslog.socket()).ok()?;
            tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, tcp)).await.ok()
        })
        .await;
        rsyslog
    }

    /// Its local socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// What it has read from an input (`imuxsock`, `imudp`, `imtcp`): each message's fields.
    #[must_use]
    pub fn read(&self, input: &str) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.home.path().join("read")).unwrap_or_default();
        // It may be writing just now: only whole lines count.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| line.splitn(7, '|').map(str::to_owned).collect::<Vec<_>>())
            .filter(|fields| fields.len() == 7 && fields.first().is_some_and(|name| name == input))
            .collect()
    }
}
