//! An in-house application in the test process: records what it is asked and answers as the test wants.

use crate::{PATIENCE, free_port, until};
use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::State,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: String,
    /// Path and query.
    pub uri: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// When it arrived.
    pub at: Instant,
}

impl Request {
    /// A header as text; empty if it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// What the application answers.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    after: Duration,
    held: bool,
}

impl Reply {
    /// An answer without a body.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), after: Duration::ZERO, held: false }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Adds a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Answers only after so long.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.after = delay;
        self
    }

    /// Answers only after [`App::release`].
    #[must_use]
    pub fn held(mut self) -> Self {
        self.held = true;
        self
    }
}

type Behaviour = dyn Fn(&Request, usize) -> Reply + Send + Sync;

struct Shared {
    behaviour: Box<Behaviour>,
    remembers: bool,
    requests: Mutex<Vec<Request>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    released: watch::Sender<bool>,
}

/// The application; it ends with the test.
pub struct App {
    /// Its address, with a final `/`.
    pub url: String,
    shared: Arc<Shared>,
}

impl App {
    /// Starts an application that answers 200 to everything.
    pub async fn start() -> Self {
        Self::with(|_, _| Reply::status(200)).await
    }

    /// Starts an application; `behaviour` gets each request and how many came before it.
    ///
    /// # Panics
    /// If its port is taken.
    pub async fn with(behaviour: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::launch(Box::new(behaviour), true).await
    }

    /// Starts an application that answers 200 to everything and remembers nothing: for more requests than fit into
    /// memory.
    pub async fn forgetful() -> Self {
        Self::launch(Box::new(|_, _| Reply::status(200)), false).await
    }

    async fn launch(behaviour: Box<Behaviour>, remembers: bool) -> Self {
        let shared = Arc::new(Shared {
            behaviour,
            remembers,
            requests: Mutex::default(),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            released: watch::Sender::new(false),
        });
        let mut bound = Err(std::io::ErrorKind::AddrInUse.into());
        for _ in 0..5 {
            bound = tokio::net::TcpListener::bind(("127.0.0.1", free_port())).await;
            // Somebody may have taken the port between looking and listening.
            if bound.is_ok() {
                break;
            }
        }
        let listener = bound.expect("a port for the application");
        let address = listener.local_addr().expect("the application's address");
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url: format!("http://{address}/"), shared }
    }

    /// The port it listens on.
    ///
    /// # Panics
    /// Never: the address is its own.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.url.trim_end_matches('/').rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    }

    /// What has arrived so far.
    ///
    /// # Panics
    /// If a behaviour panicked.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().expect("the requests").clone()
    }

    /// What has arrived after the first `count` requests.
    ///
    /// # Panics
    /// If a behaviour panicked.
    #[must_use]
    pub fn requests_after(&self, count: usize) -> Vec<Request> {
        self.shared.requests.lock().expect("the requests").iter().skip(count).cloned().collect()
    }

    /// Waits until `count` requests have arrived.
    pub async fn received(&self, count: usize) -> Vec<Request> {
        until(&format!("{count} requests at the application"), PATIENCE, async || {
            Some(self.requests()).filter(|requests| requests.len() >= count)
        })
        .await
    }

    /// The most requests that were in its hands at once.
    #[must_use]
    pub fn most_at_once(&self) -> usize {
        self.shared.most_at_once.load(Ordering::SeqCst)
    }

    /// The requests that are in its hands now.
    #[must_use]
    pub fn at_once(&self) -> usize {
        self.shared.at_once.load(Ordering::SeqCst)
    }

    /// Lets go of all held answers, now and later.
    pub fn release(&self) {
        self.shared.released.send_replace(true);
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: axum::extract::Request) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, 1 << 30).await else {
        // It broke off before it was whole: as every server does, this one takes it for no request at all.
        let mut broken = Response::new(Body::empty());
        *broken.status_mut() = StatusCode::BAD_REQUEST;
        return broken;
    };
    let request = Request {
        method: head.method.to_string(),
        uri: head.uri.to_string(),
        headers: head.headers,
        body,
        at: Instant::now(),
    };
    if request.uri == "/" {
        // The agent looks whether the application is there; no job asks for this path.
        return Response::new(Body::empty());
    }
    let now = shared.at_once.fetch_add(1, Ordering::SeqCst) + 1;
    shared.most_at_once.fetch_max(now, Ordering::SeqCst);
    let _leave = Leave(Arc::clone(&shared));
    let before = if shared.remembers {
        let mut requests = shared.requests.lock().expect("the requests");
        requests.push(request.clone());
        requests.len() - 1
    } else {
        0
    };
    let reply = (shared.behaviour)(&request, before);
    if !reply.after.is_zero() {
        // Not a wait for something to happen: this is the slow application itself.
        tokio::time::sleep(reply.after).await;
    }
    if reply.held {
        let mut released = shared.released.subscribe();
        let _sender_lives = released.wait_for(|released| *released).await;
    }
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    response.body(Body::from(reply.body)).expect("a valid reply")
}

/// Counts a request out, also when its client has gone away.
struct Leave(Arc<Shared>);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
    }
}
