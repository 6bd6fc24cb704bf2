//! Payloads beside the tunnel: download with `Range`, upload resumable by offset. Both go on after a cut where they
//! stopped, need constant memory, and are checked against size and digest.

use super::{Hub, Refused, body};
use crate::identity::Identity;
use aws_lc_rs::digest::{Context, SHA256};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use passerelle_protocol::{
    EventId, OutputPayload, PayloadDigest,
    http::{event_payload_path, output_path, payload_path},
    session::Attempt,
};
use reqwest::{Method, Response, StatusCode, header};
use std::{
    io::SeekFrom,
    path::{Path, PathBuf},
};
use tokio::{
    fs::{File, OpenOptions},
    io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _},
};
use tokio_util::io::ReaderStream;

/// Bytes read or hashed at once.
const CHUNK: usize = 64 * 1024;

/// Why a transfer did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Worth another try.
    #[error("{0}")]
    Again(String),
    /// The hub does not have it, or does not take it.
    #[error("{0}")]
    Refused(Refused),
    /// The content is not the announced one.
    #[error("the content does not have the announced size and digest")]
    Mismatch,
    /// The local disk.
    #[error("the spool cannot be used: {0}")]
    Disk(#[from] std::io::Error),
}

/// A download into a file, which goes on after a cut.
pub struct Download {
    file: File,
    expected: PayloadDigest,
    have: u64,
    context: Context,
}

impl Download {
    /// Opens the file; what an earlier try left in it counts.
    pub async fn open(path: &Path, expected: PayloadDigest) -> std::io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .await?;
        let mut context = Context::new(&SHA256);
        let mut have = 0;
        if file.metadata().await?.len() > expected.size {
            file.set_len(0).await?;
        }
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = file.read(&mut buffer).await?;
            if n == 0 {
                break;
            }
            context.update(buffer.get(..n).unwrap_or_default());
            have += n as u64;
        }
        Ok(Self { file, expected, have, context })
    }

    /// Bytes that are here.
    pub fn have(&self) -> u64 {
        self.have
    }

    /// Fetches what is missing, telling of each piece; ends with the whole, verified.
    pub async fn go_on(
        &mut self,
        hub: &Hub,
        identity: &Identity,
        attempt: Attempt,
        mut progress: impl FnMut(u64),
    ) -> Result<(), TransferError> {
        if self.have < self.expected.size {
            let (mut response, from) = request(hub, identity, attempt, self.have).await?;
            if from < self.have {
                self.reset().await?;
            }
            loop {
                let chunk = match response.chunk().await {
                    Ok(Some(chunk)) => chunk,
                    Ok(None) => break,
                    Err(e) => {
                        self.file.flush().await?;
                        return Err(TransferError::Again(hub.explain(&e)));
                    }
                };
                if self.have + chunk.len() as u64 > self.expected.size {
                    self.reset().await?;
                    return Err(TransferError::Mismatch);
                }
                self.file.write_all(&chunk).await?;
                self.context.update(&chunk);
                self.have += chunk.len() as u64;
                progress(chunk.len() as u64);
            }
            self.file.flush().await?;
        }
        if self.have < self.expected.size {
            return Err(TransferError::Again(format!(
                "the hub sent {} of {} bytes",
                self.have, self.expected.size
            )));
        }
        if self.context.clone().finish().as_ref() == self.expected.sha256.bytes() {
            return Ok(());
        }
        self.reset().await?;
        Err(TransferError::Mismatch)
    }

    /// Starts over: what came was wrong.
    async fn reset(&mut self) -> std::io::Result<()> {
        self.file.set_len(0).await?;
        self.file.seek(SeekFrom::Start(0)).await?;
        self.have = 0;
        self.context = Context::new(&SHA256);
        Ok(())
    }
}

/// Asks for an attempt's payload from an offset on; tells where the answer really begins, which is there or at 0.
pub(super) async fn request(
    hub: &Hub,
    identity: &Identity,
    attempt: Attempt,
    offset: u64,
) -> Result<(Response, u64), TransferError> {
    let mut request = hub
        .authorised(identity, Method::GET, &payload_path(attempt.job))
        .map_err(|e| TransferError::Again(e.to_string()))?;
    if offset > 0 {
        request = request.header(header::RANGE, format!("bytes={offset}-"));
    }
    let response = request.send().await.map_err(|e| TransferError::Again(hub.explain(&e)))?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT if offset > 0 => {
            let range = response.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok());
            if range.is_some_and(|r| r.starts_with(&format!("bytes {offset}-"))) {
                return Ok((response, offset));
            }
            Err(TransferError::Again("the hub sent another range than asked for".to_owned()))
        }
        StatusCode::OK => Ok((response, 0)),
        _ => Err(refused(response).await),
    }
}

