//! Agent and hub sessions against each other: single rules in `rules`, whole worlds with faults in `properties`.

mod agent_owner;
mod hub_owner;
mod network;
mod properties;
mod rules_agent;
mod rules_events;
mod rules_hub;
mod world;

use super::Attempt;
use crate::{
    AgentId, CallsAnnouncement, Event, EventPayload, FileEvent, Hello, JobId, Name, Offer, Outcome, PICKUP,
    PayloadSource, Report, ResourceAnnouncement, SessionId, Sha256, TriggerLease, VersionRange, Welcome,
};
use std::time::Instant;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn job(n: u8) -> JobId {
    JobId::new(u64::from(n), &[n; 10])
}

fn attempt(n: u8) -> Attempt {
    Attempt::new(job(n), 1)
}

/// An agent for `resources`, each with its `max_concurrent`.
fn hello(max_jobs: u32, resources: &[(&str, u32)]) -> Hello {
    let connector = (name("file"), crate::ConnectorAnnouncement { operations: Vec::new() });
    Hello {
        versions: VersionRange { min: 1, max: 1 },
        agent: AgentId::new(0, &[7; 10]),
        name: name("paris-1"),
        agent_version: "0.1.0".to_owned(),
        instance: "i".to_owned(),
        hub_keys: Vec::new(),
        max_jobs,
        connectors: [connector].into(),
        resources: resources
            .iter()
            .map(|(resource, max_concurrent)| ResourceAnnouncement {
                name: name(resource),
                connector: name("file"),
                operations: Vec::new(),
                max_concurrent: *max_concurrent,
                rate_per_minute: None,
                paused: None,
            })
            .collect(),
        held: Vec::new(),
        triggers: Vec::new(),
        calls: Some(CallsAnnouncement { max: max_jobs, issued_after: 0 }),
        listeners: Vec::new(),
    }
}

fn welcome() -> Welcome {
    Welcome {
        version: 1,
        session: SessionId::new(0, &[1; 10]),
        epoch: 1,
        tenant: name("acme"),
        site: name("paris"),
        server_time: jiff::Timestamp::UNIX_EPOCH,
        held: Vec::new(),
    }
}

fn offer(attempt: Attempt, ticket: &str) -> Offer {
    Offer {
        job: attempt.job,
        attempt: attempt.number,
        envelope: "envelope".to_owned(),
        ticket: ticket.to_owned(),
        payload: None,
        traceparent: None,
    }
}

fn report(attempt: Attempt, outcome: Outcome) -> Report {
    Report {
        job: attempt.job,
        attempt: attempt.number,
        outcome,
        started_at: None,
        finished_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

fn event(number: u32) -> Event {
    let data = FileEvent {
        path: format!("in/{number}.csv"),
        size: 3,
        sha256: Sha256::of(b"abc"),
        modified_at: Some(jiff::Timestamp::UNIX_EPOCH),
    };
    let (resource, kind) = (name("compta"), name(PICKUP));
    Event {
        id: data.id(&name("paris"), &resource, &kind),
        resource,
        trigger: name("incoming"),
        kind,
        lease: 1,
        occurred_at: jiff::Timestamp::UNIX_EPOCH,
        data: serde_json::to_value(data).unwrap(),
        payload: Some(EventPayload {
            size: 3,
            sha256: Sha256::of(b"abc"),
            media_type: "text/csv".to_owned(),
            source: PayloadSource::Inline { data: "YWJj".to_owned() },
        }),
    }
}

fn lease(number: u64) -> TriggerLease {
    TriggerLease {
        resource: name("compta"),
        trigger: name("incoming"),
        lease: number,
        ttl_s: Some(30),
        cursor: None,
    }
}

fn success() -> Outcome {
    Outcome::Succeeded { result: serde_json::Value::Null, output: None, receipt: None }
}

fn start() -> Instant {
    Instant::now()
}
