//! What an attempt finds that comes after one that was cut off.

use super::failed;
use crate::support::{Place, Recorder, call, payload};
use passerelle_connectors::{Call, Code, Company, Effect, Failure, Gate, Intent, Outcome, Verdict};
use serde_json::{Value, json};
use std::sync::Arc;

/// Drops `content` by an attempt that is cut off right after its intent was journalled.
async fn cut_off(place: &Place, params: &Value, content: &[u8]) -> (Call, Intent) {
    let gate = Recorder::shut();
    let call = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..call() };
    let result = place.run(&call, "drop", params, Some(payload(content))).await;
    failed(result, Verdict::Retry, Code::Internal, Effect::NotApplied);
    let intent = gate.last();
    assert!(place.has(intent.part.as_ref().unwrap()), "a part under an intent stays");
    assert!(!place.has(".passerelle-probe"));
    let next = Call { prior_intent: Some(intent.clone()), gate: Recorder::open(), ..call };
    (next, intent)
}

pub async fn an_intent_with_its_part_is_finished(place: &Place) {
    for (attempt, with_input) in [(1, true), (2, false)] {
        let params = json!({"path": "a.csv"});
        let (next, intent) = cut_off(place, &params, b"content").await;
        assert!(!place.has("a.csv"));
        assert_eq!(intent.target.as_deref(), Some("a.csv"));
        assert_eq!(intent.size, Some(7));
        // Journalled and read back, as the agent does.
        let intent: Intent = serde_json::from_str(&serde_json::to_string(&intent).unwrap()).unwrap();
        let gate = Recorder::open();
        let next = Call {
            attempt,
            prior_intent: Some(intent.clone()),
            gate: Arc::clone(&gate) as Arc<dyn Gate>,
            ..next
        };
        let input = with_input.then(|| payload(b"content"));
        let outcome = place.run(&next, "drop", &params, input).await.unwrap();
        assert_eq!(outcome.result["path"], "a.csv");
        assert_eq!(outcome.result["size"], 7);
        assert_eq!(outcome.synced, Some(place.abilities.syncs));
        assert_eq!(gate.last(), intent, "the effect asks the gate again");
        assert_eq!(place.read("a.csv"), b"content");
        assert_eq!(place.parts(), [""; 0]);
        std::fs::remove_file(place.root.join("a.csv")).unwrap();
    }
}

pub async fn a_cancelled_attempt_looks_what_the_one_before_did(place: &Place) {
    let params = json!({"path": "a.csv"});
    let (next, intent) = cut_off(place, &params, b"content").await;
    next.cancel.cancel();
    // Not renamed: nor will it be.
    let result = place.run(&next, "drop", &params, Some(payload(b"content"))).await;
    failed(result, Verdict::Cancelled, Code::Cancelled, Effect::NotApplied);
    assert!(!place.has("a.csv"));
    // Renamed: it is told so, though it was cancelled meanwhile.
    std::fs::rename(place.root.join(intent.part.unwrap()), place.root.join("a.csv")).unwrap();
    let outcome = place.run(&next, "drop", &params, Some(payload(b"content"))).await.unwrap();
    assert_eq!(outcome.result["path"], "a.csv");
}

pub async fn an_intent_whose_part_is_gone_was_done(place: &Place) {
    let params = json!({"path": "a.csv"});
    let (next, intent) = cut_off(place, &params, b"content").await;
    // The rename happened and a consumer took the file at once.
    std::fs::remove_file(place.root.join(intent.part.unwrap())).unwrap();
    if !place.abilities.syncs {
        let result = place.run(&next, "drop", &params, Some(payload(b"content"))).await;
        failed(result, Verdict::Permanent, Code::TargetConflict, Effect::Unknown);
        assert!(!place.has("a.csv"), "what may have arrived is not delivered again");
        return;
    }
    let gate = Recorder::open();
    let next = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..next };
    if !place.abilities.syncs {
        // It may as well have been lost with the target's power: only the file itself proves that it arrived.
        let result = place.run(&next, "drop", &params, Some(payload(b"content"))).await;
        failed(result, Verdict::Permanent, Code::TargetConflict, Effect::Unknown);
        assert_eq!((place.has("a.csv"), gate.count()), (false, 0));
        place.write("a.csv", b"content");
    }
    let outcome = place.run(&next, "drop", &params, Some(payload(b"content"))).await.unwrap();
    if !place.abilities.syncs {
        std::fs::remove_file(place.root.join("a.csv")).unwrap();
    }
    assert_eq!((&outcome.result["path"], &outcome.result["size"]), (&json!("a.csv"), &json!(7)));
    assert!(!place.has("a.csv"), "a consumed file is not delivered again");
    assert_eq!(gate.count(), 0, "nothing is done, so nothing is asked");
}

