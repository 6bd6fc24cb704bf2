//! Brings what was taken to the hub, trigger by trigger in the order of taking, from the journal alone; and hears what
//! the hub says of it. Contents that are too large for a message go beside the tunnel first; what was taken after such a
//! one by the same trigger waits for it.

use super::take::{entry, spooled};
use crate::{
    agent::Agent,
    audit::Kind,
    hub::payload::{Source, TransferError, upload_event},
    journal::events::{Answered, Content, Key, Place, Taken, Waiting},
    tunnel::backoff::{Backoff, random},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_protocol::{
    CHANGE, Event, EventAck, EventId, EventPayload, EventRefused, NOTIFICATION, OutputPayload, PayloadSource,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, warn};

/// Events read ahead of the session: each may carry 256 KiB.
const AHEAD: usize = 2;
/// How many of a trigger are read at once.
const AT_ONCE: u32 = 8;
/// How often the journal is looked at without a hint.
const LOOK: Duration = Duration::from_secs(5);
/// How soon a journal that could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How many of these tries are told of once.
const TOLD: usize = 10;
/// The media type of files, of which nobody says what is in them.
const MEDIA_TYPE: &str = "application/octet-stream";
/// When to send what a listener took again to a hub that has not heard of the listener, in milliseconds.
const UNHEARD_MS: u64 = 2_000;
/// The longest wait that the hub may ask for.
const MOST_WAIT: Duration = Duration::from_secs(600);

/// Where the sending of each trigger stands, for the session of the moment.
#[derive(Debug, Default)]
pub struct Course {
    inner: Mutex<Inner>,
    /// Held by whoever tries again to note an answer of the hub: a journal that cannot be written is asked by one at a time.
    again: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The session: an older one's feed has nothing to say any more.
    session: u64,
    /// The last that was sent.
    sent: BTreeMap<Key, i64>,
    /// Until when the hub does not want to hear of a trigger.
    held: BTreeMap<Key, Instant>,
    /// Contents that are on their way beside the tunnel.
    uploads: BTreeSet<EventId>,
}

impl Course {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Starts the feed of a session; it ends when the receiver is dropped.
pub fn feed(agent: &Arc<Agent>) -> mpsc::Receiver<Event> {
    let (events, receiver) = mpsc::channel(AHEAD);
    let session = agent.triggers.course.with(|course| {
        course.session += 1;
        course.sent.clear();
        course.session
    });
    let agent = Arc::clone(agent);
    tokio::spawn(async move {
        while !events.is_closed() {
            let filled = agent.triggers.filled.notified();
            let sent = tokio::select! {
                sent = round(&agent, session, &events) => sent,
                () = events.closed() => return,
            };
            if sent {
                continue;
            }
            tokio::select! {
                // Timing out is as good as a hint.
                _ = timeout(wait(&agent), filled) => {}
                () = events.closed() => return,
            }
        }
    });
    receiver
}

/// Until the first trigger may be heard of again.
fn wait(agent: &Agent) -> Duration {
    let now = Instant::now();
    let soonest = agent.triggers.course.with(|course| {
        course.held.retain(|_, until| *until > now);
        course.held.values().min().copied()
    });
    soonest.map_or(LOOK, |soonest| soonest.saturating_duration_since(now).min(LOOK))
}

/// Hands over some of each trigger's; whether there was something.
async fn round(agent: &Arc<Agent>, session: u64, events: &mpsc::Sender<Event>) -> bool {
    let mut some = false;
    for key in agent.triggers.board.waiting() {
        let now = Instant::now();
        let after = agent.triggers.course.with(|course| {
            let held = course.held.get(&key).is_some_and(|until| now < *until);
            (!held && course.session == session).then(|| course.sent.get(&key).copied().unwrap_or(0))
        });
        let Some(after) = after else { continue };
        let rows = match agent.journal.waiting(key.clone(), after, AT_ONCE).await {
            Ok(rows) => rows,
            Err(error) => {
                warn!(%error, "Events cannot be read");
                continue;
            }
        };
        for Waiting { seq, taken, uploaded } in rows {
            let id = taken.id;
            let Some(source) = source(agent, &taken, uploaded) else { break };
            // Before it is handed over: an answer may ask for it again.
            agent.triggers.course.with(|course| {
                if course.session == session {
                    course.sent.insert(key.clone(), seq);
                }
            });
            let Some(event) = message(taken, source) else {
                warn!(event_id = %id, "An event cannot be told");
                continue;
            };
            if events.send(event).await.is_err() {
                return false;
            }
            some = true;
        }
    }
    some
}

/// Where the content is for the hub; `None` if it is not there yet.
fn source(agent: &Arc<Agent>, taken: &Taken, uploaded: bool) -> Option<PayloadSource> {
    match &taken.content {
        Content::Row(bytes) => Some(PayloadSource::Inline { data: STANDARD.encode(bytes) }),
        Content::Spool(_) if uploaded => Some(PayloadSource::Hub),
        Content::Spool(token) => {
            if agent.triggers.course.with(|course| course.uploads.insert(taken.id)) {
                let source = Source::File(agent.spool.output(spooled(*token)));
                let content = OutputPayload {
                    size: taken.seen.size,
                    sha256: taken.sha256,
                    media_type: media_type(taken),
                    data: None,
                };
                let (agent, id) = (Arc::clone(agent), taken.id);
                let tasks = agent.tasks.clone();
                tasks.spawn(async move {
                    tokio::select! {
                        () = bring(&agent, id, &content, &source) => {}
                        () = agent.halt.cancelled() => debug!("An upload goes on at the next start"),
                    }
                    agent.triggers.course.with(|course| course.uploads.remove(&id));
                    agent.triggers.filled.notify_waiters();
                });
            }
            None
        }
    }
}

/// Uploads a content until the hub has it or refuses it.
async fn bring(agent: &Arc<Agent>, id: EventId, content: &OutputPayload, source: &Source) {
    let mut backoff = Backoff::default();
    loop {
        let refused = match upload_event(&agent.hub, &agent.identity, id, content, source).await {
            Ok(()) => {
                agent.metrics.payload_bytes_out.inc_by(content.size);
                match agent.journal.event_uploaded(id).await {
                    Ok(()) => return,
                    Err(error) => {
                        warn!(%error, "That the hub has a content cannot be noted; it is uploaded again");
                        None
                    }
                }
            }
            Err(TransferError::Again(why)) => {
                debug!(error = why, "The upload of an event's content was cut");
                None
            }
            Err(TransferError::Mismatch) => {
                Some("digest_mismatch: the content does not reach the hub unchanged".to_owned())
            }
            Err(TransferError::Disk(error)) => {
                Some(format!("internal: the content was lost on the agent's disk ({error})"))
            }
            Err(TransferError::Refused(refused)) => Some(refused.to_string()),
        };
        if let Some(why) = refused {
            return give_up(agent, id, why).await;
        }
        sleep(backoff.next(random(), None)).await;
    }
}

fn message(taken: Taken, source: PayloadSource) -> Option<Event> {
    let data = match &taken.told {
        Some(told) => serde_json::from_str(&told.data).ok()?,
        None => serde_json::to_value(taken.file()).ok()?,
    };
    let payload = taken.told.as_ref().is_none_or(|told| told.media_type.is_some()).then(|| EventPayload {
        size: taken.seen.size,
        sha256: taken.sha256,
        media_type: media_type(&taken),
        source,
    });
    let Taken { id, key, kind, lease, occurred_at, .. } = taken;
    let Key { resource, trigger } = key;
    Some(Event { id, resource, trigger, kind, lease, occurred_at, data, payload })
}

fn media_type(taken: &Taken) -> String {
    taken.told.as_ref().and_then(|told| told.media_type.as_deref()).unwrap_or(MEDIA_TYPE).to_owned()
}

/// The hub has it.
pub async fn acked(agent: &Arc<Agent>, ack: EventAck) {
    let answered = match agent.journal.event_acked(ack.id).await {
        Ok(answered) => answered,
        Err(_) => tokio::select! {
            answered = note_later(agent, ack.id) => answered,
            // It is sent again at the next start.
            () = agent.halt.cancelled() => return,
        },
    };
    if let Some(answered) = answered {
        agent.metrics.events_acknowledged.inc();
        settle_up(agent, ack.id, &answered, false);
    }
}

/// Notes that the hub has it, once the journal can be written again.
async fn note_later(agent: &Agent, id: EventId) -> Option<Answered> {
    let _turn = agent.triggers.course.again.lock().await;
    for tries in 0_usize.. {
        match agent.journal.event_acked(id).await {
            Ok(answered) => return answered,
            Err(error) if tries.is_multiple_of(TOLD) => {
                warn!(%error, "That the hub has an event cannot be noted yet; trying again");
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
    None
}

/// The hub did not store it.
pub async fn refused(agent: &Arc<Agent>, refused: EventRefused) {
    let EventRefused { id, code, message, retry_after_ms } = refused;
    let Ok(Some(place)) = agent.journal.event_place(id).await else { return };
    // Whoever posted was told that it will be delivered: a listener that the hub has not heard of yet is so soon.
    let unheard = place.kind.as_str() == NOTIFICATION && code == "forbidden";
    match retry_after_ms.or(unheard.then_some(UNHEARD_MS)) {
        Some(after) => {
            debug!(event_id = %id, code, message, "The hub does not take an event now");
            let until = Instant::now() + Duration::from_millis(after).min(MOST_WAIT);
            agent.triggers.course.with(|course| {
                // From this one on again, in order.
                let sent = course.sent.entry(place.key.clone()).or_insert(0);
                *sent = (*sent).min(place.seq - 1);
                course.held.insert(place.key, until);
            });
            agent.triggers.filled.notify_waiters();
        }
        None => give_up(agent, id, format!("{code}: {message}")).await,
    }
}

/// The hub does not want it: the file stays where it is, and the next one has its turn.
async fn give_up(agent: &Arc<Agent>, id: EventId, why: String) {
    let Ok(Some(Place { key, kind, path, .. })) = agent.journal.event_place(id).await else { return };
    if [CHANGE, NOTIFICATION].contains(&kind.as_str()) {
        warn!(event_id = %id, resource = %key.resource, trigger = %key.trigger, why, "The hub refused an event for good");
    } else {
        warn!(event_id = %id, resource = %key.resource, trigger = %key.trigger, path, why, "The hub refused a file; it stays where it is until it changes");
    }
    let row = entry(Kind::EventRefused, &key, &kind, &path, id, Some(why.clone()));
    match agent.journal.event_refused(id, why.clone(), row).await {
        Ok(Some(answered)) => {
            agent.triggers.board.left(&key, &path, &format!("refused by the hub: {why}"));
            agent.metrics.events_refused.inc();
            settle_up(agent, id, &answered, true);
        }
        Ok(None) => {}
        Err(error) => warn!(%error, "That the hub refused an event cannot be noted yet"),
    }
}

/// Lets go what the spool kept.
fn settle_up(agent: &Agent, id: EventId, answered: &Answered, refused: bool) {
    match answered.spool {
        Some(token) => agent.spool.forget_output(spooled(token)),
        None => agent.spool.release_input(spooled(id.uuid())),
    }
    agent.triggers.board.answered(&answered.key, answered.size, answered.follows, refused);
    agent.triggers.answered.notify_waiters();
    agent.triggers.stirred.notify_waiters();
}
