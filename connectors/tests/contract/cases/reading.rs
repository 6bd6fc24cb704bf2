//! `fetch`, `list`, `stat`.

use super::failed;
use crate::support::{Place, call, sink_of};
use passerelle_connectors::{Code, Effect, Verdict, Visible};
use serde_json::{Value, json};
use std::{
    process::Command,
    time::{Duration, SystemTime},
};

pub async fn fetch_gives_content_and_time(place: &Place) {
    place.write("a.csv", b"content");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_793_000_000);
    std::fs::File::options().write(true).open(place.root.join("a.csv")).unwrap().set_modified(time).unwrap();
    let (result, content, produced) = place.fetch(json!({"path": "a.csv", "then": "keep"})).await.unwrap();
    assert_eq!(content, b"content");
    assert_eq!((produced.size, produced.media_type.as_str()), (7, "application/octet-stream"));
    assert_eq!(result["modified_at"], "2026-10-26T07:33:20Z");
    assert_eq!(result["size"], 7);
    assert!(place.has("a.csv"));
    let result = place.fetch(json!({"path": "b.csv"})).await;
    failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
    let result = place.fetch(json!({"path": "folder/b.csv"})).await;
    failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
}

pub async fn fetch_refuses_what_is_not_a_file(place: &Place) {
    std::fs::create_dir(place.root.join("folder")).unwrap();
    let result = place.fetch(json!({"path": "folder"})).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
    if !place.abilities.sees_pipes {
        return;
    }
    assert!(Command::new("mkfifo").arg(place.root.join("pipe")).status().unwrap().success());
    // Opening a pipe nobody writes to would wait for ever.
    let result = place.fetch(json!({"path": "pipe"})).await;
    failed(result, Verdict::Permanent, Code::TargetRefused, Effect::NotApplied);
    let result = place.drop(json!({"path": "pipe"}), b"x").await;
    failed(result, Verdict::Permanent, Code::TargetRefused, Effect::NotApplied);
    assert_eq!(place.ask("stat", json!({"path": "pipe"})).await.unwrap()["kind"], "other");
}

pub async fn fetch_stops_at_the_allowed_size(place: &Place) {
    place.write("a.csv", &[1; 1001]);
    let params = json!({"path": "a.csv"});
    for (max, fits) in [(1000, false), (1001, true)] {
        let (mut output, content) = sink_of(max);
        let result = place.connector.execute(&call(), "fetch", &params, None, &mut output).await;
        if fits {
            result.unwrap();
            assert_eq!(content.lock().unwrap().len(), 1001);
        } else {
            failed(result, Verdict::Permanent, Code::TooLarge, Effect::NotApplied);
            assert_eq!(output.produced(), None);
        }
    }
}

pub async fn stat_shows_one_item(place: &Place) {
    std::fs::create_dir(place.root.join("folder")).unwrap();
    place.write("folder/a.csv", b"content");
    let item = place.ask("stat", json!({"path": "folder/a.csv"})).await.unwrap();
    assert_eq!(
        (&item["path"], &item["kind"], &item["size"]),
        (&json!("folder/a.csv"), &json!("file"), &json!(7))
    );
    assert!(item["modified_at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(place.ask("stat", json!({"path": "folder"})).await.unwrap()["kind"], "directory");
    let result = place.ask("stat", json!({"path": "folder/b.csv"})).await;
    failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
    let result = place.ask("list", json!({"path": "nowhere"})).await;
    failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
    let result = place.ask("list", json!({"path": "folder/a.csv"})).await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
}

fn paths(page: &Value) -> Vec<String> {
    page["items"].as_array().unwrap().iter().map(|item| item["path"].as_str().unwrap().to_owned()).collect()
}

/// All pages of a listing.
async fn pages(place: &Place, mut params: Value) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    loop {
        let page = place.ask("list", params.clone()).await.unwrap();
        // What the agent takes of a result.
        assert!(page.to_string().len() <= 256 * 1024, "{} bytes", page.to_string().len());
        pages.push(paths(&page));
        match &page["next_cursor"] {
            Value::Null => return pages,
            cursor => params["cursor"] = cursor.clone(),
        }
    }
}

pub async fn list_pages_through_a_large_folder(place: &Place) {
    // More than is held at once.
    let mut expected: Vec<String> = (0..10_000).map(|n| format!("file {n}.csv")).collect();
    for name in &expected {
        place.write(name, b"");
    }
    place.write(".passerelle-0193-1.part", b"unfinished");
    expected.sort();
    let seen = pages(place, json!({"limit": 1999})).await;
    assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [1999, 1999, 1999, 1999, 1999, 5]);
    assert_eq!(seen.concat(), expected);
    // More than a result holds: the pages are shorter than asked for.
    let seen = pages(place, json!({"limit": 10_000})).await;
    let lengths: Vec<_> = seen.iter().map(Vec::len).collect();
    assert!(lengths.len() > 1 && lengths.iter().rev().skip(1).all(|length| *length > 1000), "{lengths:?}");
    assert_eq!(seen.concat(), expected);
    assert_eq!(paths(&place.ask("list", json!({})).await.unwrap()), expected[..1000]);
}

