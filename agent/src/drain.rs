//! Stopping without losing or doubling anything, in two steps.
//!
//! 1. Nothing new is taken, and the hub is told. What was accepted but whose connector has not started is handed back at
//!    once: it is reported as to be tried again, so that another agent of the site, or this one after its restart, goes
//!    on without delay.
//! 2. What runs may end within the grace time. What is cut off then has its gate closed first, and is reported as to be
//!    tried again too, before the goodbye. If its effect may have happened the report says so, and its intent stays in
//!    the journal, by which a later attempt finds out.
//!
//! What cannot be reported any more is in the journal and is reported at the next start. Heartbeats go on all the while.

use crate::{
    agent::Agent,
    audit::{Entry, Kind},
    registry::Cause,
    signals::Signals,
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

/// How long connectors may take to stop after the grace time, and a little for the journal.
const STOP_TIME: Duration = Duration::from_secs(5);
/// How long after the grace time the last reports may still be acknowledged. With the goodbye it is less than the ten
/// seconds on top of the grace time that operators are told to give.
const LAST_REPORTS: Duration = Duration::from_secs(7);

/// Drains: jobs end and reports are acknowledged, within the grace time or until a second signal.
pub async fn drain(agent: &Arc<Agent>, signals: &mut Signals) {
    let load = *agent.registry.load().borrow();
    let grace = grace(agent);
    info!(jobs = load.active, unreported = load.finished, grace_s = grace.as_secs(), "Draining");
    let deadline = Instant::now() + grace;
    agent.journal.note(Entry { count: Some(load.active as u64), ..Entry::new(Kind::Draining) });
    agent.outbox.drain(u32::try_from(grace.as_secs()).unwrap_or(u32::MAX));
    let all_ended = finish(agent, signals, deadline).await;
    let until = if all_ended { deadline } else { Instant::now().min(deadline) + LAST_REPORTS };
    flush(agent, signals, until.max(Instant::now() + Duration::from_secs(2))).await;
}

/// As the first steps of [`drain`], without a hub to report to: the outcomes wait in the journal.
pub async fn finish_jobs(agent: &Arc<Agent>, signals: &mut Signals) {
    finish(agent, signals, Instant::now() + grace(agent)).await;
}

fn grace(agent: &Agent) -> Duration {
    agent.settings().config.agent.shutdown_grace.0
}

/// Hands back what waits and waits for what runs; past the deadline, or on a second signal, cuts it off. `true` if all
/// ended by themselves.
async fn finish(agent: &Arc<Agent>, signals: &mut Signals, deadline: Instant) -> bool {
    let handed_back = agent.registry.stop_waiting(Cause::Drain);
    if handed_back > 0 {
        info!(jobs = handed_back, "Handing back jobs that have not started");
    }
    let mut load = agent.registry.load();
    let mut calls = agent.calls.count();
    let idle = async {
        drop(load.wait_for(|load| load.active == 0).await);
        calls.wait_for(|calls| *calls == 0).await.map(drop)
    };
    let why = tokio::select! {
        idle = timeout_at(deadline, idle) => match idle {
            Ok(_) => return true,
            Err(_) => "the grace time is over",
        },
        () = signals.stop() => "a second signal came",
    };
    let jobs = agent.registry.stop_all(Cause::Drain) + agent.calls.stop_all(Cause::Drain);
    warn!(jobs, "Cutting off jobs: {why}; the hub has them tried again");
    agent.tasks.close();
    // What does not end even so has its row in the journal.
    drop(timeout_at(Instant::now() + STOP_TIME, load.wait_for(|load| load.active == 0)).await);
    false
}

/// Waits until the hub has every report.
async fn flush(agent: &Arc<Agent>, signals: &mut Signals, deadline: Instant) {
    if !agent.status.connected() {
        return;
    }
    let mut load = agent.registry.load();
    let reported = load.wait_for(|load| load.finished == 0);
    tokio::select! {
        reported = timeout_at(deadline, reported) => {
            if reported.is_err() {
                warn!("Some reports were not acknowledged; they are sent again at the next start");
            }
        }
        () = signals.stop() => warn!("Stopping at once; reports that were not acknowledged are sent again at the next start"),
    }
}
