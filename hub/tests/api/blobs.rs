//! Blobs: whole, resumable, cut, checked, read back.

use crate::{
    agent::Agent,
    support::{Answer, Hub, eventually, job},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_protocol::{PayloadSource, Sha256};
use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const PATCH: &str = "application/offset+octet-stream";

fn repr_digest(content: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::of(content).bytes()))
}

async fn open(hub: &Hub, length: u64, digest: Option<&str>) -> String {
    let mut request = hub.request(Method::POST, "/v1/blobs").header("upload-length", length);
    if let Some(digest) = digest {
        request = request.header("repr-digest", digest);
    }
    let answer = Answer::of(request).await.expect(201);
    assert_eq!((answer.header("upload-offset"), answer.header("tus-resumable")), ("0", "1.0.0"));
    let blob = answer.json();
    assert_eq!(blob["size"], length);
    assert_eq!(answer.header("location"), format!("/v1/blobs/{}", blob["id"].as_str().unwrap()));
    answer.header("location").to_owned()
}

async fn patch(hub: &Hub, path: &str, offset: u64, content: &[u8]) -> Answer {
    let request = hub.request(Method::PATCH, path).header("content-type", PATCH);
    Answer::of(request.header("upload-offset", offset).body(content.to_vec())).await
}

async fn offset(hub: &Hub, path: &str) -> (String, String) {
    let answer = Answer::of(hub.request(Method::HEAD, path)).await.expect(200);
    assert_eq!(answer.header("cache-control"), "no-store");
    (answer.header("upload-offset").to_owned(), answer.header("upload-length").to_owned())
}

#[tokio::test]
async fn a_whole_blob_is_stored_and_checked() {
    let hub = Hub::start().await;
    for content in [Vec::new(), b"x".to_vec(), vec![7; 256 * 1024 + 1]] {
        let request = hub.request(Method::POST, "/v1/blobs").header("repr-digest", repr_digest(&content));
        let answer = Answer::of(request.body(content.clone())).await.expect(201);
        let blob = answer.json();
        assert_eq!(blob["size"], content.len());
        assert_eq!(blob["sha256"], Sha256::of(&content).to_string());
        let path = answer.header("location");
        let back = hub.get(path).await.expect(200);
        assert_eq!(back.body, content);
        assert_eq!(back.header("etag"), format!("\"{}\"", Sha256::of(&content)));
        let size = content.len().to_string();
        assert_eq!(offset(&hub, path).await, (size.clone(), size));
    }
    let request = hub.request(Method::POST, "/v1/blobs").header("repr-digest", repr_digest(b"other"));
    Answer::of(request.body("this")).await.expect_problem(422, "digest_mismatch");
    let request = hub.request(Method::POST, "/v1/blobs").header("repr-digest", "sha-256=broken");
    Answer::of(request.body("this")).await.expect_problem(400, "bad_request");
    hub.end().await;
}

#[tokio::test]
async fn too_large_blobs_are_refused_before_and_while_they_come() {
    let hub = Hub::start_with(1000, true).await;
    let announced = hub.request(Method::POST, "/v1/blobs").body(vec![0; 1001]);
    Answer::of(announced).await.expect_problem(413, "too_large");
    let chunks = (0..11).map(|_| Ok::<_, std::io::Error>(vec![0_u8; 100]));
    let streamed = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    Answer::of(hub.request(Method::POST, "/v1/blobs").body(streamed)).await.expect_problem(413, "too_large");
    let opened = hub.request(Method::POST, "/v1/blobs").header("upload-length", 1001);
    Answer::of(opened).await.expect_problem(413, "too_large");
    Answer::of(hub.request(Method::POST, "/v1/blobs").body(vec![0; 1000])).await.expect(201);
    hub.end().await;
}

#[tokio::test]
async fn an_upload_resumes_where_it_was_cut() {
    let hub = Hub::start().await;
    let content: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    let path = open(&hub, content.len() as u64, Some(&repr_digest(&content))).await;
    assert_eq!(offset(&hub, &path).await, ("0".to_owned(), "100000".to_owned()));
    let first = patch(&hub, &path, 0, &content[..30_000]).await.expect(204);
    assert_eq!(first.header("upload-offset"), "30000");
    hub.get(&path).await.expect_problem(404, "not_found");
    let payload = json!({"payload": {"blob": path.rsplit('/').next()}});
    assert!([404, 409].contains(&hub.post("/v1/jobs", &job(payload)).await.status));

    // A connection that ends in the middle of a part.
    let address = hub.url.strip_prefix("http://").unwrap();
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "PATCH {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\ncontent-type: {PATCH}\r\n\
         upload-offset: 30000\r\ncontent-length: 70000\r\n\r\n",
        hub.key
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&content[30_000..50_000]).await.unwrap();
    socket.shutdown().await.unwrap();
    // The hub has seen the end, and what came is stored: a question before that would end the part earlier.
    socket.read_to_end(&mut Vec::new()).await.unwrap();
    // The engine of mediations stays.
    eventually(|| async { (hub.app.tasks.len() == 1).then_some(()) }).await;
    let at: usize = offset(&hub, &path).await.0.parse().unwrap();
    assert!((30_001..=50_000).contains(&at), "{at}");

    let wrong = patch(&hub, &path, 1, b"x").await.expect_problem(409, "conflict");
    assert_eq!(wrong.header("upload-offset"), at.to_string());
    let last = patch(&hub, &path, at as u64, &content[at..]).await.expect(204);
    assert_eq!(last.header("upload-offset"), "100000");
    assert_eq!(hub.get(&path).await.expect(200).body, content);
    hub.end().await;
}

