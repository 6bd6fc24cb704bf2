//! What follows a fetch.

use super::failed;
use crate::support::{Place, Recorder, call, sink};
use passerelle_connectors::{Call, Code, Effect, Failure, Gate, Intent, Keeper, Outcome, Produced, Verdict};
use serde_json::{Value, json};
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
};

type Step = dyn Fn() -> Result<(), Failure> + Send + Sync;

/// Keeps outputs, and lets something happen meanwhile.
struct Shelf(Box<Step>);

impl Keeper for Shelf {
    fn keep<'a>(&'a self, _: &'a Produced) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        Box::pin(async { (self.0)() })
    }
}

/// A gate at which something happens right before the effect.
struct Meanwhile(Box<Step>);

impl Gate for Meanwhile {
    fn pass<'a>(&'a self, _: &'a Intent) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        Box::pin(async { (self.0)() })
    }
}

/// What came of a fetch.
pub struct Fetched {
    pub then: String,
    moved_to: Value,
    pub content: Vec<u8>,
    produced: Produced,
    recalled: bool,
}

async fn fetch_kept(
    place: &Place,
    call: &Call,
    params: &Value,
    step: impl Fn() -> Result<(), Failure> + Send + Sync + 'static,
) -> Result<Fetched, Failure> {
    place.connector.demands("fetch", params)?;
    let (output, content) = sink();
    let mut output = output.kept_by(Arc::new(Shelf(Box::new(step))));
    let done = place.connector.execute(call, "fetch", params, None, &mut output).await;
    let Outcome { result, .. } = done?;
    let (produced, recalled) = (output.produced().cloned().unwrap(), output.is_recalled());
    drop(output);
    let content = std::mem::take(&mut *content.lock().unwrap());
    assert_eq!((&result["path"], &result["size"]), (&params["path"], &json!(produced.size)));
    assert!(result["modified_at"].as_str().unwrap().ends_with('Z'));
    let then = result["then"].as_str().unwrap().to_owned();
    Ok(Fetched { then, moved_to: result["moved_to"].clone(), content, produced, recalled })
}

pub async fn fetch(place: &Place, call: &Call, params: &Value) -> Result<Fetched, Failure> {
    fetch_kept(place, call, params, || Ok(())).await
}

fn delete() -> Value {
    json!({"path": "a.csv", "then": "delete"})
}

fn archive() -> Value {
    json!({"path": "a.csv", "then": {"move_to": "done/b.csv"}})
}

/// A producer puts another file in the place of `path`, as good ones do: by a rename.
fn replace(root: &std::path::Path, path: &str, content: &str) {
    std::fs::write(root.join("new"), content).unwrap();
    std::fs::rename(root.join("new"), root.join(path)).unwrap();
}

fn setting(place: &Place) {
    std::fs::create_dir(place.root.join("done")).unwrap();
    place.write("a.csv", b"content");
}

pub async fn what_was_fetched_is_deleted_or_moved(place: &Place) {
    setting(place);
    let steps = Arc::new(Mutex::new(Vec::new()));
    let log = |what: &'static str| {
        let steps = Arc::clone(&steps);
        move || {
            steps.lock().unwrap().push(what);
            Ok(())
        }
    };
    for (params, then) in [(delete(), "deleted"), (archive(), "moved")] {
        place.write("a.csv", b"content");
        let gate = Arc::new(Meanwhile(Box::new(log("granted"))));
        let call = Call { gate: gate as Arc<dyn Gate>, ..call() };
        let fetched = fetch_kept(place, &call, &params, log("kept")).await.unwrap();
        assert_eq!((fetched.then.as_str(), fetched.content.as_slice()), (then, &b"content"[..]));
        assert_eq!((fetched.produced.size, fetched.recalled), (7, false));
        let moved_to = if then == "moved" { json!("done/b.csv") } else { Value::Null };
        assert_eq!(fetched.moved_to, moved_to);
        assert!(!place.has("a.csv"));
        assert_eq!(place.parts(), [""; 0]);
        assert_eq!(std::mem::take(&mut *steps.lock().unwrap()), ["kept", "granted"]);
    }
    assert_eq!(place.read("done/b.csv"), b"content");
    // Nothing is not too little.
    place.write("a.csv", b"");
    let fetched = fetch(place, &call(), &delete()).await.unwrap();
    assert_eq!((fetched.then.as_str(), fetched.produced.size), ("deleted", 0));
    assert!(!place.has("a.csv"));
    let result = place.fetch(delete()).await;
    failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
}

pub async fn nothing_follows_before_the_content_is_kept(place: &Place) {
    setting(place);
    for params in [delete(), archive()] {
        let gate = Recorder::open();
        let call = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..call() };
        let lost = || Err(Failure::retry(Code::Internal, "the hub is away"));
        let result = fetch_kept(place, &call, &params, lost).await.map(|_| ());
        failed(result, Verdict::Retry, Code::Internal, Effect::NotApplied);
        // Nobody keeps it at all.
        let result = place.run(&call, "fetch", &params, None).await;
        failed(result, Verdict::Permanent, Code::TargetUnsupported, Effect::NotApplied);
        assert_eq!(gate.count(), 0);
        // Kept, but not granted.
        let call = Call { gate: Recorder::shut(), ..call };
        let result = fetch(place, &call, &params).await.map(|_| ());
        failed(result, Verdict::Retry, Code::Internal, Effect::NotApplied);
        assert_eq!((place.read("a.csv"), place.parts()), (b"content".to_vec(), vec![]));
    }
}

