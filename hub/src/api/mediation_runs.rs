//! `/v1/mediations/runs`: where runs stand, and what operators do with them.

use super::{
    App, List,
    auth::{Allowed, MediationsRead, MediationsWrite},
    body::StrictQuery,
    id, page_size,
    problem::{Problem, ProblemDocument},
    range::Download,
    submission::is_media_type,
    upload,
};
use crate::{
    mediations::{
        RunId, RunState,
        runs::{Message, RunSummary, RunView},
        store::lists::RunFilter,
    },
    store,
};
use axum::{
    Json,
    extract::{Path, Request, State},
    response::Response,
};
use http::{HeaderMap, header};
use jiff::Timestamp;
use passerelle_protocol::BlobId;
use serde::Deserialize;

/// Which runs to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only of this definition, by its guid or its name.
    definition: Option<String>,
    /// Only in this state.
    #[param(inline)]
    state: Option<RunState>,
    /// Only begun at this time or later.
    #[param(value_type = Option<String>, format = "date-time")]
    since: Option<Timestamp>,
    /// Only begun before this time.
    #[param(value_type = Option<String>, format = "date-time")]
    until: Option<Timestamp>,
    /// At most so many, 1 to 500; default 50.
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists runs, newest first.
#[utoipa::path(
    get, path = "/v1/mediations/runs", tag = "mediations", params(ListQuery),
    responses((status = 200, body = List<RunSummary>), (status = "default", body = ProblemDocument))
)]
pub async fn list(
    caller: Allowed<MediationsRead>,
    State(app): State<App>,
    StrictQuery(query): StrictQuery<ListQuery>,
) -> Result<Json<List<RunSummary>>, Problem> {
    let definition = match &query.definition {
        Some(text) => match text.parse() {
            Ok(guid) => Some(guid),
            Err(_) => Some(super::mediations::find(&app, &caller.tenant, text).await?.definition.guid),
        },
        None => None,
    };
    let filter = RunFilter {
        tenant: caller.tenant,
        definition,
        state: query.state,
        since: query.since,
        until: query.until,
        limit: page_size(query.limit)?,
        cursor: query.cursor,
    };
    let page = app.store.list_runs(filter).await?;
    Ok(Json(List { items: page.items, next_cursor: page.next_cursor }))
}

fn run_id(text: &str) -> Result<RunId, Problem> {
    id("mediation run", text)
}

/// One run with its steps, flows and messages.
#[utoipa::path(
    get, path = "/v1/mediations/runs/{id}", tag = "mediations", params(("id" = String, Path)),
    responses((status = 200, body = RunView), (status = "default", body = ProblemDocument))
)]
pub async fn show(
    caller: Allowed<MediationsRead>,
    State(app): State<App>,
    Path(run): Path<String>,
) -> Result<Json<RunView>, Problem> {
    Ok(Json(app.store.run_view(caller.tenant, run_id(&run)?).await?))
}

/// Where to go on in a run's log.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct MessagesQuery {
    /// Only messages after the one of this `seq`.
    #[serde(default)]
    after: i64,
}

/// The messages of a run.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct Messages {
    /// Oldest first; at most 1000.
    items: Vec<Message>,
}

/// A run's messages, oldest first: for a reader that follows them.
#[utoipa::path(
    get, path = "/v1/mediations/runs/{id}/messages", tag = "mediations",
    params(("id" = String, Path), MessagesQuery),
    responses((status = 200, body = Messages), (status = "default", body = ProblemDocument))
)]
pub async fn messages(
    caller: Allowed<MediationsRead>,
    State(app): State<App>,
    Path(run): Path<String>,
    StrictQuery(query): StrictQuery<MessagesQuery>,
) -> Result<Json<Messages>, Problem> {
    let items = app.store.run_messages(caller.tenant, run_id(&run)?, query.after).await?;
    Ok(Json(Messages { items }))
}

