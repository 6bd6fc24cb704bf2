//! `drop`, as long as nothing crashes.

use super::failed;
use crate::support::{Place, Recorder, call, hex, large_payload, payload, sha256, stalling_payload};
use passerelle_connectors::{Call, Code, Effect, Failure, Gate, Input, Intent, Verdict};
use serde_json::{Value, json};
use std::{
    io::Cursor,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

pub async fn files_of_every_size_arrive_byte_for_byte(place: &Place) {
    // Around the inline limit, around the slices of each kind of place, and a large one.
    let sizes = [0, 1, 256 * KIB, 256 * KIB + 1, MIB - 1, MIB, MIB + 1, 4 * MIB, 4 * MIB + 1, 10 * MIB];
    for size in sizes {
        let (input, digest) = large_payload(size);
        let call = call();
        let params = json!({"path": "export.bin"});
        let mut outcome = place.run(&call, "drop", &params, Some(input)).await.unwrap();
        // Which servers replace in one step is not known to all backends.
        outcome.result.as_object_mut().unwrap().remove("atomic");
        assert_eq!(outcome.result, json!({"path": "export.bin", "size": size, "sha256": hex(&digest)}));
        assert_eq!(outcome.synced, Some(place.abilities.syncs), "{size} bytes");
        assert_eq!((call.progress.done(), call.progress.total()), (size, size));
        let arrived = place.read("export.bin");
        assert_eq!((arrived.len() as u64, sha256(&arrived)), (size, digest), "{size} bytes");
        let (result, fetched, produced) = place.fetch(json!({"path": "export.bin"})).await.unwrap();
        assert_eq!((sha256(&fetched), produced.size, produced.sha256), (digest, size, digest));
        assert_eq!(result["sha256"], hex(&digest));
        assert_eq!(place.parts(), [""; 0]);
    }
}

pub async fn odd_names_arrive(place: &Place) {
    let longest = format!("{}é.csv", "x".repeat(249));
    assert_eq!(longest.len(), 255);
    for name in [
        "with space.csv",
        " leading and trailing ",
        "accents éàü ß.csv",
        "日本語.csv",
        "it's \"quoted\".csv",
        "two\nlines.csv",
        "back\\slash",
        "-rf",
        ".hidden",
        "star*?[a].csv",
        "$(touch x);`y`.csv",
        "...",
        &longest,
    ] {
        let is_odd = name.contains(['\n', '\\', '"', '*', '?']) || name.ends_with(['.', ' ']);
        let is_refused = name.contains('\n') && !place.abilities.takes_line_ends
            || is_odd && !place.abilities.takes_odd_names;
        if is_refused {
            for operation in ["fetch", "stat", "delete", "list"] {
                let result = place.ask(operation, json!({"path": name})).await;
                failed(result, Verdict::Denied, Code::PathInvalid, Effect::NotApplied);
            }
            let result = place.drop(json!({"path": name}), b"x").await;
            failed(result, Verdict::Denied, Code::PathInvalid, Effect::NotApplied);
            continue;
        }
        place.drop(json!({"path": name}), name.as_bytes()).await.unwrap_or_else(|e| panic!("{name:?}: {e}"));
        assert_eq!(place.read(name), name.as_bytes());
        assert_eq!(place.fetch(json!({"path": name})).await.unwrap().1, name.as_bytes());
        assert_eq!(place.ask("delete", json!({"path": name})).await.unwrap(), json!({"deleted": true}));
        assert!(!place.has(name));
    }
}

pub async fn replacing_is_never_seen_half_done(place: &Place) {
    let contents: Vec<Vec<u8>> = (0..6_u8).map(|n| vec![b'a' + n; 300 * KIB as usize]).collect();
    place.write("live.csv", &contents[0]);
    let done = Arc::new(AtomicBool::new(false));
    let reader = thread::spawn({
        let (path, done) = (place.root.join("live.csv"), Arc::clone(&done));
        let at_once = place.abilities.replaces_at_once;
        move || {
            let mut seen = 0;
            while !done.load(Ordering::Relaxed) || seen == 0 {
                let content = match std::fs::read(&path) {
                    Err(_) if !at_once => continue,
                    content => content.expect("there is a file at all times"),
                };
                let first = content[0];
                assert!(content.len() == 300 * KIB as usize && content.iter().all(|byte| *byte == first));
                seen += 1;
            }
        }
    });
    for _ in 0..3 {
        let drops = contents.iter().map(|content| place.drop(json!({"path": "live.csv"}), content));
        for outcome in futures_util::future::join_all(drops).await {
            outcome.unwrap();
        }
    }
    done.store(true, Ordering::Relaxed);
    reader.join().unwrap();
    assert_eq!(place.parts(), [""; 0]);
}

pub async fn fail_leaves_what_is_there(place: &Place) {
    place.write("report.csv", b"old");
    let params = json!({"path": "report.csv", "on_conflict": "fail"});
    let result = place.drop(params.clone(), b"new").await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
    assert_eq!(place.read("report.csv"), b"old");
    std::fs::remove_file(place.root.join("report.csv")).unwrap();
    let outcome = place.drop(params, b"new").await.unwrap();
    assert_eq!(outcome.result.get("atomic"), not_claimed(place).as_ref());
    assert_eq!(place.read("report.csv"), b"new");
    assert_eq!(place.parts(), [""; 0]);
}

/// What a result says where somebody else can slip in between the look at a free name and its taking.
fn not_claimed(place: &Place) -> Option<Value> {
    (!place.abilities.claims_names).then_some(json!(false))
}

/// Somebody else, who puts a file there in the last moment.
struct Rival(PathBuf);

impl Gate for Rival {
    fn pass<'a>(&'a self, _: &'a Intent) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        std::fs::write(&self.0, b"rival's").unwrap();
        Box::pin(async { Ok(()) })
    }
}

