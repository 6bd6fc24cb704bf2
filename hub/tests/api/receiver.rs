//! A subscriber's endpoint: a real server in this process that answers as a test says and keeps what it was sent.

use crate::support::{Hub, PATIENCE};
use aws_lc_rs::hmac;
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::any,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_hub::{
    notices::{self, Settings, Watched},
    outbound::{Outbound, Rules},
};
use serde_json::Value;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// A delivery as it came.
#[derive(Debug, Clone)]
pub struct Received {
    pub headers: HeaderMap,
    pub body: Bytes,
    /// What it was answered.
    pub answered: u16,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Checks the signature as the specification says.
    #[track_caller]
    pub fn is_signed_with(&self, secret: &str) {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let at: i64 = self.header("webhook-timestamp").parse().unwrap();
        assert!((jiff::Timestamp::now().as_second() - at).abs() < 300, "{at}");
        let mut signed = format!("{}.{at}.", self.header("webhook-id")).into_bytes();
        signed.extend_from_slice(&self.body);
        let tag = self.header("webhook-signature").strip_prefix("v1,").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        hmac::verify(&key, &signed, &STANDARD.decode(tag).unwrap()).unwrap();
    }
}

type Answers = Arc<Mutex<VecDeque<u16>>>;

#[derive(Clone)]
struct Shared {
    answers: Answers,
    /// What those are answered for which nothing is said.
    otherwise: Arc<Mutex<u16>>,
    received: Arc<watch::Sender<Vec<Received>>>,
}

pub struct Receiver {
    pub url: String,
    shared: Shared,
    server: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn take(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let answered = shared.answers.lock().unwrap().pop_front().unwrap_or(*shared.otherwise.lock().unwrap());
    shared.received.send_modify(|all| all.push(Received { headers, body, answered }));
    StatusCode::from_u16(answered).unwrap()
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let shared = Shared {
            answers: Answers::default(),
            otherwise: Arc::new(Mutex::new(200)),
            received: Arc::new(watch::Sender::default()),
        };
        let router = Router::new().route("/hook", any(take)).with_state(shared.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared, server }
    }

    /// From now on all requests are answered so, but for those that [`Self::answers`] names.
    pub fn always_answers(&self, status: u16) {
        *self.shared.otherwise.lock().unwrap() = status;
    }

    /// The next requests are answered so.
    pub fn answers(&self, statuses: impl IntoIterator<Item = u16>) {
        self.shared.answers.lock().unwrap().extend(statuses);
    }

    pub fn received(&self) -> Vec<Received> {
        self.shared.received.borrow().clone()
    }

    /// Waits until so many came.
    pub async fn wait_for(&self, count: usize) -> Vec<Received> {
        let mut changes = self.shared.received.subscribe();
        let waited = tokio::time::timeout(PATIENCE, changes.wait_for(|all| all.len() >= count)).await;
        waited.unwrap_or_else(|_| panic!("only {:?} came", self.received())).unwrap().clone()
    }
}

/// Waits that suit a test.
pub fn quick() -> Settings {
    Settings {
        first_retry: Duration::from_millis(20),
        longest_retry: Duration::from_millis(100),
        ..Settings::default()
    }
}

/// A hub that delivers, to this machine as well.
pub async fn hub(settings: Settings, certificate: Option<Watched>) -> Hub {
    let hub = Hub::start_set(|app| {
        app.outbound = local();
        app.notices = settings;
    })
    .await;
    hub.app.tasks.spawn(notices::run(hub.app.clone(), certificate));
    hub
}

fn local() -> Outbound {
    fetching(&[], 1 << 20)
}

/// Requests to this machine, and files from below these URLs.
pub fn fetching(urls: &[&str], max_fetch: u64) -> Outbound {
    let fetch = urls.iter().map(|url| url.parse().unwrap()).collect();
    Outbound::new(Rules { allow: vec!["127.0.0.0/8".parse().unwrap()], fetch, max_fetch })
}
