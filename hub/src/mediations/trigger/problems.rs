//! What keeps a trigger from starting runs, so that an operator sees it with the definition: a condition that could not be
//! judged, a file whose partner did not come, a URL that nobody could ask for. The last one of each definition is kept.

use crate::{
    mediations::DefinitionId,
    store::{
        Error, Store,
        row::{ms, size, time},
        writer::Tx,
    },
};
use jiff::Timestamp;
use passerelle_protocol::Name;
use rusqlite::{OptionalExtension as _, params};
use serde::Serialize;

/// What kept a trigger from starting a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct TriggerProblem {
    /// When it was seen last.
    #[schema(value_type = String, format = "date-time")]
    pub at: Timestamp,
    /// In words.
    pub message: String,
    /// How often since the definition was changed or its trigger worked again.
    pub times: u64,
}

/// Notes one.
pub(super) fn note(tx: &Tx<'_>, tenant: &Name, definition: DefinitionId, message: &str) -> Result<(), Error> {
    let known = tx
        .conn
        .prepare_cached(
            "SELECT 1 FROM trigger_problems WHERE tenant = ?1 AND definition = ?2 AND message = ?3",
        )?
        .exists(params![tenant.as_str(), definition.uuid().as_bytes(), message])?;
    if !known {
        tracing::warn!(%definition, message, "A trigger could not start a run");
    }
    tx.conn
        .prepare_cached(
            "INSERT INTO trigger_problems (tenant, definition, at, message, times) VALUES (?1, ?2, ?3, ?4, 1) \
             ON CONFLICT (tenant, definition) DO UPDATE SET at = excluded.at, message = excluded.message, times = times + 1",
        )?
        .execute(params![tenant.as_str(), definition.uuid().as_bytes(), ms(tx.now), message])?;
    Ok(())
}

/// Forgets it.
pub(super) fn clear(tx: &Tx<'_>, tenant: &Name, definition: DefinitionId) -> Result<(), Error> {
    tx.conn
        .prepare_cached("DELETE FROM trigger_problems WHERE tenant = ?1 AND definition = ?2")?
        .execute(params![tenant.as_str(), definition.uuid().as_bytes()])?;
    Ok(())
}

impl Store {
    /// What kept a definition's trigger from starting a run last.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn trigger_problem(
        &self,
        tenant: Name,
        definition: DefinitionId,
    ) -> Result<Option<TriggerProblem>, Error> {
        self.read(move |conn| {
            let sql = "SELECT at, message, times FROM trigger_problems WHERE tenant = ?1 AND definition = ?2";
            let mut statement = conn.prepare_cached(sql)?;
            let found = statement.query_row(params![tenant.as_str(), definition.uuid().as_bytes()], |row| {
                Ok(TriggerProblem { at: time(row, 0)?, message: row.get(1)?, times: size(row, 2)? })
            });
            Ok(found.optional()?)
        })
        .await
    }
}
