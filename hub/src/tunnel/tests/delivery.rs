//! The way of a job over the tunnel: offer, accept, progress, report, and what can go otherwise.

use super::agent::*;
use crate::{
    blobs::Blobs,
    clock,
    model::{JobState, NewJob, PayloadRef},
    store::{Content, Error},
    testing::{Hub, job, name},
};
use bytes::Bytes;
use futures_util::stream;
use passerelle_protocol::{
    BlobId, Code, CommitMode, Decline, Effect, Intent, PayloadSource, Sha256, Verdict,
    session::{AgentEvent, Attempt},
};
use std::{convert::Infallible, time::Instant};

fn decline(attempt: Attempt, code: Code, retry_after_ms: Option<u64>) -> Decline {
    Decline { job: attempt.job, attempt: attempt.number, code, message: "no".to_owned(), retry_after_ms }
}

#[tokio::test]
async fn a_job_goes_from_submission_to_success() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, welcome) = Agent::connect(served.address, &identity, hello(&identity)).await;
    assert_eq!((welcome.epoch, welcome.site.as_str(), welcome.held.len()), (1, "paris", 0));
    let payload = PayloadRef {
        blob: BlobId::from(clock::new_uuid7()),
        size: 7,
        sha256: Sha256::of(b"{\"a\":1}"),
        media_type: "application/json".to_owned(),
        data: Some(Bytes::from_static(b"{\"a\":1}")),
    };
    let new = NewJob { payload: Some(payload), ..job() };
    let before = hub.store.stats().commits;
    let id = hub.store.submit(new.clone()).await.unwrap().job.id;
    assert_eq!(hub.store.stats().commits - before, 1, "submission and offer share a commit");
    let (attempt, offer) = agent.offered().await;
    let (envelope, ticket) = opened(&identity, &offer);
    assert_eq!((envelope.params, envelope.resource), (new.params, new.resource));
    assert_eq!(envelope.payload.unwrap().sha256, Sha256::of(b"{\"a\":1}"));
    assert_eq!((ticket.epoch, ticket.commit, attempt), (1, CommitMode::Free, Attempt::new(id, 1)));
    assert_eq!(inline(&offer), b"{\"a\":1}");
    assert_eq!(hub.store.job(name("acme"), id).await.unwrap().state, JobState::Offered);
    agent.accept(attempt).await;
    agent.start(attempt).await;
    let running = until(&hub.store, id, |job| job.state == JobState::Running).await;
    assert_eq!(running.progress.unwrap().bytes_total, Some(7));
    assert!(running.attempts[0].accepted_at.is_some() && running.attempts[0].started_at.is_some());
    assert_eq!(served.tunnel.online(identity.id).unwrap().jobs_running, 1);
    agent.report(attempt, success()).await;
    let done = hub.store.wait(name("acme"), id, LONG).await.unwrap();
    assert_eq!((done.state, done.attempts.len()), (JobState::Succeeded, 1));
    assert_eq!(done.attempts[0].effect, Some(Effect::Applied));
    assert_eq!(
        (done.result.unwrap()["status"].as_u64(), done.receipt.as_deref()),
        (Some(204), Some("a.b.c"))
    );
    assert!(done.error.is_none() && done.finished_at.is_some());
    // Told again, it is acknowledged again and changes nothing.
    agent.report(attempt, failure(Verdict::Permanent, Effect::NotApplied, Code::TargetRefused)).await;
    assert_eq!(hub.store.job(name("acme"), id).await.unwrap().state, JobState::Succeeded);
    assert_eq!(served.tunnel.online(identity.id).unwrap().jobs_running, 0);
}

#[tokio::test]
async fn places_are_never_exceeded_and_freed_ones_go_by_priority_then_age() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let mut ids = Vec::new();
    for priority in [4, 4, 1, 4, 9] {
        ids.push(hub.store.submit(NewJob { priority, ..job() }).await.unwrap().job.id);
    }
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let mut order = Vec::new();
    let (first, _) = agent.offered().await;
    let (second, _) = agent.offered().await;
    agent.nothing_comes().await;
    let mut open = std::collections::VecDeque::from([first, second]);
    while let Some(attempt) = open.pop_front() {
        order.push(attempt.job);
        agent.accept(attempt).await;
        agent.report(attempt, success()).await;
        if order.len() + open.len() < ids.len() {
            open.push_back(agent.offered().await.0);
        }
    }
    assert_eq!(order, [ids[4], ids[0], ids[1], ids[3], ids[2]]);
}

