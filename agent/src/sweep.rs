//! Removes what dead attempts left at their targets: a cancelled drop whose line was too slow to tidy up after itself,
//! the part of one that failed in its last step. Only this agent's own attempts, by its own journal: other agents of the
//! site may share the folder. No folder is searched.

use crate::{agent::Agent, clock, journal::Leftover};
use passerelle_connectors::Code;
use passerelle_protocol::Name;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::sleep;
use tracing::{debug, info, warn};

/// How often the journal is asked.
const LOOK: Duration = Duration::from_secs(5);
/// How long one removal may take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// What cannot be removed is tried again after as long as it is old by now, within these bounds, in seconds.
const AGAIN: (i64, i64) = (30, 60 * 60);
/// A part that is not there may still appear for so many seconds: what was given up may be at work yet.
const STRAGGLERS: i64 = 10 * 60;

/// Sweeps until it is aborted.
pub async fn run(agent: Arc<Agent>) {
    loop {
        match agent.journal.leftovers(clock::unix_seconds()).await {
            Ok(found) => sweep(&agent, found).await,
            Err(error) => debug!(%error, "Leftovers cannot be looked up"),
        }
        sleep(LOOK).await;
    }
}

async fn sweep(agent: &Agent, found: Vec<Leftover>) {
    // One that does not answer is not asked for each of its leftovers.
    let mut silent: BTreeSet<Name> = BTreeSet::new();
    for leftover in found {
        let Leftover { attempt, resource, part, finished_at } = leftover;
        let now = clock::unix_seconds();
        let age = now.saturating_sub(finished_at);
        let again = now + age.clamp(AGAIN.0, AGAIN.1);
        let configured = agent.settings().resources.get(&resource).cloned();
        let Some(configured) = configured.filter(|_| !silent.contains(&resource)) else {
            agent.journal.sweep_again(attempt, again);
            continue;
        };
        match configured.connector.clean_up(&part, TIMEOUT).await {
            Ok(true) => {
                info!(job_id = %attempt.job, attempt = attempt.number, %resource, "Removed what an ended attempt had left");
                agent.metrics.leftovers_removed.inc();
                agent.journal.swept(attempt);
            }
            Ok(false) if age >= STRAGGLERS => agent.journal.swept(attempt),
            Ok(false) => agent.journal.sweep_again(attempt, again),
            // Nothing is written there, and nobody knows how long that lasts: whoever makes such jobs must not hold up the rest.
            Err(failure) if failure.code == Code::PathInvalid => {
                info!(
                    job_id = %attempt.job, attempt = attempt.number, %resource, error = %failure,
                    "An ended attempt left nothing where its path leads"
                );
                agent.journal.swept(attempt);
            }
            Err(failure) => {
                warn!(
                    job_id = %attempt.job, attempt = attempt.number, %resource, error = %failure,
                    "What an ended attempt may have left cannot be removed yet"
                );
                agent.journal.sweep_again(attempt, again);
                silent.insert(resource);
            }
        }
    }
}
