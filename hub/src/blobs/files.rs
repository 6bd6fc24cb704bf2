//! Where content lies: `blobs/ab/<sha256>`, whole and synced or not at all, and `uploads/<id>` while it arrives.

use crate::{
    clock,
    model::BlobInfo,
    store::{Content, Error, row},
};
use passerelle_protocol::{BlobId, Name, Sha256};
use rusqlite::{Connection, OptionalExtension as _};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The folders of content.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    blobs: Arc<Path>,
    uploads: Arc<Path>,
}

impl Files {
    pub(crate) fn new(data: &Path) -> Self {
        Self { blobs: data.join("blobs").into(), uploads: data.join("uploads").into() }
    }

    /// The file of this content.
    pub(crate) fn content(&self, sha256: Sha256) -> PathBuf {
        let name = sha256.to_string();
        let folder = name.get(..2).unwrap_or_default();
        self.blobs.join(folder).join(&name)
    }

    /// The file of an upload under way.
    pub(super) fn upload(&self, id: BlobId) -> PathBuf {
        self.uploads.join(id.to_string())
    }

    /// A new file name for content whose digest is not known yet.
    pub(super) fn temporary(&self) -> PathBuf {
        self.uploads.join(format!("{}.part", clock::new_uuid7()))
    }

    pub(super) fn uploads(&self) -> &Path {
        &self.uploads
    }

    /// Gives a synced file its final name; content that is there already stays. Blocking.
    pub(super) fn place(&self, from: &Path, sha256: Sha256) -> io::Result<()> {
        let to = self.content(sha256);
        if to.try_exists()? {
            return std::fs::remove_file(from);
        }
        let folder = to.parent().unwrap_or(&self.blobs);
        match std::fs::create_dir(folder) {
            Ok(()) => sync_folder(&self.blobs)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        std::fs::rename(from, &to)?;
        sync_folder(folder)
    }

    /// Removes what is left of an upload.
    pub(crate) async fn remove_upload(&self, id: BlobId) {
        match tokio::fs::remove_file(self.upload(id)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(error = %error, upload = %id, "Could not remove an upload's file");
            }
            _ => {}
        }
    }

    /// A blob and its content; with `tenant`, only one of that tenant.
    pub(crate) fn find(
        &self,
        conn: &Connection,
        id: BlobId,
        tenant: Option<&Name>,
    ) -> Result<(BlobInfo, Content), Error> {
        let sql = format!("SELECT {} FROM blobs WHERE id = ?1 AND (?2 IS NULL OR tenant = ?2)", row::BLOB);
        let key = id.uuid();
        let info = conn
            .prepare_cached(&sql)?
            .query_row((key.as_bytes(), tenant.map(Name::as_str)), row::blob)
            .optional()?
            .ok_or_else(|| Error::NotFound(format!("no blob {id}")))?;
        let data: Option<Vec<u8>> = conn
            .prepare_cached("SELECT data FROM contents WHERE blob = ?1")?
            .query_row([key.as_bytes()], |row| row.get(0))
            .optional()?;
        let content =
            data.map_or_else(|| Content::File(self.content(info.sha256)), |data| Content::Bytes(data.into()));
        Ok((info, content))
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
