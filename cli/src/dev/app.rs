//! The sample in-house application: it is told of validated orders, and keeps what it was told.

use crate::Failure;
use axum::{
    Router,
    body::Bytes,
    extract::{OriginalUri, State},
    routing::post,
};
use reqwest::{
    StatusCode,
    header::{AUTHORIZATION, HeaderMap},
};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{net::TcpListener, task::JoinHandle};
use uuid::Uuid;

/// It is a sample: past this it takes no more.
const MAX_KEPT: usize = 10_000;

/// A notification as it arrived.
#[derive(Debug, Clone)]
pub(super) struct Notification {
    pub(super) path: String,
    pub(super) key: String,
    pub(super) body: Bytes,
}

/// The running application; it ends with this value.
pub(super) struct App {
    address: SocketAddr,
    shared: Shared,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    token: String,
    kept: Arc<Mutex<Vec<Notification>>>,
}

impl App {
    /// Starts it on a free port, with a token of its own.
    pub(super) async fn start() -> Result<Self, Failure> {
        let failed = |e: std::io::Error| Failure::hub(format!("the in-house application cannot listen: {e}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Shared { token: Uuid::new_v4().simple().to_string(), kept: Arc::default() };
        let router =
            Router::new().route("/api/orders/{order}/validated", post(validated)).with_state(shared.clone());
        let task = tokio::spawn(async move {
            // Ends only when it is aborted.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, shared, task })
    }

    /// The address that the agent gets as its resource's URL.
    pub(super) fn url(&self) -> String {
        format!("http://{}/api/", self.address)
    }

    /// What a caller must send as its bearer token.
    pub(super) fn token(&self) -> &str {
        &self.shared.token
    }

    /// All notifications so far.
    pub(super) fn received(&self) -> Vec<Notification> {
        self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn validated(
    State(shared): State<Shared>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if header(AUTHORIZATION.as_str()) != format!("Bearer {}", shared.token) {
        return StatusCode::UNAUTHORIZED;
    }
    let key = header("idempotency-key").to_owned();
    let mut kept = shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
    // As an application should: what came before under the same key is not done again.
    if kept.iter().any(|earlier| !key.is_empty() && earlier.key == key) {
        return StatusCode::OK;
    }
    if kept.len() == MAX_KEPT {
        return StatusCode::INSUFFICIENT_STORAGE;
    }
    kept.push(Notification { path: uri.path().to_owned(), key, body });
    StatusCode::OK
}
