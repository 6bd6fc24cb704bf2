//! `PUT app/mediations/standard/{flow}`: a client names a file, the hub fetches it and runs the definition that is bound to
//! the flow; and the poll of it.

use super::{
    auth::{Read, Vendor, Write},
    error::Failure,
    no_run,
    shapes::StatusShape,
    show as show_any,
};
use crate::{
    api::{
        App,
        body::{MAX_JSON_BODY, bounded, parse},
    },
    outbound::{self, Refusal},
    store,
};
use axum::{
    Json,
    extract::{Path, Request, State},
};
use http::StatusCode;
use passerelle_protocol::Name;
use serde::Deserialize;
use uuid::Uuid;

/// The body; clients of the vendor add fields of their own.
#[derive(Deserialize)]
struct Wanted {
    #[serde(rename = "Url", alias = "url", alias = "URL")]
    url: String,
}

pub(super) async fn request(
    caller: Vendor<Write>,
    State(app): State<App>,
    Path(flow): Path<String>,
    request: Request,
) -> Result<Json<Uuid>, Failure> {
    // Whatever its content type says: some clients send text/json.
    let body = bounded(request, MAX_JSON_BODY).await?;
    let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body);
    let wanted: Wanted = parse(text).map_err(|problem| {
        Failure::new(
            StatusCode::BAD_REQUEST,
            format!("expected a body like {{\"Url\":\"https://…\"}}: {}", problem.detail()),
        )
    })?;
    let stored = match app.store.definition_of_flow(caller.tenant.clone(), flow.clone()).await {
        Ok(stored) => stored,
        Err(store::Error::NotFound(_)) => {
            let none = format!("no mediation definition has the standard flow {flow}");
            return Err(Failure::new(StatusCode::NOT_FOUND, none));
        }
        Err(error) => return Err(error.into()),
    };
    if !stored.definition.enabled {
        let disabled = format!("the mediation of the standard flow {flow} is disabled");
        return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, disabled));
    }
    let url = outbound::read(&wanted.url).map_err(|refusal| refused(&refusal))?;
    if !app.outbound.fetches() {
        let none = "this hub fetches no files: its operator lists what may be fetched in outbound.fetch_urls";
        return Err(Failure::new(StatusCode::PRECONDITION_FAILED, none));
    }
    if !app.outbound.may_fetch(&url) {
        return Err(Failure::target(
            "Url: it is not among those that the hub's operator lists in outbound.fetch_urls",
        ));
    }
    match app.outbound.judge(&url).await {
        // A name server may be down for a moment: the fetch tries again.
        Ok(()) | Err(Refusal::NotResolved) => {}
        Err(refusal) => return Err(refused(&refusal)),
    }
    let guid =
        app.store.request_standard(caller.tenant, stored.definition.guid, flow, url.to_string()).await?;
    Ok(Json(guid))
}

fn refused(refusal: &Refusal) -> Failure {
    match refusal {
        Refusal::Malformed(why) => Failure::new(StatusCode::BAD_REQUEST, why.clone()),
        Refusal::Forbidden(_) | Refusal::NotResolved => Failure::target(format!("Url: {refusal}")),
    }
}

pub(super) async fn poll(
    caller: Vendor<Read>,
    State(app): State<App>,
    Path(guid): Path<String>,
) -> Result<Json<StatusShape>, Failure> {
    show_any(&app, &caller, &guid).await.map(Json)
}

/// A request, or its run once that has begun.
pub(super) async fn show(app: &App, tenant: &Name, guid: Uuid) -> Result<StatusShape, Failure> {
    let none = || no_run(&guid.to_string());
    let request = app.store.standard_request(tenant.clone(), guid).await?.ok_or_else(none)?;
    match request.run {
        Some(run) => {
            let summary = app.store.run_summary(tenant.clone(), run).await.map_err(|_| none())?;
            let messages = app.store.run_messages(tenant.clone(), run, 0).await?;
            Ok(StatusShape::of_run(&summary, &messages).known_as(guid))
        }
        None => {
            let definition = app.store.definition(tenant.clone(), request.definition).await?;
            Ok(StatusShape::of_request(&request, &definition))
        }
    }
}
