//! What pickup and watch need: scanning, reading exactly what was seen, and taking away the very file that was read.

use crate::support::{Place, sha256, sink};
use passerelle_connectors::{Code, DynConnector, Patience, Scan, Scanned, Seen, Settle, Settled, Triggers};
use std::{
    fs::{self, File},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

fn patience() -> Patience {
    Patience { timeout: Duration::from_secs(30), cancel: CancellationToken::new() }
}

fn triggers(place: &Place) -> &dyn Triggers {
    place.connector.triggers().unwrap()
}

fn scan(folder: &str, deep: bool, after: Option<String>, limit: usize) -> Scan {
    Scan {
        folder: folder.to_owned(),
        wanted: Arc::new(|path| path.ends_with(".csv")),
        entered: Arc::new(move |path| deep && path != "done"),
        after,
        limit,
    }
}

/// What a pickup of the resource's own folder finds, and how many names it cannot tell of.
pub async fn found(connector: &dyn DynConnector) -> (Vec<String>, u64) {
    let triggers = connector.triggers().unwrap();
    let found = triggers.scan(scan("", false, None, 100), &patience()).await.unwrap();
    (found.files.into_iter().map(|file| file.path).collect(), found.unreadable)
}

async fn seen(place: &Place, path: &str) -> Seen {
    triggers(place).look(path, &patience()).await.unwrap().unwrap()
}

/// Gives a file a time of long ago, so that what replaces it has another one even where times are whole seconds.
fn age(place: &Place, path: &str) {
    let file = File::options().append(true).open(place.root.join(path)).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
}

fn settle(seen: &Seen, content: &[u8], move_to: Option<&str>) -> Settle {
    Settle {
        id: Uuid::from_u128(7),
        file: seen.clone(),
        sha256: Some(sha256(content)),
        move_to: move_to.map(str::to_owned),
    }
}

/// The name that a file has while it is put away.
fn aside(path: &str) -> String {
    let name = format!(".passerelle-{}-taken.part", Uuid::from_u128(7));
    path.rsplit_once('/').map_or(name.clone(), |(folder, _)| format!("{folder}/{name}"))
}

async fn done(place: &Place, settle: &Settle) -> Settled {
    triggers(place).settle(settle, &patience()).await.unwrap()
}

pub async fn a_scan_pages_through_files_alone(place: &Place) {
    for folder in ["in", "in/b", "in/done"] {
        fs::create_dir(place.root.join(folder)).unwrap();
    }
    for path in
        ["in/a.csv", "in/b/x.csv", "in/c.csv", "in/d.txt", "in/done/y.csv", "in/.passerelle-z.csv", "e.csv"]
    {
        place.write(path, path.as_bytes());
    }
    if place.abilities.sees_links {
        std::os::unix::fs::symlink(place.root.join("in/a.csv"), place.root.join("in/link.csv")).unwrap();
    }
    for limit in [1, 2, 100] {
        let (mut paths, mut after) = (Vec::new(), None);
        loop {
            let Scanned { files, next, .. } =
                triggers(place).scan(scan("in", true, after, limit), &patience()).await.unwrap();
            assert!(files.len() <= limit);
            for file in files {
                assert_eq!(file.size, file.path.len() as u64);
                assert_eq!(file, seen(place, &file.path).await, "a scan and a look tell the same");
                paths.push(file.path);
            }
            after = next;
            if after.is_none() {
                break;
            }
        }
        let real = |path: &String| !path.ends_with("link.csv");
        let paths: Vec<String> =
            paths.into_iter().filter(|path| place.abilities.sees_links || real(path)).collect();
        assert_eq!(paths, ["in/a.csv", "in/b/x.csv", "in/c.csv"]);
    }
    let flat = triggers(place).scan(scan("in", false, None, 100), &patience()).await.unwrap();
    assert_eq!(flat.files.len(), 2);
    assert!(triggers(place).look("in/nothing.csv", &patience()).await.unwrap().is_none());
    assert!(triggers(place).look("in/b", &patience()).await.unwrap().is_none(), "a folder is no file");
}

pub async fn a_file_is_read_only_as_it_was_seen(place: &Place) {
    for content in [&b""[..], b"accounting", &[7; 3_000_000]] {
        place.write("a.csv", content);
        let file = seen(place, "a.csv").await;
        let (mut output, read) = sink();
        triggers(place).read(&file, &mut output, &patience()).await.unwrap();
        assert_eq!(output.produced().unwrap().sha256, sha256(content));
        assert!(*read.lock().unwrap() == content);
    }
    age(place, "a.csv");
    let old = seen(place, "a.csv").await;
    // The same size, written later.
    place.write("a.csv", &[8; 3_000_000]);
    let failure = triggers(place).read(&old, &mut sink().0, &patience()).await.unwrap_err();
    assert_eq!(failure.code, Code::TargetConflict, "{failure}");
    fs::remove_file(place.root.join("a.csv")).unwrap();
    let failure = triggers(place).read(&old, &mut sink().0, &patience()).await.unwrap_err();
    assert_eq!(failure.code, Code::TargetNotFound, "{failure}");
}

pub async fn the_file_that_was_read_is_deleted_or_moved(place: &Place) {
    fs::create_dir(place.root.join("in")).unwrap();
    place.write("in/a.csv", b"1");
    let file = seen(place, "in/a.csv").await;
    assert_eq!(done(place, &settle(&file, b"1", None)).await, Settled::Deleted);
    assert!(!place.has("in/a.csv"));
    assert_eq!(done(place, &settle(&file, b"1", None)).await, Settled::Gone);
    // Missing folders are made, and what is there already is not replaced.
    for (content, to) in [(b"2", "done/in/a.csv"), (b"3", "done/in/a (2).csv")] {
        place.write("in/a.csv", content);
        let file = seen(place, "in/a.csv").await;
        let moved = done(place, &settle(&file, content, Some("done/in/a.csv"))).await;
        assert_eq!(moved, Settled::Moved(to.to_owned()));
        assert_eq!(place.read(to), content);
        assert_eq!(done(place, &settle(&file, content, Some("done/in/a.csv"))).await, Settled::Gone);
    }
    assert_eq!(place.parts(), Vec::<String>::new());
}

pub async fn a_newer_file_of_the_same_name_is_never_deleted(place: &Place) {
    // Replaced before anything was done.
    place.write("a.csv", b"old");
    age(place, "a.csv");
    let old = seen(place, "a.csv").await;
    place.write("a.csv", b"new");
    assert_eq!(done(place, &settle(&old, b"old", None)).await, Settled::Replaced);
    assert_eq!(place.read("a.csv"), b"new");
    // Replaced between the look and the rename, so that the newer one was taken aside: it gets its name back.
    fs::rename(place.root.join("a.csv"), place.root.join(aside("a.csv"))).unwrap();
    assert_eq!(done(place, &settle(&old, b"old", None)).await, Settled::Replaced);
    assert_eq!(place.read("a.csv"), b"new");
    // And yet another one has taken that meanwhile: both stay.
    fs::rename(place.root.join("a.csv"), place.root.join(aside("a.csv"))).unwrap();
    place.write("a.csv", b"newest");
    assert_eq!(done(place, &settle(&old, b"old", None)).await, Settled::Replaced);
    assert_eq!((place.read("a.csv"), place.read("a (2).csv")), (b"newest".to_vec(), b"new".to_vec()));
    assert_eq!(place.parts(), Vec::<String>::new());
}

pub async fn a_settling_that_was_cut_off_anywhere_is_finished(place: &Place) {
    for move_to in [None, Some("done/a.csv")] {
        let expected = move_to.map_or(Settled::Deleted, |to| Settled::Moved(to.to_owned()));
        // Cut off after the file was taken aside; before that it is the ordinary case.
        place.write("a.csv", b"1");
        let file = seen(place, "a.csv").await;
        fs::rename(place.root.join("a.csv"), place.root.join(aside("a.csv"))).unwrap();
        assert_eq!(done(place, &settle(&file, b"1", move_to)).await, expected);
        // A producer dropped the next one meanwhile: it is not touched.
        place.write("a.csv", b"22");
        assert_eq!(done(place, &settle(&file, b"1", move_to)).await, Settled::Replaced);
        assert_eq!(place.read("a.csv"), b"22");
        fs::remove_file(place.root.join("a.csv")).unwrap();
        // Cut off after the last step.
        assert_eq!(done(place, &settle(&file, b"1", move_to)).await, Settled::Gone);
    }
    assert_eq!(place.read("done/a.csv"), b"1");
    assert_eq!(place.parts(), Vec::<String>::new());
}