pub async fn long_names_make_shorter_pages(place: &Place) {
    std::fs::create_dir(place.root.join("sub")).unwrap();
    let mut expected: Vec<String> = (0..1500).map(|n| format!("sub/{n:04}{}.csv", "x".repeat(191))).collect();
    for name in &expected {
        place.write(name, b"");
    }
    let seen = pages(place, json!({"path": "sub"})).await;
    assert!(seen.len() > 1, "all of them at once");
    assert_eq!(seen.concat(), expected);
    // The page ends inside a folder as well as between two.
    expected.insert(0, "sub".to_owned());
    assert_eq!(pages(place, json!({"recursive": true, "limit": 10_000})).await.concat(), expected);
    let filtered = pages(place, json!({"path": "sub", "pattern": "*[02468]xxx*"})).await;
    assert_eq!(filtered.concat().len(), 750);
}

pub async fn list_filters_and_descends(place: &Place) {
    std::fs::create_dir_all(place.root.join("b/c")).unwrap();
    std::fs::create_dir_all(place.root.join("b.csv")).unwrap();
    for path in ["a.csv", "a.txt", "b/1.csv", "b/c/2.csv", "b/c/é.txt", "b.csv/3.csv", "z.csv"] {
        place.write(path, path.as_bytes());
    }
    let listed = |params| async { paths(&place.ask("list", params).await.unwrap()) };
    assert_eq!(listed(json!({})).await, ["a.csv", "a.txt", "b", "b.csv", "z.csv"]);
    assert_eq!(listed(json!({"path": "b"})).await, ["b/1.csv", "b/c"]);
    assert_eq!(listed(json!({"pattern": "*.txt"})).await, ["a.txt"]);
    assert_eq!(listed(json!({"pattern": "{a,z}.csv"})).await, ["a.csv", "z.csv"]);
    let all =
        ["a.csv", "a.txt", "b", "b/1.csv", "b/c", "b/c/2.csv", "b/c/é.txt", "b.csv", "b.csv/3.csv", "z.csv"];
    assert_eq!(listed(json!({"recursive": true})).await, all);
    let csv = ["a.csv", "b/1.csv", "b/c/2.csv", "b.csv", "b.csv/3.csv", "z.csv"];
    assert_eq!(listed(json!({"recursive": true, "pattern": "*.csv"})).await, csv);
    for limit in 1..=all.len() {
        assert_eq!(
            pages(place, json!({"recursive": true, "limit": limit})).await.concat(),
            all,
            "limit {limit}"
        );
        assert_eq!(
            pages(place, json!({"recursive": true, "limit": limit, "pattern": "*.csv"})).await.concat(),
            csv
        );
    }
    let page = place.ask("list", json!({"path": "b"})).await.unwrap();
    assert_eq!((&page["items"][0]["kind"], &page["items"][0]["size"]), (&json!("file"), &json!(7)));
    assert_eq!(page["items"][1]["kind"], "directory");
}

pub async fn list_goes_on_while_files_come_and_go(place: &Place) {
    for name in ["a", "b", "c", "d"] {
        place.write(name, b"");
    }
    let first = place.ask("list", json!({"limit": 2})).await.unwrap();
    assert_eq!(paths(&first), ["a", "b"]);
    // The item of the cursor itself goes away; one comes before it and one after.
    std::fs::remove_file(place.root.join("b")).unwrap();
    place.write("aa", b"");
    place.write("bb", b"");
    let second = place.ask("list", json!({"limit": 9, "cursor": first["next_cursor"]})).await.unwrap();
    assert_eq!(paths(&second), ["bb", "c", "d"]);
    assert_eq!(second["next_cursor"], Value::Null);
    // A folder that the cursor is in went away.
    std::fs::create_dir(place.root.join("e")).unwrap();
    place.write("e/1", b"");
    place.write("e/2", b"");
    place.write("f", b"");
    let page = place.ask("list", json!({"recursive": true, "limit": 6})).await.unwrap();
    assert_eq!(paths(&page), ["a", "aa", "bb", "c", "d", "e"]);
    std::fs::remove_dir_all(place.root.join("e")).unwrap();
    let rest = place.ask("list", json!({"recursive": true, "cursor": page["next_cursor"]})).await.unwrap();
    assert_eq!(paths(&rest), ["f"]);
}

pub async fn a_listing_tells_of_nothing_that_is_not_visible(place: &Place) {
    std::fs::create_dir(place.root.join("sub")).unwrap();
    for name in ["a.csv", "b.txt", "c.csv", "sub/d.csv", "sub/e.txt", "z.txt"] {
        place.write(name, b"x");
    }
    let mut call = call();
    call.visible = Visible::only(|path| path.ends_with(".csv"));
    let (mut seen, mut cursor) = (Vec::new(), json!(null));
    loop {
        let params = json!({"recursive": true, "limit": 1, "cursor": cursor});
        let page = place.run(&call, "list", &params, None).await.unwrap().result;
        seen.extend(page["items"].as_array().unwrap().iter().map(|item| item["path"].clone()));
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(json!(seen), json!(["a.csv", "c.csv", "sub/d.csv"]));
}
