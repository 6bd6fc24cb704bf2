//! Definitions: created, changed by new versions, enabled, deleted, and late.

use super::changes::{self, RunChangeKind};
use crate::{
    mediations::{
        definition::{
            Definition,
            diff::{self, Difference},
            file::WrittenDefinition,
        },
        ids::DefinitionId,
        trigger::times,
    },
    model::ChangeKind,
    store::{
        Error, Store,
        row::{self, from_uuid, known_tenant, ms, name, opt_time, time, to_json},
        writer::Tx,
    },
};
use jiff::Timestamp;
use passerelle_protocol::Name;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

/// How many definitions a tenant may have.
const MAX_DEFINITIONS: i64 = 20_000;
/// How many a page holds, at most.
const MAX_PAGE: usize = 500;

/// A definition as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredDefinition {
    /// Its tenant.
    pub tenant: Name,
    /// The newest version.
    pub definition: Arc<Definition>,
    /// Its number, from 1.
    pub version: u32,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub changed_at: Timestamp,
    /// Since when it is enabled.
    pub enabled_at: Option<Timestamp>,
    /// When a run of it succeeded last.
    pub succeeded_at: Option<Timestamp>,
    /// Since when it is late.
    pub late_since: Option<Timestamp>,
}

/// What came, or would come, of a definition that was written.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Applied {
    /// Its guid.
    #[schema(value_type = String, format = "uuid")]
    pub guid: DefinitionId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// `created`, `changed` or `unchanged`.
    pub outcome: &'static str,
    /// Its version then.
    pub version: u32,
    /// What changes.
    pub differences: Vec<Difference>,
}

const COLUMNS: &str = "d.tenant, v.body, d.version, d.created_at, d.changed_at, d.enabled_at, d.succeeded_at, \
    d.late_since, d.enabled, d.guid";
const FROM: &str = "mediation_definitions d JOIN mediation_versions v \
    ON v.tenant = d.tenant AND v.guid = d.guid AND v.version = d.version";

fn read(row: &Row<'_>) -> rusqlite::Result<(StoredDefinition, DefinitionId)> {
    let body: Value = row::opt_json(row, 1)?.unwrap_or_default();
    let mut definition = parse(&body)?;
    // Enabling makes no version.
    definition.enabled = row.get(8)?;
    let stored = StoredDefinition {
        tenant: name(row, 0)?,
        definition: Arc::new(definition),
        version: row.get(2)?,
        created_at: time(row, 3)?,
        changed_at: time(row, 4)?,
        enabled_at: opt_time(row, 5)?,
        succeeded_at: opt_time(row, 6)?,
        late_since: opt_time(row, 7)?,
    };
    Ok((stored, from_uuid(row, 9)?))
}

/// A stored body.
pub(crate) fn parse(body: &Value) -> rusqlite::Result<Definition> {
    Definition::of_stored(body).map(|written| written.definition).map_err(|findings| {
        let why = format!("a stored mediation definition cannot be read: {findings}");
        rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, why.into())
    })
}

fn no_definition(guid: DefinitionId) -> Error {
    Error::NotFound(format!("there is no mediation definition {guid}"))
}

pub(crate) fn find(conn: &Connection, tenant: &Name, guid: DefinitionId) -> Result<StoredDefinition, Error> {
    let sql =
        format!("SELECT {COLUMNS} FROM {FROM} WHERE d.tenant = ?1 AND d.guid = ?2 AND d.deleted_at IS NULL");
    let found = conn
        .prepare_cached(&sql)?
        .query_row(params![tenant.as_str(), guid.uuid().as_bytes()], read)
        .optional()?;
    found.map(|(stored, _)| stored).ok_or_else(|| no_definition(guid))
}

/// The version of a definition that a run began with.
pub(crate) fn version(
    conn: &Connection,
    tenant: &Name,
    guid: DefinitionId,
    version: u32,
) -> Result<Definition, Error> {
    let body: Value = conn
        .prepare_cached(
            "SELECT body FROM mediation_versions WHERE tenant = ?1 AND guid = ?2 AND version = ?3",
        )?
        .query_row(params![tenant.as_str(), guid.uuid().as_bytes(), version], |row| {
            Ok(row::opt_json(row, 0)?.unwrap_or_default())
        })?;
    Ok(parse(&body)?)
}

