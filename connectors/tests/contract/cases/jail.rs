//! Nothing reaches outside the root.

use super::failed;
use crate::support::Place;
use passerelle_connectors::{Code, Effect, Verdict};
use serde_json::json;
use std::os::unix::fs::symlink;

pub async fn links_that_lead_out_are_denied(place: &Place) {
    if !place.abilities.sees_links {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret.csv"), "secret").unwrap();
    std::fs::create_dir(outside.path().join("sub")).unwrap();
    symlink(outside.path(), place.root.join("out")).unwrap();
    symlink(outside.path().join("secret.csv"), place.root.join("file.csv")).unwrap();
    symlink("../../..", place.root.join("up")).unwrap();
    place.write("mine.csv", b"mine");

    for (operation, params) in [
        ("drop", json!({"path": "out/new.csv"})),
        ("drop", json!({"path": "out/sub/new.csv"})),
        ("drop", json!({"path": "out/deep/new.csv", "create_dirs": true})),
        ("drop", json!({"path": "up/new.csv"})),
        ("drop", json!({"path": "file.csv"})),
        ("fetch", json!({"path": "file.csv"})),
        ("fetch", json!({"path": "out/secret.csv"})),
        ("list", json!({"path": "out"})),
        ("list", json!({"path": "up"})),
        ("stat", json!({"path": "file.csv"})),
        ("stat", json!({"path": "out/secret.csv"})),
        ("delete", json!({"path": "out/secret.csv"})),
        ("move", json!({"from": "out/secret.csv", "to": "stolen.csv"})),
        ("move", json!({"from": "mine.csv", "to": "out/mine.csv"})),
    ] {
        let result = match operation {
            "drop" => place.drop(params.clone(), b"x").await.map(|outcome| outcome.result),
            "fetch" => place.fetch(params.clone()).await.map(|(result, ..)| result),
            _ => place.ask(operation, params.clone()).await,
        };
        let failure = failed(result, Verdict::Denied, Code::PathInvalid, Effect::NotApplied);
        assert!(failure.message.contains("symbolic link"), "{operation} {params}: {failure}");
    }
    let mut names: Vec<_> =
        std::fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["secret.csv", "sub"]);
    assert_eq!(std::fs::read(outside.path().join("secret.csv")).unwrap(), b"secret");
    assert_eq!(std::fs::read_dir(outside.path().join("sub")).unwrap().count(), 0);
    assert_eq!(place.read("mine.csv"), b"mine");

    // The links themselves are shown, not followed; deleting one deletes the link alone.
    let listed = place.ask("list", json!({"recursive": true})).await.unwrap();
    let shown: Vec<_> =
        listed["items"].as_array().unwrap().iter().map(|item| (&item["path"], &item["kind"])).collect();
    assert_eq!(
        json!(shown),
        json!([["file.csv", "symlink"], ["mine.csv", "file"], ["out", "symlink"], ["up", "symlink"]])
    );
    assert_eq!(place.ask("delete", json!({"path": "file.csv"})).await.unwrap(), json!({"deleted": true}));
    assert!(outside.path().join("secret.csv").exists());
}

pub async fn links_that_stay_inside_work(place: &Place) {
    if !place.abilities.sees_links {
        return;
    }
    std::fs::create_dir_all(place.root.join("real/deep")).unwrap();
    symlink("real", place.root.join("alias")).unwrap();
    symlink("../deep", place.root.join("real/deep/loop")).unwrap();
    place.drop(json!({"path": "alias/a.csv"}), b"a").await.unwrap();
    assert_eq!(place.read("real/a.csv"), b"a");
    symlink("real/a.csv", place.root.join("link.csv")).unwrap();
    assert_eq!(place.fetch(json!({"path": "link.csv"})).await.unwrap().1, b"a");
    assert_eq!(place.ask("stat", json!({"path": "link.csv"})).await.unwrap()["kind"], "file");
    // Replacing a link puts the file in the link's place.
    place.drop(json!({"path": "link.csv"}), b"b").await.unwrap();
    assert_eq!((place.read("link.csv"), place.read("real/a.csv")), (b"b".to_vec(), b"a".to_vec()));
    assert!(!std::fs::symlink_metadata(place.root.join("link.csv")).unwrap().is_symlink());
    let listed = place.ask("list", json!({"path": "alias"})).await.unwrap();
    assert_eq!(listed["items"][0]["path"], "alias/a.csv");
    let all = place.ask("list", json!({"recursive": true})).await.unwrap();
    assert_eq!(all["items"].as_array().unwrap().len(), 6, "a loop of links is not followed: {all}");
}

pub async fn bad_paths_are_denied(place: &Place) {
    for path in ["../x", "a/../../x", "/etc/x", "a//b", "./a", "a\0b", "", "a/", ".passerelle-x-1.part"] {
        let result = place.drop(json!({"path": path}), b"x").await;
        let failure = result.unwrap_err();
        assert_eq!(
            (failure.verdict, failure.code),
            (Verdict::Denied, Code::PathInvalid),
            "{path:?}: {failure}"
        );
    }
    assert_eq!(std::fs::read_dir(&place.root).unwrap().count(), 0);
}
