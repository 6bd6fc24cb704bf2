//! `/v1/blobs`: payloads too large for a job's body, whole or resumable.

use super::{
    App,
    auth::{Allowed, BlobsWrite},
    body, id,
    problem::{Problem, ProblemDocument},
    range::Download,
    submission::is_media_type,
    upload::{self, LENGTH, OFFSET, RESUMABLE, VERSION},
    with_header,
};
use crate::{blobs::UploadOffset, model::BlobInfo, store};
use axum::{
    Json,
    body::Body,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use passerelle_protocol::{ApiCode, BlobId, Sha256};
use serde::Serialize;

/// A blob, or one being uploaded.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Blob {
    /// Its id, for a job's `payload.blob`.
    #[schema(value_type = String, format = "uuid")]
    id: BlobId,
    /// Its size in bytes.
    size: u64,
    /// Its digest; null until an opened upload is complete, unless it was announced.
    #[schema(value_type = Option<String>)]
    sha256: Option<Sha256>,
}

/// Stores a body as a blob; or, with `Upload-Length` and no body, opens an upload.
#[utoipa::path(
    post, path = "/v1/blobs", tag = "blobs",
    request_body(content = Vec<u8>, content_type = "*/*", description = "The whole content, or nothing"),
    params(
        ("Upload-Length" = Option<u64>, Header, description = "Opens an upload of this size"),
        ("Repr-Digest" = Option<String>, Header, description = "`sha-256=:BASE64:`, checked"),
    ),
    responses(
        (status = 201, body = Blob),
        (status = 413, body = ProblemDocument, description = "`too_large`"),
        (status = 422, body = ProblemDocument, description = "`digest_mismatch`"),
        (status = 507, body = ProblemDocument, description = "`quota`: the disk is full, or the tenant's share used up"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn create(
    caller: Allowed<BlobsWrite>,
    State(app): State<App>,
    request: Request,
) -> Result<Response, Problem> {
    let headers = request.headers();
    upload::check_version(headers)?;
    upload::check_not_deferred(headers)?;
    let expected = upload::digest(headers)?;
    let media_type = media_type(headers);
    let announced = body::announced_length(headers);
    upload::check_size(announced.unwrap_or(0), app.max_blob)?;
    if let Some(length) = upload::number(headers, &LENGTH)? {
        upload::check_size(length, app.max_blob)?;
        if announced.unwrap_or(0) > 0 || headers.contains_key(header::TRANSFER_ENCODING) {
            return Err(Problem::bad_request(
                "upload-length: opens an upload without a body; send the parts with PATCH",
            ));
        }
        app.store.room_for(caller.tenant.clone(), length).await?;
        let id = app.blobs.create_upload(caller.tenant, media_type, length, expected).await?;
        let answer = created(&Blob { id, size: length, sha256: expected });
        return Ok(with_header(with_header(answer, OFFSET, "0"), RESUMABLE, VERSION));
    }
    app.store.room_for(caller.tenant.clone(), announced.unwrap_or(0)).await?;
    let (stream, cause) = upload::stream(request.into_body(), app.max_blob);
    let (blobs, tenant) = (app.blobs.clone(), caller.tenant);
    let stored = app.tasks.spawn(async move { blobs.put_stream(tenant, media_type, expected, stream).await });
    match stored.await.map_err(|error| Problem::internal(&error))? {
        Ok(BlobInfo { id, size, sha256, .. }) => Ok(created(&Blob { id, size, sha256: Some(sha256) })),
        Err(error) => Err(cause.take().unwrap_or_else(|| error.into())),
    }
}

fn created(blob: &Blob) -> Response {
    let location = format!("/v1/blobs/{}", blob.id);
    with_header((StatusCode::CREATED, Json(blob)).into_response(), header::LOCATION, &location)
}

/// How far an upload is.
#[utoipa::path(
    head, path = "/v1/blobs/{id}", tag = "blobs", params(("id" = String, Path)),
    responses(
        (status = 200, description = "`Upload-Offset` and `Upload-Length`"),
        (status = "default", description = "Refused; without a body"),
    )
)]
pub async fn offset(
    caller: Allowed<BlobsWrite>,
    State(app): State<App>,
    Path(blob): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    upload::check_version(&headers)?;
    let blob = id("blob", &blob)?;
    let (offset, length) = match app.blobs.upload_offset(caller.tenant.clone(), blob).await {
        Ok(UploadOffset { offset, length, .. }) => (offset, length),
        // A blob that was stored whole has no upload, but a size.
        Err(store::Error::NotFound(_)) => {
            let info = app.blobs.info(caller.tenant, blob).await?;
            (info.size, info.size)
        }
        Err(error) => return Err(error.into()),
    };
    Ok(standing(StatusCode::OK, offset, length))
}

