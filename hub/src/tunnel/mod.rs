//! The hub's end of the tunnel: authentication, live sessions, and the transfers beside it.

mod auth;
pub(crate) mod breaker;
mod call;
mod event;
mod event_transfer;
mod offer;
pub(crate) mod registry;
mod report;
mod session;
mod transfer;

#[cfg(test)]
mod tests;

use auth::Purpose;
pub(crate) use auth::claims;
pub use call::{CallDone, CallFailed, CallOutput, CallPayload, NewCall};

use crate::{
    blobs::Transfers,
    clock,
    model::{AgentRecord, Live, ResourceView},
    server::SHUTDOWN_GRACE,
    store::{Error, Store},
};
use axum::{body::Body, extract::Request, response::Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use passerelle_protocol::{AgentId, ApiCode, Name, SUBPROTOCOL};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

/// A refusal before the upgrade; `server_time` goes into the problem document.
///
/// | status | code | when |
/// |---|---|---|
/// | 401 | `unauthorized` | no token, unknown agent, wrong signature, audience or clock, a token used before |
/// | 403 | `forbidden` | the agent is revoked: the detail starts with `revoked` |
/// | 403 | `tier_required` | the tenant's tier has no hybrid mode |
/// | 426 | `bad_request` | not an upgrade to WebSocket version 13 |
/// | 400 | `bad_request` | without the tunnel's subprotocol or a usable key |
/// | 429 | `rate_limited` | too many requests of this agent |
/// | 503 | `quota` or `internal` | the hub stops, or cannot store |
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The stable code.
    pub code: ApiCode,
    /// What is wrong and what to do.
    pub detail: String,
    /// The hub's clock.
    pub server_time: Timestamp,
}

impl Refusal {
    fn new(status: u16, code: ApiCode, detail: &str) -> Self {
        Self { status, code, detail: detail.to_owned(), server_time: clock::now() }
    }

    fn from_store(error: &Error) -> Self {
        tracing::error!(error = %error, "Could not look an agent up");
        Self::new(503, error.code(), "the hub's store is not available: try again later")
    }
}

/// How long calls may go on when the hub ends: their answers leave within the time that requests have.
const CALLS_GRACE: Duration = SHUTDOWN_GRACE.saturating_sub(Duration::from_secs(1));

/// The hub's end of the tunnel: a cheap handle.
#[derive(Clone)]
pub struct Tunnel {
    store: Store,
    seen: Arc<auth::Seen>,
    tasks: TaskTracker,
    /// Calls under way.
    calls: TaskTracker,
    closing: CancellationToken,
    /// What is transferred beside the tunnel for calls.
    pub(crate) transfers: Transfers,
}

impl Tunnel {
    /// The tunnel of a store that was opened to serve.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self {
            transfers: Transfers::new(store.files().clone()),
            store,
            seen: Arc::default(),
            tasks: TaskTracker::new(),
            calls: TaskTracker::new(),
            closing: CancellationToken::new(),
        }
    }

    /// Who calls, for every request beside the tunnel. Each token is good for one request.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<AgentRecord>, Refusal> {
        auth::authenticate(&self.store, &self.seen, headers, Purpose::Transfer).await
    }

    /// Answers `GET /agent/v1/tunnel`: 101 and the session runs, or a refusal. The connection must be served with
    /// upgrades.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn upgrade(&self, mut request: Request) -> Result<Response, Refusal> {
        if self.closing.is_cancelled() {
            return Err(Refusal::new(
                503,
                ApiCode::Internal,
                "the hub is being restarted: come back in a second",
            ));
        }
        let agent = auth::authenticate(&self.store, &self.seen, request.headers(), Purpose::Tunnel).await?;
        let accept = handshake(request.headers())?;
        let upgraded = hyper::upgrade::on(&mut request);
        let (store, closing) = (self.store.clone(), self.closing.clone());
        let span = tracing::info_span!("agent", agent_id = %agent.id, site = %agent.site);
        let task = async move {
            match upgraded.await {
                Ok(socket) => session::run(store, agent, TokioIo::new(socket), closing).await,
                Err(error) => tracing::warn!(error = %error, "The connection ended before its upgrade"),
            }
        };
        self.tasks.spawn(task.instrument(span));
        Ok(accept)
    }

    /// Lets calls that are under way finish, then refuses new sessions, tells the live ones to come back in a second, and
    /// returns when they are closed.
    pub async fn shutdown(&self) {
        self.calls.close();
        let _ = timeout(CALLS_GRACE, self.calls.wait()).await;
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// When the sessions are closed, because the hub ends.
    pub(crate) async fn closing(&self) {
        self.closing.cancelled().await;
    }

    /// How many agents have a live session.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.store.shared().registry.agents().len()
    }

    /// The resources that live agents of a site announce, by name.
    #[must_use]
    pub fn resources(&self, tenant: &Name, site: &Name) -> Vec<ResourceView> {
        self.store.shared().registry.resources(tenant, site)
    }

    /// The agent's live session.
    #[must_use]
    pub fn online(&self, agent: AgentId) -> Option<Live> {
        self.store.shared().registry.online(agent)
    }
}

/// Checks the opening handshake (RFC 6455 §4.2.1) and makes its answer.
fn handshake(headers: &HeaderMap) -> Result<Response, Refusal> {
    let has = |name: header::HeaderName, wanted: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case(wanted))
    };
    let wrong = |detail: &str| Refusal::new(400, ApiCode::BadRequest, detail);
    let other = |detail: &str| Refusal::new(426, ApiCode::BadRequest, detail);
    if !has(header::CONNECTION, "upgrade") || !has(header::UPGRADE, "websocket") {
        return Err(other(
            "this is the tunnel: it needs a WebSocket upgrade, which a proxy between may have removed",
        ));
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(other("only WebSocket version 13 is spoken here"));
    }
    if !has(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        return Err(wrong("the WebSocket subprotocol passerelle.v1 is needed"));
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .ok_or_else(|| wrong("the header Sec-WebSocket-Key is missing"))?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|_| wrong("the header Sec-WebSocket-Key is malformed"))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    answer.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    Ok(response)
}
