//! From something that happened to the runs that it starts, in the transaction that stores it: none is lost, and none starts
//! two runs.

use super::{InputFlow, MAX_DATA, MAX_KEY, Occurrence, Trigger, arrivals, event, problems, resource};
use crate::{
    mediations::{
        Definition, DefinitionId,
        expression::Expression,
        store::{
            definitions::{self, StoredDefinition},
            start_in,
        },
    },
    model::NewBusinessEvent,
    store::{Error, row::from_uuid, row::to_json, writer::Tx},
};
use bytes::Bytes;
use jiff::Timestamp;
use passerelle_protocol::{BlobId, Event, Name};
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use uuid::Uuid;

/// What is left for the stars of a path.
const ROOM: usize = 16 * 1024;
/// The longest posted body that conditions see.
const MAX_BODY: usize = 64 * 1024;

/// Something that happened, before it is known who waits for it.
struct Seen<'a> {
    key: String,
    kind: &'static str,
    at: Timestamp,
    /// What conditions call `event`, and templates `trigger.data`.
    event: Value,
    flow: Option<InputFlow>,
    of: Of<'a>,
}

enum Of<'a> {
    Business { category: &'a str },
    Resource { trigger: &'a Name, kind: &'a Name, path: Option<String> },
}

/// Starts what a business event starts.
pub(crate) fn business(tx: &mut Tx<'_>, event: &NewBusinessEvent, id: Uuid) -> Result<(), Error> {
    let seen = Seen {
        key: format!("event:{id}"),
        kind: "event",
        at: tx.now,
        event: event.envelope.clone(),
        flow: None,
        of: Of::Business { category: &event.category },
    };
    deliver(tx, &event.tenant, &event::topic(&event.kind), &seen)
}

/// Starts what an event of an agent starts. `payload` is its content: the blob, and the bytes if they came with it.
pub(crate) fn received(
    tx: &mut Tx<'_>,
    tenant: &Name,
    site: &Name,
    event: &Event,
    payload: Option<(BlobId, Option<&Bytes>)>,
) -> Result<(), Error> {
    let topic = resource::topic(site, &event.resource);
    if waiting(tx.conn, tenant, &topic)?.is_empty() {
        return Ok(());
    }
    let path = event.data.get("path").and_then(Value::as_str).map(str::to_owned);
    let name = path.as_deref().map(|path| path.rsplit('/').next().unwrap_or(path).to_owned());
    let body = payload.and_then(|(_, bytes)| bytes).filter(|bytes| bytes.len() <= MAX_BODY);
    let body: Option<Value> = body.and_then(|bytes| serde_json::from_slice(bytes).ok());
    let media_type = event.payload.as_ref().map(|payload| payload.media_type.clone());
    let flow = payload.map(|(blob, _)| InputFlow {
        label: name.clone().unwrap_or_else(|| event.kind.to_string()),
        blob,
        media_type,
    });
    let mut told = json!({
        "id": event.id, "site": site, "resource": event.resource, "trigger": event.trigger, "kind": event.kind,
        "at": event.occurred_at, "data": event.data,
    });
    if let Some(members) = told.as_object_mut() {
        if let Some(name) = name {
            members.insert("name".to_owned(), Value::String(name));
        }
        if let Some(body) = body {
            members.insert("body".to_owned(), body);
        }
        if to_json(&members)?.len() > MAX_DATA - ROOM {
            // The event itself stays readable under its id.
            members.insert("data".to_owned(), json!({"too_large": true}));
            members.remove("body");
        }
    }
    let seen = Seen {
        key: format!("received:{}", event.id),
        kind: "resource",
        at: event.occurred_at,
        event: told,
        flow,
        of: Of::Resource { trigger: &event.trigger, kind: &event.kind, path },
    };
    deliver(tx, tenant, &topic, &seen)
}

