//! `/agent/v1/events/{event}/payload`: an agent uploads the payload of an event before it tells of the event. The way is
//! that of outputs, in `agent.rs`.

use super::{
    App,
    agent::{announced, append_steadily, authenticate, opened},
    blobs::standing,
    guard::Source,
    id,
    problem::{Problem, ProblemDocument},
};
use crate::model::AgentRecord;
use axum::{
    body::Body,
    extract::{Path, State},
    response::Response,
};
use http::{HeaderMap, StatusCode};
use passerelle_protocol::{EventId, http::event_payload_path};
use std::sync::Arc;

/// Opens the upload of an event's payload.
#[utoipa::path(
    post, path = "/agent/v1/events/{event}/payload", tag = "agent", security(()),
    params(("event" = String, Path), ("Upload-Length" = u64, Header), ("Repr-Digest" = String, Header)),
    responses(
        (status = 201, description = "Open"),
        (status = 200, description = "Open already; it goes on at `Upload-Offset`"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn open(
    State(app): State<App>,
    source: Source,
    headers: HeaderMap,
    Path(event): Path<String>,
) -> Result<Response, Problem> {
    let (agent, event) = of_agent(&app, source, &headers, &event).await?;
    let (length, digest) = announced(&app, &headers)?;
    let stands = app.tunnel.event_open(&agent, event, length, digest).await?;
    Ok(opened(&stands, &event_payload_path(event)))
}

/// How far the upload of an event's payload is.
#[utoipa::path(
    head, path = "/agent/v1/events/{event}/payload", tag = "agent", security(()),
    params(("event" = String, Path)),
    responses(
        (status = 200, description = "`Upload-Offset` and `Upload-Length`"),
        (status = "default", description = "Refused; without a body"),
    )
)]
pub async fn offset(
    State(app): State<App>,
    source: Source,
    headers: HeaderMap,
    Path(event): Path<String>,
) -> Result<Response, Problem> {
    let (agent, event) = of_agent(&app, source, &headers, &event).await?;
    let stands = app.tunnel.event_offset(agent.id, event).await?;
    Ok(standing(StatusCode::OK, stands.offset, stands.length))
}

/// Appends to the upload of an event's payload.
#[utoipa::path(
    patch, path = "/agent/v1/events/{event}/payload", tag = "agent", security(()),
    request_body(content = Vec<u8>, content_type = "application/offset+octet-stream"),
    params(("event" = String, Path), ("Upload-Offset" = u64, Header)),
    responses(
        (status = 204, description = "Stored up to the new `Upload-Offset`"),
        (status = 409, body = ProblemDocument, description = "`conflict`: it stands at another offset"),
        (status = 422, body = ProblemDocument, description = "`digest_mismatch`"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn append(
    State(app): State<App>,
    source: Source,
    headers: HeaderMap,
    Path(event): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    let (agent, event) = of_agent(&app, source, &headers, &event).await?;
    let (tunnel, agent) = (app.tunnel.clone(), agent.id);
    append_steadily(&app, &headers, body, move |from, stream| async move {
        tunnel.event_append(agent, event, from, stream).await
    })
    .await
}

/// Who calls, and for which event.
async fn of_agent(
    app: &App,
    source: Source,
    headers: &HeaderMap,
    event: &str,
) -> Result<(Arc<AgentRecord>, EventId), Problem> {
    let agent = authenticate(app, source, headers).await?;
    Ok((agent, id("event", event)?))
}
