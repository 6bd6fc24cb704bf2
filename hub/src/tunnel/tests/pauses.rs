//! What agents announce as paused is offered to nobody there.

use super::agent::*;
use crate::{
    model::JobState,
    testing::{Hub, job, name},
};
use passerelle_protocol::{Code, Effect, Failure, Hello, Outcome, Pause, Verdict};

/// The resource of [`job`], paused.
fn paused(mut hello: Hello, until: Option<&str>, by: &str) -> Hello {
    let resource = job().resource;
    for announced in hello.resources.iter_mut().filter(|of| of.name == resource) {
        let until = until.map(|until| until.parse().unwrap());
        announced.paused = Some(Pause { until, reason: None, by: by.to_owned() });
    }
    hello
}

#[tokio::test]
async fn jobs_wait_for_an_agent_that_has_not_paused_the_resource() {
    let hub = Hub::new().await;
    let (anna, paul) = (hub.agent().await, hub.agent().await);
    let served = Served::start(&hub.store).await;
    let (anna_s, _) = Agent::connect(served.address, &anna, paused(hello(&anna), None, "anna")).await;
    let id = hub.store.submit(job()).await.unwrap().job.id;
    let until_soon = Some("2100-01-01T00:00:00Z");
    let (paul_s, _) = Agent::connect(served.address, &paul, paused(hello(&paul), until_soon, "paul")).await;
    assert_eq!(hub.store.job(name("acme"), id).await.unwrap().state, JobState::Queued);
    let view = |views: Vec<crate::model::ResourceView>| {
        views.into_iter().find(|view| view.name == job().resource).unwrap()
    };
    let both = view(served.tunnel.resources(&name("acme"), &name("paris")));
    // The one that ends first is the one to wait for.
    assert_eq!((both.paused.unwrap().by.as_str(), both.pauses.len()), ("paul", 2));

    let (mut resumed, _) = Agent::connect(served.address, &paul, hello(&paul)).await;
    let one = view(served.tunnel.resources(&name("acme"), &name("paris")));
    assert_eq!((one.paused, one.pauses.len(), one.pauses[0].agent), (None, 1, anna.id));
    let (attempt, _) = resumed.offered().await;
    assert_eq!((attempt.job, attempt.number), (id, 1));
    drop((anna_s, paul_s));
}

#[tokio::test]
async fn what_is_handed_back_for_a_pause_goes_on_elsewhere_uncounted() {
    let hub = Hub::new().await;
    let (anna, paul) = (hub.agent().await, hub.agent().await);
    let served = Served::start(&hub.store).await;
    let (mut first, _) = Agent::connect(served.address, &anna, hello(&anna)).await;
    let once = crate::model::NewJob { max_attempts: 1, ..job() };
    let id = hub.store.submit(once).await.unwrap().job.id;
    let (attempt, _) = first.offered().await;
    first.accept(attempt).await;
    let mut again = paused(hello(&anna), None, "anna");
    again.held = vec![held(attempt, job().resource.as_str(), passerelle_protocol::HeldState::Accepted)];
    let (mut first, _) = Agent::connect(served.address, &anna, again).await;
    let (mut second, _) = Agent::connect(served.address, &paul, hello(&paul)).await;
    let failure = Failure::new(Verdict::Retry, Effect::NotApplied, Code::Paused, "paused");
    first.report(attempt, Outcome::Failed(failure)).await;
    let (next, _) = second.offered().await;
    assert_eq!((next.job, next.number), (id, 2));
}
