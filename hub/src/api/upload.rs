//! Resumable uploads as in tus 1.0: the headers, their reading, and streams that say why they broke off.

use super::{body, problem::Problem};
use axum::body::Body;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use passerelle_protocol::{ApiCode, Sha256};
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

/// How many bytes are here.
pub const OFFSET: HeaderName = HeaderName::from_static("upload-offset");
/// How many bytes it will have.
pub const LENGTH: HeaderName = HeaderName::from_static("upload-length");
const DEFER_LENGTH: HeaderName = HeaderName::from_static("upload-defer-length");
/// The version of tus.
pub const RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
/// The version of tus that is spoken.
pub const VERSION: &str = "1.0.0";
const REPR_DIGEST: &str = "repr-digest";
const PATCH_TYPE: &str = "application/offset+octet-stream";

/// Refuses a client that speaks another version of tus; one that names none is taken.
///
/// # Errors
/// 412.
pub fn check_version(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(RESUMABLE) {
        Some(version) if version != VERSION => {
            Err(Problem::bad_request(format!("tus-resumable: only {VERSION} is spoken here"))
                .status(StatusCode::PRECONDITION_FAILED)
                .header(HeaderName::from_static("tus-version"), HeaderValue::from_static(VERSION)))
        }
        _ => Ok(()),
    }
}

/// Refuses an upload whose length is to be told later: it would be taken for a whole content, an empty one.
///
/// # Errors
/// 400.
pub fn check_not_deferred(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.contains_key(DEFER_LENGTH) {
        return Err(Problem::bad_request(
            "upload-defer-length: not possible here: the length must be given as Upload-Length when the upload is opened",
        ));
    }
    Ok(())
}

/// Reads a header with a number of bytes.
///
/// # Errors
/// 400 if it is not one.
pub fn number(headers: &HeaderMap, name: &HeaderName) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let digits = value.to_str().unwrap_or_default();
    match digits.parse() {
        Ok(number) if digits.bytes().all(|b| b.is_ascii_digit()) => Ok(Some(number)),
        _ => Err(Problem::bad_request(format!("{name}: expected a number of bytes"))),
    }
}

/// The SHA-256 of `Repr-Digest: sha-256=:…:` (RFC 9530); other algorithms beside it are passed over. Of the same algorithm
/// the last one counts (RFC 8941 §3.2).
///
/// # Errors
/// 400 if it is malformed, or has no digest that is checked here.
pub fn digest(headers: &HeaderMap) -> Result<Option<Sha256>, Problem> {
    let wrong = || Problem::bad_request("repr-digest: expected sha-256=:BASE64: of 32 bytes");
    let (mut found, mut others) = (None, false);
    for value in headers.get_all(REPR_DIGEST) {
        for member in value.to_str().map_err(|_| wrong())?.split(',') {
            let (algorithm, digest) = member.trim().split_once('=').ok_or_else(wrong)?;
            if algorithm.eq_ignore_ascii_case("sha-256") {
                let base64 =
                    digest.strip_prefix(':').and_then(|rest| rest.strip_suffix(':')).ok_or_else(wrong)?;
                let bytes: [u8; 32] =
                    STANDARD.decode(base64).map_err(|_| wrong())?.try_into().map_err(|_| wrong())?;
                found = Some(Sha256::from(bytes));
            } else {
                others = true;
            }
        }
    }
    if found.is_none() && others {
        return Err(Problem::bad_request("repr-digest: only sha-256 is checked here: send sha-256=:BASE64:"));
    }
    Ok(found)
}

/// The offset of a `PATCH`, its content type checked.
///
/// # Errors
/// 415 for another content type, 400 without an offset.
pub fn patch_offset(headers: &HeaderMap) -> Result<u64, Problem> {
    check_version(headers)?;
    let kind =
        headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !kind.eq_ignore_ascii_case(PATCH_TYPE) {
        return Err(Problem::bad_request(format!("content-type: send parts of an upload as {PATCH_TYPE}"))
            .status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    number(headers, &OFFSET)?.ok_or_else(|| Problem::bad_request("upload-offset: missing"))
}

/// Refuses more than `limit` bytes.
///
/// # Errors
/// 413.
pub fn check_size(size: u64, limit: u64) -> Result<(), Problem> {
    if size > limit {
        return Err(Problem::new(ApiCode::TooLarge, format!("a blob has at most {limit} bytes at this hub")));
    }
    Ok(())
}

/// Why a stream broke off, told beside it: the store only learns that it did.
#[derive(Clone, Default)]
pub struct Cause(Arc<Mutex<Option<Problem>>>);

impl Cause {
    fn set(&self, problem: Problem) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
    }

    /// The reason, if it did.
    #[must_use]
    pub fn take(&self) -> Option<Problem> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A body that ends in an error when it stalls or has more than `limit` bytes.
pub fn stream(
    body: Body,
    limit: u64,
) -> (impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static, Cause) {
    let cause = Cause::default();
    let told = cause.clone();
    let mut total = 0_u64;
    let stream = body::steady(body).map(move |chunk| {
        let problem = match &chunk {
            Ok(bytes) => {
                total = total.saturating_add(bytes.len() as u64);
                check_size(total, limit).err()
            }
            Err(error) => Some(body::cut(error)),
        };
        match problem {
            None => chunk,
            Some(problem) => {
                let text = problem.detail().to_owned();
                told.set(problem);
                Err(io::Error::other(text))
            }
        }
    });
    (stream, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn digests_and_numbers_are_read_strictly() {
        let empty = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        for good in [format!("sha-256=:{empty}:"), format!("sha-512=:AA==:, sha-256=:{empty}:")] {
            assert_eq!(digest(&headers("repr-digest", &good)).unwrap(), Some(Sha256::of(b"")), "{good}");
        }
        assert_eq!(digest(&HeaderMap::new()).unwrap(), None);
        let (wrong, right) = (STANDARD.encode([0; 32]), format!("sha-256=:{empty}:"));
        let last = digest(&headers("repr-digest", &format!("{right}, sha-256=:{wrong}:"))).unwrap();
        assert_eq!(last, Some(Sha256::from([0; 32])));
        for bad in ["x", "md5=:AA==:", "sha-512=:AAAA:", "sha-256=abc", "sha-256=:AA==:", "sha-256=:*:"] {
            assert!(digest(&headers("repr-digest", bad)).is_err(), "{bad}");
        }
        assert_eq!(number(&headers("upload-length", "7"), &LENGTH).unwrap(), Some(7));
        for bad in ["", "-1", "+1", "1.0", "99999999999999999999"] {
            assert!(number(&headers("upload-length", bad), &LENGTH).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_stream_that_grows_too_long_tells_why() {
        let (mut stream, cause) = stream(Body::from("12345"), 4);
        assert!(stream.next().await.unwrap().is_err());
        assert_eq!(cause.take().unwrap().status_code(), 413);
    }
}
