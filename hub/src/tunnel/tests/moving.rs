//! Lines, leases, grants, and limits that hold across a site of several agents.

use super::agent::{Agent, LONG, Served, failure, hello, opened, success, success_with, until};
use crate::{
    model::{JobState, NewJob},
    store::{Content, Error, Resolution},
    testing::{Hub, job, name},
};
use bytes::Bytes;
use futures_util::stream;
use passerelle_protocol::{
    Code, CommitMode, Decline, Effect, Intent, JobId, Sha256, Verdict,
    session::{AgentEvent, Attempt},
};
use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

/// The shortest there is.
const LEASE: Duration = Duration::from_secs(2);

fn drop_job() -> NewJob {
    NewJob { resource: name("compta"), operation: name("drop"), ..job() }
}

fn intent() -> Intent {
    Intent {
        part: Some(".passerelle-x-1.part".to_owned()),
        target: Some("a.csv".to_owned()),
        size: Some(1),
        sha256: Some(Sha256::of(b"x")),
        state: Some(serde_json::json!({"operation": "drop", "synced": true})),
    }
}

async fn in_line(hub: &Hub, key: &str, on_failure: Option<&str>) -> JobId {
    let job = NewJob {
        order_key: Some(key.to_owned()),
        on_failure: on_failure.map(str::to_owned),
        max_attempts: 1,
        ..job()
    };
    hub.store.submit(job).await.unwrap().job.id
}

async fn state(hub: &Hub, id: JobId) -> JobState {
    hub.store.job(name("acme"), id).await.unwrap().state
}

#[tokio::test]
async fn a_line_runs_in_order_one_at_a_time_and_a_failure_holds_it() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let ids =
        [in_line(&hub, "k", None).await, in_line(&hub, "k", None).await, in_line(&hub, "k", None).await];
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let (first, offer) = agent.offered().await;
    assert_eq!((first.job, opened(&identity, &offer).0.order_key.as_deref()), (ids[0], Some("k")));
    // There are places left, and a job of another line and one of none are not held up.
    let (other, alone) = (in_line(&hub, "other", None).await, job());
    agent.accept(first).await;
    let (second, _) = agent.offered().await;
    assert_eq!(second.job, other);
    agent.accept(second).await;
    agent.report(second, success()).await;
    let alone = hub.store.submit(alone).await.unwrap().job.id;
    let (third, _) = agent.offered().await;
    assert_eq!(third.job, alone);
    agent.accept(third).await;
    agent.report(third, success()).await;
    agent.report(first, failure(Verdict::Permanent, Effect::NotApplied, Code::TargetRefused)).await;
    agent.nothing_comes().await;
    let held = hub.store.job(name("acme"), ids[0]).await.unwrap();
    assert_eq!((held.state, held.holds_line), (JobState::Failed, true));

    // A retry keeps its place at the head of the line; with its success the next one goes.
    hub.store.retry(name("acme"), ids[0]).await.unwrap();
    let (again, _) = agent.offered().await;
    assert_eq!(again, Attempt::new(ids[0], 2));
    agent.accept(again).await;
    agent.report(again, success()).await;
    let (next, _) = agent.offered().await;
    assert_eq!(next.job, ids[1]);
    agent.accept(next).await;
    agent.report(next, success()).await;
    let (last, _) = agent.offered().await;
    assert_eq!(last.job, ids[2]);
}

#[tokio::test]
async fn a_line_goes_on_past_what_was_cancelled_or_may_fail_and_past_what_is_resolved() {
    for resolution in [Resolution::Skipped, Resolution::Applied, Resolution::NotApplied] {
        a_line_goes_on_past_what_is_resolved_as(resolution).await;
    }
}

