//! The sample in-house application: it is told of validated orders, and keeps what it was told.

use super::sample::sha256;
use crate::Failure;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{OriginalUri, State},
    routing::{get, post},
};
use reqwest::{
    StatusCode,
    header::{AUTHORIZATION, HeaderMap},
};
use serde_json::{Value, json};
use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{net::TcpListener, task::JoinHandle};
use uuid::Uuid;

/// It is a sample: past this it takes no more.
const MAX_KEPT: usize = 10_000;
/// An idempotency key is at most so long where it names a file.
const MAX_KEY: usize = 64;

/// A notification as it arrived.
#[derive(Debug, Clone)]
pub(super) struct Notification {
    pub(super) path: String,
    pub(super) key: String,
    pub(super) body: Bytes,
}

/// The running application; it ends with this value.
pub(crate) struct App {
    address: SocketAddr,
    shared: Shared,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    token: String,
    kept: Arc<Mutex<Vec<Notification>>>,
    dir: Option<PathBuf>,
}

impl App {
    /// Starts it on a free port, with a token of its own.
    pub(super) async fn start() -> Result<Self, Failure> {
        let token = Uuid::new_v4().simple().to_string();
        Self::listen(SocketAddr::from(([127, 0, 0, 1], 0)), &token, None).await
    }

    /// Starts it where it is told to; with a folder, it keeps there what it was told, and knows it again.
    ///
    /// # Errors
    /// If it cannot listen or use the folder.
    pub(crate) async fn listen(
        address: SocketAddr,
        token: &str,
        dir: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let kept = match &dir {
            Some(dir) => read(dir).map_err(|e| {
                Failure::usage(format!(
                    "the in-house application cannot use the folder {}: {e}; choose another with --dir",
                    dir.display()
                ))
            })?,
            None => Vec::new(),
        };
        let failed =
            |e: io::Error| Failure::hub(format!("the in-house application cannot listen on {address}: {e}"));
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Shared { token: token.to_owned(), kept: Arc::new(Mutex::new(kept)), dir };
        let router = Router::new()
            .route("/api/orders/{order}/validated", post(validated))
            .route("/api/received", get(received))
            .route("/healthz", get(async || "ok\n"))
            .with_state(shared.clone());
        let task = tokio::spawn(async move {
            // Ends only when it is aborted.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, shared, task })
    }

    /// The address that the agent gets as its resource's URL.
    pub(crate) fn url(&self) -> String {
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

/// Where the body is kept that came with this key.
pub(crate) fn kept_as(dir: &Path, key: &str) -> PathBuf {
    dir.join(format!("{key}.json"))
}

/// What an earlier run of the application kept.
fn read(dir: &Path) -> io::Result<Vec<Notification>> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && let Some(key) = path.file_stem().and_then(|stem| stem.to_str())
        {
            kept.push(Notification {
                path: String::new(),
                key: key.to_owned(),
                body: fs::read(&path)?.into(),
            });
        }
    }
    Ok(kept)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn authorized(shared: &Shared, headers: &HeaderMap) -> bool {
    header(headers, AUTHORIZATION.as_str()) == format!("Bearer {}", shared.token)
}

async fn validated(
    State(shared): State<Shared>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    if !authorized(&shared, &headers) {
        return StatusCode::UNAUTHORIZED;
    }
    let key = header(&headers, "idempotency-key").to_owned();
    let names_a_file = (1..=MAX_KEY).contains(&key.len())
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if shared.dir.is_some() && !names_a_file {
        return StatusCode::BAD_REQUEST;
    }
    let mut kept = shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
    // As an application should: what came before under the same key is not done again.
    if kept.iter().any(|earlier| !key.is_empty() && earlier.key == key) {
        return StatusCode::OK;
    }
    if kept.len() == MAX_KEPT {
        return StatusCode::INSUFFICIENT_STORAGE;
    }
    if let Some(dir) = &shared.dir {
        // Whole under its name or not at all, should it be killed meanwhile.
        let (part, whole) = (dir.join(format!(".{key}.part")), kept_as(dir, &key));
        if let Err(e) = fs::write(&part, &body).and_then(|()| fs::rename(&part, &whole)) {
            eprintln!("error: cannot write {}: {e}", whole.display());
            return StatusCode::INSUFFICIENT_STORAGE;
        }
    }
    kept.push(Notification { path: uri.path().to_owned(), key, body });
    StatusCode::OK
}

async fn received(State(shared): State<Shared>, headers: HeaderMap) -> Result<Json<Value>, StatusCode> {
    if !authorized(&shared, &headers) {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let kept = shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
    let items: Vec<Value> = kept
        .iter()
        .map(|one| json!({ "key": one.key, "size": one.body.len(), "sha256": sha256(&one.body) }))
        .collect();
    Ok(Json(json!({ "items": items })))
}
