//! Stand-ins for CRM products that no package registry offers as a server: each stores records and answers in the shapes
//! recorded from the real product (`docs/connectors/crm.md` says which and when), with its races and its oddities.
//!
//! They are not the products. What a product was never seen to answer, its stand-in does not pretend to know.

pub mod dolibarr;
pub mod espocrm;
pub mod odoo;
pub mod suitecrm;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Map, Value};
use std::{
    collections::VecDeque,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, runtime::Runtime};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The body, if it is JSON.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The parts of the path below `base`.
    pub fn parts(&self, base: &str) -> Vec<&str> {
        let rest = self.path.strip_prefix(base).unwrap_or("");
        rest.split('/').filter(|part| !part.is_empty()).collect()
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            headers: vec![("content-type", "application/json".to_owned())],
            body: body.to_string().into_bytes(),
        }
    }

    pub fn text(status: u16, media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: vec![("content-type", media_type.to_owned())], body: body.into() }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

type Answering = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// A product.
pub trait Product: Send + Sync + 'static {
    /// Answers one request. Whoever wants a race waits between looking and writing.
    fn answer(self: Arc<Self>, asked: Asked) -> Answering;
}

/// What a test does to the answers on their way.
#[derive(Default)]
pub struct Faults {
    lost: Mutex<Option<(usize, &'static str)>>,
    instead: Mutex<VecDeque<Reply>>,
}

impl Faults {
    /// The next `count` requests whose path or body contains `part` have their effect, but their answers are lost.
    pub fn lose(&self, count: usize, part: &'static str) {
        *self.lost.lock().unwrap() = Some((count, part));
    }

    /// The next requests get these answers and have no effect.
    pub fn instead(&self, replies: impl IntoIterator<Item = Reply>) {
        self.instead.lock().unwrap().extend(replies);
    }

    /// Forgets answers that nobody has asked for.
    pub fn clear(&self) {
        self.instead.lock().unwrap().clear();
    }

    fn is_lost(&self, asked: &Asked) -> bool {
        let mut lost = self.lost.lock().unwrap();
        let Some((count, part)) = lost.as_mut() else { return false };
        let hit = asked.path.contains(*part) || String::from_utf8_lossy(&asked.body).contains(*part);
        if !hit || *count == 0 {
            return false;
        }
        *count -= 1;
        true
    }
}

struct Inner<P> {
    product: Arc<P>,
    faults: Faults,
    asked: Mutex<Vec<Asked>>,
    refused: AtomicUsize,
}

/// A product that listens on a loopback port, on threads of its own.
pub struct Site<P> {
    pub address: SocketAddr,
    inner: Arc<Inner<P>>,
    serving: Mutex<Option<Runtime>>,
}

impl<P: Product> Site<P> {
    pub fn start(product: P) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            product: Arc::new(product),
            faults: Faults::default(),
            asked: Mutex::default(),
            refused: AtomicUsize::new(0),
        });
        let serving = Mutex::new(Some(serve(listener, inner.clone())));
        Self { address, inner, serving }
    }

    pub fn product(&self) -> &P {
        &self.inner.product
    }

    pub fn faults(&self) -> &Faults {
        &self.inner.faults
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.inner.asked.lock().unwrap().clone()
    }

    /// How many requests were answered 401.
    pub fn refused(&self) -> usize {
        self.inner.refused.load(Ordering::SeqCst)
    }

    /// Stops it, connections and all; the records stay.
    pub fn stop(&self) {
        let serving = self.serving.lock().unwrap().take();
        if let Some(serving) = serving {
            end(serving);
        }
    }

    /// Listens again, at the same address.
    pub fn restart(&self) {
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        *self.serving.lock().unwrap() = Some(serve(listener, self.inner.clone()));
    }
}

impl<P> Drop for Site<P> {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.get_mut().unwrap().take() {
            serving.shutdown_background();
        }
    }
}

/// Ends a runtime and all that runs on it. A test's own runtime does not let one be ended on its threads.
fn end(serving: Runtime) {
    std::thread::spawn(move || serving.shutdown_timeout(Duration::from_secs(5))).join().unwrap();
}

fn serve<P: Product>(listener: std::net::TcpListener, inner: Arc<Inner<P>>) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    listener.set_nonblocking(true).unwrap();
    let router = Router::new().fallback(handle::<P>).with_state(inner);
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        axum::serve(listener, router).await.unwrap();
    });
    runtime
}