#[tokio::test]
async fn a_wrong_part_or_digest_is_refused() {
    let hub = Hub::start().await;
    let path = open(&hub, 4, Some(&repr_digest(b"good"))).await;
    patch(&hub, &path, 0, b"evil").await.expect_problem(422, "digest_mismatch");
    let late = open(&hub, 4, None).await;
    let said = async |content: &'static str| {
        let request =
            hub.request(Method::PATCH, &late).header("content-type", PATCH).header("upload-offset", 0);
        Answer::of(request.header("repr-digest", repr_digest(b"good")).body(content)).await
    };
    said("evil").await.expect_problem(422, "digest_mismatch");
    // Nothing of it is kept: no job can take it, and it begins anew.
    let stands = Answer::of(hub.request(Method::HEAD, &late)).await.expect(200);
    assert_eq!(stands.header("upload-offset"), "0");
    Answer::of(hub.request(Method::GET, &late)).await.expect(404);
    said("good").await.expect(204);
    assert_eq!(Answer::of(hub.request(Method::GET, &late)).await.expect(200).body, b"good");

    let path = open(&hub, 4, None).await;
    patch(&hub, &path, 0, b"longer").await.expect_problem(413, "too_large");
    let plain = hub.request(Method::PATCH, &path).header("upload-offset", 0).body("good");
    Answer::of(plain).await.expect_problem(415, "bad_request");
    let nowhere = hub.request(Method::PATCH, &path).header("content-type", PATCH).body("good");
    Answer::of(nowhere).await.expect_problem(400, "bad_request");
    let old = hub.request(Method::POST, "/v1/blobs").header("tus-resumable", "0.2.2");
    Answer::of(old.header("upload-length", 4)).await.expect_problem(412, "bad_request");
    for method in [Method::HEAD, Method::PATCH] {
        let old = hub.request(method, &path).header("tus-resumable", "0.2.2").header("content-type", PATCH);
        let refused = Answer::of(old.header("upload-offset", 0)).await.expect(412);
        assert_eq!(refused.header("tus-version"), "1.0.0");
    }
    let deferred = hub.request(Method::POST, "/v1/blobs").header("tus-resumable", "1.0.0");
    let refused = Answer::of(deferred.header("upload-defer-length", 1)).await;
    assert!(refused.expect_problem(400, "bad_request").text().contains("Upload-Length"));
    let both = hub.request(Method::POST, "/v1/blobs").header("upload-length", 4).body("good");
    Answer::of(both).await.expect_problem(400, "bad_request");
    let text = hub.request(Method::POST, "/v1/blobs").header("upload-length", "four");
    Answer::of(text).await.expect_problem(400, "bad_request");
    hub.end().await;
}

#[tokio::test]
async fn an_agent_downloads_a_large_payload_with_ranges() {
    let hub = Hub::start().await;
    let content: Vec<u8> = (0..300_000_u32).map(|n| (n % 253) as u8).collect();
    let blob =
        Answer::of(hub.request(Method::POST, "/v1/blobs").body(content.clone())).await.expect(201).json();
    let id = hub.submit(json!({"payload": {"blob": blob["id"]}})).await["id"].as_str().unwrap().to_owned();
    let agent = Agent::enrol(&hub).await;
    let mut session = agent.connect(&hub).await;
    let offer = session.offer().await;
    assert_eq!((offer.job.to_string(), offer.payload), (id.clone(), Some(PayloadSource::Hub)));
    let path = format!("/agent/v1/jobs/{id}/payload");
    let whole = Answer::of(hub.anonymous(Method::GET, &path).bearer_auth(agent.bearer())).await.expect(200);
    assert_eq!(whole.body, content);
    let part = hub.anonymous(Method::GET, &path).bearer_auth(agent.bearer()).header("range", "bytes=299990-");
    let part = Answer::of(part).await.expect(206);
    assert_eq!(part.body, content[299_990..]);
    assert_eq!(part.header("content-range"), "bytes 299990-299999/300000");
    Answer::of(hub.anonymous(Method::GET, &path)).await.expect(401);
    let stranger = Agent::enrol(&hub).await;
    let refused = Answer::of(hub.anonymous(Method::GET, &path).bearer_auth(stranger.bearer())).await;
    refused.expect_problem(404, "not_found");
    hub.end().await;
}
