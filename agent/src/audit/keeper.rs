//! Moves committed rows from the journal into the chain's files, and keeps these within their quota.

use super::{
    Entry, Kind,
    segments::{self, Segment, Segments},
};
use crate::{agent::Agent, journal::Journal};
use passerelle_config::WhenFull;
use passerelle_protocol::Sha256;
use std::{
    fs, io,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, interval},
};
use tracing::{error, info, warn};

/// How often rows are moved.
const EVERY: Duration = Duration::from_secs(1);
/// How many at once.
const BATCH: usize = 2000;
/// How long rows may be in a file without a sync; as long they are in the journal too.
const SYNC_EVERY: Duration = Duration::from_secs(10);
/// So many rows are synced sooner, so that the journal stays small.
const SYNC_ROWS: u64 = 10_000;

/// What is done each second.
pub struct Keeper {
    segments: Option<Segments>,
    synced: u64,
    synced_at: Instant,
    counted: (u64, u64),
    failing: bool,
    told: Option<u64>,
}

impl Default for Keeper {
    fn default() -> Self {
        Self {
            segments: None,
            synced: 0,
            synced_at: Instant::now(),
            counted: (0, 0),
            failing: false,
            told: None,
        }
    }
}

/// Runs until it is aborted; the value that it works on is then at its owner's again.
pub async fn run(agent: Arc<Agent>, keeper: Arc<tokio::sync::Mutex<Keeper>>) {
    let mut seconds = interval(EVERY);
    loop {
        seconds.tick().await;
        keeper.lock().await.pass(&agent, false).await;
    }
}

impl Keeper {
    /// Moves what there is. The last time everything is synced.
    pub async fn pass(&mut self, agent: &Agent, last: bool) {
        self.count(agent);
        let moved = self.move_rows(agent, last).await;
        match &moved {
            Err(error) if !self.failing => {
                error!(%error, "The audit's files cannot be written; its rows stay in the journal until they can");
            }
            Ok(()) if self.failing => info!("The audit's files can be written again"),
            Ok(()) | Err(_) => {}
        }
        self.failing = moved.is_err();
        if let Err(error) = self.keep_quota(agent).await {
            warn!(%error, "The audit's oldest files cannot be removed");
        }
    }

    async fn move_rows(&mut self, agent: &Agent, last: bool) -> io::Result<()> {
        let mut segments = match self.segments.take() {
            Some(segments) => segments,
            None => {
                let state = Arc::clone(&agent.state);
                blocking(move || Segments::open(state.path())).await?
            }
        };
        let size = segments::size(agent.settings().config.agent.audit_quota.0);
        loop {
            let rows = rows(&agent.journal, segments.filed.seq).await?;
            let more = rows.len() == BATCH;
            let due = segments.filed.seq > self.synced && self.synced_at.elapsed() >= SYNC_EVERY;
            let many = segments.filed.seq + rows.len() as u64 >= self.synced + SYNC_ROWS;
            let sync = due || many || last;
            if rows.is_empty() && !sync {
                break;
            }
            let changed = !rows.is_empty();
            let done;
            (segments, done) = blocking(move || {
                let done =
                    segments.append(&rows, size).and_then(|()| if sync { segments.sync() } else { Ok(()) });
                let done = done.and_then(|()| if changed { segments.note_head() } else { Ok(()) });
                Ok((segments, done))
            })
            .await?;
            agent.metrics.audit_filed.set(i64::try_from(segments.filed.seq).unwrap_or(i64::MAX));
            // After an error they are opened anew the next time: somebody may have removed the file.
            done?;
            if sync {
                self.synced = segments.filed.seq;
                self.synced_at = Instant::now();
                agent.journal.audit_filed(self.synced);
            }
            if !more {
                break;
            }
        }
        self.segments = Some(segments);
        Ok(())
    }

    /// Removes the oldest files past the quota, or has the agent take no jobs.
    async fn keep_quota(&mut self, agent: &Agent) -> io::Result<()> {
        let settings = agent.settings();
        let quota = settings.config.agent.audit_quota.0;
        let dir = agent.state.path().join(segments::DIR);
        let files = blocking({
            let dir = dir.clone();
            move || segments::list(&dir)
        })
        .await?;
        let used = files.iter().map(|file| file.size).sum::<u64>();
        agent.metrics.audit_bytes.set(i64::try_from(used).unwrap_or(i64::MAX));
        let over = used > quota && files.len() > 1;
        let stop = over && settings.config.audit.when_full == WhenFull::Stop;
        agent.pressure.audit_full.store(stop, Ordering::Relaxed);
        if !over || stop {
            return Ok(());
        }
        let mut left = used;
        let mut doomed = Vec::new();
        for pair in files.windows(2) {
            let [oldest, next] = pair else { continue };
            if left <= quota {
                break;
            }
            left -= oldest.size;
            doomed.push((oldest.clone(), next.clone()));
        }
        let Some((_, kept)) = doomed.last().cloned() else { return Ok(()) };
        let through = kept.first.saturating_sub(1);
        let hash = blocking(move || first_prev(&kept)).await?;
        let row = Entry { count: Some(through), ..Entry::new(Kind::Cut) };
        let row = row.detail(&format!(
            "the rows up to {through} go, past agent.audit_quota; the last one's hash is {hash}"
        ));
        // Told first, and in a file: who looks just now finds a row that tells of what is missing. Told once, however
        // often it takes to remove them.
        if self.told != Some(through) {
            agent.journal.audit(row).await.map_err(io::Error::other)?;
            self.told = Some(through);
        }
        self.move_rows(agent, true).await?;
        warn!(through, "The audit has reached agent.audit_quota: its oldest rows were removed");
        blocking(move || doomed.iter().try_for_each(|(oldest, _)| fs::remove_file(&oldest.path))).await
    }

    fn count(&mut self, agent: &Agent) {
        let cost = agent.journal.audit_cost();
        let now = (cost.rows.load(Ordering::Relaxed), cost.nanoseconds.load(Ordering::Relaxed));
        agent.metrics.audit_rows.inc_by(now.0 - self.counted.0);
        agent.metrics.audit_seconds.inc_by(Duration::from_nanos(now.1 - self.counted.1).as_secs_f64());
        self.counted = now;
    }
}

async fn rows(journal: &Journal, after: u64) -> io::Result<Vec<(u64, String)>> {
    journal.audit_after(after, BATCH).await.map_err(io::Error::other)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    // A network folder may hang: that must not keep a thread of the runtime.
    spawn_blocking(work).await.map_err(io::Error::other)?
}

/// The hash of the row before a file's first one.
fn first_prev(segment: &Segment) -> io::Result<Sha256> {
    let mut prev = None;
    segments::each_line(Path::new(&segment.path), |line, _| {
        prev = super::line::read(line).ok().map(|(row, _)| row.prev);
        false
    })?;
    prev.ok_or_else(|| io::Error::other(format!("{} does not begin with a row", segment.path.display())))
}
