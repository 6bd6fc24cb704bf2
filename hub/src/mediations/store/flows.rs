//! The flows of runs: each holds a blob, so that its content stays as long as the run does.

use crate::{
    clock,
    mediations::{
        ids::{FlowId, RunId},
        runs::{Direction, Flow, MAX_FLOWS},
        steps::{FlowContent, NewFlow},
    },
    model::BlobInfo,
    store::{
        Content, Error, Store, retention,
        row::{self, digest, from_uuid, ms, opt_time, size, time},
        writer::Tx,
    },
};
use passerelle_protocol::{BlobId, JobId, Name, Sha256, limits::MAX_INLINE_PAYLOAD};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

const FLOW: &str =
    "guid, label, source, direction, processed, blob, size, sha256, media_type, created_at, replaced_at";

fn read(row: &Row<'_>) -> rusqlite::Result<Flow> {
    Ok(Flow {
        guid: from_uuid(row, 0)?,
        label: row.get(1)?,
        source: row.get(2)?,
        direction: if row.get_ref(3)?.as_str()? == "in" { Direction::In } else { Direction::Out },
        processed: row.get(4)?,
        blob: from_uuid(row, 5)?,
        size: size(row, 6)?,
        sha256: digest(row, 7)?,
        media_type: row.get(8)?,
        created_at: time(row, 9)?,
        replaced_at: opt_time(row, 10)?,
    })
}

/// The flows of a run, oldest first.
pub(crate) fn of_run(conn: &Connection, run: i64, limit: usize) -> Result<Vec<Flow>, Error> {
    let sql = format!("SELECT {FLOW} FROM mediation_flows WHERE run = ?1 ORDER BY seq LIMIT ?2");
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map(params![run, i64::try_from(limit).unwrap_or(i64::MAX)], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// A blob of the tenant.
pub(crate) fn blob(conn: &Connection, tenant: &Name, id: BlobId) -> Result<BlobInfo, Error> {
    let sql = format!("SELECT {} FROM blobs WHERE id = ?1 AND tenant = ?2", row::BLOB);
    let found = conn
        .prepare_cached(&sql)?
        .query_row(params![id.uuid().as_bytes(), tenant.as_str()], row::blob)
        .optional()?;
    found.ok_or_else(|| Error::no_blob(id))
}

/// Adds a flow; content that is here or an output of a job becomes a blob in the same transaction.
pub(crate) fn add(
    tx: &mut Tx<'_>,
    tenant: &Name,
    run: i64,
    source: &str,
    new: &NewFlow,
) -> Result<Flow, Error> {
    let count: i64 = tx
        .conn
        .prepare_cached("SELECT count(*) FROM mediation_flows WHERE run = ?1")?
        .query_row([run], |row| row.get(0))?;
    if usize::try_from(count).is_ok_and(|count| count >= MAX_FLOWS) {
        return Err(Error::BadRequest(format!("a mediation run has at most {MAX_FLOWS} flows")));
    }
    let info = match &new.content {
        FlowContent::Blob(info) => blob(tx.conn, tenant, info.id)?,
        FlowContent::Bytes(bytes) => small(tx, tenant, &new.media_type, bytes)?,
        FlowContent::Output { job, size, sha256 } => {
            output(tx, tenant, *job, *size, *sha256, &new.media_type)?
        }
    };
    let flow = Flow {
        guid: FlowId::make(),
        label: new.label.clone(),
        source: source.to_owned(),
        direction: new.direction,
        processed: false,
        size: info.size,
        sha256: info.sha256,
        media_type: new.media_type.clone(),
        created_at: tx.now,
        replaced_at: None,
        blob: info.id,
    };
    tx.conn
        .prepare_cached(
            "INSERT INTO mediation_flows (guid, run, label, source, direction, blob, size, sha256, media_type, created_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            flow.guid.uuid().as_bytes(),
            run,
            flow.label,
            flow.source,
            flow.direction.as_str(),
            flow.blob.uuid().as_bytes(),
            i64::try_from(flow.size).unwrap_or(i64::MAX),
            flow.sha256.bytes(),
            flow.media_type,
            ms(tx.now)
        ])?;
    Ok(flow)
}

fn name_blob(
    tx: &Tx<'_>,
    tenant: &Name,
    size: u64,
    sha256: Sha256,
    media_type: &str,
) -> Result<BlobInfo, Error> {
    let id = BlobId::from(clock::new_uuid7());
    tx.shared.shares.bytes(tx.conn, tenant, size)?;
    tx.conn
        .prepare_cached(
            "INSERT INTO blobs (id, tenant, size, sha256, media_type, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            id.uuid().as_bytes(),
            tenant.as_str(),
            i64::try_from(size).unwrap_or(i64::MAX),
            sha256.bytes(),
            media_type,
            ms(tx.now)
        ])?;
    Ok(BlobInfo { id, size, sha256, media_type: Some(media_type.to_owned()) })
}

