//! What becomes of answers whose head is large, is none, or comes never.

use crate::{
    RETRY_LOST, get,
    http_server::{Authority, Resource, answer, serve, status},
    kind, raw,
};
use passerelle_connectors::{Code, Effect, Verdict};
use serde_json::json;
use std::{
    io::{Read as _, Write as _},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tokio::net::TcpListener;

#[tokio::test]
async fn an_answer_of_many_header_fields_is_read() {
    let server = serve(|_| {
        let names: Vec<String> = (0..400).map(|n| format!("x-field-{n}")).collect();
        let fields: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
        answer(200, &fields, "")
    })
    .await;
    Resource::of(&server).run("notify", json!({ "path": "x" }), None).await.success();
}

#[tokio::test]
async fn a_notification_whose_answer_is_too_large_to_read_is_not_sent_again() {
    let text = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x-field: v\r\n".repeat(1100));
    let url = raw(text.leak().as_bytes()).await;
    let resource = Resource::new(&format!("url = \"{url}\""));
    let failure = resource.run("notify", json!({ "path": "x" }), None).await.failure();
    assert_eq!(kind(&failure), (Verdict::Permanent, Code::TargetProtocol, Effect::Unknown), "{failure}");
    assert!(failure.message.contains("header fields"), "{failure}");
}

#[tokio::test]
async fn another_protocol_than_http_is_called_so() {
    let authority = Authority::new("Intra CA");
    let server = authority.serve("localhost", &[b"http/1.1"], |_| status(200)).await;
    let plain = format!("url = \"http://localhost:{}/\"", server.address.port());
    let failure = Resource::new(&plain).run("notify", json!({ "path": "x" }), None).await.failure();
    assert_eq!(kind(&failure), RETRY_LOST, "{failure}");
    assert!(failure.message.contains("http or https"), "{failure}: {:?}", failure.detail);
    // One that says why before it closes.
    let url = raw(b"\x15\x03\x03\x00\x02\x02\x46").await;
    let failure = Resource::new(&format!("url = \"{url}\"")).run("request", get("x"), None).await.failure();
    assert!(failure.message.contains("http or https"), "{failure}: {:?}", failure.detail);

    let old = raw(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    let resource = Resource::new(&format!("url = \"{old}\"\nhttp_version = \"2\""));
    let failure = resource.run("request", get("x"), None).await.failure();
    assert!(failure.message.contains("http_version"), "{failure}: {:?}", failure.detail);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_answers_no_handshake_is_said_to_be_silent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("url = \"https://{}/\"", listener.local_addr().unwrap());
    let links = Resource::new(&url).examine().await;
    let tls = links.iter().find(|link| link.name == "TLS").unwrap();
    assert!(format!("{tls:?}").contains("did not answer the TLS handshake in time"), "{tls:?}");
}

/// A server, on threads of its own, that answers with interim answers until nobody takes them any more.
fn endless_interim_answers() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            std::thread::spawn(move || {
                let mut socket = socket.unwrap();
                let _ = socket.read(&mut [0; 4096]);
                let some = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(20_000);
                while socket.write_all(&some).is_ok() {}
            });
        }
    });
    format!("http://{address}/")
}

#[tokio::test]
async fn endless_interim_answers_hold_up_nobody_else() {
    let url = endless_interim_answers();
    let resource = Resource::new(&format!("url = \"{url}\"\ntimeouts = {{ whole = \"3s\" }}"));
    let ticks = AtomicUsize::new(0);
    let others = async {
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            ticks.fetch_add(1, Ordering::Relaxed);
        }
    };
    let ask = || resource.run("request", get("x"), None);
    let floods = async { tokio::join!(ask(), ask(), ask(), ask()) };
    let ended = tokio::select! {
        ended = floods => ended,
        () = others => unreachable!("it has no end"),
    };
    for done in <[_; 4]>::from(ended) {
        let failure = done.failure();
        assert_eq!(kind(&failure), (Verdict::Retry, Code::TargetTimeout, Effect::NotApplied), "{failure}");
    }
    // Some 300 where nothing holds them up; two or three where the connections share this thread.
    let ticks = ticks.into_inner();
    assert!(ticks > 40, "only {ticks} of 300 turns");
}
