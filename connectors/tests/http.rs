//! The `http` connector against real servers: what arrives at the application, and what each kind of trouble becomes.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

#[path = "support/full.rs"]
mod full;
mod http_more;
mod http_server;

use axum::body::Body;
use futures_util::stream;
use http_server::{
    Authority, RecordingGate, Resource, answer, call, call_with, payload, serve, sha256, status,
    wrong_payload,
};
use passerelle_connectors::{Code, Effect, Failure, Verdict};
use serde_json::{Value, json};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// Verdict, code and effect at one glance.
fn kind(failure: &Failure) -> (Verdict, Code, Effect) {
    (failure.verdict, failure.code, failure.effect)
}

const RETRY_LOST: (Verdict, Code, Effect) = (Verdict::Retry, Code::TargetProtocol, Effect::Unknown);
const RETRY_UNREACHED: (Verdict, Code, Effect) =
    (Verdict::Retry, Code::TargetUnreachable, Effect::NotApplied);

fn get(path: &str) -> Value {
    json!({ "method": "GET", "path": path })
}

fn post(path: &str) -> Value {
    json!({ "method": "POST", "path": path })
}

/// A server of raw bytes: reads a request's head, then `answers`, then closes.
async fn raw(answers: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
            while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                match socket.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => head.extend_from_slice(&buffer[..n]),
                }
            }
            let _ = socket.write_all(answers).await;
        }
    });
    format!("http://{address}/api/")
}

#[tokio::test]
async fn an_answer_that_repeats_the_credentials_gives_them_to_nobody() {
    let echoes = |text: &'static str| {
        serve(move |_| {
            let fields = [
                ("authorization", text),
                ("proxy-authorization", text),
                ("cookie", text),
                ("x-api-key", text),
                ("x-echo", text),
                ("content-type", text),
            ];
            answer(200, &fields, "")
        })
    };
    for (auth, text, echo) in [
        ("bearer\", token", "Bearer S3CRET-token-abc", "Bearer [secret]"),
        ("basic\", username = \"u\", password", "Basic dTpTM0NSRVQtdG9rZW4tYWJj", "Basic [secret]"),
        ("basic\", username = \"u\", password", "s3cret-token-abc", "[secret]"),
        ("api_key\", header = \"X-Api-Key\", value", "a=S3CRET-token-abc;", "a=[secret];"),
    ] {
        let server = echoes(text).await;
        let settings = format!(
            "url = \"{}\"\nauth = {{ kind = \"{auth} = {{ file = \"token\" }} }}",
            server.url("/api")
        );
        let resource = Resource::with_files(&settings, &[("token", "S3CRET-token-abc\n")]);
        let (result, _) = resource.run("request", get("x"), None).await.success();
        assert_eq!(result["headers"]["x-echo"], json!(echo), "{auth}");
        let told = result.to_string().to_lowercase();
        assert!(
            !told.contains("s3cret") && !told.contains("authorization") && !told.contains("cookie"),
            "{told}"
        );
    }
}

