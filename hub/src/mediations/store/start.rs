//! The one door through which runs begin.

use super::{
    changes::{self, RunChangeKind},
    flows,
    queue::OpenRun,
    runs::say,
};
use crate::{
    mediations::{
        ids::{DefinitionId, RunId},
        runs::{Direction, MessageKind, RunState},
        steps::FlowContent,
        trigger::{self, InputFlow, Occurrence},
    },
    store::{
        Error, Store,
        row::{self, from_uuid, ms, to_json},
        writer::Tx,
    },
};
use passerelle_protocol::Name;
use rusqlite::{OptionalExtension as _, params};

/// What came of an occurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// A run began, or waits for its turn.
    New(RunId),
    /// Its run began before.
    Known(RunId),
    /// It was noted that none begins: an earlier one is under way, and the definition says to skip.
    Skipped(RunId),
    /// The definition is disabled: nothing was noted.
    Disabled,
}

impl Started {
    /// The run, if there is one.
    #[must_use]
    pub fn run(self) -> Option<RunId> {
        match self {
            Self::New(run) | Self::Known(run) | Self::Skipped(run) => Some(run),
            Self::Disabled => None,
        }
    }
}

impl Store {
    /// Begins a run of a definition from an occurrence, once for each key of an occurrence.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a definition or blob that the tenant does not have; [`Error::BadRequest`] for an occurrence
    /// beyond its bounds; [`Error::Quota`].
    pub async fn start_run(
        &self,
        tenant: Name,
        definition: DefinitionId,
        occurrence: Occurrence,
    ) -> Result<Started, Error> {
        self.write(move |tx| start_in(tx, &tenant, definition, &occurrence)).await
    }
}

/// The same in a transaction that does more: the event that is stored in it has its run, or neither is there.
pub(crate) fn start_in(
    tx: &mut Tx<'_>,
    tenant: &Name,
    definition: DefinitionId,
    occurrence: &Occurrence,
) -> Result<Started, Error> {
    check(occurrence)?;
    let key = *definition.uuid().as_bytes();
    let found: Option<(u32, bool, String, bool, u8)> = tx
        .conn
        .prepare_cached(
            "SELECT version, enabled, overlap, ignore_old_errors, retention_days FROM mediation_definitions \
             WHERE tenant = ?1 AND guid = ?2 AND deleted_at IS NULL",
        )?
        .query_row(params![tenant.as_str(), key], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        })
        .optional()?;
    let Some((version, enabled, overlap, ignore_old_errors, retention_days)) = found else {
        return Err(Error::NotFound(format!("there is no mediation definition {definition}")));
    };
    let known: Option<RunId> = tx
        .conn
        .prepare_cached(
            "SELECT guid FROM mediation_runs WHERE tenant = ?1 AND definition = ?2 AND occurrence = ?3",
        )?
        .query_row(params![tenant.as_str(), key, occurrence.key], |row| from_uuid(row, 0))
        .optional()?;
    if let Some(known) = known {
        return Ok(Started::Known(known));
    }
    if !enabled {
        return Ok(Started::Disabled);
    }
    let under_way = overlap == "skip"
        && tx
            .conn
            .prepare_cached(
                "SELECT 1 FROM mediation_runs INDEXED BY mediation_runs_open \
                 WHERE tenant = ?1 AND definition = ?2 AND finished_at IS NULL",
            )?
            .exists(params![tenant.as_str(), key])?;
    let state = if under_way { RunState::Skipped } else { RunState::Queued };
    if !under_way {
        tx.shared.shares.open_run(tx.conn, tenant)?;
    }
    let run = RunId::make();
    let finished = under_way.then(|| ms(tx.now));
    tx.conn
        .prepare_cached(
            "INSERT INTO mediation_runs (guid, tenant, definition, version, occurrence, kind, occurred_at, created_at, \
             finished_at, delete_after, state, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            run.uuid().as_bytes(),
            tenant.as_str(),
            key,
            version,
            occurrence.key,
            occurrence.kind,
            ms(occurrence.at),
            ms(tx.now),
            finished,
            finished.map(|at| at + super::runs::kept_ms(retention_days)),
            state.as_str(),
            to_json(&occurrence.data)?,
        ])?;
    let seq = tx.conn.last_insert_rowid();
    if under_way {
        changes::record(tx, tenant, definition, Some((run, state)), RunChangeKind::Skipped)?;
        return Ok(Started::Skipped(run));
    }
    for InputFlow { label, blob, media_type } in &occurrence.flows {
        let info = flows::blob(tx.conn, tenant, *blob)?;
        let media_type =
            media_type.clone().or(info.media_type.clone()).unwrap_or_else(row::default_media_type);
        let flow = crate::mediations::steps::NewFlow {
            label: label.clone(),
            media_type,
            direction: Direction::In,
            content: FlowContent::Blob(info),
        };
        flows::add(tx, tenant, seq, "trigger", &flow)?;
    }
    changes::record(tx, tenant, definition, Some((run, state)), RunChangeKind::Created)?;
    if ignore_old_errors {
        supersede(tx, tenant, definition, seq)?;
    }
    let parallel = overlap == "parallel";
    tx.effects.runs.push(OpenRun { seq, tenant: tenant.clone(), definition, parallel });
    Ok(Started::New(run))
}

/// Closes the failed runs of a definition that are older than `newer`. One whose effect is unknown stays: somebody has to
/// find out.
fn supersede(tx: &mut Tx<'_>, tenant: &Name, definition: DefinitionId, newer: i64) -> Result<(), Error> {
    let failed: Vec<(i64, RunId)> = {
        let mut statement = tx.conn.prepare_cached(
            "SELECT seq, guid FROM mediation_runs INDEXED BY mediation_runs_by_state \
             WHERE tenant = ?1 AND state = 'failed' AND state <> 'succeeded' AND definition = ?2 AND seq < ?3",
        )?;
        let rows = statement
            .query_map(params![tenant.as_str(), definition.uuid().as_bytes(), newer], |row| {
                Ok((row.get(0)?, from_uuid(row, 1)?))
            })?;
        rows.collect::<Result<_, _>>()?
    };
    for (seq, run) in failed {
        super::jobs::let_go(tx, seq)?;
        tx.conn
            .prepare_cached("UPDATE mediation_runs SET state = 'superseded' WHERE seq = ?1")?
            .execute([seq])?;
        say(tx, seq, MessageKind::Information, "closed because of a newer run of this mediation")?;
        let state = RunState::Superseded;
        changes::record(tx, tenant, definition, Some((run, state)), RunChangeKind::Superseded)?;
    }
    Ok(())
}

fn check(occurrence: &Occurrence) -> Result<(), Error> {
    let key = &occurrence.key;
    if key.is_empty() || key.len() > trigger::MAX_KEY || key.chars().any(char::is_control) {
        return Err(Error::BadRequest(format!(
            "key: must be 1 to {} characters without control characters",
            trigger::MAX_KEY
        )));
    }
    if occurrence.flows.len() > trigger::MAX_FLOWS {
        return Err(Error::BadRequest(format!("flows: at most {}", trigger::MAX_FLOWS)));
    }
    if to_json(&occurrence.data)?.len() > trigger::MAX_DATA {
        return Err(Error::TooLarge(format!("data: at most {} bytes as JSON", trigger::MAX_DATA)));
    }
    Ok(())
}
