//! Events that agents told of: stored once, by their id, with their payload, before they are acknowledged.

use super::{
    Content, Error, Store, cursor, retention, row,
    row::{digest, from_uuid, ms, name, opt_digest, opt_json, opt_uuid, size, time, to_json},
    triggers,
    writer::Tx,
};
use crate::{
    mediations::trigger::deliver,
    model::{AgentRecord, ChangeKind, EventFilter, OutputView, Page, ReceivedEvent},
};
use bytes::Bytes;
use jiff::Timestamp;
use passerelle_protocol::{BlobId, Event, EventId, JobId, Name, Sha256};
use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};
use std::sync::atomic::Ordering;

/// How many jobs of an event are shown.
const MAX_JOBS_SHOWN: usize = 100;
/// How many events a page holds, at most.
const MAX_PAGE: usize = 500;

/// An event whose form is right.
#[derive(Debug)]
pub(crate) struct CheckedEvent {
    pub(crate) event: Event,
    /// Its payload, if it came with it.
    pub(crate) data: Option<Bytes>,
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Receipt {
    /// It is stored.
    Stored,
    /// It was stored before.
    Duplicate,
    /// It is not taken: why, by code and in words; `again`: it will be once its payload is here.
    Refused { code: &'static str, message: String, again: bool },
}

fn refused(code: &'static str, message: String) -> Receipt {
    Receipt::Refused { code, message, again: false }
}

/// Stores an event, unless it is known or not to be taken.
pub(crate) fn receive(
    tx: &mut Tx<'_>,
    agent: &AgentRecord,
    checked: &CheckedEvent,
) -> Result<Receipt, Error> {
    let receipt = judge_and_store(tx, agent, checked)?;
    let counts = &tx.shared.events;
    match &receipt {
        Receipt::Stored => &counts.stored,
        Receipt::Duplicate => &counts.duplicates,
        Receipt::Refused { .. } => &counts.refused,
    }
    .fetch_add(1, Ordering::Relaxed);
    Ok(receipt)
}

fn judge_and_store(tx: &mut Tx<'_>, agent: &AgentRecord, checked: &CheckedEvent) -> Result<Receipt, Error> {
    let event = &checked.event;
    let kind = triggers::kind(tx.conn, agent.id, &event.resource, &event.trigger)?;
    if kind.as_ref() != Some(&event.kind) {
        let message = format!(
            "this agent has announced no trigger {} of {} and of kind {}: a trigger has to be in the configuration of the \
             agent that tells of it",
            event.trigger, event.resource, event.kind
        );
        return Ok(refused("forbidden", message));
    }
    if let Some(known) = known(tx.conn, &agent.tenant, event)? {
        return Ok(known);
    }
    let payload = match &event.payload {
        Some(payload) => {
            let blob = match &checked.data {
                Some(data) => inline(tx, &agent.tenant, &payload.media_type, payload.sha256, data)?,
                None => {
                    match uploaded(tx, agent, event.id, payload.size, payload.sha256, &payload.media_type)? {
                        Some(blob) => blob,
                        None => {
                            let message = format!("the payload of {} is not here: upload it first", event.id);
                            return Ok(Receipt::Refused { code: "not_found", message, again: true });
                        }
                    }
                }
            };
            Some((blob, payload))
        }
        None => None,
    };
    tx.shared.shares.event(tx.conn, &agent.tenant)?;
    tx.conn
        .prepare_cached(
            "INSERT INTO received_events (tenant, id, site, resource, trigger_name, kind, agent, lease, occurred_at, \
             received_at, payload, payload_size, payload_sha256, payload_media_type, data) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )?
        .execute(params![
            agent.tenant.as_str(),
            event.id.uuid().as_bytes(),
            agent.site.as_str(),
            event.resource.as_str(),
            event.trigger.as_str(),
            event.kind.as_str(),
            agent.id.uuid().as_bytes(),
            i64::try_from(event.lease).unwrap_or(i64::MAX),
            ms(event.occurred_at),
            ms(tx.now),
            payload.map(|(blob, _)| *blob.uuid().as_bytes()),
            payload.map(|(_, of)| i64::try_from(of.size).unwrap_or(i64::MAX)),
            payload.map(|(_, of)| *of.sha256.bytes()),
            payload.map(|(_, of)| of.media_type.as_str()),
            to_json(&event.data)?
        ])?;
    let content = payload.map(|(blob, _)| (blob, checked.data.as_ref()));
    deliver::received(tx, &agent.tenant, &agent.site, event, content)?;
    tx.effects.changes.push((agent.tenant.clone(), ChangeKind::Received(event.id)));
    Ok(Receipt::Stored)
}

/// What is to be said of an event that was here before.
fn known(conn: &Connection, tenant: &Name, event: &Event) -> Result<Option<Receipt>, Error> {
    let stored: Option<(Name, Name, Option<Sha256>)> = conn
        .prepare_cached(
            "SELECT resource, kind, payload_sha256 FROM received_events WHERE tenant = ?1 AND id = ?2",
        )?
        .query_row(params![tenant.as_str(), event.id.uuid().as_bytes()], |row| {
            Ok((name(row, 0)?, name(row, 1)?, opt_digest(row, 2)?))
        })
        .optional()?;
    let this =
        (event.resource.clone(), event.kind.clone(), event.payload.as_ref().map(|payload| payload.sha256));
    match stored {
        Some(stored) if stored == this => return Ok(Some(Receipt::Duplicate)),
        Some(_) => {
            let message = format!("there is an event {} already, with other content", event.id);
            return Ok(Some(refused("conflict", message)));
        }
        None => {}
    }
    Ok(is_past(conn, tenant, event.id)?.then_some(Receipt::Duplicate))
}

fn is_past(conn: &Connection, tenant: &Name, id: EventId) -> Result<bool, Error> {
    Ok(conn
        .prepare_cached("SELECT 1 FROM past_events WHERE tenant = ?1 AND id = ?2")?
        .exists(params![tenant.as_str(), id.uuid().as_bytes()])?)
}

/// Whether an event is here, or was.
pub(crate) fn is_known(conn: &Connection, tenant: &Name, id: EventId) -> Result<bool, Error> {
    let here = conn
        .prepare_cached("SELECT 1 FROM received_events WHERE tenant = ?1 AND id = ?2")?
        .exists(params![tenant.as_str(), id.uuid().as_bytes()])?;
    Ok(here || is_past(conn, tenant, id)?)
}

/// Makes a blob of content that came with its event.
fn inline(
    tx: &Tx<'_>,
    tenant: &Name,
    media_type: &str,
    sha256: Sha256,
    data: &Bytes,
) -> Result<BlobId, Error> {
    let id = BlobId::from(crate::clock::new_uuid7());
    tx.shared.shares.bytes(tx.conn, tenant, data.len() as u64)?;
    add_blob(tx, tenant, id, data.len() as u64, sha256, media_type)?;
    tx.conn
        .prepare_cached("INSERT INTO contents (blob, data) VALUES (?1, ?2)")?
        .execute(params![id.uuid().as_bytes(), data.as_ref()])?;
    Ok(id)
}

/// Makes a blob of what the agent has uploaded for its event, if that is whole and the same.
fn uploaded(
    tx: &Tx<'_>,
    agent: &AgentRecord,
    event: EventId,
    length: u64,
    sha256: Sha256,
    media_type: &str,
) -> Result<Option<BlobId>, Error> {
    let found: Option<BlobId> = tx
        .conn
        .prepare_cached(
            "DELETE FROM uploads WHERE agent = ?1 AND event = ?2 AND complete = 1 AND length = ?3 AND sha256 = ?4 \
             RETURNING id",
        )?
        .query_row(
            params![
                agent.id.uuid().as_bytes(),
                event.uuid().as_bytes(),
                i64::try_from(length).unwrap_or(i64::MAX),
                sha256.bytes()
            ],
            |row| from_uuid(row, 0),
        )
        .optional()?;
    if let Some(id) = found {
        add_blob(tx, &agent.tenant, id, length, sha256, media_type)?;
    }
    Ok(found)
}

fn add_blob(
    tx: &Tx<'_>,
    tenant: &Name,
    id: BlobId,
    length: u64,
    sha256: Sha256,
    media_type: &str,
) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT INTO blobs (id, tenant, size, sha256, media_type, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            id.uuid().as_bytes(),
            tenant.as_str(),
            i64::try_from(length).unwrap_or(i64::MAX),
            sha256.bytes(),
            media_type,
            ms(tx.now)
        ])?;
    Ok(())
}

const EVENT: &str = "seq, id, tenant, site, resource, trigger_name, kind, agent, occurred_at, received_at, data, payload, \
    payload_size, payload_sha256, payload_media_type";

/// An event without its jobs, its row id, and the blob of its payload.
fn read(row: &Row<'_>) -> rusqlite::Result<(i64, ReceivedEvent, Option<BlobId>)> {
    let blob: Option<BlobId> = opt_uuid(row, 11)?;
    let payload = match blob {
        Some(_) => {
            Some(OutputView { size: size(row, 12)?, sha256: digest(row, 13)?, media_type: row.get(14)? })
        }
        None => None,
    };
    let event = ReceivedEvent {
        id: from_uuid(row, 1)?,
        tenant: name(row, 2)?,
        site: name(row, 3)?,
        resource: name(row, 4)?,
        trigger: name(row, 5)?,
        kind: name(row, 6)?,
        agent: from_uuid(row, 7)?,
        occurred_at: time(row, 8)?,
        received_at: time(row, 9)?,
        data: opt_json(row, 10)?.unwrap_or_default(),
        payload,
        jobs: Vec::new(),
    };
    Ok((row.get(0)?, event, blob))
}

fn add_jobs(conn: &Connection, event: &mut ReceivedEvent) -> Result<(), Error> {
    let sql = format!(
        "SELECT id FROM jobs INDEXED BY jobs_by_event WHERE event = ?1 AND tenant = ?2 ORDER BY seq LIMIT {MAX_JOBS_SHOWN}"
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement
        .query_map(params![event.id.uuid().as_bytes(), event.tenant.as_str()], |row| from_uuid(row, 0))?;
    event.jobs = rows.collect::<Result<Vec<JobId>, _>>()?;
    Ok(())
}

fn find(conn: &Connection, tenant: &Name, id: EventId) -> Result<(ReceivedEvent, Option<BlobId>), Error> {
    let sql = format!("SELECT {EVENT} FROM received_events WHERE tenant = ?1 AND id = ?2");
    let found = conn
        .prepare_cached(&sql)?
        .query_row(params![tenant.as_str(), id.uuid().as_bytes()], read)
        .optional()?;
    if let Some((_, mut event, blob)) = found {
        add_jobs(conn, &mut event)?;
        return Ok((event, blob));
    }
    let gone = if is_past(conn, tenant, id)? { ": it was removed, its retention is over" } else { "" };
    Err(Error::NotFound(format!("there is no event {id}{gone}")))
}

impl Store {
    /// One event.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn received_event(&self, tenant: Name, id: EventId) -> Result<ReceivedEvent, Error> {
        self.read(move |conn| find(conn, &tenant, id).map(|(event, _)| event)).await
    }

    /// An event's payload: its blob, what is known of it, and where its content is.
    ///
    /// # Errors
    /// [`Error::NotFound`], also if it has none.
    pub async fn received_payload(
        &self,
        tenant: Name,
        id: EventId,
    ) -> Result<(BlobId, OutputView, Content), Error> {
        let files = self.files().clone();
        self.read(move |conn| {
            let (event, blob) = find(conn, &tenant, id)?;
            let (Some(payload), Some(blob)) = (event.payload, blob) else {
                return Err(Error::NotFound(format!("event {id} has no payload")));
            };
            let (_, content) = files.find(conn, blob, Some(&tenant))?;
            Ok((blob, payload, content))
        })
        .await
    }

    /// Events, newest first. A page starts where the one before ended, whatever came in since.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a cursor that no page gave.
    pub async fn list_events(&self, filter: EventFilter) -> Result<Page<ReceivedEvent>, Error> {
        let cursor = filter.cursor.as_deref().map(cursor::read_cursor).transpose()?;
        self.read(move |conn| {
            let limit = filter.limit.clamp(1, MAX_PAGE);
            let mut statement = conn.prepare_cached(&list_sql(&filter))?;
            let text = |name: &Option<Name>| name.as_ref().map(|name| name.as_str().to_owned());
            let mut rows = statement.query(named_params! {
                ":tenant": filter.tenant.as_str(),
                ":site": text(&filter.site),
                ":resource": text(&filter.resource),
                ":trigger_name": text(&filter.trigger),
                ":kind": text(&filter.kind),
                ":since": filter.since.map_or(i64::MIN, ms),
                ":until": filter.until.map_or(i64::MAX, ms),
                ":at": cursor.map_or(i64::MAX, |(at, _)| at),
                ":seq": cursor.map_or(i64::MAX, |(_, seq)| seq),
                ":limit": i64::try_from(limit + 1).unwrap_or(i64::MAX),
            })?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(read(row)?);
            }
            let more = found.len() > limit;
            found.truncate(limit);
            let next_cursor = found
                .last()
                .filter(|_| more)
                .map(|(seq, event, _)| cursor::write_cursor(ms(event.received_at), *seq));
            let mut items = Vec::with_capacity(found.len());
            for (_, mut event, _) in found {
                add_jobs(conn, &mut event)?;
                items.push(event);
            }
            Ok(Page { items, next_cursor })
        })
        .await
    }
}

