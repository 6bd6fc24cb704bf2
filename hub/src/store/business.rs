//! Business events that applications send in: stored once, before they are answered.
//!
//! An event is known again by the sender's own id for it, as long as the event is kept. Where the sender gives none, the same
//! body within [`SAME_BODY`] is the same event: a sender that heard no answer sends again.

use super::{
    Error, Store, cursor, retention,
    row::{from_uuid, ms, name, opt_json, time, to_json},
    writer::Tx,
};
use crate::{
    clock,
    mediations::trigger::deliver,
    model::{BusinessEvent, BusinessFilter, NewBusinessEvent, Page, TakenEvent},
};
use jiff::{SignedDuration, Timestamp};
use passerelle_protocol::{Name, Sha256};
use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};
use uuid::Uuid;

/// How long the same body without an id is the same event.
const SAME_BODY: SignedDuration = SignedDuration::from_hours(24);
/// How many events a page holds, at most.
const MAX_PAGE: usize = 500;

/// Stores an event, unless it is known.
pub(crate) fn take(tx: &mut Tx<'_>, event: &NewBusinessEvent) -> Result<TakenEvent, Error> {
    let key = match &event.key {
        Some(key) => format!("id:{key}"),
        None => format!("sha256:{}", event.digest),
    };
    let known: Option<(i64, Uuid, [u8; 32], Timestamp)> = tx
        .conn
        .prepare_cached(
            "SELECT seq, id, digest, received_at FROM business_events WHERE tenant = ?1 AND key = ?2",
        )?
        .query_row(params![event.tenant.as_str(), key], |row| {
            Ok((row.get(0)?, from_uuid(row, 1)?, row.get(2)?, time(row, 3)?))
        })
        .optional()?;
    if let Some((seq, id, digest, received_at)) = known {
        if Sha256::from(digest) != event.digest {
            return Err(Error::IdempotencyMismatch);
        }
        if event.key.is_some() || tx.now.duration_since(received_at) < SAME_BODY {
            return Ok(TakenEvent { id, duplicate: true });
        }
        // Long ago: that one makes room for the new one's key.
        tx.conn
            .prepare_cached("UPDATE business_events SET key = 'past:' || seq WHERE seq = ?1")?
            .execute([seq])?;
    }
    tx.shared.shares.event(tx.conn, &event.tenant)?;
    let id = clock::new_uuid7();
    tx.conn
        .prepare_cached(
            "INSERT INTO business_events (id, tenant, key, digest, event_kind, event_category, received_at, envelope) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            id.as_bytes(),
            event.tenant.as_str(),
            key,
            event.digest.bytes(),
            event.kind,
            event.category,
            ms(tx.now),
            to_json(&event.envelope)?
        ])?;
    deliver::business(tx, event, id)?;
    Ok(TakenEvent { id, duplicate: false })
}

const EVENT: &str = "seq, id, tenant, received_at, envelope";

fn read(row: &Row<'_>) -> rusqlite::Result<(i64, BusinessEvent)> {
    let event = BusinessEvent {
        id: from_uuid(row, 1)?,
        tenant: name(row, 2)?,
        received_at: time(row, 3)?,
        envelope: opt_json(row, 4)?.unwrap_or_default(),
    };
    Ok((row.get(0)?, event))
}

impl Store {
    /// Takes a business event in; what it starts is committed with it.
    ///
    /// # Errors
    /// [`Error::IdempotencyMismatch`] for an id that another event has, [`Error::Quota`].
    pub async fn take_business_event(&self, event: NewBusinessEvent) -> Result<TakenEvent, Error> {
        self.write(move |tx| take(tx, &event)).await
    }

    /// One business event.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn business_event(&self, tenant: Name, id: Uuid) -> Result<BusinessEvent, Error> {
        self.read(move |conn| {
            let sql = format!("SELECT {EVENT} FROM business_events WHERE id = ?1 AND tenant = ?2");
            let mut statement = conn.prepare_cached(&sql)?;
            let found = statement.query_row(params![id.as_bytes(), tenant.as_str()], read).optional()?;
            found.map(|(_, event)| event).ok_or_else(|| Error::NotFound(format!("there is no event {id}")))
        })
        .await
    }

    /// Business events, newest first.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a cursor that no page gave.
    pub async fn list_business_events(&self, filter: BusinessFilter) -> Result<Page<BusinessEvent>, Error> {
        let cursor = filter.cursor.as_deref().map(cursor::read_cursor).transpose()?;
        self.read(move |conn| {
            let limit = filter.limit.clamp(1, MAX_PAGE);
            let sql = format!(
                "SELECT {EVENT} FROM business_events INDEXED BY business_events_by_tenant WHERE tenant = :tenant \
                 AND (:kind IS NULL OR event_kind = :kind) AND (received_at, seq) < (:at, :seq) \
                 ORDER BY received_at DESC, seq DESC LIMIT :limit"
            );
            let mut statement = conn.prepare_cached(&sql)?;
            let rows = statement.query_map(
                named_params! {
                    ":tenant": filter.tenant.as_str(),
                    ":kind": filter.kind,
                    ":at": cursor.map_or(i64::MAX, |(at, _)| at),
                    ":seq": cursor.map_or(i64::MAX, |(_, seq)| seq),
                    ":limit": i64::try_from(limit + 1).unwrap_or(i64::MAX),
                },
                read,
            )?;
            let mut found = rows.collect::<Result<Vec<_>, _>>()?;
            let more = found.len() > limit;
            found.truncate(limit);
            let next_cursor = found
                .last()
                .filter(|_| more)
                .map(|(seq, event)| cursor::write_cursor(ms(event.received_at), *seq));
            Ok(Page { items: found.into_iter().map(|(_, event)| event).collect(), next_cursor })
        })
        .await
    }
}

/// Events that were stored before `before`, by their row ids.
pub(crate) fn old_events(conn: &Connection, after: i64, before: Timestamp) -> Result<Vec<i64>, Error> {
    let sql = format!(
        "SELECT seq, received_at FROM business_events WHERE seq > ?1 ORDER BY seq LIMIT {}",
        retention::AT_ONCE
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map([after], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))?;
    let found: Vec<(i64, i64)> = rows.collect::<Result<_, _>>()?;
    Ok(found.into_iter().take_while(|(_, at)| *at < ms(before)).map(|(seq, _)| seq).collect())
}

/// Removes them.
pub(crate) fn remove_events(
    tx: &mut Tx<'_>,
    events: &[i64],
    before: Timestamp,
) -> Result<retention::Removed, Error> {
    let mut delete =
        tx.conn.prepare_cached("DELETE FROM business_events WHERE seq = ?1 AND received_at < ?2")?;
    let mut removed = retention::Removed::default();
    for seq in events {
        removed.count += delete.execute(params![seq, ms(before)])? as u64;
    }
    Ok(removed)
}
