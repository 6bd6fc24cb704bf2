//! Requests to the store, and what its answers mean.
//!
//! The HTTP client is asynchronous and a place is blocking: all sessions of a resource share one small runtime, whose
//! thread goes on sending while the session's own thread waits for the next bytes of a payload.

use super::{
    answer::{Root, Said},
    sign::{Keys, Signed, encode, query},
    xml,
};
use crate::{
    apart::Background,
    file::{
        backend::{FsError, Problem},
        over_http::{Waits, lost},
    },
    http::answer::retry_after,
};
use bytes::Bytes;
use jiff::Timestamp;
use reqwest::{
    Client, Method, Response, Url,
    header::{HeaderMap, HeaderValue},
};
use std::{
    collections::{HashMap, HashSet},
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// The longest key that a store takes, in bytes.
const MAX_KEY: usize = 1024;
/// The longest answer in XML: a thousand items of the longest keys fit in.
const MAX_XML: usize = 4 * 1024 * 1024;
/// The most that is read of an answer which says that something failed.
const MAX_ERROR: usize = 64 * 1024;

/// Where the bucket is, and how it is asked.
pub(super) struct Bucket {
    pub(super) client: Client,
    pub(super) keys: Keys,
    /// The endpoint with the bucket, in its host or its path, without a slash at its end.
    pub(super) base: String,
    /// As the `Host` header says it.
    pub(super) host: String,
    /// The path of `base`.
    pub(super) path: String,
    /// As it is written in front of a source to copy.
    pub(super) name: String,
    /// Before every key: empty, or with a slash at its end.
    pub(super) prefix: String,
    pub(super) runtime: Background,
    /// Taken by those who look whether a name is free and then take it.
    pub(super) careful: Mutex<()>,
    /// Whether the store obeys conditions on what completes an upload; `None` before that was tried.
    pub(super) conditional: Mutex<Option<bool>>,
    /// Names that drops under way will take if they are free.
    pub(super) reserved: Mutex<HashSet<String>>,
}

/// What is asked.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// The whole key; `None` asks the bucket itself.
    pub(super) key: Option<&'a str>,
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl<'a> Request<'a> {
    pub(super) fn new(method: Method, key: &'a str) -> Self {
        Self { method, key: Some(key), query: &[], headers: HeaderMap::new(), body: Bytes::new() }
    }

    pub(super) fn query(self, query: &'a [(&'a str, &'a str)]) -> Self {
        Self { query, ..self }
    }

    pub(super) fn header(mut self, name: &'static str, value: &str) -> Result<Self, FsError> {
        let value = HeaderValue::from_str(value)
            .map_err(|error| FsError::new(Problem::BadName, format!("{name}: {error}")))?;
        self.headers.insert(name, value);
        Ok(self)
    }

    pub(super) fn body(self, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..self }
    }
}

/// Why there is no answer.
pub(super) enum NoAnswer {
    Http(reqwest::Error),
    Other(FsError),
}

impl From<NoAnswer> for FsError {
    fn from(no_answer: NoAnswer) -> Self {
        match no_answer {
            NoAnswer::Http(error) => lost(error),
            NoAnswer::Other(error) => error,
        }
    }
}

impl Bucket {
    /// The key of a place.
    pub(super) fn key(&self, path: &str) -> Result<String, FsError> {
        let key = format!("{}{path}", self.prefix);
        if key.len() > MAX_KEY {
            return Err(FsError::new(Problem::NameTooLong, format!("the key has {} bytes", key.len())));
        }
        if key.contains(['\r', '\n']) {
            return Err(FsError::new(Problem::BadName, "the key has a line end"));
        }
        Ok(key)
    }

    /// Signs and sends; gives the head of the answer.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<Response, NoAnswer> {
        let bad = |what: &dyn std::fmt::Display| NoAnswer::Other(FsError::new(Problem::BadName, what));
        let mut path = self.path.clone();
        match request.key {
            Some(key) => {
                for name in key.split('/') {
                    path.push('/');
                    path.push_str(&encode(name));
                }
            }
            None if path.is_empty() => path.push('/'),
            None => {}
        }
        let rest = path.strip_prefix(self.path.as_str()).unwrap_or_default();
        let asked = query(request.query);
        let mark = if asked.is_empty() { "" } else { "?" };
        let url = Url::parse(&format!("{}{rest}{mark}{asked}", self.base)).map_err(|error| bad(&error))?;
        if url.path() != path && !(path.is_empty() && url.path() == "/") {
            // A URL's parser takes some names for something else; signed, they would be refused anyhow.
            return Err(bad(&"no URL leads to such a name"));
        }
        let mut headers = request.headers.clone();
        let signed = Signed {
            method: &request.method,
            host: &self.host,
            path: &path,
            query: request.query,
            body: &request.body,
        };
        self.keys
            .sign(&signed, &mut headers, Timestamp::now())
            .ok_or_else(|| bad(&"the access key's id or a header cannot be written in a header"))?;
        let mut sending = self.client.request(request.method.clone(), url).headers(headers);
        if !request.body.is_empty() || matches!(request.method, Method::PUT | Method::POST) {
            sending = sending.body(request.body.clone());
        }
        sending.send().await.map_err(NoAnswer::Http)
    }

    /// Sends, and makes an error of an answer that is none of success.
    pub(super) async fn succeed(&self, request: &Request<'_>) -> Result<Response, FsError> {
        let response = self.send(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refused(&request.method, request.key, response).await)
    }
}