/// What comes of a written definition: its guid, its number, and what changes; refused where it may not be.
fn plan(
    conn: &Connection,
    tenant: &Name,
    written: &WrittenDefinition,
) -> Result<(Definition, Applied), Error> {
    let mut definition = written.definition.clone();
    let by_name = |sql: &str, text: &str| -> Result<Option<DefinitionId>, Error> {
        Ok(conn
            .prepare_cached(sql)?
            .query_row([tenant.as_str(), text], |row| from_uuid(row, 0))
            .optional()?)
    };
    let same_name = by_name(
        "SELECT guid FROM mediation_definitions WHERE tenant = ?1 AND name = ?2 AND deleted_at IS NULL",
        definition.name.as_str(),
    )?;
    definition.guid = written.guid.or(same_name).unwrap_or(definition.guid);
    if same_name.is_some_and(|other| other != definition.guid) {
        let name = &definition.name;
        return Err(Error::Conflict(format!(
            "another mediation definition has the name {name}: choose another"
        )));
    }
    if let Some(flow) = &definition.standard_flow {
        let other = by_name(
            "SELECT guid FROM mediation_definitions WHERE tenant = ?1 AND standard_flow = ?2 AND deleted_at IS NULL",
            flow,
        )?;
        if other.is_some_and(|other| other != definition.guid) {
            let said = format!("standard_flow: another mediation definition is started by {flow} already");
            return Err(Error::Conflict(said));
        }
    }
    let (guid, name) = (definition.guid, definition.name.clone());
    let before = match find(conn, tenant, guid) {
        Ok(before) => Some(before),
        Err(Error::NotFound(_)) => None,
        Err(error) => return Err(error),
    };
    let Some(before) = before else {
        let count: i64 = conn
            .prepare_cached(
                "SELECT count(*) FROM mediation_definitions WHERE tenant = ?1 AND deleted_at IS NULL",
            )?
            .query_row([tenant.as_str()], |row| row.get(0))?;
        if count >= MAX_DEFINITIONS {
            let said =
                format!("tenant {tenant} has {MAX_DEFINITIONS} mediation definitions, as many as it may");
            return Err(Error::Quota(said));
        }
        // One that was deleted goes on counting: its runs keep their versions.
        let last: Option<u32> = conn
            .prepare_cached("SELECT max(version) FROM mediation_versions WHERE tenant = ?1 AND guid = ?2")?
            .query_row(params![tenant.as_str(), guid.uuid().as_bytes()], |row| row.get(0))?;
        let version = last.unwrap_or(0) + 1;
        return Ok((
            definition,
            Applied { guid, name, outcome: "created", version, differences: Vec::new() },
        ));
    };
    if before.definition.system.is_some() {
        keep_system(&before.definition, &definition)?;
    }
    let differences = diff::differences(&before.definition.to_json(), &definition.to_json());
    let (outcome, version) =
        if differences.is_empty() { ("unchanged", before.version) } else { ("changed", before.version + 1) };
    Ok((definition, Applied { guid, name, outcome, version, differences }))
}

/// Of a system mediation the customer decides when it runs and how it is shown, not what it does.
fn keep_system(before: &Definition, after: &Definition) -> Result<(), Error> {
    let fixed = [
        ("system", before.system == after.system),
        ("name", before.name == after.name),
        ("trigger.kind", before.trigger.kind() == after.trigger.kind()),
        ("standard_flow", before.standard_flow == after.standard_flow),
        ("steps", before.steps == after.steps),
        ("transfer", before.transfer == after.transfer),
    ];
    match fixed.iter().find(|(_, same)| !same) {
        Some((key, _)) => Err(Error::Conflict(format!(
            "{key}: mediation {} is a system one, of which this cannot be changed",
            before.name
        ))),
        None => Ok(()),
    }
}

