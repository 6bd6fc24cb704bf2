//! The classic log files that operators of the suite know: `err_yyyyMMdd.log` (errors and warnings, one a day) and
//! `infos_yyyyMMdd-HH.log` (everything, one an hour), a line each:
//! `yyyy-MM-dd HH:mm:ss|info|pid:26528|Zone|message|`. Times are those of the machine's time zone.
//!
//! A thread of its own writes them, so that a slow or full disk never holds up a job: what it cannot take is left out
//! and counted.

mod files;
mod layer;

use crate::{clock, exit::Stop};
use files::Files;
pub use layer::ClassicLayer;
use passerelle_config::ClassicLog;
use std::{
    panic,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// How many lines wait for the disk: some seconds of the busiest agent.
const WAITING: usize = 8192;
/// How long the last lines may take when the agent ends.
const LAST_LINES: Duration = Duration::from_secs(2);
/// How often files that are too old or too many are looked for, and a lost folder is tried again.
const TEND_EVERY: Duration = Duration::from_secs(30);

/// One line.
#[derive(Debug)]
struct Line {
    at: jiff::Timestamp,
    level: Level,
    zone: &'static str,
    message: String,
}

/// The classic levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Info,
    Warning,
    Error,
    Critical,
}

impl Level {
    /// As it stands in a line: the French words of the suite.
    fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "erreur",
            Self::Critical => "critique",
        }
    }
}

enum Message {
    Line(Line),
    Flush(SyncSender<()>),
}

/// The way to the writing thread.
#[derive(Debug, Clone)]
struct Sender {
    lines: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

impl Sender {
    fn send(&self, line: Line) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(Message::Line(line)) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The classic log of a running agent. Its last lines are on disk when it is dropped.
#[derive(Debug)]
pub struct ClassicLogs(Sender);

impl ClassicLogs {
    /// Begins to write into the folder, which is made if it is not there.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn start(settings: &ClassicLog) -> Result<(Self, ClassicLayer), Stop> {
        let folder = settings.dir.display().to_string();
        let wrong = |error: std::io::Error| {
            Stop::Configuration(format!(
                "log.classic_dir: {folder} cannot be written: {error}: give it to the agent's user, or leave the key out"
            ))
        };
        let files = Files::open(settings).map_err(wrong)?;
        let (lines, waiting) = sync_channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        thread::Builder::new()
            .name("classic-log".to_owned())
            .spawn(move || write(files, &waiting, &counted))
            .map_err(wrong)?;
        let sender = Sender { lines, lost };
        let (before, panics) = (panic::take_hook(), sender.clone());
        panic::set_hook(Box::new(move |panic| {
            panics.send(critical("agent", &panic.to_string()));
            before(panic);
        }));
        Ok((Self(sender.clone()), ClassicLayer::new(sender)))
    }

    /// Writes that something ended which should not.
    pub fn critical(&self, zone: &'static str, message: &str) {
        self.0.send(critical(zone, message));
    }
}

impl Drop for ClassicLogs {
    fn drop(&mut self) {
        let (written, done) = sync_channel(1);
        let mut message = Message::Flush(written);
        let until = Instant::now() + LAST_LINES;
        // The queue may be full for a moment, and the disk may hang for good.
        while let Err(TrySendError::Full(back)) = self.0.lines.try_send(message) {
            if Instant::now() >= until {
                return;
            }
            message = back;
            thread::sleep(Duration::from_millis(5));
        }
        let _late = done.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

fn critical(zone: &'static str, message: &str) -> Line {
    Line { at: clock::now(), level: Level::Critical, zone, message: layer::one_line(message.to_owned()) }
}

/// Writes until nobody logs any more.
fn write(mut files: Files, waiting: &Receiver<Message>, lost: &AtomicU64) {
    let mut tended = Instant::now();
    files.tend();
    loop {
        let received = waiting.recv_timeout(TEND_EVERY);
        if tended.elapsed() >= TEND_EVERY {
            files.tend();
            tended = Instant::now();
        }
        match received {
            Ok(Message::Line(line)) => {
                let missing = lost.swap(0, Ordering::Relaxed);
                if missing > 0 {
                    files.write(&Line {
                        at: line.at,
                        level: Level::Warning,
                        zone: "log",
                        message: format!("{missing} lines are missing here: the disk was too slow for them"),
                    });
                }
                files.write(&line);
            }
            Ok(Message::Flush(done)) => drop(done.send(())),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests;
