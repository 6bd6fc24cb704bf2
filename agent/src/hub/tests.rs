//! Transfers against a real server that cuts, ignores ranges, lies, and forgets offsets.

use super::{
    Hub, Refused,
    payload::{Download, Source, TransferError, upload},
};
use crate::{
    identity::{Identity, load_or_make_key},
    settings::Settings,
    state::StateDir,
};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use futures_util::{StreamExt as _, stream};
use passerelle_protocol::{AgentId, JobId, OutputPayload, PayloadDigest, Sha256, session::Attempt};
use std::{
    fs,
    sync::{Arc, Mutex},
};
use tokio::sync::Notify;

/// What the server has and has seen.
#[derive(Default)]
struct Server {
    content: Vec<u8>,
    /// Sends only so many bytes of an answer, then breaks off.
    cut_after: Option<usize>,
    /// Told when the client has something: only then is the answer cut.
    arrived: Arc<Notify>,
    ignore_range: bool,
    ranges: Vec<Option<String>>,
    received: Vec<u8>,
    /// Takes only so many bytes of the first patch, and tells nobody.
    lose_after: Option<usize>,
}

type Shared = Arc<Mutex<Server>>;

async fn download(State(server): State<Shared>, headers: HeaderMap) -> Response {
    let mut server = server.lock().unwrap();
    let range = headers.get(header::RANGE).map(|v| v.to_str().unwrap().to_owned());
    server.ranges.push(range.clone());
    let from = match &range {
        Some(range) if !server.ignore_range => {
            range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap()
        }
        _ => 0,
    };
    let total = server.content.len();
    let rest = server.content[from..].to_vec();
    let body = match server.cut_after.take() {
        Some(n) => {
            let (first, arrived) = (Bytes::copy_from_slice(&rest[..n]), Arc::clone(&server.arrived));
            let cut = async move {
                arrived.notified().await;
                Err(std::io::Error::other("cut"))
            };
            Body::from_stream(stream::once(async { Ok(first) }).chain(stream::once(cut)))
        }
        None => Body::from(rest),
    };
    let mut response = Response::new(body);
    if from > 0 {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {from}-{}/{total}", total - 1);
        response.headers_mut().insert(header::CONTENT_RANGE, range.parse().unwrap());
    }
    response
}

async fn open(State(server): State<Shared>, headers: HeaderMap) -> Response {
    assert!(headers["repr-digest"].to_str().unwrap().starts_with("sha-256=:"));
    offset(StatusCode::CREATED, &server.lock().unwrap())
}

async fn stand(State(server): State<Shared>) -> Response {
    offset(StatusCode::OK, &server.lock().unwrap())
}

async fn append(State(server): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let mut server = server.lock().unwrap();
    let at: usize = headers["upload-offset"].to_str().unwrap().parse().unwrap();
    if at != server.received.len() {
        return offset(StatusCode::CONFLICT, &server);
    }
    if let Some(n) = server.lose_after.take() {
        server.received.extend_from_slice(&body[..n]);
        return StatusCode::BAD_GATEWAY.into_response();
    }
    server.received.extend_from_slice(&body);
    offset(StatusCode::NO_CONTENT, &server)
}

fn offset(status: StatusCode, server: &Server) -> Response {
    (status, [("upload-offset", server.received.len().to_string())]).into_response()
}

struct Place {
    dir: tempfile::TempDir,
    hub: Hub,
    identity: Identity,
    server: Shared,
    attempt: Attempt,
}

impl Place {
    async fn new(server: Server) -> Self {
        let server = Arc::new(Mutex::new(server));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new()
            .route("/agent/v1/jobs/{job}/payload", get(download))
            .route("/agent/v1/jobs/{job}/attempts/{n}/output", post(open).head(stand).patch(append))
            .with_state(Arc::clone(&server));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let dir = tempfile::tempdir().unwrap();
        let config = format!("[hub]\nurl = \"http://127.0.0.1:{port}\"\n[agent]\nname = \"paris-1\"\n");
        fs::write(dir.path().join("agent.toml"), config).unwrap();
        let settings = Settings::load(dir.path()).unwrap();
        let hub = Hub::new(&settings).unwrap();
        let state = StateDir::open(&settings.state_dir()).unwrap();
        let key = load_or_make_key(&state).unwrap();
        let answer = passerelle_protocol::http::EnrolResponse {
            agent: AgentId::new(1, &[1; 10]),
            tenant: "acme".parse().unwrap(),
            site: "paris".parse().unwrap(),
            application: "hub".into(),
            audience: "hub".into(),
            job_keys: vec![],
            replaced: None,
            server_time: crate::clock::now(),
        };
        let identity = Identity::create(&state, answer, hub.url.to_string(), key).unwrap();
        Self { dir, hub, identity, server, attempt: Attempt::new(JobId::new(1, &[3; 10]), 1) }
    }

