//! Keeps one connection to the hub: dial, upgrade, session, and again. Jobs hang on the process, not on this.

pub mod backoff;
mod opening;
mod session;
mod upgrade;

use crate::{
    agent::Agent,
    audit::{Entry, Kind},
    state::Refusal,
    status::Link,
};
use backoff::Backoff;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use tracing::{Instrument as _, info, info_span, warn};

/// Why there is no connection, or none any more.
#[derive(Debug)]
enum Ended {
    /// We closed it: the agent stops.
    Closed,
    /// We closed it, to tell the hub anew what the agent can do.
    Renewed,
    /// It failed; dial again.
    Failed { why: String, hint: Option<Duration> },
    /// Nobody answers at all: dial again soon, since the network may be back at any moment.
    Lost { why: String },
    /// The hub does not want this agent until an operator acts.
    Refused(Refusal),
}

/// Runs until the agent closes the tunnel (`None`) or the hub refuses it for good.
pub async fn run(agent: Arc<Agent>) -> Option<Refusal> {
    let mut backoff = Backoff::default();
    while !agent.close.is_cancelled() {
        agent.status.set_link(Link::Connecting);
        let ended = attempt(&agent, &mut backoff).await;
        let (why, wait) = match ended {
            Ended::Closed => break,
            Ended::Renewed => continue,
            Ended::Refused(refusal) => return Some(refusal),
            Ended::Failed { why, hint } => (why, backoff.next(backoff::random(), hint)),
            Ended::Lost { why } => (why, Backoff::lost(backoff::random())),
        };
        agent.metrics.reconnects.inc();
        warn!(
            error = why,
            retry_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            "Not connected to the hub"
        );
        agent.status.set_link(Link::Disconnected { why });
        tokio::select! {
            () = sleep(wait) => {}
            () = agent.close.cancelled() => break,
        }
    }
    agent.status.set_link(Link::Disconnected { why: "the agent has stopped".to_owned() });
    None
}

async fn attempt(agent: &Arc<Agent>, backoff: &mut Backoff) -> Ended {
    let upgraded = tokio::select! {
        upgraded = upgrade::open(agent) => upgraded,
        () = agent.close.cancelled() => return Ended::Closed,
    };
    let socket = match upgraded {
        Ok(socket) => socket,
        Err(ended) => return ended,
    };
    let since = Instant::now();
    let span = info_span!("session", session_id = tracing::field::Empty, hub = agent.hub.url.host_str());
    let mut heard = 0;
    let ended = session::drive(agent, socket, &mut heard).instrument(span).await;
    backoff.session_lasted(since.elapsed());
    let why = match &ended {
        Ended::Closed => "the agent closed it",
        Ended::Renewed => "the agent opens it anew, since it offers something else than before",
        Ended::Failed { why, .. } | Ended::Lost { why } => why,
        Ended::Refused(refusal) => &refusal.message,
    };
    // With how much came: a flood that the protocol bears leaves no other trace.
    let row = Entry::new(Kind::Disconnected).detail(&format!("after {heard} messages: {why}"));
    agent.journal.refused(row);
    info!(lasted_s = since.elapsed().as_secs(), "The session ended");
    ended
}
