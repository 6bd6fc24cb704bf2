//! What came for a trigger that waits for several things: kept until the last of them is here, or the time is over.
//!
//! All that waits under a key when the last thing comes goes into one run, in the order in which it came: nothing is left
//! behind, whichever of two article files was meant.

use super::{All, InputFlow, MAX_DATA, Occurrence, problems};
use crate::{
    mediations::{Definition, DefinitionId},
    store::{
        Error,
        row::{from_uuid, ms, name, opt_json, time, to_json},
        writer::Tx,
    },
};
use jiff::{SignedDuration, Timestamp};
use passerelle_protocol::{Name, Sha256};
use rusqlite::{OptionalExtension as _, params};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The longest key that joins.
const MAX_JOIN_KEY: usize = 200;
/// How many things may wait under one key: as many as a run may have flows.
const MAX_WAITING: i64 = 100;
/// How many may wait for one definition.
const MAX_IN_ALL: i64 = 10_000;

const NOT_IN_TIME: &str = "the rest of the trigger did not come in time: what was here for it was left out";

/// Takes what a clause saw. What it gives is the occurrence of them all, once they are all here.
pub(super) fn arrive(
    tx: &mut Tx<'_>,
    tenant: &Name,
    definition: &Definition,
    all: &All,
    clause: usize,
    occurrence: Occurrence,
) -> Result<Option<Occurrence>, Error> {
    let id = definition.guid;
    let key = match join_key(all, clause, &occurrence.data) {
        Ok(key) => key,
        Err(why) => {
            problems::note(tx, tenant, id, &why)?;
            return Ok(None);
        }
    };
    give_up_of(tx, tenant, id)?;
    let until =
        tx.now.checked_add(SignedDuration::from_secs(i64::from(all.within_s))).unwrap_or(Timestamp::MAX);
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
    bound(tx, tenant, id, &key)?;
    let waiting = waiting(tx, tenant, id, &key)?;
    let here: BTreeSet<usize> = waiting.iter().map(|arrival| arrival.clause).collect();
    if here.len() < all.of.len() {
        return Ok(None);
    }
    tx.conn
        .prepare_cached(
            "DELETE FROM trigger_arrivals WHERE tenant = ?1 AND definition = ?2 AND join_key = ?3",
        )?
        .execute(params![tenant.as_str(), id.uuid().as_bytes(), key])?;
    Ok(Some(together(all, key, waiting, occurrence.at)))
}

/// What belongs together has the same key; or why it has none.
fn join_key(all: &All, clause: usize, event: &Value) -> Result<String, String> {
    let Some(clause) = all.of.get(clause) else { return Err("there is no such clause any more".to_owned()) };
    let Some(expression) = &clause.key else { return Ok(String::new()) };
    let left_out = |why: &str| format!("something that came for {} was left out: key: {why}", clause.name);
    let key = match expression.evaluate(&[("event", event)]) {
        Ok(Value::String(text)) => text,
        Ok(Value::Number(number)) => number.to_string(),
        Ok(_) => return Err(left_out("it gives neither a text nor a number")),
        Err(error) => return Err(left_out(&error.to_string())),
    };
    if key.len() > MAX_JOIN_KEY {
        return Err(left_out("it is longer than 200 bytes"));
    }
    Ok(key)
}

struct Arrival {
    clause: usize,
    occurrence_key: String,
    data: Value,
    flow: Option<InputFlow>,
}

fn waiting(tx: &Tx<'_>, tenant: &Name, definition: DefinitionId, key: &str) -> Result<Vec<Arrival>, Error> {
    let mut statement = tx.conn.prepare_cached(
        "SELECT clause, occurrence_key, data, label, blob, media_type FROM trigger_arrivals \
         WHERE tenant = ?1 AND definition = ?2 AND join_key = ?3 ORDER BY seq",
    )?;
    let rows = statement.query_map(params![tenant.as_str(), definition.uuid().as_bytes(), key], |row| {
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
    let mut data = Value::Object(data);
    if data.to_string().len() > MAX_DATA {
        // The flows are what matters then; each event stays readable under its id.
        let mut left = Map::new();
        left.insert("key".to_owned(), data["key"].take());
        left.extend(all.of.iter().map(|clause| (clause.name.to_string(), json!({"too_large": true}))));
        data = Value::Object(left);
    }
    Occurrence { key: format!("all:{digest}"), kind: "all", at, data, flows }
}

/// Too much under one key, or for one definition: the oldest makes room.
fn bound(tx: &Tx<'_>, tenant: &Name, id: DefinitionId, key: &str) -> Result<(), Error> {
    const OF_KEY: &str = "FROM trigger_arrivals WHERE tenant = ?1 AND definition = ?2 AND join_key = ?3";
    const IN_ALL: &str = "FROM trigger_arrivals WHERE tenant = ?1 AND definition = ?2 AND ?3 IS NOT NULL";
    let uuid = id.uuid();
    for (of, most) in [(OF_KEY, MAX_WAITING), (IN_ALL, MAX_IN_ALL)] {
        let sql = format!("SELECT count(*) {of}");
        let count: i64 = tx
            .conn
            .prepare_cached(&sql)?
            .query_row(params![tenant.as_str(), uuid.as_bytes(), key], |row| row.get(0))?;
        if count > most {
            let sql = format!("DELETE FROM trigger_arrivals WHERE seq = (SELECT min(seq) {of})");
            tx.conn.prepare_cached(&sql)?.execute(params![tenant.as_str(), uuid.as_bytes(), key])?;
            problems::note(
                tx,
                tenant,
                id,
                "too much waits for the rest of the trigger: the oldest was left out",
            )?;
        }
    }
    Ok(())
}

/// What waited for too long is no partner for what comes now.
fn give_up_of(tx: &Tx<'_>, tenant: &Name, definition: DefinitionId) -> Result<(), Error> {
    let over = tx
        .conn
        .prepare_cached("DELETE FROM trigger_arrivals WHERE tenant = ?1 AND definition = ?2 AND until <= ?3")?
        .execute(params![tenant.as_str(), definition.uuid().as_bytes(), ms(tx.now)])?;
    if over > 0 { problems::note(tx, tenant, definition, NOT_IN_TIME) } else { Ok(()) }
}

/// Takes away what waited for too long, a few at a time.
pub(crate) fn give_up(tx: &mut Tx<'_>) -> Result<(), Error> {
    let sql = "DELETE FROM trigger_arrivals WHERE seq IN (SELECT seq FROM trigger_arrivals WHERE until <= ?1 \
               ORDER BY until LIMIT 500) RETURNING tenant, definition";
    let mut statement = tx.conn.prepare_cached(sql)?;
    let over: BTreeSet<(Name, DefinitionId)> = statement
        .query_map([ms(tx.now)], |row| Ok((name(row, 0)?, from_uuid(row, 1)?)))?
        .collect::<Result<_, _>>()?;
    for (tenant, definition) in over {
        problems::note(tx, &tenant, definition, NOT_IN_TIME)?;
    }
    Ok(())
}

/// When [`give_up`] is next due.
pub(crate) fn next(conn: &rusqlite::Connection) -> Result<Option<Timestamp>, Error> {
    let sql = "SELECT until FROM trigger_arrivals ORDER BY until LIMIT 1";
    Ok(conn.prepare_cached(sql)?.query_row([], |row| time(row, 0)).optional()?)
}
