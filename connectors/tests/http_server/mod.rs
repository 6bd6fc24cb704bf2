//! Real HTTP servers inside the test process, and what a test needs to call a resource that points at them.

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    response::Response,
    serve::{Listener, ListenerExt as _},
};
use passerelle_config::Diagnostics;
use passerelle_connectors::{
    Call, Demands, DynConnector, Examine, Failure, Gate, Input, Intent, Link, Outcome, Output, Produced,
    Progress, REGISTRY,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::Value;
use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A request as a server received it.
#[derive(Debug, Clone)]
pub struct Received {
    pub method: String,
    pub uri: String,
    pub version: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let value = values.next();
        assert_eq!(values.next(), None, "{name} came twice");
        value
    }
}

type Respond = Arc<dyn Fn(&Received) -> Response + Send + Sync>;

#[derive(Clone)]
struct App {
    received: Arc<Mutex<Vec<Received>>>,
    respond: Respond,
}

/// A server that records what it receives and answers by a function. It lives as long as the test's runtime.
pub struct Server {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    /// All requests received whole.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// A plain server.
pub async fn serve(respond: impl Fn(&Received) -> Response + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    start(listener, respond)
}

fn start<L>(listener: L, respond: impl Fn(&Received) -> Response + Send + Sync + 'static) -> Server
where
    L: Listener<Addr = SocketAddr>,
{
    let address = listener.local_addr().unwrap();
    let (received, connections) = <(Arc<Mutex<Vec<Received>>>, Arc<AtomicUsize>)>::default();
    let app = App { received: received.clone(), respond: Arc::new(respond) };
    let router = Router::new().fallback(record).with_state(app);
    let counted = connections.clone();
    let listener = listener.tap_io(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    Server { address, received, connections }
}

async fn record(State(app): State<App>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        // The request broke off: it counts as not received.
        return Response::builder().status(400).body(Body::empty()).unwrap();
    };
    let received = Received {
        method: parts.method.to_string(),
        uri: parts.uri.to_string(),
        version: format!("{:?}", parts.version),
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap().to_owned()))
            .collect(),
        body,
    };
    let response = (app.respond)(&received);
    app.received.lock().unwrap().push(received);
    response
}

/// An answer without body.
pub fn status(status: u16) -> Response {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

/// An answer with header fields and a body.
pub fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}

