//! What operators do with runs: restart, ignore, replace a file.

use super::{
    changes::{self, RunChangeKind},
    definitions, flows, jobs,
    queue::OpenRun,
    runs::{count, head, say},
};
use crate::{
    mediations::{
        definition::{Definition, Overlap},
        engine::inputs_of,
        ids::{FlowId, RunId},
        runs::{Flow, MessageKind, RunState},
    },
    store::{Error, Store, row::ms, writer::Tx},
};
use passerelle_protocol::{BlobId, Name};
use rusqlite::params;
use std::{collections::BTreeSet, ops::RangeInclusive};

impl Store {
    /// Goes on with a failed run after the last unit that is finished. Its guid stays; what took effect is not done again.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] unless it failed, and while nobody knows what one of its jobs did.
    pub async fn restart_run(&self, tenant: Name, run: RunId) -> Result<(), Error> {
        self.write(move |tx| {
            let (seq, guid, version, state, position) = head(tx.conn, &tenant, run)?;
            if !state.is_error() {
                return Err(forbidden(run, state, "restarted"));
            }
            let definition = definitions::version(tx.conn, &tenant, guid, version)?;
            if let Some(unit) = definition.unit_name(position) {
                jobs::again(tx, &tenant, seq, unit.as_str(), state == RunState::Unknown)?;
            }
            tx.shared.shares.open_run(tx.conn, &tenant)?;
            tx.conn
                .prepare_cached(
                    "UPDATE mediation_runs SET state = 'queued', finished_at = NULL, delete_after = NULL, detail = NULL, \
                     restarts = restarts + 1, tries = 0 WHERE seq = ?1",
                )?
                .execute([seq])?;
            say(tx, seq, MessageKind::Information, "restarted by an operator")?;
            changes::record(tx, &tenant, guid, Some((run, RunState::Queued)), RunChangeKind::Restarted)?;
            let parallel = definition.overlap == Overlap::Parallel;
            tx.effects.runs.push(OpenRun { seq, tenant: tenant.clone(), definition: guid, parallel });
            Ok(())
        })
        .await
    }

    /// Closes a failed run and clears its error. One that is ignored already stays so.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] unless it failed.
    pub async fn ignore_run(&self, tenant: Name, run: RunId) -> Result<(), Error> {
        self.write(move |tx| {
            let (seq, guid, _, state, _) = head(tx.conn, &tenant, run)?;
            if state == RunState::Ignored {
                return Ok(());
            }
            if !state.is_error() {
                return Err(forbidden(run, state, "ignored"));
            }
            jobs::let_go(tx, seq)?;
            tx.conn
                .prepare_cached("UPDATE mediation_runs SET state = 'ignored' WHERE seq = ?1")?
                .execute([seq])?;
            say(tx, seq, MessageKind::Information, "ignored by an operator")?;
            changes::record(tx, &tenant, guid, Some((run, RunState::Ignored)), RunChangeKind::Ignored)
        })
        .await
    }

    /// Puts the content of a blob into the place of a flow's. The units that read the flow will be done again when the run is
    /// restarted, and all behind them, unless one of these transferred something.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] unless the run failed, or if what read the flow took effect already.
    pub async fn replace_flow(
        &self,
        tenant: Name,
        run: RunId,
        flow: FlowId,
        blob: BlobId,
    ) -> Result<(), Error> {
        self.write(move |tx| {
            let (seq, guid, version, state, position) = head(tx.conn, &tenant, run)?;
            if !state.is_error() {
                return Err(forbidden(run, state, "given another file"));
            }
            let definition = definitions::version(tx.conn, &tenant, guid, version)?;
            let all = flows::of_run(tx.conn, seq, usize::MAX)?;
            let found = all.iter().find(|known| known.guid == flow);
            let found =
                found.ok_or_else(|| Error::NotFound(format!("mediation run {run} has no flow {flow}")))?;
            let last = position.min(definition.units().saturating_sub(1));
            let reads = |unit: &usize| inputs_of(&definition, *unit, &all).iter().any(|read| read.guid == flow);
            if let Some(from) = (0..=last).find(reads) {
                jobs::let_go(tx, seq)?;
                begin_again(tx, seq, from..=last, flow, &all, &definition)?;
            }
            let info = flows::blob(tx.conn, &tenant, blob)?;
            tx.conn
                .prepare_cached(
                    "UPDATE mediation_flows SET blob = ?2, size = ?3, sha256 = ?4, replaced_at = ?5, processed = 0, \
                     media_type = coalesce(?6, media_type) WHERE guid = ?1",
                )?
                .execute(params![
                    flow.uuid().as_bytes(),
                    blob.uuid().as_bytes(),
                    i64::try_from(info.size).unwrap_or(i64::MAX),
                    info.sha256.bytes(),
                    ms(tx.now),
                    info.media_type
                ])?;
            let said = format!("an operator replaced the content of flow {}", found.label);
            say(tx, seq, MessageKind::Information, &said)
        })
        .await
    }
}

/// Takes back what units gave, and of those that read the flow, or what was made of it, their jobs too. The others find theirs
/// again when they are done again.
fn begin_again(
    tx: &mut Tx<'_>,
    seq: i64,
    units: RangeInclusive<usize>,
    flow: FlowId,
    all: &[Flow],
    definition: &Definition,
) -> Result<(), Error> {
    let from = *units.start();
    let mut stale = BTreeSet::from([flow]);
    for unit in units {
        let Some(name) = definition.unit_name(unit).map(Name::as_str) else { continue };
        if inputs_of(definition, unit, all).iter().any(|read| stale.contains(&read.guid)) {
            if let Some(job) = jobs::has_effect(tx.conn, seq, name)? {
                return Err(Error::Conflict(format!(
                    "{name}: job {job} may have brought the old file already: start a new run, or ignore this one"
                )));
            }
            stale.extend(all.iter().filter(|made| made.source == name).map(|made| made.guid));
            for table in ["notes", "jobs"] {
                tx.conn
                    .prepare_cached(&format!("DELETE FROM mediation_{table} WHERE run = ?1 AND unit = ?2"))?
                    .execute(params![seq, name])?;
            }
        }
        for sql in [
            "DELETE FROM mediation_flows WHERE run = ?1 AND source = ?2",
            "DELETE FROM mediation_results WHERE run = ?1 AND unit = ?2",
        ] {
            tx.conn.prepare_cached(sql)?.execute(params![seq, name])?;
        }
    }
    let last = from.checked_sub(1).and_then(|last| definition.unit_name(last)).map(Name::as_str);
    tx.conn
        .prepare_cached(
            "UPDATE mediation_runs SET position = ?2, last_step = ?3, watermarks = NULL WHERE seq = ?1",
        )?
        .execute(params![seq, count(from), last])?;
    Ok(())
}

fn forbidden(run: RunId, state: RunState, what: &str) -> Error {
    Error::Conflict(format!(
        "mediation run {run} is {} and cannot be {what}: only one that is failed or unknown can be",
        state.as_str()
    ))
}