    async fn fetch(&self, download: &mut Download) -> Result<(), TransferError> {
        let arrived = Arc::clone(&self.server.lock().unwrap().arrived);
        download.go_on(&self.hub, &self.identity, self.attempt, |_| arrived.notify_one()).await
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("payload")
    }

    fn sources(&self, content: &[u8]) -> [Source; 2] {
        fs::write(self.file(), content).unwrap();
        [Source::File(self.file()), Source::Memory(content.to_owned().into())]
    }

    async fn send(&self, content: &[u8], source: &Source) -> Result<(), TransferError> {
        let output = OutputPayload {
            size: content.len() as u64,
            sha256: Sha256::of(content),
            media_type: "text/plain".into(),
            data: None,
        };
        upload(&self.hub, &self.identity, self.attempt, &output, source).await
    }
}

fn content() -> Vec<u8> {
    (0..300_000_u32).map(|n| (n % 251) as u8).collect()
}

fn digest(content: &[u8]) -> PayloadDigest {
    let size = content.len() as u64;
    PayloadDigest { size, sha256: Sha256::of(content), media_type: "text/plain".into() }
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_stopped_even_after_a_restart() {
    let content = content();
    let server = Server { content: content.clone(), cut_after: Some(100_000), ..Server::default() };
    let place = Place::new(server).await;
    let mut download = Download::open(&place.file(), digest(&content)).await.unwrap();
    assert!(matches!(place.fetch(&mut download).await, Err(TransferError::Again(_))));
    let have = download.have();
    assert!(have > 0 && have < content.len() as u64);
    // A new process finds the file and counts what is in it.
    drop(download);
    let on_disk = fs::metadata(place.file()).unwrap().len();
    let mut download = Download::open(&place.file(), digest(&content)).await.unwrap();
    assert_eq!(download.have(), on_disk);
    place.fetch(&mut download).await.unwrap();
    assert_eq!(fs::read(place.file()).unwrap(), content);
    let ranges = place.server.lock().unwrap().ranges.clone();
    assert_eq!(ranges, [None, Some(format!("bytes={on_disk}-"))]);
}

#[tokio::test]
async fn a_server_that_ignores_ranges_sends_the_whole_again() {
    let content = content();
    let server = Server { content: content.clone(), ignore_range: true, ..Server::default() };
    let place = Place::new(server).await;
    fs::write(place.file(), &content[..1000]).unwrap();
    let mut download = Download::open(&place.file(), digest(&content)).await.unwrap();
    place.fetch(&mut download).await.unwrap();
    assert_eq!(fs::read(place.file()).unwrap(), content);
}

#[tokio::test]
async fn wrong_content_is_noticed_and_fetched_anew() {
    let content = content();
    let mut wrong = content.clone();
    wrong[5] ^= 1;
    let place = Place::new(Server { content: wrong, ..Server::default() }).await;
    let mut download = Download::open(&place.file(), digest(&content)).await.unwrap();
    assert!(matches!(place.fetch(&mut download).await, Err(TransferError::Mismatch)));
    place.server.lock().unwrap().content = [content.as_slice(), b"more"].concat();
    assert!(matches!(place.fetch(&mut download).await, Err(TransferError::Mismatch)));
    place.server.lock().unwrap().content.clone_from(&content);
    place.fetch(&mut download).await.unwrap();
    assert_eq!(fs::read(place.file()).unwrap(), content);
}

#[tokio::test]
async fn an_empty_payload_needs_no_request() {
    let place = Place::new(Server::default()).await;
    let mut download = Download::open(&place.file(), digest(b"")).await.unwrap();
    place.fetch(&mut download).await.unwrap();
    assert!(place.server.lock().unwrap().ranges.is_empty());
}

#[tokio::test]
async fn an_upload_goes_on_at_the_offset_that_the_hub_has() {
    let content = content();
    for which in [0, 1] {
        let place = Place::new(Server { lose_after: Some(1234), ..Server::default() }).await;
        let source = &place.sources(&content)[which];
        assert!(matches!(place.send(&content, source).await, Err(TransferError::Again(_))));
        place.send(&content, source).await.unwrap();
        assert_eq!(place.server.lock().unwrap().received, content);
        // A lost answer: the whole is there already.
        place.send(&content, source).await.unwrap();
        assert_eq!(place.server.lock().unwrap().received, content);
    }
}

#[tokio::test]
async fn a_refusal_is_told_apart_from_a_hub_that_is_away() {
    let place = Place::new(Server::default()).await;
    let missing = place.hub.request(reqwest::Method::GET, "/nowhere").send().await.unwrap();
    assert_eq!(Refused::read(missing.status(), &HeaderMap::new(), b""), None);
    let mut hub = place.hub.clone();
    hub.url.set_port(Some(1)).unwrap();
    let error = hub.dial().await.map(drop).unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1 cannot be reached"), "{error}");
}
