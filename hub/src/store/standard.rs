//! Requests of the vendor's API to fetch a file and run the definition that is bound to its flow. A request is stored before
//! it is answered, and its run begins in the transaction that settles it.

use super::{
    Error, Store,
    row::{from_uuid, ms, name, opt_uuid, time},
};
use crate::{
    clock,
    mediations::{DefinitionId, InputFlow, Occurrence, RunId, Started, store::start_in},
};
use jiff::Timestamp;
use passerelle_protocol::Name;
use rusqlite::{OptionalExtension as _, Row, params};
use serde_json::json;
use uuid::Uuid;

/// How many requests of a tenant may wait for their file.
const MAX_WAITING: i64 = 1000;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandardRequest {
    /// Its guid, with which its client asks for it.
    pub guid: Uuid,
    /// Its tenant.
    pub tenant: Name,
    /// The definition that it runs.
    pub definition: DefinitionId,
    /// The flow.
    pub flow: String,
    /// Where the file is.
    pub url: String,
    /// When it came.
    pub requested_at: Timestamp,
    /// How often the file was asked for in vain.
    pub attempts: u32,
    /// Whether the file is still asked for.
    pub waiting: bool,
    /// The run that it started.
    pub run: Option<RunId>,
    /// Why the last attempt failed.
    pub failure: Option<String>,
}

const COLUMNS: &str =
    "guid, tenant, definition, flow, url, requested_at, attempts, next_at IS NOT NULL, run, failure";

fn read(row: &Row<'_>) -> rusqlite::Result<StandardRequest> {
    Ok(StandardRequest {
        guid: from_uuid(row, 0)?,
        tenant: name(row, 1)?,
        definition: from_uuid(row, 2)?,
        flow: row.get(3)?,
        url: row.get(4)?,
        requested_at: time(row, 5)?,
        attempts: row.get(6)?,
        waiting: row.get(7)?,
        run: opt_uuid(row, 8)?,
        failure: row.get(9)?,
    })
}

impl Store {
    /// Notes a request; the same one again, while its file is not here yet, is the same request.
    ///
    /// # Errors
    /// [`Error::Quota`].
    pub async fn request_standard(
        &self,
        tenant: Name,
        definition: DefinitionId,
        flow: String,
        url: String,
    ) -> Result<Uuid, Error> {
        let guid = clock::new_uuid7();
        self.write(move |tx| {
            let mut statement = tx.conn.prepare_cached(
                "SELECT guid, flow = ?2 AND url = ?3 FROM standard_requests INDEXED BY standard_requests_due \
                 WHERE next_at IS NOT NULL AND tenant = ?1",
            )?;
            let rows = statement.query_map(params![tenant.as_str(), flow, url], |row| {
                Ok((from_uuid(row, 0)?, row.get::<_, bool>(1)?))
            })?;
            let waiting: Vec<(Uuid, bool)> = rows.collect::<Result<_, _>>()?;
            if let Some((same, _)) = waiting.iter().find(|(_, same)| *same) {
                return Ok(*same);
            }
            if waiting.len() as i64 >= MAX_WAITING {
                return Err(Error::Quota(format!(
                    "{MAX_WAITING} files of tenant {tenant} are waited for, as many as may be: try again later"
                )));
            }
            tx.conn
                .prepare_cached(
                    "INSERT INTO standard_requests (guid, tenant, definition, flow, url, requested_at, next_at) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
                )?
                .execute(params![
                    guid.as_bytes(),
                    tenant.as_str(),
                    definition.uuid().as_bytes(),
                    flow,
                    url,
                    ms(tx.now)
                ])?;
            tx.effects.deliveries = true;
            Ok(guid)
        })
        .await
    }

    /// A request of a tenant.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn standard_request(&self, tenant: Name, guid: Uuid) -> Result<Option<StandardRequest>, Error> {
        self.read(move |conn| {
            let sql = format!("SELECT {COLUMNS} FROM standard_requests WHERE guid = ?1 AND tenant = ?2");
            let mut statement = conn.prepare_cached(&sql)?;
            Ok(statement.query_row(params![guid.as_bytes(), tenant.as_str()], read).optional()?)
        })
        .await
    }

    /// The requests whose file is to be asked for now, and when to look again.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub(crate) async fn due_standard_requests(
        &self,
        most: usize,
    ) -> Result<(Vec<StandardRequest>, Option<Timestamp>), Error> {
        self.read(move |conn| {
            let now = ms(clock::now());
            let sql = format!(
                "SELECT {COLUMNS} FROM standard_requests INDEXED BY standard_requests_due \
                 WHERE next_at IS NOT NULL AND next_at <= ?1 ORDER BY next_at LIMIT ?2"
            );
            let mut statement = conn.prepare_cached(&sql)?;
            let rows = statement.query_map(params![now, i64::try_from(most).unwrap_or(1)], read)?;
            let due = rows.collect::<Result<_, _>>()?;
            let next: Option<i64> = conn
                .prepare_cached(
                    "SELECT min(next_at) FROM standard_requests INDEXED BY standard_requests_due \
                     WHERE next_at IS NOT NULL AND next_at > ?1",
                )?
                .query_row([now], |row| row.get(0))?;
            Ok((due, next.and_then(|at| Timestamp::from_millisecond(at).ok())))
        })
        .await
    }

    /// The file is here: the run begins with it.
    ///
    /// # Errors
    /// Those of [`Store::start_run`].
    pub(crate) async fn run_standard_request(
        &self,
        request: StandardRequest,
        file: InputFlow,
    ) -> Result<(), Error> {
        self.write(move |tx| {
            let occurrence = Occurrence {
                key: format!("standard:{}", request.guid),
                kind: "api",
                at: request.requested_at,
                data: json!({"flow": request.flow, "file": file.label, "request": request.guid}),
                flows: vec![file],
            };
            let started = start_in(tx, &request.tenant, request.definition, &occurrence)?;
            let failure = match started {
                Started::Disabled => Some("the mediation definition was disabled before its file was here"),
                Started::New(_) | Started::Known(_) | Started::Skipped(_) => None,
            };
            tx.conn
                .prepare_cached(
                    "UPDATE standard_requests SET next_at = NULL, run = ?2, failure = ?3 WHERE guid = ?1",
                )?
                .execute(params![
                    request.guid.as_bytes(),
                    started.run().map(|run| *run.uuid().as_bytes()),
                    failure
                ])?;
            Ok(())
        })
        .await
    }

    /// The file could not be fetched. `again_at`: when it is tried again; `None`: never.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub(crate) async fn fail_standard_request(
        &self,
        guid: Uuid,
        failure: String,
        again_at: Option<Timestamp>,
    ) -> Result<(), Error> {
        self.write(move |tx| {
            tx.conn
                .prepare_cached(
                    "UPDATE standard_requests SET attempts = attempts + 1, next_at = ?2, failure = ?3 \
                     WHERE guid = ?1 AND next_at IS NOT NULL",
                )?
                .execute(params![guid.as_bytes(), again_at.map(ms), failure])?;
            Ok(())
        })
        .await
    }

    /// Removes settled requests that came before `before`.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub(crate) async fn remove_standard_requests(&self, before: Timestamp) -> Result<(), Error> {
        self.write(move |tx| {
            tx.conn
                .prepare_cached(
                    "DELETE FROM standard_requests WHERE guid IN (SELECT guid FROM standard_requests \
                     WHERE requested_at < ?1 AND next_at IS NULL LIMIT 1000)",
                )?
                .execute([ms(before)])?;
            Ok(())
        })
        .await
    }
}
