//! Payloads beside the tunnel: what an agent downloads for a job, and the output it uploads for an attempt.
//!
//! Both are for the agent that holds an unfinished attempt of the job, and for nobody else.

use super::Tunnel;
use crate::{
    blobs::{Blobs, Upload, UploadOffset},
    model::BlobInfo,
    store::{
        Content, Error,
        attempts::{AttemptRow, JobRow},
        row::{self, ms},
    },
};
use bytes::Bytes;
use futures_util::Stream;
use passerelle_protocol::{AgentId, BlobId, JobId, Name, Sha256};
use rusqlite::{Connection, OptionalExtension as _, params};

impl Tunnel {
    /// `GET /agent/v1/jobs/{job}/payload`.
    ///
    /// # Errors
    /// [`Error::NotFound`] unless the agent holds an attempt of the job, and the job has a payload.
    pub async fn payload(&self, agent: AgentId, job: JobId) -> Result<(BlobInfo, Content), Error> {
        if let Some(found) = self.transfers.payload(agent, job) {
            return found;
        }
        let files = self.store.files().clone();
        self.store
            .read(move |conn| {
                let sql = "SELECT j.payload FROM jobs j JOIN attempts a ON a.job = j.seq \
                           WHERE j.id = ?1 AND a.agent = ?2 AND a.finished_at IS NULL";
                let blob: Option<BlobId> = conn
                    .prepare_cached(sql)?
                    .query_row(params![job.uuid().as_bytes(), agent.uuid().as_bytes()], |row| {
                        row::opt_uuid(row, 0)
                    })
                    .optional()?
                    .ok_or_else(|| not_held(job))?;
                let blob = blob.ok_or_else(|| Error::NotFound(format!("job {job} has no payload")))?;
                files.find(conn, blob, None)
            })
            .await
    }

    /// `POST …/output`: opens the upload of an attempt's output, or finds it again as it stands. One that was opened with
    /// another length or digest is begun anew.
    ///
    /// # Errors
    /// [`Error::NotFound`] unless the agent holds the attempt; [`Error::Full`].
    pub async fn output_open(
        &self,
        agent: AgentId,
        job: JobId,
        attempt: u32,
        length: u64,
        sha256: Sha256,
    ) -> Result<UploadOffset, Error> {
        if attempt == 1 && self.transfers.is_live(agent, job) {
            return self.transfers.open(agent, job, length, sha256).await;
        }
        let length_stored = i64::try_from(length)
            .map_err(|_| Error::BadRequest("Upload-Length: larger than any disk".to_owned()))?;
        let new = BlobId::from(crate::clock::new_uuid7());
        let (upload, replaced) = self
            .store
            .write(move |tx| {
                let tenant = held(tx.conn, agent, job, attempt)?;
                let known = find(tx.conn, job, attempt)?;
                if let Some(upload) = &known
                    && upload.length == length
                    && upload.sha256 == Some(sha256)
                {
                    return Ok((upload.clone(), None));
                }
                tx.conn
                    .prepare_cached("DELETE FROM uploads WHERE job = ?1 AND attempt = ?2")?
                    .execute(params![job.uuid().as_bytes(), attempt])?;
                tx.conn
                    .prepare_cached(
                        "INSERT INTO uploads (id, tenant, length, sha256, created_at, job, attempt) \
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    )?
                    .execute(params![
                        new.uuid().as_bytes(),
                        tenant.as_str(),
                        length_stored,
                        sha256.bytes(),
                        ms(tx.now),
                        job.uuid().as_bytes(),
                        attempt
                    ])?;
                let upload = Upload {
                    id: new,
                    tenant,
                    length,
                    sha256: Some(sha256),
                    media_type: None,
                    of_agent: true,
                    complete: false,
                };
                Ok((upload, known))
            })
            .await?;
        if let Some(old) = replaced {
            self.store.files().remove_upload(old.id).await;
        }
        Blobs::new(self.store.clone()).stand(upload).await
    }

    /// `HEAD …/output`.
    ///
    /// # Errors
    /// [`Error::NotFound`] unless the agent holds the attempt and opened an upload for it.
    pub async fn output_offset(
        &self,
        agent: AgentId,
        job: JobId,
        attempt: u32,
    ) -> Result<UploadOffset, Error> {
        if attempt == 1 && self.transfers.is_live(agent, job) {
            return self.transfers.offset(agent, job).await;
        }
        let upload = self.output_upload(agent, job, attempt).await?;
        Blobs::new(self.store.clone()).stand(upload).await
    }

    /// `PATCH …/output`: adds bytes; complete, the content has to have the announced digest.
    ///
    /// # Errors
    /// As [`Self::output_offset`]; [`Error::Offset`], [`Error::DigestMismatch`], [`Error::TooLarge`] for more bytes than
    /// announced, [`Error::Full`].
    pub async fn output_append<S, E>(
        &self,
        agent: AgentId,
        job: JobId,
        attempt: u32,
        offset: u64,
        stream: S,
    ) -> Result<UploadOffset, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display + Send,
    {
        if attempt == 1 && self.transfers.is_live(agent, job) {
            return self.transfers.append(agent, job, offset, stream).await;
        }
        let upload = self.output_upload(agent, job, attempt).await?;
        Blobs::new(self.store.clone()).extend(upload, offset, None, stream).await
    }

    async fn output_upload(&self, agent: AgentId, job: JobId, attempt: u32) -> Result<Upload, Error> {
        self.store
            .read(move |conn| {
                held(conn, agent, job, attempt)?;
                find(conn, job, attempt)?.ok_or_else(|| {
                    Error::NotFound(format!("no output upload is open for attempt {attempt} of job {job}"))
                })
            })
            .await
    }
}

fn not_held(job: JobId) -> Error {
    Error::NotFound(format!("this agent holds no attempt of job {job}"))
}

/// The tenant, if the agent holds this attempt.
fn held(conn: &Connection, agent: AgentId, job: JobId, attempt: u32) -> Result<Name, Error> {
    let found = JobRow::by_id(conn, job)?.ok_or_else(|| not_held(job))?;
    let row = AttemptRow::find(conn, found.seq, attempt)?;
    let holds = row.is_some_and(|row| row.agent == agent && row.finished_at.is_none());
    if holds { Ok(found.queue.tenant) } else { Err(not_held(job)) }
}

fn find(conn: &Connection, job: JobId, attempt: u32) -> Result<Option<Upload>, Error> {
    let sql = format!("SELECT {} FROM uploads WHERE job = ?1 AND attempt = ?2", Upload::COLUMNS);
    Ok(conn
        .prepare_cached(&sql)?
        .query_row(params![job.uuid().as_bytes(), attempt], Upload::read)
        .optional()?)
}