#[tokio::test]
async fn a_notification_arrives_with_its_key_type_credentials_and_trace() {
    let server = serve(|_| status(202)).await;
    let settings = format!(
        "url = \"{}\"\nauth = {{ kind = \"bearer\", token = {{ file = \"token\" }} }}",
        server.url("/api")
    );
    let resource = Resource::with_files(&settings, &[("token", "s3cret\n")]);
    let mut call = call();
    call.traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
    let params = json!({ "path": "orders/42%20a/validated", "headers": { "X-Shop": "Lyon" } });
    let (result, output) = resource
        .run_as(&call, "notify", params, Some(payload(r#"{"a":1}"#, "application/json")))
        .await
        .success();
    assert_eq!(result, json!({ "status": 202 }));
    assert_eq!(output, None);
    let [got] = server.received().try_into().unwrap();
    assert_eq!((got.method.as_str(), got.uri.as_str()), ("POST", "/api/orders/42%20a/validated"));
    assert_eq!(got.body, r#"{"a":1}"#);
    assert_eq!(got.header("idempotency-key"), Some(call.job.to_string().as_str()));
    assert_eq!(got.header("content-type"), Some("application/json"));
    assert_eq!(got.header("content-length"), Some("7"));
    assert_eq!(got.header("authorization"), Some("Bearer s3cret"));
    assert_eq!(got.header("traceparent"), call.traceparent.as_deref());
    assert_eq!(got.header("x-shop"), Some("Lyon"));
    assert_eq!(got.header("transfer-encoding"), None);
    assert_eq!((call.progress.done(), call.progress.total()), (7, 7));
}

#[tokio::test]
async fn basic_and_api_key_credentials_are_sent() {
    let server = serve(|_| status(200)).await;
    for (auth, header, value) in [
        (
            r#"{ kind = "basic", username = "svc", password = { file = "secret" } }"#,
            "authorization",
            "Basic c3ZjOnPDqWNyZXQ=",
        ),
        (r#"{ kind = "api_key", header = "X-Api-Key", value = { file = "key" } }"#, "x-api-key", "k-1"),
    ] {
        let settings = format!("url = \"{}\"\nauth = {auth}", server.url("/"));
        let resource = Resource::with_files(&settings, &[("secret", "sécret"), ("key", "k-1")]);
        resource.run("notify", json!({ "path": "x" }), None).await.success();
        assert_eq!(server.received().last().unwrap().header(header), Some(value));
    }
    let bare = server.received().pop().unwrap();
    assert_eq!(bare.header("content-length"), Some("0"), "a POST without payload says so");
}

#[tokio::test]
async fn any_status_of_a_request_is_an_answer_unless_expect_says_otherwise() {
    let server = serve(|got| {
        let code = got.uri.rsplit('/').next().unwrap().split('?').next().unwrap().parse().unwrap();
        answer(code, &[("content-type", "text/csv"), ("set-cookie", "a=b"), ("x-total", "3")], "a;b;c")
    })
    .await;
    let resource = Resource::of(&server);
    for code in [200, 404, 500] {
        let params =
            json!({ "method": "GET", "path": code.to_string(), "query": { "q": "é&x", "n": [1, 2] } });
        let (result, output) = resource.run("request", params, None).await.success();
        assert_eq!(result["status"], json!(code));
        assert_eq!(result["headers"]["x-total"], json!("3"));
        assert_eq!(result["headers"].get("set-cookie"), None);
        let (produced, content) = output.unwrap();
        assert_eq!((produced.media_type.as_str(), content.as_slice()), ("text/csv", b"a;b;c".as_slice()));
    }
    assert_eq!(server.received()[0].uri, "/api/200?n=1&n=2&q=%C3%A9%26x");
    assert_eq!(server.received()[0].header("idempotency-key"), None, "reading needs no key");

    let expecting = |code: u16| json!({ "method": "GET", "path": code.to_string(), "expect": [200, 204] });
    let (result, output) = resource.run("request", expecting(204), None).await.success();
    assert_eq!((result["status"].clone(), output), (json!(204), None));
    for (code, expected) in [
        (404, (Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied)),
        (409, (Verdict::Permanent, Code::TargetConflict, Effect::NotApplied)),
        (500, (Verdict::Retry, Code::TargetRefused, Effect::NotApplied)),
    ] {
        let done = resource.run("request", expecting(code), None).await;
        assert!(done.output.is_none());
        assert_eq!(kind(&done.failure()), expected, "{code}");
    }
    let head = json!({ "method": "HEAD", "path": "200" });
    assert_eq!(resource.run("request", head, None).await.success().1, None);
}

#[tokio::test]
async fn notifications_fail_or_retry_by_status_and_the_hint_is_passed_on() {
    let server = serve(|got| {
        let code = got.uri.rsplit('/').next().unwrap().parse().unwrap();
        answer(code, &[("retry-after", "7")], "busy")
    })
    .await;
    let resource = Resource::of(&server);
    for (code, verdict, expected) in [
        (400, Verdict::Permanent, Code::TargetRefused),
        (401, Verdict::Permanent, Code::TargetRefused),
        (404, Verdict::Permanent, Code::TargetRefused),
        (408, Verdict::Retry, Code::TargetTimeout),
        (425, Verdict::Retry, Code::TargetThrottled),
        (429, Verdict::Retry, Code::TargetThrottled),
        (500, Verdict::Retry, Code::TargetRefused),
        (503, Verdict::Retry, Code::TargetThrottled),
    ] {
        let failure = resource.run("notify", json!({ "path": code.to_string() }), None).await.failure();
        assert_eq!((failure.verdict, failure.code), (verdict, expected), "{code}");
        let hint = (verdict == Verdict::Retry).then_some(Duration::from_secs(7));
        assert_eq!(failure.retry_after, hint, "{code}");
        assert!(!failure.message.contains("127.0.0.1"), "{}", failure.message);
    }
    assert_eq!(server.connections(), 1, "refusals do not cost the connection");
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_never_followed() {
    let elsewhere = serve(|_| status(200)).await;
    let other = elsewhere.url("/api/stolen");
    let server = serve(move |got| match got.uri.as_str() {
        "/api/old" => answer(302, &[("location", "/api/new?x=1")], ""),
        "/api/up" => answer(302, &[("location", "../admin")], ""),
        _ => answer(307, &[("location", other.as_str())], ""),
    })
    .await;
    let resource = Resource::of(&server);
    for path in ["up", "cross"] {
        let (result, _) = resource.run("request", get(path), None).await.success();
        assert_eq!(result["headers"].get("location"), None, "{path}: where it leads is not for the cloud");
        assert!(matches!(result["status"].as_u64(), Some(302 | 307)));
    }
    for params in [get("old"), post("old")] {
        let (result, _) = resource.run("request", params, None).await.success();
        assert_eq!((&result["status"], &result["headers"]["location"]), (&json!(302), &json!("new?x=1")));
    }
    let failure = resource.run("notify", json!({ "path": "cross" }), None).await.failure();
    assert_eq!(kind(&failure), (Verdict::Permanent, Code::TargetRefused, Effect::NotApplied));
    assert_eq!(server.received().len(), 5, "one request each");
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn large_payloads_and_answers_stream_both_ways() {
    let size = 64 * 1024 * 1024;
    let content: Vec<u8> = (0..size).map(|i: u32| (i % 251) as u8 ^ (i >> 16) as u8).collect();
    let digest = sha256(&content);
    // Sends back what it received.
    let server = serve(|got| answer(200, &[("content-type", "application/x-echo")], got.body.clone())).await;
    let resource = Resource::of(&server);
    let call = call();
    let (_, output) = resource
        .run_as(&call, "request", post("echo"), Some(payload(content, "application/octet-stream")))
        .await
        .success();
    let (produced, _) = output.unwrap();
    assert_eq!((produced.size, produced.sha256), (u64::from(size), digest));
    assert_eq!(produced.media_type, "application/x-echo");
    let [got] = server.received().try_into().unwrap();
    assert_eq!(sha256(&got.body), digest);
    assert_eq!(got.header("content-length"), Some(size.to_string().as_str()));
    assert_eq!(got.header("transfer-encoding"), None);
    assert_eq!(call.progress.done(), 2 * u64::from(size));
}

#[tokio::test]
async fn payload_sizes_around_a_piece_arrive_whole() {
    let server = serve(|_| status(200)).await;
    let resource = Resource::of(&server);
    for size in [0, 1, 65_535, 65_536, 65_537, 131_072, 200_000] {
        let content = vec![b'x'; size];
        resource.run("notify", json!({ "path": "p" }), Some(payload(content, "text/plain"))).await.success();
        let got = server.received().pop().unwrap();
        assert_eq!(got.body.len(), size);
        assert_eq!(got.header("content-length"), Some(size.to_string().as_str()));
    }
}

#[tokio::test]
async fn a_payload_with_the_wrong_content_never_arrives_whole() {
    let server = serve(|_| status(200)).await;
    let resource = Resource::of(&server);
    for size in [10, 65_536, 1_000_000] {
        let payload = Some(wrong_payload(vec![b'x'; size]));
        let failure = resource.run("notify", json!({ "path": "p" }), payload).await.failure();
        let expected = (Verdict::Permanent, Code::DigestMismatch, Effect::NotApplied);
        assert_eq!(kind(&failure), expected, "{size}");
    }
    assert!(server.received().is_empty());
}

#[tokio::test]
async fn an_answer_over_the_limit_is_refused_with_and_without_a_length() {
    let server = serve(|got| {
        if got.uri.ends_with("known") {
            answer(200, &[], vec![b'x'; 2000])
        } else {
            let pieces = (0..2).map(|_| Ok::<_, io::Error>(vec![b'x'; 1000]));
            answer(200, &[], Body::from_stream(stream::iter(pieces)))
        }
    })
    .await;
    for (limit, fits) in [("1999B", false), ("2000B", true)] {
        let resource = Resource::new(&format!("url = \"{}\"\nmax_response = \"{limit}\"", server.url("/")));
        for path in ["known", "chunked"] {
            for (params, effect) in [(get(path), Effect::NotApplied), (post(path), Effect::Unknown)] {
                let done = resource.run("request", params.clone(), None).await;
                if fits {
                    assert_eq!(done.success().1.unwrap().0.size, 2000);
                } else {
                    assert!(done.output.is_none());
                    assert_eq!(
                        kind(&done.failure()),
                        (Verdict::Permanent, Code::TooLarge, effect),
                        "{params}"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn silence_before_and_within_the_answer_is_a_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}/api/", listener.local_addr().unwrap());
    let stalling = serve(|_| {
        let pieces = stream::unfold(0, |n| async move {
            if n > 0 {
                std::future::pending::<()>().await;
            }
            Some((Ok::<_, io::Error>("begun"), n + 1))
        });
        answer(200, &[], Body::from_stream(pieces))
    })
    .await;
    for url in [silent, stalling.url("/api/")] {
        let resource = Resource::new(&format!("url = \"{url}\""));
        for (params, effect) in [(get("x"), Effect::NotApplied), (post("x"), Effect::Unknown)] {
            let mut call = call();
            call.timeout = Duration::from_millis(200);
            let done = resource.run_as(&call, "request", params.clone(), None).await;
            assert!(done.output.is_none());
            assert_eq!(kind(&done.failure()), (Verdict::Retry, Code::TargetTimeout, effect), "{params}");
        }
    }
}

#[tokio::test]
async fn a_target_that_never_takes_the_connection_was_told_nothing() {
    let (url, _full) = full::full().await;
    // The time for connecting is 10 s: the attempt's own ends first.
    for more in ["", "timeouts = { first_byte = \"1s\" }", "timeouts = { whole = \"1s\" }"] {
        let resource = Resource::new(&format!("url = \"{url}\"\n{more}"));
        let mut call = call();
        call.timeout = Duration::from_secs(if more.is_empty() { 1 } else { 60 });
        for params in [post("x"), get("x")] {
            let failure = resource.run_as(&call, "request", params, None).await.failure();
            assert_eq!(kind(&failure), RETRY_UNREACHED, "{more}: {failure}");
        }
    }
}

#[tokio::test]
async fn a_slow_answer_that_keeps_coming_is_no_timeout() {
    let server = serve(|_| {
        let pieces = stream::unfold(0, |n| async move {
            tokio::time::sleep(Duration::from_millis(60)).await;
            (n < 8).then_some((Ok::<_, io::Error>("x"), n + 1))
        });
        answer(200, &[], Body::from_stream(pieces))
    })
    .await;
    let mut call = call();
    call.timeout = Duration::from_millis(300);
    let (_, output) = Resource::of(&server).run_as(&call, "request", get("x"), None).await.success();
    assert_eq!(output.unwrap().1, b"xxxxxxxx");
}

#[tokio::test]
async fn an_exchange_cut_off_after_the_request_is_in_doubt_unless_it_only_read() {
    for answers in [
        b"".as_slice(),
        b"HTTP/1.1 200 OK\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
    ] {
        let resource = Resource::new(&format!("url = \"{}\"", raw(answers).await));
        let failure = resource.run("request", post("x"), None).await.failure();
        assert_eq!(kind(&failure), RETRY_LOST, "{failure}");
        let failure = resource.run("request", get("x"), None).await.failure();
        let reading = (Verdict::Retry, Code::TargetProtocol, Effect::NotApplied);
        assert_eq!(kind(&failure), reading, "{failure}");
    }
}

#[tokio::test]
async fn what_cannot_be_reached_has_had_no_effect() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    for (url, says) in [
        (format!("http://{closed}/"), "refused the connection"),
        ("http://no-such-host.invalid/".to_owned(), "does not resolve"),
        (format!("https://{}/", serve(|_| status(200)).await.address), "does not speak TLS"),
    ] {
        let resource = Resource::with_files(
            &format!("url = \"{url}\"\nca_file = \"ca.pem\""),
            &[("ca.pem", &Authority::new("Intra CA").pem)],
        );
        let failure = resource.run("notify", json!({ "path": "x" }), None).await.failure();
        assert_eq!(kind(&failure), RETRY_UNREACHED, "{failure}");
        assert!(failure.message.contains(says), "{failure}");
        assert!(!failure.message.contains(url.trim_matches('/')), "{}", failure.message);
        assert_eq!(kind(&resource.probe().await.unwrap_err()), RETRY_UNREACHED);
    }
}

#[tokio::test]
async fn cancelling_stops_before_the_request_or_tells_that_it_is_in_doubt() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let resource = Resource::new(&format!("url = \"http://{}/\"", silent.local_addr().unwrap()));
    let early = call();
    early.cancel.cancel();
    let failure = resource.run_as(&early, "notify", json!({ "path": "x" }), None).await.failure();
    assert_eq!(kind(&failure), (Verdict::Cancelled, Code::Cancelled, Effect::NotApplied));

    let late = call();
    let cancel = late.cancel.clone();
    let target = tokio::spawn(async move {
        let (mut socket, _) = silent.accept().await.unwrap();
        let mut head = [0; 4];
        socket.read_exact(&mut head).await.unwrap();
        cancel.cancel();
        // Open until the connector lets go of it.
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        head
    });
    let failure = resource.run_as(&late, "notify", json!({ "path": "x" }), None).await.failure();
    assert_eq!(kind(&failure), (Verdict::Cancelled, Code::Cancelled, Effect::Unknown));
    assert_eq!(target.await.unwrap(), *b"POST", "the early one was never sent");
}

#[tokio::test]
async fn the_gate_is_asked_before_each_effect_and_its_no_is_obeyed() {
    let server = serve(|_| status(200)).await;
    let resource = Resource::of(&server);
    let open = Arc::new(RecordingGate::default());
    resource.run_as(&call_with(open.clone()), "request", get("r"), None).await.success();
    assert!(open.intents.lock().unwrap().is_empty(), "reading is no effect");
    let notify = json!({ "path": "n%20m" });
    let body = Some(payload("abc", "text/plain"));
    resource.run_as(&call_with(open.clone()), "notify", notify.clone(), body).await.success();
    let [intent] = open.intents.lock().unwrap().clone().try_into().unwrap();
    assert_eq!((intent.target.as_deref(), intent.size), (Some("n m"), Some(3)));

    let shut = Arc::new(RecordingGate { shut: true, ..RecordingGate::default() });
    let failure = resource.run_as(&call_with(shut), "notify", notify, None).await.failure();
    assert_eq!(failure.message, "the gate is shut");
    assert_eq!(server.received().len(), 2);
}

#[tokio::test]
async fn a_get_takes_no_payload() {
    let server = serve(|_| status(200)).await;
    let body = Some(payload("abc", "text/plain"));
    let failure = Resource::of(&server).run("request", get("x"), body).await.failure();
    assert_eq!(kind(&failure), (Verdict::Permanent, Code::InvalidParams, Effect::NotApplied));
    assert!(server.received().is_empty());
}

#[tokio::test]
async fn the_probe_tells_refused_credentials_and_takes_any_other_answer() {
    let server = serve(|got| {
        assert_eq!((got.method.as_str(), got.uri.as_str()), ("HEAD", "/api/"));
        status(if got.header("authorization") == Some("Bearer right") { 404 } else { 401 })
    })
    .await;
    for (token, passes) in [("right", true), ("wrong", false)] {
        let settings = format!(
            "url = \"{}\"\nauth = {{ kind = \"bearer\", token = {{ file = \"t\" }} }}",
            server.url("/api/")
        );
        let probed = Resource::with_files(&settings, &[("t", token)]).probe().await;
        assert_eq!(
            probed.as_ref().map_err(|failure| failure.code),
            if passes { Ok(&()) } else { Err(Code::TargetAuth) }
        );
    }
}
