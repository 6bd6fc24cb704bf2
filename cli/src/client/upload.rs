//! Uploads of large payloads: opened with their size and digest, sent in pieces, continued where they were after a cut.

use super::{Client, refusal};
use crate::Failure;
use aws_lc_rs::digest::{Context, SHA256};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use passerelle_protocol::Sha256;
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use std::{io::SeekFrom, path::Path, time::Duration};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
};

const PIECE: usize = 8 * 1024 * 1024;
/// A piece over a slow line: 8 MiB in 10 minutes is 14 KB/s.
const PIECE_TIMEOUT: Duration = Duration::from_secs(600);
/// So many cuts in a row without a byte of progress end the upload.
const TRIES: u32 = 8;
const OFFSET: &str = "upload-offset";

/// Uploads a file and gives the blob's id and digest. A progress bar shows on a terminal.
///
/// # Errors
/// A usage failure if the file cannot be read, a hub failure if it cannot be stored.
pub(crate) async fn blob(
    client: &Client,
    file: &Path,
    size: u64,
    media_type: Option<&str>,
) -> Result<(String, Sha256), Failure> {
    let unreadable = |e: std::io::Error| Failure::usage(format!("cannot read {}: {e}", file.display()));
    let mut content = File::open(file).await.map_err(unreadable)?;
    let bar = bar(size);
    bar.set_message("digesting");
    let digest = digest(&mut content, &bar).await.map_err(unreadable)?;

    let mut request = client
        .request(Method::POST, "v1/blobs")?
        .header("upload-length", size)
        .header("repr-digest", format!("sha-256=:{}:", STANDARD.encode(digest.bytes())));
    if let Some(media_type) = media_type {
        request = request.header("content-type", media_type);
    }
    let opened = client.ask(request).await?;
    let id = opened.get("id").and_then(Value::as_str);
    let id = id.ok_or_else(|| Failure::hub("the hub opened an upload without an id; is it a hub?"))?;

    bar.reset();
    bar.set_message("uploading");
    let mut sender = Sender { client, id, size, bar: &bar };
    sender.send(&mut content).await.map_err(|failure| match failure {
        Trouble::Read(e) => unreadable(e),
        Trouble::Failure(failure) => failure,
    })?;
    bar.finish_and_clear();
    Ok((id.to_owned(), digest))
}

fn bar(size: u64) -> ProgressBar {
    // Hidden by itself where standard error is no terminal.
    let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr());
    let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

async fn digest(content: &mut File, bar: &ProgressBar) -> std::io::Result<Sha256> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 1024 * 1024];
    loop {
        let n = content.read(&mut buffer).await?;
        let Some(read @ [_, ..]) = buffer.get(..n) else { break };
        context.update(read);
        bar.inc(n as u64);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    Ok(Sha256::from(digest))
}

enum Trouble {
    Read(std::io::Error),
    Failure(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

struct Sender<'a> {
    client: &'a Client,
    id: &'a str,
    size: u64,
    bar: &'a ProgressBar,
}

impl Sender<'_> {
    async fn send(&mut self, content: &mut File) -> Result<(), Trouble> {
        let (mut offset, mut failures) = (0, 0);
        while offset < self.size {
            content.seek(SeekFrom::Start(offset)).await.map_err(Trouble::Read)?;
            let mut piece = Vec::new();
            content.take(PIECE as u64).read_to_end(&mut piece).await.map_err(Trouble::Read)?;
            if piece.is_empty() {
                return Err(Failure::usage("the file became shorter while it was uploaded").into());
            }
            let reached = match self.append(offset, piece).await {
                Ok(reached) => reached,
                Err(Some(refused)) => return Err(refused.into()),
                // Cut off: the hub knows how far it came.
                Err(None) => self.standing().await?.unwrap_or(offset),
            };
            if reached > offset {
                failures = 0;
            } else {
                failures += 1;
                if failures == TRIES {
                    let message = format!("the upload was cut off {TRIES} times in a row at byte {offset}");
                    return Err(Failure::hub(message).into());
                }
                self.bar.set_message("reconnecting");
                tokio::time::sleep(Duration::from_millis(200 << failures)).await;
                self.bar.set_message("uploading");
            }
            offset = reached;
            self.bar.set_position(offset);
        }
        Ok(())
    }

    /// Sends a piece. `Err(None)` says that it was cut off.
    async fn append(&self, offset: u64, piece: Vec<u8>) -> Result<u64, Option<Failure>> {
        let request = self
            .client
            .request(Method::PATCH, &format!("v1/blobs/{}", self.id))?
            .header(OFFSET, offset)
            .header("content-type", "application/offset+octet-stream")
            .timeout(PIECE_TIMEOUT)
            .body(piece);
        let Ok(response) = request.send().await else { return Err(None) };
        let status = response.status();
        // 409: it stands elsewhere, which the next question tells.
        if status.is_server_error() && status != StatusCode::INSUFFICIENT_STORAGE
            || matches!(
                status,
                StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
            )
        {
            return Err(None);
        }
        if !status.is_success() {
            return Err(Some(refusal(status, &response.text().await.unwrap_or_default())));
        }
        standing(&response).filter(|offset| *offset <= self.size).ok_or(None)
    }

    /// How far the upload is; `None` if the hub does not answer just now.
    async fn standing(&self) -> Result<Option<u64>, Failure> {
        let request = self.client.request(Method::HEAD, &format!("v1/blobs/{}", self.id))?;
        let Ok(response) = request.send().await else { return Ok(None) };
        if response.status() == StatusCode::NOT_FOUND {
            return Err(Failure::hub("the hub has dropped the upload; submit the job again"));
        }
        Ok(standing(&response).filter(|offset| *offset <= self.size))
    }
}

fn standing(response: &Response) -> Option<u64> {
    response.headers().get(OFFSET)?.to_str().ok()?.parse().ok()
}
