//! Health, readiness, metrics and the OpenAPI document.

use super::{
    App,
    auth::{Allowed, MetricsRead},
    problem::{Problem, ProblemDocument},
};
use axum::{
    Json,
    extract::{FromRequestParts as _, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use passerelle_protocol::ApiCode;
use serde::Serialize;

/// The answer of a hub that is well.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Health {
    /// `ok`.
    status: &'static str,
    /// The hub's version.
    version: &'static str,
}

const WELL: Health = Health { status: "ok", version: env!("CARGO_PKG_VERSION") };

/// Whether the hub answers at all.
#[utoipa::path(get, path = "/healthz", tag = "operation", security(()), responses((status = 200, body = Health)))]
pub async fn alive() -> Json<Health> {
    Json(WELL)
}

/// Whether the hub takes work: its store can be written and it is not ending.
#[utoipa::path(
    get, path = "/readyz", tag = "operation", security(()),
    responses((status = 200, body = Health), (status = 503, body = ProblemDocument))
)]
pub async fn ready(State(app): State<App>) -> Result<Json<Health>, Problem> {
    if app.stop.is_cancelled() {
        return Err(ending());
    }
    match app.store.check().await {
        Ok(()) => Ok(Json(WELL)),
        Err(error) => {
            tracing::warn!(%error, "The store cannot be written");
            Err(unready("the store cannot be written; the hub's log says why", "5"))
        }
    }
}

fn unready(detail: &str, after_s: &'static str) -> Problem {
    Problem::new(ApiCode::Internal, detail)
        .status(StatusCode::SERVICE_UNAVAILABLE)
        .header(header::RETRY_AFTER, HeaderValue::from_static(after_s))
}

fn ending() -> Problem {
    unready("the hub is being restarted: nothing was done; try again in a second", "1")
}

/// Refuses requests that come while the hub ends; those that came before it was told are finished.
pub async fn refuse_when_ending(State(app): State<App>, request: Request, next: Next) -> Response {
    let asks_how_it_is = matches!(request.uri().path(), "/healthz" | "/readyz" | "/metrics");
    if app.stop.is_cancelled() && !asks_how_it_is {
        return ending().into_response();
    }
    next.run(request).await
}

/// Figures for Prometheus, of all tenants: with the scope `metrics:read`, or for this machine alone.
#[utoipa::path(
    get, path = "/metrics", tag = "operation",
    responses(
        (status = 200, body = String, content_type = "application/openmetrics-text"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn figures(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    if !app.open_metrics {
        let (mut parts, _) = request.into_parts();
        Allowed::<MetricsRead>::from_request_parts(&mut parts, &app).await?;
    }
    app.metrics.store(&app.store.stats());
    let text = app.metrics.render(app.tunnel.sessions()).map_err(|error| Problem::internal(&error))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// This document.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "operation", security(()),
    responses((status = 200, body = Object, content_type = "application/json"))
)]
pub async fn document(State(app): State<App>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], app.openapi().to_owned()).into_response()
}
