//! The store: group commit, idempotency, lists, restarts, isolation, other processes.

use super::*;
use crate::mediations::{
    DefinitionId, RunState,
    store::lists::{RunFilter, list_sql as run_list_sql},
};
use crate::{
    clock,
    model::{ChangeKind, EventFilter, JobFilter, JobState, NewJob, PayloadRef, Tier},
    testing::{Hub, job, name, request},
};
use passerelle_protocol::{ApiCode, BlobId, JobId, Sha256, SigningKey};
use std::{sync::mpsc::channel, time::Duration};

/// The queries that run for every job or every page, in each form.
pub(super) fn hot_queries() -> Vec<String> {
    let mut queries = vec![dispatch::queue_sql(), grants::HELD.to_owned()];
    for keys in 0..8 {
        let filter = JobFilter {
            site: (keys & 1 != 0).then(|| name("paris")),
            resource: (keys & 2 != 0).then(|| name("orders")),
            state: (keys & 4 != 0).then_some(JobState::Failed),
            ..all()
        };
        queries.push(jobs::list_sql(&filter));
        queries.push(jobs::list_sql(&JobFilter { state: Some(JobState::Succeeded), ..filter }));
    }
    for keys in 0..4 {
        let filter = EventFilter {
            tenant: name("acme"),
            site: (keys & 1 != 0).then(|| name("paris")),
            resource: (keys & 2 != 0).then(|| name("compta")),
            trigger: None,
            kind: None,
            since: None,
            until: None,
            limit: 50,
            cursor: None,
        };
        queries.push(received::list_sql(&filter));
    }
    for keys in 0..8 {
        let filter = RunFilter {
            tenant: name("acme"),
            definition: (keys & 1 != 0).then(DefinitionId::make),
            state: match keys / 2 {
                0 | 1 => None,
                2 => Some(RunState::Failed),
                _ => Some(RunState::Succeeded),
            },
            since: None,
            until: None,
            limit: 50,
            cursor: None,
        };
        queries.push(run_list_sql(&filter));
    }
    let times = crate::mediations::trigger::times::QUERIES;
    queries.extend(timers::QUERIES.iter().chain(times).map(|sql| (*sql).to_owned()));
    queries
}

fn all() -> JobFilter {
    JobFilter {
        tenant: name("acme"),
        site: None,
        resource: None,
        state: None,
        since: None,
        until: None,
        limit: 50,
        cursor: None,
    }
}

/// Keeps the writer busy until the returned sender is used.
async fn block_writer(store: &Store) -> mpsc::Sender<()> {
    let (go, gate) = channel();
    let (started, is_started) = oneshot::channel();
    let place = store.place().await.unwrap();
    let wait = move |_: &mut Tx<'_>| {
        started.send(()).unwrap();
        gate.recv().unwrap();
        Ok(())
    };
    store.order(place, false, wait, drop).unwrap();
    is_started.await.unwrap();
    go
}

#[tokio::test]
async fn concurrent_submissions_share_a_sync() {
    let hub = Hub::new().await;
    let go = block_writer(&hub.store).await;
    let before = hub.store.stats();
    let submissions: Vec<_> = (0..100)
        .map(|_| {
            let store = hub.store.clone();
            tokio::spawn(async move { store.submit(job()).await })
        })
        .collect();
    // All of them are queued behind the blocked write.
    let queued = || QUEUED_WRITES - hub.store.inner.places.available_permits();
    while queued() < 100 {
        tokio::task::yield_now().await;
    }
    go.send(()).unwrap();
    for submission in submissions {
        assert!(submission.await.unwrap().unwrap().created);
    }
    let after = hub.store.stats();
    assert_eq!(after.writes - before.writes, 101);
    assert_eq!(after.commits - before.commits, 2, "one for the blocked write, one for all submissions");
}

