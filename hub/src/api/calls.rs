//! `/v1/calls`: an operation carried out at once for whoever waits; nothing is stored, nothing is retried.
//!
//! A failed call is a problem document with the code that a job would have had, and `effect`: what it did.
//!
//! | status | codes |
//! |---|---|
//! | 403 | `policy_denied`, `path_invalid`, `signature_invalid` |
//! | 409 | `replayed`, `envelope_expired` |
//! | 413 | `too_large` |
//! | 422 | `invalid_params`, `digest_mismatch` |
//! | 500 | `internal` |
//! | 501 | `not_implemented`: the site's agents know nothing of calls |
//! | 502 | `target_unreachable`, `target_auth`, `target_refused`, `target_not_found`, `target_conflict`, `target_full`, `target_unsupported`, `target_protocol` |
//! | 503 | `agent_offline`, `busy`, `paused`, `breaker_open`, `target_throttled`, `cancelled`, with `Retry-After` where it is known |
//! | 504 | `target_timeout`, `deadline`, `agent_lost` |

use super::{
    App,
    auth::{Allowed, JobsWrite},
    body::{self, JsonBytes},
    envelope, jobs,
    problem::{Problem, ProblemDocument},
    submission::{Payload, SubmittedPayload, check_labels, check_params, traceparent},
};
use crate::{
    clock,
    model::BlobInfo,
    store::{self, Content},
    tunnel::{CallDone, CallFailed, CallOutput, CallPayload, NewCall},
};
use axum::{Json, extract::State};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use passerelle_protocol::{
    ApiCode, BlobId, Code, Effect, Envelope, JobId, Name, Sha256,
    limits::{CALL_LIFE, MAX_INLINE_PAYLOAD},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// How long a call may take unless it says so.
const TIMEOUT_S: u32 = 30;

/// The body of `POST /v1/calls`.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CallRequest {
    /// The site whose agents carry it out.
    #[schema(value_type = String)]
    site: Name,
    /// The resource, as the site's operator named it.
    #[schema(value_type = String)]
    resource: Name,
    /// The operation.
    #[schema(value_type = String)]
    operation: Name,
    /// The operation's parameters, at most 256 KiB.
    #[schema(value_type = Object)]
    params: Map<String, Value>,
    /// The payload: at most 256 KiB as `text` or `base64`, larger ones as `blob`.
    #[serde(default, deserialize_with = "body::object")]
    payload: Option<SubmittedPayload>,
    /// How long it may take in all, in seconds: 1 to 60, default 30.
    timeout_s: Option<u32>,
    /// How long it may wait for its start, in seconds: 1 to 60, default as long as it may take.
    deadline_s: Option<u32>,
    /// As of a job; checked and not kept.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// The body of `POST /v1/calls` for a call that its client signed.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedCall {
    /// A compact JWS (EdDSA) of typ `passerelle-call+jws` that lives at most 60 s; its claims are in `docs/protocol.md`
    /// section 14.
    envelope: String,
}

/// The body, either way: only for the OpenAPI document.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "its schema is all that is used of it")]
pub enum AnyCall {
    /// The hub signs.
    #[schema(title = "Signed by the hub")]
    Hub(Box<CallRequest>),
    /// The client has signed.
    #[schema(title = "Signed by the client")]
    Client(SignedCall),
}

/// What a call gave back.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct CallResponse {
    /// The call's id: that of the agent's audit, and the idempotency key that `notify` sends.
    #[schema(value_type = String, format = "uuid")]
    id: JobId,
    /// The operation's result.
    #[schema(value_type = Object)]
    result: Value,
    /// The output payload, if the operation has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<OutputView>,
}

/// The output of a call: exactly one of `text`, `base64`, `blob`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct OutputView {
    /// Its size in bytes.
    size: u64,
    /// Its digest.
    #[schema(value_type = String)]
    sha256: Sha256,
    /// Its media type.
    media_type: String,
    /// The content, if it has at most 256 KiB and is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// The content in base64, if it has at most 256 KiB and is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    /// Where larger content can be fetched for ten minutes: `GET /v1/blobs/{id}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = "uuid")]
    blob: Option<BlobId>,
}

