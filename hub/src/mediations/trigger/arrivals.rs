//! What came for a trigger that waits for several things: kept until the last of them is here, or the time is over.
//!
//! All that waits under a key when the last thing comes goes into one run, in the order in which it came: nothing is left
//! behind, whichever of two article files was meant.

use super::{All, InputFlow, Occurrence};
use crate::{
    mediations::{Definition, DefinitionId},
    store::{
        Error,
        row::{from_uuid, ms, opt_json, time, to_json},
        writer::Tx,
    },
};
use jiff::{SignedDuration, Timestamp};
use passerelle_protocol::{Name, Sha256};
use rusqlite::{OptionalExtension as _, params};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// The longest key that joins.
const MAX_JOIN_KEY: usize = 200;
/// How many things may wait under one key: as many as a run may have flows.
const MAX_WAITING: i64 = 100;
/// How many may wait for one definition.
const MAX_IN_ALL: i64 = 10_000;

/// Takes what a clause saw. What it gives is the occurrence of them all, once they are all here.
pub(super) fn arrive(
    tx: &mut Tx<'_>,
    tenant: &Name,
    definition: &Definition,
    all: &All,
    clause: usize,
    occurrence: Occurrence,
) -> Result<Option<Occurrence>, Error> {
    let Some(key) = join_key(definition, all, clause, &occurrence.data) else { return Ok(None) };
    let id = definition.guid;
    drop_over(tx, id)?;
    let until = tx.now.checked_add(SignedDuration::from_secs(i64::from(all.within_s))).unwrap_or(Timestamp::MAX);
    let flow = occurrence.flows.first();
    let inserted = tx
        .conn
        .prepare_cached(
            "INSERT INTO trigger_arrivals (tenant, definition, join_key, clause, occurrence_key, at, until, data, label, \
             blob, media_type) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            tenant.as_str(),
            id.uuid().as_bytes(),
            key,
            i64::try_from(clause).unwrap_or(i64::MAX),
            occurrence.key,
            ms(occurrence.at),
            ms(until),
            to_json(&occurrence.data)?,
            flow.map(|flow| flow.label.as_str()),
            flow.map(|flow| *flow.blob.uuid().as_bytes()),
            flow.and_then(|flow| flow.media_type.as_deref()),
        ])?;
    if inserted == 0 {
        return Ok(None);
    }
    tx.effects.due_at(until);
    bound(tx, definition, &key)?;
    let waiting = waiting(tx, id, &key)?;
    let here: BTreeSet<usize> = waiting.iter().map(|arrival| arrival.clause).collect();
    if here.len() < all.of.len() {
        return Ok(None);
    }
    tx.conn
        .prepare_cached("DELETE FROM trigger_arrivals WHERE definition = ?1 AND join_key = ?2")?
        .execute(params![id.uuid().as_bytes(), key])?;
    Ok(Some(together(all, key, waiting, occurrence.at)))
}

/// What belongs together has the same key.
fn join_key(definition: &Definition, all: &All, clause: usize, event: &Value) -> Option<String> {
    let Some(expression) = &all.of.get(clause)?.key else { return Some(String::new()) };
    let said = |why: &str| {
        tracing::warn!(
            definition = %definition.name, clause, why,
            "The key of something that a trigger waits for could not be told: it is left out"
        );
    };
    let key = match expression.evaluate(&[("event", event)]) {
        Ok(Value::String(text)) => text,
        Ok(Value::Number(number)) => number.to_string(),
        Ok(_) => {
            said("it is neither a text nor a number");
            return None;
        }
        Err(error) => {
            said(&error.to_string());
            return None;
        }
    };
    if key.len() > MAX_JOIN_KEY {
        said("it is longer than 200 bytes");
        return None;
    }
    Some(key)
}

struct Arrival {
    clause: usize,
    occurrence_key: String,
    data: Value,
    flow: Option<InputFlow>,
}