pub async fn a_part_that_another_agent_may_have_taken_away_proves_less(place: &Place) {
    let params = json!({"path": "a.csv", "on_conflict": "fail"});
    // What is at the target, who else there is, and whether the drop counts as done.
    for (target, company, done) in [
        (None, Company::Possible, place.abilities.syncs),
        (Some("content"), Company::Possible, true),
        (Some("another"), Company::Possible, false),
        (Some("another"), Company::Alone, place.abilities.syncs),
        (None, Company::Certain, false),
        (Some("content"), Company::Certain, true),
        (Some("another"), Company::Certain, false),
    ] {
        let (next, intent) = cut_off(place, &params, b"content").await;
        std::fs::remove_file(place.root.join(intent.part.unwrap())).unwrap();
        if let Some(text) = target {
            place.write("a.csv", text.as_bytes());
        }
        let next = Call { gate: Recorder::beside(company) as Arc<dyn Gate>, ..next };
        let result = place.run(&next, "drop", &params, Some(payload(b"content"))).await;
        if done {
            result.unwrap_or_else(|failure| panic!("{target:?} {company:?}: {failure:?}"));
        } else {
            failed(result, Verdict::Permanent, Code::TargetConflict, Effect::Unknown);
        }
        let left = place.has("a.csv").then(|| place.read("a.csv"));
        assert_eq!(left.as_deref(), target.map(str::as_bytes), "{company:?}: something was written");
        if target.is_some() {
            std::fs::remove_file(place.root.join("a.csv")).unwrap();
        }
    }
}

pub async fn a_part_gone_from_another_folder_is_unknown(place: &Place) {
    std::fs::create_dir(place.root.join("in")).unwrap();
    let params = json!({"path": "in/a.csv"});
    let (next, _) = cut_off(place, &params, b"content").await;
    std::fs::rename(place.root.join("in"), place.root.join("elsewhere")).unwrap();
    if place.abilities.tells_folders_apart {
        std::fs::create_dir(place.root.join("in")).unwrap();
    }
    let result = place.run(&next, "drop", &params, Some(payload(b"content"))).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::Unknown);
    assert!(!place.has("in/a.csv"));
    assert_eq!(place.parts().len(), 1);
}

pub async fn a_part_gone_that_was_never_synced_is_unknown(place: &Place) {
    let params = json!({"path": "a.csv"});
    let (next, mut intent) = cut_off(place, &params, b"content").await;
    std::fs::remove_file(place.root.join(intent.part.as_ref().unwrap())).unwrap();
    intent.state["synced"] = json!(false);
    let next = Call { prior_intent: Some(intent), ..next };
    let result = place.run(&next, "drop", &params, Some(payload(b"content"))).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::Unknown);
    assert!(!place.has("a.csv"));
}

pub async fn an_unsynced_part_that_became_the_target_was_renamed(place: &Place) {
    let params = json!({"path": "a.csv"});
    for (there, renamed) in [(&b"content"[..], true), (b"CONTENT", false), (b"", false)] {
        let (next, mut intent) = cut_off(place, &params, b"content").await;
        intent.state["synced"] = json!(false);
        std::fs::remove_file(place.root.join(intent.part.as_ref().unwrap())).unwrap();
        place.write("a.csv", there);
        let gate = Recorder::open();
        let next = Call { prior_intent: Some(intent), gate: Arc::clone(&gate) as Arc<dyn Gate>, ..next };
        let result = place.run(&next, "drop", &params, Some(payload(b"content"))).await;
        if renamed {
            let outcome = result.unwrap();
            assert_eq!((&outcome.result["path"], outcome.synced), (&json!("a.csv"), Some(false)));
        } else {
            failed(result, Verdict::Permanent, Code::TargetConflict, Effect::Unknown);
        }
        assert_eq!((place.read("a.csv"), gate.count()), (there.to_vec(), 0), "nothing is done");
    }
}

