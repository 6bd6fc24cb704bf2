//! The payload of an event, uploaded beside the tunnel before the event is told of.

use super::Tunnel;
use crate::{
    blobs::{Blobs, Upload, UploadOffset},
    model::AgentRecord,
    store::{Error, received, retention, row::ms, triggers},
};
use bytes::Bytes;
use futures_util::Stream;
use passerelle_protocol::{AgentId, BlobId, EventId, Sha256};
use rusqlite::{Connection, OptionalExtension as _, params};

/// How many such uploads an agent may have: it tells of its events one after the other.
const MOST: u32 = 256;

impl Tunnel {
    /// `POST …/payload`: opens the upload, or finds it again as it stands. One that was opened with another length or digest
    /// is begun anew; of an event that is stored already nothing is missing.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an agent that has announced no trigger; [`Error::Quota`]; [`Error::Full`].
    pub async fn event_open(
        &self,
        agent: &AgentRecord,
        event: EventId,
        length: u64,
        sha256: Sha256,
    ) -> Result<UploadOffset, Error> {
        let length_stored = i64::try_from(length)
            .map_err(|_| Error::BadRequest("Upload-Length: larger than any disk".to_owned()))?;
        let new = Upload {
            id: BlobId::from(crate::clock::new_uuid7()),
            tenant: agent.tenant.clone(),
            length,
            sha256: Some(sha256),
            media_type: None,
            of_agent: true,
            complete: false,
        };
        let id = agent.id;
        let opened = self
            .store
            .write(move |tx| {
                announced(tx.conn, id)?;
                if received::is_known(tx.conn, &new.tenant, event)? {
                    return Ok(None);
                }
                let known = find(tx.conn, id, event)?;
                if let Some(upload) = &known
                    && upload.length == length
                    && upload.sha256 == Some(sha256)
                {
                    return Ok(Some((upload.clone(), None)));
                }
                if let Some(old) = &known {
                    retention::forget_upload(tx, old.id)?;
                }
                let others: u32 = tx
                    .conn
                    .prepare_cached("SELECT count(*) FROM uploads WHERE agent = ?1 AND event IS NOT NULL")?
                    .query_row([id.uuid().as_bytes()], |row| row.get(0))?;
                if others >= MOST {
                    return Err(Error::Quota(format!(
                        "this agent has {MOST} uploads of events, as many as it may: tell of their events first"
                    )));
                }
                tx.shared.shares.bytes(tx.conn, &new.tenant, length)?;
                tx.conn
                    .prepare_cached(
                        "INSERT INTO uploads (id, tenant, length, sha256, created_at, agent, event) \
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    )?
                    .execute(params![
                        new.id.uuid().as_bytes(),
                        new.tenant.as_str(),
                        length_stored,
                        sha256.bytes(),
                        ms(tx.now),
                        id.uuid().as_bytes(),
                        event.uuid().as_bytes()
                    ])?;
                Ok(Some((new, known)))
            })
            .await?;
        let Some((upload, replaced)) = opened else {
            return Ok(UploadOffset { offset: length, length, blob: None });
        };
        if let Some(old) = replaced {
            self.store.files().remove_upload(old.id).await;
        }
        Blobs::new(self.store.clone()).stand(upload).await
    }

    /// `HEAD …/payload`.
    ///
    /// # Errors
    /// [`Error::NotFound`] unless the agent opened an upload for the event.
    pub async fn event_offset(&self, agent: AgentId, event: EventId) -> Result<UploadOffset, Error> {
        let upload = self.event_upload(agent, event).await?;
        Blobs::new(self.store.clone()).stand(upload).await
    }

    /// `PATCH …/payload`: adds bytes; complete, the content has to have the announced digest.
    ///
    /// # Errors
    /// As [`Self::event_offset`]; [`Error::Offset`], [`Error::DigestMismatch`], [`Error::TooLarge`] for more bytes than
    /// announced, [`Error::Full`].
    pub async fn event_append<S, E>(
        &self,
        agent: AgentId,
        event: EventId,
        offset: u64,
        stream: S,
    ) -> Result<UploadOffset, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display + Send,
    {
        let upload = self.event_upload(agent, event).await?;
        Blobs::new(self.store.clone()).extend(upload, offset, None, stream).await
    }

    async fn event_upload(&self, agent: AgentId, event: EventId) -> Result<Upload, Error> {
        self.store
            .read(move |conn| {
                announced(conn, agent)?;
                find(conn, agent, event)?
                    .ok_or_else(|| Error::NotFound(format!("no upload is open for the event {event}")))
            })
            .await
    }
}

fn announced(conn: &Connection, agent: AgentId) -> Result<(), Error> {
    if triggers::has_any(conn, agent)? {
        return Ok(());
    }
    Err(Error::NotFound("this agent has announced no trigger".to_owned()))
}

fn find(conn: &Connection, agent: AgentId, event: EventId) -> Result<Option<Upload>, Error> {
    let sql = format!("SELECT {} FROM uploads WHERE agent = ?1 AND event = ?2", Upload::COLUMNS);
    Ok(conn
        .prepare_cached(&sql)?
        .query_row(params![agent.uuid().as_bytes(), event.uuid().as_bytes()], Upload::read)
        .optional()?)
}