#[tokio::test]
async fn a_refused_write_leaves_no_trace_and_does_not_harm_its_neighbours() {
    let hub = Hub::new().await;
    let go = block_writer(&hub.store).await;
    let good = job();
    let bad = NewJob { site: name("nowhere"), ..job() };
    let half = NewJob { id: good.id, ..job() };
    let (store, other, third) = (hub.store.clone(), hub.store.clone(), hub.store.clone());
    let (first, second) = (good.clone(), bad.clone());
    let good_one = tokio::spawn(async move { store.submit(first).await });
    while hub.store.inner.places.available_permits() > QUEUED_WRITES - 1 {
        tokio::task::yield_now().await;
    }
    let bad_one = tokio::spawn(async move { other.submit(second).await });
    let payload = PayloadRef {
        blob: BlobId::from(clock::new_uuid7()),
        size: 1,
        sha256: Sha256::of(b"x"),
        media_type: "text/plain".to_owned(),
        data: Some(Bytes::from_static(b"x")),
    };
    // Its blob would have the job's id.
    let blob = BlobId::from(half.id.uuid());
    let half = NewJob { payload: Some(payload), ..half };
    let half_one = tokio::spawn(async move { third.submit(half).await });
    while hub.store.inner.places.available_permits() > QUEUED_WRITES - 3 {
        tokio::task::yield_now().await;
    }
    go.send(()).unwrap();
    assert!(good_one.await.unwrap().is_ok());
    assert_eq!(bad_one.await.unwrap(), Err(Error::SiteUnknown(name("nowhere"))));
    assert!(matches!(half_one.await.unwrap(), Err(Error::Conflict(_))), "the id was taken");
    let blobs = crate::blobs::Blobs::new(hub.store.clone());
    assert!(
        matches!(blobs.info(name("acme"), blob).await, Err(Error::NotFound(_))),
        "its payload went with it"
    );
    assert_eq!(hub.store.list_jobs(all()).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn an_idempotency_key_names_one_job_of_a_tenant() {
    let hub = Hub::new().await;
    let keyed = |body: &[u8]| NewJob { idempotency: Some(("k".to_owned(), Sha256::of(body))), ..job() };
    let first = hub.store.submit(keyed(b"a")).await.unwrap();
    let again = hub.store.submit(keyed(b"a")).await.unwrap();
    assert!(first.created && !again.created);
    assert_eq!(first.job.id, again.job.id);
    assert_eq!(hub.store.submit(keyed(b"b")).await, Err(Error::IdempotencyMismatch));
    hub.store.create_tenant(name("other"), Tier::Enterprise).await.unwrap();
    let hour = Duration::from_secs(3600);
    hub.store.create_enrolment_token(name("other"), name("paris"), "hub".to_owned(), hour, 1).await.unwrap();
    let other = NewJob { tenant: name("other"), ..keyed(b"b") };
    assert!(hub.store.submit(other).await.unwrap().created);
}

#[tokio::test]
async fn pages_are_stable_while_jobs_come_in_and_filters_hold() {
    let hub = Hub::new().await;
    let mut submitted = Vec::new();
    for n in 0..7 {
        // The same time for all: the order of submission decides.
        let resource = name(if n % 2 == 0 { "even" } else { "odd" });
        let job =
            NewJob { resource, created_at: jiff::Timestamp::from_second(1_700_000_000).unwrap(), ..job() };
        submitted.push(hub.store.submit(job).await.unwrap().job.id);
    }
    submitted.reverse();
    let mut listed: Vec<JobId> = Vec::new();
    let mut cursor = None;
    loop {
        let page = hub.store.list_jobs(JobFilter { limit: 3, cursor, ..all() }).await.unwrap();
        listed.extend(page.items.iter().map(|job| job.id));
        cursor = page.next_cursor;
        hub.store.submit(NewJob { created_at: clock::now(), ..job() }).await.unwrap();
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(listed, submitted);
    let count = |filter: JobFilter| {
        let store = hub.store.clone();
        async move { store.list_jobs(filter).await.unwrap().items.len() }
    };
    assert_eq!(count(JobFilter { resource: Some(name("odd")), ..all() }).await, 3);
    assert_eq!(count(JobFilter { site: Some(name("london")), ..all() }).await, 0);
    assert_eq!(count(JobFilter { state: Some(JobState::Queued), ..all() }).await, 10);
    assert_eq!(count(JobFilter { state: Some(JobState::Failed), ..all() }).await, 0);
    let then = jiff::Timestamp::from_second(1_700_000_000).unwrap();
    let next = jiff::Timestamp::from_second(1_700_000_001).unwrap();
    assert_eq!(count(JobFilter { since: Some(then), until: Some(next), ..all() }).await, 7);
    assert_eq!(count(JobFilter { since: Some(then), until: Some(then), ..all() }).await, 0);
    for wrong in ["x", "", "Zm9v", "MS4y.", "é"] {
        let filter = JobFilter { cursor: Some(wrong.to_owned()), ..all() };
        assert!(matches!(hub.store.list_jobs(filter).await, Err(Error::BadRequest(_))), "{wrong}");
    }
}

#[tokio::test]
async fn what_was_answered_survives_a_crash() {
    let hub = Hub::new().await;
    let payload = PayloadRef {
        blob: BlobId::from(clock::new_uuid7()),
        size: 5,
        sha256: Sha256::of(b"bytes"),
        media_type: "text/plain".to_owned(),
        data: Some(Bytes::from_static(b"bytes")),
    };
    let new = NewJob { payload: Some(payload), ..job() };
    hub.store.submit(new.clone()).await.unwrap();
    // The files as a crash at this moment would leave them: the store is open and has not checkpointed.
    let crashed = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(hub.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, crashed.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let store = Store::open_to_serve(crashed.path()).unwrap();
    assert_eq!(store.job(name("acme"), new.id).await.unwrap().state, JobState::Queued);
    let (info, content) = crate::blobs::Blobs::new(store.clone())
        .open(name("acme"), BlobId::from(new.id.uuid()))
        .await
        .unwrap();
    assert_eq!((info.size, content), (5, Content::Bytes(Bytes::from_static(b"bytes"))));
    assert_eq!(store.audience(), hub.store.audience());
    assert_eq!(store.signing_key().public(), hub.store.signing_key().public());
}

#[tokio::test]
async fn another_tenant_sees_and_changes_nothing() {
    let hub = Hub::new().await;
    hub.store.create_tenant(name("other"), Tier::Enterprise).await.unwrap();
    let id = hub.store.submit(job()).await.unwrap().job.id;
    let other = || name("other");
    let second = Duration::from_secs(1);
    assert!(matches!(hub.store.job(other(), id).await, Err(Error::NotFound(_))));
    assert!(matches!(hub.store.cancel(other(), id).await, Err(Error::NotFound(_))));
    assert!(matches!(hub.store.retry(other(), id).await, Err(Error::NotFound(_))));
    assert!(matches!(hub.store.wait(other(), id, second).await, Err(Error::NotFound(_))));
    assert!(matches!(hub.store.output(other(), id).await, Err(Error::NotFound(_))));
    let theirs = JobFilter { tenant: other(), ..all() };
    assert!(hub.store.list_jobs(theirs).await.unwrap().items.is_empty());
    assert!(hub.store.events_since(other(), 0, 10).await.unwrap().is_empty());
    assert!(hub.store.sites(other(), 500, None).await.unwrap().items.is_empty());
    assert_eq!(
        hub.store.submit(NewJob { tenant: other(), ..job() }).await,
        Err(Error::SiteUnknown(name("paris")))
    );
}

#[tokio::test]
async fn a_job_without_an_agent_expires_and_can_be_retried_and_cancelled() {
    let hub = Hub::new().await;
    let deadline = clock::now().checked_add(Duration::from_millis(10)).unwrap();
    let id = hub.store.submit(NewJob { deadline, ..job() }).await.unwrap().job.id;
    let expired = hub.store.wait(name("acme"), id, Duration::from_secs(20)).await.unwrap();
    assert_eq!(expired.state, JobState::Expired);
    assert_eq!(expired.error.unwrap().code, passerelle_protocol::Code::Deadline);
    assert!(clock::now() >= expired.deadline, "not before its time");
    let retried = hub.store.retry(name("acme"), id).await.unwrap();
    assert_eq!((retried.state, retried.finished_at, retried.error), (JobState::Queued, None, None));
    assert!(retried.deadline > clock::now().checked_add(Duration::from_secs(3500)).unwrap());
    let cancelled = hub.store.cancel(name("acme"), id).await.unwrap();
    assert_eq!(cancelled.state, JobState::Cancelled);
    assert!(matches!(hub.store.cancel(name("acme"), id).await, Err(Error::Conflict(_))));
}

#[tokio::test]
async fn waiting_ends_with_its_time() {
    let hub = Hub::new().await;
    let id = hub.store.submit(job()).await.unwrap().job.id;
    let still = hub.store.wait(name("acme"), id, Duration::from_millis(20)).await.unwrap();
    assert_eq!(still.state, JobState::Queued);
}

#[tokio::test]
async fn each_transaction_tells_a_change_once() {
    let hub = Hub::new().await;
    let mut changes = hub.store.subscribe();
    let id = hub.store.submit(job()).await.unwrap().job.id;
    hub.store.cancel(name("acme"), id).await.unwrap();
    let (first, second) = (changes.recv().await.unwrap(), changes.recv().await.unwrap());
    assert_eq!((first.kind, second.kind), (ChangeKind::Job(id), ChangeKind::Job(id)));
    assert!(second.seq > first.seq);
    assert_eq!(hub.store.events_since(name("acme"), first.seq, 10).await.unwrap(), [second]);
}

#[tokio::test]
async fn a_retry_that_a_wrong_clock_put_far_ahead_is_made_now() {
    let hub = Hub::new().await;
    let (far, soon) = (hub.store.submit(job()).await.unwrap(), hub.store.submit(job()).await.unwrap());
    let dir = hub.dir;
    drop(hub.store);
    let waits = |id: JobId, hours: i64| {
        let at = clock::now().checked_add(jiff::SignedDuration::from_mins(hours * 60)).unwrap();
        let conn = Connection::open(dir.path().join(DATABASE)).unwrap();
        let changed = conn.execute(
            "UPDATE jobs SET state = 'waiting', next_attempt_at = ?2 WHERE id = ?1",
            rusqlite::params![id.uuid().as_bytes(), at.as_millisecond()],
        );
        assert_eq!(changed.unwrap(), 1);
    };
    // No target, and no agent, is waited for so long; a clock that has been set back by five hours since looks like this.
    waits(far.job.id, 5);
    waits(soon.job.id, 1);
    let store = loop {
        match Store::open_to_serve(dir.path()) {
            Ok(store) => break store,
            Err(error) => assert!(error.to_string().contains("another hub"), "{error}"),
        }
    };
    while store.job(name("acme"), far.job.id).await.unwrap().state != JobState::Queued {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(store.job(name("acme"), soon.job.id).await.unwrap().state, JobState::Waiting);
}

#[tokio::test]
async fn a_second_serving_hub_is_refused_and_an_admin_command_is_not() {
    let hub = Hub::new().await;
    let refused = Store::open_to_serve(hub.dir.path()).err().map(|e| e.to_string()).unwrap();
    assert!(refused.contains("another hub serves from this folder"), "{refused}");
    let admin = Store::open(hub.dir.path()).unwrap();
    assert_eq!(admin.list_tenants().await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_another_process_does_is_noticed_soon() {
    let hub = Hub::new().await;
    let admin = Store::open(hub.dir.path()).unwrap();
    let (id, key) = admin.create_api_key(name("acme"), vec!["jobs:read".to_owned()]).await.unwrap();
    let caller = hub.store.authenticate(&key).await.unwrap().unwrap();
    assert_eq!((caller.tenant.as_str(), caller.key.as_str()), ("acme", id.as_str()));
    let wrong = format!("{}x", &key[..key.len() - 1]);
    for no in [wrong.as_str(), "", "pk_", "pk_a_b", &format!("pk_{id}_"), &format!("et_{id}_x")] {
        assert_eq!(hub.store.authenticate(no).await.unwrap(), None, "{no}");
    }
    admin.revoke_api_key(&id).await.unwrap();
    let revoked = std::time::Instant::now();
    while hub.store.authenticate(&key).await.unwrap().is_some() {
        assert!(revoked.elapsed() < Duration::from_secs(10), "the revoked key is still taken");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut changes = hub.store.subscribe();
    let id = admin.submit(job()).await.unwrap().job.id;
    assert_eq!(changes.recv().await.unwrap().kind, ChangeKind::Job(id));
}

#[tokio::test]
async fn a_token_enrols_as_often_as_it_says_and_answers_a_lost_answer_again() {
    let hub = Hub::new().await;
    let token = hub.token("lyon", 1).await;
    let (key, _) = SigningKey::generate().unwrap();
    let first = hub.store.enrol(request(&token, &key)).await.unwrap();
    assert_eq!((first.site.as_str(), first.application.as_str()), ("lyon", "orchestrator"));
    assert_eq!(first.job_keys, [hub.store.signing_key().public().clone()]);
    let again = hub.store.enrol(request(&token, &key)).await.unwrap();
    assert_eq!(first.agent, again.agent);
    let (other, _) = SigningKey::generate().unwrap();
    let refused = |token: String, key: &SigningKey| {
        let (store, request) = (hub.store.clone(), request(&token, key));
        async move { store.enrol(request).await.unwrap_err().to_string() }
    };
    assert!(refused(token.clone(), &other).await.contains("is used up"));
    assert!(refused("et_x_y".to_owned(), &other).await.contains("is unknown"));
    assert!(refused("nonsense".to_owned(), &other).await.contains("is malformed"));
    let cut = token[..token.len() - 1].to_owned();
    assert!(refused(cut, &other).await.contains("is unknown"));
    let second = hub.token("lyon", 1).await;
    assert!(refused(second.clone(), &key).await.contains("enrolled already"));
    let id = second.split('_').nth(1).unwrap().to_owned();
    hub.store.revoke_enrolment_token(&id).await.unwrap();
    assert!(refused(second, &other).await.contains("is revoked"));
    let hub_app = "hub".to_owned();
    let (_, late) = hub
        .store
        .create_enrolment_token(name("acme"), name("lyon"), hub_app, Duration::ZERO, 1)
        .await
        .unwrap();
    while clock::now() <= hub.store.list_enrolment_tokens(None).await.unwrap().last().unwrap().expires_at {
        tokio::task::yield_now().await;
    }
    assert!(refused(late, &other).await.contains("has expired"));
}

#[tokio::test]
async fn hybrid_mode_needs_the_tier_and_the_application() {
    let hub = Hub::new().await;
    hub.store.create_tenant(name("small"), Tier::Professional).await.unwrap();
    let make = |tenant: &str, application: &str| {
        let (store, tenant, application) = (hub.store.clone(), name(tenant), application.to_owned());
        async move {
            let hour = Duration::from_secs(3600);
            store.create_enrolment_token(tenant, name("site"), application, hour, 1).await
        }
    };
    assert_eq!(make("small", "hub").await, Err(Error::TierRequired(name("small"))));
    for application in ["office", "commerce", "store", "signage"] {
        let error = make("acme", application).await.unwrap_err();
        assert_eq!(error.code(), ApiCode::ApplicationIncompatible);
        assert!(error.to_string().contains("not compatible with hybrid mode"), "{error}");
    }
    let (_, token) = make("acme", "hub").await.unwrap();
    hub.store.set_tier(name("acme"), Tier::Standard).await.unwrap();
    let (key, _) = SigningKey::generate().unwrap();
    assert_eq!(hub.store.enrol(request(&token, &key)).await, Err(Error::TierRequired(name("acme"))));
}
