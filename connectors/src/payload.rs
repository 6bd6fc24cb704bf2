//! Payloads as streams in both directions, measured and digested on the way. A file is never held in memory.

use crate::{Code, Failure, Progress};
use aws_lc_rs::digest::{Context, SHA256};
use std::{future::Future, io, pin::Pin, sync::Arc};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The payload of a job. Reading fails with `digest_mismatch` if size or digest turn out wrong, at the latest when
/// the end is reached: a connector that has read to the end (`read` gave 0) holds exactly what was announced.
pub struct Input {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    size: u64,
    sha256: [u8; 32],
    media_type: String,
    seen: u64,
    context: Context,
    again: Option<Again>,
    progress: Progress,
}

/// Opens a payload once more from its beginning.
type Reopen = dyn Fn() -> io::Result<Box<dyn AsyncRead + Send + Unpin>> + Send + Sync;

/// How a payload can be read once more, verified anew.
#[derive(Clone)]
pub struct Again {
    reopen: Arc<Reopen>,
    size: u64,
    sha256: [u8; 32],
    media_type: String,
}

impl Again {
    /// The payload from its beginning.
    ///
    /// # Errors
    /// `internal` (retry) if it cannot be opened any more.
    pub fn input(&self) -> Result<Input, Failure> {
        let reader = (self.reopen)().map_err(|e| {
            Failure::retry(Code::Internal, "the payload could not be read a second time").detail(e)
        })?;
        Ok(Input::new(reader, self.size, self.sha256, self.media_type.clone()))
    }
}

impl Input {
    /// Wraps a reader that should give `size` bytes of digest `sha256`.
    #[must_use]
    pub fn new(
        reader: Box<dyn AsyncRead + Send + Unpin>,
        size: u64,
        sha256: [u8; 32],
        media_type: String,
    ) -> Self {
        let (context, progress) = (Context::new(&SHA256), Progress::default());
        Self { reader, size, sha256, media_type, seen: 0, context, again: None, progress }
    }

    /// Says how the payload can be opened once more from its beginning.
    #[must_use]
    pub fn reopened_by(
        mut self,
        reopen: impl Fn() -> io::Result<Box<dyn AsyncRead + Send + Unpin>> + Send + Sync + 'static,
    ) -> Self {
        let (size, sha256, media_type) = (self.size, self.sha256, self.media_type.clone());
        self.again = Some(Again { reopen: Arc::new(reopen), size, sha256, media_type });
        self
    }

    /// Has each piece that is read count as progress, however long a whole slice of it takes.
    pub fn report_to(&mut self, progress: &Progress) {
        self.progress = progress.clone();
    }

    /// How to read it once more; `None` where it comes as a stream that is gone once read.
    #[must_use]
    pub fn again(&self) -> Option<Again> {
        self.again.clone()
    }

    /// The announced size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes that are still to be read.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.size.saturating_sub(self.seen)
    }

    /// The announced digest.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// The announced media type.
    #[must_use]
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// Reads some bytes; 0 only at the verified end (or for an empty `buffer`).
    ///
    /// # Errors
    /// `digest_mismatch` (permanent) if the content is not the announced one; `internal` (retry) if reading fails.
    ///
    /// # Cancel safety
    /// Cancel safe: bytes are either counted and returned, or not taken.
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        let n = self.reader.read(buffer).await.map_err(|e| {
            Failure::retry(Code::Internal, "the payload could not be read to its end").detail(e)
        })?;
        if n > 0 {
            self.progress.beat();
        }
        self.seen += n as u64;
        self.context.update(buffer.get(..n).unwrap_or_default());
        let ended = n == 0 && !buffer.is_empty();
        if self.seen > self.size || (ended && self.seen < self.size) {
            return Err(mismatch().detail(format!("{} bytes seen, {} announced", self.seen, self.size)));
        }
        if ended && self.context.clone().finish().as_ref() != self.sha256 {
            return Err(mismatch());
        }
        Ok(n)
    }

    /// Fills `buffer` as far as the payload goes; shorter than the buffer only at the verified end.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        let mut filled = 0;
        while let Some(rest @ [_, ..]) = buffer.get_mut(filled..) {
            match self.read(rest).await? {
                0 => break,
                n => filled += n,
            }
        }
        Ok(filled)
    }
}