pub async fn a_damaged_part_is_written_anew(place: &Place) {
    let params = json!({"path": "a.csv"});
    for damage in [&b"cont"[..], b"", b"longer than it was"] {
        let (next, intent) = cut_off(place, &params, b"content").await;
        place.write(intent.part.as_ref().unwrap(), damage);
        place.run(&next, "drop", &params, Some(payload(b"content"))).await.unwrap();
        assert_eq!(place.read("a.csv"), b"content");
        assert_eq!(place.parts(), [""; 0]);
    }
    // Of the same size but never synced: read back, and found out.
    let (next, mut intent) = cut_off(place, &params, b"content").await;
    place.write(intent.part.as_ref().unwrap(), b"\0\0\0\0\0\0\0");
    intent.state["synced"] = json!(false);
    let next = Call { prior_intent: Some(intent), ..next };
    place.run(&next, "drop", &params, Some(payload(b"content"))).await.unwrap();
    assert_eq!(place.read("a.csv"), b"content");
    assert_eq!(place.parts(), [""; 0]);
}

pub async fn a_rename_cut_in_two_is_completed(place: &Place) {
    // Renaming without replacing may be a link and an unlink: killed between the two, both names are there.
    let params = json!({"path": "a.csv", "on_conflict": "fail"});
    let (next, intent) = cut_off(place, &params, b"content").await;
    let part = place.root.join(intent.part.unwrap());
    std::fs::hard_link(&part, place.root.join("a.csv")).unwrap();
    let outcome = place.run(&next, "drop", &params, Some(payload(b"content"))).await.unwrap();
    assert_eq!(outcome.result["path"], "a.csv");
    assert_eq!(place.read("a.csv"), b"content");
    assert_eq!(place.parts(), [""; 0]);

    // Someone else's file of that name is a conflict, and stays.
    let (next, _) = cut_off(place, &json!({"path": "b.csv", "on_conflict": "fail"}), b"content").await;
    place.write("b.csv", b"someone else's");
    let result = place.run(&next, "drop", &json!({"path": "b.csv", "on_conflict": "fail"}), None).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
    assert_eq!(place.read("b.csv"), b"someone else's");
}

pub async fn a_suffix_taken_meanwhile_is_replaced_by_the_next(place: &Place) {
    let params = json!({"path": "a.csv", "on_conflict": "suffix"});
    let (next, intent) = cut_off(place, &params, b"content").await;
    assert_eq!(intent.target.as_deref(), Some("a.csv"));
    place.write("a.csv", b"someone else's");
    let gate = Recorder::open();
    let next = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..next };
    let outcome = place.run(&next, "drop", &params, None).await.unwrap();
    assert_eq!(outcome.result["path"], "a (2).csv");
    assert_eq!(
        gate.last().target.as_deref(),
        Some("a (2).csv"),
        "the new name is journalled before it is taken"
    );
    assert_eq!(
        (place.read("a.csv"), place.read("a (2).csv")),
        (b"someone else's".to_vec(), b"content".to_vec())
    );
    assert_eq!(place.parts(), [""; 0]);
}

pub async fn an_intent_of_something_else_does_nothing(place: &Place) {
    let params = json!({"path": "a.csv"});
    let (next, intent) = cut_off(place, &params, b"content").await;
    for damaged in [
        Intent { state: json!({"unlike": "ours"}), ..intent.clone() },
        Intent { part: None, ..intent.clone() },
    ] {
        let next = Call { prior_intent: Some(damaged), ..next.clone() };
        let result = place.run(&next, "drop", &params, Some(payload(b"content"))).await;
        failed(result, Verdict::Permanent, Code::Internal, Effect::Unknown);
        assert!(!place.has("a.csv"));
    }
}

