//! One post: judged by its head, read within bounds into the spool, journalled, and only then answered.

use super::{
    Listener,
    answer::{Answer, Refusal, accepted, refused},
    guard::{Sender, Signed},
    kind,
    rate::Rate,
};
use crate::{
    agent::Agent,
    audit::{Entry, Kind},
    clock,
    journal::{
        events::{Content, Follow, Taken, Told},
        told::Posted,
    },
    pressure,
    runner::spool::{OutputSpool, Stored},
    triggers::{entry, spooled},
};
use http::{HeaderMap, HeaderName, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use passerelle_connectors::{Output, Seen};
use passerelle_protocol::{EventId, NotificationEvent, Sha256, limits::MAX_TEXT};
use serde::Deserialize;
use std::{
    fs::File,
    io::{BufRead, BufReader},
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};
use tracing::{debug, info, warn};
use uuid::Uuid;

/// How long a body may take from one part to the next, and in all.
const BODY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// The longest idempotency key.
const MAX_KEY: usize = 255;
/// When to try again what found no room, or an agent that ends.
const LATER: Duration = Duration::from_secs(10);
/// When to try again what found all places taken.
const SOON: Duration = Duration::from_secs(1);
/// What a body is of which nobody says what it is.
const MEDIA_TYPE: &str = "application/octet-stream";

/// Takes one post, and answers it.
pub async fn answer(agent: &Arc<Agent>, listener: &Arc<Listener>, request: Request<Incoming>) -> Answer {
    let challenge = listener.guard.challenge();
    match take(agent, listener, request).await {
        Ok((id, made)) => accepted(id, made),
        Err(refusal) => {
            debug!(listener = %listener.name, status = %refusal.status, why = refusal.detail, "Refused a post");
            agent.metrics.post_refused(refusal.code);
            let row = Entry {
                resource: Some(listener.name.to_string()),
                operation: Some(passerelle_protocol::NOTIFICATION.to_owned()),
                code: Some(refusal.code.to_owned()),
                ..Entry::new(Kind::PostRefused)
            };
            agent.journal.refused(row.detail(&refusal.detail));
            refused(&refusal, challenge)
        }
    }
}

/// What the head of a post says.
struct Head {
    key: String,
    /// Whether the agent made the key up.
    made: bool,
    media_type: String,
}

async fn take(
    agent: &Arc<Agent>,
    listener: &Arc<Listener>,
    request: Request<Incoming>,
) -> Result<(EventId, Option<String>), Refusal> {
    let config = &listener.config;
    // Nobody hears of anything before he has shown who he is.
    let sender = listener
        .guard
        .look(request.headers(), clock::unix_seconds())
        .map_err(|why| Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", why))?;
    if request.uri().path() != config.path {
        let detail = "nothing is posted to this path: look for `path` of the listener";
        return Err(Refusal::new(StatusCode::NOT_FOUND, "not_found", detail));
    }
    if request.method() != Method::POST {
        let detail = "only POST is served here";
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "bad_request", detail));
    }
    let head = head(listener, request.headers(), &sender)?;
    let length = request.body().size_hint();
    if length.lower() > config.max_size.0 {
        return Err(too_large(listener));
    }
    rated(match &sender {
        Sender::Known => rate(listener).take(Instant::now()),
        // Counted once its signature is known to hold: others must not use up the rate of those who can sign.
        Sender::Signed(_) => rate(listener).look(Instant::now()),
    })?;
    let Ok(_place) = listener.places.try_acquire() else {
        let detail = "more posts at once than this listener takes (max_concurrent)";
        return Err(Refusal::later(StatusCode::SERVICE_UNAVAILABLE, "busy", detail, SOON));
    };
    if agent.is_draining() {
        let detail = "the agent is being stopped";
        return Err(Refusal::later(StatusCode::SERVICE_UNAVAILABLE, "busy", detail, LATER));
    }
    // What was posted before needs no room: it is answered as it was then.
    let id = NotificationEvent { key: head.key.clone(), event_kind: None }
        .id(&agent.identity.enrolled.site, &listener.name);
    let known = agent.journal.posted(id, listener.name.clone(), head.key.clone()).await;
    let known = known.map_err(|error| unwritten(&error))?;
    if known.is_none()
        && let Some(why) = no_room(agent)
    {
        return Err(Refusal::later(StatusCode::SERVICE_UNAVAILABLE, "quota", why, LATER));
    }
    let body = read(agent, listener, request.into_body(), sender).await?;
    if let Some(known) = known {
        body.spool.discard();
        return if known == body.sha256 { Ok((id, None)) } else { Err(mismatch()) };
    }
    // In a task of its own: the sender may go away, but what is journalled must be sent, and what is not must be removed.
    let (agent, listener) = (Arc::clone(agent), Arc::clone(listener));
    let tasks = agent.tasks.clone();
    let stored = tasks.spawn(async move { store(&agent, &listener, id, head, body).await }).await;
    stored.map_err(|error| unwritten(&error))?
}