async fn a_line_goes_on_past_what_is_resolved_as(resolution: Resolution) {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let refused = || failure(Verdict::Permanent, Effect::NotApplied, Code::TargetRefused);
    let passes = in_line(&hub, "k", Some("continue")).await;
    let cancelled = in_line(&hub, "k", None).await;
    let held = in_line(&hub, "k", None).await;
    let last = in_line(&hub, "k", None).await;
    let (attempt, _) = agent.offered().await;
    assert_eq!(attempt.job, passes);
    agent.accept(attempt).await;
    hub.store.cancel(name("acme"), cancelled).await.unwrap();
    agent.nothing_comes().await;
    agent.report(attempt, refused()).await;
    let (attempt, _) = agent.offered().await;
    assert_eq!(attempt.job, held);
    agent.accept(attempt).await;
    agent.report(attempt, refused()).await;
    agent.nothing_comes().await;
    // What had left the line and is retried waits for its turn: another one stands at the head.
    hub.store.retry(name("acme"), cancelled).await.unwrap();
    agent.nothing_comes().await;
    let note = Some("sent by hand".to_owned());
    let resolved = hub.store.resolve(name("acme"), held, resolution, note).await.unwrap();
    assert_eq!(
        (resolved.state, resolved.holds_line),
        (JobState::Failed, false),
        "it is known to have failed"
    );
    assert_eq!(resolved.note.as_deref(), Some("sent by hand"));
    let twice = hub.store.resolve(name("acme"), held, resolution, None).await;
    assert!(matches!(twice, Err(Error::Conflict(_))), "{twice:?}");
    for expected in [cancelled, last] {
        let (attempt, _) = agent.offered().await;
        assert_eq!(attempt.job, expected);
        agent.accept(attempt).await;
        agent.report(attempt, success()).await;
    }
}

#[tokio::test]
async fn a_line_is_kept_across_a_restart_of_the_hub() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let ids = [in_line(&hub, "k", None).await, in_line(&hub, "k", None).await];
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let (attempt, _) = agent.offered().await;
    agent.accept(attempt).await;
    until(&hub.store, ids[0], |job| job.attempts[0].accepted_at.is_some()).await;
    served.stop().await;
    drop(agent);
    let hub = hub.restart().await;
    let served = Served::start(&hub.store).await;
    let mut again = hello(&identity);
    again.held = vec![super::agent::held(attempt, "orders", passerelle_protocol::HeldState::Accepted)];
    let (mut agent, _) = Agent::connect(served.address, &identity, again).await;
    agent.nothing_comes().await;
    agent.report(attempt, success()).await;
    assert_eq!(agent.offered().await.0.job, ids[1]);
}

#[tokio::test]
async fn an_attempt_of_a_silent_agent_moves_after_the_lease_and_its_late_commit_is_not_granted() {
    let hub = Hub::new().await;
    hub.store.set_lease(LEASE);
    let (first, second) = (hub.agent().await, hub.agent().await);
    let served = Served::start(&hub.store).await;
    let (mut frozen, _) = Agent::connect(served.address, &first, hello(&first)).await;
    let id = hub.store.submit(drop_job()).await.unwrap().job.id;
    let (attempt, offer) = frozen.offered().await;
    assert_eq!(opened(&first, &offer).1.commit, CommitMode::Ask);
    frozen.accept(attempt).await;
    until(&hub.store, id, |job| job.attempts[0].accepted_at.is_some()).await;
    // From here on it neither reads nor answers heartbeats.
    let (mut other, _) = Agent::connect(served.address, &second, hello(&second)).await;
    let (moved, offer) = other.offered().await;
    assert_eq!(moved, Attempt::new(id, 2));
    assert_eq!(opened(&second, &offer).1.granted, None, "nothing was granted, so nothing happened");
    let seen = hub.store.job(name("acme"), id).await.unwrap();
    assert_eq!(
        (seen.attempts[0].code, seen.attempts[0].effect),
        (Some(Code::AgentLost), Some(Effect::NotApplied))
    );
    assert_eq!(seen.attempts[0].verdict, Some(Verdict::Retry), "the job goes on");
    // It wakes up and asks over a new connection: it is told to stop, and never granted.
    let mut awake = hello(&first);
    awake.held = vec![super::agent::held(attempt, "compta", passerelle_protocol::HeldState::Running)];
    let (mut late, welcome) = Agent::connect(served.address, &first, awake).await;
    assert_eq!(welcome.held[0].action, passerelle_protocol::HeldAction::Stop);
    late.session.commit(attempt, intent(), Instant::now());
    late.nothing_comes().await;
    other.accept(moved).await;
    other.session.commit(moved, intent(), Instant::now());
    assert_eq!(other.event().await, AgentEvent::CommitGranted(moved));
    other.report(moved, success_with(b"", true)).await;
    assert_eq!(state(&hub, id).await, JobState::Succeeded);
}

