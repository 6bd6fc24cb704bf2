//! Problem documents (RFC 9457): the one way in which the API says no.
//!
//! Each carries a stable `code`; the sentence in `detail` says what is wrong and what to do, and never an inside path.

use crate::clock;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use passerelle_protocol::{ApiCode, Effect};
use serde::Serialize;

/// The media type of a problem document.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// A refusal on its way to the client.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    code: String,
    detail: String,
    server_time: bool,
    effect: Option<Effect>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// A problem document, as the OpenAPI document describes it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ProblemDocument {
    /// Always `about:blank`: the code identifies the problem.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The HTTP status in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// The stable code.
    code: String,
    /// What is wrong and what to do.
    detail: String,
    /// The hub's clock, on refusals of an agent's credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = "date-time")]
    server_time: Option<jiff::Timestamp>,
    /// Of a failed call: `not_applied`, or `unknown` if it may have taken effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    effect: Option<Effect>,
}

impl Problem {
    /// A problem with the status that its code usually has.
    #[must_use]
    pub fn new(code: ApiCode, detail: impl Into<String>) -> Self {
        Self::with_code(usual_status(code), code.as_str(), detail)
    }

    /// A problem with a code from elsewhere, as the tunnel's refusals.
    #[must_use]
    pub fn with_code(status: StatusCode, code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            detail: detail.into(),
            server_time: false,
            effect: None,
            headers: Vec::new(),
        }
    }

    /// 400 `bad_request`.
    #[must_use]
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(ApiCode::BadRequest, detail)
    }

    /// 404 `not_found`.
    #[must_use]
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(ApiCode::NotFound, detail)
    }

    /// 501 `not_implemented`, naming what is asked for.
    #[must_use]
    pub fn not_implemented(what: &str) -> Self {
        Self::new(ApiCode::NotImplemented, format!("{what} is not built yet in this version of the hub"))
    }

    /// 500 `internal`; the cause goes to the log only.
    #[must_use]
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(error = %cause, "A request failed inside the hub");
        Self::new(ApiCode::Internal, "the hub failed; try again, and look into the hub's log if it stays")
    }

    /// Another status than the code's usual one.
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// Adds the hub's clock, so that the peer can tell that its own is wrong.
    #[must_use]
    pub fn with_server_time(mut self) -> Self {
        self.server_time = true;
        self
    }

    /// Says what a failed call did.
    #[must_use]
    pub fn effect(mut self, effect: Effect) -> Self {
        self.effect = Some(effect);
        self
    }

    /// Says that the field it names is inside of `outer`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.detail = format!("{outer}.{}", self.detail);
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The HTTP status.
    #[must_use]
    pub fn status_code(&self) -> StatusCode {
        self.status
    }

    /// What is wrong and what to do.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

fn usual_status(code: ApiCode) -> StatusCode {
    match code {
        ApiCode::BadRequest => StatusCode::BAD_REQUEST,
        ApiCode::Unauthorized => StatusCode::UNAUTHORIZED,
        ApiCode::Forbidden | ApiCode::TierRequired | ApiCode::ApplicationIncompatible => {
            StatusCode::FORBIDDEN
        }
        ApiCode::SiteUnknown | ApiCode::NotFound => StatusCode::NOT_FOUND,
        ApiCode::Conflict | ApiCode::EnvelopeExpired => StatusCode::CONFLICT,
        ApiCode::IdempotencyMismatch | ApiCode::DigestMismatch => StatusCode::UNPROCESSABLE_ENTITY,
        ApiCode::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        ApiCode::Quota => StatusCode::INSUFFICIENT_STORAGE,
        ApiCode::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        ApiCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ApiCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = ProblemDocument {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            code: self.code,
            detail: self.detail,
            server_time: self.server_time.then(clock::now),
            effect: self.effect,
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"passerelle\""));
        }
        if self.status == StatusCode::PAYLOAD_TOO_LARGE {
            // What is left of the body is not read: the client must not send another request behind it (RFC 9110, 15.5.14).
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        headers.extend(self.headers);
        // A struct of texts and numbers: writing it as JSON cannot fail.
        (self.status, headers, serde_json::to_vec(&document).unwrap_or_default()).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_problem_is_a_complete_document() {
        let response = Problem::new(ApiCode::Unauthorized, "no").with_server_time().into_response();
        assert_eq!(response.status(), 401);
        assert_eq!(response.headers()["content-type"], MEDIA_TYPE);
        assert!(response.headers().contains_key("www-authenticate"));
        let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
        let document: passerelle_protocol::http::Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!((document.status, document.code.as_str()), (401, "unauthorized"));
        assert_eq!((document.kind.as_str(), document.title.as_str()), ("about:blank", "Unauthorized"));
        assert!(document.server_time.is_some());
    }
}