/// Appends to an upload.
#[utoipa::path(
    patch, path = "/v1/blobs/{id}", tag = "blobs",
    request_body(content = Vec<u8>, content_type = "application/offset+octet-stream"),
    params(
        ("id" = String, Path),
        ("Upload-Offset" = u64, Header, description = "Where the upload stands"),
        ("Repr-Digest" = Option<String>, Header, description = "Of the whole; checked when it is complete"),
    ),
    responses(
        (status = 204, description = "Stored up to the new `Upload-Offset`"),
        (status = 409, body = ProblemDocument, description = "`conflict`: it stands at another offset, or another request is writing it"),
        (status = 422, body = ProblemDocument, description = "`digest_mismatch`"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn append(
    caller: Allowed<BlobsWrite>,
    State(app): State<App>,
    Path(blob): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let from = upload::patch_offset(&headers)?;
    let blob = id("blob", &blob)?;
    let expected = upload::digest(&headers)?;
    let (stream, cause) = upload::stream(body, app.max_blob);
    let (blobs, tenant) = (app.blobs.clone(), caller.tenant);
    let stored = app.tasks.spawn(async move { blobs.append(tenant, blob, from, expected, stream).await });
    let stands = stored.await.map_err(|error| Problem::internal(&error))??;
    if let Some(problem) = cause.take() {
        return Err(problem.header(OFFSET, HeaderValue::from(stands.offset)));
    }
    // Of a blob that was complete before.
    if let (Some(expected), Some(BlobInfo { sha256: actual, .. })) = (expected, &stands.blob)
        && expected != *actual
    {
        let detail = store::Error::DigestMismatch { expected, actual: *actual }.to_string();
        return Err(Problem::new(ApiCode::DigestMismatch, detail));
    }
    Ok(standing(StatusCode::NO_CONTENT, stands.offset, stands.length))
}

/// Reads a blob back.
#[utoipa::path(
    get, path = "/v1/blobs/{id}", tag = "blobs",
    params(("id" = String, Path), ("Range" = Option<String>, Header)),
    responses(
        (status = 200, description = "The whole", content_type = "*/*"),
        (status = 206, description = "The range", content_type = "*/*"),
        (status = 416, body = ProblemDocument, description = "The range lies outside"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn download(
    caller: Allowed<BlobsWrite>,
    State(app): State<App>,
    Path(blob): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let blob = id("blob", &blob)?;
    // The output of a call is nowhere but in memory.
    let (info, content) = match app.tunnel.transfers.kept(&caller.tenant, blob) {
        Some(output) => output,
        None => app.blobs.open(caller.tenant, blob).await?,
    };
    let media_type = info.media_type.as_deref().unwrap_or("application/octet-stream");
    Download { content, size: info.size, sha256: info.sha256, media_type }.answer(&headers).await
}

/// Where an upload stands, as an answer.
pub(super) fn standing(status: StatusCode, offset: u64, length: u64) -> Response {
    let answer = with_header(status.into_response(), OFFSET, &offset.to_string());
    let answer = with_header(answer, LENGTH, &length.to_string());
    with_header(answer, RESUMABLE, VERSION)
}

/// The content type of an upload; what command-line tools send for want of a better one does not count.
fn media_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    (is_media_type(text) && text != "application/x-www-form-urlencoded").then(|| text.to_owned())
}
