//! A row of `events`: as it is written, and as it is read again.

use super::{Content, Key, Taken, Told};
use crate::journal::{JournalError, json, parse};
use bytes::Bytes;
use jiff::Timestamp;
use passerelle_protocol::{EventId, Name, Sha256};
use rusqlite::{Connection, Row, params};
use uuid::Uuid;

/// A row of `events`, as it is written.
pub(in crate::journal) struct NewEvent {
    pub(in crate::journal) id: [u8; 16],
    pub(in crate::journal) resource: String,
    pub(super) trigger: String,
    pub(super) kind: String,
    pub(super) lease: i64,
    pub(in crate::journal) at: i64,
    pub(super) path: String,
    pub(super) seen: String,
    pub(in crate::journal) sha256: [u8; 32],
    pub(super) payload: Option<Bytes>,
    pub(super) spool: Option<[u8; 16]>,
    pub(super) marker: Option<String>,
    pub(super) follow: String,
    pub(super) data: Option<String>,
    pub(super) media_type: Option<String>,
}

impl Taken {
    pub(in crate::journal) fn into_row(self) -> Result<NewEvent, JournalError> {
        let (seen, follow) = (json(&self.seen)?, json(&self.follow)?);
        let marker = self.marker.as_ref().map(json).transpose()?;
        let (payload, spool) = match self.content {
            Content::Row(bytes) => (Some(bytes), None),
            Content::Spool(token) => (None, Some(*token.as_bytes())),
        };
        let (data, media_type) = self.told.map_or((None, None), |told| (Some(told.data), told.media_type));
        Ok(NewEvent {
            id: *self.id.uuid().as_bytes(),
            resource: self.key.resource.to_string(),
            trigger: self.key.trigger.to_string(),
            kind: self.kind.to_string(),
            lease: i64::try_from(self.lease).unwrap_or(i64::MAX),
            at: self.occurred_at.as_millisecond(),
            path: self.seen.path,
            seen,
            sha256: *self.sha256.bytes(),
            payload,
            spool,
            marker,
            follow,
            data,
            media_type,
        })
    }
}

/// Writes a waiting event; `false` if it is there already.
pub(in crate::journal) fn insert(c: &Connection, row: &NewEvent) -> rusqlite::Result<bool> {
    let new = c
        .prepare_cached(
            "INSERT OR IGNORE INTO events (id, resource, trigger, kind, lease, occurred_at, state, path, seen,
               sha256, payload, spool, marker, follow, data, media_type)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )?
        .execute(params![
            row.id,
            row.resource,
            row.trigger,
            row.kind,
            row.lease,
            row.at,
            row.path,
            row.seen,
            row.sha256,
            row.payload.as_deref(),
            row.spool,
            row.marker,
            row.follow,
            row.data,
            row.media_type
        ])?;
    Ok(new > 0)
}

/// What SQLite holds as a signed number.
pub(super) fn positive(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

pub(super) fn key(resource: &str, trigger: &str) -> Result<Key, JournalError> {
    Ok(Key { resource: name(resource)?, trigger: name(trigger)? })
}

pub(in crate::journal) fn name(text: &str) -> Result<Name, JournalError> {
    text.parse().map_err(|e| JournalError::Storage(format!("a row cannot be read: {e}")))
}

pub(super) fn taken(row: &Row<'_>) -> Result<Taken, JournalError> {
    let text = |column: &str| row.get::<_, String>(column);
    let payload: Option<Vec<u8>> = row.get("payload")?;
    let spool: Option<[u8; 16]> = row.get("spool")?;
    let marker: Option<String> = row.get("marker")?;
    Ok(Taken {
        id: EventId::from(Uuid::from_bytes(row.get("id")?)),
        key: key(&text("resource")?, &text("trigger")?)?,
        kind: name(&text("kind")?)?,
        lease: positive(row.get("lease")?),
        occurred_at: Timestamp::from_millisecond(row.get("occurred_at")?)
            .map_err(|e| JournalError::Storage(format!("time: {e}")))?,
        seen: parse(&text("seen")?)?,
        sha256: Sha256::from(row.get::<_, [u8; 32]>("sha256")?),
        content: match spool {
            Some(token) => Content::Spool(Uuid::from_bytes(token)),
            None => Content::Row(payload.unwrap_or_default().into()),
        },
        marker: marker.map(|text| parse(&text)).transpose()?,
        follow: parse(&text("follow")?)?,
        told: match row.get("data")? {
            Some(data) => Some(Told { data, media_type: row.get("media_type")? }),
            None => None,
        },
    })
}
