//! How a session opens: the agent's first word, and what a refusal of it means.

use super::{Ended, upgrade::RE_ENROL};
use crate::{
    VERSION,
    agent::Agent,
    audit::{Entry, Kind},
    clock, listeners,
    state::Refusal,
};
use passerelle_protocol::{
    Hello, PROTOCOL_VERSION, Refuse, VersionRange,
    limits::{CLOCK_SKEW, MAX_HUB_KEYS, MAX_JOBS},
};
use std::time::Duration;
use tracing::error;

/// What the agent says first: who it is, what it has, what it holds.
pub(super) async fn hello(agent: &Agent) -> Hello {
    let settings = agent.settings();
    let (connectors, mut resources) = settings.announcements();
    for (name, paused) in agent.pauses.now() {
        if let Some(resource) = resources.iter_mut().find(|resource| resource.name == name) {
            resource.paused = Some(paused.announced());
        }
    }
    let mut hub_keys = agent.identity.hub_key_names();
    hub_keys.truncate(MAX_HUB_KEYS);
    let mut held = agent.registry.held();
    // A session may not hold more than this; the others are re-offered, found in the journal, and accepted.
    held.truncate(MAX_JOBS as usize * 2);
    Hello {
        versions: VersionRange { min: PROTOCOL_VERSION, max: PROTOCOL_VERSION },
        agent: agent.identity.enrolled.agent,
        name: settings.name.clone(),
        agent_version: VERSION.to_owned(),
        instance: agent.instance.clone(),
        max_jobs: settings.max_jobs(),
        connectors,
        resources,
        held,
        hub_keys,
        triggers: settings.triggers(),
        calls: settings.calls(agent.calls.issued_after()),
        listeners: listeners::announcements(agent).await,
    }
}

/// The hub wants no session: what the operator is told, and whether it is tried again.
pub(super) fn refusal(agent: &Agent, refuse: Refuse) -> Ended {
    let clock = clock::difference(refuse.server_time, CLOCK_SKEW.as_secs().cast_signed());
    let mut message = refuse.message;
    if refuse.code == "version" {
        message = format!(
            "{message} (the hub speaks protocol versions {} to {}, this agent {PROTOCOL_VERSION}: update the older one)",
            refuse.versions.min, refuse.versions.max
        );
    }
    if let Some(clock) = clock {
        message = format!("{message}; {clock}");
    }
    let kind = if refuse.code == "fenced" { Kind::Fenced } else { Kind::RefusedByHub };
    agent.journal.refused(Entry::new(kind).hub_code(&refuse.code).detail(&message));
    if refuse.code == "revoked" {
        message.push_str(RE_ENROL);
    }
    if refuse.code == "fenced" {
        agent.metrics.fenced.inc();
        error!(
            "Another connection with this agent's identity took over. If this machine or its state folder was copied, two \
             processes use one identity: stop one of them, and give it an identity of its own with `passerelle-agent \
             re-enrol`; if nobody of yours did that, revoke the agent at the hub"
        );
    }
    if refuse.permanent {
        let subject = agent.identity.enrolled.agent.to_string();
        return Ended::Refused(Refusal::now(refuse.code, message, subject));
    }
    let hint = refuse.retry_after_s.map(|s| Duration::from_secs(s.into()));
    Ended::Failed { why: format!("the hub refuses the session: {}: {message}", refuse.code), hint }
}
