//! The vendor's HTTP API for mediations, as existing clients speak it: `app/…` for servers, `api/…` for users.
//!
//! Not part of the OpenAPI document of `/v1`: paths, shapes (PascalCase) and errors are the vendor's. What its clients are
//! known to send is borne: `basic:` in the place of `Basic `, `text/json`, unescaped `+` in dates, the zero guid as no
//! filter. Calls that change something go by GET; they are idempotent, and a `HEAD` does not make them.

mod auth;
mod error;
pub mod fetch;
mod query;
mod shapes;
mod standard;

use super::App;
use crate::mediations::{DefinitionId, RunId, RunState, store::lists::RunFilter};
use auth::{Read, Vendor, Write};
use axum::{
    Json, Router,
    extract::{Path, RawQuery, State},
    response::IntoResponse,
    routing::{MethodRouter, any, get, put},
};
use error::{Failure, Refused};
use http::{HeaderName, StatusCode, Uri};
use shapes::{DefinitionShape, StatusShape};
use uuid::Uuid;

/// How many runs a list shows; the vendor's API knows no pages.
pub const MAX_LISTED: usize = 1000;
/// How many of its newest messages each run of a list shows.
const MESSAGES: usize = 20;
/// Says that a list was cut.
const TRUNCATED: HeaderName = HeaderName::from_static("x-result-truncated");

/// The routes of both prefixes.
pub(super) fn router() -> Router<App> {
    let mut router = Router::new();
    for prefix in ["/app/mediations", "/api/mediations"] {
        let route = |path: &str| format!("{prefix}{path}");
        router = router
            .route(&route("/definitions"), get(definitions))
            .route(&route("/definitions/{guid}/enable"), changing(get(enable)))
            .route(&route("/definitions/{guid}/disable"), changing(get(disable)))
            .route(&route("/status"), get(list))
            .route(&route("/{guid}/status"), get(status))
            .route(&route("/{guid}/restart"), changing(get(restart)))
            .route(&route("/{guid}/ignore"), changing(get(ignore)));
    }
    router
        .route("/app/mediations/standard/{flow}", put(standard::request))
        .route("/app/mediations/status/{guid}", get(standard::poll))
        .route("/app/{*rest}", any(nothing_here))
        .route("/api/{*rest}", any(nothing_here))
        .method_not_allowed_fallback(wrong_method)
}

/// A GET that changes something: what only asks for the head of it must not.
fn changing(route: MethodRouter<App>) -> MethodRouter<App> {
    route.head(wrong_method)
}

async fn wrong_method() -> Failure {
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "this address does not take this method")
}

/// Whether a path is one of the vendor's.
pub(super) fn is_at(path: &str) -> bool {
    ["/app/", "/api/"].iter().any(|prefix| path.starts_with(prefix))
}

pub(super) async fn nothing_here(uri: Uri) -> impl IntoResponse {
    Failure::new(StatusCode::NOT_FOUND, format!("nothing is at {}", uri.path()))
}

async fn definitions(
    caller: Vendor<Read>,
    State(app): State<App>,
) -> Result<Json<Vec<DefinitionShape>>, Failure> {
    let all = app.store.definitions_with_last_run(caller.tenant).await?;
    Ok(Json(all.iter().map(|(stored, last)| DefinitionShape::new(stored, last.as_ref())).collect()))
}

async fn enable(
    caller: Vendor<Write>,
    State(app): State<App>,
    Path(guid): Path<String>,
) -> Result<Json<bool>, Failure> {
    app.store.enable_definition(caller.tenant, definition(&guid)?, true).await?;
    Ok(Json(true))
}

async fn disable(
    caller: Vendor<Write>,
    State(app): State<App>,
    Path(guid): Path<String>,
) -> Result<Json<bool>, Failure> {
    app.store.enable_definition(caller.tenant, definition(&guid)?, false).await?;
    Ok(Json(true))
}

