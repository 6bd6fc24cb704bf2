//! How far a change feed was read: kept by the hub, given with the lease, and told by nobody but its holder.

use super::agent::{Agent, Served, hello};
use crate::testing::{Hub, Identity, name};
use passerelle_protocol::{
    CHANGE, Hello, ListenerAnnouncement, TriggerAnnouncement, TriggerCursor, TriggerLease,
    session::AgentEvent,
};
use std::time::Duration;

/// The shortest there is: it is renewed each third of it.
const LEASE: Duration = Duration::from_secs(2);

fn with(identity: &Identity) -> Hello {
    let trigger = TriggerAnnouncement { resource: name("crm"), name: name("contacts"), kind: name(CHANGE) };
    // A listener beside it: it gets no lease.
    let listener = ListenerAnnouncement { name: name("posts") };
    let mut hello = hello(identity);
    let mut resource = hello.resources[0].clone();
    resource.name = name("crm");
    hello.resources.push(resource);
    Hello { triggers: vec![trigger], listeners: vec![listener], ..hello }
}

async fn connect(served: &Served, identity: &Identity) -> Agent {
    Agent::connect(served.address, identity, with(identity)).await.0
}

/// The next list that has this many leases.
async fn leases(agent: &mut Agent, count: usize) -> Vec<TriggerLease> {
    loop {
        if let AgentEvent::Triggers(leases) = agent.event().await
            && leases.len() == count
        {
            return leases;
        }
    }
}

async fn tell(agent: &mut Agent, lease: u64, cursor: &str) {
    let (resource, trigger) = (name("crm"), name("contacts"));
    agent.session.tell_cursor(TriggerCursor { resource, trigger, lease, cursor: cursor.to_owned() });
    agent.flush().await;
}

/// Reads until the lease tells this cursor.
async fn told(agent: &mut Agent, cursor: &str) -> u64 {
    loop {
        let [lease] = leases(agent, 1).await.try_into().unwrap();
        if lease.cursor.as_deref() == Some(cursor) {
            return lease.lease;
        }
    }
}

#[tokio::test]
async fn a_cursor_goes_with_its_trigger_to_another_agent_and_over_a_restart() {
    let hub = Hub::new().await;
    hub.store.set_lease(LEASE);
    let (anna, paul) = (hub.agent().await, hub.agent().await);
    let served = Served::start(&hub.store).await;
    let mut first = connect(&served, &anna).await;
    let [mine] = leases(&mut first, 1).await.try_into().unwrap();
    assert_eq!((mine.resource.as_str(), mine.lease, mine.cursor), ("crm", 1, None));
    tell(&mut first, 1, "page-1").await;
    tell(&mut first, 1, "page-2").await;
    assert_eq!(told(&mut first, "page-2").await, 1);

    // Neither another agent, nor a lease that is none of its own, changes it.
    let mut second = connect(&served, &paul).await;
    assert_eq!(leases(&mut second, 0).await, []);
    tell(&mut second, 1, "theirs").await;
    tell(&mut first, 2, "early").await;
    // Stored in order: once the last one shows, the others were judged.
    tell(&mut first, 1, "page-3").await;
    assert_eq!(told(&mut first, "page-3").await, 1);
    assert_eq!(leases(&mut second, 0).await, []);
    let [still] = leases(&mut first, 1).await.try_into().unwrap();
    assert_eq!(still.cursor.as_deref(), Some("page-3"));

    drop(first);
    assert_eq!(told(&mut second, "page-3").await, 2);
    // The first one is back, and tells what it had read before: its lease is over.
    let mut first = connect(&served, &anna).await;
    tell(&mut first, 1, "old").await;
    // Answered after what it told was judged.
    assert_eq!(leases(&mut first, 0).await, []);
    assert_eq!(leases(&mut first, 0).await, []);
    tell(&mut second, 2, "page-4").await;
    assert_eq!(told(&mut second, "page-4").await, 2);
    drop((first, second));
    served.stop().await;
    let hub = hub.restart().await;
    hub.store.set_lease(LEASE);
    let served = Served::start(&hub.store).await;
    let mut second = connect(&served, &paul).await;
    assert_eq!(told(&mut second, "page-4").await, 2);
}
