//! The answer to a request, read whole, and what its status means where a dialect knows nothing better.

use crate::{
    crm::error::{Clash, CrmError, Problem},
    http::answer::retry_after,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use serde_json::Value;
use std::time::Duration;

/// An answer, read whole.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: StatusCode,
    /// Its headers.
    pub(crate) headers: HeaderMap,
    /// Its body, at most `max_response`.
    pub(crate) body: Bytes,
    /// Whether the request was a write.
    pub(crate) writes: bool,
}

impl Answer {
    /// The body as JSON. Not JSON: ambiguous after a write with a success status, else a protocol error.
    pub(crate) fn json(&self) -> Result<Value, CrmError> {
        serde_json::from_slice(&self.body).map_err(|_| {
            self.nonsense("an answer is not JSON").detail(format!(
                "status {}, {} bytes of {}",
                self.status.as_u16(),
                self.body.len(),
                self.text(header::CONTENT_TYPE.as_str()).unwrap_or("no media type")
            ))
        })
    }

    /// The error for an answer that makes no sense: ambiguous if it may stand for a write that happened.
    pub(crate) fn nonsense(&self, reason: &str) -> CrmError {
        let status = self.status;
        let may = status.is_success() || status.is_redirection() || status.is_server_error();
        let happened = self.writes && may;
        CrmError::new(if happened { Problem::Ambiguous } else { Problem::Protocol }).reason(reason)
    }

    /// A header's text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// When the target wants to be asked again.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        retry_after(&self.headers, Timestamp::now())
    }

    /// What a status means where a dialect knows nothing better; `Ok` for 2xx.
    ///
    /// # Errors
    /// The refusal, without a reason: the dialect adds field errors and its target's own words.
    pub(crate) fn check(&self) -> Result<(), CrmError> {
        let problem = match self.status.as_u16() {
            200..=299 => return Ok(()),
            401 | 407 => Problem::Auth,
            403 => Problem::Forbidden,
            404 | 410 => Problem::NotFound,
            409 => Problem::Conflict { clash: Clash::Duplicate, candidates: Vec::new() },
            412 => Problem::Conflict { clash: Clash::Version, candidates: Vec::new() },
            425 | 429 => Problem::Throttled { retry_after: self.retry_after() },
            400 | 422 => Problem::Invalid { fields: Vec::new() },
            405 | 501 => Problem::Unsupported,
            // Some gateways say so although the work was begun; with a time to come back it is a refusal.
            503 if !self.writes || self.retry_after().is_some() => {
                Problem::Throttled { retry_after: self.retry_after() }
            }
            // Many carry a write out and then send the caller to the page that shows it (RFC 9110 §15.4.4).
            300..=399 | 500..=599 if self.writes => Problem::Ambiguous,
            500..=599 => Problem::Unavailable,
            _ => Problem::Protocol,
        };
        let error = CrmError::new(problem).detail(format!("status {}", self.status.as_u16()));
        Err(match self.status.as_u16() {
            300..=399 => error.reason("it answered with a redirect, which is not followed"),
            500..=599 => error.reason(&format!("status {}", self.status.as_u16())),
            _ => error,
        })
    }
}