#[tokio::test]
async fn a_resource_that_nobody_announced_waits_and_an_operation_is_offered_to_be_denied() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let unknown = NewJob { resource: name("nowhere"), ..job() };
    let id = hub.store.submit(unknown).await.unwrap().job.id;
    agent.nothing_comes().await;
    assert_eq!(hub.store.job(name("acme"), id).await.unwrap().state, JobState::Queued);
    hub.store.submit(NewJob { operation: name("request"), ..job() }).await.unwrap();
    let (attempt, _) = agent.offered().await;
    agent.accept(attempt).await;
    agent.report(attempt, failure(Verdict::Denied, Effect::NotApplied, Code::PolicyDenied)).await;
    let denied = hub.store.job(name("acme"), attempt.job).await.unwrap();
    assert_eq!((denied.state, denied.error.unwrap().code), (JobState::Denied, Code::PolicyDenied));
    let views = served.tunnel.resources(&name("acme"), &name("paris"));
    let names: Vec<_> = views.iter().map(|view| (view.name.as_str(), view.operations.len())).collect();
    assert_eq!(names, [("compta", 1), ("orders", 1)]);
    assert_eq!(hub.store.sites(name("acme"), 500, None).await.unwrap().items[0].agents_online, 1);
}

#[tokio::test]
async fn a_busy_agent_gets_the_job_again_after_the_time_it_asked_for() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let id = hub.store.submit(job()).await.unwrap().job.id;
    let (attempt, _) = agent.offered().await;
    let declined = Instant::now();
    agent.session.decline(decline(attempt, Code::Busy, Some(300)));
    let (again, offer) = agent.offered().await;
    assert!(declined.elapsed().as_millis() >= 300);
    assert_eq!(again, Attempt::new(id, 2));
    assert!(opened(&identity, &offer).0.max_attempts >= 2);
    let shown = hub.store.job(name("acme"), id).await.unwrap().attempts;
    assert_eq!(shown.iter().map(|a| a.number).collect::<Vec<_>>(), [2], "what was withdrawn does not count");
    // Replayed: again at once, under a higher number.
    agent.session.decline(decline(again, Code::Replayed, None));
    assert_eq!(agent.offered().await.0, Attempt::new(id, 3));
    agent.session.decline(decline(Attempt::new(id, 3), Code::SignatureInvalid, None));
    agent.flush().await;
    let denied = hub.store.wait(name("acme"), id, LONG).await.unwrap();
    assert_eq!((denied.state, denied.error.unwrap().code), (JobState::Denied, Code::SignatureInvalid));
}

#[tokio::test]
async fn a_failure_worth_a_retry_waits_and_is_offered_again_until_attempts_are_spent() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let id = hub.store.submit(NewJob { max_attempts: 2, ..job() }).await.unwrap().job.id;
    let unreachable = || failure(Verdict::Retry, Effect::NotApplied, Code::TargetUnreachable);
    let (first, _) = agent.offered().await;
    agent.accept(first).await;
    agent.report(first, unreachable()).await;
    let (second, _) = agent.offered().await;
    assert_eq!(second.number, 2);
    agent.accept(second).await;
    agent.report(second, unreachable()).await;
    let failed = hub.store.job(name("acme"), id).await.unwrap();
    assert_eq!((failed.state, failed.attempts.len()), (JobState::Failed, 2));
    assert_eq!(failed.error.unwrap().code, Code::TargetUnreachable);
    hub.store.retry(name("acme"), id).await.unwrap();
    let (third, _) = agent.offered().await;
    assert_eq!(third.number, 3);
    agent.accept(third).await;
    agent.report(third, success()).await;
    assert_eq!(hub.store.job(name("acme"), id).await.unwrap().state, JobState::Succeeded);
}

#[tokio::test]
async fn a_cancel_reaches_the_agent_and_its_report_decides() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    for (outcome, state) in [
        (failure(Verdict::Cancelled, Effect::NotApplied, Code::Cancelled), JobState::Cancelled),
        (failure(Verdict::Retry, Effect::NotApplied, Code::TargetTimeout), JobState::Cancelled),
        (success(), JobState::Succeeded),
    ] {
        let id = hub.store.submit(job()).await.unwrap().job.id;
        let (attempt, _) = agent.offered().await;
        agent.accept(attempt).await;
        let asked = hub.store.cancel(name("acme"), id).await.unwrap();
        assert!(!asked.state.is_settled());
        assert_eq!(agent.event().await, AgentEvent::CancelRequested(attempt));
        agent.report(attempt, outcome).await;
        assert_eq!(hub.store.job(name("acme"), id).await.unwrap().state, state);
    }
}

#[tokio::test]
async fn with_two_agents_an_attempt_asks_before_its_effect() {
    let hub = Hub::new().await;
    let identity = hub.agent().await;
    hub.agent().await;
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    hub.store.submit(job()).await.unwrap();
    let (attempt, offer) = agent.offered().await;
    assert_eq!(opened(&identity, &offer).1.commit, CommitMode::Ask);
    agent.accept(attempt).await;
    let intent =
        Intent { part: None, target: Some("a.csv".to_owned()), size: Some(1), sha256: None, state: None };
    agent.session.commit(attempt, intent, Instant::now());
    assert_eq!(agent.event().await, AgentEvent::CommitGranted(attempt));
}

