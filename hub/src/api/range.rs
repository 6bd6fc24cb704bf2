//! Downloads: stored content with `ETag`, a single `Range`, `If-Range` and `If-None-Match` (RFC 9110 §13, §14).

use super::problem::Problem;
use crate::store::Content;
use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, stream::try_unfold};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use passerelle_protocol::{ApiCode, Sha256};
use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::PathBuf,
};

/// How much is read from disk at a time: each time costs two changes of thread, so it is some milliseconds' worth.
const CHUNK: u64 = 256 * 1024;

/// What a client asked for of a content of known size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Everything.
    Whole,
    /// `start..=end`, inside the content.
    Part {
        /// First byte.
        start: u64,
        /// Last byte.
        end: u64,
    },
    /// A range outside the content.
    Unsatisfiable,
}

/// Reads a `Range` header. Several ranges and unknown units or syntax mean the whole, as RFC 9110 §14.2 allows.
#[must_use]
pub fn parse(range: &str, size: u64) -> Wanted {
    let Some((first, last)) = range.trim().strip_prefix("bytes=").and_then(|set| set.trim().split_once('-'))
    else {
        return Wanted::Whole;
    };
    let number = |text: &str| -> Option<Option<u64>> {
        match text.trim() {
            "" => Some(None),
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(Some(digits.parse().unwrap_or(u64::MAX)))
            }
            _ => None,
        }
    };
    match (number(first), number(last)) {
        (Some(Some(start)), Some(end)) => {
            if end.is_some_and(|end| end < start) {
                return Wanted::Whole;
            }
            if start >= size {
                return Wanted::Unsatisfiable;
            }
            Wanted::Part { start, end: end.map_or(size - 1, |end| end.min(size - 1)) }
        }
        (Some(None), Some(Some(suffix))) if suffix == 0 || size == 0 => Wanted::Unsatisfiable,
        (Some(None), Some(Some(suffix))) => {
            Wanted::Part { start: size.saturating_sub(suffix), end: size - 1 }
        }
        _ => Wanted::Whole,
    }
}

/// Stored content, ready to be sent.
pub struct Download<'a> {
    /// Where the bytes are.
    pub content: Content,
    /// Its size.
    pub size: u64,
    /// Its digest: the `ETag`.
    pub sha256: Sha256,
    /// Its media type.
    pub media_type: &'a str,
}

impl Download<'_> {
    /// Answers a request with these headers.
    ///
    /// # Errors
    /// 416 for a range outside the content; 500 if it cannot be read.
    pub async fn answer(self, request: &HeaderMap) -> Result<Response, Problem> {
        let etag = format!("\"{}\"", self.sha256);
        let text = |name: header::HeaderName| request.get(name).and_then(|value| value.to_str().ok());
        let mut headers = HeaderMap::new();
        headers.insert(header::ETAG, value(&etag));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
        headers.insert(header::CONTENT_TYPE, value(self.media_type));
        if text(header::IF_NONE_MATCH).is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == etag)) {
            return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
        }
        // If-Range holds only on an exact match of a strong validator.
        let fresh = text(header::IF_RANGE).is_none_or(|validator| validator.trim() == etag);
        let wanted = match text(header::RANGE) {
            Some(range) if fresh => parse(range, self.size),
            _ => Wanted::Whole,
        };
        let (status, start, length) = match wanted {
            Wanted::Whole => (StatusCode::OK, 0, self.size),
            Wanted::Part { start, end } => {
                headers.insert(header::CONTENT_RANGE, value(&format!("bytes {start}-{end}/{}", self.size)));
                (StatusCode::PARTIAL_CONTENT, start, end - start + 1)
            }
            Wanted::Unsatisfiable => {
                let detail = format!("the range lies outside the content of {} bytes", self.size);
                return Err(Problem::new(ApiCode::BadRequest, detail)
                    .status(StatusCode::RANGE_NOT_SATISFIABLE)
                    .header(header::CONTENT_RANGE, value(&format!("bytes */{}", self.size))));
            }
        };
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        let body = match self.content {
            Content::Bytes(bytes) => {
                let from = usize::try_from(start).unwrap_or(usize::MAX);
                let until = usize::try_from(start + length).unwrap_or(usize::MAX);
                Body::from(bytes.slice(from.min(bytes.len())..until.min(bytes.len())))
            }
            Content::File(path) => {
                let file = blocking(move || open(path, start)).await.map_err(|e| Problem::internal(&e))?;
                Body::from_stream(pieces(file, length))
            }
        };
        Ok((status, headers, body).into_response())
    }
}

fn open(path: PathBuf, start: u64) -> io::Result<File> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    Ok(file)
}

/// The next `length` bytes of a file, each read straight into the piece that is sent.
fn pieces(file: File, length: u64) -> impl Stream<Item = io::Result<Bytes>> + Send {
    try_unfold((file, length), async |(file, left)| {
        let (file, piece) = blocking(move || {
            let now = left.min(CHUNK);
            let mut piece = Vec::with_capacity(usize::try_from(now).unwrap_or_default());
            (&file).take(now).read_to_end(&mut piece)?;
            Ok((file, piece))
        })
        .await?;
        // A file that is shorter than it was ends the body early, which its reader sees.
        let left = left - piece.len() as u64;
        Ok((!piece.is_empty()).then(|| (Bytes::from(piece), (file, left))))
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// A header value; text that is none (a media type cannot be, it is checked on the way in) becomes the neutral type.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("application/octet-stream"))
}

#[cfg(test)]
mod tests {
    use super::{Wanted, parse};

    #[test]
    fn a_single_range_is_understood_and_the_rest_is_the_whole() {
        let part = |start, end| Wanted::Part { start, end };
        for (range, size, expected) in [
            ("bytes=0-0", 10, part(0, 0)),
            ("bytes=2-", 10, part(2, 9)),
            ("bytes=2-99", 10, part(2, 9)),
            ("bytes=-3", 10, part(7, 9)),
            ("bytes=-30", 10, part(0, 9)),
            ("bytes=0-99999999999999999999999", 10, part(0, 9)),
            ("bytes=10-", 10, Wanted::Unsatisfiable),
            ("bytes=-0", 10, Wanted::Unsatisfiable),
            ("bytes=0-", 0, Wanted::Unsatisfiable),
            ("bytes=-1", 0, Wanted::Unsatisfiable),
            ("bytes=5-2", 10, Wanted::Whole),
            ("bytes=0-1,3-4", 10, Wanted::Whole),
            ("lines=0-1", 10, Wanted::Whole),
            ("bytes=a-b", 10, Wanted::Whole),
            ("bytes=-", 10, Wanted::Whole),
            ("", 10, Wanted::Whole),
        ] {
            assert_eq!(parse(range, size), expected, "{range} of {size}");
        }
    }
}