pub async fn whoever_loses_a_name_has_nothing_left_there(place: &Place) {
    let call = Call { gate: Arc::new(Rival(place.root.join("report.csv"))), ..call() };
    let params = json!({"path": "report.csv", "on_conflict": "fail"});
    let result = place.run(&call, "drop", &params, Some(payload(b"mine"))).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
    // Gone by the time that the failure is told.
    assert_eq!(place.parts(), [""; 0]);
    assert_eq!(place.read("report.csv"), b"rival's");
    // The same where it is an earlier attempt's intent that is looked into.
    std::fs::remove_file(place.root.join("report.csv")).unwrap();
    let gate = Recorder::shut();
    let first = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..crate::support::call() };
    place.run(&first, "drop", &params, Some(payload(b"mine"))).await.unwrap_err();
    let next = Call { job: first.job, attempt: 2, prior_intent: Some(gate.last()), ..call };
    let result = place.run(&next, "drop", &params, Some(payload(b"mine"))).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
    assert_eq!((place.parts(), place.read("report.csv")), (vec![], b"rival's".to_vec()));
}

pub async fn suffix_takes_the_next_free_name(place: &Place) {
    let params = json!({"path": "report.csv", "on_conflict": "suffix"});
    for name in ["report.csv", "report (2).csv", "report (3).csv"] {
        let outcome = place.drop(params.clone(), name.as_bytes()).await.unwrap();
        assert_eq!(outcome.result["path"], name);
        assert_eq!(outcome.result.get("atomic"), not_claimed(place).as_ref());
        assert_eq!(place.read(name), name.as_bytes());
    }
    assert_eq!(place.parts(), [""; 0]);
}

pub async fn concurrent_suffixes_never_meet(place: &Place) {
    let params = json!({"path": "in.csv", "on_conflict": "suffix"});
    let contents: Vec<String> = (0..8).map(|n| format!("content {n}")).collect();
    let drops = contents.iter().map(|content| place.drop(params.clone(), content.as_bytes()));
    let mut arrived = Vec::new();
    for outcome in futures_util::future::join_all(drops).await {
        arrived
            .push(String::from_utf8(place.read(outcome.unwrap().result["path"].as_str().unwrap())).unwrap());
    }
    arrived.sort();
    assert_eq!(arrived, contents);
    assert_eq!(std::fs::read_dir(&place.root).unwrap().count(), contents.len());
}