/// A private certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for `name` and its key, in PEM.
    pub fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn acceptor(&self, name: &str, alpn: &[&[u8]], asks: bool) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if asks {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build();
            builder.with_client_cert_verifier(verifier.unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let mut config =
            builder.with_single_cert(vec![CertificateDer::from(certificate.der().to_vec())], key).unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// A server with a certificate for `name`.
    pub async fn serve(
        &self,
        name: &str,
        alpn: &[&[u8]],
        respond: impl Fn(&Received) -> Response + Send + Sync + 'static,
    ) -> Server {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        start(TlsListener { tcp, acceptor: self.acceptor(name, alpn, false) }, respond)
    }

    /// A server that serves only clients with a certificate of this authority.
    pub async fn serve_to_clients(
        &self,
        name: &str,
        respond: impl Fn(&Received) -> Response + Send + Sync + 'static,
    ) -> Server {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        start(TlsListener { tcp, acceptor: self.acceptor(name, &[b"http/1.1"], true) }, respond)
    }
}

struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((tcp, peer)) = self.tcp.accept().await else { continue };
            if let Ok(tls) = self.acceptor.accept(tcp).await {
                return (tls, peer);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// Reads a resource's settings as the agent does: from a configuration folder.
pub fn check(dir: &Path, settings: &str) -> Result<passerelle_connectors::Checked, String> {
    std::fs::write(dir.join("agent.toml"), "[hub]\nurl = \"https://hub.example.com\"\n").unwrap();
    std::fs::create_dir_all(dir.join("resources.d")).unwrap();
    let text = format!("[resources.app]\nconnector = \"http\"\n{settings}\n");
    std::fs::write(dir.join("resources.d/app.toml"), text).unwrap();
    let config = passerelle_config::load(dir).map_err(|findings| findings.to_string())?;
    let kind = REGISTRY.iter().find(|entry| entry.name == "http").unwrap();
    let mut diagnostics = Diagnostics::default();
    match kind.check(&config.resources[0].section, &mut diagnostics) {
        Some(checked) => {
            assert!(diagnostics.is_empty(), "{diagnostics}");
            Ok(checked)
        }
        None => Err(diagnostics.to_string()),
    }
}

/// A resource with these settings, in a folder of its own.
pub struct Resource {
    pub dir: tempfile::TempDir,
    connector: Arc<dyn DynConnector>,
}

/// What an attempt gave.
pub struct Done {
    pub result: Result<Outcome, Failure>,
    pub output: Option<(Produced, Vec<u8>)>,
}

impl Done {
    pub fn success(self) -> (Value, Option<(Produced, Vec<u8>)>) {
        (self.result.unwrap().result, self.output)
    }

    pub fn failure(self) -> Failure {
        self.result.unwrap_err()
    }
}

impl Resource {
    pub fn new(settings: &str) -> Self {
        Self::with_files(settings, &[])
    }

    pub fn with_files(settings: &str, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        let checked = check(dir.path(), settings).unwrap_or_else(|findings| panic!("{findings}"));
        let connector = checked.build(dir.path()).unwrap();
        Self { dir, connector }
    }

    pub fn of(server: &Server) -> Self {
        Self::new(&format!("url = \"{}\"", server.url("/api/")))
    }

    pub fn demands(&self, operation: &str, params: &Value) -> Result<Demands, Failure> {
        self.connector.demands(operation, params)
    }

    pub async fn examine(&self) -> Vec<Link> {
        let what = Examine { timeout: Duration::from_secs(5), try_writing: Vec::new() };
        self.connector.examine(what).await
    }

    pub async fn probe(&self) -> Result<(), Failure> {
        self.connector.probe(Duration::from_secs(5)).await
    }

    pub async fn run(&self, operation: &str, params: Value, payload: Option<Input>) -> Done {
        self.run_as(&call(), operation, params, payload).await
    }

    pub async fn run_as(&self, call: &Call, operation: &str, params: Value, payload: Option<Input>) -> Done {
        self.connector.demands(operation, &params).unwrap();
        let path = self.dir.path().join(format!("output-{}-{}", call.job, call.attempt));
        let file = tokio::fs::File::create(&path).await.unwrap();
        let mut output = Output::new(Box::new(file), u64::MAX);
        let result = self.connector.execute(call, operation, &params, payload, &mut output).await;
        let produced = output.produced().cloned();
        let output = produced.map(|produced| {
            let content = std::fs::read(&path).unwrap();
            assert_eq!(produced.size, content.len() as u64);
            assert_eq!(produced.sha256, sha256(&content));
            (produced, content)
        });
        Done { result, output }
    }
}

/// A gate that records what it was asked, and lets pass or not.
#[derive(Default)]
pub struct RecordingGate {
    pub intents: Mutex<Vec<Intent>>,
    pub shut: bool,
}

impl Gate for RecordingGate {
    fn pass<'a>(
        &'a self,
        intent: &'a Intent,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        self.intents.lock().unwrap().push(intent.clone());
        let passed = if self.shut {
            Err(Failure::permanent(passerelle_connectors::Code::Internal, "the gate is shut"))
        } else {
            Ok(())
        };
        Box::pin(async move { passed })
    }
}

pub fn call() -> Call {
    call_with(Arc::new(RecordingGate::default()))
}

pub fn call_with(gate: Arc<RecordingGate>) -> Call {
    Call {
        job: Uuid::now_v7(),
        attempt: 1,
        timeout: Duration::from_secs(20),
        cancel: CancellationToken::new(),
        progress: Progress::default(),
        gate,
        prior_intent: None,
        traceparent: None,
        visible: passerelle_connectors::Visible::default(),
    }
}

pub fn sha256(content: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content).as_ref());
    digest
}

/// A payload as announced.
pub fn payload(content: impl Into<Vec<u8>>, media_type: &str) -> Input {
    let content = content.into();
    let digest = sha256(&content);
    let size = content.len() as u64;
    let again = content.clone();
    Input::new(Box::new(io::Cursor::new(content)), size, digest, media_type.to_owned())
        .reopened_by(move || Ok(Box::new(io::Cursor::new(again.clone()))))
}

/// A payload whose content is not the announced one.
pub fn wrong_payload(content: Vec<u8>) -> Input {
    let size = content.len() as u64;
    Input::new(Box::new(io::Cursor::new(content)), size, [7; 32], "text/plain".to_owned())
}
