//! Object stores: the cases of the contract that need no folders and no files beside the target, and what only a store
//! can do wrong.

use crate::{
    cases::{self, failed},
    memory::{LIMIT_KIB, Peak, patient},
    support::{
        Place, Recorder, call, check, hex, large_payload, payload, s3::Kind, s3_settings, sha256, sink,
    },
};
use passerelle_connectors::{
    Call, Code, DynConnector, Effect, Failure, Gate, Intent, Output, Patience, Seen, Settle, Settled, Verdict,
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

macro_rules! stores {
    ($($module:ident: $($case:ident),+;)+) => {
        stores!(@place nanio, Kind::Nanio; $($module: $($case),+;)+);
        stores!(@place s3s, Kind::S3s; $($module: $($case),+;)+);
    };
    (@place $place:ident, $kind:expr; $($module:ident: $($case:ident),+;)+) => {
        mod $place {
            use super::{Kind, Place, cases};
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let (place, _store) = Place::s3($kind);
                    cases::$module::$case(&place).await;
                }
            )+)+
        }
    };
}

stores! {
    dropping:
        files_of_every_size_arrive_byte_for_byte,
        replacing_is_never_seen_half_done,
        fail_leaves_what_is_there,
        suffix_takes_the_next_free_name,
        concurrent_suffixes_never_meet,
        a_wrong_digest_or_size_leaves_nothing,
        cancelling_leaves_nothing;
    jail:
        bad_paths_are_denied;
    reading:
        fetch_gives_content_and_time,
        fetch_stops_at_the_allowed_size,
        list_pages_through_a_large_folder,
        list_filters_and_descends,
        a_listing_tells_of_nothing_that_is_not_visible;
    changing:
        delete_is_done_when_absent,
        the_gate_is_asked_before_each_effect;
    crash:
        an_interrupted_delete_spares_a_newer_file,
        leftovers_of_the_same_job_are_removed;
    then:
        what_follows_a_fetch_is_only_what_its_own_job_could_have_chosen;
    trigger:
        a_file_is_read_only_as_it_was_seen;
}

