//! Blobs: payloads and outputs as content-addressed files, with ids per tenant.
//!
//! Content is written to a file of its own, synced, checked and then renamed to its digest, so it is never seen half
//! written, and the same content is stored once. A resumable upload stands as far as its file is long, over restarts of
//! the hub; it is given up a day after its last byte. Memory stays constant whatever the size.
//!
//! Whoever needs a file has a row in `files`, written in the transaction that names it. Content that nobody needs is
//! collected (`collect.rs`).

mod collect;
mod files;
mod fleeting;
mod passing;
mod receive;
mod turn;
mod uploads;

#[cfg(test)]
mod collect_tests;
#[cfg(test)]
mod tests;

pub use collect::Collected;
pub(crate) use files::Files;
pub(crate) use fleeting::Transfers;
pub(crate) use uploads::Upload;
pub use uploads::UploadOffset;

use crate::{
    clock,
    model::BlobInfo,
    store::{Content, Error, Store, retention, row::ms},
};
use bytes::Bytes;
use futures_util::Stream;
use passerelle_protocol::{BlobId, Name, Sha256};
use receive::Receiver;
use rusqlite::params;
use uploads::forget_upload;

/// The blobs: a cheap handle.
#[derive(Clone)]
pub struct Blobs {
    store: Store,
}

impl Blobs {
    /// The blobs of a store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Stores a whole body as a blob.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`]; [`Error::BadRequest`] if the body breaks off; [`Error::Full`]. Nothing is left behind.
    pub async fn put_stream<S, E>(
        &self,
        tenant: Name,
        media_type: Option<String>,
        expected: Option<Sha256>,
        stream: S,
    ) -> Result<BlobInfo, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display + Send,
    {
        let path = self.store.files().temporary();
        let stored = async {
            let mut receiver = Receiver::create(&path).await?;
            receiver
                .take_all(stream, u64::MAX)
                .await?
                .map_err(|why| Error::BadRequest(format!("the body broke off: {why}")))?;
            let (size, sha256) = receiver.finish(&path, expected).await?;
            let naming = self.place(path.clone(), sha256).await?;
            let id = BlobId::from(clock::new_uuid7());
            let info = BlobInfo { id, size, sha256, media_type };
            self.add(tenant, info, None, naming).await
        }
        .await;
        if stored.is_err() {
            // Gone already if the content was placed.
            drop(tokio::fs::remove_file(&path).await);
        }
        stored
    }

    /// A blob of the tenant.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn info(&self, tenant: Name, id: BlobId) -> Result<BlobInfo, Error> {
        self.open(tenant, id).await.map(|(info, _)| info)
    }

    /// A blob of the tenant, and where its content is.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn open(&self, tenant: Name, id: BlobId) -> Result<(BlobInfo, Content), Error> {
        let files = self.store.files().clone();
        self.store.read(move |conn| files.find(conn, id, Some(&tenant))).await
    }

    /// Gives content its file. What is returned is to be held until the file's row is committed.
    async fn place(&self, from: std::path::PathBuf, sha256: Sha256) -> Result<files::Naming, Error> {
        let files = self.store.files().clone();
        let naming = files.naming(sha256).await;
        tokio::task::spawn_blocking(move || files.place(&from, sha256).map(|()| naming))
            .await
            .map_err(|e| Error::Internal(format!("a file operation ended early: {e}")))?
            .map_err(Error::from)
    }

    async fn add(
        &self,
        tenant: Name,
        info: BlobInfo,
        upload: Option<BlobId>,
        naming: files::Naming,
    ) -> Result<BlobInfo, Error> {
        self.store
            .write(move |tx| {
                retention::own(tx.conn, *info.id.uuid().as_bytes(), info.sha256, false)?;
                if let Some(id) = upload {
                    forget_upload(tx, id)?;
                }
                tx.conn
                    .prepare_cached(
                        "INSERT INTO blobs (id, tenant, size, sha256, media_type, created_at) \
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    )?
                    .execute(params![
                        info.id.uuid().as_bytes(),
                        tenant.as_str(),
                        i64::try_from(info.size).unwrap_or(i64::MAX),
                        info.sha256.bytes(),
                        info.media_type,
                        ms(tx.now)
                    ])?;
                // Goes with the answer, after the commit, even if nobody waits for it any more.
                Ok((info, naming))
            })
            .await
            .map(|(info, _)| info)
    }
}
