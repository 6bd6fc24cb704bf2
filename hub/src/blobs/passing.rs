//! Where the output of a call is while it arrives and can be fetched: in memory if it is small and there is room, else in a
//! file that nobody syncs.

use super::{
    Files,
    receive::{Receiver, to_digest},
};
use crate::store::{Content, Error};
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use passerelle_protocol::Sha256;
use std::{
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// The largest output of a call: what can be handed over while somebody waits.
const LARGEST: u64 = 1 << 30;
/// All files together.
const MOST_IN_FILES: u64 = 4 << 30;
/// The largest output that is held in memory.
const SMALL: u64 = 4 << 20;
/// All that are, together.
const MOST_IN_MEMORY: u64 = 32 << 20;

/// How many bytes the outputs of calls take.
#[derive(Debug, Default)]
pub(super) struct Taken {
    files: AtomicU64,
    memory: AtomicU64,
}

/// An output: gone, and not counted any more, with its last holder.
#[derive(Debug)]
pub(super) struct Passing {
    length: u64,
    place: Place,
    taken: Arc<Taken>,
}

#[derive(Debug)]
enum Place {
    Memory(Mutex<Bytes>),
    File(PathBuf),
}

impl Passing {
    /// A place for an output of this length; `make_room` lets go of what has to stay no longer, false if there is nothing.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Quota`], and those of the disk.
    pub(super) async fn open(
        files: &Files,
        taken: &Arc<Taken>,
        length: u64,
        mut make_room: impl FnMut() -> bool,
    ) -> Result<Self, Error> {
        if length > LARGEST {
            return Err(Error::TooLarge(format!(
                "the output of a call has at most {LARGEST} bytes: use a job"
            )));
        }
        if length <= SMALL {
            let mut fits = count(&taken.memory, length, MOST_IN_MEMORY);
            while !fits && make_room() {
                fits = count(&taken.memory, length, MOST_IN_MEMORY);
            }
            if fits {
                return Ok(Self { length, place: Place::Memory(Mutex::default()), taken: Arc::clone(taken) });
            }
        }
        if !count(&taken.files, length, MOST_IN_FILES) {
            return Err(Error::Quota(
                "the hub keeps too many outputs of calls just now: come back".to_owned(),
            ));
        }
        let path = files.temporary();
        let file = Self { length, place: Place::File(path.clone()), taken: Arc::clone(taken) };
        Receiver::create(&path).await?.flush().await?;
        Ok(file)
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// How many bytes have arrived.
    pub(super) async fn offset(&self) -> Result<u64, Error> {
        match &self.place {
            Place::Memory(bytes) => Ok(lock(bytes).len() as u64),
            Place::File(path) => Ok(tokio::fs::metadata(path).await?.len()),
        }
    }

    /// Adds what arrives at an offset, up to the length. The inner error says why the stream broke off; what came before is
    /// kept. Tells where it stands, and once it is whole, whether it has this digest.
    ///
    /// # Errors
    /// [`Error::Offset`], [`Error::TooLarge`], [`Error::DigestMismatch`], and those of the disk.
    pub(super) async fn append<S, E>(
        &self,
        offset: u64,
        expected: Sha256,
        stream: S,
    ) -> Result<(u64, Result<(), String>), Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display + Send,
    {
        match &self.place {
            Place::Memory(bytes) => self.append_to_memory(bytes, offset, expected, stream).await,
            Place::File(path) => {
                let mut receiver = Receiver::open(path).await?;
                if receiver.offset() != offset {
                    return Err(Error::Offset(receiver.offset()));
                }
                let end = receiver.take_all(stream, self.length).await?;
                receiver.flush().await?;
                let offset = receiver.offset();
                if offset >= self.length {
                    receiver.finish_unsynced(path, Some(expected)).await?;
                }
                Ok((offset, end))
            }
        }
    }

    async fn append_to_memory<S, E>(
        &self,
        bytes: &Mutex<Bytes>,
        offset: u64,
        expected: Sha256,
        stream: S,
    ) -> Result<(u64, Result<(), String>), Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display + Send,
    {
        let begun = lock(bytes).clone();
        if begun.len() as u64 != offset {
            return Err(Error::Offset(begun.len() as u64));
        }
        let mut digest = Context::new(&SHA256);
        digest.update(&begun);
        // As much as was announced, and counted, but no more than arrives.
        let mut whole = Vec::from(begun);
        let mut end = Ok(());
        let mut stream = pin!(stream);
        while let Some(chunk) = stream.next().await {
            match chunk {
                Ok(chunk) if (whole.len() + chunk.len()) as u64 > self.length => {
                    return Err(Error::TooLarge(format!(
                        "the body goes beyond the announced length {}",
                        self.length
                    )));
                }
                Ok(chunk) => {
                    if whole.is_empty() {
                        whole.reserve_exact(usize::try_from(self.length).unwrap_or_default());
                    }
                    digest.update(&chunk);
                    whole.extend_from_slice(&chunk);
                }
                Err(why) => {
                    end = Err(why.to_string());
                    break;
                }
            }
        }
        let stands = whole.len() as u64;
        *lock(bytes) = Bytes::from(whole);
        let actual = to_digest(digest);
        if stands >= self.length && actual != expected {
            return Err(Error::DigestMismatch { expected, actual });
        }
        Ok((stands, end))
    }

    /// To be read from there. What is in memory stays there as long as somebody reads it.
    pub(super) fn content(&self) -> Content {
        match &self.place {
            Place::Memory(bytes) => Content::Bytes(lock(bytes).clone()),
            Place::File(path) => Content::File(path.clone()),
        }
    }

    /// Whether it takes memory, which would be free without it: nobody reads it just now.
    pub(super) fn takes_memory_idly(&self) -> bool {
        match &self.place {
            Place::Memory(bytes) => lock(bytes).is_unique(),
            Place::File(_) => false,
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        let counter = match &self.place {
            Place::Memory(_) => &self.taken.memory,
            Place::File(path) => {
                if let Err(error) = std::fs::remove_file(path)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(%error, file = %path.display(), "Could not remove the output of a call");
                }
                &self.taken.files
            }
        };
        counter.fetch_sub(self.length, Ordering::Relaxed);
    }
}

/// Counts the length in, if all of them stay within the most.
fn count(counter: &AtomicU64, length: u64, most: u64) -> bool {
    let more = |taken: u64| taken.checked_add(length).filter(|taken| *taken <= most);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}

fn lock(bytes: &Mutex<Bytes>) -> MutexGuard<'_, Bytes> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    fn pieces(content: &[u8]) -> impl Stream<Item = Result<Bytes, String>> + Send + use<> {
        let pieces: Vec<_> = content.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        stream::iter(pieces)
    }

    async fn small(taken: &Arc<Taken>, length: u64) -> Passing {
        let files = Files::new(std::path::Path::new("/nonexistent"));
        Passing::open(&files, taken, length, || false).await.unwrap()
    }

    #[tokio::test]
    async fn a_small_output_arrives_in_memory_in_several_parts() {
        let (taken, content) = (Arc::default(), vec![7; 10_000]);
        let output = small(&taken, 10_000).await;
        let sha256 = Sha256::of(&content);
        let cut = pieces(&content[..4000]).chain(stream::iter([Err("cut".to_owned())]));
        assert_eq!(output.append(0, sha256, cut).await.unwrap(), (4000, Err("cut".to_owned())));
        let wrong = output.append(0, sha256, pieces(&content)).await.unwrap_err();
        assert!(matches!(wrong, Error::Offset(4000)), "{wrong}");
        let beyond = output.append(4000, sha256, pieces(&content)).await.unwrap_err();
        assert!(matches!(beyond, Error::TooLarge(_)), "{beyond}");
        assert_eq!(output.offset().await.unwrap(), 4000, "what was too much is not kept");
        assert_eq!(output.append(4000, sha256, pieces(&content[4000..])).await.unwrap(), (10_000, Ok(())));
        assert_eq!(output.content(), Content::Bytes(content.into()));
        drop(output);
        assert_eq!(taken.memory.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn another_content_than_the_announced_is_found() {
        let output = small(&Arc::default(), 3).await;
        let wrong = output.append(0, Sha256::of(b"abc"), pieces(b"abd")).await.unwrap_err();
        assert!(matches!(wrong, Error::DigestMismatch { .. }), "{wrong}");
    }

    #[tokio::test]
    async fn memory_is_given_to_so_many_and_no_more() {
        let taken = Arc::default();
        let mut held = Vec::new();
        for _ in 0..MOST_IN_MEMORY / SMALL {
            held.push(small(&taken, SMALL).await);
        }
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path());
        std::fs::create_dir(folder.path().join("uploads")).unwrap();
        let next = Passing::open(&files, &taken, 1, || false).await.unwrap();
        assert!(matches!(next.content(), Content::File(_)), "there is no room: a file");
        let made = Passing::open(&files, &taken, 1, || held.pop().is_some()).await.unwrap();
        assert!(matches!(made.content(), Content::Bytes(_)), "room was made");
        assert_eq!(made.append(0, Sha256::of(b"x"), pieces(b"x")).await.unwrap(), (1, Ok(())));
        let read = made.content();
        assert!(!made.takes_memory_idly(), "somebody reads it");
        drop(read);
        assert!(made.takes_memory_idly());
    }
}