fn rate(listener: &Listener) -> MutexGuard<'_, Rate> {
    listener.rate.lock().unwrap_or_else(PoisonError::into_inner)
}

fn rated(taken: Result<(), Duration>) -> Result<(), Refusal> {
    taken.map_err(|after| {
        let detail = "more posts than this listener takes per minute (rate_per_minute)";
        Refusal::later(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail, round_up(after))
    })
}

/// Why nothing is taken just now.
fn no_room(agent: &Agent) -> Option<&'static str> {
    agent.pressure.full_for_events(&agent.journal).or_else(|| {
        (agent.spool.bytes() >= agent.spool.quota())
            .then_some("the spool is full (agent.spool_quota): it goes on when the hub has taken what waits")
    })
}

fn head(listener: &Listener, headers: &HeaderMap, sender: &Sender) -> Result<Head, Refusal> {
    let bad = |detail: String| Refusal::new(StatusCode::BAD_REQUEST, "bad_request", detail);
    let given = one(headers, "idempotency-key").map_err(&bad)?;
    let key = match (sender, given) {
        (Sender::Known, given) => given,
        (Sender::Signed(Signed { id, .. }), Some(given)) if *id != given => {
            return Err(bad("Idempotency-Key is not webhook-id: leave it out".to_owned()));
        }
        (Sender::Signed(Signed { id, .. }), _) => Some(id.clone()),
    };
    if let Some(key) = &key
        && (key.is_empty() || key.len() > MAX_KEY || !key.bytes().all(|b| (b' '..=b'~').contains(&b)))
    {
        return Err(bad(format!("the key is not 1 to {MAX_KEY} printable ASCII characters")));
    }
    if key.is_none() && listener.config.require_key {
        return Err(bad(
            "send an Idempotency-Key: this listener takes no post without one (require_key)".to_owned()
        ));
    }
    if headers.contains_key(header::CONTENT_ENCODING) {
        let detail = "a body with Content-Encoding is not taken: send it as it is";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_request", detail));
    }
    let media_type = one(headers, "content-type").map_err(&bad)?;
    let essence = media_type.as_deref().unwrap_or(MEDIA_TYPE);
    let essence = essence.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let types = &listener.config.content_types;
    if !types.is_empty() && !types.contains(&essence) {
        let detail = format!("send one of these content types: {}", types.join(", "));
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_request", detail));
    }
    let media_type =
        media_type.filter(|text| text.len() <= MAX_TEXT).unwrap_or_else(|| MEDIA_TYPE.to_owned());
    let made = key.is_none();
    Ok(Head { key: key.unwrap_or_else(|| Uuid::now_v7().to_string()), made, media_type })
}

fn one(headers: &HeaderMap, name: &'static str) -> Result<Option<String>, String> {
    let mut values = headers.get_all(HeaderName::from_static(name)).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match (value.to_str(), values.next()) {
        (Ok(text), None) => Ok(Some(text.to_owned())),
        _ => Err(format!("{name}: send it once, in printable ASCII")),
    }
}

/// A body in the spool.
struct Body {
    token: Uuid,
    spool: OutputSpool,
    size: u64,
    sha256: Sha256,
}

/// Removes what is left of a body that does not count, however its post ended.
struct Discard(Option<OutputSpool>);

impl Drop for Discard {
    fn drop(&mut self) {
        if let Some(spool) = &self.0 {
            spool.discard();
        }
    }
}

async fn read(
    agent: &Arc<Agent>,
    listener: &Arc<Listener>,
    mut body: Incoming,
    sender: Sender,
) -> Result<Body, Refusal> {
    let token = Uuid::now_v7();
    let spool = OutputSpool::new(&agent.spool, spooled(token));
    let mut discard = Discard(Some(spool.clone()));
    let mut output = Output::new(Box::new(spool.clone()), listener.config.max_size.0);
    let mut signed = match sender {
        Sender::Known => None,
        Sender::Signed(signed) => Some(signed),
    };
    let (slow, end) = ("the body does not come fast enough", Instant::now() + BODY.1);
    let mut size: u64 = 0;
    loop {
        let frame = match timeout_at(end, timeout(BODY.0, body.frame())).await {
            Ok(Ok(Some(Ok(frame)))) => frame,
            Ok(Ok(None)) => break,
            Ok(Ok(Some(Err(_)))) => {
                let detail = "the body did not come to its end";
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", detail));
            }
            Ok(Err(_)) | Err(_) => {
                return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "bad_request", slow));
            }
        };
        let Ok(data) = frame.into_data() else { continue };
        size += data.len() as u64;
        if size > listener.config.max_size.0 {
            return Err(too_large(listener));
        }
        if let Some(signed) = &mut signed {
            signed.update(&data);
        }
        if let Err(failure) = output.write(&data).await {
            return Err(if spool.was_refused() {
                let detail = "the spool is full (agent.spool_quota)";
                Refusal::later(StatusCode::SERVICE_UNAVAILABLE, "quota", detail, LATER)
            } else {
                unwritten(&failure)
            });
        }
    }
    if let Some(signed) = signed {
        if !signed.verifies() {
            let detail = "the signature is none that a secret of this listener makes over webhook-id, webhook-timestamp and body";
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", detail));
        }
        rated(rate(listener).take(Instant::now()))?;
    }
    let produced = output.finish(MEDIA_TYPE).await.map_err(|failure| unwritten(&failure))?;
    discard.0 = None;
    Ok(Body { token, spool, size: produced.size, sha256: Sha256::from(produced.sha256) })
}