fn found(result: Result<(), Failure>) {
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

async fn probe(connector: &Arc<dyn DynConnector>) -> Result<(), Failure> {
    connector.probe(Duration::from_secs(20)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_names_arrive() {
    for kind in [Kind::Nanio, Kind::S3s] {
        let (place, _store) = Place::s3(kind);
        // Both stores keep files of longer names beside each object, so that 255 bytes are too many for them.
        let long = "x".repeat(100);
        for name in [
            "with space.csv",
            " leading and trailing ",
            "accents éàü ß.csv",
            "日本語.csv",
            "it's \"quoted\"&<so>.csv",
            "-rf",
            ".hidden",
            "star*?[a]+.csv",
            // nanio decodes a name twice before it checks the signature.
            if kind == Kind::Nanio { "50% off.csv" } else { "a%2fb%.csv" },
            "$(touch x);`y`=#~.csv",
            "...",
            &long,
        ] {
            let dropped = place.drop(json!({"path": name}), name.as_bytes()).await;
            dropped.unwrap_or_else(|e| panic!("{name:?}: {e}"));
            assert_eq!(place.read(name), name.as_bytes());
            assert_eq!(place.fetch(json!({"path": name})).await.unwrap().1, name.as_bytes());
            let listed = place.ask("list", json!({})).await.unwrap();
            assert_eq!(listed["items"][0]["path"], name, "{kind:?}");
            let to = format!("moved {name}");
            let moved = place.ask("move", json!({"from": name, "to": to})).await;
            assert_eq!(moved.unwrap_or_else(|e| panic!("{name:?}: {e}")), json!({"path": to}));
            assert_eq!(place.ask("delete", json!({"path": to})).await.unwrap(), json!({"deleted": true}));
            assert!(!place.has(name) && !place.has(&to));
        }
        for (name, code) in [("two\nlines", Code::PathInvalid), (&*"é/".repeat(400), Code::PathInvalid)] {
            let name = name.trim_end_matches('/');
            let result = place.drop(json!({"path": name}), b"x").await;
            failed(result, Verdict::Denied, code, Effect::NotApplied);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_are_names_before_a_slash() {
    for kind in [Kind::Nanio, Kind::S3s] {
        let (place, _store) = Place::s3(kind);
        // There is none to make, and none that is missing.
        let outcome = place.drop(json!({"path": "2026/10/a.csv"}), b"content").await.unwrap();
        assert_eq!(outcome.result["path"], "2026/10/a.csv");
        place.drop(json!({"path": "2026/11/b.csv", "create_dirs": true}), b"x").await.unwrap();
        let item = place.ask("stat", json!({"path": "2026/10/a.csv"})).await.unwrap();
        assert_eq!((&item["kind"], &item["size"]), (&json!("file"), &json!(7)));
        let result = place.ask("list", json!({"path": "nowhere"})).await;
        failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
        // s3s-fs fails of itself where it is asked about a folder as if it were a file.
        if kind == Kind::Nanio {
            assert_eq!(place.ask("stat", json!({"path": "2026"})).await.unwrap()["kind"], "directory");
            for (operation, params) in [
                ("delete", json!({"path": "2026"})),
                ("list", json!({"path": "2026/10/a.csv"})),
                ("move", json!({"from": "2026", "to": "2027"})),
            ] {
                let result = place.ask(operation, params).await;
                failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
            }
            let result = place.fetch(json!({"path": "2026/10"})).await;
            failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
            let result = place.drop(json!({"path": "2026/10"}), b"x").await;
            failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
        }
        let result = place.fetch(json!({"path": "2026/12/c.csv"})).await;
        failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_obey_on_conflict() {
    for kind in [Kind::Nanio, Kind::S3s] {
        let (place, _store) = Place::s3(kind);
        let to = "done/a.csv";
        place.drop(json!({"path": "a.csv"}), b"1").await.unwrap();
        assert_eq!(place.ask("move", json!({"from": "a.csv", "to": to})).await.unwrap(), json!({"path": to}));
        assert_eq!(place.read(to), b"1");
        assert!(!place.has("a.csv"));
        place.drop(json!({"path": "a.csv"}), b"2").await.unwrap();
        let result = place.ask("move", json!({"from": "a.csv", "to": to})).await;
        failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
        assert_eq!((place.read("a.csv"), place.read(to)), (b"2".to_vec(), b"1".to_vec()));
        let params = json!({"from": "a.csv", "to": to, "on_conflict": "suffix"});
        assert_eq!(place.ask("move", params).await.unwrap(), json!({"path": "done/a (2).csv"}));
        assert_eq!(place.read("done/a (2).csv"), b"2");
        place.drop(json!({"path": "a.csv"}), b"").await.unwrap();
        let params = json!({"from": "a.csv", "to": to, "on_conflict": "replace"});
        assert_eq!(place.ask("move", params).await.unwrap(), json!({"path": to}));
        assert_eq!(place.read(to), b"");
        let result = place.ask("move", json!({"from": "a.csv", "to": "b.csv"})).await;
        failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
        assert_eq!(place.parts(), [""; 0], "what conditions were tried on is gone");
    }
}

/// Drops `content` by an attempt that is cut off right after its intent was journalled.
async fn cut_off(place: &Place, params: &Value, content: &[u8]) -> (Call, Intent) {
    let gate = Recorder::shut();
    let call = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..call() };
    let result = place.run(&call, "drop", params, Some(payload(content))).await;
    failed(result, Verdict::Retry, Code::Internal, Effect::NotApplied);
    let intent = gate.last();
    assert!(place.has(intent.part.as_ref().unwrap()), "the marker of an upload under an intent stays");
    let next = Call { attempt: 2, prior_intent: Some(intent.clone()), gate: Recorder::open(), ..call };
    (next, intent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_under_an_intent_is_completed_after_a_crash() {
    for with_input in [true, false] {
        let (place, mut store) = Place::s3(Kind::Nanio);
        let params = json!({"path": "in/a.csv"});
        let content = vec![7; 6 << 20];
        let (next, intent) = cut_off(&place, &params, &content).await;
        assert!(!place.has("in/a.csv"), "nothing is seen before");
        assert_eq!(store.uploads(), 1);
        store.restart();
        // Another agent, or this one after its crash: it knows nothing but the intent.
        let fresh = check(&place.base, &s3_settings(&store.endpoint(), "")).unwrap();
        let place = place.with(fresh);
        let gate = Recorder::open();
        let next = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..next };
        let input = with_input.then(|| payload(&content));
        let outcome = place.run(&next, "drop", &params, input).await.unwrap();
        assert_eq!((&outcome.result["path"], outcome.synced), (&json!("in/a.csv"), Some(true)));
        assert_eq!(gate.last(), intent, "the effect asks the gate again");
        assert_eq!((place.read("in/a.csv"), place.parts(), store.uploads()), (content, vec![], 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_became_the_target_is_known_by_its_name() {
    let (place, store) = Place::s3(Kind::Nanio);
    let params = json!({"path": "a.csv"});
    let (next, intent) = cut_off(&place, &params, b"content").await;
    // Completed, but neither reported nor tidied up.
    let marker = place.read(intent.part.as_ref().unwrap());
    place.run(&next, "drop", &params, None).await.unwrap();
    place.write(intent.part.as_ref().unwrap(), &marker);
    let gate = Recorder::open();
    let again = Call { attempt: 3, gate: Arc::clone(&gate) as Arc<dyn Gate>, ..next.clone() };
    let outcome = place.run(&again, "drop", &params, Some(payload(b"content"))).await.unwrap();
    assert_eq!((&outcome.result["path"], outcome.synced), (&json!("a.csv"), Some(true)));
    assert_eq!((gate.count(), place.parts(), store.uploads()), (0, vec![], 0), "nothing is done again");
    // Taken by a consumer since: an upload may also have been given up by the store's own rules. Nobody can tell.
    fs::remove_file(place.root.join("a.csv")).unwrap();
    let result = place.run(&again, "drop", &params, Some(payload(b"content"))).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::Unknown);
    assert!(!place.has("a.csv"), "what may have arrived is not delivered again");
    // Replaced by another job's file of other content.
    place.drop(params.clone(), b"another").await.unwrap();
    let result = place.run(&again, "drop", &params, Some(payload(b"content"))).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::Unknown);
    assert_eq!(place.read("a.csv"), b"another");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_of_dead_attempts_are_given_up() {
    let (place, store) = Place::s3(Kind::Nanio);
    let params = json!({"path": "a.csv"});
    let (next, intent) = cut_off(&place, &params, b"content").await;
    let connector = Arc::clone(&place.connector);
    assert_eq!(connector.leftover("drop", &params, next.job, 1), intent.part);
    let part = intent.part.unwrap();
    let timeout = Duration::from_secs(20);
    assert!(connector.clean_up(&part, timeout).await.unwrap());
    assert!(!connector.clean_up(&part, timeout).await.unwrap());
    assert_eq!((store.uploads(), place.parts()), (0, vec![]));
    // The next attempt of a job does so too.
    let (next, _) = cut_off(&place, &params, b"content").await;
    assert_eq!(store.uploads(), 1);
    let next = Call { prior_intent: None, ..next };
    place.run(&next, "drop", &params, Some(payload(b"newer"))).await.unwrap();
    assert_eq!((place.read("a.csv"), store.uploads(), place.parts()), (b"newer".to_vec(), 0, vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_taken_meanwhile_is_left_to_its_owner() {
    for kind in [Kind::Nanio, Kind::S3s] {
        let (place, store) = Place::s3(kind);
        let params = json!({"path": "a.csv", "on_conflict": "suffix"});
        let gate = Recorder::shut();
        let call = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..call() };
        place.run(&call, "drop", &params, Some(payload(b"content"))).await.unwrap_err();
        place.write("a.csv", b"someone else's");
        if kind == Kind::Nanio {
            let next = Call { attempt: 2, prior_intent: Some(gate.last()), gate: Recorder::open(), ..call };
            let result = place.run(&next, "drop", &params, None).await;
            failed(result, Verdict::Retry, Code::TargetConflict, Effect::NotApplied);
            assert_eq!((store.uploads(), place.parts()), (0, vec![]));
        }
        // The attempt after it.
        let outcome = place.drop(params, b"content").await.unwrap();
        assert_eq!(outcome.result["path"], "a (2).csv");
        assert_eq!(
            (place.read("a.csv"), place.read("a (2).csv")),
            (b"someone else's".to_vec(), b"content".to_vec())
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_store_that_obeys_conditions_is_said_to_take_a_name_in_one_step() {
    for (kind, said) in [(Kind::Nanio, Some(json!(false))), (Kind::S3s, None)] {
        let (place, _store) = Place::s3(kind);
        for on_conflict in ["fail", "suffix"] {
            let params = json!({"path": format!("{on_conflict}.csv"), "on_conflict": on_conflict});
            let outcome = place.drop(params, b"1").await.unwrap();
            assert_eq!(outcome.result.get("atomic"), said.as_ref(), "{kind:?} {on_conflict}");
        }
        let outcome = place.drop(json!({"path": "replaced.csv"}), b"1").await.unwrap();
        assert_eq!(outcome.result.get("atomic"), None);
        assert_eq!(place.parts(), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_cut_between_copy_and_delete_is_completed() {
    let (place, _store) = Place::s3(Kind::S3s);
    let params = json!({"from": "a.csv", "to": "b.csv"});
    place.drop(json!({"path": "a.csv"}), b"content").await.unwrap();
    let gate = Recorder::shut();
    let call = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..call() };
    place.run(&call, "move", &params, None).await.unwrap_err();
    let before = fs::metadata(place.root.join("a.csv")).unwrap().modified().unwrap();
    let next = Call { attempt: 2, prior_intent: Some(gate.last()), gate: Recorder::open(), ..call };
    place.run(&next, "move", &params, None).await.unwrap();
    // As if the delete had not happened.
    place.write("a.csv", b"content");
    let file = fs::File::options().write(true).open(place.root.join("a.csv")).unwrap();
    file.set_modified(before).unwrap();
    let outcome = place.run(&next, "move", &params, None).await.unwrap();
    assert_eq!(outcome.result, json!({"path": "b.csv"}));
    assert_eq!(place.read("b.csv"), b"content");
    // A newer file at the old place stays, and the move stays done.
    place.write("a.csv", b"newer");
    assert_eq!(place.run(&next, "move", &params, None).await.unwrap().result, json!({"path": "b.csv"}));
    assert_eq!(place.read("a.csv"), b"newer");
    // At neither place.
    fs::remove_file(place.root.join("a.csv")).unwrap();
    fs::remove_file(place.root.join("b.csv")).unwrap();
    let result = place.run(&next, "move", &params, None).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::Unknown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_keys_and_buckets_are_told_apart() {
    for kind in [Kind::Nanio, Kind::S3s] {
        let (place, store) = Place::s3(kind);
        found(probe(&place.connector).await);
        let with = |settings: &str| check(&place.base, settings).unwrap();
        let good = s3_settings(&store.endpoint(), "");
        fs::write(place.base.join("wrong"), "hunter2hunter2hunter2").unwrap();
        for key in ["id", "key"] {
            let settings = good.replace(&format!("file = \"{key}\""), "file = \"wrong\"");
            let failure = failed(
                probe(&with(&settings)).await,
                Verdict::Permanent,
                Code::TargetAuth,
                Effect::NotApplied,
            );
            assert!(!failure.to_string().contains("hunter2"), "{kind:?} {key}: {failure}");
        }
        let settings = good.replace("s3://files/", "s3://another/");
        let failure = failed(
            probe(&with(&settings)).await,
            Verdict::Permanent,
            Code::TargetNotFound,
            Effect::NotApplied,
        );
        assert!(failure.message.contains("bucket"), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_killed_while_it_is_written_to_keeps_nothing_to_be_seen() {
    let (place, mut store) = Place::s3(Kind::Nanio);
    let call = call();
    let params = json!({"path": "a.csv"});
    let (input, _) = large_payload(64 << 20);
    let dropping = place.run(&call, "drop", &params, Some(input));
    let killing = async {
        while call.progress.done() < 12 << 20 {
            tokio::task::yield_now().await;
        }
        tokio::task::block_in_place(|| store.stop());
    };
    let (result, ()) = tokio::join!(dropping, killing);
    failed(result, Verdict::Retry, Code::TargetUnreachable, Effect::NotApplied);
    assert!(!place.has("a.csv"));
    store.restart();
    let (input, digest) = large_payload(64 << 20);
    let next = Call { attempt: 2, ..call };
    let outcome = place.run(&next, "drop", &params, Some(input)).await.unwrap();
    assert_eq!(outcome.result["sha256"], hex(&digest));
    assert_eq!((store.uploads(), place.parts()), (0, vec![]), "the dead attempt's upload is given up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_store_is_a_timeout() {
    let (place, store) = Place::s3(Kind::Nanio);
    found(probe(&place.connector).await);
    store.freeze();
    let call = Call { timeout: Duration::from_secs(1), ..call() };
    let result = place.run(&call, "stat", &json!({"path": "a.csv"}), None).await;
    store.thaw();
    failed(result, Verdict::Retry, Code::TargetTimeout, Effect::NotApplied);
}

/// A store that answers each request on each connection by what it asks.
fn hostile(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> u16 {
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

fn says(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

const EMPTY: &str = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";

fn listing(items: &str) -> Vec<u8> {
    let body = format!("<ListBucketResult>{items}<IsTruncated>false</IsTruncated></ListBucketResult>");
    says("200 OK", "", &body)
}

fn at(base: &Path, port: u16) -> Arc<dyn DynConnector> {
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

/// A relay that lets everything through, but for what completes an upload: the first time that is lost, on its way there
/// or on its way back.
fn relay(to: u16, answered: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let lost = Arc::new(AtomicBool::new(false));
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let lost = Arc::clone(&lost);
            thread::spawn(move || {
                let head = head_of(&mut client);
                if head.is_empty() {
                    return;
                }
                let completes = head.starts_with("POST") && head.contains("uploadId=");
                let loses = completes && !lost.swap(true, Ordering::SeqCst);
                if loses && !answered {
                    return;
                }
                let mut store = TcpStream::connect(("127.0.0.1", to)).unwrap();
                // One request per connection, so that each has a head to look at.
                let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
                store.write_all(head.as_bytes()).unwrap();
                let (mut from, mut into) = (client.try_clone().unwrap(), store.try_clone().unwrap());
                let sending = thread::spawn(move || io::copy(&mut from, &mut into));
                if loses {
                    // Done by the store, heard by nobody.
                    drop(io::copy(&mut store, &mut io::sink()));
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
        for answered in [true, false] {
            let (place, store) = Place::s3(kind);
            // s3s-fs does not list what an upload is made of.
            if kind == Kind::S3s && !answered {
                continue;
            }
            let port = relay(store.port, answered);
            let through = check(&place.base, &s3_settings(&format!("http://127.0.0.1:{port}"), "")).unwrap();
            let place = place.with(through);
            let outcome = place.drop(json!({"path": "a.csv"}), b"content").await;
            let outcome = outcome.unwrap_or_else(|failure| panic!("{kind:?} {answered}: {failure}"));
            assert_eq!((&outcome.result["path"], outcome.synced), (&json!("a.csv"), Some(true)));
            assert_eq!(
                (place.read("a.csv"), place.parts(), store.uploads()),
                (b"content".to_vec(), vec![], 0)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_counts_only_with_its_ca() {
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (place, store) = Place::s3(Kind::Nanio);
    let port = in_tls(store.port, &pair);
    let settings = |more: &str| s3_settings(&format!("https://localhost:{port}"), more);
    let failure = failed(
        probe(&check(&place.base, &settings("")).unwrap()).await,
        Verdict::Retry,
        Code::TargetUnreachable,
        Effect::NotApplied,
    );
    assert!(failure.message.contains("ca_file"), "{failure}");
    fs::write(place.base.join("ca.pem"), pair.cert.pem()).unwrap();
    let trusted = check(&place.base, &settings("ca_file = \"ca.pem\"")).unwrap();
    let place = place.with(trusted);
    place.drop(json!({"path": "a.csv"}), b"x").await.unwrap();
    assert_eq!(place.read("a.csv"), b"x");
}

/// TLS in front of a store.
fn in_tls(to: u16, pair: &rcgen::CertifiedKey<rcgen::KeyPair>) -> u16 {
    let key = rustls::pki_types::PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![pair.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut store = tokio::net::TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                if let Ok(mut client) = acceptor.accept(client).await {
                    drop(tokio::io::copy_bidirectional(&mut client, &mut store).await);
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn wrong_settings_are_refused_with_what_is_right() {
    let keys = "access_key_id = { env = \"I\" }\nsecret_access_key = { env = \"S\" }";
    let refused = |settings: &str, word: &str| {
        let base = tempfile::tempdir().unwrap();
        let message = check(base.path(), &format!("connector = \"file\"\n{settings}")).err().unwrap();
        assert!(message.contains(word), "{word:?} is not in:\n{message}");
    };
    let endpoint = "endpoint = \"https://s3.intra\"";
    refused(&format!("url = \"s3://files\"\n{keys}"), "resources.test.region");
    refused(&format!("url = \"s3://files\"\n{endpoint}"), "resources.test.access_key_id");
    refused(&format!("url = \"s3://files:80/x\"\n{endpoint}\n{keys}"), "s3://bucket/prefix");
    refused(&format!("url = \"s3://k:s@files/x\"\n{endpoint}\n{keys}"), "access_key_id");
    refused(&format!("url = \"s3://ab/x\"\n{endpoint}\n{keys}"), "3 to 63");
    refused(&format!("url = \"s3://files/a//b\"\n{endpoint}\n{keys}"), "prefix");
    refused(&format!("url = \"s3://files\"\nendpoint = \"ftp://x\"\n{keys}"), "resources.test.endpoint");
    refused(
        &format!("url = \"s3://files\"\nendpoint = \"https://u:p@x\"\n{keys}"),
        "resources.test.endpoint",
    );
    for host in ["169.254.169.254", "2852039166", "[fd00:ec2::254]", "metadata.google.internal"] {
        refused(&format!("url = \"s3://files\"\nendpoint = \"http://{host}\"\n{keys}"), "always blocked");
    }
    refused(
        &format!("url = \"s3://files\"\n{endpoint}\nregion = \"eu west\"\n{keys}"),
        "resources.test.region",
    );
    refused(&format!("url = \"s3://files\"\n{endpoint}\naddressing = \"dns\"\n{keys}"), "\"virtual\"");
    refused(&format!("url = \"s3://files\"\nendpoint = \"http://x\"\nca_file = \"c\"\n{keys}"), "https://");
    refused(&format!("url = \"s3://files\"\n{endpoint}\nusername = \"u\"\n{keys}"), "use access_key_id");
    refused(
        &format!("url = \"s3://files\"\n{endpoint}\nknown_hosts = \"k\"\n{keys}"),
        "no meaning for s3://",
    );
    refused("url = \"file:///srv\"\nregion = \"x\"", "s3:// only");
    refused(
        &format!(
            "url = \"s3://files\"\n{endpoint}\naccess_key_id = \"literal\"\nsecret_access_key = {{ env = \"S\" }}"
        ),
        "never written here",
    );
}

const CHILD: &str = "PASSERELLE_TEST_S3_CHILD";

/// Runs one test of this program in a process of its own.
fn in_a_process(test: &str, set: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    let output = command.envs(set.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn no_key_comes_from_anywhere_but_the_settings() {
    let (asked, trapped) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let recording = |heads: &Arc<Mutex<Vec<String>>>| {
        let heads = Arc::clone(heads);
        hostile(move |head| {
            heads.lock().unwrap().push(head.to_owned());
            says("200 OK", "", EMPTY)
        })
    };
    let (port, trap) = (recording(&asked).to_string(), format!("http://127.0.0.1:{}/", recording(&trapped)));
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".aws")).unwrap();
    let credentials = "[default]\naws_access_key_id = FROMFILE\naws_secret_access_key = s\n";
    fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
    in_a_process(
        "s3::a_child_that_asks",
        &[
            ("PASSERELLE_TEST_S3_PORT", port.as_str()),
            ("HOME", home.path().to_str().unwrap()),
            ("AWS_ACCESS_KEY_ID", "FROMENVIRONMENT"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_SESSION_TOKEN", "t"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", trap.as_str()),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", trap.as_str()),
            ("AWS_ENDPOINT_URL", trap.as_str()),
            ("http_proxy", trap.as_str()),
            ("HTTP_PROXY", trap.as_str()),
            ("ALL_PROXY", trap.as_str()),
        ],
    );
    let asked = asked.lock().unwrap();
    assert!(!asked.is_empty(), "the child asked nothing");
    assert!(asked.iter().all(|head| head.contains("Credential=id/")), "{asked:#?}");
    assert!(asked.iter().all(|head| !head.to_lowercase().contains("x-amz-security-token")), "{asked:#?}");
    assert_eq!(*trapped.lock().unwrap(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_asks() {
    let (Some(_), Ok(port)) = (std::env::var_os(CHILD), std::env::var("PASSERELLE_TEST_S3_PORT")) else {
        return;
    };
    let base = tempfile::tempdir().unwrap();
    found(probe(&at(base.path(), port.parse().unwrap())).await);
}

/// Runs in a process of its own: the peak is the process's.
#[test]
fn a_large_file_takes_no_memory() {
    let text = in_a_process("s3::large_files", &[]);
    println!("{text}");
    assert!(text.contains("S3s fetch"), "the child did not measure: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_files() {
    // Alone, this test says nothing: its process may have run others.
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    const SIZE: u64 = 300_000_000;
    let peak = Peak::watch();
    for kind in [Kind::Nanio, Kind::S3s] {
        let (place, _store) = Place::s3(kind);
        let (input, digest) = large_payload(SIZE);
        let since = Instant::now();
        let outcome =
            place.run(&patient(), "drop", &json!({"path": "large.bin"}), Some(input)).await.unwrap();
        let rate = |since: Instant| SIZE as f64 / since.elapsed().as_secs_f64() / 1e6;
        println!("{kind:?} drop: {:.0} MB/s, at most {} KiB", rate(since), peak.kib());
        assert_eq!(outcome.result["sha256"], hex(&digest));
        // More than is copied by one request; nanio knows no copies in pieces, and loses nothing for it.
        let moved = place.ask("move", json!({"from": "large.bin", "to": "moved.bin"})).await;
        let path = match kind {
            Kind::Nanio => {
                let failure = moved.unwrap_err();
                assert!(!place.has("moved.bin") && place.has("large.bin"), "{failure}");
                "large.bin"
            }
            Kind::S3s => {
                moved.unwrap();
                assert!(place.has("moved.bin") && !place.has("large.bin"));
                "moved.bin"
            }
        };
        let since = Instant::now();
        let mut output = Output::new(Box::new(tokio::io::sink()), u64::MAX);
        place
            .connector
            .execute(&patient(), "fetch", &json!({"path": path}), None, &mut output)
            .await
            .unwrap();
        println!("{kind:?} fetch: {:.0} MB/s, at most {} KiB", rate(since), peak.kib());
        assert_eq!(output.produced().unwrap().sha256, digest);
        assert!(peak.kib() < LIMIT_KIB, "{} KiB", peak.kib());
    }
}

/// What a store tells of an object.
async fn seen(place: &Place, path: &str) -> Seen {
    place.connector.triggers().unwrap().look(path, &patience()).await.unwrap().unwrap()
}

fn patience() -> Patience {
    Patience { timeout: Duration::from_secs(30), cancel: CancellationToken::new() }
}

async fn settle(place: &Place, file: &Seen, content: &[u8], move_to: Option<&str>) -> Settled {
    let (sha256, move_to) = (Some(sha256(content)), move_to.map(str::to_owned));
    let settle = Settle { id: Uuid::from_u128(7), file: file.clone(), sha256, move_to };
    place.connector.triggers().unwrap().settle(&settle, &patience()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_trigger_took_is_deleted_or_moved_unless_it_was_replaced() {
    for kind in [Kind::Nanio, Kind::S3s] {
        let (place, _store) = Place::s3(kind);
        let dropped = async |content: &[u8]| {
            place.drop(json!({"path": "in/a.csv"}), content).await.unwrap();
            seen(&place, "in/a.csv").await
        };
        let file = dropped(b"one").await;
        assert_eq!(settle(&place, &file, b"one", None).await, Settled::Deleted, "{kind:?}");
        assert!(!place.has("in/a.csv"));
        assert_eq!(settle(&place, &file, b"one", None).await, Settled::Gone);
        // A newer one of the same size stays, whatever its time.
        let old = dropped(b"old").await;
        dropped(b"new").await;
        for to in [None, Some("done/a.csv")] {
            assert_eq!(settle(&place, &old, b"old", to).await, Settled::Replaced, "{kind:?}");
        }
        assert_eq!(place.read("in/a.csv"), b"new");
        // Folders need not be there, and nothing is replaced.
        for (content, to) in [(b"two", "done/a.csv"), (b"tre", "done/a (2).csv")] {
            let file = dropped(content).await;
            assert_eq!(
                settle(&place, &file, content, Some("done/a.csv")).await,
                Settled::Moved(to.to_owned())
            );
            assert_eq!((place.read(to), place.has("in/a.csv")), (content.to_vec(), false));
            // A try that was cut off after the move: the copy says what it was, where the store keeps what is said of it.
            let again = settle(&place, &file, content, Some("done/a.csv")).await;
            let known = matches!(again, Settled::Moved(_)) && kind == Kind::S3s;
            assert!(known || again == Settled::Gone, "{kind:?}: {again:?}");
        }
        assert_eq!(place.parts(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_fetched_is_deleted_or_moved() {
    for kind in [Kind::Nanio, Kind::S3s] {
        let (place, _store) = Place::s3(kind);
        for (then, done) in [(json!("delete"), "deleted"), (json!({"move_to": "done/b.csv"}), "moved")] {
            place.drop(json!({"path": "a.csv"}), b"content").await.unwrap();
            let params = json!({"path": "a.csv", "then": then});
            let fetched = cases::then::fetch(&place, &call(), &params).await.unwrap();
            assert_eq!((&*fetched.then, fetched.content), (done, b"content".to_vec()), "{kind:?}");
            assert!(!place.has("a.csv"));
        }
        assert_eq!(place.read("done/b.csv"), b"content");
        // The place that it would move to is taken.
        place.drop(json!({"path": "a.csv"}), b"other").await.unwrap();
        let params = json!({"path": "a.csv", "then": {"move_to": "done/b.csv"}});
        let result = cases::then::fetch(&place, &call(), &params).await;
        failed(result.map(drop), Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
        assert_eq!((place.read("a.csv"), place.read("done/b.csv")), (b"other".to_vec(), b"content".to_vec()));
    }
}