fn mismatch() -> Failure {
    Failure::permanent(
        Code::DigestMismatch,
        "the payload does not have the size and digest that the job announces",
    )
}

/// Brings finished outputs to where they outlive this process, and the machine it runs on.
pub trait Keeper: Send + Sync {
    /// Returns `Ok` only once the output is stored there for good: then what it was made from may be taken away.
    fn keep<'a>(
        &'a self,
        produced: &'a Produced,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;
}

/// Where an operation writes its output payload. Dropped without [`Output::finish`], the output counts for nothing.
pub struct Output {
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    max: u64,
    size: u64,
    context: Context,
    produced: Option<Produced>,
    keeper: Option<Arc<dyn Keeper>>,
    recalled: bool,
}

/// A finished output payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Produced {
    /// Size in bytes.
    pub size: u64,
    /// Digest of the content.
    pub sha256: [u8; 32],
    /// Media type.
    pub media_type: String,
}

impl Output {
    /// Wraps a writer that takes up to `max` bytes.
    #[must_use]
    pub fn new(writer: Box<dyn AsyncWrite + Send + Unpin>, max: u64) -> Self {
        let context = Context::new(&SHA256);
        Self { writer, max, size: 0, context, produced: None, keeper: None, recalled: false }
    }

    /// Says who can keep it for good.
    #[must_use]
    pub fn kept_by(mut self, keeper: Arc<dyn Keeper>) -> Self {
        self.keeper = Some(keeper);
        self
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// `too_large` (permanent) past the limit; `internal` (retry) if the spool cannot be written.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.size += bytes.len() as u64;
        if self.size > self.max {
            let message = format!("the output is larger than the {} bytes allowed", self.max);
            return Err(Failure::permanent(Code::TooLarge, message));
        }
        self.context.update(bytes);
        self.writer.write_all(bytes).await.map_err(spool_failed)
    }

    /// Says that the output is whole.
    ///
    /// # Errors
    /// `internal` (retry) if the spool cannot be written.
    pub async fn finish(&mut self, media_type: &str) -> Result<Produced, Failure> {
        self.writer.shutdown().await.map_err(spool_failed)?;
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(self.context.clone().finish().as_ref());
        let produced = Produced { size: self.size, sha256, media_type: media_type.to_owned() };
        self.produced = Some(produced.clone());
        Ok(produced)
    }

    /// Has the finished output stored for good, for an operation that takes away what it was made from.
    ///
    /// # Errors
    /// If it cannot be stored, or nobody keeps outputs here: then nothing may be taken away.
    pub async fn keep(&mut self) -> Result<(), Failure> {
        match (&self.keeper, &self.produced) {
            (Some(keeper), Some(produced)) => keeper.keep(produced).await,
            (None, _) | (_, None) => {
                let message = "the output cannot be stored for good here, so nothing that it was made from is taken away";
                Err(Failure::permanent(Code::TargetUnsupported, message))
            }
        }
    }

    /// Takes up an output that an earlier run of the job finished and had stored for good.
    pub fn recall(&mut self, produced: Produced) {
        self.produced = Some(produced);
        self.recalled = true;
    }

    /// Whether the output is that of an earlier run, and nothing was written to this one.
    #[must_use]
    pub fn is_recalled(&self) -> bool {
        self.recalled
    }

    /// The finished output, if the operation made one.
    #[must_use]
    pub fn produced(&self) -> Option<&Produced> {
        self.produced.as_ref()
    }
}

