//! Events in the store: once for ever, with their payload as long as they or a job need it, and no longer.

use super::{
    Content, Error, Store,
    received::{CheckedEvent, Receipt, receive},
    retention::Retention,
};
use crate::{
    blobs::Blobs,
    clock,
    model::{AgentRecord, JobState, NewJob, PayloadRef},
    testing::{Hub, Identity, job, name},
    tunnel::Tunnel,
};
use bytes::Bytes;
use jiff::Timestamp;
use passerelle_protocol::{Event, EventId, EventPayload, FileEvent, PICKUP, PayloadSource, Sha256};
use std::{convert::Infallible, sync::Arc, time::Duration};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn event(path: &str, content: &[u8]) -> CheckedEvent {
    let (resource, kind, sha256) = (name("compta"), name(PICKUP), Sha256::of(content));
    let size = content.len() as u64;
    let file = FileEvent { path: path.to_owned(), size, sha256, modified_at: None };
    let event = Event {
        id: file.id(&name("paris"), &resource, &kind),
        resource,
        trigger: name("in"),
        kind,
        lease: 1,
        occurred_at: clock::now(),
        data: serde_json::to_value(file).unwrap(),
        payload: Some(EventPayload {
            size,
            sha256,
            media_type: "text/csv".to_owned(),
            source: PayloadSource::Hub,
        }),
    };
    CheckedEvent { event, data: Some(Bytes::copy_from_slice(content)) }
}

/// The same, its content uploaded before.
fn uploaded(path: &str, content: &[u8]) -> CheckedEvent {
    CheckedEvent { data: None, ..event(path, content) }
}

/// An agent that has announced its trigger.
async fn agent(hub: &Hub) -> (Identity, Arc<AgentRecord>) {
    let identity = hub.agent().await;
    let record = Arc::new(hub.store.agent(identity.id).await.unwrap().unwrap());
    let id = identity.id;
    hub.store
        .write(move |tx| {
            tx.conn.execute(
                "INSERT INTO agent_triggers (agent, resource, name, kind, announced_at, current) \
                 VALUES (?1, 'compta', 'in', 'pickup', 0, 1)",
                [id.uuid().as_bytes()],
            )?;
            Ok(())
        })
        .await
        .unwrap();
    (identity, record)
}

async fn tell(store: &Store, agent: &Arc<AgentRecord>, event: CheckedEvent) -> Result<Receipt, Error> {
    let agent = Arc::clone(agent);
    store.write(move |tx| receive(tx, &agent, &event)).await
}

async fn upload(store: &Store, agent: &AgentRecord, of: &CheckedEvent, content: &'static [u8]) {
    let tunnel = Tunnel::new(store.clone());
    let payload = of.event.payload.as_ref().unwrap();
    tunnel.event_open(agent, of.event.id, payload.size, payload.sha256).await.unwrap();
    let body = futures_util::stream::iter([Ok::<_, Infallible>(Bytes::from_static(content))]);
    tunnel.event_append(agent.id, of.event.id, 0, body).await.unwrap();
}

fn later(days: u32) -> Timestamp {
    clock::now().checked_add(DAY * days).unwrap()
}

async fn content(store: &Store, id: EventId) -> Vec<u8> {
    match store.received_payload(name("acme"), id).await.unwrap().2 {
        Content::Bytes(bytes) => bytes.to_vec(),
        Content::File(path) => std::fs::read(path).unwrap(),
    }
}

#[tokio::test]
async fn an_event_is_stored_once_over_restarts_and_after_its_retention() {
    let hub = Hub::new().await;
    let (_, record) = agent(&hub).await;
    let id = event("a", b"small").event.id;
    assert_eq!(tell(&hub.store, &record, event("a", b"small")).await, Ok(Receipt::Stored));
    // The hub ends before its acknowledgement is heard: the agent tells of it again.
    let hub = hub.restart().await;
    assert_eq!(tell(&hub.store, &record, event("a", b"small")).await, Ok(Receipt::Duplicate));
    assert_eq!(content(&hub.store, id).await, b"small");
    let mut other = event("a", b"small");
    other.event.payload.as_mut().unwrap().sha256 = Sha256::of(b"other");
    let refused = tell(&hub.store, &record, other).await.unwrap();
    assert!(matches!(refused, Receipt::Refused { code: "conflict", again: false, .. }), "{refused:?}");

    let blobs = Blobs::new(hub.store.clone());
    let kept = blobs.collect(&Retention::default(), later(29)).await.unwrap();
    assert_eq!(
        (kept.events, kept.blobs),
        (0, 0),
        "its payload is older than blobs that nobody needs are kept"
    );
    let gone = blobs.collect(&Retention::default(), later(31)).await.unwrap();
    assert_eq!((gone.events, gone.blobs), (1, 1));
    let missing = hub.store.received_event(name("acme"), id).await.unwrap_err().to_string();
    assert!(missing.contains("its retention is over"), "{missing}");
    assert_eq!(tell(&hub.store, &record, event("a", b"small")).await, Ok(Receipt::Duplicate));
    blobs.collect(&Retention::default(), later(399)).await.unwrap();
    assert_eq!(tell(&hub.store, &record, event("a", b"small")).await, Ok(Receipt::Duplicate));
    blobs.collect(&Retention::default(), later(401)).await.unwrap();
    assert_eq!(tell(&hub.store, &record, event("a", b"small")).await, Ok(Receipt::Stored));
}

