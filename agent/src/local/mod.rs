//! The local port: liveness, readiness, metrics and a read-only status page. Nothing here changes state.

pub mod ask;
mod page;
mod words;

use crate::{
    agent::Agent,
    exit::Stop,
    journal::Journal,
    metrics::{Gauges, Metrics},
    pause::Pauses,
    pressure::Pressure,
    registry::Load,
    settings::Settings,
    status::{Readiness, Status},
};
use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header},
    middleware::map_response,
    response::{Html, IntoResponse, Response},
    routing::get,
};
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the local port looks at. Parts come as the agent starts.
pub struct Local {
    /// What is shown.
    pub status: Arc<Status>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    settings: Arc<Settings>,
    /// The journal, once it is open.
    pub journal: OnceLock<Journal>,
    /// Whether there is room for another job.
    pub pressure: Arc<Pressure>,
    /// What takes no jobs for a while.
    pub pauses: Arc<Pauses>,
    /// The agent, once it runs.
    pub agent: OnceLock<Arc<Agent>>,
    /// Whether the agent is being stopped.
    pub draining: AtomicBool,
}

impl Local {
    /// Before anything runs.
    pub fn new(
        settings: Arc<Settings>,
        status: Arc<Status>,
        metrics: Arc<Metrics>,
        pressure: Arc<Pressure>,
        pauses: Arc<Pauses>,
    ) -> Self {
        let draining = AtomicBool::new(false);
        let (journal, agent) = (OnceLock::new(), OnceLock::new());
        Self { status, metrics, settings, journal, pressure, pauses, agent, draining }
    }

    /// What the operator says.
    pub fn settings(&self) -> Arc<Settings> {
        self.agent.get().map_or_else(|| Arc::clone(&self.settings), |agent| agent.settings())
    }

    fn load(&self) -> Load {
        self.agent.get().map(|agent| *agent.registry.load().borrow()).unwrap_or_default()
    }

    fn gauges(&self) -> Gauges {
        let (journal, agent) = (self.journal.get(), self.agent.get());
        Gauges {
            load: self.load(),
            connected: self.status.connected(),
            journal_writable: journal.is_some_and(Journal::writable),
            journal_bytes: journal.map_or(0, Journal::bytes),
            journal_queue: journal.map_or(0, Journal::queue),
            spool_bytes: agent.map_or(0, |agent| agent.spool.bytes()),
            outbox: agent.map_or(0, |agent| agent.outbox.len()),
            disk_free: self.pressure.disk_free(),
            events: agent.map(|agent| agent.triggers.board.total()).unwrap_or_default(),
        }
    }

    fn reasons(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self.status.not_connected().into_iter().collect();
        let full = self.journal.get().and_then(|journal| self.pressure.full(journal));
        reasons.extend(full.map(str::to_owned));
        reasons.extend(self.agent.get().and_then(|agent| agent.wrong_clock()));
        if self.draining.load(Ordering::Relaxed) {
            reasons.push("the agent is being stopped".to_owned());
        }
        reasons
    }

    fn snapshot(&self) -> crate::status::Snapshot {
        let hub = self.settings.config.hub.url.as_str();
        let mut snapshot = self.status.snapshot(&self.settings.name, hub, self.load(), self.reasons());
        snapshot.pauses = self.pauses.now();
        snapshot.triggers = self.agent.get().map(|agent| agent.triggers.board.snapshot()).unwrap_or_default();
        snapshot
    }
}

/// Binds the port.
///
/// # Errors
/// If it is taken or not allowed.
pub async fn bind(settings: &Settings) -> Result<TcpListener, Stop> {
    let listen = settings.config.agent.listen;
    let mut bound = TcpListener::bind(listen).await;
    if let (Err(error), std::net::IpAddr::V6(ip)) = (&bound, listen.ip())
        && ip.is_unspecified()
        && error.kind() != std::io::ErrorKind::AddrInUse
    {
        // `[::]` means all addresses: on a machine without IPv6, those of IPv4.
        bound = TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, listen.port())).await;
    }
    bound.map_err(|e| {
        Stop::Configuration(format!(
            "agent.listen: {listen} cannot be listened on: {e}: set another address and port, or stop what uses it"
        ))
    })
}

/// Serves until `stop` fires.
pub async fn serve(listener: TcpListener, local: Arc<Local>, stop: CancellationToken) {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status.json", get(status))
        .route("/", get(index))
        .with_state(local)
        .layer(map_response(hardened));
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "The local port has failed");
    }
}

async fn healthz(State(local): State<Arc<Local>>) -> (StatusCode, &'static str) {
    if local.status.alive() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the main loop does not tick\n")
    }
}

async fn readyz(State(local): State<Arc<Local>>) -> (StatusCode, Json<Readiness>) {
    let reasons = local.reasons();
    let ready = reasons.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, reasons }))
}

async fn metrics(State(local): State<Arc<Local>>) -> Response {
    const TYPE: HeaderValue =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    match local.metrics.encode(local.gauges()) {
        Ok(text) => ([(header::CONTENT_TYPE, TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn status(State(local): State<Arc<Local>>) -> Json<crate::status::Snapshot> {
    Json(local.snapshot())
}

async fn index(State(local): State<Arc<Local>>, uri: Uri, headers: HeaderMap) -> impl IntoResponse {
    let accepted = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
    let language = words::language(uri.query(), accepted);
    ([(header::VARY, "accept-language")], Html(page::render(&local.snapshot(), language)))
}

/// What is shown is of this moment, what it claims to be, and of no use within another page.
async fn hardened(mut response: Response) -> Response {
    const HEADERS: [(HeaderName, &str); 4] = [
        (header::CACHE_CONTROL, "no-store"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        ),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
