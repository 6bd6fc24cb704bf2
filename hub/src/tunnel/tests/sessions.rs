//! Who comes in, and what a new connection makes of the one before.

use super::agent::*;
use crate::{
    clock,
    model::{JobState, NewJob, Tier},
    store::Store,
    testing::{Hub, Identity, job, name},
};
use passerelle_protocol::{
    AgentId, Code, HeldAction, HeldState, JobId, SigningKey, VersionRange,
    session::{AgentEvent, Attempt},
};
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn only_a_fresh_token_of_an_enrolled_agent_opens_the_tunnel() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let good = token(&identity, &claims(&identity));
    assert!(dial(served.address, &good).await.is_ok());
    let (stranger, _) = SigningKey::generate().unwrap();
    let stranger = Identity { id: identity.id, key: stranger, enrolled: identity.enrolled.clone() };
    let mut aud = claims(&identity);
    aud.aud = "urn:passerelle:hub:other".to_owned();
    let mut late = claims(&identity);
    (late.iat, late.exp) = (late.iat - 3600, late.exp - 3600);
    let mut long = claims(&identity);
    long.exp += 3600;
    let mut unknown = claims(&identity);
    unknown.sub = AgentId::from(clock::new_uuid7());
    for (token, wanted) in [
        (good, "used before"),
        (token(&stranger, &claims(&identity)), "another key"),
        (token(&identity, &aud), "for another hub"),
        (token(&identity, &late), "differs from the hub's by about -3600 s"),
        (token(&identity, &long), "1 to 60 seconds"),
        (token(&identity, &unknown), "does not know the agent"),
        ("a.b.c".to_owned(), "malformed"),
        (String::new(), "is needed"),
    ] {
        let Err((status, text)) = dial(served.address, &token).await else { panic!("{wanted}: let in") };
        assert_eq!(status, 401, "{text}");
        assert!(text.contains(wanted), "{text:?} lacks {wanted:?}");
    }
    hub.store.revoke_agent(identity.id).await.unwrap();
    let Err((status, text)) = dial(served.address, &token(&identity, &claims(&identity))).await else {
        panic!("the revoked agent was let in");
    };
    assert!(status == 403 && text.starts_with("revoked"), "{status} {text}");
}

#[tokio::test]
async fn a_hello_that_does_not_fit_is_refused_with_a_reason() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let other = AgentId::from(clock::new_uuid7());
    let mut foreign = hello(&identity);
    foreign.agent = other;
    let mut newer = hello(&identity);
    newer.versions = VersionRange { min: 2, max: 3 };
    for (hello, code) in [(foreign, "bad_hello"), (newer, "version")] {
        let mut agent = Agent::dial(served.address, &identity, hello).await;
        let AgentEvent::Refused(refuse) = agent.event().await else { panic!("{code}: not refused") };
        assert_eq!((refuse.code.as_str(), refuse.permanent), (code, true));
    }
    let mut lost = hello(&identity);
    lost.hub_keys = vec![identity.key.public().id().clone()];
    let mut agent = Agent::dial(served.address, &identity, lost).await;
    let AgentEvent::Refused(refuse) = agent.event().await else { panic!("not refused") };
    assert_eq!((refuse.code.as_str(), refuse.permanent), ("hub_key", false));
}

#[tokio::test]
async fn a_tenant_that_loses_its_tier_loses_its_live_sessions() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    hub.store.set_tier(name("acme"), Tier::Standard).await.unwrap();
    let AgentEvent::Refused(refuse) = agent.event().await else { panic!("not refused") };
    assert_eq!((refuse.code.as_str(), refuse.permanent), ("tier_required", true));
    let Err((status, text)) = dial(served.address, &token(&identity, &claims(&identity))).await else {
        panic!("not refused")
    };
    assert!(status == 403 && text.contains("Enterprise"), "{status} {text}");
    hub.store.set_tier(name("acme"), Tier::Enterprise).await.unwrap();
    Agent::connect(served.address, &identity, hello(&identity)).await;
}

#[tokio::test]
async fn a_newer_connection_fences_the_older_at_once() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut older, first) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let (mut newer, second) = Agent::connect(served.address, &identity, hello(&identity)).await;
    assert_eq!((first.epoch, second.epoch), (1, 2));
    let AgentEvent::Refused(refuse) = older.event().await else { panic!("not fenced") };
    assert_eq!((refuse.code.as_str(), refuse.permanent), ("fenced", false));
    hub.store.submit(job()).await.unwrap();
    let (_, offer) = newer.offered().await;
    assert_eq!(opened(&identity, &offer).1.epoch, 2);
    assert_eq!(served.tunnel.sessions(), 1);
}

