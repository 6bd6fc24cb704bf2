//! A run on its way: begun, its units finished one after the other, ended. Each is one transaction.

use super::{
    changes::{self, RunChangeKind},
    definitions, flows,
    queue::OpenRun,
};
use crate::{
    mediations::{
        definition::Definition,
        ids::{DefinitionId, FlowId, RunId},
        runs::{Flow, MAX_MESSAGE, MAX_MESSAGES, MAX_WATERMARKS, MessageKind, OccurrenceView, Run, RunState},
        steps::StepDone,
    },
    store::{
        Error, Store,
        row::{self, from_uuid, ms, name, parsed, time, to_json},
        writer::Tx,
    },
};
use passerelle_protocol::Name;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};

/// How long a run is kept, in milliseconds.
pub(super) fn kept_ms(days: u8) -> i64 {
    i64::from(days) * 24 * 3600 * 1000
}

/// What the engine knows of versions, so that a run need not read its definition again.
pub(crate) type Versions = Arc<dyn Fn(DefinitionId, u32) -> Option<Arc<Definition>> + Send + Sync>;

const RUN: &str = "seq, guid, tenant, definition, version, state, position, restarts, created_at, kind, occurrence, \
    occurred_at, data, watermarks, tries";

/// How many units are finished: definitions have few.
pub(super) fn count(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

fn position(row: &Row<'_>, column: usize) -> rusqlite::Result<usize> {
    Ok(usize::try_from(row.get::<_, u32>(column)?).unwrap_or(usize::MAX))
}

struct Read {
    run: Run,
    definition: DefinitionId,
}

fn read(row: &Row<'_>) -> rusqlite::Result<Read> {
    let tenant = name(row, 2)?;
    let run = Run {
        seq: row.get(0)?,
        guid: from_uuid(row, 1)?,
        definition: Arc::new(Definition::unread(tenant.clone())),
        tenant,
        version: row.get(4)?,
        state: parsed(row, 5)?,
        position: position(row, 6)?,
        restarts: row.get(7)?,
        created_at: time(row, 8)?,
        occurrence: OccurrenceView {
            kind: row.get(9)?,
            key: row.get(10)?,
            at: time(row, 11)?,
            data: row::opt_json(row, 12)?.unwrap_or_default(),
        },
        flows: Vec::new(),
        results: Map::new(),
        watermarks: row::opt_json(row, 13)?.unwrap_or_default(),
        tries: row.get(14)?,
    };
    Ok(Read { run, definition: from_uuid(row, 3)? })
}

/// Writes a line into a run's log; the oldest go where there are too many.
pub(super) fn say(tx: &Tx<'_>, run: i64, kind: MessageKind, text: &str) -> Result<(), Error> {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE).collect();
    let seq = tx
        .conn
        .prepare_cached("INSERT INTO mediation_messages (run, at, kind, text) VALUES (?1, ?2, ?3, ?4)")?
        .insert(params![run, ms(tx.now), kind.as_str(), text])?;
    if seq % 100 == 0 {
        let limit = i64::try_from(MAX_MESSAGES).unwrap_or(i64::MAX);
        tx.conn
            .prepare_cached(
                "DELETE FROM mediation_messages WHERE run = ?1 AND seq <= (SELECT seq FROM mediation_messages \
                 WHERE run = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
            )?
            .execute(params![run, limit])?;
    }
    Ok(())
}

fn watermarks(
    conn: &Connection,
    tenant: &Name,
    definition: DefinitionId,
) -> Result<BTreeMap<String, Value>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT name, value FROM mediation_watermarks WHERE tenant = ?1 AND definition = ?2",
    )?;
    let rows = statement.query_map(params![tenant.as_str(), definition.uuid().as_bytes()], |row| {
        Ok((row.get(0)?, row::opt_json(row, 1)?.unwrap_or_default()))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn results(conn: &Connection, run: i64) -> Result<Map<String, Value>, Error> {
    let mut statement = conn.prepare_cached("SELECT unit, result FROM mediation_results WHERE run = ?1")?;
    let rows = statement
        .query_map([run], |row| Ok((row.get::<_, String>(0)?, row::opt_json(row, 1)?.unwrap_or_default())))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// What a unit gave, and what becomes of the run.
pub(crate) struct Finished {
    pub(crate) run: Arc<Run>,
    pub(crate) unit: Name,
    pub(crate) read: Vec<FlowId>,
    pub(crate) done: StepDone,
}

/// What the engine goes on with.
pub(crate) enum Next {
    /// The run with what the unit gave.
    Unit(Box<Run>),
    /// It has come to its end.
    Over,
}

impl Store {
    /// The runs of all tenants that have not come to their end, after the row `after`.
    pub(crate) async fn open_runs(&self, after: i64, limit: usize) -> Result<Vec<OpenRun>, Error> {
        self.read(move |conn| {
            let sql = "SELECT r.seq, r.tenant, r.definition, d.overlap = 'parallel' FROM mediation_runs r \
                       JOIN mediation_definitions d ON d.tenant = r.tenant AND d.guid = r.definition \
                       WHERE r.finished_at IS NULL AND r.seq > ?1 ORDER BY r.seq LIMIT ?2";
            let mut statement = conn.prepare_cached(sql)?;
            let rows =
                statement.query_map(params![after, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
                    Ok(OpenRun {
                        seq: row.get(0)?,
                        tenant: name(row, 1)?,
                        definition: from_uuid(row, 2)?,
                        parallel: row.get(3)?,
                    })
                })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Begins with a run, or goes on with it where a hub left it: nothing if it has come to its end.
    pub(crate) async fn begin_run(&self, seq: i64, known: Versions) -> Result<Option<Run>, Error> {
        self.write(move |tx| {
            let sql = format!(
                "UPDATE mediation_runs SET state = 'running', tries = tries + 1, \
                 started_at = coalesce(started_at, ?2) WHERE seq = ?1 AND finished_at IS NULL RETURNING {RUN}"
            );
            let found = tx.conn.prepare_cached(&sql)?.query_row(params![seq, ms(tx.now)], read).optional()?;
            let Some(Read { mut run, definition }) = found else { return Ok(None) };
            run.definition = match known(definition, run.version) {
                Some(known) => known,
                None => Arc::new(definitions::version(tx.conn, &run.tenant, definition, run.version)?),
            };
            run.flows = flows::of_run(tx.conn, seq, usize::MAX)?;
            if run.position > 0 {
                run.results = results(tx.conn, seq)?;
            }
            let own = std::mem::take(&mut run.watermarks);
            run.watermarks = watermarks(tx.conn, &run.tenant, definition)?;
            run.watermarks.extend(own);
            run.watermarks.retain(|_, value| !value.is_null());
            Ok(Some(run))
        })
        .await
    }

    /// Notes that a unit is finished, with all that it gave; with the last one the run has succeeded.
    pub(crate) async fn finish_unit(&self, finished: Finished) -> Result<Next, Error> {
        self.write(move |tx| finish_unit(tx, finished)).await
    }

    /// Ends a run that cannot go on.
    pub(crate) async fn fail_run(&self, run: Arc<Run>, unknown: bool, why: String) -> Result<(), Error> {
        self.write(move |tx| {
            let state = if unknown { RunState::Unknown } else { RunState::Failed };
            if end(tx, &run, state, Some(&why))? {
                say(tx, run.seq, MessageKind::Error, &why)?;
                let changed = Some((run.guid, state));
                changes::record(tx, &run.tenant, run.definition.guid, changed, RunChangeKind::Failed)?;
            }
            Ok(())
        })
        .await
    }

    /// Adds a line to a run's log.
    pub(crate) async fn say_of_run(&self, run: i64, kind: MessageKind, text: String) -> Result<(), Error> {
        self.write(move |tx| say(tx, run, kind, &text)).await
    }
}

fn end(tx: &Tx<'_>, run: &Run, state: RunState, detail: Option<&str>) -> Result<bool, Error> {
    let detail: Option<String> = detail.map(|detail| detail.chars().take(MAX_MESSAGE).collect());
    let changed = tx
        .conn
        .prepare_cached(
            "UPDATE mediation_runs SET state = ?2, detail = ?3, finished_at = ?4, delete_after = ?5 \
             WHERE seq = ?1 AND finished_at IS NULL",
        )?
        .execute(params![
            run.seq,
            state.as_str(),
            detail,
            ms(tx.now),
            ms(tx.now) + kept_ms(run.definition.retention_days)
        ])?;
    Ok(changed == 1)
}

fn finish_unit(tx: &mut Tx<'_>, finished: Finished) -> Result<Next, Error> {
    let Finished { run, unit, read, done } = finished;
    let seq = run.seq;
    let position = run.position + 1;
    let over = position >= run.definition.units();
    let mut set: BTreeMap<String, Value> = tx
        .conn
        .prepare_cached("SELECT watermarks FROM mediation_runs WHERE seq = ?1")?
        .query_row([seq], |row| row::opt_json(row, 0))?
        .unwrap_or_default();
    set.extend(done.watermarks);
    if set.len() > MAX_WATERMARKS {
        return Err(Error::BadRequest(format!("a mediation has at most {MAX_WATERMARKS} watermarks")));
    }
    let marks = if set.is_empty() { None } else { Some(to_json(&set)?) };
    let went_on = tx
        .conn
        .prepare_cached(
            "UPDATE mediation_runs SET position = ?3, last_step = ?4, tries = 1, watermarks = ?5 \
             WHERE seq = ?1 AND position = ?2 AND finished_at IS NULL",
        )?
        .execute(params![seq, count(run.position), count(position), unit.as_str(), marks])?;
    // Taken back meanwhile.
    if went_on == 0 {
        return Ok(Next::Over);
    }
    let mut flows: Vec<Flow> = Vec::new();
    for flow in &done.flows {
        flows.push(flows::add(tx, &run.tenant, seq, unit.as_str(), flow)?);
    }
    flows::processed(tx, &read)?;
    for (kind, text) in &done.messages {
        say(tx, seq, *kind, &format!("{unit}: {text}"))?;
    }
    if let Some(result) = done.result.as_ref().filter(|result| !result.is_null()) {
        tx.conn
            .prepare_cached(
                "INSERT OR REPLACE INTO mediation_results (run, unit, result) VALUES (?1, ?2, ?3)",
            )?
            .execute(params![seq, unit.as_str(), to_json(result)?])?;
    }
    if over {
        succeed(tx, &run, &set)?;
        return Ok(Next::Over);
    }
    let mut next = Arc::unwrap_or_clone(run);
    next.position = position;
    next.tries = 1;
    for flow in &mut next.flows {
        flow.processed |= read.contains(&flow.guid);
    }
    next.flows.append(&mut flows);
    if let Some(result) = done.result {
        next.results.insert(unit.to_string(), result);
    }
    next.watermarks.extend(set);
    next.watermarks.retain(|_, value| !value.is_null());
    Ok(Next::Unit(Box::new(next)))
}

/// The end that all want: what the run set becomes the definition's, and it is late no more.
fn succeed(tx: &mut Tx<'_>, run: &Run, set: &BTreeMap<String, Value>) -> Result<(), Error> {
    end(tx, run, RunState::Succeeded, None)?;
    let guid = run.definition.guid;
    let key = *guid.uuid().as_bytes();
    for (mark, value) in set {
        if value.is_null() {
            tx.conn
                .prepare_cached(
                    "DELETE FROM mediation_watermarks WHERE tenant = ?1 AND definition = ?2 AND name = ?3",
                )?
                .execute(params![run.tenant.as_str(), key, mark])?;
        } else {
            tx.conn
                .prepare_cached(
                    "INSERT INTO mediation_watermarks (tenant, definition, name, value, run, changed_at) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (tenant, definition, name) DO UPDATE SET \
                     value = excluded.value, run = excluded.run, changed_at = excluded.changed_at",
                )?
                .execute(params![
                    run.tenant.as_str(),
                    key,
                    mark,
                    to_json(value)?,
                    run.guid.uuid().as_bytes(),
                    ms(tx.now)
                ])?;
        }
    }
    tx.conn
        .prepare_cached(
            "UPDATE mediation_definitions SET succeeded_at = ?3, late_since = NULL WHERE tenant = ?1 AND guid = ?2",
        )?
        .execute(params![run.tenant.as_str(), key, ms(tx.now)])?;
    let state = Some((run.guid, RunState::Succeeded));
    changes::record(tx, &run.tenant, guid, state, RunChangeKind::Succeeded)
}

/// Ends a run that has nothing to do.
pub(crate) async fn succeed_at_once(store: &Store, run: Arc<Run>) -> Result<(), Error> {
    store.write(move |tx| succeed(tx, &run, &BTreeMap::new())).await
}

/// The row, definition and state of a tenant's run.
pub(super) fn head(
    conn: &Connection,
    tenant: &Name,
    run: RunId,
) -> Result<(i64, DefinitionId, u32, RunState, usize), Error> {
    let found = conn
        .prepare_cached(
            "SELECT seq, definition, version, state, position FROM mediation_runs WHERE guid = ?1 AND tenant = ?2",
        )?
        .query_row(params![run.uuid().as_bytes(), tenant.as_str()], |row| {
            Ok((row.get(0)?, from_uuid(row, 1)?, row.get(2)?, parsed(row, 3)?, position(row, 4)?))
        })
        .optional()?;
    found.ok_or_else(|| Error::NotFound(format!("there is no mediation run {run}")))
}
