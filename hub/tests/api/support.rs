//! A hub in this process, listening on a free port, with one tenant and a key that may do everything.

use passerelle_hub::{
    api::{App, auth::tenant_scopes},
    mediations::sandbox::Sandbox,
    model::Tier,
    outbound::Outbound,
    server::{MAX_CONNECTIONS, MAX_PER_ADDRESS, Server},
    store::Store,
};
use passerelle_protocol::Name;
use reqwest::{Method, RequestBuilder, header::HeaderMap};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer, on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Hub {
    pub url: String,
    pub key: String,
    pub store: Store,
    pub client: reqwest::Client,
    pub app: App,
    stop: CancellationToken,
    server: JoinHandle<()>,
    _data: tempfile::TempDir,
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub async fn of(request: RequestBuilder) -> Self {
        let response = timeout(PATIENCE, request.send()).await.unwrap().unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, body: response.bytes().await.unwrap().to_vec() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Asserts the status, and shows the body if it is another.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// Asserts a complete problem document.
    #[track_caller]
    pub fn expect_problem(self, status: u16, code: &str) -> Self {
        let answer = self.expect(status);
        assert_eq!(answer.header("content-type"), "application/problem+json");
        let problem = answer.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["type"], "about:blank");
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
        answer
    }
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn all_scopes() -> Vec<String> {
    tenant_scopes().map(str::to_owned).collect()
}

impl Hub {
    pub async fn start() -> Self {
        Self::start_with(1 << 20, true).await
    }

    pub async fn start_with(max_blob: u64, open_metrics: bool) -> Self {
        Self::start_as(max_blob, open_metrics, |_| ()).await
    }

    /// A hub whose own requests may lead where these rules say.
    pub async fn start_allowing(outbound: Outbound) -> Self {
        Self::start_set(|app| app.outbound = outbound).await
    }

    /// A hub that `set` sets up.
    pub async fn start_set(set: impl FnOnce(&mut App)) -> Self {
        Self::start_as(1 << 20, true, set).await
    }

    async fn start_as(max_blob: u64, open_metrics: bool, set: impl FnOnce(&mut App)) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let data = tempfile::tempdir().unwrap();
        let store = Store::open_to_serve(data.path()).unwrap();
        store.create_tenant(name("acme"), Tier::Enterprise).await.unwrap();
        let (_, key) = store.create_api_key(name("acme"), all_scopes()).await.unwrap();
        // Creating a token creates the site.
        let hour = Duration::from_secs(3600);
        let application = "orchestrator".to_owned();
        store.create_enrolment_token(name("acme"), name("paris"), application, hour, 1).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let mut app = App::new(store.clone(), max_blob, open_metrics, stop.clone());
        set(&mut app);
        // This program is the test's.
        app.templates = Sandbox::running(env!("CARGO_BIN_EXE_passerelle-hub"), stop.clone());
        let server =
            Server { listener, tls: None, max_connections: MAX_CONNECTIONS, per_address: MAX_PER_ADDRESS };
        let server = tokio::spawn(server.run(app.router(), stop.clone()));
        app.tasks.spawn(passerelle_hub::mediations::engine::run(app.clone()));
        // Well before the hub closes an idle connection: a request that meets its end is lost.
        let client = reqwest::Client::builder().pool_idle_timeout(Duration::from_secs(5)).build().unwrap();
        Self { url, key, store, client, app, stop, server, _data: data }
    }

    /// What SIGTERM begins; [`Self::end`] waits for the rest.
    pub fn begin_end(&self) {
        self.stop.cancel();
        let tunnel = self.app.tunnel.clone();
        tokio::spawn(async move { tunnel.shutdown().await });
    }

    /// The end that `serve` has: requests finish, tunnels are told, the store is closed.
    pub async fn end(self) {
        self.stop.cancel();
        self.app.tunnel.shutdown().await;
        timeout(PATIENCE, self.server).await.unwrap().unwrap();
        self.app.tasks.close();
        timeout(PATIENCE, self.app.tasks.wait()).await.unwrap();
        self.store.close().await;
    }

    pub fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.anonymous(method, path).bearer_auth(&self.key)
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.request(Method::POST, path).json(body)).await
    }

    pub async fn submit(&self, extra: Value) -> Value {
        self.post("/v1/jobs", &job(extra)).await.expect(201).json()
    }

    /// A key of another tenant, which has a site of the same name.
    pub async fn other_tenant(&self) -> String {
        self.store.create_tenant(name("other"), Tier::Enterprise).await.unwrap();
        let hour = Duration::from_secs(3600);
        let application = "hub".to_owned();
        self.store.create_enrolment_token(name("other"), name("paris"), application, hour, 1).await.unwrap();
        self.store.create_api_key(name("other"), all_scopes()).await.unwrap().1
    }
}

/// A job to submit: an accounting export, with `extra` put over it.
pub fn job(extra: Value) -> Value {
    let mut job = json!({
        "site": "paris", "resource": "compta", "operation": "drop",
        "params": {"path": "2026/10/FEC.txt"}, "payload": {"text": "JournalCode\tJournalLib\r\n"},
    });
    job.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    job
}

/// Tries until `check` gives something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(mut check: impl FnMut() -> F) -> T {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < until, "waited in vain");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
