//! Content on its way: a PUT and a GET, and the file at this end of each.

use super::{exchange::Session, stat_of};
use crate::file::{
    backend::{FsError, PartFile, Problem, SourceFile, Stat},
    over_http::{Body, Waits as _, lost},
};
use bytes::Bytes;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{
        ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_MATCH, RANGE,
    },
};
use std::{io, sync::Arc};
use tokio::{sync::mpsc, task::JoinHandle};

/// How often a download goes on after its connection was lost.
const MAX_RESUMED: u32 = 3;

/// A PUT under way.
pub(super) struct Part {
    pub(super) session: Arc<Session>,
    pub(super) place: String,
    pub(super) url: Url,
    /// How much of the announced size was not written yet.
    pub(super) left: Option<u64>,
    /// Closed when all has been written.
    pub(super) slices: Option<mpsc::Sender<io::Result<Bytes>>>,
    /// Taken when the server has answered.
    pub(super) answer: Option<JoinHandle<reqwest::Result<Response>>>,
    /// What the server called the content that it stored.
    pub(super) etag: Option<String>,
}

impl Part {
    /// Waits for the server's word on the whole PUT.
    fn settle(&mut self) -> Result<(), FsError> {
        self.slices = None;
        let Some(answer) = &mut self.answer else { return Ok(()) };
        let answer = self.session.wait("PUT", answer)?;
        self.answer = None;
        let response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(lost(error)),
            Err(error) => return Err(FsError::new(Problem::Lost, error)),
        };
        if response.status() == StatusCode::UNAUTHORIZED
            && self.session.challenged(response.headers(), true)?
        {
            // The next attempt has a fresh one.
            return Err(FsError::new(Problem::Lost, format!("{}: the log-in grew too old", self.url.path())));
        }
        if !response.status().is_success() {
            return Err(self.session.refused(&Method::PUT, &self.url, response));
        }
        self.etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
        self.session.drain(response);
        Ok(())
    }
}

impl PartFile for Part {
    fn write(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        let slice = Bytes::copy_from_slice(bytes);
        if let Some(slices) = &self.slices
            && self.session.wait("PUT", slices.send(Ok(slice)))?.is_ok()
        {
            self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
            return Ok(());
        }
        // Nobody takes it any more: the server has answered early, or is gone.
        self.settle()?;
        Err(FsError::new(Problem::Protocol, format!("{}: the server took only a part", self.url.path())))
    }

    fn sync(&mut self) -> Result<bool, FsError> {
        // There is no such request: whether what is stored survives a power cut is the server's secret.
        self.settle().map(|()| false)
    }

    fn size(&mut self) -> Result<u64, FsError> {
        self.settle()?;
        let found = self.session.look_at(&self.place, &self.url)?;
        let changed = |stored: &str, now: &str| is_strong(stored) && is_strong(now) && stored != now;
        if let (Some(stored), Some(now)) = (&self.etag, &found.etag)
            && changed(stored, now)
        {
            let detail = format!("{} was {stored} when stored and is {now}", self.url.path());
            return Err(FsError::new(Problem::NotKept, detail));
        }
        Ok(found.size.unwrap_or_default())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // All that was announced is under way: the server has a whole file, which must be there before it is deleted.
        if self.left == Some(0) && !self.session.fired.is_cancelled() {
            drop(self.settle());
        }
        let Some(answer) = self.answer.take() else { return };
        // Given up half-way: the connection has to end with an error, since an orderly end would make it a whole file.
        if let Some(slices) = self.slices.take() {
            drop(slices.try_send(Err(io::ErrorKind::Interrupted.into())));
        }
        answer.abort();
        self.session.look_around();
    }
}

/// Whether an entity tag stands for the very bytes. A server calls one weak while the file may still change unseen.
fn is_strong(etag: &str) -> bool {
    etag.starts_with('"')
}

/// An entity tag without the mark of a weak one, which falls away once the file has been left alone for a second.
pub(super) fn plain(etag: &str) -> String {
    etag.trim_start_matches("W/").to_owned()
}

/// A GET under way.
pub(super) struct Source {
    pub(super) session: Arc<Session>,
    pub(super) place: String,
    pub(super) url: Url,
    pub(super) etag: Option<String>,
    pub(super) stat: Stat,
    pub(super) body: Option<Body<Session>>,
    pub(super) done: u64,
    pub(super) resumed: u32,
}

impl Source {
    /// Asks for the content from where it stopped.
    pub(super) fn ask(&mut self) -> Result<(), FsError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if self.done > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", self.done));
            headers.insert(RANGE, range.map_err(|error| FsError::new(Problem::Other, error))?);
            if let Some(etag) = self.etag.as_ref().and_then(|etag| HeaderValue::from_str(etag).ok()) {
                headers.insert(IF_MATCH, etag);
            }
        }
        let response = self.session.ask(&Method::GET, &self.url, &headers, None)?;
        let path = self.url.path();
        let begins = format!("bytes {}-", self.done);
        let goes_on = response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|range| range.to_str().ok())
            .is_some_and(|range| range.starts_with(&begins));
        match (response.status(), self.done) {
            (StatusCode::OK, 0) => {}
            (StatusCode::PARTIAL_CONTENT, 1..) if goes_on => {}
            (StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::PRECONDITION_FAILED, 1..) => {
                return Err(FsError::new(Problem::Changed, format!("{path}: cannot go on at {}", self.done)));
            }
            _ => return Err(self.session.refused(&Method::GET, &self.url, response)),
        }
        if let Some(coding) = response.headers().get(CONTENT_ENCODING)
            && coding != "identity"
        {
            return Err(FsError::new(
                Problem::Protocol,
                format!("{path}: the server sends it as {coding:?}"),
            ));
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
                    return Ok(n);
                }
                // Only where it is certain that the rest belongs to what came before.
                Err(error)
                    if error.problem == Problem::Lost
                        && self.resumed < MAX_RESUMED
                        && self.done > 0
                        && self.etag.as_deref().is_some_and(is_strong) =>
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
            return Ok(self.stat);
        }
        let now = self.session.look_at(&self.place, &self.url)?;
        if let (Some(before), Some(after)) = (&self.etag, &now.etag)
            && plain(before) != plain(after)
        {
            let detail = format!("{}: {before}, then {after}", self.url.path());
            return Err(FsError::new(Problem::Changed, detail));
        }
        Ok(stat_of(&now))
    }

    fn tag(&self) -> Option<String> {
        self.etag.as_deref().map(plain)
    }
}
