//! What only a WebDAV server can do wrong: certificates, log-in, answers that lie, lost connections.

use crate::{
    cases::failed,
    support::{
        Place, check, dav,
        dav::{Identity, Kind},
        dav_settings,
        server::Server as _,
    },
};
use passerelle_connectors::{Code, DynConnector, Effect, Failure, Verdict};
use serde_json::json;
use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

async fn probe(connector: &Arc<dyn DynConnector>) -> Result<(), Failure> {
    connector.probe(Duration::from_secs(20)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_log_in_is_permanent_and_tells_no_password() {
    for kind in [Kind::Nginx, Kind::Apache] {
        let place = Place::webdav(kind);
        fs::write(place.base.join("password"), "hunter2").unwrap();
        let wrong = check(&place.base, &dav_settings(place.dav.as_ref().unwrap(), "")).unwrap();
        let failure = failed(probe(&wrong).await, Verdict::Permanent, Code::TargetAuth, Effect::NotApplied);
        assert!(!failure.to_string().contains("hunter2"), "{failure}");
        let url = place.dav.as_ref().unwrap().url("root");
        let without = check(&place.base, &format!("connector = \"file\"\nurl = \"{url}\"")).unwrap();
        let failure = failed(probe(&without).await, Verdict::Permanent, Code::TargetAuth, Effect::NotApplied);
        assert!(failure.message.contains("username and password"), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_counts_only_with_its_ca() {
    for kind in [Kind::Nginx, Kind::Apache] {
        let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let identity = Identity { certificate: pair.cert.pem(), key: pair.signing_key.serialize_pem() };
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("served/root");
        fs::create_dir_all(&root).unwrap();
        let place = Place::webdav_at(dir, root, kind, Some(identity.clone()), "");
        let result = place.drop(json!({"path": "a.csv"}), b"x").await;
        let failure = failed(result, Verdict::Permanent, Code::TargetUnreachable, Effect::NotApplied);
        assert!(failure.message.contains("ca_file"), "{failure}");
        fs::write(place.base.join("ca.pem"), &identity.certificate).unwrap();
        let settings = dav_settings(place.dav.as_ref().unwrap(), "ca_file = \"ca.pem\"");
        let trusted = check(&place.base, &settings).unwrap();
        let place = place.with(trusted);
        place.drop(json!({"path": "a.csv"}), b"x").await.unwrap();
        assert_eq!(place.read("a.csv"), b"x");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_idle_session_is_replaced_unseen() {
    for kind in [Kind::Nginx, Kind::Apache] {
        let mut place = Place::webdav(kind);
        for content in [&b"1"[..], b"2", b"3"] {
            place.drop(json!({"path": "a.csv"}), content).await.unwrap();
            assert_eq!(place.read("a.csv"), content);
            place.dav.as_mut().unwrap().restart();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_is_a_timeout() {
    let place = Place::webdav(Kind::Nginx);
    probe(&place.connector).await.unwrap();
    let server = place.dav.as_ref().unwrap();
    server.freeze();
    let call = passerelle_connectors::Call { timeout: Duration::from_secs(1), ..crate::support::call() };
    let result = place.run(&call, "stat", &json!({"path": "a.csv"}), None).await;
    server.thaw();
    failed(result, Verdict::Retry, Code::TargetTimeout, Effect::NotApplied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_to_a_port_of_plain_http_says_what_to_check() {
    let place = Place::webdav(Kind::Nginx);
    let settings = dav_settings(place.dav.as_ref().unwrap(), "").replace("webdav://", "webdavs://");
    let connector = check(&place.base, &settings).unwrap();
    let result = connector.probe(Duration::from_secs(20)).await;
    let failure = failed(result, Verdict::Retry, Code::TargetUnreachable, Effect::NotApplied);
    assert!(failure.message.contains("scheme and port"), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_file_is_not_said_to_be_replaced_in_one_step() {
    for kind in [Kind::Nginx, Kind::Apache] {
        let place = Place::webdav(kind);
        let first = place.drop(json!({"path": "a.csv"}), b"1").await.unwrap();
        assert_eq!(first.result.get("atomic"), None, "a free name is taken in one step");
        let second = place.drop(json!({"path": "a.csv"}), b"2").await.unwrap();
        assert_eq!(second.result.get("atomic"), Some(&json!(false)));
        assert_eq!(place.read("a.csv"), b"2");
    }
}

/// Answers each request on each connection by its method.
fn hostile(answer: fn(&str) -> Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let (mut request, mut byte) = (Vec::new(), [0]);
                while !request.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                    request.push(byte[0]);
                }
                drop(stream.write_all(&answer(&String::from_utf8_lossy(&request))));
                // Closed with something unread, the connection would be reset, and the answer lost with it.
                drop(stream.shutdown(std::net::Shutdown::Write));
                drop(std::io::copy(&mut stream, &mut std::io::sink()));
            });
        }
    });
    port
}

fn multistatus(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 207 Multi-Status\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

fn at(base: &Path, port: u16) -> Arc<dyn DynConnector> {
    check(base, &format!("connector = \"file\"\nurl = \"webdav://127.0.0.1:{port}/root\"")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_lie_are_refused() {
    const ROOT: &str = "<multistatus xmlns=\"DAV:\"><response><href>/root/</href><propstat><prop><resourcetype>\
                        <collection/></resourcetype></prop><status>HTTP/1.1 200 OK</status></propstat></response>";
    let redirects = hostile(|_| {
        b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()
    });
    let bomb = hostile(|_| {
        multistatus("<!DOCTYPE x [<!ENTITY a \"aaaa\">]><multistatus xmlns=\"DAV:\">&a;</multistatus>")
    });
    let elsewhere = hostile(|request| {
        let other = "<response><href>/etc/passwd</href></response>";
        let more = if request.to_ascii_lowercase().contains("depth: 1") { other } else { "" };
        multistatus(&format!("{ROOT}{more}</multistatus>"))
    });
    let endless = hostile(|_| {
        let mut answer =
            b"HTTP/1.1 207 Multi-Status\r\nConnection: close\r\n\r\n<multistatus xmlns=\"DAV:\">".to_vec();
        answer.resize(answer.len() + (1 << 20), b' ');
        answer
    });
    for port in [redirects, bomb, elsewhere, endless] {
        let base = tempfile::tempdir().unwrap();
        let connector = at(base.path(), port);
        let (mut output, _) = crate::support::sink();
        let result = connector.execute(&crate::support::call(), "list", &json!({}), None, &mut output).await;
        failed(result, Verdict::Retry, Code::TargetProtocol, Effect::NotApplied);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_server_says_when_to_come_back() {
    let port = hostile(|_| {
        b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()
    });
    let base = tempfile::tempdir().unwrap();
    let failure = failed(
        probe(&at(base.path(), port)).await,
        Verdict::Retry,
        Code::TargetThrottled,
        Effect::NotApplied,
    );
    assert_eq!(failure.retry_after, Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn wrong_settings_are_refused_with_what_is_right() {
    let refused = |settings: &str, word: &str| {
        let base = tempfile::tempdir().unwrap();
        let message = check(base.path(), &format!("connector = \"file\"\n{settings}")).err().unwrap();
        assert!(message.contains(word), "{word:?} is not in:\n{message}");
    };
    refused("url = \"webdav://\"", "names no host");
    refused("url = \"webdav://2852039166/\"", "always blocked");
    refused("url = \"webdav://u:p@h/\"", "never written here");
    refused("url = \"webdav://h/\"\nusername = \"u\"", "resources.test.password");
    refused("url = \"webdav://h/\"\npassword = { env = \"P\" }", "resources.test.username");
    refused("url = \"webdav://h/\"\nca_file = \"ca.pem\"", "webdavs://");
    refused("url = \"webdavs://h/\"\nknown_hosts = \"k\"", "no meaning for webdavs://");
    refused("url = \"webdavs://h/\"\nca_file = \"missing.pem\"", "ca_file");
    assert!(dav::PASSWORD.contains('"'), "quotes are to be tried too");
}