#[tokio::test]
async fn a_reconnect_settles_what_either_side_holds() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    // With a second one at the site attempts ask before their effect.
    hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let drop_job = || NewJob { resource: name("compta"), operation: name("drop"), ..job() };
    // Two notifications and two drops: one of each will be held, of the others the agent knows nothing any more.
    let mut attempts = std::collections::HashMap::new();
    for new in [job(), job(), drop_job(), drop_job()] {
        let id = hub.store.submit(new).await.unwrap().job.id;
        let (attempt, _) = agent.offered().await;
        assert_eq!(attempt.job, id);
        attempts.insert(attempts.len(), attempt);
    }
    let (kept, unaccepted, lost_drop, running) = (attempts[&0], attempts[&1], attempts[&2], attempts[&3]);
    for attempt in [lost_drop, running] {
        agent.accept(attempt).await;
        until(&hub.store, attempt.job, |job| job.attempts[0].accepted_at.is_some()).await;
    }
    drop(agent);
    let ghost = Attempt::new(JobId::from(clock::new_uuid7()), 1);
    let mut hello = hello(&identity);
    // The acceptance of `kept` was lost on the way; the job `ghost` is unknown here.
    hello.held = vec![
        held(kept, "orders", HeldState::Accepted),
        held(running, "compta", HeldState::Running),
        held(ghost, "orders", HeldState::Accepted),
    ];
    let (mut agent, welcome) = Agent::connect(served.address, &identity, hello).await;
    let actions: Vec<_> = welcome.held.iter().map(|held| (held.job, held.action)).collect();
    let (keep, stop) = (HeldAction::Keep, HeldAction::Stop);
    assert_eq!(actions, [(kept.job, keep), (running.job, keep), (ghost.job, stop)]);
    // What the agent never saw, and the drop that is safe to repeat, come again under new numbers.
    let again = [agent.offered().await.0, agent.offered().await.0];
    for attempt in [unaccepted, lost_drop] {
        assert!(again.contains(&Attempt::new(attempt.job, 2)), "{again:?}");
    }
    agent.nothing_comes().await;
    let shown = |id| {
        let store = hub.store.clone();
        async move { store.job(name("acme"), id).await.unwrap() }
    };
    assert_eq!(shown(running.job).await.state, JobState::Running);
    assert_eq!(shown(unaccepted.job).await.attempts.len(), 1, "the unseen offer does not count");
    let lost = shown(lost_drop.job).await;
    assert_eq!((lost.attempts.len(), lost.attempts[0].code), (2, Some(Code::AgentLost)));
    for attempt in [kept, running, again[0], again[1]] {
        agent.accept(attempt).await;
        agent.report(attempt, success()).await;
        assert_eq!(shown(attempt.job).await.state, JobState::Succeeded);
    }
    // The stopped one reports too, and is let go.
    agent.report(ghost, success()).await;
}

#[tokio::test]
async fn a_lost_notification_is_unknown_until_its_late_report_says_otherwise() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let id = hub.store.submit(job()).await.unwrap().job.id;
    let (attempt, _) = agent.offered().await;
    agent.accept(attempt).await;
    until(&hub.store, id, |job| job.attempts[0].accepted_at.is_some()).await;
    drop(agent);
    let (agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let unknown = hub.store.wait(name("acme"), id, LONG).await.unwrap();
    assert_eq!((unknown.state, unknown.error.unwrap().code), (JobState::Unknown, Code::AgentLost));
    drop(agent);
    let mut back = hello(&identity);
    back.held = vec![held(attempt, "orders", HeldState::Finished)];
    let (mut agent, _) = Agent::connect(served.address, &identity, back).await;
    agent.report(attempt, success()).await;
    assert_eq!(hub.store.job(name("acme"), id).await.unwrap().state, JobState::Succeeded);
}

#[tokio::test]
async fn a_restarted_hub_loses_nothing_and_runs_nothing_again() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let done = hub.store.submit(job()).await.unwrap().job.id;
    let (attempt, _) = agent.offered().await;
    agent.accept(attempt).await;
    agent.report(attempt, success()).await;
    let running = hub.store.submit(job()).await.unwrap().job.id;
    let (attempt, _) = agent.offered().await;
    agent.accept(attempt).await;
    let queued = hub.store.submit(NewJob { resource: name("later"), ..job() }).await.unwrap().job.id;
    served.stop().await;
    let hub = hub.restart().await;
    let served = Served::start(&hub.store).await;
    let mut back = hello(&identity);
    back.held = vec![held(attempt, "orders", HeldState::Running)];
    back.resources[1].name = name("later");
    let (mut agent, welcome) = Agent::connect(served.address, &identity, back).await;
    assert_eq!((welcome.epoch, welcome.held[0].action), (2, HeldAction::Keep));
    let (other, _) = agent.offered().await;
    assert_eq!(other.job, queued);
    agent.report(attempt, success()).await;
    agent.nothing_comes().await;
    for (id, state) in
        [(done, JobState::Succeeded), (running, JobState::Succeeded), (queued, JobState::Offered)]
    {
        assert_eq!(hub.store.job(name("acme"), id).await.unwrap().state, state);
    }
}

