//! `/agent/v1`: what agents call. The logic is the tunnel's; here are the routes and the form of the answers.

use super::{
    App,
    auth::secret_name,
    blobs::standing,
    body::{self, JsonBytes},
    guard::Source,
    id,
    problem::{Problem, ProblemDocument},
    range::Download,
    upload::{self, LENGTH, OFFSET, RESUMABLE, VERSION},
    with_header,
};
use crate::{blobs::UploadOffset, model::AgentRecord, store, tunnel::Refusal};
use axum::{
    Json,
    body::{Body, HttpBody as _},
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use passerelle_protocol::{
    JobId, Sha256,
    http::{EnrolRequest, KeyRequest, KeyResponse, output_path},
};
use std::{io, pin::Pin, sync::Arc};

/// The body of an upload.
type BodyStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::FORBIDDEN);
        let problem = Self::with_code(status, refusal.code.as_str(), refusal.detail).with_server_time();
        if status == StatusCode::UPGRADE_REQUIRED {
            return problem
                .header(header::UPGRADE, HeaderValue::from_static("websocket"))
                .header(header::CONNECTION, HeaderValue::from_static("upgrade"))
                .header(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        problem
    }
}

/// Enrols an agent: a one-time token and a public key against an identity.
#[utoipa::path(
    post, path = "/agent/v1/enrol", tag = "agent", security(()), request_body = Object,
    responses(
        (status = 201, description = "The agent's identity, and the keys to pin", body = Object),
        (status = 401, body = ProblemDocument, description = "`unauthorized`: token unknown, expired or used up"),
        (status = 403, body = ProblemDocument, description = "`tier_required`, `application_incompatible`"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn enrol(
    State(app): State<App>,
    source: Source,
    JsonBytes(body): JsonBytes,
) -> Result<Response, Problem> {
    let request: EnrolRequest = body::parse(&body)?;
    let name = secret_name(&request.token).to_owned();
    app.guard.admit(source, &name).map_err(Problem::with_server_time)?;
    match app.store.enrol(request).await {
        Ok(answer) => {
            app.metrics.enrolment();
            Ok((StatusCode::CREATED, Json(answer)).into_response())
        }
        Err(error) => {
            app.metrics.agent_refused();
            let wrong = matches!(error, store::Error::Unauthorized(_));
            let refusal = Problem::from(error);
            let refusal = if wrong { app.guard.failed(source, Some(&name), refusal) } else { refusal };
            Err(refusal.with_server_time())
        }
    }
}

/// Registers the agent's next key: one statement, signed by the old key and by the new one.
#[utoipa::path(
    post, path = "/agent/v1/keys", tag = "agent", security(()), request_body = Object,
    responses(
        (status = 200, description = "Registered; both keys are taken until the new one was used", body = Object),
        (status = 400, body = ProblemDocument, description = "`bad_request`: not signed by both keys"),
        (status = 409, body = ProblemDocument, description = "`conflict`: the key is known already: make another"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn keys(
    State(app): State<App>,
    source: Source,
    headers: HeaderMap,
    JsonBytes(body): JsonBytes,
) -> Result<Json<KeyResponse>, Problem> {
    let agent = authenticate(&app, source, &headers).await?;
    let request: KeyRequest = body::parse(&body)?;
    let key = app.store.register_key(&agent, request).await?;
    Ok(Json(KeyResponse { key, server_time: crate::clock::now() }))
}

/// The tunnel: a WebSocket with the subprotocol `passerelle.v1`.
#[utoipa::path(
    get, path = "/agent/v1/tunnel", tag = "agent", security(()),
    responses(
        (status = 101, description = "The tunnel is open"),
        (status = 426, body = ProblemDocument, description = "Not a WebSocket upgrade"),
        (status = "default", body = ProblemDocument, description = "`code` and `server_time` say why"),
    )
)]
pub async fn tunnel(State(app): State<App>, source: Source, request: Request) -> Result<Response, Problem> {
    app.tunnel.upgrade(request).await.map_err(|refusal| {
        app.metrics.agent_refused();
        refused(&app, source, refusal)
    })
}

/// A refusal of an agent's credentials, which are counted.
fn refused(app: &App, source: Source, refusal: Refusal) -> Problem {
    let wrong = refusal.status == StatusCode::UNAUTHORIZED.as_u16();
    let problem = Problem::from(refusal);
    if wrong { app.guard.failed(source, None, problem).with_server_time() } else { problem }
}

pub(super) async fn authenticate(
    app: &App,
    source: Source,
    headers: &HeaderMap,
) -> Result<Arc<AgentRecord>, Problem> {
    app.tunnel.authenticate(headers).await.map_err(|refusal| refused(app, source, refusal))
}

/// The payload of a job that the agent holds.
#[utoipa::path(
    get, path = "/agent/v1/jobs/{job}/payload", tag = "agent", security(()),
    params(("job" = String, Path), ("Range" = Option<String>, Header)),
    responses(
        (status = 200, description = "The whole", content_type = "*/*"),
        (status = 206, description = "The range", content_type = "*/*"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn payload(
    State(app): State<App>,
    source: Source,
    headers: HeaderMap,
    Path(job): Path<String>,
) -> Result<Response, Problem> {
    let agent = authenticate(&app, source, &headers).await?;
    let (info, content) = app.tunnel.payload(agent.id, id("job", &job)?).await?;
    let media_type = info.media_type.as_deref().unwrap_or("application/octet-stream");
    Download { content, size: info.size, sha256: info.sha256, media_type }.answer(&headers).await
}

/// Opens the upload of an attempt's output; a body is its beginning, or all of it.
#[utoipa::path(
    post, path = "/agent/v1/jobs/{job}/attempts/{attempt}/output", tag = "agent", security(()),
    request_body(content = Option<Vec<u8>>, content_type = "application/octet-stream"),
    params(
        ("job" = String, Path), ("attempt" = u32, Path),
        ("Upload-Length" = u64, Header), ("Repr-Digest" = String, Header),
    ),
    responses(
        (status = 201, description = "Open"),
        (status = 200, description = "Open already; it goes on at `Upload-Offset`"),
        (status = 422, body = ProblemDocument, description = "`digest_mismatch`"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn output_open(
    State(app): State<App>,
    source: Source,
    headers: HeaderMap,
    Path(path): Path<(String, String)>,
    body: Body,
) -> Result<Response, Problem> {
    let (agent, job, attempt) = held(&app, source, &headers, &path).await?;
    let (length, digest) = announced(&app, &headers)?;
    let mut stands = app.tunnel.output_open(agent.id, job, attempt, length, digest).await?;
    if stands.offset == 0 && length > 0 && !body.is_end_stream() {
        let (tunnel, agent) = (app.tunnel.clone(), agent.id);
        stands = stored(&app, body, move |stream| async move {
            tunnel.output_append(agent, job, attempt, 0, stream).await
        })
        .await?;
    }
    Ok(opened(&stands, &output_path(job, attempt)))
}

/// The length and digest of an upload that is being opened.
pub(super) fn announced(app: &App, headers: &HeaderMap) -> Result<(u64, Sha256), Problem> {
    upload::check_version(headers)?;
    let length =
        upload::number(headers, &LENGTH)?.ok_or_else(|| Problem::bad_request("upload-length: missing"))?;
    upload::check_size(length, app.max_blob)?;
    let digest = upload::digest(headers)?.ok_or_else(|| Problem::bad_request("repr-digest: missing"))?;
    Ok((length, digest))
}

/// The answer to an upload that was opened.
pub(super) fn opened(stands: &UploadOffset, path: &str) -> Response {
    // One that was begun earlier goes on where it stands.
    let status = if stands.offset > 0 { StatusCode::OK } else { StatusCode::CREATED };
    let answer = with_header(status.into_response(), header::LOCATION, path);
    let answer = with_header(answer, OFFSET, &stands.offset.to_string());
    let answer = with_header(answer, LENGTH, &stands.length.to_string());
    with_header(answer, RESUMABLE, VERSION)
}

/// How far the upload of an attempt's output is.
#[utoipa::path(
    head, path = "/agent/v1/jobs/{job}/attempts/{attempt}/output", tag = "agent", security(()),
    params(("job" = String, Path), ("attempt" = u32, Path)),
    responses(
        (status = 200, description = "`Upload-Offset` and `Upload-Length`"),
        (status = "default", description = "Refused; without a body"),
    )
)]
pub async fn output_offset(
    State(app): State<App>,
    source: Source,
    headers: HeaderMap,
    Path(path): Path<(String, String)>,
) -> Result<Response, Problem> {
    let (agent, job, attempt) = held(&app, source, &headers, &path).await?;
    let stands = app.tunnel.output_offset(agent.id, job, attempt).await?;
    Ok(standing(StatusCode::OK, stands.offset, stands.length))
}

/// Appends to the upload of an attempt's output.
#[utoipa::path(
    patch, path = "/agent/v1/jobs/{job}/attempts/{attempt}/output", tag = "agent", security(()),
    request_body(content = Vec<u8>, content_type = "application/offset+octet-stream"),
    params(("job" = String, Path), ("attempt" = u32, Path), ("Upload-Offset" = u64, Header)),
    responses(
        (status = 204, description = "Stored up to the new `Upload-Offset`"),
        (status = 409, body = ProblemDocument, description = "`conflict`: it stands at another offset"),
        (status = 422, body = ProblemDocument, description = "`digest_mismatch`"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn output_append(
    State(app): State<App>,
    source: Source,
    headers: HeaderMap,
    Path(path): Path<(String, String)>,
    body: Body,
) -> Result<Response, Problem> {
    let (agent, job, attempt) = held(&app, source, &headers, &path).await?;
    let (tunnel, agent) = (app.tunnel.clone(), agent.id);
    append_steadily(&app, &headers, body, move |from, stream| async move {
        tunnel.output_append(agent, job, attempt, from, stream).await
    })
    .await
}

/// Appends the body of a `PATCH` to an upload.
pub(super) async fn append_steadily<F, A>(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    append: A,
) -> Result<Response, Problem>
where
    F: Future<Output = Result<UploadOffset, store::Error>> + Send + 'static,
    A: FnOnce(u64, BodyStream) -> F,
{
    let from = upload::patch_offset(headers)?;
    let stands = stored(app, body, |stream| append(from, stream)).await?;
    Ok(standing(StatusCode::NO_CONTENT, stands.offset, stands.length))
}

/// Stores a body, on a task that outlives the request until what arrived is stored.
async fn stored<F, A>(app: &App, body: Body, append: A) -> Result<UploadOffset, Problem>
where
    F: Future<Output = Result<UploadOffset, store::Error>> + Send + 'static,
    A: FnOnce(BodyStream) -> F,
{
    let (stream, cause) = upload::stream(body, app.max_blob);
    let stored = app.tasks.spawn(append(Box::pin(stream)));
    let stands = stored.await.map_err(|error| Problem::internal(&error))??;
    match cause.take() {
        Some(problem) => Err(problem.header(OFFSET, HeaderValue::from(stands.offset))),
        None => Ok(stands),
    }
}

/// Who calls, and for which attempt.
async fn held(
    app: &App,
    source: Source,
    headers: &HeaderMap,
    (job, attempt): &(String, String),
) -> Result<(Arc<AgentRecord>, JobId, u32), Problem> {
    let agent = authenticate(app, source, headers).await?;
    let attempt = attempt
        .parse()
        .map_err(|_| store::Error::NotFound(format!("there is no attempt {attempt} of the job {job}")))?;
    Ok((agent, id("job", job)?, attempt))
}