/// What another agent was granted comes by the hub's word, and a breached hub says what it likes.
pub async fn an_intent_that_leads_elsewhere_does_nothing(place: &Place) {
    let params = json!({"path": "a.csv"});
    place.write("other.csv", b"content");
    let (next, intent) = cut_off(place, &params, b"content").await;
    let stranger = format!(".passerelle-{}-1.part", uuid::Uuid::now_v7());
    place.write(&stranger, b"content");
    let unsynced = json!({"operation": "drop", "synced": false, "folder": intent.state["folder"]});
    for elsewhere in [
        Intent { part: Some("other.csv".to_owned()), ..intent.clone() },
        // Would be removed as damaged.
        Intent { part: Some("other.csv".to_owned()), state: unsynced, size: Some(1), ..intent.clone() },
        Intent { part: Some(stranger.clone()), ..intent.clone() },
        Intent { part: Some("../outside.part".to_owned()), ..intent.clone() },
        Intent { part: intent.part.as_ref().map(|part| format!("x/../{part}")), ..intent.clone() },
        Intent { target: Some("b.csv".to_owned()), ..intent.clone() },
        // Allowed only where the job asks for another name.
        Intent { target: Some("a (2).csv".to_owned()), ..intent.clone() },
        Intent { target: Some("../a.csv".to_owned()), ..intent.clone() },
        Intent { sha256: Some([7; 32]), ..intent.clone() },
        Intent { size: Some(8), ..intent.clone() },
    ] {
        let next = Call { prior_intent: Some(elsewhere.clone()), ..next.clone() };
        let result = place.run(&next, "drop", &params, Some(payload(b"content"))).await;
        failed(result, Verdict::Permanent, Code::PathInvalid, Effect::Unknown);
        for name in ["other.csv", stranger.as_str(), intent.part.as_deref().unwrap()] {
            assert_eq!(place.read(name), b"content", "{name} after {elsewhere:?}");
        }
        assert!(!place.has("a.csv") && !place.has("b.csv") && !place.has("a (2).csv"), "{elsewhere:?}");
    }
    let params = json!({"from": "other.csv", "to": "moved.csv"});
    let next = intent_of(place, "move", &params).await;
    for target in ["other.csv", "moved (2).csv", "../moved.csv"] {
        let intent = next.prior_intent.clone().map(|i| Intent { target: Some(target.to_owned()), ..i });
        let next = Call { prior_intent: intent, ..next.clone() };
        let result = place.run(&next, "move", &params, None).await;
        failed(result, Verdict::Permanent, Code::PathInvalid, Effect::Unknown);
        assert!(place.has("other.csv") && !place.has("moved.csv"), "{target}");
    }
}

pub async fn leftovers_of_the_same_job_are_removed(place: &Place) {
    let call = Call { attempt: 3, ..call() };
    let part = |job: &dyn std::fmt::Display, attempt| format!(".passerelle-{job}-{attempt}.part");
    let other = part(&uuid::Uuid::now_v7(), 1);
    let later = part(&call.job, 4);
    // Of attempts before, and of this one cut off before its intent.
    for name in [&part(&call.job, 1), &part(&call.job, 2), &part(&call.job, 3), &later, &other] {
        place.write(name, b"leftover");
    }
    place.run(&call, "drop", &json!({"path": "a.csv"}), Some(payload(b"content"))).await.unwrap();
    assert_eq!(place.read("a.csv"), b"content");
    let mut left = place.parts();
    left.sort();
    let mut expected = vec![other, later];
    expected.sort();
    assert_eq!(left, expected, "what is another job's or a later attempt's stays");
}

pub async fn what_an_attempt_left_is_named_and_cleaned_up(place: &Place) {
    let (call, connector) = (call(), &place.connector);
    let timeout = std::time::Duration::from_secs(20);
    let left =
        |operation: &str, params: Value| connector.leftover(operation, &params, call.job, call.attempt);
    for (operation, params) in
        [("delete", json!({"path": "a.csv"})), ("move", json!({"from": "a", "to": "b"})), ("list", json!({}))]
    {
        assert_eq!(left(operation, params), None, "{operation}");
    }
    // A folder that is not there holds nothing.
    let inside = left("drop", json!({"path": "in/a.csv"})).unwrap();
    assert!(!connector.clean_up(&inside, timeout).await.unwrap());

    let part = left("drop", json!({"path": "a.csv"})).unwrap();
    let gate = Recorder::shut();
    let dropping = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..call.clone() };
    let dropped = place.run(&dropping, "drop", &json!({"path": "a.csv"}), Some(payload(b"content"))).await;
    failed(dropped, Verdict::Retry, Code::Internal, Effect::NotApplied);
    assert_eq!(gate.last().part.as_ref(), Some(&part), "the name is the one that the attempt uses");
    place.write("a.csv", b"someone else's");
    assert!(connector.clean_up(&part, timeout).await.unwrap());
    assert!(!connector.clean_up(&part, timeout).await.unwrap());
    assert_eq!(place.parts(), [""; 0]);
    // Whatever a journal may say: nothing but parts.
    connector.clean_up("a.csv", timeout).await.unwrap_err();
    assert_eq!(place.read("a.csv"), b"someone else's");
}