/// Goes on with a failed run after its last finished step. What took effect is not done again.
#[utoipa::path(
    post, path = "/v1/mediations/runs/{id}/restart", tag = "mediations", params(("id" = String, Path)),
    responses(
        (status = 200, body = RunSummary),
        (status = 409, body = ProblemDocument, description = "`conflict`: it has not failed, or nobody knows yet whether \
          one of its jobs took effect"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn restart(
    caller: Allowed<MediationsWrite>,
    State(app): State<App>,
    Path(run): Path<String>,
) -> Result<Json<RunSummary>, Problem> {
    let run = run_id(&run)?;
    app.store.restart_run(caller.tenant.clone(), run).await?;
    Ok(Json(app.store.run_summary(caller.tenant, run).await?))
}

/// Closes a failed run and clears its error.
#[utoipa::path(
    post, path = "/v1/mediations/runs/{id}/ignore", tag = "mediations", params(("id" = String, Path)),
    responses(
        (status = 200, body = RunSummary),
        (status = 409, body = ProblemDocument, description = "`conflict`: it has not failed"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn ignore(
    caller: Allowed<MediationsWrite>,
    State(app): State<App>,
    Path(run): Path<String>,
) -> Result<Json<RunSummary>, Problem> {
    let run = run_id(&run)?;
    app.store.ignore_run(caller.tenant.clone(), run).await?;
    Ok(Json(app.store.run_summary(caller.tenant, run).await?))
}

/// The content of a flow.
#[utoipa::path(
    get, path = "/v1/mediations/runs/{id}/flows/{flow}", tag = "mediations",
    params(("id" = String, Path), ("flow" = String, Path), ("Range" = Option<String>, Header)),
    responses(
        (status = 200, description = "The whole", content_type = "*/*"),
        (status = 206, description = "The range", content_type = "*/*"),
        (status = 416, body = ProblemDocument, description = "The range lies outside"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn flow(
    caller: Allowed<MediationsRead>,
    State(app): State<App>,
    Path((run, flow)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (found, content) = app.store.flow(caller.tenant, run_id(&run)?, id("flow", &flow)?).await?;
    Download { content, size: found.size, sha256: found.sha256, media_type: &found.media_type }
        .answer(&headers)
        .await
}

/// What to put into a flow's place.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReplaceQuery {
    /// A blob, uploaded before; without one the body is the content.
    #[param(value_type = Option<String>, format = "uuid")]
    blob: Option<BlobId>,
}

/// Replaces the content of a flow of a failed run. When the run is restarted, what read the flow is done again.
#[utoipa::path(
    put, path = "/v1/mediations/runs/{id}/flows/{flow}", tag = "mediations",
    params(
        ("id" = String, Path), ("flow" = String, Path), ReplaceQuery,
        ("Repr-Digest" = Option<String>, Header, description = "`sha-256=:BASE64:`, checked"),
    ),
    request_body(content = Vec<u8>, content_type = "*/*", description = "The content, unless `blob` names it"),
    responses(
        (status = 200, body = RunView),
        (status = 409, body = ProblemDocument, description = "`conflict`: it has not failed, or the old content was \
          transferred already"),
        (status = 413, body = ProblemDocument, description = "`too_large`"),
        (status = 422, body = ProblemDocument, description = "`digest_mismatch`"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn replace(
    caller: Allowed<MediationsWrite>,
    State(app): State<App>,
    Path((run, flow)): Path<(String, String)>,
    StrictQuery(query): StrictQuery<ReplaceQuery>,
    request: Request,
) -> Result<Json<RunView>, Problem> {
    let (run, flow) = (run_id(&run)?, id("flow", &flow)?);
    // Before a body is taken for nothing.
    app.store.flow(caller.tenant.clone(), run, flow).await?;
    let blob = match query.blob {
        Some(blob) => blob,
        None => store_body(&app, &caller.tenant, request).await?,
    };
    app.store.replace_flow(caller.tenant.clone(), run, flow, blob).await?;
    Ok(Json(app.store.run_view(caller.tenant, run).await?))
}

async fn store_body(
    app: &App,
    tenant: &passerelle_protocol::Name,
    request: Request,
) -> Result<BlobId, Problem> {
    let headers = request.headers();
    let expected = upload::digest(headers)?;
    let announced = super::body::announced_length(headers).unwrap_or(0);
    upload::check_size(announced, app.max_blob)?;
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = media_type.filter(|text| is_media_type(text)).map(str::to_owned);
    app.store.room_for(tenant.clone(), announced).await?;
    let (stream, cause) = upload::stream(request.into_body(), app.max_blob);
    let (blobs, owner) = (app.blobs.clone(), tenant.clone());
    let stored: Result<_, store::Error> = app
        .tasks
        .spawn(async move { blobs.put_stream(owner, media_type, expected, stream).await })
        .await
        .map_err(|error| Problem::internal(&error))?;
    match stored {
        Ok(info) => Ok(info.id),
        Err(error) => Err(cause.take().unwrap_or_else(|| error.into())),
    }
}
