//! Resumable uploads: where one stands, what is added to it, and what becomes of it when it is complete or stands still.

use super::{
    Blobs,
    collect::{self, Collected},
    receive::Receiver,
    turn::Turn,
};
use crate::{
    clock,
    model::BlobInfo,
    store::{
        Error, retention,
        row::{self, from_uuid, ms, name, opt_digest, size},
        writer::Tx,
    },
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use passerelle_protocol::{BlobId, Name, Sha256};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use std::{
    pin::pin,
    time::{Duration, SystemTime},
};

/// Where an upload stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadOffset {
    /// How many bytes are here.
    pub offset: u64,
    /// How many it will have.
    pub length: u64,
    /// The blob, once the upload is complete. What an agent uploads becomes none: it belongs to its job or event.
    pub blob: Option<BlobInfo>,
}

/// An upload, as stored.
#[derive(Debug, Clone)]
pub(crate) struct Upload {
    pub(crate) id: BlobId,
    pub(crate) tenant: Name,
    pub(crate) length: u64,
    pub(crate) sha256: Option<Sha256>,
    pub(crate) media_type: Option<String>,
    /// It comes from an agent: the content becomes what the report or the event says that names it.
    pub(crate) of_agent: bool,
    pub(crate) complete: bool,
}

impl Upload {
    pub(crate) const COLUMNS: &str = "id, tenant, length, sha256, media_type, \
        job IS NOT NULL OR event IS NOT NULL, complete";

    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: from_uuid(row, 0)?,
            tenant: name(row, 1)?,
            length: size(row, 2)?,
            sha256: opt_digest(row, 3)?,
            media_type: row.get(4)?,
            of_agent: row.get(5)?,
            complete: row.get(6)?,
        })
    }
}

impl Blobs {
    /// Opens a resumable upload; its id becomes the blob's. An empty one is complete at once.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for an impossible length; [`Error::Full`].
    pub async fn create_upload(
        &self,
        tenant: Name,
        media_type: Option<String>,
        length: u64,
        expected: Option<Sha256>,
    ) -> Result<BlobId, Error> {
        let upload = Upload {
            id: BlobId::from(clock::new_uuid7()),
            tenant,
            length,
            sha256: expected,
            media_type,
            of_agent: false,
            complete: false,
        };
        let stored = upload.clone();
        let length = i64::try_from(length)
            .map_err(|_| Error::BadRequest("Upload-Length: larger than any disk".to_owned()))?;
        self.store
            .write(move |tx| {
                row::known_tenant(tx.conn, &stored.tenant)?;
                tx.shared.shares.open_upload(tx.conn, &stored.tenant)?;
                tx.conn
                    .prepare_cached(
                        "INSERT INTO uploads (id, tenant, length, sha256, media_type, created_at) \
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    )?
                    .execute(params![
                        stored.id.uuid().as_bytes(),
                        stored.tenant.as_str(),
                        length,
                        stored.sha256.map(|d| *d.bytes()),
                        stored.media_type,
                        ms(tx.now)
                    ])?;
                Ok(())
            })
            .await?;
        let id = upload.id;
        self.stand(upload).await?;
        Ok(id)
    }

    /// Where an upload stands. A request that adds to it and is silent is ended first, so that the offset holds.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn upload_offset(&self, tenant: Name, id: BlobId) -> Result<UploadOffset, Error> {
        match self.find(tenant, id).await? {
            Found::Upload(upload) => self.stand(upload).await,
            Found::Blob(info) => Ok(complete(info)),
        }
    }

    /// Adds bytes to an upload; `expected` is the digest of the whole, if this request says it. A body that breaks off keeps what
    /// came: the answer says how far.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Offset`] if `offset` is not where the upload stands; [`Error::Busy`] while another
    /// request adds to it; [`Error::TooLarge`] for more
    /// bytes than announced; [`Error::DigestMismatch`] at the end, which begins the upload anew; [`Error::Full`], after
    /// which it can go on.
    pub async fn append<S, E>(
        &self,
        tenant: Name,
        id: BlobId,
        offset: u64,
        expected: Option<Sha256>,
        stream: S,
    ) -> Result<UploadOffset, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display + Send,
    {
        match self.find(tenant, id).await? {
            Found::Upload(upload) => self.extend(upload, offset, expected, stream).await,
            Found::Blob(info) => nothing_more(complete(info), offset, stream).await,
        }
    }