#[tokio::test]
async fn a_path_is_granted_to_one_attempt_at_a_time() {
    let hub = Hub::new().await;
    let (first, second) = (hub.agent().await, hub.agent().await);
    let served = Served::start(&hub.store).await;
    let (mut one, _) = Agent::connect(served.address, &first, hello(&first)).await;
    let (mut other, _) = Agent::connect(served.address, &second, hello(&second)).await;
    for path in ["b.csv", "a.csv"] {
        for _ in 0..2 {
            hub.store.submit(drop_job()).await.unwrap();
        }
        let mut attempts = Vec::new();
        for (agent, identity) in [(&mut one, &first), (&mut other, &second)] {
            let (attempt, offer) = agent.offered().await;
            assert_eq!(opened(identity, &offer).1.commit, CommitMode::Ask);
            agent.accept(attempt).await;
            attempts.push(attempt);
        }
        one.session.commit(attempts[0], intent(), Instant::now());
        assert_eq!(one.event().await, AgentEvent::CommitGranted(attempts[0]));
        let wanted = Intent { target: Some(path.to_owned()), ..intent() };
        let same = wanted.target == intent().target;
        other.session.commit(attempts[1], wanted, Instant::now());
        if same {
            other.nothing_comes().await;
            one.report(attempts[0], success()).await;
        }
        assert_eq!(other.event().await, AgentEvent::CommitGranted(attempts[1]));
        other.report(attempts[1], success()).await;
        if !same {
            one.report(attempts[0], success()).await;
        }
        assert_eq!(state(&hub, attempts[1].job).await, JobState::Succeeded);
    }
}

#[tokio::test]
async fn what_was_granted_is_finished_by_the_next_agent_and_a_late_success_counts_unless_found_undone() {
    for found_undone in [false, true] {
        a_late_success(found_undone).await;
    }
}

async fn a_late_success(found_undone: bool) {
    let hub = Hub::new().await;
    hub.store.set_lease(LEASE);
    let (first, second) = (hub.agent().await, hub.agent().await);
    let served = Served::start(&hub.store).await;
    let (mut frozen, _) = Agent::connect(served.address, &first, hello(&first)).await;
    let id = hub.store.submit(drop_job()).await.unwrap().job.id;
    let (attempt, _) = frozen.offered().await;
    frozen.accept(attempt).await;
    frozen.session.commit(attempt, intent(), Instant::now());
    assert_eq!(frozen.event().await, AgentEvent::CommitGranted(attempt));
    let (mut other, _) = Agent::connect(served.address, &second, hello(&second)).await;
    let (moved, offer) = other.offered().await;
    assert_eq!(opened(&second, &offer).1.granted, Some(intent()));
    other.accept(moved).await;
    let seen = hub.store.job(name("acme"), id).await.unwrap();
    assert_eq!(seen.attempts[0].effect, Some(Effect::Unknown));

    // An attempt that cannot tell keeps the grant; one that knows that nothing happened ends it.
    other.report(moved, failure(Verdict::Retry, Effect::Unknown, Code::TargetUnreachable)).await;
    let (third, offer) = other.offered().await;
    assert_eq!(opened(&second, &offer).1.granted, Some(intent()));
    other.accept(third).await;
    let effect = if found_undone { Effect::NotApplied } else { Effect::Unknown };
    other.report(third, failure(Verdict::Retry, effect, Code::TargetUnreachable)).await;
    let (fourth, offer) = other.offered().await;
    assert_eq!(opened(&second, &offer).1.granted, (!found_undone).then(intent));
    other.accept(fourth).await;

    let (mut late, _) = Agent::connect(served.address, &first, hello(&first)).await;
    late.report(attempt, success()).await;
    if !found_undone {
        assert_eq!(other.event().await, AgentEvent::CancelRequested(fourth));
        assert_eq!(state(&hub, id).await, JobState::Succeeded);
        return;
    }
    // Whoever took away what the first had prepared knows better than the first, who finds it gone.
    other.nothing_comes().await;
    let seen = hub.store.job(name("acme"), id).await.unwrap();
    assert!(!seen.state.is_settled() && seen.receipt.is_none(), "{:?}", seen.state);
    assert_eq!(seen.attempts[0].effect, Some(Effect::Unknown));
    other.report(fourth, failure(Verdict::Permanent, Effect::NotApplied, Code::TargetConflict)).await;
    let ended = hub.store.job(name("acme"), id).await.unwrap();
    assert_eq!(
        (ended.state, ended.error.map(|error| error.effect)),
        (JobState::Failed, Some(Effect::NotApplied))
    );
}

