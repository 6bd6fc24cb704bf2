//! Object stores: the cases of the contract that need no folders and no files beside the target, and what only a store
//! can do wrong.

mod answers;
mod crashes;
mod following;
mod settings;

use crate::{
    cases::{self, failed},
    memory::{LIMIT_KIB, Peak, patient},
    support::{Place, call, check, hex, large_payload, s3::Kind, s3_settings},
};
use passerelle_connectors::{Call, Code, DynConnector, Effect, Failure, Output, Verdict};
use serde_json::json;
use std::{
    fs,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

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
        whoever_loses_a_name_has_nothing_left_there,
        a_wrong_digest_or_size_leaves_nothing,
        cancelling_leaves_nothing;
    jail:
        bad_paths_are_denied;
    reading:
        fetch_gives_content_and_time,
        fetch_stops_at_the_allowed_size,
        list_pages_through_a_large_folder,
        long_names_make_shorter_pages,
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
        let params = json!({"from": to, "to": to, "on_conflict": "replace"});
        assert_eq!(place.ask("move", params).await.unwrap(), json!({"path": to}));
        assert!(place.has(to), "a file moved onto itself stays");
        let result = place.ask("move", json!({"from": "a.csv", "to": "b.csv"})).await;
        failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
        assert_eq!(place.parts(), [""; 0], "what conditions were tried on is gone");
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
async fn a_folder_is_told_from_a_file_by_every_store() {
    for kind in [Kind::Nanio, Kind::S3s] {
        let (place, _store) = Place::s3(kind);
        place.drop(json!({"path": "folder/a.csv"}), b"1").await.unwrap();
        let item = place.ask("stat", json!({"path": "folder"})).await.unwrap();
        assert_eq!(item["kind"], "directory", "{kind:?}");
        for operation in ["fetch", "delete"] {
            let result = place.ask(operation, json!({"path": "folder"})).await;
            failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
        }
        let result = place.drop(json!({"path": "folder", "on_conflict": "fail"}), b"1").await;
        failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
        assert_eq!((place.read("folder/a.csv"), place.parts()), (b"1".to_vec(), vec![]), "{kind:?}");
    }
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
