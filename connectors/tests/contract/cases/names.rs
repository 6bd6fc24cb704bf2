//! Names as people give them: each arrives as it is, or is denied with `path_invalid` before anything happens.

use super::failed;
use crate::support::Place;
use passerelle_connectors::{Code, Effect, Verdict};
use serde_json::{Value, json};
use std::{collections::BTreeSet, ffi::OsStr, os::unix::ffi::OsStrExt as _};

fn names_in(place: &Place) -> BTreeSet<String> {
    let entries = std::fs::read_dir(&place.root).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Every operation on a name that the place takes.
async fn works(place: &Place, name: &str) {
    let told = |error| panic!("{name:?}: {error}");
    let content = name.as_bytes();
    place.drop(json!({"path": name}), content).await.unwrap_or_else(told);
    assert_eq!(names_in(place), BTreeSet::from([name.to_owned()]));
    let replaced = place.drop(json!({"path": name}), b"").await.unwrap_or_else(told);
    assert_eq!(replaced.result["path"], name);
    let beside = json!({"path": name, "on_conflict": "fail"});
    let result = place.drop(beside, b"x").await;
    failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
    assert_eq!(place.ask("stat", json!({"path": name})).await.unwrap()["size"], 0, "{name:?}");
    assert_eq!(place.fetch(json!({"path": name})).await.unwrap().1, b"", "{name:?}");
    let listed = place.ask("list", json!({})).await.unwrap();
    if place.abilities.lists_dot_names || !name.starts_with('.') {
        assert_eq!(listed["items"][0]["path"], name);
    }
    let moved = json!({"from": name, "to": "plain"});
    place.ask("move", moved).await.unwrap_or_else(|e| panic!("{name:?} to plain: {e}"));
    let back = json!({"from": "plain", "to": name});
    place.ask("move", back).await.unwrap_or_else(|e| panic!("plain to {name:?}: {e}"));
    assert_eq!(place.ask("delete", json!({"path": name})).await.unwrap(), json!({"deleted": true}));
    assert_eq!(names_in(place).len(), 0, "{name:?}");
}

async fn is_denied(place: &Place, name: &str) {
    for operation in ["fetch", "stat", "delete"] {
        let result = place.ask(operation, json!({"path": name})).await;
        failed(result, Verdict::Denied, Code::PathInvalid, Effect::NotApplied);
    }
    let result = place.drop(json!({"path": name}), b"x").await;
    failed(result, Verdict::Denied, Code::PathInvalid, Effect::NotApplied);
    assert_eq!(names_in(place).len(), 0, "{name:?}");
}

pub async fn names_that_mean_something_elsewhere_arrive(place: &Place) {
    for name in
        ["%41%2F.csv", "50 %", "a#b&c;d=e+f", "~root", "-", "--help", "..a", "@a!b^c", "{a,b}[c]", "'"]
    {
        works(place, name).await;
    }
}

pub async fn names_that_windows_forbids_arrive_or_are_denied(place: &Place) {
    for name in [
        "a:b",
        "a?b",
        "a*b",
        "a<b>c",
        "a|b",
        "\"a\"",
        "a\\b",
        "x -> y",
        "CON",
        "nul.txt",
        "dot.",
        "blank ",
        "tab\tstop",
    ] {
        match place.abilities.takes_odd_names {
            true => works(place, name).await,
            false => is_denied(place, name).await,
        }
    }
}

pub async fn names_in_two_forms_of_unicode_are_two(place: &Place) {
    let (composed, decomposed) = ("\u{e9}t\u{e9}.csv", "e\u{301}te\u{301}.csv");
    for name in [composed, decomposed] {
        let params = json!({"path": name, "on_conflict": "fail"});
        place.drop(params, name.as_bytes()).await.unwrap();
    }
    assert_eq!(names_in(place), BTreeSet::from([composed.to_owned(), decomposed.to_owned()]));
    assert_eq!(place.read(composed), composed.as_bytes());
    assert_eq!(place.fetch(json!({"path": decomposed})).await.unwrap().1, decomposed.as_bytes());
}

pub async fn a_name_in_another_case_is_never_replaced_unasked(place: &Place) {
    place.drop(json!({"path": "Report.csv"}), b"old").await.unwrap();
    let params = json!({"path": "REPORT.csv", "on_conflict": "fail"});
    let result = place.drop(params, b"new").await;
    assert_eq!(place.read("Report.csv"), b"old");
    if place.abilities.tells_cases_apart {
        result.unwrap();
        assert_eq!(place.read("REPORT.csv"), b"new");
    } else {
        failed(result, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
        let params = json!({"path": "REPORT.csv", "on_conflict": "suffix"});
        assert_eq!(place.drop(params, b"new").await.unwrap().result["path"], "REPORT (2).csv");
        assert_eq!(place.read("Report.csv"), b"old");
    }
}

pub async fn the_longest_names_and_paths_arrive_or_are_denied(place: &Place) {
    let longest = "n".repeat(255);
    place.drop(json!({"path": longest}), b"x").await.unwrap();
    let beside = place.drop(json!({"path": longest, "on_conflict": "suffix"}), b"y").await.unwrap();
    assert_eq!(beside.result["path"].as_str().unwrap().len(), 255);
    is_denied_alone(place, &"n".repeat(256)).await;
    // Whether a path fits depends on how long that of the resource's folder is on the server.
    let folder = format!("{}/", "d".repeat(200));
    for length in [900, 2000, 3500, 4096] {
        let path = folder.repeat(length / 201) + &"f".repeat(length % 201);
        assert_eq!(path.len(), length);
        let dropped = place.drop(json!({"path": path, "create_dirs": true}), b"deep").await;
        match dropped {
            Ok(_) => {
                assert_eq!(place.fetch(json!({"path": path})).await.unwrap().1, b"deep", "{length}");
                let deleted = place.ask("delete", json!({"path": path})).await.unwrap();
                assert_eq!(deleted, json!({"deleted": true}), "{length}");
            }
            Err(lost) if length > 900 && !place.abilities.refuses_long_paths => {
                let told = (lost.verdict, lost.code, lost.effect);
                assert_eq!(told, (Verdict::Retry, Code::TargetUnreachable, Effect::NotApplied), "{lost}");
            }
            denied if length > 900 => {
                failed(denied, Verdict::Denied, Code::PathInvalid, Effect::NotApplied);
                // The session is as good as before.
                place.ask("stat", json!({"path": longest})).await.unwrap();
            }
            denied => panic!("{length} bytes: {denied:?}"),
        }
    }
    assert_eq!(place.parts(), [""; 0]);
}

async fn is_denied_alone(place: &Place, name: &str) {
    let result = place.drop(json!({"path": name}), b"x").await;
    failed(result, Verdict::Denied, Code::PathInvalid, Effect::NotApplied);
}

pub async fn names_that_are_not_utf_8_are_counted(place: &Place) {
    place.write("a.csv", b"");
    for name in [&b"caf\xe9.csv"[..], b"\xff\xfe"] {
        std::fs::write(place.root.join(OsStr::from_bytes(name)), b"x").unwrap();
    }
    let listed = place.ask("list", json!({})).await.unwrap();
    let paths: Vec<&Value> = listed["items"].as_array().unwrap().iter().map(|item| &item["path"]).collect();
    let told = if place.abilities.tells_unreadable_names { json!(2) } else { json!(null) };
    assert_eq!((paths, &listed["unreadable_names"]), (vec![&json!("a.csv")], &told));
}