/// A session: one operation after the other, with its time limits.
pub(super) struct Session {
    pub(super) bucket: Arc<Bucket>,
    /// Cancelled when the session is cut from outside.
    pub(super) fired: CancellationToken,
    /// How long the store may be silent, in milliseconds.
    pub(super) patience: AtomicU64,
    /// What the current operation has sent of each upload, so that the store need not be asked: number and entity tag.
    pub(super) sent: Mutex<HashMap<String, Vec<Piece>>>,
}

/// One piece of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) number: u32,
    pub(super) etag: String,
    pub(super) size: u64,
}

impl Waits for Session {
    fn wait<T>(&self, what: &str, future: impl Future<Output = T>) -> Result<T, FsError> {
        let limit = Duration::from_millis(self.patience.load(Ordering::Relaxed));
        let Some(runtime) = self.bucket.runtime.handle() else {
            return Err(FsError::new(Problem::Lost, "the resource is being closed"));
        };
        runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.fired.cancelled() => {
                    Err(FsError::new(Problem::Lost, format!("{what}: the connection was cut")))
                }
                value = future => Ok(value),
                () = sleep(limit) => Err(FsError::new(Problem::TimedOut, format!("{what}: no answer in time"))),
            }
        })
    }
}

impl Session {
    /// The head of the answer, whatever it is.
    pub(super) fn ask(&self, request: &Request<'_>) -> Result<Response, NoAnswer> {
        let mut repeated = false;
        loop {
            let sent =
                self.wait(request.method.as_str(), self.bucket.send(request)).map_err(NoAnswer::Other)?;
            match sent {
                // The store closed an idle connection at the same moment: what only reads is asked again.
                Err(NoAnswer::Http(error))
                    if !repeated
                        && matches!(request.method, Method::GET | Method::HEAD)
                        && !error.is_connect()
                        && !error.is_timeout() =>
                {
                    repeated = true;
                }
                other => return other,
            }
        }
    }

    /// The head of an answer of success.
    pub(super) fn succeed(&self, request: &Request<'_>) -> Result<Response, FsError> {
        let response = self.ask(request)?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.wait("reading an answer", refused(&request.method, request.key, response))?)
    }

    /// An answer of success whose body interests nobody.
    pub(super) fn tell(&self, request: &Request<'_>) -> Result<(), FsError> {
        let response = self.succeed(request)?;
        // Read, so that its connection can be used again.
        drop(self.wait("reading an answer", bounded(response, MAX_ERROR)));
        Ok(())
    }

    /// The XML in an answer of success. One that begins well may still carry an error, which then counts.
    pub(super) fn xml(
        &self,
        request: &Request<'_>,
        root: Root,
        each: impl FnMut(&[&str], &str) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        let response = self.succeed(request)?;
        let status = response.status();
        match root.read(&self.body(response)?, each)? {
            Some(said) => Err(said.error(&request.method, request.key, status, None)),
            None => Ok(()),
        }
    }

    /// A whole small body, each piece of which may take as long as the store may be silent.
    pub(super) fn body(&self, mut response: Response) -> Result<Vec<u8>, FsError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.wait("reading an answer", response.chunk())?.map_err(lost)? {
            if body.len() + chunk.len() > MAX_XML {
                return Err(xml::wrong("it is too long"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// What was sent of uploads.
    pub(super) fn sent(&self) -> MutexGuard<'_, HashMap<String, Vec<Piece>>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn bounded(mut response: Response, max: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        if body.len() + chunk.len() > max {
            break;
        }
        body.extend_from_slice(&chunk);
    }
    body
}

/// The error that an answer means.
pub(super) async fn refused(method: &Method, key: Option<&str>, response: Response) -> FsError {
    let status = response.status();
    let after = retry_after(response.headers(), Timestamp::now());
    let body = bounded(response, MAX_ERROR).await;
    let mut said = Said::default();
    // What is no XML comes from something in between, and its status is all there is.
    drop(xml::read(&body, |path, text| {
        said.take(path, text);
        Ok(())
    }));
    said.error(method, key, status, after)
}
