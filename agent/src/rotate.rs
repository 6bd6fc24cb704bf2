//! Changes the agent's own key from time to time, beside whatever runs: nobody notices. The new key is on disk before the
//! hub hears of it, the hub takes both until the new one was used, and what a crash leaves is in `identity`.

use crate::{
    agent::Agent,
    audit::{Entry, Kind},
    clock,
    hub::{Refused, body},
    tunnel::backoff::{Backoff, random},
};
use jiff::Timestamp;
use passerelle_protocol::{
    AgentKey,
    http::{KEYS_PATH, KeyRequest, KeyResponse},
};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;
use tracing::{debug, info, warn};

/// How often it is looked whether the time has come: the period may change, and the clock may be set.
const LOOK: Duration = Duration::from_secs(60);

/// Why the key did not change this time.
enum Failed {
    /// Worth another try with the same key.
    Later(String),
    /// The hub does not take this key.
    Refused(String),
}

/// Runs until the agent ends.
pub async fn run(agent: Arc<Agent>) {
    let mut backoff = Backoff::default();
    loop {
        match wait(&agent) {
            Some(wait) if wait.is_zero() => {}
            Some(wait) => {
                sleep(wait.min(LOOK)).await;
                continue;
            }
            None => {
                sleep(LOOK).await;
                continue;
            }
        }
        match change(&agent).await {
            Ok(()) => {
                backoff = Backoff::default();
                agent.metrics.key_rotations.inc();
            }
            Err(failed) => {
                let (why, refused) = match failed {
                    Failed::Later(why) => (why, false),
                    Failed::Refused(why) => (why, true),
                };
                if refused && let Err(error) = agent.identity.drop_next(&agent.state) {
                    warn!(%error, "The agent's next key cannot be dropped");
                }
                let wait = backoff.next(random(), Some(Duration::from_secs(1)));
                let retry_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                warn!(error = why, retry_in_ms, "The agent's key was not changed: the old one goes on");
                sleep(wait).await;
            }
        }
    }
}

/// How long until the key is due; `None` if it is never.
fn wait(agent: &Agent) -> Option<Duration> {
    let period = agent.settings().config.agent.key_rotation.0?;
    if agent.identity.has_next() {
        return Some(Duration::ZERO);
    }
    Some(left(agent.identity.key_since(), period, clock::now()))
}

fn left(since: Option<Timestamp>, period: Duration, now: Timestamp) -> Duration {
    let Some(since) = since else { return Duration::ZERO };
    // A clock that was set back must not keep a key for ever.
    let age = Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO);
    period.saturating_sub(age)
}

/// Makes the next key, registers it, and goes over to it.
async fn change(agent: &Agent) -> Result<(), Failed> {
    let later = |e: &dyn std::fmt::Display| Failed::Later(e.to_string());
    let next = agent.identity.next_key(&agent.state).map_err(|e| later(&e))?;
    let enrolled = &agent.identity.enrolled;
    let said = AgentKey::new(
        enrolled.agent,
        enrolled.audience.clone(),
        next.public().clone(),
        clock::unix_seconds(),
    );
    let request = KeyRequest {
        by_old: said.sign(&agent.identity.key()).map_err(|e| later(&e))?,
        by_new: said.sign(&next).map_err(|e| later(&e))?,
    };
    register(agent, &request).await?;
    agent.identity.switch(&agent.state).map_err(|e| later(&e))?;
    info!(key = %next.public().id(), "The agent signs with a new key");
    agent
        .journal
        .note(Entry::new(Kind::KeyRotated).detail(&format!("this agent's key, now {}", next.public().id())));
    // Its first use ends the time of the old one. If this is lost, the next connection does the same.
    if let Err(Failed::Later(why) | Failed::Refused(why)) = register(agent, &request).await {
        debug!(error = why, "The new key was not used yet");
    }
    Ok(())
}

async fn register(agent: &Agent, request: &KeyRequest) -> Result<(), Failed> {
    let later = |e: String| Failed::Later(e);
    let response = agent
        .hub
        .authorised(&agent.identity, reqwest::Method::POST, KEYS_PATH)
        .map_err(|e| later(e.to_string()))?
        .json(request)
        .send()
        .await
        .map_err(|e| later(agent.hub.explain(&e)))?;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = body(response).await.map_err(|e| later(agent.hub.explain(&e)))?;
    if status.is_success() && serde_json::from_slice::<KeyResponse>(&body).is_ok() {
        return Ok(());
    }
    match Refused::read(status, &headers, &body) {
        Some(refused) if status == reqwest::StatusCode::CONFLICT => Err(Failed::Refused(refused.to_string())),
        Some(refused) => Err(later(refused.to_string())),
        None => Err(later(format!("the hub answered with HTTP status {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;

    #[test]
    fn a_key_is_due_when_it_is_as_old_as_the_period() {
        let now = clock::now();
        let day = Duration::from_secs(86_400);
        let ago = |seconds| now.checked_sub(SignedDuration::from_secs(seconds)).ok();
        assert_eq!(left(ago(0), day, now), day);
        assert_eq!(left(ago(86_399), day, now), Duration::from_secs(1));
        assert_eq!(left(ago(86_400), day, now), Duration::ZERO);
        assert_eq!(left(ago(-3600), day, now), day, "a clock that was set back");
        assert_eq!(left(None, day, now), Duration::ZERO);
    }
}