async fn list(
    caller: Vendor<Read>,
    State(app): State<App>,
    RawQuery(text): RawQuery,
) -> Result<([(HeaderName, &'static str); 1], Json<Vec<StatusShape>>), Failure> {
    let filter = query::read(text.as_deref().unwrap_or_default())?;
    let mut runs = Vec::new();
    let mut cursor = None;
    loop {
        let filter = RunFilter {
            tenant: caller.tenant.clone(),
            definition: filter.definition,
            state: None,
            since: filter.since,
            until: filter.until,
            limit: 500,
            cursor,
        };
        let page = app.store.list_runs(filter).await?;
        runs.extend(page.items);
        cursor = page.next_cursor;
        if cursor.is_none() || runs.len() >= MAX_LISTED {
            break;
        }
    }
    let truncated = cursor.is_some();
    let messages = app.store.newest_messages(runs.iter().map(|run| run.seq).collect(), MESSAGES).await?;
    let shown = runs.iter().zip(&messages).map(|(run, messages)| StatusShape::of_run(run, messages));
    Ok(([(TRUNCATED, if truncated { "true" } else { "false" })], Json(shown.collect())))
}

async fn status(
    caller: Vendor<Read>,
    State(app): State<App>,
    Path(guid): Path<String>,
) -> Result<Json<StatusShape>, Failure> {
    show(&app, &caller, &guid).await.map(Json)
}

/// The run, or the request that has none yet, of this guid.
async fn show<S>(app: &App, caller: &Vendor<S>, guid: &str) -> Result<StatusShape, Failure> {
    let wanted = uuid(guid).ok_or_else(|| no_run(guid))?;
    match app.store.run_summary(caller.tenant.clone(), RunId::from(wanted)).await {
        Ok(run) => {
            let messages = app.store.run_messages(caller.tenant.clone(), run.guid, 0).await?;
            Ok(StatusShape::of_run(&run, &messages))
        }
        Err(crate::store::Error::NotFound(_)) => standard::show(app, &caller.tenant, wanted).await,
        Err(error) => Err(error.into()),
    }
}

async fn restart(
    caller: Vendor<Write>,
    State(app): State<App>,
    Path(guid): Path<String>,
) -> Result<Json<StatusShape>, Failure> {
    let run = run(&app, &caller, &guid).await?;
    match app.store.restart_run(caller.tenant.clone(), run).await {
        Ok(()) => {}
        Err(crate::store::Error::Conflict(why)) => {
            match app.store.run_summary(caller.tenant.clone(), run).await?.state {
                // Restarted already: the same call twice is the same.
                RunState::Queued | RunState::Running => {}
                // Somebody has to say first what a job did.
                RunState::Unknown => return Err(Failure::new(StatusCode::CONFLICT, why)),
                RunState::Succeeded
                | RunState::Failed
                | RunState::Ignored
                | RunState::Superseded
                | RunState::Skipped => return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, why)),
            }
        }
        Err(error) => return Err(error.into()),
    }
    show(&app, &caller, &guid).await.map(Json)
}

async fn ignore(
    caller: Vendor<Write>,
    State(app): State<App>,
    Path(guid): Path<String>,
) -> Result<Json<bool>, Failure> {
    let run = run(&app, &caller, &guid).await?;
    match app.store.ignore_run(caller.tenant.clone(), run).await {
        Ok(()) => Ok(Json(true)),
        Err(crate::store::Error::Conflict(why)) => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, why)),
        Err(error) => Err(error.into()),
    }
}

/// The run that a guid names, itself or as that of the request that started it.
async fn run<S>(app: &App, caller: &Vendor<S>, guid: &str) -> Result<RunId, Failure> {
    let wanted = uuid(guid).ok_or_else(|| no_run(guid))?;
    match app.store.standard_request(caller.tenant.clone(), wanted).await? {
        Some(request) => request.run.ok_or_else(|| {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "its file is not here yet, so it has not begun")
        }),
        None => Ok(RunId::from(wanted)),
    }
}

fn definition(guid: &str) -> Result<DefinitionId, Failure> {
    let found = uuid(guid).map(DefinitionId::from);
    found.ok_or_else(|| {
        Failure::new(StatusCode::NOT_FOUND, format!("there is no mediation definition {guid}"))
    })
}

fn no_run(guid: &str) -> Failure {
    Failure::new(StatusCode::NOT_FOUND, format!("there is no mediation {guid}"))
}

/// A guid in any of its spellings: with hyphens, without, in braces, in any case.
fn uuid(text: &str) -> Option<Uuid> {
    Uuid::parse_str(text.trim()).ok().filter(|uuid| !uuid.is_nil())
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        refused.0
    }
}