fn spool_failed(error: io::Error) -> Failure {
    Failure::retry(Code::Internal, "the output could not be stored on the agent's disk").detail(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict;
    use aws_lc_rs::digest::digest;
    use std::{
        io::Cursor,
        pin::Pin,
        task::{Context as Waker, Poll},
    };

    fn sha256(content: &[u8]) -> [u8; 32] {
        digest(&SHA256, content).as_ref().try_into().unwrap()
    }

    fn input(content: &'static [u8], size: u64, sha256: [u8; 32]) -> Input {
        Input::new(Box::new(Cursor::new(content)), size, sha256, "text/csv".to_owned())
    }

    #[tokio::test]
    async fn what_was_announced_is_read_to_its_verified_end() {
        for content in [&b""[..], b"x", b"accounting export"] {
            let mut input = input(content, content.len() as u64, sha256(content));
            let mut all = Vec::new();
            let mut buffer = [0; 5];
            loop {
                match input.read(&mut buffer).await.unwrap() {
                    0 => break,
                    n => all.extend_from_slice(&buffer[..n]),
                }
            }
            assert_eq!(all, content);
            assert_eq!(input.read(&mut buffer).await.unwrap(), 0, "the end stays the end");
            assert_eq!(input.read(&mut []).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn fill_is_short_only_at_the_end() {
        let content = b"0123456789";
        let mut input = input(content, 10, sha256(content));
        let mut buffer = [0; 4];
        let mut lengths = Vec::new();
        loop {
            let n = input.fill(&mut buffer).await.unwrap();
            lengths.push(n);
            if n < buffer.len() {
                break;
            }
        }
        assert_eq!(lengths, [4, 4, 2]);
    }

    #[tokio::test]
    async fn each_piece_that_comes_is_a_sign_of_life() {
        let content = b"0123456789";
        let progress = Progress::default();
        let mut input = input(content, 10, sha256(content));
        input.report_to(&progress);
        let mut buffer = [0; 4];
        for beats in [1, 2, 3] {
            assert!(input.read(&mut buffer).await.unwrap() > 0);
            assert_eq!(progress.beats(), beats);
        }
        assert_eq!(input.read(&mut buffer).await.unwrap(), 0);
        assert_eq!(
            (progress.beats(), progress.done()),
            (3, 0),
            "the end is no piece, and nothing has moved yet"
        );
    }

    #[tokio::test]
    async fn other_content_than_announced_is_a_mismatch() {
        let good = sha256(b"content");
        for (content, size, digest) in [
            (&b"content"[..], 7, [0; 32]),
            (b"conten", 7, good),
            (b"content!", 7, good),
            (b"", 7, good),
            (b"kontent", 7, good),
        ] {
            let mut input = input(content, size, digest);
            let mut buffer = [0; 64];
            let failure = input.fill(&mut buffer).await.unwrap_err();
            assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::DigestMismatch));
        }
    }

    #[tokio::test]
    async fn a_broken_source_is_worth_another_attempt() {
        struct Broken;
        impl AsyncRead for Broken {
            fn poll_read(
                self: Pin<&mut Self>,
                _: &mut Waker<'_>,
                _: &mut tokio::io::ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
        }
        let mut input = Input::new(Box::new(Broken), 1, [0; 32], String::new());
        let failure = input.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!((failure.verdict, failure.code), (Verdict::Retry, Code::Internal));
    }

    #[tokio::test]
    async fn an_output_is_measured_and_counts_only_when_finished() {
        let mut output = Output::new(Box::new(Vec::new()), 7);
        output.write(b"con").await.unwrap();
        output.write(b"tent").await.unwrap();
        assert_eq!(output.produced(), None);
        let produced = output.finish("text/csv").await.unwrap();
        let expected = Produced { size: 7, sha256: sha256(b"content"), media_type: "text/csv".to_owned() };
        assert_eq!(produced, expected);
        assert_eq!(output.produced(), Some(&expected));
    }

    #[tokio::test]
    async fn an_output_past_its_limit_is_too_large() {
        let mut output = Output::new(Box::new(Vec::new()), 7);
        output.write(b"content").await.unwrap();
        let failure = output.write(b"!").await.unwrap_err();
        assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::TooLarge));
        assert_eq!(output.produced(), None);
    }
}
