//! Takes content in: written to a file in slices, digested on the way.

use crate::store::Error;
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use passerelle_protocol::Sha256;
use std::{io, io::Read as _, os::unix::fs::OpenOptionsExt as _, path::Path, pin::pin};
use tokio::{
    fs::File,
    io::{AsyncSeekExt as _, AsyncWriteExt as _, BufWriter},
};

/// How much is gathered before it is written.
const SLICE: usize = 256 * 1024;

/// A file that content comes into.
pub(super) struct Receiver {
    file: BufWriter<File>,
    /// How many bytes are certainly in the file, once flushed.
    offset: u64,
    /// Of all of it, if it was all seen by this receiver.
    digest: Option<Context>,
}

impl Receiver {
    /// A new file.
    pub(super) async fn create(path: &Path) -> Result<Self, Error> {
        let mut options = std::fs::OpenOptions::new();
        options.create_new(true).write(true).mode(0o600);
        let file = tokio::fs::OpenOptions::from(options).open(path).await?;
        Ok(Self::at(file, 0))
    }

    /// The file of an upload, made if it is not there; goes on at its end.
    pub(super) async fn open(path: &Path) -> Result<Self, Error> {
        let mut options = std::fs::OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let mut file = tokio::fs::OpenOptions::from(options).open(path).await?;
        let offset = file.seek(io::SeekFrom::End(0)).await?;
        Ok(Self::at(file, offset))
    }

    fn at(file: File, offset: u64) -> Self {
        let digest = (offset == 0).then(|| Context::new(&SHA256));
        Self { file: BufWriter::with_capacity(SLICE, file), offset, digest }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the stream's bytes, up to `length` in all. The inner error says why the stream broke off; what came before
    /// is kept.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for more bytes than `length`; [`Error::Full`] and others of the disk.
    pub(super) async fn take_all<S, E>(&mut self, stream: S, length: u64) -> Result<Result<(), String>, Error>
    where
        S: Stream<Item = Result<Bytes, E>>,
        E: std::fmt::Display,
    {
        let mut stream = pin!(stream);
        while let Some(chunk) = stream.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(why) => return Ok(Err(why.to_string())),
            };
            let after = self.offset.saturating_add(chunk.len() as u64);
            if after > length {
                return Err(Error::TooLarge(format!("the body goes beyond the announced length {length}")));
            }
            self.file.write_all(&chunk).await?;
            self.offset = after;
            if let Some(digest) = &mut self.digest {
                digest.update(&chunk);
            }
        }
        Ok(Ok(()))
    }

    /// Brings all of it to the disk.
    pub(super) async fn sync(&mut self) -> Result<(), Error> {
        self.file.flush().await?;
        Ok(self.file.get_ref().sync_all().await?)
    }

    /// Brings all of it into the file; nothing is synced.
    pub(super) async fn flush(&mut self) -> Result<(), Error> {
        Ok(self.file.flush().await?)
    }

    /// As [`Self::finish`], without a sync.
    ///
    /// # Errors
    /// Those of [`Self::finish`].
    pub(super) async fn finish_unsynced(
        mut self,
        path: &Path,
        expected: Option<Sha256>,
    ) -> Result<(u64, Sha256), Error> {
        self.flush().await?;
        self.judge(path, expected).await
    }

    /// Syncs, and checks the digest of all of it.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`], and those of the disk.
    pub(super) async fn finish(
        mut self,
        path: &Path,
        expected: Option<Sha256>,
    ) -> Result<(u64, Sha256), Error> {
        self.sync().await?;
        self.judge(path, expected).await
    }

    async fn judge(self, path: &Path, expected: Option<Sha256>) -> Result<(u64, Sha256), Error> {
        let actual = match self.digest {
            Some(digest) => to_digest(digest),
            None => {
                let path = path.to_owned();
                tokio::task::spawn_blocking(move || digest_of(&path))
                    .await
                    .map_err(|e| Error::Internal(format!("a digest ended early: {e}")))??
            }
        };
        match expected {
            Some(expected) if expected != actual => Err(Error::DigestMismatch { expected, actual }),
            _ => Ok((self.offset, actual)),
        }
    }
}

pub(super) fn to_digest(context: Context) -> Sha256 {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Sha256::from(bytes)
}

/// The digest of a file that came in several parts.
fn digest_of(path: &Path) -> io::Result<Sha256> {
    let mut file = std::fs::File::open(path)?;
    let mut context = Context::new(&SHA256);
    let mut slice = vec![0; SLICE];
    loop {
        match file.read(&mut slice)? {
            0 => return Ok(to_digest(context)),
            read => context.update(slice.get(..read).unwrap_or_default()),
        }
    }
}