pub async fn missing_folders_are_made_only_if_asked(place: &Place) {
    let result = place.drop(json!({"path": "2026/10/a.csv"}), b"x").await;
    failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
    assert!(!place.has("2026"));
    for name in ["a.csv", "b.csv"] {
        let path = format!("2026/10/{name}");
        place.drop(json!({"path": path, "create_dirs": true}), b"x").await.unwrap();
        assert_eq!(place.read(&path), b"x");
    }
    let result = place.drop(json!({"path": "2026/10/a.csv/b", "create_dirs": true}), b"x").await;
    let failure = result.unwrap_err();
    assert_eq!((failure.verdict, failure.effect), (Verdict::Permanent, Effect::NotApplied), "{failure}");
    assert_eq!(place.read("2026/10/a.csv"), b"x");
    assert_eq!(place.parts(), [""; 0]);
}

pub async fn a_wrong_digest_or_size_leaves_nothing(place: &Place) {
    let content = vec![7_u8; 2 * MIB as usize];
    let input =
        |size: u64, digest| Input::new(Box::new(Cursor::new(content.clone())), size, digest, String::new());
    for wrong in [
        input(content.len() as u64, [1; 32]),
        input(content.len() as u64 + 1, sha256(&content)),
        input(content.len() as u64 - 1, sha256(&content)),
    ] {
        let result = place.run(&call(), "drop", &json!({"path": "a.csv"}), Some(wrong)).await;
        failed(result, Verdict::Permanent, Code::DigestMismatch, Effect::NotApplied);
        assert!(!place.has("a.csv"));
        assert_eq!(place.parts(), [""; 0]);
    }
    let result = place.run(&call(), "drop", &json!({"path": "a.csv"}), None).await;
    failed(result, Verdict::Permanent, Code::InvalidParams, Effect::NotApplied);
}

pub async fn cancelling_leaves_nothing(place: &Place) {
    let call = call();
    let input = stalling_payload(vec![1; 9 * MIB as usize]);
    let params = json!({"path": "a.csv"});
    let dropping = place.run(&call, "drop", &params, Some(input));
    let cancelling = async {
        // Until it is in the middle of writing.
        while call.progress.done() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(place.parts().len(), usize::from(place.abilities.shows_parts));
        call.cancel.cancel();
    };
    let (result, ()) = tokio::join!(dropping, cancelling);
    failed(result, Verdict::Cancelled, Code::Cancelled, Effect::NotApplied);
    assert!(!place.has("a.csv"));
    assert_eq!(place.parts(), [""; 0]);
    // One that is cancelled before it begins does not even connect.
    let result = place.run(&call, "drop", &params, Some(payload(b"x"))).await;
    failed(result, Verdict::Cancelled, Code::Cancelled, Effect::NotApplied);
    assert!(!place.has("a.csv"));
}

pub async fn a_folder_of_that_name_is_a_conflict(place: &Place) {
    std::fs::create_dir(place.root.join("a")).unwrap();
    for on_conflict in ["replace", "fail"] {
        let result = place.drop(json!({"path": "a", "on_conflict": on_conflict}), b"x").await;
        failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
    }
    let outcome = place.drop(json!({"path": "a", "on_conflict": "suffix"}), b"x").await.unwrap();
    assert_eq!(outcome.result["path"], "a (2)");
    // And a file in a folder's place.
    place.write("file", b"x");
    for create_dirs in [false, true] {
        let result = place.drop(json!({"path": "file/x", "create_dirs": create_dirs}), b"x").await;
        failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
    }
    let result = place.drop(json!({"path": "file/a/x", "create_dirs": true}), b"x").await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
    let result = place.fetch(json!({"path": "file/x"})).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
    assert_eq!(place.parts(), [""; 0]);
}
