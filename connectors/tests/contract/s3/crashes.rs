//! What is left at a store of attempts that were cut off, and how the next one goes on.

use crate::{
    cases::failed,
    support::{Place, Recorder, call, check, hex, large_payload, payload, s3::Kind, s3_settings},
};
use passerelle_connectors::{Call, Code, Effect, Gate, Intent, Verdict};
use serde_json::{Value, json};
use std::{fs, sync::Arc, time::Duration};

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