#[tokio::test]
async fn a_hub_that_stops_says_when_to_come_back() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let tunnel = served.tunnel.clone();
    let stopping = tokio::spawn(async move { tunnel.shutdown().await });
    let AgentEvent::Refused(refuse) = agent.event().await else { panic!("not told") };
    assert_eq!((refuse.code.as_str(), refuse.retry_after_s, refuse.permanent), ("busy", Some(1), false));
    assert_eq!(agent.closed().await.0, 1000);
    stopping.await.unwrap();
    let refused = dial(served.address, &token(&identity, &claims(&identity))).await;
    assert_eq!(refused.err().map(|(status, _)| status), Some(503));
}

#[tokio::test]
async fn a_revocation_by_an_admin_command_ends_the_session_and_its_attempts() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let accepted = hub.store.submit(job()).await.unwrap().job.id;
    let (attempt, _) = agent.offered().await;
    agent.accept(attempt).await;
    until(&hub.store, accepted, |job| job.attempts[0].accepted_at.is_some()).await;
    let unseen = hub.store.submit(job()).await.unwrap().job.id;
    agent.offered().await;
    let admin = Store::open(hub.dir.path()).unwrap();
    admin.revoke_agent(identity.id).await.unwrap();
    let AgentEvent::Refused(refuse) = agent.event().await else { panic!("not told") };
    assert_eq!((refuse.code.as_str(), refuse.permanent), ("revoked", true));
    let lost = hub.store.job(name("acme"), accepted).await.unwrap();
    assert_eq!((lost.state, lost.error.unwrap().code), (JobState::Unknown, Code::AgentLost));
    assert_eq!(hub.store.job(name("acme"), unseen).await.unwrap().state, JobState::Queued);
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_closed_and_the_hub_goes_on() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    for bad in [
        Message::text("not json"),
        Message::binary(vec![0, 1, 2]),
        Message::text(r#"{"type":"accept"}"#),
        Message::text(" ".repeat(passerelle_protocol::limits::MAX_FRAME + 1)),
    ] {
        let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
        agent.send_raw(bad).await;
        let (code, reason) = agent.closed().await;
        assert_eq!(code, 1002, "{reason}");
    }
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    agent.send_raw(Message::text(r#"{"type":"teleport"}"#)).await;
    assert_eq!(agent.event().await, AgentEvent::Unsupported("teleport".to_owned()));
    hub.store.submit(job()).await.unwrap();
    agent.offered().await;
}

#[tokio::test]
async fn a_report_on_another_agent_s_attempt_changes_nothing() {
    let hub = Hub::new().await;
    let (identity, thief) = (hub.agent().await, hub.agent().await);
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let id = hub.store.submit(job()).await.unwrap().job.id;
    let (attempt, _) = agent.offered().await;
    let (mut other, _) = Agent::connect(served.address, &thief, hello(&thief)).await;
    other.report(attempt, success()).await;
    assert_eq!(hub.store.job(name("acme"), id).await.unwrap().state, JobState::Offered);
}

#[tokio::test]
async fn a_late_success_ends_the_job_and_stops_the_newer_attempt() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    // With a second one at the site attempts ask before their effect.
    hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let new = NewJob { resource: name("compta"), operation: name("drop"), ..job() };
    let id = hub.store.submit(new).await.unwrap().job.id;
    let (first, _) = agent.offered().await;
    agent.accept(first).await;
    until(&hub.store, id, |job| job.attempts[0].accepted_at.is_some()).await;
    drop(agent);
    // A safe operation is offered again when its agent has lost it, and then the lost attempt reports after all.
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let (second, _) = agent.offered().await;
    assert_eq!(second.number, 2);
    agent.report(first, success()).await;
    assert_eq!(hub.store.job(name("acme"), id).await.unwrap().state, JobState::Succeeded);
    assert_eq!(agent.event().await, AgentEvent::CancelRequested(second));
    let declined = passerelle_protocol::Decline {
        job: id,
        attempt: second.number,
        code: Code::Busy,
        message: "cancelled before it was taken".to_owned(),
        retry_after_ms: None,
    };
    agent.session.decline(declined);
    agent.flush().await;
    let done = until(&hub.store, id, |job| job.attempts.len() == 1).await;
    assert_eq!((done.state, done.attempts[0].number), (JobState::Succeeded, 1));
    assert!(done.error.is_none());
}
