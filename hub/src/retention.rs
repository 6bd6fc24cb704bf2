//! The background work that removes what is kept no longer: a pass at the start and then every few minutes.

use crate::{api::App, blobs::Collected, clock, store::retention::Retention};
use std::time::{Duration, Instant, SystemTime};

/// How often a pass runs.
const EVERY: Duration = Duration::from_secs(600);
/// How often files are looked through that nobody names.
const FILES_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Collects until the hub ends. It may be cut at any point: what is left is found by the next pass.
pub async fn run(app: App, keep: Retention) {
    let shortest = keep.blobs.min(keep.outputs).min(keep.jobs).min(keep.uploads).min(keep.events);
    let every = (shortest / 10).clamp(Duration::from_secs(1), EVERY);
    let stop = app.stop.clone();
    let forever = async {
        let mut files_at = None;
        loop {
            if files_at.is_none_or(|at: Instant| at.elapsed() >= FILES_EVERY) {
                tell(&app, "files", app.blobs.sweep_files(keep.uploads, SystemTime::now()).await);
                files_at = Some(Instant::now());
            }
            tell(&app, "retention", app.blobs.collect(&keep, clock::now()).await);
            tokio::time::sleep(every).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = forever => {}
    }
}

fn tell(app: &App, pass: &'static str, done: Result<Collected, crate::store::Error>) {
    match done {
        Ok(done) if done.is_nothing() => {}
        Ok(done) => {
            let Collected { jobs, blobs, outputs, uploads, events, runs, files, bytes } = done;
            tracing::info!(
                pass,
                jobs,
                blobs,
                outputs,
                uploads,
                events,
                runs,
                files,
                bytes,
                "Removed what is kept no longer"
            );
            app.metrics.collected(&done);
        }
        Err(error) => {
            tracing::warn!(pass, %error, "Could not remove what is kept no longer; the next pass goes on");
        }
    }
}
