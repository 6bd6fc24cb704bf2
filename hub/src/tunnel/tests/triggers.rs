//! Leases of triggers: one agent of a site at a time, over reconnects, restarts and the end of agents.

use super::agent::{Agent, Served, hello};
use crate::testing::{Hub, Identity, name};
use passerelle_protocol::{Hello, PICKUP, TriggerAnnouncement, TriggerLease, session::AgentEvent};
use std::time::{Duration, Instant};

/// The shortest there is.
const LEASE: Duration = Duration::from_secs(2);

fn with(identity: &Identity, triggers: &[&str]) -> Hello {
    let of = |trigger: &&str| TriggerAnnouncement {
        resource: name("compta"),
        name: name(trigger),
        kind: name(PICKUP),
    };
    Hello { triggers: triggers.iter().map(of).collect(), ..hello(identity) }
}

async fn connect(served: &Served, identity: &Identity, triggers: &[&str]) -> Agent {
    Agent::connect(served.address, identity, with(identity, triggers)).await.0
}

/// The next list of triggers.
async fn told(agent: &mut Agent) -> Vec<TriggerLease> {
    loop {
        if let AgentEvent::Triggers(leases) = agent.event().await {
            return leases;
        }
    }
}

fn lease(trigger: &str, lease: u64, ttl_s: Option<u32>) -> TriggerLease {
    TriggerLease { resource: name("compta"), trigger: name(trigger), lease, ttl_s, cursor: None }
}

/// Reads until the agent may run something; it is heard meanwhile.
async fn granted(agent: &mut Agent) -> Vec<TriggerLease> {
    loop {
        let leases = told(agent).await;
        if !leases.is_empty() {
            return leases;
        }
    }
}

async fn two(hub: &Hub) -> (Identity, Identity) {
    hub.store.set_lease(LEASE);
    (hub.agent().await, hub.agent().await)
}

#[tokio::test]
async fn a_lone_agent_runs_its_triggers_without_end_until_it_shares_the_site() {
    let hub = Hub::new().await;
    hub.store.set_lease(LEASE);
    let anna = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let mut first = connect(&served, &anna, &["in", "late"]).await;
    assert_eq!(told(&mut first).await, [lease("in", 1, None), lease("late", 2, None)]);
    // Said again and again, with the same numbers.
    assert_eq!(told(&mut first).await, [lease("in", 1, None), lease("late", 2, None)]);
    let paul = hub.agent().await;
    let shared = async {
        loop {
            let leases = told(&mut first).await;
            if leases.iter().all(|lease| lease.ttl_s == Some(2)) {
                return leases;
            }
        }
    };
    assert_eq!(shared.await, [lease("in", 1, Some(2)), lease("late", 2, Some(2))]);
    // An agent without triggers is told nothing of them, one with others gets those alone.
    let mut second = connect(&served, &paul, &[]).await;
    second.nothing_comes().await;
    drop(second);
    let mut second = connect(&served, &paul, &["in", "more"]).await;
    assert_eq!(told(&mut second).await, [lease("more", 3, Some(2))]);
}

#[tokio::test]
async fn a_trigger_goes_to_another_agent_when_its_own_is_silent_for_long_enough() {
    let hub = Hub::new().await;
    let (anna, paul) = two(&hub).await;
    let served = Served::start(&hub.store).await;
    let mut first = connect(&served, &anna, &["in"]).await;
    let mut second = connect(&served, &paul, &["in"]).await;
    assert_eq!(told(&mut first).await, [lease("in", 1, Some(2))]);
    // While it is heard it stays there, for longer than a lease.
    let until = Instant::now() + 2 * LEASE;
    while Instant::now() < until {
        let (mine, others) = tokio::join!(told(&mut first), told(&mut second));
        assert_eq!((mine, others), (vec![lease("in", 1, Some(2))], vec![]));
    }
    let gone = Instant::now();
    drop(first);
    assert_eq!(granted(&mut second).await, [lease("in", 2, Some(2))]);
    assert!(gone.elapsed() >= 2 * LEASE, "{:?}: before its end and the slack", gone.elapsed());
    // It comes back too late, and does not get it.
    let mut first = connect(&served, &anna, &["in"]).await;
    assert_eq!(told(&mut first).await, []);
}

#[tokio::test]
async fn a_lease_outlives_a_restart_of_the_hub() {
    let hub = Hub::new().await;
    let (anna, paul) = two(&hub).await;
    let served = Served::start(&hub.store).await;
    let mut first = connect(&served, &anna, &["in"]).await;
    assert_eq!(told(&mut first).await, [lease("in", 1, Some(2))]);
    served.stop().await;
    drop(first);
    let hub = hub.restart().await;
    hub.store.set_lease(LEASE);
    let served = Served::start(&hub.store).await;
    // The other one is there first, and waits.
    let mut second = connect(&served, &paul, &["in"]).await;
    assert_eq!(told(&mut second).await, []);
    let mut first = connect(&served, &anna, &["in"]).await;
    assert_eq!(told(&mut first).await, [lease("in", 1, Some(2))]);
    assert_eq!(told(&mut second).await, []);
    served.stop().await;
    drop((first, second));
    // This time its agent does not come back.
    let hub = hub.restart().await;
    hub.store.set_lease(LEASE);
    let served = Served::start(&hub.store).await;
    let mut second = connect(&served, &paul, &["in"]).await;
    assert_eq!(granted(&mut second).await, [lease("in", 2, Some(2))]);
}

#[tokio::test]
async fn a_trigger_that_is_let_go_or_whose_agent_is_revoked_is_free_at_once() {
    let hub = Hub::new().await;
    let (anna, paul) = two(&hub).await;
    let served = Served::start(&hub.store).await;
    let mut first = connect(&served, &anna, &["in"]).await;
    assert_eq!(told(&mut first).await, [lease("in", 1, Some(2))]);
    // Its operator has taken the trigger out of the configuration: the agent announces it no more.
    let mut first = connect(&served, &anna, &["other"]).await;
    assert_eq!(told(&mut first).await, [lease("other", 2, Some(2))]);
    let mut second = connect(&served, &paul, &["in", "other"]).await;
    assert_eq!(told(&mut second).await, [lease("in", 3, Some(2))]);
    hub.store.revoke_agent(anna.id).await.unwrap();
    let all = loop {
        let leases = told(&mut second).await;
        if leases.len() == 2 {
            break leases;
        }
    };
    // Alone now.
    assert_eq!(all, [lease("in", 3, None), lease("other", 4, None)]);
}

#[tokio::test]
async fn a_lease_without_end_moves_when_its_agent_was_silent_for_an_ordinary_one() {
    let hub = Hub::new().await;
    hub.store.set_lease(LEASE);
    let anna = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let mut first = connect(&served, &anna, &["in"]).await;
    assert_eq!(told(&mut first).await, [lease("in", 1, None)]);
    let gone = Instant::now();
    drop(first);
    let paul = hub.agent().await;
    let mut second = connect(&served, &paul, &["in"]).await;
    assert_eq!(told(&mut second).await, []);
    assert_eq!(granted(&mut second).await, [lease("in", 2, Some(2))]);
    assert!(gone.elapsed() >= 2 * LEASE, "{:?}", gone.elapsed());
}