fn deliver(tx: &mut Tx<'_>, tenant: &Name, topic: &str, seen: &Seen<'_>) -> Result<(), Error> {
    for (id, clause) in waiting(tx.conn, tenant, topic)? {
        let Some(stored) = load(tx, tenant, id)? else { continue };
        let occurrence = match occurrence(&stored.definition, clause, seen) {
            Ok(Some(occurrence)) => occurrence,
            Ok(None) => continue,
            Err(why) => {
                problems::note(tx, tenant, id, &why)?;
                continue;
            }
        };
        match fire(tx, tenant, &stored.definition, clause, occurrence) {
            Ok(()) => {}
            // The sender keeps it, and sends it again when there is room.
            Err(error @ (Error::Quota(_) | Error::Full | Error::Internal(_))) => return Err(error),
            Err(error) => problems::note(tx, tenant, id, &error.to_string())?,
        }
    }
    Ok(())
}

/// A definition that is not deleted. One that cannot be read (a newer hub wrote it, say) must not stop the others: it is left
/// out, and says so.
pub(super) fn load(tx: &Tx<'_>, tenant: &Name, id: DefinitionId) -> Result<Option<StoredDefinition>, Error> {
    match definitions::find(tx.conn, tenant, id) {
        Ok(stored) => Ok(Some(stored)),
        Err(Error::NotFound(_)) => Ok(None),
        Err(Error::Internal(why)) => {
            tracing::error!(definition = %id, why, "A mediation definition cannot be read");
            problems::note(tx, tenant, id, "the definition cannot be read by this hub: save it anew")?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Who waits for a topic.
fn waiting(conn: &Connection, tenant: &Name, topic: &str) -> Result<Vec<(DefinitionId, usize)>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT definition, clause FROM trigger_topics WHERE tenant = ?1 AND topic = ?2 ORDER BY definition, clause",
    )?;
    let rows = statement.query_map(params![tenant.as_str(), topic], |row| {
        Ok((from_uuid(row, 0)?, usize::try_from(row.get::<_, i64>(1)?).unwrap_or(usize::MAX)))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// What happened as this clause sees it, if it is meant; or why its condition cannot be judged.
fn occurrence(definition: &Definition, clause: usize, seen: &Seen<'_>) -> Result<Option<Occurrence>, String> {
    let Some(trigger) = definition.trigger.clause(clause) else { return Ok(None) };
    let mut event = seen.event.clone();
    let when = match (trigger, &seen.of) {
        (Trigger::Event(wanted), Of::Business { category }) if wanted.is_of(category) => &wanted.when,
        (Trigger::Resource(wanted), Of::Resource { trigger, kind, path })
            if wanted.is_of(trigger, kind, path.as_deref()) =>
        {
            if let (Some(path), Some(members)) = (path, event.as_object_mut()) {
                members.insert("stars".to_owned(), json!(wanted.stars(path)));
            }
            &wanted.when
        }
        _ => return Ok(None),
    };
    if !holds(when.as_ref(), &event)? {
        return Ok(None);
    }
    let flows = seen.flow.iter().cloned().collect();
    Ok(Some(Occurrence { key: seen.key.clone(), kind: seen.kind, at: seen.at, data: event, flows }))
}

/// Whether a condition is met; or why it cannot be judged, without what any value holds.
pub(super) fn holds(when: Option<&Expression>, event: &Value) -> Result<bool, String> {
    when.map_or(Ok(true), |when| when.holds(&[("event", event)]))
        .map_err(|error| format!("the condition could not be judged, and counts as not met: when: {error}"))
}

/// A clause of a definition saw something: a run begins, or it waits for the other clauses.
pub(crate) fn fire(
    tx: &mut Tx<'_>,
    tenant: &Name,
    definition: &Definition,
    clause: usize,
    occurrence: Occurrence,
) -> Result<(), Error> {
    debug_assert!(occurrence.key.len() <= MAX_KEY);
    let ready = match &definition.trigger {
        Trigger::All(all) => arrivals::arrive(tx, tenant, definition, all, clause, occurrence)?,
        Trigger::Manual(_) => None,
        Trigger::Schedule(_)
        | Trigger::Event(_)
        | Trigger::Resource(_)
        | Trigger::Url(_)
        | Trigger::Any(_) => Some(occurrence),
    };
    if let Some(occurrence) = ready {
        start_in(tx, tenant, definition.guid, &occurrence)?;
    }
    Ok(())
}
