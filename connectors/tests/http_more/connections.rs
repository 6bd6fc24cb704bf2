//! Connections: reused, over TLS, as HTTP/2, and through a proxy.

use crate::{
    RETRY_UNREACHED, get,
    http_server::{Authority, Resource, answer, payload, serve, status},
    kind, post,
};
use serde_json::json;

#[tokio::test]
async fn connections_are_reused() {
    let server = serve(|_| answer(200, &[], "some answer")).await;
    let resource = Resource::of(&server);
    for n in 0..5 {
        resource.run("notify", json!({ "path": format!("n/{n}") }), None).await.success();
        resource.run("request", get("r"), None).await.success();
    }
    assert_eq!((server.received().len(), server.connections()), (10, 1));
}

#[tokio::test]
async fn a_private_ca_is_trusted_when_named_and_certificates_are_checked() {
    let authority = Authority::new("Intra CA");
    let server = authority.serve("localhost", &[b"http/1.1"], |_| status(200)).await;
    let misnamed = authority.serve("other.intra", &[b"http/1.1"], |_| status(200)).await;
    let settings = |port: u16| format!("url = \"https://localhost:{port}/\"\nca_file = \"ca.pem\"");
    let trusting =
        Resource::with_files(&settings(server.address.port()), &[("ca.pem", authority.pem.as_str())]);
    trusting.run("notify", json!({ "path": "x" }), None).await.success();
    trusting.probe().await.unwrap();

    for name in ["Intra CA", "Another CA"] {
        let stranger = Authority::new(name);
        let distrusting =
            Resource::with_files(&settings(server.address.port()), &[("ca.pem", stranger.pem.as_str())]);
        let failure = distrusting.run("notify", json!({ "path": "x" }), None).await.failure();
        assert_eq!(kind(&failure), RETRY_UNREACHED);
        assert!(failure.message.contains("ca_file"), "{failure}");
    }

    let misled =
        Resource::with_files(&settings(misnamed.address.port()), &[("ca.pem", authority.pem.as_str())]);
    let failure = misled.run("notify", json!({ "path": "x" }), None).await.failure();
    assert_eq!(kind(&failure), RETRY_UNREACHED);
    assert!(failure.message.contains("another name"), "{failure}");
    assert!(misnamed.received().is_empty());
}

#[tokio::test]
async fn http_2_is_used_where_the_server_offers_it() {
    let authority = Authority::new("Intra CA");
    let server = authority.serve("localhost", &[b"h2", b"http/1.1"], |_| answer(200, &[], "two")).await;
    let settings = format!("url = \"https://localhost:{}/\"\nca_file = \"ca.pem\"", server.address.port());
    let resource = Resource::with_files(&settings, &[("ca.pem", authority.pem.as_str())]);
    let body = vec![b'x'; 300_000];
    let (_, output) = resource.run("request", post("x"), Some(payload(body, "text/plain"))).await.success();
    assert_eq!(output.unwrap().1, b"two");
    let [got] = server.received().try_into().unwrap();
    assert_eq!((got.version.as_str(), got.body.len()), ("HTTP/2.0", 300_000));
    assert_eq!(got.header("content-length"), Some("300000"));
}

#[tokio::test]
async fn a_proxy_is_used_only_when_the_resource_names_one() {
    // Answers for everybody, as a proxy does for plain HTTP.
    let proxy = serve(|_| status(200)).await;
    let settings = format!(
        "url = \"http://orders.invalid/api/\"\n\
         proxy = {{ url = \"{}\", username = \"svc\", password = {{ file = \"p\" }} }}",
        proxy.url("")
    );
    let resource = Resource::with_files(&settings, &[("p", "pw")]);
    resource.run("notify", json!({ "path": "x" }), None).await.success();
    let [got] = proxy.received().try_into().unwrap();
    assert_eq!(got.uri, "http://orders.invalid/api/x");
    assert_eq!(got.header("proxy-authorization"), Some("Basic c3ZjOnB3"));
}

#[test]
fn proxies_of_the_environment_do_not_count() {
    // The environment of a running test must not change, so another process runs the test with it.
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "http_more::connections::connections_are_reused"]);
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        child.env(name, "http://127.0.0.1:1");
    }
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