/// Where the content of an upload is.
#[derive(Debug)]
pub enum Source {
    /// In a file.
    File(PathBuf),
    /// In memory.
    Memory(Bytes),
}

impl Source {
    /// What is left of it from an offset on.
    async fn rest(&self, offset: u64, length: u64) -> std::io::Result<reqwest::Body> {
        match self {
            Self::File(path) => {
                let mut file = File::open(path).await?;
                file.seek(SeekFrom::Start(offset)).await?;
                Ok(reqwest::Body::wrap_stream(ReaderStream::with_capacity(file.take(length), CHUNK)))
            }
            Self::Memory(bytes) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes.slice(from..).into())
            }
        }
    }
}

/// Uploads an attempt's output, from the offset that the hub has.
pub async fn upload(
    hub: &Hub,
    identity: &Identity,
    attempt: Attempt,
    output: &OutputPayload,
    source: &Source,
) -> Result<(), TransferError> {
    upload_to(hub, identity, &output_path(attempt.job, attempt.number), output, source).await
}

/// Uploads an event's payload, likewise.
pub async fn upload_event(
    hub: &Hub,
    identity: &Identity,
    event: EventId,
    payload: &OutputPayload,
    source: &Source,
) -> Result<(), TransferError> {
    upload_to(hub, identity, &event_payload_path(event), payload, source).await
}

async fn upload_to(
    hub: &Hub,
    identity: &Identity,
    url: &str,
    output: &OutputPayload,
    source: &Source,
) -> Result<(), TransferError> {
    let again = |e: reqwest::Error| TransferError::Again(hub.explain(&e));
    let request =
        |method| hub.authorised(identity, method, url).map_err(|e| TransferError::Again(e.to_string()));
    let digest = format!("sha-256=:{}:", STANDARD.encode(output.sha256.bytes()));
    let opening = request(Method::POST)?
        .header("Upload-Length", output.size)
        .header("Repr-Digest", digest)
        .header(header::CONTENT_TYPE, &output.media_type);
    // What is in memory is small, and somebody waits for it: it goes along. A hub that does not read it says so by the offset.
    let opening = match source {
        Source::Memory(bytes) => opening.body(bytes.clone()),
        Source::File(_) => opening.header(header::CONTENT_LENGTH, 0),
    };
    let opened = opening.send().await.map_err(again)?;
    let mut offset = match opened.status() {
        StatusCode::CREATED | StatusCode::OK => upload_offset(&opened).unwrap_or(0),
        StatusCode::UNPROCESSABLE_ENTITY => return Err(TransferError::Mismatch),
        _ => return Err(refused(opened).await),
    };
    while offset < output.size {
        let rest = output.size - offset;
        let content = source.rest(offset, rest).await?;
        let answer = request(patch())?
            .header("Upload-Offset", offset)
            .header(header::CONTENT_TYPE, "application/offset+octet-stream")
            .header(header::CONTENT_LENGTH, rest)
            .body(content)
            .send()
            .await
            .map_err(again)?;
        match answer.status() {
            StatusCode::NO_CONTENT | StatusCode::OK => offset = upload_offset(&answer).unwrap_or(output.size),
            StatusCode::CONFLICT => {
                // Part of an earlier try arrived after all: ask how far it came.
                let head = request(Method::HEAD)?.send().await.map_err(again)?;
                match upload_offset(&head) {
                    Some(at) if at != offset && at <= output.size => offset = at,
                    _ => return Err(refused(answer).await),
                }
            }
            StatusCode::UNPROCESSABLE_ENTITY => return Err(TransferError::Mismatch),
            _ => return Err(refused(answer).await),
        }
    }
    Ok(())
}

fn patch() -> Method {
    Method::PATCH
}

fn upload_offset(response: &Response) -> Option<u64> {
    response.headers().get("Upload-Offset")?.to_str().ok()?.trim().parse().ok()
}

/// A refusal that another try does not change, or a reason for one.
async fn refused(response: Response) -> TransferError {
    let (status, headers) = (response.status(), response.headers().clone());
    let body = body(response).await.unwrap_or_default();
    let transient = status.is_server_error() || matches!(status.as_u16(), 401 | 408 | 409 | 416 | 425 | 429);
    match Refused::read(status, &headers, &body) {
        Some(refused) if !transient => TransferError::Refused(refused),
        Some(refused) => TransferError::Again(format!("the hub answers {status}: {refused}")),
        None => TransferError::Again(format!("the hub answers {status}")),
    }
}