pub async fn a_file_put_in_the_place_of_what_was_fetched_stays(place: &Place) {
    setting(place);
    // As like the old one as this kind of place can tell.
    let newer = if place.abilities.tells_files_apart { "CONTENT" } else { "content, newer" };
    for params in [delete(), archive()] {
        for at_the_gate in [false, true] {
            replace(&place.root, "a.csv", "content");
            let root = place.root.clone();
            let meanwhile = move || {
                replace(&root, "a.csv", newer);
                Ok(())
            };
            let fetched = if at_the_gate {
                let call = Call { gate: Arc::new(Meanwhile(Box::new(meanwhile))), ..call() };
                fetch(place, &call, &params).await
            } else {
                fetch_kept(place, &call(), &params, meanwhile).await
            };
            let fetched = fetched.unwrap();
            assert_eq!((fetched.then.as_str(), fetched.content.as_slice()), ("changed", &b"content"[..]));
            assert_eq!(place.read("a.csv"), newer.as_bytes());
            assert!(!place.has("done/b.csv"));
            assert_eq!(place.parts(), [""; 0]);
        }
        // Somebody else takes it away.
        for at_the_gate in [false, true] {
            replace(&place.root, "a.csv", "content");
            let file = place.root.join("a.csv");
            let meanwhile = move || {
                std::fs::remove_file(&file).unwrap();
                Ok(())
            };
            let fetched = if at_the_gate {
                let call = Call { gate: Arc::new(Meanwhile(Box::new(meanwhile))), ..call() };
                fetch(place, &call, &params).await
            } else {
                fetch_kept(place, &call(), &params, meanwhile).await
            };
            assert_eq!(fetched.unwrap().then, "gone");
        }
    }
}

pub async fn what_was_fetched_moves_only_to_a_free_place_that_is_there(place: &Place) {
    setting(place);
    let nowhere = json!({"path": "a.csv", "then": {"move_to": "nowhere/b.csv"}});
    let result = place.fetch(nowhere).await;
    failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
    place.write("done/b.csv", b"older");
    let result = place.fetch(archive()).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
    // Taken only meanwhile.
    for at_the_gate in [false, true] {
        std::fs::remove_file(place.root.join("done/b.csv")).unwrap();
        let file = place.root.join("done/b.csv");
        let meanwhile = move || {
            std::fs::write(&file, "older").unwrap();
            Ok(())
        };
        let result = if at_the_gate {
            let call = Call { gate: Arc::new(Meanwhile(Box::new(meanwhile))), ..call() };
            fetch(place, &call, &archive()).await
        } else {
            fetch_kept(place, &call(), &archive(), meanwhile).await
        };
        failed(result.map(|_| ()), Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
        assert_eq!((place.read("a.csv"), place.read("done/b.csv")), (b"content".to_vec(), b"older".to_vec()));
        assert_eq!(place.parts(), [""; 0]);
    }
    if place.abilities.sees_links {
        std::os::unix::fs::symlink("a.csv", place.root.join("link.csv")).unwrap();
        let result = place.fetch(json!({"path": "link.csv", "then": "delete"})).await;
        failed(result, Verdict::Permanent, Code::TargetRefused, Effect::NotApplied);
        assert!(place.has("link.csv") && place.has("a.csv"));
    }
}

/// A fetch that is cut off right after its intent was journalled, and what comes next.
async fn cut_off(place: &Place, params: &Value) -> (Call, Intent) {
    replace(&place.root, "a.csv", "content");
    drop(std::fs::remove_file(place.root.join("done/b.csv")));
    let gate = Recorder::shut();
    let call = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..call() };
    let result = fetch(place, &call, params).await.map(|_| ());
    failed(result, Verdict::Retry, Code::Internal, Effect::NotApplied);
    let text = serde_json::to_string(&gate.last()).unwrap();
    let intent: Intent = serde_json::from_str(&text).unwrap();
    (Call { attempt: 2, prior_intent: Some(intent.clone()), gate: Recorder::open(), ..call }, intent)
}

