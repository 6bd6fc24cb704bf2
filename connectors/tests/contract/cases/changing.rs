//! `delete`, `move`, and the probe.

use super::failed;
use crate::support::{Place, Recorder, call};
use passerelle_connectors::{Call, Code, Effect, Gate, Verdict};
use serde_json::json;
use std::{sync::Arc, time::Duration};

pub async fn delete_is_done_when_absent(place: &Place) {
    place.write("a.csv", b"a");
    assert_eq!(place.ask("delete", json!({"path": "a.csv"})).await.unwrap(), json!({"deleted": true}));
    assert!(!place.has("a.csv"));
    assert_eq!(place.ask("delete", json!({"path": "a.csv"})).await.unwrap(), json!({"deleted": false}));
    assert_eq!(
        place.ask("delete", json!({"path": "nowhere/a.csv"})).await.unwrap(),
        json!({"deleted": false})
    );
    place.write("a.csv", b"a");
    assert_eq!(
        place.ask("delete", json!({"path": "a.csv/below"})).await.unwrap(),
        json!({"deleted": false}),
        "below a file there is nothing"
    );
}

pub async fn delete_refuses_folders(place: &Place) {
    std::fs::create_dir(place.root.join("folder")).unwrap();
    let result = place.ask("delete", json!({"path": "folder"})).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
    assert!(place.has("folder"));
}

pub async fn move_obeys_on_conflict(place: &Place) {
    std::fs::create_dir(place.root.join("done")).unwrap();
    let to = "done/a.csv";
    place.write("a.csv", b"1");
    assert_eq!(place.ask("move", json!({"from": "a.csv", "to": to})).await.unwrap(), json!({"path": to}));
    assert_eq!(place.read(to), b"1");
    assert!(!place.has("a.csv"));

    place.write("a.csv", b"2");
    // Without a word about conflicts nothing is replaced.
    for params in
        [json!({"from": "a.csv", "to": to}), json!({"from": "a.csv", "to": to, "on_conflict": "fail"})]
    {
        failed(place.ask("move", params).await, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
    }
    assert_eq!((place.read("a.csv"), place.read(to)), (b"2".to_vec(), b"1".to_vec()));
    let params = json!({"from": "a.csv", "to": to, "on_conflict": "suffix"});
    assert_eq!(place.ask("move", params).await.unwrap(), json!({"path": "done/a (2).csv"}));
    assert_eq!(place.read("done/a (2).csv"), b"2");
    place.write("a.csv", b"3");
    let params = json!({"from": "a.csv", "to": to, "on_conflict": "replace"});
    let at_once = place.abilities.replaces_at_once && place.dav.is_none();
    let expected = if at_once { json!({"path": to}) } else { json!({"path": to, "atomic": false}) };
    assert_eq!(place.ask("move", params).await.unwrap(), expected);
    assert_eq!(place.read(to), b"3");
    assert!(!place.has("a.csv"));
    assert_eq!(place.parts(), [""; 0]);
}

pub async fn a_file_moved_onto_itself_stays(place: &Place) {
    std::fs::create_dir(place.root.join("real")).unwrap();
    std::os::unix::fs::symlink("real", place.root.join("link")).unwrap();
    place.write("real/a.csv", b"content");
    for to in ["real/a.csv", "link/a.csv"] {
        for (from, to) in [("real/a.csv", to), (to, "real/a.csv")] {
            let params = json!({"from": from, "to": to, "on_conflict": "replace"});
            match place.ask("move", params).await {
                Ok(result) => assert_eq!(result["path"], to, "{from} to {to}"),
                // ProFTPD's SFTP refuses it.
                Err(failure) => {
                    assert!(place.proftpd.is_some() && from != to, "{from} to {to}: {failure}");
                    assert_eq!(failure.effect, Effect::NotApplied);
                }
            }
            assert_eq!(place.read("real/a.csv"), b"content", "{from} to {to}");
            let params = json!({"from": from, "to": to, "on_conflict": "fail"});
            failed(
                place.ask("move", params).await,
                Verdict::Permanent,
                Code::TargetConflict,
                Effect::NotApplied,
            );
            assert_eq!(place.read("real/a.csv"), b"content", "{from} to {to}");
        }
    }
    assert_eq!(place.parts(), [""; 0]);
    let params = json!({"from": "real/b.csv", "to": "real/b.csv", "on_conflict": "replace"});
    failed(place.ask("move", params).await, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
}

pub async fn move_needs_its_source_and_folder(place: &Place) {
    let result = place.ask("move", json!({"from": "a.csv", "to": "b.csv"})).await;
    failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
    place.write("a.csv", b"1");
    let result = place.ask("move", json!({"from": "a.csv", "to": "nowhere/b.csv"})).await;
    failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
    assert_eq!(place.read("a.csv"), b"1");
    std::fs::create_dir(place.root.join("folder")).unwrap();
    let result = place.ask("move", json!({"from": "folder", "to": "b"})).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
    let result = place.ask("move", json!({"from": "a.csv", "to": "folder", "on_conflict": "replace"})).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
}

pub async fn the_gate_is_asked_before_each_effect(place: &Place) {
    place.write("a.csv", b"1");
    for (operation, params) in
        [("delete", json!({"path": "a.csv"})), ("move", json!({"from": "a.csv", "to": "b.csv"}))]
    {
        let gate = Recorder::shut();
        let call = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..call() };
        let result = place.run(&call, operation, &params, None).await;
        failed(result, Verdict::Retry, Code::Internal, Effect::NotApplied);
        assert_eq!(gate.count(), 1);
        assert!(place.has("a.csv") && !place.has("b.csv"), "{operation} did not wait for the gate");
    }
    let gate = Recorder::shut();
    let call = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..call() };
    for (operation, params) in [("stat", json!({"path": "a.csv"})), ("list", json!({}))] {
        place.run(&call, operation, &params, None).await.unwrap();
    }
    assert_eq!(gate.count(), 0, "reading needs no grant");
}

pub async fn the_probe_finds_the_folder(place: &mut Place) {
    place.connector.probe(Duration::from_secs(10)).await.unwrap();
    // Also once a connection is warm: the folder may have gone meanwhile.
    std::fs::remove_dir(&place.root).unwrap();
    // A share of Samba stays where it was as long as a session has it open.
    if place.server().is_none() {
        let result = place.connector.probe(Duration::from_secs(10)).await;
        failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
    }
    std::fs::create_dir(&place.root).unwrap();
    place.drop(json!({"path": "a.csv"}), b"1").await.unwrap();
    assert_eq!(place.read("a.csv"), b"1");
}