/// A gate whose journal takes no withdrawal.
struct Full;

impl Gate for Full {
    fn pass<'a>(&'a self, _: &'a Intent) -> Passing<'a> {
        Box::pin(async { Ok(()) })
    }

    fn withdraw(&self) -> Passing<'_> {
        Box::pin(async { Err(Failure::retry(Code::Internal, "the journal is full")) })
    }
}

type Passing<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

pub async fn a_damaged_part_stays_until_its_intent_is_withdrawn(place: &Place) {
    // Removed before, a crash would make the part look renamed.
    let params = json!({"path": "a.csv"});
    let (next, intent) = cut_off(place, &params, b"content").await;
    let part = intent.part.unwrap();
    place.write(&part, b"cont");
    let stopped = Call { gate: Arc::new(Full), ..next.clone() };
    let result = place.run(&stopped, "drop", &params, Some(payload(b"content"))).await;
    failed(result, Verdict::Retry, Code::Internal, Effect::NotApplied);
    assert!(place.has(&part) && !place.has("a.csv"));
    place.run(&next, "drop", &params, Some(payload(b"content"))).await.unwrap();
    assert_eq!((place.read("a.csv"), place.parts()), (b"content".to_vec(), vec![]));
}

/// The intent of an operation that was cut off before its effect.
async fn intent_of(place: &Place, operation: &str, params: &Value) -> Call {
    let gate = Recorder::shut();
    let call = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..call() };
    let result = place.run(&call, operation, params, None).await;
    failed(result, Verdict::Retry, Code::Internal, Effect::NotApplied);
    Call { prior_intent: Some(gate.last()), gate: Recorder::open(), ..call }
}

pub async fn an_interrupted_delete_spares_a_newer_file(place: &Place) {
    let params = json!({"path": "a.csv"});
    // Not yet done.
    place.write("a.csv", b"old");
    let next = intent_of(place, "delete", &params).await;
    assert!(place.has("a.csv"));
    assert_eq!(place.run(&next, "delete", &params, None).await.unwrap().result, json!({"deleted": true}));
    assert!(!place.has("a.csv"));
    // Done, and nothing came after it.
    assert_eq!(place.run(&next, "delete", &params, None).await.unwrap().result, json!({"deleted": true}));
    // Done, and a new file came.
    place.write("a.csv", b"newer");
    assert_eq!(place.run(&next, "delete", &params, None).await.unwrap().result, json!({"deleted": true}));
    assert_eq!(place.read("a.csv"), b"newer");
}

pub async fn an_interrupted_move_is_decided_by_the_file(place: &Place) {
    let params = json!({"from": "a.csv", "to": "b.csv"});
    // Not yet done.
    place.write("a.csv", b"content");
    let next = intent_of(place, "move", &params).await;
    assert_eq!(place.run(&next, "move", &params, None).await.unwrap().result, json!({"path": "b.csv"}));
    assert!(!place.has("a.csv") && place.has("b.csv"));
    // Done; and done while a new file came to the old place.
    assert_eq!(place.run(&next, "move", &params, None).await.unwrap().result, json!({"path": "b.csv"}));
    place.write("a.csv", b"another one");
    assert_eq!(place.run(&next, "move", &params, None).await.unwrap().result, json!({"path": "b.csv"}));
    assert_eq!((place.read("a.csv"), place.read("b.csv")), (b"another one".to_vec(), b"content".to_vec()));
    // At neither place.
    std::fs::remove_file(place.root.join("a.csv")).unwrap();
    std::fs::remove_file(place.root.join("b.csv")).unwrap();
    let result = place.run(&next, "move", &params, None).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::Unknown);
    if place.abilities.tells_files_apart {
        // Cut between link and unlink.
        place.write("a.csv", b"content");
        let next = intent_of(place, "move", &params).await;
        std::fs::hard_link(place.root.join("a.csv"), place.root.join("b.csv")).unwrap();
        assert_eq!(place.run(&next, "move", &params, None).await.unwrap().result, json!({"path": "b.csv"}));
        assert!(!place.has("a.csv") && place.has("b.csv"));
    }
}