/// The list query for which keys are given.
pub(super) fn list_sql(filter: &EventFilter) -> String {
    let index = match (&filter.resource, &filter.site) {
        (Some(_), _) => "received_by_resource",
        (None, Some(_)) => "received_by_site",
        (None, None) => "received_by_tenant",
    };
    let mut sql = format!("SELECT {EVENT} FROM received_events INDEXED BY {index} WHERE tenant = :tenant");
    // All parameters appear, so that one binding serves every form.
    let keys = [
        ("site", filter.site.is_some()),
        ("resource", filter.resource.is_some()),
        ("trigger_name", filter.trigger.is_some()),
        ("kind", filter.kind.is_some()),
    ];
    for (key, given) in keys {
        sql.push_str(&if given { format!(" AND {key} = :{key}") } else { format!(" AND :{key} IS NULL") });
    }
    sql.push_str(
        " AND received_at >= :since AND received_at < :until AND (received_at, seq) < (:at, :seq) \
         ORDER BY received_at DESC, seq DESC LIMIT :limit",
    );
    sql
}

/// Events that were stored before `before`, by their row ids.
pub(crate) fn old_events(conn: &Connection, after: i64, before: Timestamp) -> Result<Vec<i64>, Error> {
    // Row ids grow with the time: the first that is young ends the look.
    let sql = format!(
        "SELECT seq, received_at FROM received_events WHERE seq > ?1 ORDER BY seq LIMIT {}",
        retention::AT_ONCE
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map([after], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))?;
    let found: Vec<(i64, i64)> = rows.collect::<Result<_, _>>()?;
    Ok(found.into_iter().take_while(|(_, at)| *at < ms(before)).map(|(seq, _)| seq).collect())
}

