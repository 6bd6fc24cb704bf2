//! Answers of stores that lie, lead elsewhere, refuse or get lost.

use crate::{
    cases::then::fetch,
    support::{Place, Recorder, call, check, s3::Kind, s3_settings, sink},
};
use passerelle_connectors::{Call, Code, DynConnector, Effect, Failure, Gate, Verdict};
use serde_json::{Value, json};
use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// A store that answers each request on each connection by what it asks.
pub(super) fn hostile(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> u16 {
    let (listener, answer) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(answer));
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            thread::spawn(move || {
                let head = head_of(&mut stream);
                drop(stream.write_all(&answer(&head)));
                // Closed with something unread, the connection would be reset, and the answer lost with it.
                drop(stream.shutdown(Shutdown::Write));
                drop(io::copy(&mut stream, &mut io::sink()));
            });
        }
    });
    port
}

fn head_of(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

pub(super) fn says(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

pub(super) const EMPTY: &str = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";

fn listing(items: &str) -> Vec<u8> {
    let body = format!("<ListBucketResult>{items}<IsTruncated>false</IsTruncated></ListBucketResult>");
    says("200 OK", "", &body)
}

pub(super) fn at(base: &Path, port: u16) -> Arc<dyn DynConnector> {
    let host = format!("http://127.0.0.1:{port}");
    fs::write(base.join("id"), "id").unwrap();
    fs::write(base.join("key"), "key").unwrap();
    check(base, &s3_settings(&host, "")).unwrap()
}

async fn asked(port: u16, operation: &str, params: Value) -> Failure {
    let base = tempfile::tempdir().unwrap();
    let connector = at(base.path(), port);
    let (mut output, _) = sink();
    connector.execute(&call(), operation, &params, None, &mut output).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_lie_are_refused() {
    let item = |key: &str| {
        format!(
            "<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
        )
    };
    let elsewhere = item("other/a.csv");
    let mut endless = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n<ListBucketResult>".to_vec();
    endless.resize(9 << 20, b' ');
    let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaa\">]><ListBucketResult>&a;</ListBucketResult>";
    let same = "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken></ListBucketResult>";
    let answers: Vec<Vec<u8>> = vec![
        says("200 OK", "", "<html></html>"),
        says("200 OK", "", "not XML at all"),
        says("200 OK", "", bomb),
        endless,
        listing(&elsewhere),
        says("200 OK", "", same),
        says("200 OK", "", "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"),
    ];
    for answer in answers {
        let said = String::from_utf8_lossy(&answer[..answer.len().min(300)]).into_owned();
        // The greeting is answered well, the list itself is not.
        let port =
            hostile(
                move |head| {
                    if head.contains("delimiter") { answer.clone() } else { says("200 OK", "", EMPTY) }
                },
            );
        let failure = asked(port, "list", json!({})).await;
        assert_eq!(
            (failure.verdict, failure.code),
            (Verdict::Retry, Code::TargetProtocol),
            "{said}: {failure}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirection_is_never_followed_and_names_the_region() {
    let body =
        "<Error><Code>PermanentRedirect</Code><Message>elsewhere</Message><Region>eu-west-3</Region></Error>";
    for headers in ["Location: http://169.254.169.254/\r\n", "Location: http://127.0.0.1:1/\r\n"] {
        let port = hostile(move |_| says("301 Moved Permanently", headers, body));
        let failure = asked(port, "list", json!({})).await;
        assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::TargetRefused), "{failure}");
        assert!(failure.message.contains("region") && !failure.message.contains("127.0.0.1"), "{failure}");
        assert!(failure.detail.as_deref().is_some_and(|detail| detail.contains("eu-west-3")), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_store_refuses_is_said_in_words() {
    let error = |code: &str| format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
    for (status, code, verdict, expected, word) in [
        ("403 Forbidden", "InvalidAccessKeyId", Verdict::Permanent, Code::TargetAuth, "access key"),
        ("403 Forbidden", "SignatureDoesNotMatch", Verdict::Permanent, Code::TargetAuth, "access key"),
        ("403 Forbidden", "RequestTimeTooSkewed", Verdict::Retry, Code::TargetAuth, "clock"),
        ("403 Forbidden", "AccessDenied", Verdict::Permanent, Code::TargetAuth, "list"),
        ("404 Not Found", "NoSuchBucket", Verdict::Permanent, Code::TargetNotFound, "bucket"),
        (
            "400 Bad Request",
            "AuthorizationHeaderMalformed",
            Verdict::Permanent,
            Code::TargetRefused,
            "region",
        ),
        ("503 Slow Down", "SlowDown", Verdict::Retry, Code::TargetThrottled, "later"),
        ("500 Internal Server Error", "InternalError", Verdict::Retry, Code::TargetRefused, "refused"),
    ] {
        let body = error(code);
        let port = hostile(move |_| says(status, "Retry-After: 7\r\n", &body));
        let failure = asked(port, "list", json!({})).await;
        assert_eq!((failure.verdict, failure.code), (verdict, expected), "{code}: {failure}");
        assert!(failure.message.contains(word), "{code}: {failure}");
        let after = (expected == Code::TargetThrottled).then(|| Duration::from_secs(7));
        assert_eq!(failure.retry_after, after, "{code}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_not_what_was_looked_at_is_not_delivered() {
    const HEAD: &str = "ETag: \"1\"\r\nLast-Modified: Mon, 26 Oct 2026 07:33:20 GMT\r\n";
    let head = |size: u64| {
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{HEAD}Content-Length: {size}\r\n\r\n").into_bytes()
    };
    let answers: [(Vec<u8>, Code); 4] = [
        (says("200 OK", HEAD, "much longer than told"), Code::TargetConflict),
        (says("200 OK", HEAD, "x"), Code::TargetConflict),
        (says("412 Precondition Failed", "", ""), Code::TargetConflict),
        (
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{HEAD}\r\n{}", "x".repeat(100)).into_bytes(),
            Code::TargetProtocol,
        ),
    ];
    for (answer, code) in answers {
        let port = hostile(move |request| match request {
            list if list.contains("list-type") => says("200 OK", "", EMPTY),
            looked if looked.starts_with("HEAD") => head(7),
            _ => answer.clone(),
        });
        let failure = asked(port, "fetch", json!({"path": "a.csv"})).await;
        assert_eq!((failure.verdict, failure.code), (Verdict::Retry, code), "{failure}");
    }
}

/// What becomes of a request on its way through a relay.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// The store never hears of it.
    Lost,
    /// Done by the store, heard by nobody.
    Unheard,
    /// Done by the store, and answered with this status.
    DoneAndSaid(&'static str),
    /// Kept from the store, and answered with this status; each time.
    OnlySaid(&'static str),
}

fn completes(head: &str) -> bool {
    // Not the look whether the store keeps conditions.
    head.starts_with("POST") && head.contains("uploadId=") && !head.contains(".passerelle-check")
}

fn deletes(head: &str) -> bool {
    head.starts_with("DELETE") && !head.contains("uploadId=")
}

/// A relay that lets everything through, but for the first of these requests.
fn relay(to: u16, is_it: fn(&str) -> bool, way: Way) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let came = Arc::new(AtomicBool::new(false));
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let came = Arc::clone(&came);
            thread::spawn(move || {
                let head = head_of(&mut client);
                if head.is_empty() {
                    return;
                }
                let first = is_it(&head) && !came.swap(true, Ordering::SeqCst);
                match way {
                    Way::Lost if first => return,
                    Way::OnlySaid(status) if is_it(&head) => {
                        drop(client.write_all(&says(status, "", "")));
                        drop(client.shutdown(Shutdown::Write));
                        drop(io::copy(&mut client, &mut io::sink()));
                        return;
                    }
                    Way::Lost | Way::Unheard | Way::DoneAndSaid(_) | Way::OnlySaid(_) => {}
                }
                let mut store = TcpStream::connect(("127.0.0.1", to)).unwrap();
                // One request per connection, so that each has a head to look at.
                let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
                store.write_all(head.as_bytes()).unwrap();
                let (mut from, mut into) = (client.try_clone().unwrap(), store.try_clone().unwrap());
                let sending = thread::spawn(move || io::copy(&mut from, &mut into));
                if first {
                    drop(io::copy(&mut store, &mut io::sink()));
                    if let Way::DoneAndSaid(status) = way {
                        drop(client.write_all(&says(status, "", "")));
                    }
                } else {
                    drop(io::copy(&mut store, &mut client));
                }
                drop(client.shutdown(Shutdown::Both));
                drop(sending.join());
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_final_request_that_is_lost_is_looked_into_at_once() {
    for kind in [Kind::Nanio, Kind::S3s] {
        for way in [Way::Unheard, Way::Lost] {
            let (place, store) = Place::s3(kind);
            // s3s-fs does not list what an upload is made of.
            if kind == Kind::S3s && matches!(way, Way::Lost) {
                continue;
            }
            let place = through(place, relay(store.port, completes, way));
            let outcome = place.drop(json!({"path": "a.csv"}), b"content").await;
            let outcome = outcome.unwrap_or_else(|failure| panic!("{kind:?} {way:?}: {failure}"));
            assert_eq!((&outcome.result["path"], outcome.synced), (&json!("a.csv"), Some(true)));
            assert_eq!(
                (place.read("a.csv"), place.parts(), store.uploads()),
                (b"content".to_vec(), vec![], 0)
            );
        }
    }
}

/// The same place, reached through another port.
fn through(place: Place, port: u16) -> Place {
    let connector = check(&place.base, &s3_settings(&format!("http://127.0.0.1:{port}"), "")).unwrap();
    place.with(connector)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_and_refused_is_told_as_done() {
    for kind in [Kind::Nanio, Kind::S3s] {
        for status in ["412 Precondition Failed", "409 Conflict", "503 Slow Down", "403 Forbidden"] {
            for on_conflict in ["replace", "fail", "suffix"] {
                let (place, store) = Place::s3(kind);
                let place = through(place, relay(store.port, completes, Way::DoneAndSaid(status)));
                let params = json!({"path": "a.csv", "on_conflict": on_conflict});
                let outcome = place.drop(params, b"content").await;
                let outcome = outcome.unwrap_or_else(|e| panic!("{kind:?} {status} {on_conflict}: {e}"));
                assert_eq!(outcome.result["path"], "a.csv", "{kind:?} {status} {on_conflict}");
                assert_eq!((place.read("a.csv"), place.has("a (2).csv")), (b"content".to_vec(), false));
            }
        }
        for status in ["500 Internal Server Error", "503 Slow Down", "403 Forbidden"] {
            let (place, store) = Place::s3(kind);
            place.drop(json!({"path": "a.csv"}), b"content").await.unwrap();
            let place = through(place, relay(store.port, deletes, Way::DoneAndSaid(status)));
            let fetched = fetch(&place, &call(), &json!({"path": "a.csv", "then": "delete"})).await;
            let fetched = fetched.unwrap_or_else(|e| panic!("{kind:?} {status}: {e}"));
            assert_eq!((fetched.then.as_str(), fetched.content.as_slice()), ("deleted", &b"content"[..]));
            assert!(!place.has("a.csv"), "{kind:?} {status}");
        }
    }
}

/// A key that may write and not delete: the copy stands, so that nobody may say that nothing was done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_whose_deletion_is_refused_is_not_told_as_nothing() {
    let (place, store) = Place::s3(Kind::Nanio);
    place.drop(json!({"path": "a.csv"}), b"content").await.unwrap();
    let place = through(place, relay(store.port, deletes, Way::OnlySaid("403 Forbidden")));
    let gate = Recorder::open();
    let first = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..call() };
    let params = json!({"from": "a.csv", "to": "b.csv"});
    let failure = place.run(&first, "move", &params, None).await.unwrap_err();
    assert_eq!(failure.effect, Effect::Unknown, "{failure}");
    let next = Call { attempt: 2, prior_intent: Some(gate.last()), job: first.job, ..call() };
    let failure = place.run(&next, "move", &params, None).await.unwrap_err();
    assert_eq!(failure.effect, Effect::Unknown, "{failure}");
    assert_eq!((place.read("a.csv"), place.read("b.csv")), (b"content".to_vec(), b"content".to_vec()));
}
