//! Copies of the chain for others: a file of JSON lines, a syslog server. At least once: each has a durable cursor in the
//! state folder, which moves on only after the rows were taken, so a copy that was away catches up.

mod file;
mod syslog;
mod tail;

use crate::agent::Agent;
use passerelle_config::{AuditSection, Syslog};
use serde::{Deserialize, Serialize};
use std::{io, path::Path, sync::Arc, time::Duration};
use tail::Tail;
use tokio::{task::spawn_blocking, time::interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// How often copies are brought up to date.
const EVERY: Duration = Duration::from_secs(1);
/// How many rows are sent at once.
const BATCH: usize = 500;
/// How many batches in one turn at most, so that the cursor is written now and then while much is caught up with.
const BATCHES: usize = 20;

/// Where a copy goes.
trait Target: Send {
    /// Sends rows, or says why not all were taken; then all of them are sent again.
    fn send(&mut self, rows: &[(u64, String)]) -> io::Result<()>;

    /// The newest row that is certainly there, of those that were sent up to `sent`.
    fn confirmed(&mut self, sent: u64) -> io::Result<u64>;
}

/// The durable cursor of a copy.
#[derive(Debug, Serialize, Deserialize)]
struct Cursor {
    to: String,
    seq: u64,
}

/// One copy.
struct Export {
    /// `file` or `syslog`: names the cursor and the metric.
    name: &'static str,
    to: String,
    target: Box<dyn Target>,
    tail: Tail,
    sent: u64,
    stored: u64,
}

/// Keeps the copies that the configuration names up to date until it is stopped, which it does once more at the end.
pub async fn run(agent: Arc<Agent>, stop: CancellationToken) {
    let mut seconds = interval(EVERY);
    let mut exports: Vec<Export> = Vec::new();
    let mut configured = AuditSection::default();
    let mut failing: Vec<&'static str> = Vec::new();
    let mut last = false;
    while !last {
        tokio::select! {
            _ = seconds.tick() => {}
            () = stop.cancelled() => last = true,
        }
        let now = agent.settings().config.audit.clone();
        if now != configured {
            exports = open(&agent, &now);
            configured = now;
        }
        for mut export in std::mem::take(&mut exports) {
            let state = Arc::clone(&agent.state);
            let turned = spawn_blocking(move || {
                let done = export.turn(&state);
                (export, done)
            });
            let (export, done) = match turned.await {
                Ok(turned) => turned,
                Err(panic) => {
                    error!(error = %panic, "A copy of the audit has failed for good; a restart begins it again");
                    continue;
                }
            };
            let was_failing = failing.contains(&export.name);
            match done {
                Err(error) if !was_failing => {
                    warn!(export = export.name, %error, "A copy of the audit does not take rows; it catches up later");
                    failing.push(export.name);
                }
                Ok(()) if was_failing => {
                    info!(export = export.name, "The copy of the audit takes rows again");
                    failing.retain(|name| *name != export.name);
                }
                Ok(()) | Err(_) => {}
            }
            let filed = agent.metrics.audit_filed.get();
            let behind = filed.saturating_sub(i64::try_from(export.stored).unwrap_or(i64::MAX));
            agent.metrics.audit_behind(export.name, behind.max(0));
            exports.push(export);
        }
    }
}

fn open(agent: &Agent, section: &AuditSection) -> Vec<Export> {
    let mut exports = Vec::new();
    let mut add = |name: &'static str, to: String, target: Box<dyn Target>| {
        let seq = cursor(agent, name, &to);
        let tail = Tail::new(agent.state.path(), seq);
        exports.push(Export { name, to, target, tail, sent: seq, stored: seq });
    };
    if let Some(path) = &section.file {
        add("file", path.display().to_string(), Box::new(file::FileTarget::new(path.clone())));
    }
    if let Some(target) = &section.syslog {
        let host = agent.settings().name.to_string();
        let made: Box<dyn Target> = match target {
            Syslog::Unix(path) => Box::new(syslog::Datagrams::unix(path.clone())),
            Syslog::Udp(to, port) => Box::new(syslog::Datagrams::udp(format!("{to}:{port}"), host)),
            Syslog::Tcp(to, port) => Box::new(syslog::Stream::new(format!("{to}:{port}"), host)),
        };
        add("syslog", target.to_string(), made);
    }
    exports
}

fn cursor_file(name: &str) -> String {
    format!("audit-export-{name}.json")
}

/// Where the copy was; another target gets the chain from its oldest row.
fn cursor(agent: &Agent, name: &str, to: &str) -> u64 {
    let stored = agent.state.read(&cursor_file(name)).ok().flatten();
    let cursor = stored.and_then(|bytes| serde_json::from_slice::<Cursor>(&bytes).ok());
    cursor.filter(|cursor| cursor.to == to).map_or(0, |cursor| cursor.seq)
}

impl Export {
    fn turn(&mut self, state: &crate::state::StateDir) -> io::Result<()> {
        let done = self.send();
        if done.is_err() {
            // What is not certain goes again.
            self.tail.rewind(self.stored);
            self.sent = self.stored;
        }
        let confirmed = match done {
            Ok(()) => self.target.confirmed(self.sent).inspect_err(|_| {
                self.tail.rewind(self.stored);
                self.sent = self.stored;
            })?,
            Err(error) => return Err(error),
        };
        if confirmed > self.stored {
            let cursor = Cursor { to: self.to.clone(), seq: confirmed };
            let bytes = serde_json::to_vec(&cursor).map_err(io::Error::other)?;
            state.write(&cursor_file(self.name), &bytes)?;
            self.stored = confirmed;
        }
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        for _ in 0..BATCHES {
            let rows = self.tail.next(BATCH)?;
            let Some((last, _)) = rows.last() else { break };
            self.target.send(&rows)?;
            self.sent = *last;
        }
        Ok(())
    }
}

/// The path of a socket or file, for messages.
fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