#[tokio::test]
async fn a_late_success_counts_though_another_agent_would_not_go_on() {
    let hub = Hub::new().await;
    hub.store.set_lease(LEASE);
    let (first, second) = (hub.agent().await, hub.agent().await);
    let served = Served::start(&hub.store).await;
    let (mut frozen, _) = Agent::connect(served.address, &first, hello(&first)).await;
    let id = hub.store.submit(drop_job()).await.unwrap().job.id;
    let (attempt, _) = frozen.offered().await;
    frozen.accept(attempt).await;
    frozen.session.commit(attempt, intent(), Instant::now());
    assert_eq!(frozen.event().await, AgentEvent::CommitGranted(attempt));
    let (mut other, _) = Agent::connect(served.address, &second, hello(&second)).await;
    let (moved, _) = other.offered().await;
    let message = "not allowed here".to_owned();
    let code = Code::SignatureInvalid;
    other.session.decline(Decline { job: id, attempt: moved.number, code, message, retry_after_ms: None });
    other.flush().await;
    // Nobody has looked.
    until(&hub.store, id, |job| job.state == JobState::Unknown).await;
    let (mut late, _) = Agent::connect(served.address, &first, hello(&first)).await;
    late.report(attempt, success()).await;
    assert_eq!(state(&hub, id).await, JobState::Succeeded);
}

