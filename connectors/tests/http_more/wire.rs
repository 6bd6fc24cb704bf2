//! Signatures, client certificates, versions, unpacking, and limits of time.

use crate::http_server::{Authority, Resource, answer, call, check, payload, serve, sha256, status};
use aws_lc_rs::hmac;
use axum::body::Body;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{Compression, write::GzEncoder};
use futures_util::stream;
use passerelle_connectors::{Code, Effect, Verdict};
use serde_json::{Value, json};
use std::{io, io::Write as _, time::Duration};
use tokio::net::TcpListener;

const SECRETS: [&str; 2] =
    ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"];

/// As a receiver computes it.
fn signature(secret: &str, id: &str, timestamp: &str, body: &[u8]) -> String {
    let key = STANDARD.decode(secret.trim_start_matches("whsec_")).unwrap();
    let mut signed = format!("{id}.{timestamp}.").into_bytes();
    signed.extend_from_slice(body);
    format!("v1,{}", STANDARD.encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &signed)))
}

#[tokio::test]
async fn every_request_is_signed_over_all_of_its_body() {
    let server = serve(|_| status(200)).await;
    let settings = format!(
        "url = \"{}\"\nsign = {{ kind = \"standard_webhooks\", secrets = [{{ file = \"new\" }}, {{ file = \"old\" }}] }}",
        server.url("/api/")
    );
    let resource =
        Resource::with_files(&settings, &[("new", SECRETS[0]), ("old", &format!("{}\n", SECRETS[1]))]);
    let event = json!({ "path": "e", "event": { "kind": "X", "category": "c", "data": { "a": "é" } } });
    for (params, content) in [
        (event, None),
        (json!({ "path": "e" }), None),
        (json!({ "path": "e" }), Some(vec![b'x'; 10])),
        (json!({ "path": "e" }), Some(vec![b'x'; 1_000_000])),
    ] {
        let call = call();
        let payload = content.map(|content| payload(content, "text/plain"));
        resource.run_as(&call, "notify", params, payload).await.success();
        let got = server.received().pop().unwrap();
        let header = |name: &str| got.header(name).unwrap().to_owned();
        let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
        assert_eq!(id, call.job.to_string());
        let age = jiff::Timestamp::now().as_second() - timestamp.parse::<i64>().unwrap();
        assert!((0..60).contains(&age), "{age} s old");
        let expected = SECRETS.map(|secret| signature(secret, &id, &timestamp, &got.body)).join(" ");
        assert_eq!(header("webhook-signature"), expected, "{} bytes", got.body.len());
    }
    let own = json!({ "path": "e", "headers": { "Webhook-Id": "x" } });
    assert_eq!(resource.demands("notify", &own).unwrap_err().code, Code::InvalidParams);
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_who_asks_for_one() {
    let authority = Authority::new("Intra CA");
    let server = authority.serve_to_clients("localhost", |_| status(200)).await;
    let (cert, key) = authority.issue("agent");
    let settings = |more: &str| {
        format!("url = \"https://localhost:{}/\"\nca_file = \"ca.pem\"\n{more}", server.address.port())
    };
    let shown = "client_cert = \"cert.pem\"\nclient_key = { file = \"key.pem\" }";
    let files = [("ca.pem", authority.pem.as_str()), ("cert.pem", &cert), ("key.pem", &key)];
    let resource = Resource::with_files(&settings(shown), &files);
    resource.run("notify", json!({ "path": "x" }), None).await.success();
    assert_eq!(server.received().len(), 1);

    let (strange_cert, strange_key) = Authority::new("Another CA").issue("agent");
    let strange =
        [("ca.pem", authority.pem.as_str()), ("cert.pem", &strange_cert), ("key.pem", &strange_key)];
    for (more, files) in [("", &files), (shown, &strange)] {
        let resource = Resource::with_files(&settings(more), files);
        let failure = resource.run("notify", json!({ "path": "x" }), None).await.failure();
        assert_eq!((failure.verdict, failure.effect), (Verdict::Retry, Effect::NotApplied), "{failure}");
        assert_eq!(failure.code, Code::TargetUnreachable, "{failure}");
        assert!(failure.message.contains("client_cert"), "{failure}");
    }
}

#[test]
fn unusable_client_certificates_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("Intra CA");
    let ((cert, key), (_, other)) = (authority.issue("a"), authority.issue("b"));
    for (name, content) in
        [("cert.pem", cert.as_str()), ("key.pem", &key), ("other.pem", &other), ("none.pem", "geheim")]
    {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    for (cert, key, says) in [
        ("absent.pem", "key.pem", ["client_cert", "absent.pem"]),
        ("none.pem", "key.pem", ["client_cert", "no certificate"]),
        ("cert.pem", "absent.pem", ["client_key", "absent.pem"]),
        ("cert.pem", "none.pem", ["client_key", "not a private key in PEM"]),
        ("cert.pem", "other.pem", ["client_cert", "does not go with client_key"]),
    ] {
        let settings =
            format!("url = \"https://h/\"\nclient_cert = \"{cert}\"\nclient_key = {{ file = \"{key}\" }}");
        let error = check(dir.path(), &settings).ok().unwrap().build(dir.path()).err().unwrap().to_string();
        assert!(says.iter().all(|part| error.contains(part)) && !error.contains("geheim"), "{error}");
    }
    for (settings, says) in [
        ("client_cert = \"cert.pem\"", "client_key"),
        ("client_key = { file = \"key.pem\" }", "client_cert"),
        ("http_version = \"3\"", "auto, 1.1 or 2"),
        ("connect_timeout = \"5s\"\ntimeouts = { connect = \"5s\" }", "remove one"),
        ("timeouts = { connect = \"0s\" }", "longer than 0"),
        ("timeouts = { first_byte = \"25h\" }", "at most 24h"),
        ("timeouts = { first_byte = \"5s\", whole = \"4s\" }", "longer than timeouts.whole"),
        ("pool = { max_idle = 5000 }", "at most 1024"),
        ("pool = { idle_timeout = \"0s\" }", "longer than 0"),
        ("sign = { kind = \"hmac\", secret = { env = \"S\" } }", "standard_webhooks"),
        ("sign = { kind = \"standard_webhooks\" }", "either secret, or secrets"),
        ("sign = { kind = \"standard_webhooks\", secrets = [] }", "1 to 5"),
    ] {
        let Err(findings) = check(dir.path(), &format!("url = \"https://h/\"\n{settings}")) else {
            panic!("{settings} was taken")
        };
        assert!(findings.contains(says), "{settings}: {findings}");
    }
    let settings =
        "url = \"http://h/\"\nsign = { kind = \"standard_webhooks\", secret = { file = \"none.pem\" } }";
    let error = check(dir.path(), settings).ok().unwrap().build(dir.path()).err().unwrap().to_string();
    assert!(error.contains("sign.secret") && !error.contains("geheim"), "{error}");
}

#[tokio::test]
async fn the_version_is_the_operators_to_choose() {
    let authority = Authority::new("Intra CA");
    let server = authority.serve("localhost", &[b"h2", b"http/1.1"], |_| status(200)).await;
    for (version, expected) in [("auto", "HTTP/2.0"), ("1.1", "HTTP/1.1"), ("2", "HTTP/2.0")] {
        let settings = format!(
            "url = \"https://localhost:{}/\"\nca_file = \"ca.pem\"\nhttp_version = \"{version}\"",
            server.address.port()
        );
        let resource = Resource::with_files(&settings, &[("ca.pem", &authority.pem)]);
        resource.run("notify", json!({ "path": "x" }), None).await.success();
        assert_eq!(server.received().pop().unwrap().version, expected, "{version}");
    }
    let plain = serve(|_| status(200)).await;
    let resource = Resource::new(&format!("url = \"{}\"\nhttp_version = \"2\"", plain.url("/")));
    resource.run("notify", json!({ "path": "x" }), None).await.success();
    assert_eq!(plain.received()[0].version, "HTTP/2.0", "by prior knowledge");
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn compressed_answers_are_unpacked_unless_the_job_asked_for_them() {
    let rows: String = (0..20_000).map(|i| format!("{i};{}\n", i * 7919 % 1000)).collect();
    let packed = gzip(rows.as_bytes());
    let raw = packed.clone();
    let server = serve(move |got| match got.uri.as_str() {
        "/api/br" => answer(200, &[("content-encoding", "br")], "not ours"),
        "/api/broken" => answer(200, &[("content-encoding", "gzip")], raw[..raw.len() / 2].to_vec()),
        "/api/part" => answer(206, &[("content-encoding", "gzip")], raw[..9].to_vec()),
        _ => answer(
            200,
            &[("content-encoding", "gzip"), ("content-type", "text/csv"), ("vary", "a")],
            raw.clone(),
        ),
    })
    .await;
    let resource = Resource::of(&server);
    let get = |path: &str| json!({ "method": "GET", "path": path });
    let (result, output) = resource.run("request", get("rows"), None).await.success();
    let (produced, content) = output.unwrap();
    assert_eq!((content.as_slice(), produced.media_type.as_str()), (rows.as_bytes(), "text/csv"));
    assert_eq!(server.received()[0].header("accept-encoding"), Some("gzip"));
    let told = result["headers"].as_object().unwrap();
    assert!(
        !told.contains_key("content-encoding")
            && !told.contains_key("content-length")
            && told.contains_key("vary")
    );

    for wish in [json!({ "Accept-Encoding": "gzip" }), json!({ "Range": "bytes=0-9" })] {
        let mut params = get("rows");
        params["headers"] = wish;
        let (result, output) = resource.run("request", params, None).await.success();
        assert_eq!(output.unwrap().1, packed, "as it came");
        assert_eq!(result["headers"]["content-encoding"], "gzip");
    }
    let (result, output) = resource.run("request", get("br"), None).await.success();
    assert_eq!(
        (output.unwrap().1, &result["headers"]["content-encoding"]),
        (b"not ours".to_vec(), &json!("br"))
    );
    let (result, _) = resource.run("request", get("part"), None).await.success();
    assert_eq!(result["headers"]["content-encoding"], "gzip", "a part cannot be unpacked");
    let failure = resource.run("request", get("broken"), None).await.failure();
    assert_eq!((failure.verdict, failure.code), (Verdict::Retry, Code::TargetProtocol));
    resource.run("notify", json!({ "path": "rows" }), None).await.success();

    let identity = Resource::new(&format!("url = \"{}\"\ncompression = false", server.url("/api/")));
    let (_, output) = identity.run("request", get("rows"), None).await.success();
    assert_eq!(server.received().pop().unwrap().header("accept-encoding"), Some("identity"));
    assert_eq!(output.unwrap().1, rows.as_bytes(), "sent packed all the same");
}

#[tokio::test]
async fn a_bomb_ends_at_the_limits() {
    let bomb = gzip(&vec![0; 100_000_000]);
    let server = serve(move |_| answer(200, &[("content-encoding", "gzip")], bomb.clone())).await;
    for (limit, says) in [("1MiB", "max_response"), ("1GiB", "250 times")] {
        let resource = Resource::new(&format!("url = \"{}\"\nmax_response = \"{limit}\"", server.url("/")));
        for (method, effect) in [("GET", Effect::NotApplied), ("POST", Effect::Unknown)] {
            let done = resource.run("request", json!({ "method": method, "path": "x" }), None).await;
            assert!(done.output.is_none());
            let failure = done.failure();
            assert_eq!(
                (failure.verdict, failure.code, failure.effect),
                (Verdict::Permanent, Code::TooLarge, effect)
            );
            assert!(failure.message.contains(says), "{failure}");
        }
    }
}

#[tokio::test]
async fn the_first_byte_and_the_whole_have_their_own_limits() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}/", silent.local_addr().unwrap());
    let endless = serve(|_| {
        let pieces = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok::<_, io::Error>("more"), ()))
        });
        answer(200, &[], Body::from_stream(pieces))
    })
    .await;
    for (url, timeouts, says) in [
        (silent.as_str(), "first_byte = \"300ms\"", "timeouts.first_byte"),
        (silent.as_str(), "whole = \"300ms\"", "timeouts.whole"),
        (&endless.url("/"), "first_byte = \"300ms\", whole = \"400ms\"", "timeouts.whole"),
    ] {
        let resource = Resource::new(&format!("url = \"{url}\"\ntimeouts = {{ {timeouts} }}"));
        for (method, effect) in [("GET", Effect::NotApplied), ("POST", Effect::Unknown)] {
            let params: Value = json!({ "method": method, "path": "x" });
            let failure = resource.run("request", params, None).await.failure();
            assert_eq!(
                (failure.verdict, failure.code, failure.effect),
                (Verdict::Retry, Code::TargetTimeout, effect)
            );
            assert!(failure.message.contains(says), "{failure}");
        }
    }
}