#[tokio::test]
async fn two_tenants_may_have_an_event_of_the_same_id() {
    let hub = Hub::new().await;
    let (_, record) = agent(&hub).await;
    assert_eq!(tell(&hub.store, &record, event("a", b"x")).await, Ok(Receipt::Stored));
    hub.store.create_tenant(name("other"), crate::model::Tier::Enterprise).await.unwrap();
    let application = "hub".to_owned();
    hub.store.create_enrolment_token(name("other"), name("paris"), application, DAY, 1).await.unwrap();
    let theirs = Arc::new(AgentRecord { tenant: name("other"), ..AgentRecord::clone(&record) });
    assert_eq!(tell(&hub.store, &theirs, event("a", b"x")).await, Ok(Receipt::Stored));
    let id = event("a", b"x").event.id;
    assert_eq!(hub.store.received_event(name("other"), id).await.unwrap().tenant, name("other"));
}

#[tokio::test]
async fn an_uploaded_payload_lives_as_long_as_its_event_or_a_job_needs_it() {
    static CONTENT: [u8; 300_000] = [7; 300_000];
    let hub = Hub::new().await;
    let (_, record) = agent(&hub).await;
    let told = || uploaded("big", &CONTENT);
    let id = told().event.id;
    let refused = tell(&hub.store, &record, told()).await.unwrap();
    assert!(matches!(refused, Receipt::Refused { code: "not_found", again: true, .. }), "{refused:?}");
    upload(&hub.store, &record, &told(), &CONTENT).await;
    assert_eq!(tell(&hub.store, &record, told()).await, Ok(Receipt::Stored));
    assert!(content(&hub.store, id).await == CONTENT);

    // A job that is not final keeps the content over the end of the event.
    let (blob, info, _) = hub.store.received_payload(name("acme"), id).await.unwrap();
    let payload =
        PayloadRef { blob, size: info.size, sha256: info.sha256, media_type: info.media_type, data: None };
    let started = NewJob { payload: Some(payload.clone()), event: Some(id), ..job() };
    let job_id = hub.store.submit(started).await.unwrap().job.id;
    assert_eq!(hub.store.received_event(name("acme"), id).await.unwrap().jobs, [job_id]);
    let blobs = Blobs::new(hub.store.clone());
    let done = blobs.collect(&Retention::default(), later(60)).await.unwrap();
    assert_eq!((done.events, done.blobs, done.files), (1, 0, 0));
    let file = hub.store.files().content(info.sha256);
    assert!(file.exists());
    // Of an event that is gone no job is started any more.
    let late = NewJob { payload: Some(payload), event: Some(id), ..job() };
    assert!(matches!(hub.store.submit(late).await, Err(Error::NotFound(_))));
    assert_eq!(hub.store.cancel(name("acme"), job_id).await.unwrap().state, JobState::Cancelled);
    let done = blobs.collect(&Retention::default(), later(200)).await.unwrap();
    assert_eq!((done.jobs, done.blobs, done.files), (1, 1, 1));
    assert!(!file.exists());
}

#[tokio::test]
async fn an_upload_whose_event_never_comes_is_removed() {
    static CONTENT: [u8; 1000] = [9; 1000];
    let hub = Hub::new().await;
    let (_, record) = agent(&hub).await;
    let whole = uploaded("whole", &CONTENT);
    upload(&hub.store, &record, &whole, &CONTENT).await;
    let half = uploaded("half", b"never sent");
    let payload = half.event.payload.as_ref().unwrap();
    let tunnel = Tunnel::new(hub.store.clone());
    tunnel.event_open(&record, half.event.id, payload.size, payload.sha256).await.unwrap();
    let blobs = Blobs::new(hub.store.clone());
    assert_eq!(blobs.collect(&Retention::default(), clock::now()).await.unwrap().uploads, 0);
    let done = blobs.collect(&Retention::default(), later(2)).await.unwrap();
    assert_eq!((done.uploads, done.files), (2, 1));
    assert!(matches!(tunnel.event_offset(record.id, whole.event.id).await, Err(Error::NotFound(_))));
    // Nothing of an agent's upload is a client's.
    let opened = tunnel.event_open(&record, half.event.id, payload.size, payload.sha256).await;
    assert_eq!(opened.unwrap().offset, 0);
    let uploads: i64 = hub
        .store
        .read(|conn| Ok(conn.query_row("SELECT count(*) FROM uploads", [], |row| row.get(0))?))
        .await
        .unwrap();
    assert_eq!(uploads, 1);
}

#[tokio::test]
async fn an_agent_opens_no_more_uploads_than_it_may() {
    let hub = Hub::new().await;
    let (_, record) = agent(&hub).await;
    let tunnel = Tunnel::new(hub.store.clone());
    for number in 0..256 {
        let of = uploaded(&format!("f{number}"), b"x").event;
        tunnel.event_open(&record, of.id, 1, Sha256::of(b"x")).await.unwrap();
    }
    let more = uploaded("more", b"x").event;
    let refused = tunnel.event_open(&record, more.id, 1, Sha256::of(b"x")).await;
    assert!(matches!(refused, Err(Error::Quota(_))), "{refused:?}");
}