fn small(tx: &Tx<'_>, tenant: &Name, media_type: &str, bytes: &[u8]) -> Result<BlobInfo, Error> {
    if bytes.len() > MAX_INLINE_PAYLOAD {
        return Err(Error::Internal("a large flow was not put into a file first".to_owned()));
    }
    let info = name_blob(tx, tenant, bytes.len() as u64, Sha256::of(bytes), media_type)?;
    tx.conn
        .prepare_cached("INSERT INTO contents (blob, data) VALUES (?1, ?2)")?
        .execute(params![info.id.uuid().as_bytes(), bytes])?;
    Ok(info)
}

/// A blob of the same content as a job's output.
fn output(
    tx: &Tx<'_>,
    tenant: &Name,
    job: JobId,
    size: u64,
    sha256: Sha256,
    media_type: &str,
) -> Result<BlobInfo, Error> {
    let id = *job.uuid().as_bytes();
    let info = name_blob(tx, tenant, size, sha256, media_type)?;
    let copied = tx
        .conn
        .prepare_cached(
            "INSERT INTO contents (blob, data) SELECT ?2, o.data FROM jobs j JOIN outputs o ON o.job = j.seq \
             WHERE j.id = ?1 AND j.tenant = ?3",
        )?
        .execute(params![id, info.id.uuid().as_bytes(), tenant.as_str()])?;
    if copied == 0 {
        let kept = tx
            .conn
            .prepare_cached("SELECT 1 FROM files WHERE owner = ?1 AND sha256 = ?2 AND output = 1")?
            .exists(params![id, sha256.bytes()])?;
        if !kept {
            return Err(Error::NotFound(format!(
                "the output of job {job} was removed: its retention is over"
            )));
        }
        retention::own(tx.conn, *info.id.uuid().as_bytes(), sha256, false)?;
    }
    Ok(info)
}

/// Marks flows as processed.
pub(crate) fn processed(tx: &Tx<'_>, flows: &[FlowId]) -> Result<(), Error> {
    let mut mark = tx.conn.prepare_cached("UPDATE mediation_flows SET processed = 1 WHERE guid = ?1")?;
    for flow in flows {
        mark.execute([flow.uuid().as_bytes()])?;
    }
    Ok(())
}

impl Store {
    /// The content of a flow.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn flow(&self, tenant: Name, run: RunId, flow: FlowId) -> Result<(Flow, Content), Error> {
        let files = self.files().clone();
        self.read(move |conn| {
            let sql = format!(
                "SELECT {FLOW} FROM mediation_flows WHERE guid = ?1 AND run = \
                 (SELECT seq FROM mediation_runs WHERE guid = ?2 AND tenant = ?3)"
            );
            let found = conn
                .prepare_cached(&sql)?
                .query_row(params![flow.uuid().as_bytes(), run.uuid().as_bytes(), tenant.as_str()], read)
                .optional()?;
            let found =
                found.ok_or_else(|| Error::NotFound(format!("mediation run {run} has no flow {flow}")))?;
            let (_, content) = files.find(conn, found.blob, Some(&tenant))?;
            Ok((found, content))
        })
        .await
    }
}