async fn handle<P: Product>(State(inner): State<Arc<Inner<P>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, 16 << 20).await else {
        return Response::builder().status(400).body(Body::empty()).unwrap();
    };
    let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let asked = Asked {
        method: parts.method.to_string(),
        path: decode(parts.uri.path()),
        query: url::form_urlencoded::parse(parts.uri.query().unwrap_or("").as_bytes()).into_owned().collect(),
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap().to_owned()))
            .collect(),
        body: body.to_vec(),
    };
    inner.asked.lock().unwrap().push(asked.clone());
    let instead = inner.faults.instead.lock().unwrap().pop_front();
    let reply = match instead {
        Some(reply) => reply,
        None => inner.product.clone().answer(asked.clone()).await,
    };
    if inner.faults.is_lost(&asked) {
        // Ends this connection without an answer, and without the message of a panic.
        std::panic::resume_unwind(Box::new("the answer is lost"));
    }
    if reply.status == 401 {
        inner.refused.fetch_add(1, Ordering::SeqCst);
    }
    let mut response = Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(*name, value);
    }
    response.body(Body::from(reply.body)).unwrap()
}

/// The moment between looking and writing, in which others look as well.
#[derive(Default)]
pub struct Window {
    expected: AtomicUsize,
    arrived: AtomicUsize,
}

impl Window {
    /// How long it is when no test holds it open.
    const SHORT: Duration = Duration::from_millis(10);
    const STEP: Duration = Duration::from_millis(1);
    const MOST: usize = 10_000;

    /// Holds the window open until so many have come to it.
    pub fn hold_for(&self, count: usize) {
        self.arrived.store(0, Ordering::SeqCst);
        self.expected.store(count, Ordering::SeqCst);
    }

    async fn pass(&self) {
        let expected = self.expected.load(Ordering::SeqCst);
        if expected == 0 {
            return tokio::time::sleep(Self::SHORT).await;
        }
        self.arrived.fetch_add(1, Ordering::SeqCst);
        for _ in 0..Self::MOST {
            if self.arrived.load(Ordering::SeqCst) >= expected {
                return;
            }
            tokio::time::sleep(Self::STEP).await;
        }
    }
}

/// The product's clock, in microseconds: the real one, until a test holds it.
#[derive(Default)]
pub struct Clock(AtomicI64);

impl Clock {
    pub fn now(&self) -> i64 {
        match self.0.load(Ordering::SeqCst) {
            0 => Timestamp::now().as_microsecond(),
            held => held,
        }
    }

    /// Holds the clock at this time.
    pub fn hold(&self, at: &str) {
        self.0.store(at.parse::<Timestamp>().unwrap().as_microsecond(), Ordering::SeqCst);
    }

    /// Moves a held clock on.
    pub fn forward(&self, micros: i64) {
        assert_ne!(self.0.fetch_add(micros, Ordering::SeqCst), 0, "the clock is not held");
    }
}

/// `2026-11-21 21:05:21`, as PHP and Odoo write times, this many seconds east of UTC.
pub fn stamp(micros: i64, offset_s: i64) -> String {
    let at = Timestamp::from_microsecond(micros + offset_s * 1_000_000).unwrap();
    at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A time written like that, with or without a fraction; also without its separators.
pub fn parse_stamp(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits: String = whole.chars().filter(char::is_ascii_digit).collect();
    if whole.chars().any(|c| !c.is_ascii_digit() && !"-: T".contains(c)) {
        return None;
    }
    let digits = if digits.len() == 8 { format!("{digits}000000") } else { digits };
    let at = jiff::fmt::strtime::parse("%Y%m%d%H%M%S", &digits).ok()?.to_datetime().ok()?;
    let micros: i64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    Some(at.to_zoned(TimeZone::UTC).ok()?.timestamp().as_microsecond() + micros)
}

/// A stored record.
#[derive(Debug, Clone)]
pub struct Row {
    pub id: String,
    pub fields: Map<String, Value>,
    pub created: i64,
    pub modified: i64,
    pub version: u64,
    pub deleted: bool,
}

/// The records of one kind.
#[derive(Default)]
pub struct Table(Mutex<Vec<Row>>);

impl Table {
    pub fn lock(&self) -> MutexGuard<'_, Vec<Row>> {
        self.0.lock().unwrap()
    }

    /// The records that are there.
    pub fn rows(&self) -> Vec<Row> {
        self.lock().iter().filter(|row| !row.deleted).cloned().collect()
    }
}