/// Where the job sets aside what it is to replace.
fn aside(place: &Place, call: &Call) -> std::path::PathBuf {
    place.root.join(format!(".passerelle-{}.taken", call.job))
}

pub async fn what_was_set_aside_to_be_replaced_is_found_again(place: &Place) {
    let file = place.root.join("a.csv");
    let params = json!({"path": "a.csv"});
    // Not renamed yet: it goes on, or, cancelled, puts back what was there.
    for cancelled in [false, true] {
        place.write("a.csv", b"old");
        let (next, intent) = cut_off(place, &params, b"content").await;
        std::fs::rename(&file, aside(place, &next)).unwrap();
        if cancelled {
            next.cancel.cancel();
        }
        let result = place.run(&next, "drop", &params, Some(payload(b"content"))).await;
        if cancelled {
            failed(result, Verdict::Cancelled, Code::Cancelled, Effect::NotApplied);
            assert_eq!(place.read("a.csv"), b"old");
            std::fs::remove_file(place.root.join(intent.part.unwrap())).unwrap();
        } else {
            result.unwrap();
            assert_eq!(place.read("a.csv"), b"content");
        }
        assert_eq!(place.parts(), [""; 0]);
    }
    // Renamed, and what was replaced not yet removed.
    let (next, intent) = cut_off(place, &params, b"content").await;
    std::fs::rename(&file, aside(place, &next)).unwrap();
    std::fs::rename(place.root.join(intent.part.unwrap()), &file).unwrap();
    place.run(&next, "drop", &params, Some(payload(b"content"))).await.unwrap();
    assert_eq!((place.read("a.csv"), place.parts()), (b"content".to_vec(), vec![]));

    let params = json!({"from": "new.csv", "to": "a.csv", "on_conflict": "replace"});
    for renamed in [false, true] {
        place.write("new.csv", b"moved");
        place.write("a.csv", b"older");
        let next = intent_of(place, "move", &params).await;
        std::fs::rename(&file, aside(place, &next)).unwrap();
        if renamed {
            std::fs::rename(place.root.join("new.csv"), &file).unwrap();
        }
        let outcome = place.run(&next, "move", &params, None).await.unwrap();
        assert_eq!(outcome.result["path"], "a.csv");
        assert!(!renamed || outcome.result["atomic"] == false, "it was replaced in steps");
        assert_eq!((place.read("a.csv"), place.parts()), (b"moved".to_vec(), vec![]));
        assert!(!place.has("new.csv"));
    }
}

pub async fn a_file_set_aside_to_be_moved_onto_itself_is_put_back(place: &Place) {
    std::fs::create_dir(place.root.join("real")).unwrap();
    std::os::unix::fs::symlink("real", place.root.join("link")).unwrap();
    place.write("real/a.csv", b"content");
    let params = json!({"from": "link/a.csv", "to": "real/a.csv", "on_conflict": "replace"});
    let next = intent_of(place, "move", &params).await;
    // Nothing was done yet. ProFTPD's SFTP refuses it.
    let refuses = place.proftpd.is_some() && place.abilities.syncs;
    let is_moved = |result: Result<Outcome, Failure>| match result {
        Err(failure) if refuses => assert_eq!(failure.effect, Effect::NotApplied, "{failure}"),
        result => assert_eq!(result.unwrap().result["path"], "real/a.csv"),
    };
    is_moved(place.run(&next, "move", &params, None).await);
    assert_eq!(place.read("real/a.csv"), b"content");
    let hidden = place.root.join(format!("real/.passerelle-{}.taken", next.job));
    std::fs::rename(place.root.join("real/a.csv"), &hidden).unwrap();
    is_moved(place.run(&next, "move", &params, None).await);
    assert_eq!((place.read("real/a.csv"), place.parts()), (b"content".to_vec(), vec![]));
}