/// What is looked for in a body.
#[derive(Deserialize)]
struct Named {
    #[serde(rename = "EventKind")]
    event_kind: String,
}

/// Some senders begin with a byte order mark.
fn named(mut body: impl BufRead) -> Option<Named> {
    if body.fill_buf().ok()?.starts_with(b"\xef\xbb\xbf") {
        body.consume(3);
    }
    serde_json::from_reader(body).ok()
}

/// Writes a body for good, and then its event. Not to be cut off.
async fn store(
    agent: &Arc<Agent>,
    listener: &Arc<Listener>,
    id: EventId,
    head: Head,
    body: Body,
) -> Result<(EventId, Option<String>), Refusal> {
    let Body { token, spool, size, sha256 } = body;
    let mut discard = Discard(Some(spool.clone()));
    let path = agent.spool.output(spooled(token));
    let stored = spawn_blocking(move || {
        let stored = spool.store()?;
        let named = match &stored {
            Stored::Memory(bytes) | Stored::Held(bytes) => named(bytes.as_ref()),
            Stored::File | Stored::AtHub => named(BufReader::new(File::open(path)?)),
        };
        let short = |kind: &String| kind.len() <= passerelle_config::defaults::MAX_EVENT_KIND;
        Ok::<_, std::io::Error>((stored, named.map(|named: Named| named.event_kind).filter(short)))
    });
    let (stored, event_kind) = match stored.await {
        Ok(Ok(stored)) => stored,
        Ok(Err(error)) => return Err(unwritten(&error)),
        Err(error) => return Err(unwritten(&error)),
    };
    let kinds = &listener.config.event_kinds;
    if !kinds.is_empty() && !event_kind.as_ref().is_some_and(|kind| kinds.contains(kind)) {
        let detail = match event_kind {
            Some(_) => "the EventKind of the body is none of those that this listener takes (event_kinds)",
            None => "the body is no JSON object with an EventKind, which this listener needs (event_kinds)",
        };
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "forbidden", detail).read());
    }
    let content = match stored {
        Stored::Memory(bytes) | Stored::Held(bytes) => Content::Row(bytes),
        Stored::File => Content::Spool(token),
        Stored::AtHub => return Err(unwritten(&"what was posted just now is said to be at the hub")),
    };
    let Some(kind) = kind() else { return Err(unwritten(&"no name")) };
    let in_row = matches!(content, Content::Row(_));
    let data = NotificationEvent { key: head.key.clone(), event_kind };
    let data = serde_json::to_string(&data).map_err(|error| unwritten(&error))?;
    let key = listener.key();
    let row = entry(Kind::PostTaken, &key, &kind, &head.key, id, None);
    let taken = Taken {
        id,
        key: key.clone(),
        kind,
        lease: 0,
        occurred_at: clock::now(),
        seen: Seen { path: head.key.clone(), size, modified: None, inode: None },
        sha256,
        content,
        marker: None,
        follow: Follow::Keep,
        told: Some(Told { data, media_type: Some(head.media_type) }),
    };
    let Some(_room) = pressure::promise(agent, 1, taken.row_bytes() as u64).await else {
        return Err(Refusal::later(StatusCode::SERVICE_UNAVAILABLE, "quota", pressure::ALMOST_FULL, LATER));
    };
    match agent.journal.post(taken, head.key.clone(), row).await {
        Ok(Posted::New) => {
            discard.0 = None;
            if in_row {
                agent.spool.resume_input(spooled(id.uuid()), size);
            }
            agent.triggers.journalled(&key, size);
            agent.metrics.posts_taken.inc();
            info!(event_id = %id, listener = %listener.name, bytes = size, "Took a post");
            Ok((id, head.made.then_some(head.key)))
        }
        Ok(Posted::Known) => Ok((id, None)),
        Ok(Posted::Other) => Err(mismatch()),
        Err(error) => {
            warn!(%error, "What was posted cannot be written to the journal");
            Err(unwritten(&error))
        }
    }
}

fn too_large(listener: &Listener) -> Refusal {
    let detail = format!("the body has more than {} bytes (max_size)", listener.config.max_size.0);
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
}

fn mismatch() -> Refusal {
    let detail = "this key was used for another body: use a new one for each event";
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_mismatch", detail).read()
}

fn unwritten(error: &dyn std::fmt::Display) -> Refusal {
    debug!(%error, "A post cannot be kept");
    let detail = "the agent's disk or journal cannot be written";
    Refusal::later(StatusCode::SERVICE_UNAVAILABLE, "internal", detail, LATER)
}

fn round_up(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs() + u64::from(time.subsec_nanos() > 0))
}
