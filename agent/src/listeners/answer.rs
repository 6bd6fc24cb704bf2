//! What a post is answered: `202` with the event's id, or a problem document (RFC 9457) with a stable `code`.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use passerelle_protocol::EventId;
use serde::Serialize;
use std::time::Duration;

/// An answer on its way.
pub type Answer = Response<Full<Bytes>>;

/// Why a post is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// The stable code.
    pub code: &'static str,
    /// Why and what to do, for whoever posts.
    pub detail: String,
    /// When to post it again, if that helps.
    pub retry_after: Option<Duration>,
    /// Whether the connection ends: the rest of the body is not read.
    pub close: bool,
}

impl Refusal {
    /// For good.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after: None, close: true }
    }

    /// For now.
    pub fn later(status: StatusCode, code: &'static str, detail: impl Into<String>, after: Duration) -> Self {
        Self { retry_after: Some(after), ..Self::new(status, code, detail) }
    }

    /// The same, of a post that was read to its end.
    pub fn read(self) -> Self {
        Self { close: false, ..self }
    }
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    code: &'a str,
    detail: &'a str,
}

#[derive(Serialize)]
struct Accepted {
    id: EventId,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
}

/// The post is in the journal. `made` is the key that the agent made up for it.
pub fn accepted(id: EventId, made: Option<String>) -> Answer {
    body(StatusCode::ACCEPTED, "application/json", &Accepted { id, idempotency_key: made })
}

/// The post is not taken. `challenge` tells how to authenticate.
pub fn refused(refusal: &Refusal, challenge: &'static str) -> Answer {
    let problem = Problem {
        r#type: "about:blank",
        title: refusal.status.canonical_reason().unwrap_or("Refused"),
        status: refusal.status.as_u16(),
        code: refusal.code,
        detail: &refusal.detail,
    };
    let mut answer = body(refusal.status, "application/problem+json", &problem);
    let headers = answer.headers_mut();
    if let Some(after) = refusal.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    match refusal.status {
        StatusCode::UNAUTHORIZED => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        _ => {}
    }
    if refusal.close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

fn body(status: StatusCode, media_type: &'static str, value: &impl Serialize) -> Answer {
    let text = serde_json::to_vec(value).unwrap_or_default();
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
