//! A share that is not mounted: its bare mount point is told from it by a file that only the share has.

use crate::support::{Place, check};
use passerelle_connectors::{Code, Effect, Verdict};
use serde_json::json;
use std::fs;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_in_a_bare_mount_point() {
    let local = Place::local();
    let marked = check(&local.base, &format!("{}\nrequire_marker = true", local.settings)).unwrap();
    let place = local.with(marked);
    let marker = place.root.join(".passerelle-share");
    let drop = async || place.drop(json!({"path": "a.csv"}), b"a").await;
    let refused = |failure: passerelle_connectors::Failure| {
        assert_eq!((failure.code, failure.effect), (Code::TargetUnreachable, Effect::NotApplied));
        assert_eq!(failure.verdict, Verdict::Retry);
        assert!(failure.message.contains("no .passerelle-share"), "{failure:?}");
    };

    refused(drop().await.unwrap_err());
    refused(place.ask("list", json!({"path": ""})).await.unwrap_err());
    assert_eq!(fs::read_dir(&place.root).unwrap().count(), 0, "something was written");

    fs::write(&marker, "").unwrap();
    drop().await.unwrap();
    let listed = place.ask("list", json!({"path": ""})).await.unwrap();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed}");
    for (operation, params) in [
        ("delete", json!({"path": ".passerelle-share"})),
        ("fetch", json!({"path": ".passerelle-share"})),
        ("move", json!({"from": "a.csv", "to": ".passerelle-share"})),
    ] {
        let failure = place.connector.demands(operation, &params).unwrap_err();
        assert_eq!(failure.code, Code::PathInvalid, "{operation}: {failure:?}");
    }

    // A folder that is open here could not be unmounted.
    let open = || {
        let files =
            fs::read_dir("/proc/self/fd").unwrap().filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        files.filter(|file| file == &place.root).count()
    };
    while open() > 0 {
        tokio::task::yield_now().await;
    }

    // Unmounted between two jobs, whatever connection is kept from the one before.
    fs::remove_file(&marker).unwrap();
    refused(drop().await.unwrap_err());
    assert_eq!(place.read("a.csv"), b"a");
    // A link is none: it may lead to the share from outside of it.
    std::os::unix::fs::symlink("a.csv", &marker).unwrap();
    drop().await.unwrap_err();
}