#[tokio::test]
async fn large_payloads_go_beside_the_tunnel_to_the_holder_alone() {
    let hub = Hub::new().await;
    let (identity, other) = (hub.agent().await, hub.agent().await);
    let served = Served::start(&hub.store).await;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let large = vec![7_u8; 256 * 1024 + 1];
    let blobs = Blobs::new(hub.store.clone());
    let stream = stream::iter([Ok::<_, Infallible>(Bytes::from(large.clone()))]);
    let blob = blobs.put_stream(name("acme"), None, None, stream).await.unwrap();
    let payload = PayloadRef {
        blob: blob.id,
        size: blob.size,
        sha256: blob.sha256,
        media_type: "application/octet-stream".to_owned(),
        data: None,
    };
    let id = hub.store.submit(NewJob { payload: Some(payload), ..job() }).await.unwrap().job.id;
    let (attempt, offer) = agent.offered().await;
    assert_eq!(offer.payload, Some(PayloadSource::Hub));
    let (info, content) = served.tunnel.payload(identity.id, id).await.unwrap();
    assert_eq!(info.sha256, Sha256::of(&large));
    assert!(matches!(content, Content::File(path) if std::fs::read(&path).unwrap() == large));
    assert!(matches!(served.tunnel.payload(other.id, id).await, Err(Error::NotFound(_))));
    agent.accept(attempt).await;
    agent.report(attempt, success()).await;
    assert!(matches!(served.tunnel.payload(identity.id, id).await, Err(Error::NotFound(_))), "it has ended");
}

#[tokio::test]
async fn outputs_come_inline_or_uploaded_and_only_whole_ones_count() {
    let hub = Hub::new().await;
    let (identity, other) = (hub.agent().await, hub.agent().await);
    let served = Served::start(&hub.store).await;
    let tunnel = &served.tunnel;
    let (mut agent, _) = Agent::connect(served.address, &identity, hello(&identity)).await;
    let text = |text: &'static str| stream::iter([Ok::<_, Infallible>(Bytes::from_static(text.as_bytes()))]);

    let id = hub.store.submit(job()).await.unwrap().job.id;
    let (attempt, _) = agent.offered().await;
    agent.accept(attempt).await;
    agent.report(attempt, success_with(b"a;b", true)).await;
    let (view, content) = hub.store.output(name("acme"), id).await.unwrap();
    assert_eq!((view.size, content), (3, Content::Bytes(Bytes::from_static(b"a;b"))));

    let id = hub.store.submit(job()).await.unwrap().job.id;
    let (attempt, _) = agent.offered().await;
    agent.accept(attempt).await;
    let digest = Sha256::of(b"uploaded");
    assert!(matches!(tunnel.output_offset(identity.id, id, 1).await, Err(Error::NotFound(_))));
    assert!(matches!(tunnel.output_open(other.id, id, 1, 8, digest).await, Err(Error::NotFound(_))));
    assert_eq!(tunnel.output_open(identity.id, id, 1, 8, digest).await.unwrap().offset, 0);
    assert_eq!(tunnel.output_append(identity.id, id, 1, 0, text("uplo")).await.unwrap().offset, 4);
    assert_eq!(tunnel.output_open(identity.id, id, 1, 8, digest).await.unwrap().offset, 4, "as it stands");
    let early = tunnel.output_append(identity.id, id, 1, 5, text("ded")).await;
    assert_eq!(early, Err(Error::Offset(4)));
    assert!(matches!(tunnel.output_offset(other.id, id, 1).await, Err(Error::NotFound(_))));
    assert_eq!(tunnel.output_append(identity.id, id, 1, 4, text("aded")).await.unwrap().offset, 8);
    agent.report(attempt, success_with(b"uploaded", false)).await;
    let (view, content) = hub.store.output(name("acme"), id).await.unwrap();
    assert_eq!(view.sha256, digest);
    assert!(matches!(content, Content::File(path) if std::fs::read(&path).unwrap() == b"uploaded"));

    for outcome in [success_with(b"never sent", false), {
        let mut wrong = success_with(b"abc", true);
        if let passerelle_protocol::Outcome::Succeeded { output: Some(output), .. } = &mut wrong {
            output.size = 4;
        }
        wrong
    }] {
        let id = hub.store.submit(NewJob { max_attempts: 1, ..job() }).await.unwrap().job.id;
        let (attempt, _) = agent.offered().await;
        agent.accept(attempt).await;
        agent.report(attempt, outcome).await;
        let ended = hub.store.job(name("acme"), id).await.unwrap();
        assert_eq!((ended.state, ended.error.unwrap().code), (JobState::Unknown, Code::DigestMismatch));
    }
}
