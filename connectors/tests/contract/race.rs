//! What changes in the middle of an operation: a symbolic link put in a folder's place by somebody who may write there, and a
//! file that gives more than it had.

use crate::support::{Place, call, check, sink};
use passerelle_connectors::{Code, Effect};
use serde_json::json;
use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::timeout;

/// Each operation this often, and until it met both the folder and the link.
const ROUNDS: usize = 300;

/// Puts the folder `dir` and a link to `outside` in each other's place, again and again.
fn swap(root: &Path, outside: &Path, stop: &AtomicBool, swaps: &AtomicU64) {
    let (dir, aside, link) = (root.join("dir"), root.join("aside"), root.join("link"));
    symlink(outside, &link).unwrap();
    while !stop.load(Ordering::Relaxed) {
        fs::rename(&dir, &aside).unwrap();
        fs::rename(&link, &dir).unwrap();
        fs::rename(&dir, &link).unwrap();
        fs::rename(&aside, &dir).unwrap();
        swaps.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_swapped_in_meanwhile_leads_nowhere() {
    let place = Place::local();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("a.csv"), "secret").unwrap();
    fs::create_dir(place.root.join("dir")).unwrap();
    fs::write(place.root.join("dir/a.csv"), "mine").unwrap();
    let (stop, swaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let swapper = {
        let (root, outside) = (place.root.clone(), outside.path().to_owned());
        let (stop, swaps) = (Arc::clone(&stop), Arc::clone(&swaps));
        std::thread::spawn(move || swap(&root, &outside, &stop, &swaps))
    };
    let (mut done, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        if let Ok((_, content, ..)) = place.fetch(json!({"path": "dir/a.csv"})).await {
            assert_eq!(content, b"mine", "the link was followed");
        }
        let new = format!("dir/new-{round}.csv");
        for met in [
            place.drop(json!({"path": new}), b"x").await.is_ok(),
            place.ask("list", json!({"path": "dir"})).await.is_ok(),
            place.ask("move", json!({"from": new, "to": format!("dir/moved-{round}.csv")})).await.is_ok(),
            place.ask("delete", json!({"path": format!("dir/moved-{round}.csv")})).await.is_ok(),
        ] {
            if met { done += 1 } else { refused += 1 }
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(done > 0 && refused > 0, "nothing was raced: {done} done, {refused} refused");
    assert!(swaps.load(Ordering::Relaxed) > 10);
    let left: Vec<_> =
        fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["a.csv"], "something was put outside the root");
    assert_eq!(fs::read(outside.path().join("a.csv")).unwrap(), b"secret");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipes_sockets_and_devices_are_refused_at_once() {
    let place = Place::local();
    assert!(Command::new("mkfifo").arg(place.root.join("pipe")).status().unwrap().success());
    let _socket = UnixListener::bind(place.root.join("socket")).unwrap();
    let mut names = vec!["pipe", "socket"];
    // Only root makes devices.
    let device = Command::new("mknod").arg(place.root.join("zero")).args(["c", "1", "5"]).status();
    if device.is_ok_and(|made| made.success()) {
        names.push("zero");
    }
    for name in names {
        let fetched = timeout(Duration::from_secs(10), place.fetch(json!({"path": name}))).await;
        let failure = fetched.expect("it waits for the other end").unwrap_err();
        assert!(failure.message.contains("not a regular file"), "{name}: {failure}");
        let item = place.ask("stat", json!({"path": name})).await.unwrap();
        assert_eq!(item["kind"], "other", "{name}");
        // A drop that replaces it puts a file in its place, and writes nothing into it.
        let dropped = timeout(Duration::from_secs(10), place.drop(json!({"path": name}), b"x")).await;
        if dropped.expect("it waits for the other end").is_ok() {
            assert_eq!(place.read(name), b"x", "{name}");
        }
    }
}

/// It might never end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_gives_more_than_it_had_is_not_read_on() {
    let base = tempfile::tempdir().unwrap();
    // Files of the kernel have no size, and content all the same.
    let kernel = check(base.path(), "connector = \"file\"\nurl = \"file:///proc\"").unwrap();
    let (mut output, content) = sink();
    let fetched = kernel.execute(&call(), "fetch", &json!({"path": "version"}), None, &mut output).await;
    let failure = fetched.unwrap_err();
    assert_eq!((failure.code, failure.effect), (Code::TargetConflict, Effect::NotApplied), "{failure}");
    assert!(content.lock().unwrap().len() <= 1, "nothing is read past the end that it should have");
}