#[tokio::test]
async fn a_slow_upload_is_no_late_first_byte() {
    // The application reads slowly: the wait for its first byte begins with the last of the request.
    let server = serve(|_| status(200)).await;
    let resource =
        Resource::new(&format!("url = \"{}\"\ntimeouts = {{ first_byte = \"400ms\" }}", server.url("/")));
    let content = vec![b'x'; 300_000];
    let digest = sha256(&content);
    let slow = tokio_util::io::StreamReader::new(Box::pin(
        stream::iter(content.chunks(30_000).map(<[u8]>::to_vec).collect::<Vec<_>>()).then_slowly(),
    ));
    let input = passerelle_connectors::Input::new(Box::new(slow), 300_000, digest, "text/plain".to_owned());
    resource.run("notify", json!({ "path": "x" }), Some(input)).await.success();
    assert_eq!(server.received()[0].body.len(), 300_000);
}

/// A stream that takes its time between pieces.
trait Slowly: stream::Stream<Item = Vec<u8>> + Sized {
    fn then_slowly(self) -> impl stream::Stream<Item = io::Result<bytes::Bytes>> {
        futures_util::StreamExt::then(self, |piece| async {
            // The slow source itself, not a wait for something to happen.
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(bytes::Bytes::from(piece))
        })
    }
}

impl<S: stream::Stream<Item = Vec<u8>>> Slowly for S {}
