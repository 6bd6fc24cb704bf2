//! `/v1/events/received`: what agents' triggers saw and their listeners were told.

use super::{
    App, List,
    auth::{Allowed, EventsRead},
    body::StrictQuery,
    id, page_size,
    problem::{Problem, ProblemDocument},
    range::Download,
};
use crate::model::{EventFilter, ReceivedEvent};
use axum::{
    Json,
    extract::{Path, State},
    response::Response,
};
use http::HeaderMap;
use jiff::Timestamp;
use passerelle_protocol::Name;
use serde::Deserialize;

/// Which events to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only of this site.
    #[param(value_type = Option<String>)]
    site: Option<Name>,
    /// Only of this resource.
    #[param(value_type = Option<String>)]
    resource: Option<Name>,
    /// Only of triggers of this name.
    #[param(value_type = Option<String>)]
    trigger: Option<Name>,
    /// Only of this kind: `pickup`, `watch`, `change` or `notification`.
    #[param(value_type = Option<String>)]
    kind: Option<Name>,
    /// Only stored at this time or later.
    #[param(value_type = Option<String>, format = "date-time")]
    since: Option<Timestamp>,
    /// Only stored before this time.
    #[param(value_type = Option<String>, format = "date-time")]
    until: Option<Timestamp>,
    /// At most so many, 1 to 500; default 50.
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists events, newest first.
#[utoipa::path(
    get, path = "/v1/events/received", tag = "events", params(ListQuery),
    responses((status = 200, body = List<ReceivedEvent>), (status = "default", body = ProblemDocument))
)]
pub async fn list(
    caller: Allowed<EventsRead>,
    State(app): State<App>,
    StrictQuery(query): StrictQuery<ListQuery>,
) -> Result<Json<List<ReceivedEvent>>, Problem> {
    let filter = EventFilter {
        tenant: caller.tenant,
        site: query.site,
        resource: query.resource,
        trigger: query.trigger,
        kind: query.kind,
        since: query.since,
        until: query.until,
        limit: page_size(query.limit)?,
        cursor: query.cursor,
    };
    let page = app.store.list_events(filter).await?;
    Ok(Json(List { items: page.items, next_cursor: page.next_cursor }))
}

/// One event.
#[utoipa::path(
    get, path = "/v1/events/received/{id}", tag = "events", params(("id" = String, Path)),
    responses((status = 200, body = ReceivedEvent), (status = "default", body = ProblemDocument))
)]
pub async fn show(
    caller: Allowed<EventsRead>,
    State(app): State<App>,
    Path(event): Path<String>,
) -> Result<Json<ReceivedEvent>, Problem> {
    Ok(Json(app.store.received_event(caller.tenant, id("event", &event)?).await?))
}

/// The payload of an event.
#[utoipa::path(
    get, path = "/v1/events/received/{id}/payload", tag = "events",
    params(("id" = String, Path), ("Range" = Option<String>, Header)),
    responses(
        (status = 200, description = "The whole", content_type = "*/*"),
        (status = 206, description = "The range", content_type = "*/*"),
        (status = 404, body = ProblemDocument, description = "`not_found`: also for an event without a payload"),
        (status = 416, body = ProblemDocument, description = "The range lies outside"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn payload(
    caller: Allowed<EventsRead>,
    State(app): State<App>,
    Path(event): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (_, payload, content) = app.store.received_payload(caller.tenant, id("event", &event)?).await?;
    Download { content, size: payload.size, sha256: payload.sha256, media_type: &payload.media_type }
        .answer(&headers)
        .await
}
