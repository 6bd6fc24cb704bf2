//! The vendor's errors: `{Message, ErrorCode, ErrorIdentifier}`, the code being the HTTP status.

use crate::{api::Problem, clock, store};
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;

/// A refusal on its way to the client.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    message: String,
    /// Few have any: kept small for those who hand it on.
    headers: Box<HeaderMap>,
}

/// A refusal of credentials, for extractors.
#[derive(Debug)]
pub(super) struct Refused(pub(super) Failure);

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Body {
    message: String,
    error_code: u16,
    error_identifier: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), headers: Box::default() }
    }

    /// 401, asking for Basic credentials.
    pub(super) fn unauthorized(message: &str) -> Self {
        let mut failure = Self::new(StatusCode::UNAUTHORIZED, message);
        let ask = HeaderValue::from_static("Basic realm=\"passerelle\", charset=\"UTF-8\"");
        failure.headers.insert(header::WWW_AUTHENTICATE, ask);
        failure
    }

    /// Something that the client named is not one that the hub may use.
    pub(super) fn target(message: impl Into<String>) -> Self {
        Self::new(StatusCode::IM_A_TEAPOT, message)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let (status, message) = (problem.status_code(), problem.detail().to_owned());
        let from = problem.into_response();
        let mut failure = match status {
            StatusCode::UNAUTHORIZED => Self::unauthorized(&message),
            status => Self::new(status, message),
        };
        for kept in [header::RETRY_AFTER, header::CONNECTION] {
            if let Some(value) = from.headers().get(&kept) {
                failure.headers.insert(kept, value.clone());
            }
        }
        failure
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        Problem::from(error).into()
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let error_identifier = clock::new_uuid7().hyphenated().to_string();
        let (status, message) = (self.status, self.message);
        tracing::debug!(%status, error_identifier, message, "Refused a call of the vendor's API");
        let body = Body { message, error_code: status.as_u16(), error_identifier };
        (status, *self.headers, Json(body)).into_response()
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}