/// A real-time call: carried out at once, or refused. It is cancelled when the caller goes away.
#[utoipa::path(
    post, path = "/v1/calls", tag = "calls", request_body = AnyCall,
    responses(
        (status = 200, body = CallResponse, description = "It took effect"),
        (status = 400, body = ProblemDocument, description = "`bad_request`, naming the field"),
        (status = 403, body = ProblemDocument, description = "`forbidden` (the scope jobs:write is missing), `policy_denied`, `path_invalid`, `signature_invalid`"),
        (status = 404, body = ProblemDocument, description = "`site_unknown`, or `not_found` for the blob or event"),
        (status = 409, body = ProblemDocument, description = "`replayed`, `envelope_expired`: make a new one"),
        (status = 413, body = ProblemDocument, description = "`too_large`"),
        (status = 422, body = ProblemDocument, description = "`invalid_params`, `digest_mismatch`"),
        (status = 501, body = ProblemDocument, description = "`not_implemented`: the agents of the site take no calls"),
        (status = 502, body = ProblemDocument, description = "`target_*`: the private system failed"),
        (status = 503, body = ProblemDocument, description = "`agent_offline`, `busy`, `paused`, `breaker_open`, `target_throttled`, with `Retry-After` where it is known"),
        (status = 504, body = ProblemDocument, description = "`target_timeout`, `deadline`, `agent_lost`; `effect` says whether it may have happened"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn call(
    caller: Allowed<JobsWrite>,
    State(app): State<App>,
    headers: HeaderMap,
    JsonBytes(body): JsonBytes,
) -> Result<Json<CallResponse>, Problem> {
    let made = read(&app, &caller.tenant, &body, traceparent(&headers)).await?;
    let id = made.id;
    let done = tokio::select! {
        done = app.tunnel.call(made) => done,
        () = app.tunnel.closing() => {
            let detail = "the hub is being restarted; whether the call took effect is not known";
            return Err(Problem::with_code(StatusCode::GATEWAY_TIMEOUT, Code::AgentLost.as_str(), detail)
                .effect(Effect::Unknown));
        }
    };
    let code = match &done {
        Ok(_) => "ok",
        Err(CallFailed::Code { code, .. }) => code.as_str(),
        Err(CallFailed::NotMade) => ApiCode::NotImplemented.as_str(),
        Err(CallFailed::Store(error)) => error.code().as_str(),
    };
    app.metrics.called(code);
    Ok(Json(answer(id, done?)))
}

async fn read(
    app: &App,
    tenant: &Name,
    bytes: &[u8],
    traceparent: Option<String>,
) -> Result<NewCall, Problem> {
    #[derive(Deserialize)]
    struct Signed {
        #[serde(rename = "envelope")]
        _envelope: serde::de::IgnoredAny,
    }
    match body::parse::<CallRequest>(bytes) {
        Ok(request) => request.made(app, tenant, traceparent).await,
        Err(_) if serde_json::from_slice::<Signed>(bytes).is_ok() => {
            body::parse::<SignedCall>(bytes)?.made(app, tenant, traceparent).await
        }
        Err(refused) => Err(refused),
    }
}

impl CallRequest {
    async fn made(self, app: &App, tenant: &Name, traceparent: Option<String>) -> Result<NewCall, Problem> {
        let params = Value::Object(self.params);
        check_params(&params)?;
        check_labels(&self.labels)?;
        let timeout_s = within("timeout_s", self.timeout_s.unwrap_or(TIMEOUT_S))?;
        let deadline_s = within("deadline_s", self.deadline_s.unwrap_or(timeout_s))?;
        let payload = match self.payload.map(SubmittedPayload::check).transpose()? {
            Some(payload) => Some(found(app, tenant, &payload).await?),
            None => None,
        };
        Ok(NewCall {
            id: JobId::from(clock::new_uuid7()),
            tenant: tenant.clone(),
            site: self.site,
            resource: self.resource,
            operation: self.operation,
            params,
            payload,
            timeout_s,
            deadline_s,
            signed: None,
            traceparent,
        })
    }
}

fn within(field: &str, value: u32) -> Result<u32, Problem> {
    let most = CALL_LIFE.as_secs();
    if (1..=most).contains(&value.into()) {
        return Ok(value);
    }
    Err(Problem::bad_request(format!(
        "{field}: a call takes 1 to {most} s, found {value}; submit a job for longer"
    )))
}

/// A call's payload; a large one must be a blob already.
async fn found(app: &App, tenant: &Name, payload: &Payload) -> Result<CallPayload, Problem> {
    if payload.is_inline() && !payload.is_small() {
        let detail = format!(
            "payload: at most {MAX_INLINE_PAYLOAD} bytes inside a call; upload it with POST /v1/blobs and name the blob"
        );
        return Err(Problem::new(ApiCode::TooLarge, detail));
    }
    let found = jobs::find_payload(app, tenant, payload).await?;
    let content = match found.data {
        Some(bytes) => Content::Bytes(bytes),
        None => app.blobs.open(tenant.clone(), found.blob).await?.1,
    };
    let info = BlobInfo { id: found.blob, size: found.size, sha256: found.sha256, media_type: None };
    Ok(CallPayload { info, content, media_type: found.media_type })
}

impl SignedCall {
    async fn made(self, app: &App, tenant: &Name, traceparent: Option<String>) -> Result<NewCall, Problem> {
        envelope::check_length(&self.envelope)?;
        let claims = Envelope::read_unverified_call(&self.envelope)
            .map(|(_, claims)| claims)
            .map_err(|error| Problem::bad_request(format!("envelope: {error}")))?;
        envelope::check_call(app, tenant, &claims)?;
        let timeout_s = within("envelope.timeout_s", claims.timeout_s)?;
        let wait = u32::try_from(claims.deadline.saturating_sub(claims.iat)).unwrap_or(0);
        let deadline_s = within("envelope.deadline", wait).map_err(|_| {
            Problem::bad_request(format!(
                "envelope.deadline: must lie 1 to {} s after iat",
                CALL_LIFE.as_secs()
            ))
        })?;
        let payload = match envelope::payload(app, tenant, &claims).await? {
            Some(found) => {
                let (info, content) = app.blobs.open(tenant.clone(), found.blob).await?;
                Some(CallPayload { info, content, media_type: found.media_type })
            }
            None => None,
        };
        Ok(NewCall {
            id: claims.job,
            tenant: tenant.clone(),
            site: claims.site,
            resource: claims.resource,
            operation: claims.operation,
            params: claims.params,
            payload,
            timeout_s,
            deadline_s,
            signed: Some((self.envelope, claims.agents)),
            traceparent,
        })
    }
}

fn answer(id: JobId, done: CallDone) -> CallResponse {
    let output = done.output.map(|(output, place)| {
        let (text, base64, blob) = match place {
            CallOutput::Blob(blob) => (None, None, Some(blob)),
            CallOutput::Inline(bytes) => match String::from_utf8(bytes.to_vec()) {
                Ok(text) => (Some(text), None, None),
                Err(not_text) => (None, Some(STANDARD.encode(not_text.as_bytes())), None),
            },
        };
        let (size, sha256, media_type) = (output.size, output.sha256, output.media_type);
        OutputView { size, sha256, media_type, text, base64, blob }
    });
    CallResponse { id, result: done.result, output }
}

impl From<CallFailed> for Problem {
    fn from(failed: CallFailed) -> Self {
        match failed {
            CallFailed::Store(store::Error::Internal(cause)) => Self::internal(&cause),
            CallFailed::Store(error) => error.into(),
            CallFailed::NotMade => Self::new(
                ApiCode::NotImplemented,
                "the agents of this site that offer the resource take no calls: update them, or let them (agent.max_calls)",
            )
            .effect(Effect::NotApplied),
            CallFailed::Code { code, message, effect, retry_after } => {
                let problem = Self::with_code(status(code), code.as_str(), message).effect(effect);
                match retry_after {
                    Some(after) if status(code) == StatusCode::SERVICE_UNAVAILABLE => {
                        let seconds = after.as_millis().div_ceil(1000).clamp(1, 3600);
                        problem.header(
                            header::RETRY_AFTER,
                            HeaderValue::from(u64::try_from(seconds).unwrap_or(3600)),
                        )
                    }
                    Some(_) | None => problem,
                }
            }
        }
    }
}

/// The HTTP status of a failed call.
fn status(code: Code) -> StatusCode {
    match code {
        Code::PolicyDenied | Code::PathInvalid | Code::SignatureInvalid => StatusCode::FORBIDDEN,
        Code::InvalidParams | Code::DigestMismatch => StatusCode::UNPROCESSABLE_ENTITY,
        Code::EnvelopeExpired | Code::Replayed => StatusCode::CONFLICT,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::TargetUnreachable
        | Code::TargetAuth
        | Code::TargetRefused
        | Code::TargetNotFound
        | Code::TargetConflict
        | Code::TargetFull
        | Code::TargetUnsupported
        | Code::TargetProtocol => StatusCode::BAD_GATEWAY,
        Code::TargetThrottled
        | Code::AgentOffline
        | Code::Busy
        | Code::Paused
        | Code::BreakerOpen
        | Code::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        Code::TargetTimeout | Code::Deadline | Code::AgentLost => StatusCode::GATEWAY_TIMEOUT,
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table at the top of this file, and that of docs/calls.md.
    #[test]
    fn every_code_has_the_status_of_the_tables() {
        for (text, mark) in
            [(include_str!("calls.rs"), "//! | "), (include_str!("../../../docs/calls.md"), "| ")]
        {
            for code in Code::ALL {
                let cell = format!("`{code}`");
                let row = text
                    .lines()
                    .filter_map(|line| line.strip_prefix(mark))
                    .find(|row| row.starts_with(['4', '5']) && row.contains(&cell));
                let row = row.unwrap_or_else(|| panic!("{code} is in no row"));
                assert!(row.starts_with(status(*code).as_str()), "{code}: {row}");
            }
        }
    }
}
