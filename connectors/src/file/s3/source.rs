//! Reads an object: one request, which goes on where it stopped as long as the object is still the same.

use super::{
    Head,
    exchange::{Request, Session, refused},
};
use crate::file::{
    backend::{FsError, Problem, SourceFile, Stat},
    over_http::{Body, Waits as _},
};
use reqwest::{Method, StatusCode, header::CONTENT_RANGE};
use std::sync::Arc;

/// How often a download goes on after its connection was lost.
const MAX_RESUMED: u32 = 3;

/// A GET under way.
pub(super) struct Source {
    session: Arc<Session>,
    key: String,
    head: Head,
    body: Option<Body<Session>>,
    done: u64,
    resumed: u32,
}

impl Source {
    pub(super) fn open(session: Arc<Session>, key: String, head: Head) -> Result<Self, FsError> {
        let mut source = Self { session, key, head, body: None, done: 0, resumed: 0 };
        source.ask()?;
        Ok(source)
    }

    /// Asks for the content from where it stopped, and for no other content than was looked at.
    fn ask(&mut self) -> Result<(), FsError> {
        let mut request = Request::new(Method::GET, &self.key);
        if let Some(etag) = &self.head.etag {
            request = request.header("if-match", etag)?;
        }
        if self.done > 0 {
            request = request.header("range", &format!("bytes={}-", self.done))?;
        }
        let response = self.session.ask(&request)?;
        let begins = format!("bytes {}-", self.done);
        let goes_on = response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|range| range.to_str().ok())
            .is_some_and(|range| range.starts_with(&begins));
        match (response.status(), self.done) {
            (StatusCode::OK, 0) => {}
            (StatusCode::PARTIAL_CONTENT, 1..) if goes_on => {}
            (StatusCode::PRECONDITION_FAILED, _) | (StatusCode::OK | StatusCode::PARTIAL_CONTENT, 1..) => {
                return Err(FsError::new(Problem::Changed, format!("{}: at {}", self.key, self.done)));
            }
            _ => {
                let failed = refused(&request.method, request.key, response);
                return Err(self.session.wait("reading an answer", failed)?);
            }
        }
        // What a store says at its head binds it: a longer body would fill the hub, a shorter one be taken for the whole.
        if response.content_length().is_some_and(|length| length != self.head.size.saturating_sub(self.done))
        {
            return Err(FsError::new(Problem::Changed, format!("{}: its size is another one", self.key)));
        }
        self.body = Some(Body::new(Arc::clone(&self.session), response));
        Ok(())
    }
}

impl SourceFile for Source {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, FsError> {
        loop {
            let Some(body) = &mut self.body else {
                return Err(FsError::new(Problem::Lost, "the download has ended"));
            };
            match body.fill(buffer) {
                Ok(n) => {
                    self.done += n as u64;
                    if self.done > self.head.size {
                        return Err(FsError::new(
                            Problem::Protocol,
                            format!("{}: it does not end", self.key),
                        ));
                    }
                    return Ok(n);
                }
                // Only where it is certain that the rest belongs to what came before.
                Err(error)
                    if error.problem == Problem::Lost
                        && self.resumed < MAX_RESUMED
                        && self.done > 0
                        && self.head.etag.is_some() =>
                {
                    self.resumed += 1;
                    self.body = None;
                    self.ask().map_err(|second| FsError {
                        detail: format!("{}; then {}", error.detail, second.detail),
                        ..second
                    })?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn stat(&mut self) -> Result<Stat, FsError> {
        // At the beginning it is what was asked right before.
        if self.done == 0 {
            return Ok(self.head.stat());
        }
        let now = Head::of(&self.session, &self.key)?;
        if now.etag != self.head.etag {
            let detail = format!("{}: {:?}, then {:?}", self.key, self.head.etag, now.etag);
            return Err(FsError::new(Problem::Changed, detail));
        }
        Ok(now.stat())
    }
}