#[tokio::test]
async fn with_one_agent_nothing_moves_and_a_lost_attempt_is_given_up_on_request_alone() {
    let hub = Hub::new().await;
    hub.store.set_lease(LEASE);
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let id = hub.store.submit(drop_job()).await.unwrap().job.id;
    let (attempt, _) = agent.offered().await;
    agent.accept(attempt).await;
    agent.start(attempt).await;
    until(&hub.store, id, |job| job.state == JobState::Running).await;
    let asked = hub.store.force_cancel(name("acme"), id).await.unwrap();
    assert_eq!(asked.state, JobState::Running, "its agent is there: it is asked");
    // Until the hub has noticed that it is gone.
    let online = || hub.store.shared().registry.online(identity.id).is_some();
    let silent = Instant::now();
    while online() {
        assert!(silent.elapsed() < LONG);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(state(&hub, id).await, JobState::Running);
    let given_up = hub.store.force_cancel(name("acme"), id).await.unwrap();
    assert_eq!((given_up.state, given_up.error.as_ref().unwrap().code), (JobState::Unknown, Code::AgentLost));
    let note = Some("the file is there".to_owned());
    let resolved = hub.store.resolve(name("acme"), id, Resolution::Applied, note).await.unwrap();
    assert_eq!((resolved.state, resolved.error), (JobState::Succeeded, None));
    let twice = hub.store.resolve(name("acme"), id, Resolution::Skipped, None).await;
    assert!(matches!(twice, Err(Error::Conflict(_))), "{twice:?}");
}

#[tokio::test]
async fn concurrency_and_rate_of_a_resource_hold_for_all_agents_together() {
    let hub = Hub::new().await;
    let (first, second) = (hub.agent().await, hub.agent().await);
    let served = Served::start(&hub.store).await;
    let (mut one, _) = Agent::connect(served.address, &first, hello(&first)).await;
    let (mut two, _) = Agent::connect(served.address, &second, hello(&second)).await;
    for _ in 0..5 {
        hub.store.submit(job()).await.unwrap();
    }
    // Each announces two at once; together they get two, one each.
    let (at_one, _) = one.offered().await;
    let (at_two, _) = two.offered().await;
    one.accept(at_one).await;
    two.accept(at_two).await;
    one.nothing_comes().await;
    two.nothing_comes().await;
    // An agent that is away may still be at work.
    drop(two);
    until_offline(&hub, second.id).await;
    one.nothing_comes().await;
    one.report(at_one, success()).await;
    let (next, _) = one.offered().await;
    one.accept(next).await;
    one.nothing_comes().await;
    let mut limited = hello(&first);
    limited.resources[1].rate_per_minute = Some(60);
    let (mut one, _) = Agent::connect(served.address, &first, limited).await;
    let begun = Instant::now();
    for _ in 0..3 {
        hub.store.submit(drop_job()).await.unwrap();
    }
    for _ in 0..3 {
        let (attempt, _) = loop {
            let (attempt, offer) = one.offered().await;
            if opened(&first, &offer).0.resource == name("compta") {
                break (attempt, offer);
            }
        };
        one.accept(attempt).await;
        one.report(attempt, success()).await;
    }
    assert!(begun.elapsed() >= Duration::from_secs(2), "three at one a second: {:?}", begun.elapsed());
}

async fn until_offline(hub: &Hub, agent: passerelle_protocol::AgentId) {
    let begun = Instant::now();
    while hub.store.shared().registry.online(agent).is_some() {
        assert!(begun.elapsed() < LONG);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_target_that_is_down_opens_the_breaker_and_jobs_wait_until_a_try_succeeds() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let breaker = || served.tunnel.resources(&name("acme"), &name("paris"))[1].breaker.clone();
    for _ in 0..5 {
        assert_eq!(breaker(), "closed");
        hub.store.submit(NewJob { max_attempts: 1, ..job() }).await.unwrap();
        let (attempt, _) = agent.offered().await;
        agent.accept(attempt).await;
        agent.report(attempt, failure(Verdict::Retry, Effect::NotApplied, Code::TargetUnreachable)).await;
    }
    assert_eq!(breaker(), "open");
    let ids = [hub.store.submit(job()).await.unwrap().job.id, hub.store.submit(job()).await.unwrap().job.id];
    agent.nothing_comes().await;
    // Another resource is not concerned.
    hub.store.submit(drop_job()).await.unwrap();
    let (other, _) = agent.offered().await;
    agent.accept(other).await;
    agent.report(other, success()).await;
    let (tried, _) = agent.offered().await;
    assert_eq!((tried.job, breaker().as_str()), (ids[0], "half_open"));
    agent.accept(tried).await;
    agent.nothing_comes().await;
    agent.report(tried, success()).await;
    assert_eq!((agent.offered().await.0.job, breaker().as_str()), (ids[1], "closed"));
}

/// Uploads the whole output of an attempt.
async fn upload(
    served: &Served,
    identity: &crate::testing::Identity,
    attempt: Attempt,
    content: &'static [u8],
) {
    let (tunnel, agent) = (&served.tunnel, identity.id);
    let (job, number, size) = (attempt.job, attempt.number, content.len() as u64);
    tunnel.output_open(agent, job, number, size, Sha256::of(content)).await.unwrap();
    let body = stream::iter([Ok::<_, Infallible>(Bytes::from_static(content))]);
    assert_eq!(tunnel.output_append(agent, job, number, 0, body).await.unwrap().offset, size);
}

#[tokio::test]
async fn an_output_that_one_attempt_stored_can_be_claimed_by_the_next_and_by_a_late_report() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let id = hub.store.submit(drop_job()).await.unwrap().job.id;
    let (first, _) = agent.offered().await;
    agent.accept(first).await;
    upload(&served, &identity, first, b"only copy").await;
    agent.report(first, failure(Verdict::Retry, Effect::Unknown, Code::Busy)).await;
    let (second, _) = agent.offered().await;
    agent.accept(second).await;
    agent.report(second, success_with(b"only copy", false)).await;
    let (view, content) = hub.store.output(name("acme"), id).await.unwrap();
    assert_eq!((state(&hub, id).await, view.sha256), (JobState::Succeeded, Sha256::of(b"only copy")));
    assert!(matches!(content, Content::File(path) if std::fs::read(&path).unwrap() == b"only copy"));
    // The first attempt's agent was thought lost, say, and tells the same at last.
    agent.report(first, success_with(b"only copy", false)).await;
    assert_eq!(state(&hub, id).await, JobState::Succeeded);
}

#[tokio::test]
async fn an_output_that_was_stored_before_its_agent_was_lost_is_the_jobs_once_it_is_known_to_be_applied() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    for (resolution, kept) in [(Resolution::Applied, true), (Resolution::Skipped, false)] {
        let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
        let id = hub.store.submit(NewJob { max_attempts: 1, ..drop_job() }).await.unwrap().job.id;
        let (attempt, _) = agent.offered().await;
        agent.accept(attempt).await;
        upload(&served, &identity, attempt, b"only copy").await;
        agent.report(attempt, failure(Verdict::Permanent, Effect::Unknown, Code::Internal)).await;
        assert_eq!(state(&hub, id).await, JobState::Unknown);
        assert!(matches!(hub.store.output(name("acme"), id).await, Err(Error::NotFound(_))));
        hub.store.resolve(name("acme"), id, resolution, None).await.unwrap();
        let output = hub.store.output(name("acme"), id).await;
        assert_eq!(output.is_ok(), kept, "{resolution:?}: {output:?}");
    }
}
