//! The hub's HTTP interface: `/v1` for clients, `/agent/v1` for agents, health and metrics.
//!
//! Every route is registered through `routes!`, which puts it into the router and into the OpenAPI document at once.
//! Handlers name their scope by their first argument; all refusals are problem documents.

mod agent;
mod agents;
pub mod auth;
mod blobs;
mod body;
mod calls;
mod envelope;
mod event_upload;
mod events;
mod events_in;
mod guard;
mod health;
mod jobs;
mod mediation_reading;
mod mediation_runs;
mod mediations;
mod metrics;
mod observe;
mod problem;
mod range;
mod received;
mod signature;
mod sites;
mod submission;
mod subscriptions;
mod upload;
pub mod vendor;

pub use guard::{Guard, PER_PAIR};
pub use metrics::Metrics;
pub use problem::{Problem, ProblemDocument};
pub use submission::{MAX_ATTEMPTS, MAX_DEADLINE_S, MAX_TIMEOUT_S};

use crate::{
    blobs::Blobs, mediations::sandbox::Sandbox, notices, outbound::Outbound, store, store::Store,
    tunnel::Tunnel,
};
use axum::{
    Router,
    extract::{Request, State},
    http::Uri,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::{HeaderValue, Method, StatusCode, header};
use passerelle_protocol::ApiCode;
use percent_encoding::percent_decode_str;
use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::Arc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use utoipa::openapi::{
    InfoBuilder, OpenApi, OpenApiBuilder, PathItem, RefOr, Response as DocumentedAnswer, SecurityRequirement,
    security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

/// The largest blob, unless configured: 16 GiB.
pub const MAX_BLOB: u64 = 16 << 30;

/// What the handlers share. Each request takes several copies of it, so that a copy is one handle.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// What an [`App`] is made of.
#[derive(Clone)]
pub struct Parts {
    /// The store.
    pub store: Store,
    /// The blobs.
    pub blobs: Blobs,
    /// The live sessions.
    pub tunnel: Tunnel,
    /// The figures.
    pub metrics: Arc<Metrics>,
    /// The largest blob that is taken.
    pub max_blob: u64,
    /// Whether `/metrics` is answered without a key: only where nobody but this machine can ask.
    pub open_metrics: bool,
    /// Whether a proxy stands before the hub, which tells where requests come from.
    pub behind_proxy: bool,
    /// Wrong credentials, counted.
    pub guard: Arc<Guard>,
    /// The hub's own requests on behalf of tenants.
    pub outbound: Outbound,
    /// How tenants are told of what happens.
    pub notices: notices::Settings,
    /// Where templates of mediations are filled.
    pub templates: Sandbox,
    /// Set when the hub ends: event streams and waits end early.
    pub stop: CancellationToken,
    /// Uploads go on here when their request is cut, until what arrived is stored.
    pub tasks: TaskTracker,
    document: Arc<OnceDocument>,
}

type OnceDocument = std::sync::OnceLock<String>;

impl Deref for App {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl DerefMut for App {
    /// For setting an app up: once there are copies, they do not see what is changed.
    fn deref_mut(&mut self) -> &mut Parts {
        Arc::make_mut(&mut self.0)
    }
}

impl App {
    /// An interface over `store`.
    #[must_use]
    pub fn new(store: Store, max_blob: u64, open_metrics: bool, stop: CancellationToken) -> Self {
        store.set_max_blob(max_blob);
        Self(Arc::new(Parts {
            blobs: Blobs::new(store.clone()),
            tunnel: Tunnel::new(store.clone()),
            store,
            metrics: Arc::default(),
            max_blob,
            open_metrics,
            behind_proxy: false,
            guard: Arc::default(),
            outbound: Outbound::default(),
            notices: notices::Settings::default(),
            templates: Sandbox::new(stop.clone()),
            stop,
            tasks: TaskTracker::new(),
            document: Arc::default(),
        }))
    }

    /// The router that answers requests.
    pub fn router(&self) -> Router {
        let (router, _) = api().split_for_parts();
        router
            .merge(vendor::router())
            .fallback(no_such_route)
            .method_not_allowed_fallback(wrong_method)
            .layer(axum::middleware::from_fn(refuse_unreadable_path))
            .layer(axum::middleware::from_fn_with_state(self.clone(), health::refuse_when_ending))
            .layer(axum::middleware::from_fn_with_state(self.clone(), observe::observe))
            .with_state(self.clone())
    }

    fn openapi(&self) -> &str {
        self.document.get_or_init(|| openapi().to_json().unwrap_or_default())
    }
}

/// The OpenAPI document of this hub.
#[must_use]
pub fn openapi() -> OpenApi {
    let mut document = api().split_for_parts().1;
    for item in document.paths.paths.values_mut() {
        let PathItem { get, put, post, delete, head, patch, .. } = item;
        for operation in [get, put, post, delete, head, patch].into_iter().flatten() {
            describe(&mut operation.responses.responses);
        }
    }
    document
}

/// Every answer needs a description (OpenAPI 3.1 §4.8.17): what says nothing more means what its status does.
fn describe(answers: &mut BTreeMap<String, RefOr<DocumentedAnswer>>) {
    for (status, answer) in answers {
        if let RefOr::T(answer) = answer
            && answer.description.is_empty()
        {
            let reason = status.parse().ok().and_then(|status: StatusCode| status.canonical_reason());
            answer.description = reason.unwrap_or("Refused: `code` and `detail` say why").to_owned();
        }
    }
}

fn api() -> OpenApiRouter<App> {
    let info = InfoBuilder::new()
        .title("Passerelle hub")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Jobs on private resources, carried out by agents that dial out to this hub."));
    let key = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("An API key of a tenant."));
    let mut document = OpenApiBuilder::new()
        .info(info.build())
        .security(Some([SecurityRequirement::new("api_key", Vec::<String>::new())]))
        .build();
    document
        .components
        .get_or_insert_default()
        .add_security_scheme("api_key", SecurityScheme::Http(key.build()));
    OpenApiRouter::with_openapi(document)
        .routes(routes!(jobs::submit, jobs::list))
        .routes(routes!(jobs::show))
        .routes(routes!(jobs::cancel))
        .routes(routes!(envelope::show))
        .routes(routes!(jobs::retry))
        .routes(routes!(jobs::resolve))
        .routes(routes!(jobs::output))
        .routes(routes!(calls::call))
        .routes(routes!(blobs::create))
        .routes(routes!(blobs::offset, blobs::append, blobs::download))
        .routes(routes!(sites::list))
        .routes(routes!(sites::resources))
        .routes(routes!(agents::list))
        .routes(routes!(agents::revoke))
        .routes(routes!(events::follow))
        .routes(routes!(events_in::send, events_in::list))
        .routes(routes!(events_in::show))
        .routes(routes!(mediations::list, mediations::apply))
        .routes(routes!(mediations::show, mediations::put, mediations::delete))
        .routes(routes!(mediations::enable))
        .routes(routes!(mediations::disable))
        .routes(routes!(mediations::start))
        .routes(routes!(mediation_runs::list))
        .routes(routes!(mediation_runs::show))
        .routes(routes!(mediation_runs::messages))
        .routes(routes!(mediation_runs::restart))
        .routes(routes!(mediation_runs::ignore))
        .routes(routes!(mediation_runs::flow, mediation_runs::replace))
        .routes(routes!(received::list))
        .routes(routes!(received::show))
        .routes(routes!(received::payload))
        .routes(routes!(subscriptions::create, subscriptions::list))
        .routes(routes!(subscriptions::show, subscriptions::delete))
        .routes(routes!(subscriptions::test))
        .routes(routes!(subscriptions::deliveries))
        .routes(routes!(subscriptions::resend_all))
        .routes(routes!(subscriptions::resend))
        .routes(routes!(health::document))
        .routes(routes!(health::alive))
        .routes(routes!(health::ready))
        .routes(routes!(health::figures))
        .routes(routes!(agent::enrol))
        .routes(routes!(agent::keys))
        .routes(routes!(agent::tunnel))
        .routes(routes!(agent::payload))
        .routes(routes!(agent::output_open, agent::output_offset, agent::output_append))
        .routes(routes!(event_upload::open, event_upload::offset, event_upload::append))
}

/// Nothing has a name that is not UTF-8: said here, since what reads paths would say it in plain text.
async fn refuse_unreadable_path(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if percent_decode_str(path).decode_utf8().is_ok() {
        return next.run(request).await;
    }
    if vendor::is_at(path) {
        return vendor::nothing_here(request.uri().clone()).await.into_response();
    }
    Problem::not_found(format!("nothing is at {path}: that is not UTF-8")).into_response()
}

async fn no_such_route(State(_): State<App>, uri: Uri) -> Problem {
    Problem::not_found(format!("nothing is at {}; GET /v1/openapi.json lists all calls", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} does not take {method}; see the Allow header", uri.path());
    Problem::bad_request(detail).status(StatusCode::METHOD_NOT_ALLOWED)
}

impl From<store::Error> for Problem {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Internal(cause) => Self::internal(&cause),
            store::Error::Offset(offset) => {
                let at = HeaderValue::from(offset);
                Self::new(
                    ApiCode::Conflict,
                    format!("the upload stands at offset {offset}; go on from there"),
                )
                .header(upload::OFFSET, at)
            }
            store::Error::Busy(offset) => {
                let detail = format!("{error}: ask for its offset and go on once that one has ended");
                Self::new(ApiCode::Conflict, detail).header(upload::OFFSET, HeaderValue::from(offset))
            }
            error => Self::new(error.code(), error.to_string()),
        }
    }
}

/// A list as the API shows it.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct List<T> {
    /// The items.
    items: Vec<T>,
    /// Where the next page starts, as `cursor`; null on the last one.
    next_cursor: Option<String>,
}

/// How many items a page has, of what was asked for.
///
/// # Errors
/// 400 outside of 1 to 500.
fn page_size(limit: Option<u64>) -> Result<usize, Problem> {
    match limit.unwrap_or(50) {
        limit @ 1..=500 => Ok(usize::try_from(limit).unwrap_or(500)),
        limit => Err(Problem::bad_request(format!("limit: must be 1 to 500, found {limit}"))),
    }
}

/// An id in a path: what is no UUID is the id of nothing.
///
/// # Errors
/// 404.
fn id<T: std::str::FromStr>(what: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|_| Problem::not_found(format!("there is no {what} {text}")))
}

/// Sets a header of an answer.
fn with_header(mut response: Response, name: header::HeaderName, value: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
    response
}
