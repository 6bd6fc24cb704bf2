//! What is under way: how much of it each trigger has, what it takes of the spool, and where one event is in the order.

use super::{
    ACKNOWLEDGED, Counts, Key, Place, WAITING,
    row::{key, name, positive},
};
use crate::journal::{Journal, JournalError};
use passerelle_protocol::EventId;
use rusqlite::OptionalExtension as _;
use std::collections::BTreeMap;
use uuid::Uuid;

impl Journal {
    /// How much each trigger has under way.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn trigger_counts(&self) -> Result<BTreeMap<Key, Counts>, JournalError> {
        let rows: Vec<(String, String, i64, i64, i64)> = self
            .writer
            .read(|c| {
                c.prepare_cached(
                    "SELECT resource, trigger, state, count(*), sum(CASE WHEN state = 0 THEN seen ->> 'size' ELSE 0 END)
                     FROM events GROUP BY resource, trigger, state",
                )?
                .query_map([], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
                })?
                .collect()
            })
            .await?;
        let mut counts = BTreeMap::<Key, Counts>::new();
        for (resource, trigger, state, number, bytes) in rows {
            let (number, bytes) = (positive(number), positive(bytes));
            let of = counts.entry(key(&resource, &trigger)?).or_default();
            match state {
                WAITING => (of.waiting, of.bytes) = (number, bytes),
                ACKNOWLEDGED => of.unsettled = number,
                _ => of.dead = number,
            }
        }
        Ok(counts)
    }

    /// What waiting events take of the spool: each with its file there, if it has one, and its size.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn spooled_events(&self) -> Result<Vec<(EventId, Option<Uuid>, u64)>, JournalError> {
        let rows: Vec<([u8; 16], Option<[u8; 16]>, i64)> = self
            .writer
            .read(|c| {
                c.prepare("SELECT id, spool, seen ->> 'size' FROM events WHERE state = 0")?
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                    .collect()
            })
            .await?;
        let spooled = |(id, token, size): ([u8; 16], Option<[u8; 16]>, i64)| {
            (EventId::from(Uuid::from_bytes(id)), token.map(Uuid::from_bytes), positive(size))
        };
        Ok(rows.into_iter().map(spooled).collect())
    }

    /// Where a waiting event is in the order, of which trigger it is, and of which kind and file; `None` if it does not wait any more.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn event_place(&self, id: EventId) -> Result<Option<Place>, JournalError> {
        let id = *id.uuid().as_bytes();
        let found: Option<(i64, String, String, String, String)> = self
            .writer
            .read(move |c| {
                c.prepare_cached(
                    "SELECT seq, resource, trigger, kind, path FROM events WHERE id = ?1 AND state = 0",
                )?
                .query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))
                .optional()
            })
            .await?;
        let place = |(seq, resource, trigger, kind, path): (i64, String, String, String, String)| {
            Ok(Place { seq, key: key(&resource, &trigger)?, kind: name(&kind)?, path })
        };
        found.map(place).transpose()
    }
}
