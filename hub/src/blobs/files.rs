//! Where content lies: `blobs/ab/<sha256>`, whole and synced or not at all, and `uploads/<id>` while it arrives.

use crate::{
    clock,
    model::BlobInfo,
    store::{Content, Error, row},
};
use passerelle_protocol::{BlobId, Name, Sha256};
use rusqlite::{Connection, OptionalExtension as _};
use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// The folders of content.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    blobs: Arc<Path>,
    uploads: Arc<Path>,
    /// Content that somebody is about to name, or to remove.
    naming: Arc<Mutex<HashMap<Sha256, Weak<RwLock<()>>>>>,
    /// How many bytes of content there are.
    bytes: Arc<AtomicU64>,
}

/// Held from before content gets its file until its row is committed: so long it is not removed.
pub(super) type Naming = OwnedRwLockReadGuard<()>;

/// A file of content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    pub(super) sha256: Sha256,
    pub(super) size: u64,
    pub(super) modified: SystemTime,
}

impl Files {
    pub(crate) fn new(data: &Path) -> Self {
        Self {
            blobs: data.join("blobs").into(),
            uploads: data.join("uploads").into(),
            naming: Arc::default(),
            bytes: Arc::default(),
        }
    }

    fn lock_of(&self, sha256: Sha256) -> Arc<RwLock<()>> {
        let mut naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        naming.retain(|_, lock| lock.strong_count() > 0);
        let lock = naming.get(&sha256).and_then(Weak::upgrade).unwrap_or_default();
        naming.insert(sha256, Arc::downgrade(&lock));
        lock
    }

    /// Announces that this content is about to be placed and named. Waits while it is being removed.
    pub(super) async fn naming(&self, sha256: Sha256) -> Naming {
        self.lock_of(sha256).read_owned().await
    }

    /// For whoever wants to remove this content: nothing if somebody is about to name it.
    pub(super) fn alone(&self, sha256: Sha256) -> Option<OwnedRwLockWriteGuard<()>> {
        self.lock_of(sha256).try_write_owned().ok()
    }

    /// Removes a content's file; its size, if it was there. Blocking.
    pub(super) fn remove(&self, sha256: Sha256) -> io::Result<Option<u64>> {
        let path = self.content(sha256);
        let removed = std::fs::metadata(&path).and_then(|found| {
            std::fs::remove_file(&path)?;
            Ok(found.len())
        });
        match removed {
            Ok(size) => {
                let less = |bytes: u64| Some(bytes.saturating_sub(size));
                // The closure never says no.
                let _ = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
                Ok(Some(size))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How many bytes of content there are, as last counted and kept up since.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn counted(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// The folders that content lies in. Blocking.
    pub(super) fn folders(&self) -> io::Result<Vec<PathBuf>> {
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(&self.blobs)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
        Ok(folders)
    }

    /// The content in one of them; what is not named by a digest is none of ours. Blocking.
    pub(super) fn contents(&self, folder: &Path) -> io::Result<Vec<Listed>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let digest = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let (Some(sha256), Ok(metadata)) = (digest, entry.metadata()) {
                found.push(Listed { sha256, size: metadata.len(), modified: metadata.modified()? });
            }
        }
        Ok(found)
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
    pub(crate) fn temporary(&self) -> PathBuf {
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
        self.bytes.fetch_add(std::fs::metadata(&to)?.len(), Ordering::Relaxed);
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
            .ok_or_else(|| Error::no_blob(id))?;
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