pub async fn what_follows_a_fetch_is_finished_by_what_is_found(place: &Place) {
    setting(place);
    for params in [delete(), archive()] {
        let moves = params["then"] != "delete";
        let done = if moves { "moved" } else { "deleted" };
        let root = place.root.clone();
        for found in ["nothing done", "set aside", "in two places", "done", "done, and another came"] {
            let (next, intent) = cut_off(place, &params).await;
            let hidden = intent.part.as_ref().unwrap();
            match found {
                "nothing done" => {}
                "set aside" => std::fs::rename(root.join("a.csv"), root.join(hidden)).unwrap(),
                "in two places" => std::fs::hard_link(root.join("a.csv"), root.join(hidden)).unwrap(),
                _ if moves => std::fs::rename(root.join("a.csv"), root.join("done/b.csv")).unwrap(),
                _ => std::fs::remove_file(root.join("a.csv")).unwrap(),
            }
            if found == "done, and another came" {
                place.write("a.csv", b"another one");
            }
            let fetched = fetch(place, &next, &params).await.unwrap();
            assert_eq!(fetched.content, b"", "{found}: it is not read again");
            assert!(fetched.recalled && fetched.produced.size == 7);
            let expected = if found == "done, and another came" && !moves { "changed" } else { done };
            assert_eq!(fetched.then, expected, "{found}");
            assert_eq!(place.has("a.csv"), found == "done, and another came", "{found}");
            assert_eq!(place.has("done/b.csv"), moves, "{found}");
            assert_eq!(place.parts(), [""; 0], "{found}");
        }
    }
    // Moved, and cut off between the new name and the end of the hidden one.
    let (next, intent) = cut_off(place, &archive()).await;
    let hidden = place.root.join(intent.part.unwrap());
    std::fs::rename(place.root.join("a.csv"), &hidden).unwrap();
    std::fs::hard_link(&hidden, place.root.join("done/b.csv")).unwrap();
    assert_eq!(fetch(place, &next, &archive()).await.unwrap().then, "moved");
    assert_eq!((place.read("done/b.csv"), place.parts()), (b"content".to_vec(), vec![]));
    // Moved, and taken away from there.
    let (next, _) = cut_off(place, &archive()).await;
    std::fs::remove_file(place.root.join("a.csv")).unwrap();
    assert_eq!(fetch(place, &next, &archive()).await.unwrap().then, "gone");
}

pub async fn another_file_that_was_set_aside_is_put_back(place: &Place) {
    setting(place);
    for taken in [false, true] {
        let (next, intent) = cut_off(place, &delete()).await;
        // What was taken is a producer's newer file; with `taken`, an even newer one has come since.
        std::fs::remove_file(place.root.join("a.csv")).unwrap();
        place.write(intent.part.as_ref().unwrap(), b"newer");
        if taken {
            place.write("a.csv", b"newest");
        }
        assert_eq!(fetch(place, &next, &delete()).await.unwrap().then, "changed");
        let (at, beside) = if taken { ("a (2).csv", Some("a.csv")) } else { ("a.csv", None) };
        assert_eq!(place.read(at), b"newer");
        assert!(beside.is_none_or(|beside| place.read(beside) == b"newest"));
        assert_eq!(place.parts(), [""; 0]);
    }
    // Nobody knows of an intent any more: what was set aside is the file that is asked for.
    let call = Call { attempt: 2, ..call() };
    std::fs::remove_file(place.root.join("a.csv")).unwrap();
    place.write(&format!(".passerelle-{}.taken", call.job), b"content");
    let fetched = fetch(place, &call, &delete()).await.unwrap();
    assert_eq!((fetched.then.as_str(), fetched.content.as_slice()), ("deleted", &b"content"[..]));
    assert!(!place.has("a.csv"));
    assert_eq!(place.parts(), [""; 0]);
}

pub async fn a_cancelled_fetch_looks_what_followed(place: &Place) {
    setting(place);
    let (next, _) = cut_off(place, &delete()).await;
    next.cancel.cancel();
    let result = fetch(place, &next, &delete()).await.map(|_| ());
    failed(result, Verdict::Cancelled, Code::Cancelled, Effect::NotApplied);
    assert_eq!(place.read("a.csv"), b"content");
    // Set aside already: it is brought to its end.
    let (next, intent) = cut_off(place, &delete()).await;
    std::fs::rename(place.root.join("a.csv"), place.root.join(intent.part.unwrap())).unwrap();
    next.cancel.cancel();
    assert_eq!(fetch(place, &next, &delete()).await.unwrap().then, "deleted");
    assert_eq!(place.parts(), [""; 0]);
}

pub async fn what_follows_a_fetch_is_only_what_its_own_job_could_have_chosen(place: &Place) {
    setting(place);
    place.write("other.csv", b"content");
    let (next, intent) = cut_off(place, &delete()).await;
    let elsewhere = [
        Intent { part: Some("other.csv".to_owned()), ..intent.clone() },
        Intent { part: Some("../other.csv".to_owned()), ..intent.clone() },
        Intent { target: Some("other.csv".to_owned()), ..intent.clone() },
        Intent { sha256: None, ..intent.clone() },
        Intent { state: json!({"operation": "delete", "file": intent.state["file"].clone()}), ..intent },
    ];
    for intent in elsewhere {
        let call = Call { prior_intent: Some(intent), ..next.clone() };
        let result = fetch(place, &call, &delete()).await.map(|_| ());
        let failure = result.expect_err("it is of no attempt of this job");
        assert_eq!((failure.verdict, failure.effect), (Verdict::Permanent, Effect::Unknown), "{failure}");
        assert!(place.has("a.csv") && place.has("other.csv"));
    }
}