fn put(tx: &mut Tx<'_>, tenant: &Name, written: &WrittenDefinition) -> Result<Applied, Error> {
    let (definition, applied) = plan(tx.conn, tenant, written)?;
    if applied.outcome == "unchanged" {
        return Ok(applied);
    }
    let guid = *definition.guid.uuid().as_bytes();
    tx.conn
        .prepare_cached(
            "INSERT INTO mediation_versions (tenant, guid, version, stored_at, body) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![tenant.as_str(), guid, applied.version, ms(tx.now), to_json(&definition)?])?;
    tx.conn
        .prepare_cached(
            "INSERT INTO mediation_definitions (tenant, guid, version, name, label, enabled, overlap, \
             ignore_old_errors, retention_days, trigger_kind, standard_flow, system, created_at, changed_at, enabled_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?13, ?14) \
             ON CONFLICT (tenant, guid) DO UPDATE SET version = excluded.version, name = excluded.name, \
             label = excluded.label, overlap = excluded.overlap, ignore_old_errors = excluded.ignore_old_errors, \
             retention_days = excluded.retention_days, trigger_kind = excluded.trigger_kind, \
             standard_flow = excluded.standard_flow, system = excluded.system, changed_at = excluded.changed_at, \
             enabled_at = CASE WHEN enabled = 1 AND deleted_at IS NULL AND excluded.enabled = 1 THEN enabled_at \
             ELSE excluded.enabled_at END, enabled = excluded.enabled, deleted_at = NULL, \
             late_since = CASE WHEN excluded.enabled = 1 THEN late_since END",
        )?
        .execute(params![
            tenant.as_str(),
            guid,
            applied.version,
            definition.name.as_str(),
            definition.label,
            definition.enabled,
            row::as_word(&definition.overlap),
            definition.ignore_old_errors,
            definition.retention_days,
            definition.trigger.kind(),
            definition.standard_flow,
            definition.system.map(|system| *system.as_bytes()),
            ms(tx.now),
            definition.enabled.then(|| ms(tx.now)),
        ])?;
    times::watch(tx, tenant, &definition)?;
    tx.effects.changes.push((tenant.clone(), ChangeKind::Definition(definition.guid)));
    Ok(applied)
}

impl Store {
    /// Creates or changes definitions, all or none of them; with `dry_run` only tells what would come of it.
    ///
    /// # Errors
    /// [`Error::Conflict`] for a name or flow that another has, and for what is fixed of a system mediation;
    /// [`Error::NotFound`] for a tenant that does not exist; [`Error::Quota`].
    pub async fn apply_definitions(
        &self,
        tenant: Name,
        written: Vec<WrittenDefinition>,
        dry_run: bool,
    ) -> Result<Vec<Applied>, Error> {
        if dry_run {
            return self
                .read(move |conn| {
                    written.iter().map(|one| plan(conn, &tenant, one).map(|(_, applied)| applied)).collect()
                })
                .await;
        }
        self.write(move |tx| {
            known_tenant(tx.conn, &tenant)?;
            written.iter().map(|one| put(tx, &tenant, one)).collect()
        })
        .await
    }

    /// One definition.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn definition(&self, tenant: Name, guid: DefinitionId) -> Result<StoredDefinition, Error> {
        self.read(move |conn| find(conn, &tenant, guid)).await
    }

    /// The definition of this name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn definition_by_name(&self, tenant: Name, wanted: Name) -> Result<StoredDefinition, Error> {
        self.by("d.name = ?2", tenant, wanted.to_string()).await
    }

    /// The definition that a flow of the vendor's API starts.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn definition_of_flow(&self, tenant: Name, flow: String) -> Result<StoredDefinition, Error> {
        self.by("d.standard_flow = ?2", tenant, flow).await
    }

    async fn by(&self, what: &'static str, tenant: Name, text: String) -> Result<StoredDefinition, Error> {
        self.read(move |conn| {
            let sql = format!(
                "SELECT {COLUMNS} FROM {FROM} WHERE d.tenant = ?1 AND {what} AND d.deleted_at IS NULL"
            );
            let found = conn.prepare_cached(&sql)?.query_row([tenant.as_str(), &text], read).optional()?;
            found
                .map(|(stored, _)| stored)
                .ok_or_else(|| Error::NotFound(format!("there is no mediation definition for {text:?}")))
        })
        .await
    }

    /// The tenant's definitions by their guids, after `after`; at most 500.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn definitions(
        &self,
        tenant: Name,
        after: Option<DefinitionId>,
        limit: usize,
    ) -> Result<Vec<StoredDefinition>, Error> {
        self.read(move |conn| {
            let sql = format!(
                "SELECT {COLUMNS} FROM {FROM} WHERE d.tenant = ?1 AND d.guid > ?2 AND d.deleted_at IS NULL \
                 ORDER BY d.guid LIMIT ?3"
            );
            let after = after.map_or(Vec::new(), |guid| guid.uuid().as_bytes().to_vec());
            let limit = i64::try_from(limit.clamp(1, MAX_PAGE + 1)).unwrap_or(1);
            let mut statement = conn.prepare_cached(&sql)?;
            let rows = statement.query_map(params![tenant.as_str(), after, limit], read)?;
            Ok(rows.map(|row| row.map(|(stored, _)| stored)).collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The enabled definitions of all tenants, in the order of tenant and guid, after `after`; at most 500. What looks for
    /// occurrences begins with these, and then follows [`ChangeKind::Definition`] of [`Store::subscribe`].
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn enabled_definitions(
        &self,
        after: Option<(Name, DefinitionId)>,
    ) -> Result<Vec<StoredDefinition>, Error> {
        self.read(move |conn| {
            let sql = format!(
                "SELECT {COLUMNS} FROM {FROM} WHERE (d.tenant, d.guid) > (?1, ?2) AND d.deleted_at IS NULL \
                 AND d.enabled = 1 ORDER BY d.tenant, d.guid LIMIT {MAX_PAGE}"
            );
            let (tenant, guid) = after.map_or((String::new(), Vec::new()), |(tenant, guid)| {
                (tenant.to_string(), guid.uuid().as_bytes().to_vec())
            });
            let mut statement = conn.prepare_cached(&sql)?;
            let rows = statement.query_map(params![tenant, guid], read)?;
            Ok(rows.map(|row| row.map(|(stored, _)| stored)).collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Enables or disables a definition; runs under way go on. Answers whether that changed anything.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn enable_definition(
        &self,
        tenant: Name,
        guid: DefinitionId,
        enabled: bool,
    ) -> Result<bool, Error> {
        self.write(move |tx| {
            let before = find(tx.conn, &tenant, guid)?;
            if before.definition.enabled == enabled {
                return Ok(false);
            }
            tx.conn
                .prepare_cached(
                    "UPDATE mediation_definitions SET enabled = ?3, enabled_at = ?4, late_since = NULL \
                     WHERE tenant = ?1 AND guid = ?2",
                )?
                .execute(params![
                    tenant.as_str(),
                    guid.uuid().as_bytes(),
                    enabled,
                    enabled.then(|| ms(tx.now))
                ])?;
            times::watch(tx, &tenant, &Definition { enabled, ..Definition::clone(&before.definition) })?;
            tx.effects.changes.push((tenant.clone(), ChangeKind::Definition(guid)));
            Ok(true)
        })
        .await
    }

    /// Deletes a definition; its runs stay as long as they are kept, those under way go on.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] for a system mediation.
    pub async fn delete_definition(&self, tenant: Name, guid: DefinitionId) -> Result<(), Error> {
        self.write(move |tx| {
            let before = find(tx.conn, &tenant, guid)?;
            if before.definition.system.is_some() {
                let name = &before.definition.name;
                return Err(Error::Conflict(format!(
                    "mediation {name} is a system one and cannot be deleted: disable it"
                )));
            }
            tx.conn
                .prepare_cached(
                    "UPDATE mediation_definitions SET deleted_at = ?3, enabled = 0, enabled_at = NULL, \
                     late_since = NULL WHERE tenant = ?1 AND guid = ?2",
                )?
                .execute(params![tenant.as_str(), guid.uuid().as_bytes(), ms(tx.now)])?;
            times::forget(tx, &tenant, guid)?;
            tx.conn
                .prepare_cached("DELETE FROM mediation_watermarks WHERE tenant = ?1 AND definition = ?2")?
                .execute(params![tenant.as_str(), guid.uuid().as_bytes()])?;
            // One that never ran leaves nothing behind.
            for sql in [
                "DELETE FROM mediation_versions WHERE tenant = ?1 AND guid = ?2 AND NOT EXISTS \
                 (SELECT 1 FROM mediation_runs WHERE tenant = ?1 AND definition = ?2)",
                "DELETE FROM mediation_definitions WHERE tenant = ?1 AND guid = ?2 AND NOT EXISTS \
                 (SELECT 1 FROM mediation_runs WHERE tenant = ?1 AND definition = ?2)",
            ] {
                tx.conn.prepare_cached(sql)?.execute(params![tenant.as_str(), guid.uuid().as_bytes()])?;
            }
            tx.effects.changes.push((tenant.clone(), ChangeKind::Definition(guid)));
            Ok(())
        })
        .await
    }

    /// Notes that no run of an enabled definition succeeded by `expected`; once, until one succeeds. Answers whether that is
    /// new.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn mark_late(
        &self,
        tenant: Name,
        guid: DefinitionId,
        expected: Timestamp,
    ) -> Result<bool, Error> {
        self.write(move |tx| mark_late_in(tx, &tenant, guid, expected)).await
    }
}

/// [`Store::mark_late`] in a transaction that does more.
pub(crate) fn mark_late_in(
    tx: &mut Tx<'_>,
    tenant: &Name,
    guid: DefinitionId,
    expected: Timestamp,
) -> Result<bool, Error> {
    let before = find(tx.conn, tenant, guid)?;
    // One has succeeded, or it was disabled, since somebody looked.
    let overtaken = before.succeeded_at.is_some_and(|at| at >= expected) || !before.definition.enabled;
    if before.late_since.is_some() || overtaken {
        return Ok(false);
    }
    tx.conn
        .prepare_cached("UPDATE mediation_definitions SET late_since = ?3 WHERE tenant = ?1 AND guid = ?2")?
        .execute(params![tenant.as_str(), guid.uuid().as_bytes(), ms(expected)])?;
    changes::record(tx, tenant, guid, None, RunChangeKind::Late)?;
    Ok(true)
}