    /// Gives up the uploads that stood still for so long, and removes files that belong to none.
    pub(super) async fn give_up_uploads(
        &self,
        older: Duration,
        now: jiff::Timestamp,
        done: &mut Collected,
    ) -> Result<u64, Error> {
        let folder = self.store.files().uploads().to_owned();
        let at = SystemTime::from(now);
        let old = tokio::task::spawn_blocking(move || collect::stale_files(&folder, older, at))
            .await
            .map_err(|e| Error::Internal(format!("a look at the uploads ended early: {e}")))??;
        let mut count = 0;
        for path in old {
            let id =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<BlobId>().ok());
            if let Some(id) = id {
                // Somebody goes on with it after all.
                let Ok(_turn) = Turn::take(id, None).await else { continue };
                count += self.forget(id, done).await?;
                self.store.files().remove_upload(id).await;
            } else {
                // A body that broke off when the hub did; or it was slow, and is complete by now.
                match tokio::fs::remove_file(&path).await {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                    _ => {}
                }
            }
        }
        // Opened, and no byte ever came, or an output that no report claimed: no file is left to tell by its age.
        let before = now.checked_sub(older).unwrap_or(jiff::Timestamp::MIN);
        for id in self.store.read(move |conn| retention::old_uploads(conn, before)).await? {
            if !tokio::fs::try_exists(self.store.files().upload(id)).await? {
                let Ok(_turn) = Turn::take(id, None).await else { continue };
                count += self.forget(id, done).await?;
            }
        }
        Ok(count)
    }

    async fn forget(&self, id: BlobId, done: &mut Collected) -> Result<u64, Error> {
        let removed = self.store.write(move |tx| {
            // Its job was retried meanwhile, perhaps.
            if retention::is_needed(tx.conn, id)? {
                return Ok(retention::Removed::default());
            }
            retention::forget_upload(tx, id)
        });
        let removed = removed.await?;
        self.remove_loose(removed.loose, done).await?;
        Ok(removed.count)
    }

    /// Where this upload stands, made complete if all of it is here.
    pub(crate) async fn stand(&self, upload: Upload) -> Result<UploadOffset, Error> {
        if upload.complete {
            return Ok(whole(&upload));
        }
        let _turn = match Turn::take(upload.id, None).await {
            Err(Error::Busy(offset)) => {
                return Ok(UploadOffset { offset, length: upload.length, blob: None });
            }
            turn => turn?,
        };
        let upload = match self.in_turn(upload).await? {
            Found::Upload(upload) => upload,
            Found::Blob(info) => return Ok(complete(info)),
        };
        if upload.complete {
            return Ok(whole(&upload));
        }
        let path = self.store.files().upload(upload.id);
        let receiver = Receiver::open(&path).await?;
        if receiver.offset() >= upload.length {
            self.complete(upload, receiver, None).await
        } else {
            Ok(under_way(&upload, &receiver))
        }
    }

    /// Adds to this upload.
    pub(crate) async fn extend<S, E>(
        &self,
        upload: Upload,
        offset: u64,
        expected: Option<Sha256>,
        stream: S,
    ) -> Result<UploadOffset, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display + Send,
    {
        if upload.complete {
            return nothing_more(whole(&upload), offset, stream).await;
        }
        let turn = Turn::take(upload.id, Some(offset)).await?;
        let upload = match self.in_turn(upload).await? {
            Found::Upload(upload) => upload,
            Found::Blob(info) => return nothing_more(complete(info), offset, stream).await,
        };
        if upload.complete {
            return nothing_more(whole(&upload), offset, stream).await;
        }
        let path = self.store.files().upload(upload.id);
        let mut receiver = Receiver::open(&path).await?;
        if receiver.offset() != offset {
            return Err(Error::Offset(receiver.offset()));
        }
        turn.begin(offset);
        let stream = stream.inspect(|chunk| turn.came(chunk.as_ref().map_or(0, Bytes::len)));
        let taken = tokio::select! {
            taken = receiver.take_all(stream, upload.length) => Some(taken?),
            () = turn.ended.cancelled() => None,
        };
        turn.stop();
        let superseded = taken.is_none();
        match taken {
            Some(Ok(())) | None => {}
            Some(Err(why)) => tracing::debug!(upload = %upload.id, why, "Upload broke off"),
        }
        receiver.sync().await?;
        if receiver.offset() >= upload.length {
            self.complete(upload, receiver, expected).await
        } else if superseded && receiver.offset() == offset {
            // It stands where this one wanted to go on, and the other one does.
            Err(Error::Busy(offset))
        } else if superseded {
            // Not all of what it sends was taken.
            Err(Error::Offset(receiver.offset()))
        } else {
            Ok(under_way(&upload, &receiver))
        }
    }

    /// The upload as it is now that nobody else adds to it: whoever had the turn before may have completed it, or given
    /// it up.
    async fn in_turn(&self, upload: Upload) -> Result<Found, Error> {
        let Upload { id, tenant, .. } = upload;
        self.store
            .read(move |conn| {
                let sql = format!("SELECT {} FROM uploads WHERE id = ?1 AND tenant = ?2", Upload::COLUMNS);
                let key = *id.uuid().as_bytes();
                match conn
                    .prepare_cached(&sql)?
                    .query_row(params![key, tenant.as_str()], Upload::read)
                    .optional()?
                {
                    Some(upload) => Ok(Found::Upload(upload)),
                    None => blob(conn, &tenant, id),
                }
            })
            .await
    }

    /// Checks the whole content, by what was said when it was opened and with the last of it, and gives it its name.
    async fn complete(
        &self,
        upload: Upload,
        receiver: Receiver,
        expected: Option<Sha256>,
    ) -> Result<UploadOffset, Error> {
        let path = self.store.files().upload(upload.id);
        let finished = match (receiver.finish(&path, upload.sha256).await, expected) {
            (Ok((_, actual)), Some(expected)) if expected != actual => {
                Err(Error::DigestMismatch { expected, actual })
            }
            (finished, _) => finished,
        };
        let (size, sha256) = match finished {
            Err(error @ Error::DigestMismatch { .. }) => {
                // Nothing of it can be trusted: the next offset is 0.
                self.store.files().remove_upload(upload.id).await;
                return Err(error);
            }
            other => other?,
        };
        let naming = self.place(path, sha256).await?;
        if upload.of_agent {
            let id = upload.id;
            self.store
                .write(move |tx| {
                    // A job's output, or what becomes the blob of an event under the upload's own id.
                    let owner: Option<(retention::Key, bool)> = tx
                        .conn
                        .prepare_cached(
                            "UPDATE uploads SET complete = 1 WHERE id = ?1 RETURNING coalesce(job, id), job IS NOT NULL",
                        )?
                        .query_row([id.uuid().as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
                        .optional()?;
                    if let Some((owner, output)) = owner {
                        retention::own(tx.conn, owner, sha256, output)?;
                    }
                    Ok(naming)
                })
                .await?;
            return Ok(UploadOffset { offset: size, length: size, blob: None });
        }
        let info = BlobInfo { id: upload.id, size, sha256, media_type: upload.media_type };
        self.add(upload.tenant, info, Some(upload.id), naming).await.map(complete)
    }

    async fn find(&self, tenant: Name, id: BlobId) -> Result<Found, Error> {
        self.store
            .read(move |conn| {
                let sql = format!(
                    "SELECT {} FROM uploads WHERE id = ?1 AND tenant = ?2 AND job IS NULL AND event IS NULL",
                    Upload::COLUMNS
                );
                let key = *id.uuid().as_bytes();
                let upload = conn
                    .prepare_cached(&sql)?
                    .query_row(params![key, tenant.as_str()], Upload::read)
                    .optional()?;
                if let Some(upload) = upload {
                    return Ok(Found::Upload(upload));
                }
                blob(conn, &tenant, id)
            })
            .await
    }
}

enum Found {
    Upload(Upload),
    Blob(BlobInfo),
}

/// What an upload has become.
fn blob(conn: &Connection, tenant: &Name, id: BlobId) -> Result<Found, Error> {
    let sql = format!("SELECT {} FROM blobs WHERE id = ?1 AND tenant = ?2", row::BLOB);
    conn.prepare_cached(&sql)?
        .query_row(params![id.uuid().as_bytes(), tenant.as_str()], row::blob)
        .optional()?
        .map(Found::Blob)
        .ok_or_else(|| Error::NotFound(format!("no upload {id}: open a new one")))
}

/// The answer to a request that would add to what is complete: there may be nothing in it.
async fn nothing_more<S, E>(at: UploadOffset, offset: u64, stream: S) -> Result<UploadOffset, Error>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
{
    if offset != at.offset {
        return Err(Error::Offset(at.offset));
    }
    let mut stream = pin!(stream);
    while let Some(Ok(chunk)) = stream.next().await {
        if !chunk.is_empty() {
            let length = at.length;
            return Err(Error::TooLarge(format!("the body goes beyond the announced length {length}")));
        }
    }
    Ok(at)
}

fn whole(upload: &Upload) -> UploadOffset {
    UploadOffset { offset: upload.length, length: upload.length, blob: None }
}

fn complete(info: BlobInfo) -> UploadOffset {
    UploadOffset { offset: info.size, length: info.size, blob: Some(info) }
}

fn under_way(upload: &Upload, receiver: &Receiver) -> UploadOffset {
    UploadOffset { offset: receiver.offset(), length: upload.length, blob: None }
}

pub(super) fn forget_upload(tx: &mut Tx<'_>, id: BlobId) -> Result<usize, Error> {
    Ok(tx.conn.prepare_cached("DELETE FROM uploads WHERE id = ?1")?.execute([id.uuid().as_bytes()])?)
}
