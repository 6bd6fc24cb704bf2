//! Requests to the server, one after another: log-in, time limits, and what its answers mean.
//!
//! The HTTP client is asynchronous and a place is blocking: each session has a small runtime of its own on the thread
//! that uses it, so that no other thread is woken for it.

use super::{
    auth::{Challenge, Credentials},
    multistatus::{self, Item},
    names::{Member, Root},
};
use crate::{
    file::{
        backend::{FsError, Problem},
        over_http::{Body, Waits, lost},
    },
    http::answer::retry_after,
};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use std::{
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{runtime::Runtime, time::sleep};
use tokio_util::sync::CancellationToken;

/// What is asked about a file or folder.
const PROPERTIES: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?><propfind xmlns=\"DAV:\"><prop><resourcetype/>\
                          <getcontentlength/><getlastmodified/><getetag/></prop></propfind>";
/// How much of an answer that says nothing is read, so that its connection can be used again.
const MAX_DRAINED: usize = 64 * 1024;
/// From which length on a path that is refused without a reason is taken for too long: Linux takes 4,095 bytes, and the
/// server's own folder and the name of a part come on top.
const LONG_PATH: usize = 3900;

/// A method of WebDAV.
pub(super) fn method(name: &'static str) -> Method {
    Method::from_bytes(name.as_bytes()).unwrap_or_default()
}

/// A logged-in session.
pub(super) struct Session {
    pub(super) runtime: Runtime,
    pub(super) client: Client,
    pub(super) root: Root,
    pub(super) credentials: Option<Arc<Credentials>>,
    /// What the server asked for, once it has.
    pub(super) challenge: Mutex<Option<Challenge>>,
    /// Cancelled when the session is cut from outside.
    pub(super) fired: CancellationToken,
    /// How long the server may be silent, in milliseconds.
    pub(super) patience: AtomicU64,
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

impl Waits for Session {
    fn wait<T>(&self, what: &str, future: impl Future<Output = T>) -> Result<T, FsError> {
        let limit = Duration::from_millis(self.patience.load(Ordering::Relaxed));
        self.runtime.block_on(async {
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
    /// Lets the runtime see what came meanwhile, such as the server's end of an idle connection.
    pub(super) fn look_around(&self) {
        self.runtime.block_on(async {
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
        });
    }

    /// A request with the log-in that the server asked for; whether it has one.
    pub(super) fn request(&self, method: &Method, url: &Url) -> Result<(RequestBuilder, bool), FsError> {
        let request = self.client.request(method.clone(), url.clone());
        let mut challenge = self.challenge.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(challenge), Some(who)) = (challenge.as_mut(), &self.credentials) else {
            return Ok((request, false));
        };
        let value = challenge
            .answer(who, method.as_str(), url.path())
            .ok_or_else(|| FsError::new(Problem::Auth, "the user's name cannot be written in a header"))?;
        Ok((request.header(AUTHORIZATION, value), true))
    }

    /// Sends a request without a body, or with that of a PROPFIND, and waits for the head of its answer.
    pub(super) fn ask(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        body: Option<&'static str>,
    ) -> Result<Response, NoAnswer> {
        let (mut repeated, mut logged_in) = (false, false);
        loop {
            let (mut request, with_log_in) = self.request(method, url).map_err(NoAnswer::Other)?;
            request = request.headers(headers.clone());
            if let Some(body) = body {
                request = request
                    .header(CONTENT_TYPE, HeaderValue::from_static("application/xml; charset=utf-8"))
                    .body(body);
            }
            let response = match self.wait(method.as_str(), request.send()).map_err(NoAnswer::Other)? {
                Ok(response) => response,
                // The server closed an idle connection at the same moment: what only reads is asked again.
                Err(error) if !repeated && reads(method) && !error.is_connect() && !error.is_timeout() => {
                    repeated = true;
                    continue;
                }
                Err(error) => return Err(NoAnswer::Http(error)),
            };
            self.follow(response.headers());
            if response.status() == StatusCode::UNAUTHORIZED
                && !logged_in
                && self.challenged(response.headers(), with_log_in).map_err(NoAnswer::Other)?
            {
                logged_in = true;
                self.drain(response);
                continue;
            }
            return Ok(response);
        }
    }

    /// Takes up what the server asks for; whether a request with a log-in is worth trying.
    pub(super) fn challenged(&self, headers: &HeaderMap, with_log_in: bool) -> Result<bool, FsError> {
        if self.credentials.is_none() {
            return Ok(false);
        }
        let asked = headers.get_all(WWW_AUTHENTICATE).iter().map(HeaderValue::as_bytes);
        let challenge = Challenge::choose(asked).map_err(|error| FsError::new(Problem::Auth, error))?;
        let worth_it = !with_log_in || challenge.is_stale();
        *self.challenge.lock().unwrap_or_else(PoisonError::into_inner) = Some(challenge);
        Ok(worth_it)
    }

    /// Takes up the next nonce, if the server names one.
    fn follow(&self, headers: &HeaderMap) {
        if let Some(info) = headers.get("authentication-info")
            && let Some(challenge) = self.challenge.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
        {
            challenge.follow(info.as_bytes());
        }
    }

    /// Reads what is left of a short answer, so that its connection can be used again.
    pub(super) fn drain(&self, mut response: Response) {
        let mut left = MAX_DRAINED;
        while let Ok(Ok(Some(chunk))) = self.wait("reading an answer", response.chunk()) {
            match left.checked_sub(chunk.len()) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    }

    /// The error that an answer means.
    pub(super) fn refused(&self, method: &Method, url: &Url, response: Response) -> FsError {
        let status = response.status();
        let detail = format!("{method} {}: the server answered {status}", url.path());
        let mut error = FsError::new(problem(status.as_u16()), detail);
        let unclear = matches!(error.problem, Problem::Other | Problem::Refused);
        if unclear && percent_decode_str(url.path()).count() > LONG_PATH {
            error.problem = Problem::NameTooLong;
        }
        if error.problem == Problem::Busy {
            error.retry_after = retry_after(response.headers(), Timestamp::now());
        }
        self.drain(response);
        error
    }

    /// Asks about a file or folder, or about a folder and what is in it.
    pub(super) fn propfind(
        self: &Arc<Self>,
        url: &Url,
        depth: &'static str,
        each: impl FnMut(Item) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        let (method, mut headers) = (method("PROPFIND"), HeaderMap::new());
        headers.insert("depth", HeaderValue::from_static(depth));
        let response = self.ask(&method, url, &headers, Some(PROPERTIES))?;
        if response.status() != StatusCode::MULTI_STATUS {
            return Err(self.refused(&method, url, response));
        }
        let named = |error: FsError| FsError {
            detail: format!("{method} {}: {}", url.path(), error.detail),
            ..error
        };
        multistatus::read(Body::new(Arc::clone(self), response), each).map_err(named)
    }

    /// What the server knows of a place, asked by this URL of it.
    pub(super) fn look_at(self: &Arc<Self>, path: &str, url: &Url) -> Result<Item, FsError> {
        let mut found = None;
        self.propfind(url, "0", |item| {
            if self.root.member(path, &item.href) != Member::Itself {
                let detail = format!("asked about {}, it tells of {}", url.path(), item.href);
                return Err(FsError::new(Problem::Protocol, detail));
            }
            found.get_or_insert(item);
            Ok(())
        })?;
        let found =
            found.ok_or_else(|| FsError::new(Problem::Protocol, format!("{}: no item", url.path())))?;
        match found.status {
            Some(status) if !(200..300).contains(&status) => {
                Err(FsError::new(problem(status), format!("{}: status {status}", url.path())))
            }
            _ => Ok(found),
        }
    }

    /// Finds the first failure in the multistatus of a request that changes something.
    pub(super) fn first_failure(self: &Arc<Self>, response: Response) -> Result<(), FsError> {
        let mut failed = None;
        multistatus::read(Body::new(Arc::clone(self), response), |item| {
            if let Some(status) = item.status.filter(|status| !(200..300).contains(status))
                // Items below report that they failed because another one did.
                && (failed.is_none() || matches!(failed, Some((424, _))))
            {
                failed = Some((status, item.href));
            }
            Ok(())
        })?;
        match failed {
            None => Ok(()),
            Some((status, href)) => {
                Err(FsError::new(problem(status), format!("{href}: the server answered {status}")))
            }
        }
    }
}

fn reads(method: &Method) -> bool {
    matches!(method.as_str(), "PROPFIND" | "GET" | "HEAD" | "OPTIONS")
}

/// What a status means, of a whole answer or of one item in it.
pub(super) fn problem(status: u16) -> Problem {
    match status {
        401 | 407 => Problem::Auth,
        403 => Problem::Refused,
        404 | 409 | 410 => Problem::NotFound,
        405 | 411 | 415 | 501 => Problem::Unsupported,
        408 => Problem::TimedOut,
        412 => Problem::Exists,
        413 => Problem::TooLarge,
        414 => Problem::NameTooLong,
        423 => Problem::Locked,
        429 | 503 => Problem::Busy,
        507 => Problem::Full,
        // Of something between us and the server: what the server did is not known.
        502 | 504 => Problem::Lost,
        400..600 => Problem::Other,
        // Redirections among them: they are never followed.
        _ => Problem::Protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_problem() {
        for (status, expected) in [
            (301, Problem::Protocol),
            (401, Problem::Auth),
            (403, Problem::Refused),
            (404, Problem::NotFound),
            (405, Problem::Unsupported),
            (409, Problem::NotFound),
            (412, Problem::Exists),
            (413, Problem::TooLarge),
            (423, Problem::Locked),
            (429, Problem::Busy),
            (500, Problem::Other),
            (502, Problem::Lost),
            (503, Problem::Busy),
            (507, Problem::Full),
        ] {
            assert_eq!(problem(status), expected, "{status}");
        }
    }
}
