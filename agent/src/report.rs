//! Reports what the journal holds, and nothing else: the outbox of the agent.
//!
//! Each session gets a feed of its own, which starts at the oldest report that the hub has not acknowledged.

use crate::agent::Agent;
use passerelle_protocol::Report;
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::timeout};
use tracing::warn;

/// Reports read ahead: each may be large.
const AHEAD: usize = 4;
/// How many are read from the journal at once.
const AT_ONCE: usize = 16;
/// How often the journal is looked at without a hint, and after a failed read.
const LOOK: Duration = Duration::from_secs(5);

/// Starts the feed of a session; it ends when the receiver is dropped.
pub fn feed(agent: &Arc<Agent>) -> mpsc::Receiver<Arc<Report>> {
    let (reports, receiver) = mpsc::channel(AHEAD);
    let agent = Arc::clone(agent);
    tokio::spawn(async move {
        let mut cursor = None;
        loop {
            // Asked for before the journal is read: a report that comes in between is not missed.
            let hint = agent.finished.notified();
            let fresh = agent.journal.reportable();
            match agent.journal.reports_after(cursor, AT_ONCE).await {
                Ok((rows, next)) if !rows.is_empty() => {
                    cursor = Some(next);
                    for report in rows {
                        if reports.send(report).await.is_err() {
                            return;
                        }
                    }
                    continue;
                }
                Ok((_, next)) => cursor = Some(next),
                Err(error) => warn!(%error, "Reports cannot be read"),
            }
            tokio::select! {
                // Timing out is as good as a hint.
                _ = timeout(LOOK, hint) => {}
                () = fresh => {}
                () = reports.closed() => return,
            }
        }
    });
    receiver
}
