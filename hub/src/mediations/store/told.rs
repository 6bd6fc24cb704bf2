//! Tells subscribers of runs in the vendor's shapes, in the transaction of the change.
//!
//! A restart is not told: the run is the same, and its next end will be. Neither is a run that an operator or a newer run
//! closed: its failure was told.

use super::{changes::RunChangeKind, definitions, flows, runs::head};
use crate::{
    mediations::{
        ids::{DefinitionId, RunId},
        runs::{Direction, Flow, Message, MessageKind, RunState},
    },
    model::NoticeKind,
    store::{
        Error, Store,
        notices::{self, NewNotice},
        row::time,
        writer::Tx,
    },
};
use jiff::Timestamp;
use passerelle_protocol::Name;
use rusqlite::{Connection, params};
use serde_json::{Value, json};

/// How many of a run's flows are told.
const FLOWS: usize = 100;
/// How many of its newest messages.
const MESSAGES: usize = 10;

/// Tells of a change, if it is one that is told.
pub(super) fn tell(
    tx: &mut Tx<'_>,
    tenant: &Name,
    definition: DefinitionId,
    run: Option<(RunId, RunState)>,
    kind: RunChangeKind,
) -> Result<(), Error> {
    let kinds: &[NoticeKind] = match kind {
        RunChangeKind::Created => &[NoticeKind::MediationCreation],
        RunChangeKind::Succeeded => &[NoticeKind::MediationTerminee, NoticeKind::MediationTermineeOk],
        RunChangeKind::Failed => &[NoticeKind::MediationTerminee, NoticeKind::MediationTermineeErr],
        RunChangeKind::Late => &[NoticeKind::MediationEnRetard],
        RunChangeKind::Restarted
        | RunChangeKind::Ignored
        | RunChangeKind::Superseded
        | RunChangeKind::Skipped => &[],
    };
    if kinds.is_empty() {
        return Ok(());
    }
    let (line, data) = match run {
        Some((run, state)) => (run.uuid(), of_run(tx.conn, tenant, run, state)?),
        None => (definition.uuid(), of_definition(tx.conn, tenant, definition)?),
    };
    for kind in kinds {
        notices::tell(tx, &NewNotice { tenant, kind: *kind, line, data: data.clone() })?;
    }
    Ok(())
}

fn of_run(conn: &Connection, tenant: &Name, run: RunId, state: RunState) -> Result<Value, Error> {
    let (seq, guid, ..) = head(conn, tenant, run)?;
    let sql = "SELECT d.label, d.system, r.created_at FROM mediation_runs r JOIN mediation_definitions d \
               ON d.tenant = r.tenant AND d.guid = r.definition WHERE r.seq = ?1";
    let (label, system, created_at) = conn.prepare_cached(sql)?.query_row([seq], |row| {
        let system: Option<uuid::Uuid> = crate::store::row::opt_uuid(row, 1)?;
        Ok((row.get::<_, String>(0)?, system, time(row, 2)?))
    })?;
    let flows: Vec<Value> = flows::of_run(conn, seq, FLOWS)?.iter().map(flow).collect();
    let messages: Vec<Value> = last_messages(conn, seq, MESSAGES)?.iter().map(message).collect();
    Ok(json!({
        "Definition": {"Guid": guid, "Libelle": label, "StandardGuid": system},
        "Guid": run,
        "DateCreation": created_at,
        "EtatCode": state,
        "EtatLibelle": state.labels().fr,
        "Flux": flows,
        "DerniersMessages": messages,
    }))
}

fn flow(flow: &Flow) -> Value {
    let sens = match flow.direction {
        Direction::In => "Entree",
        Direction::Out => "Sortie",
    };
    json!({"Guid": flow.guid, "Libelle": flow.label, "Sens": sens, "EstTraite": flow.processed})
}

/// A message as the vendor writes it: `Kind` is 0 for information, 1 for an error.
pub(crate) fn message(message: &Message) -> Value {
    let kind = match message.kind {
        MessageKind::Information => 0,
        MessageKind::Error => 1,
    };
    json!({"Date": message.at, "Message": message.text, "Kind": kind})
}

fn of_definition(conn: &Connection, tenant: &Name, guid: DefinitionId) -> Result<Value, Error> {
    let stored = definitions::find(conn, tenant, guid)?;
    let definition = &stored.definition;
    Ok(json!({
        "Definition": {"Guid": guid, "Libelle": definition.label, "StandardGuid": definition.system},
        "EnRetardDepuis": stored.late_since,
        "DernierSucces": stored.succeeded_at,
        "IntervalleMaximum": definition.max_interval_s,
    }))
}

/// The newest messages of a run, oldest first.
fn last_messages(conn: &Connection, run: i64, most: usize) -> Result<Vec<Message>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, at, kind, text FROM mediation_messages INDEXED BY mediation_messages_by_run WHERE run = ?1 \
         ORDER BY seq DESC LIMIT ?2",
    )?;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![run, most], |row| {
        let kind = match row.get_ref(2)?.as_str()? {
            "error" => MessageKind::Error,
            _ => MessageKind::Information,
        };
        Ok(Message { seq: row.get(0)?, at: time(row, 1)?, kind, text: row.get(3)? })
    })?;
    let mut found: Vec<Message> = rows.collect::<Result<_, _>>()?;
    found.reverse();
    Ok(found)
}

impl Store {
    /// The newest messages of each of these runs, by their rows; those of a run oldest first.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub(crate) async fn newest_messages(
        &self,
        runs: Vec<i64>,
        most: usize,
    ) -> Result<Vec<Vec<Message>>, Error> {
        self.read(move |conn| runs.into_iter().map(|run| last_messages(conn, run, most)).collect()).await
    }

    /// Definitions with the time, state and detail of their newest run, by guid.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub(crate) async fn definitions_with_last_run(
        &self,
        tenant: Name,
    ) -> Result<Vec<(definitions::StoredDefinition, Option<LastRun>)>, Error> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = self.definitions(tenant.clone(), after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.definition.guid);
            let (more, wanted) = (page.len() == PAGE, tenant.clone());
            let page = self
                .read(move |conn| {
                    let with = |stored: definitions::StoredDefinition| {
                        let last = last_run(conn, &wanted, stored.definition.guid)?;
                        Ok((stored, last))
                    };
                    page.into_iter().map(with).collect::<Result<Vec<_>, Error>>()
                })
                .await?;
            all.extend(page);
            if !more {
                break;
            }
        }
        Ok(all)
    }
}

/// How many definitions are read at a time.
const PAGE: usize = 500;

/// The newest run of a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LastRun {
    /// When it began.
    pub(crate) created_at: Timestamp,
    /// Where it stands.
    pub(crate) state: RunState,
    /// More words about it.
    pub(crate) detail: Option<String>,
}

fn last_run(conn: &Connection, tenant: &Name, guid: DefinitionId) -> Result<Option<LastRun>, Error> {
    use rusqlite::OptionalExtension as _;
    let sql = "SELECT created_at, state, detail FROM mediation_runs INDEXED BY mediation_runs_by_definition \
               WHERE tenant = ?1 AND definition = ?2 ORDER BY created_at DESC, seq DESC LIMIT 1";
    let read = |row: &rusqlite::Row<'_>| {
        Ok(LastRun {
            created_at: time(row, 0)?,
            state: crate::store::row::parsed(row, 1)?,
            detail: row.get(2)?,
        })
    };
    let key = *guid.uuid().as_bytes();
    Ok(conn.prepare_cached(sql)?.query_row(params![tenant.as_str(), key], read).optional()?)
}