fn waiting(tx: &Tx<'_>, definition: DefinitionId, key: &str) -> Result<Vec<Arrival>, Error> {
    let mut statement = tx.conn.prepare_cached(
        "SELECT clause, occurrence_key, data, label, blob, media_type FROM trigger_arrivals \
         WHERE definition = ?1 AND join_key = ?2 ORDER BY seq",
    )?;
    let rows = statement.query_map(params![definition.uuid().as_bytes(), key], |row| {
        let label: Option<String> = row.get(3)?;
        let flow = match label {
            Some(label) => Some(InputFlow { label, blob: from_uuid(row, 4)?, media_type: row.get(5)? }),
            None => None,
        };
        Ok(Arrival {
            clause: usize::try_from(row.get::<_, i64>(0)?).unwrap_or(usize::MAX),
            occurrence_key: row.get(1)?,
            data: opt_json(row, 2)?.unwrap_or_default(),
            flow,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// One occurrence of all that waits. `data` holds the key, and under the name of each clause what came last for it.
fn together(all: &All, key: String, waiting: Vec<Arrival>, at: Timestamp) -> Occurrence {
    let mut keys: Vec<&str> = waiting.iter().map(|arrival| arrival.occurrence_key.as_str()).collect();
    keys.sort_unstable();
    let digest = Sha256::of(keys.join("\n").as_bytes());
    let mut data = Map::new();
    data.insert("key".to_owned(), Value::String(key));
    let mut flows = Vec::new();
    for arrival in waiting {
        let Some(clause) = all.of.get(arrival.clause) else { continue };
        data.insert(clause.name.to_string(), arrival.data);
        // The clause's name, so that a step can say which of the files it reads.
        flows.extend(arrival.flow.map(|flow| InputFlow { label: clause.name.to_string(), ..flow }));
    }
    Occurrence { key: format!("all:{digest}"), kind: "all", at, data: Value::Object(data), flows }
}

/// Too much under one key, or for one definition: the oldest makes room.
fn bound(tx: &Tx<'_>, definition: &Definition, key: &str) -> Result<(), Error> {
    let id = definition.guid;
    let under: i64 = tx
        .conn
        .prepare_cached("SELECT count(*) FROM trigger_arrivals WHERE definition = ?1 AND join_key = ?2")?
        .query_row(params![id.uuid().as_bytes(), key], |row| row.get(0))?;
    let in_all: i64 = tx
        .conn
        .prepare_cached("SELECT count(*) FROM trigger_arrivals WHERE definition = ?1")?
        .query_row([id.uuid().as_bytes()], |row| row.get(0))?;
    let dropped = if under > MAX_WAITING {
        tx.conn
            .prepare_cached(
                "DELETE FROM trigger_arrivals WHERE seq = (SELECT min(seq) FROM trigger_arrivals \
                 WHERE definition = ?1 AND join_key = ?2)",
            )?
            .execute(params![id.uuid().as_bytes(), key])?
    } else if in_all > MAX_IN_ALL {
        tx.conn
            .prepare_cached(
                "DELETE FROM trigger_arrivals WHERE seq = (SELECT min(seq) FROM trigger_arrivals WHERE definition = ?1)",
            )?
            .execute([id.uuid().as_bytes()])?
    } else {
        0
    };
    if dropped > 0 {
        tracing::warn!(definition = %definition.name, "Too much waits for the rest of a trigger: the oldest was left out");
    }
    Ok(())
}

fn drop_over(tx: &Tx<'_>, definition: DefinitionId) -> Result<(), Error> {
    tx.conn
        .prepare_cached("DELETE FROM trigger_arrivals WHERE definition = ?1 AND until <= ?2")?
        .execute(params![definition.uuid().as_bytes(), ms(tx.now)])?;
    Ok(())
}

/// Takes away what waited for too long, a few at a time.
pub(crate) fn give_up(tx: &mut Tx<'_>) -> Result<(), Error> {
    let sql = "DELETE FROM trigger_arrivals WHERE seq IN (SELECT seq FROM trigger_arrivals WHERE until <= ?1 \
               ORDER BY until LIMIT 500) RETURNING definition, clause";
    let mut statement = tx.conn.prepare_cached(sql)?;
    let over: Vec<(DefinitionId, i64)> = statement
        .query_map([ms(tx.now)], |row| Ok((from_uuid(row, 0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (definition, clause) in over {
        tracing::warn!(%definition, clause, "What a trigger waits for did not come in time: what was here is left out");
    }
    Ok(())
}

/// When [`give_up`] is next due.
pub(crate) fn next(conn: &rusqlite::Connection) -> Result<Option<Timestamp>, Error> {
    let sql = "SELECT until FROM trigger_arrivals ORDER BY until LIMIT 1";
    Ok(conn.prepare_cached(sql)?.query_row([], |row| time(row, 0)).optional()?)
}