/// Removes them; their ids stay. Their payloads go when nothing else needs them either.
pub(crate) fn remove_events(
    tx: &mut Tx<'_>,
    events: &[i64],
    before: Timestamp,
) -> Result<retention::Removed, Error> {
    let mut remember = tx.conn.prepare_cached(
        "INSERT OR IGNORE INTO past_events (tenant, id, received_at) SELECT tenant, id, received_at \
         FROM received_events WHERE seq = ?1 AND received_at < ?2",
    )?;
    let mut delete =
        tx.conn.prepare_cached("DELETE FROM received_events WHERE seq = ?1 AND received_at < ?2")?;
    let mut removed = retention::Removed::default();
    for seq in events {
        remember.execute(params![seq, ms(before)])?;
        removed.count += delete.execute(params![seq, ms(before)])? as u64;
    }
    Ok(removed)
}

/// Forgets ids of events from before `before`, a few; true if there may be more.
pub(crate) fn forget_past(tx: &mut Tx<'_>, before: Timestamp) -> Result<bool, Error> {
    let sql = "DELETE FROM past_events WHERE (tenant, id) IN (SELECT tenant, id FROM past_events WHERE received_at < ?1 \
               ORDER BY received_at LIMIT 500)";
    Ok(tx.conn.prepare_cached(sql)?.execute([ms(before)])? == 500)
}

/// The event that a job is to be started from, in the job's own transaction: it may have gone since it was looked for.
pub(super) fn check_start(
    conn: &Connection,
    tenant: &Name,
    event: EventId,
    blob: BlobId,
) -> Result<(), Error> {
    match find(conn, tenant, event)? {
        (_, Some(found)) if found == blob => Ok(()),
        _ => Err(Error::NotFound(format!("event {event} has no payload"))),
    }
}

/// A media type that can stand in a header; what an agent was told by a private system may be anything.
pub(crate) fn clean_media_type(text: &str) -> String {
    let printable = !text.is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b));
    if printable { text.to_owned() } else { row::default_media_type() }
}
