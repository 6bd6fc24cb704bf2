//! Whole decisions, by the real connectors: what the tricks with paths, cases and encodings come to.

use super::{Question, Refused, Spent, volume::Used};
use crate::settings::Settings;
use passerelle_protocol::{Code, Verdict};
use serde_json::{Value, json};

const RULES: &str = r#"
[hub]
url = "https://hub.example.com"
[resources.files]
connector = "file"
url = "file://DIR"
[[resources.files.allow]]
operations = ["drop", "fetch", "move", "list", "stat"]
paths = ["in/*.csv", "in/café.txt"]
max_size = "1KiB"
[[resources.files.allow]]
operations = ["drop", "move"]
paths = ["out/**"]
may = []
[[resources.files.allow]]
operations = ["delete"]
paths = ["in/done.csv"]
[resources.app]
connector = "http"
url = "http://127.0.0.1:1/api/"
[[resources.app.allow]]
operations = ["request"]
methods = ["GET"]
paths = ["orders/*"]
query = ["page"]
headers = ["x-trace"]
[resources.day]
connector = "file"
url = "file://DIR"
[[resources.day.allow]]
operations = ["drop"]
paths = ["**"]
max_per_day = 2
daily_volume = "1KiB"
[[resources.day.allow]]
operations = ["drop"]
paths = ["more/**"]
[resources.closed]
connector = "file"
url = "file://DIR"
"#;

fn settings() -> Settings {
    let dir = tempfile::tempdir().unwrap();
    let text = RULES.replace("DIR", dir.path().to_str().unwrap());
    std::fs::write(dir.path().join("agent.toml"), text).unwrap();
    Settings::load(dir.path()).unwrap()
}

fn ask(
    settings: &Settings,
    resource: &str,
    operation: &str,
    params: &Value,
    size: Option<u64>,
) -> Result<usize, Refused> {
    let resource = resource.parse().unwrap();
    let question = Question { resource: &resource, operation, params, has_payload: size.is_some(), size };
    settings.judge(question, &Spent::new()).map(|judged| judged.rule)
}

#[test]
fn no_trick_with_a_path_reaches_what_no_rule_names() {
    let settings = settings();
    for (path, expected) in [
        ("in/a.csv", Ok(1)),
        ("out/deep/er.bin", Err(Code::PolicyDenied)), // a drop replaces unless it says otherwise, and this rule gives no right
        // Case counts, even where the target folds it.
        ("in/a.CSV", Err(Code::PolicyDenied)),
        ("IN/a.csv", Err(Code::PolicyDenied)),
        // Dots, in every place.
        ("in/../secret", Err(Code::PathInvalid)),
        ("in/..", Err(Code::PathInvalid)),
        ("./in/a.csv", Err(Code::PathInvalid)),
        ("in/./a.csv", Err(Code::PathInvalid)),
        ("/in/a.csv", Err(Code::PathInvalid)),
        ("in//a.csv", Err(Code::PathInvalid)),
        ("in/a.csv/", Err(Code::PathInvalid)),
        ("", Err(Code::PathInvalid)),
        // Windows would drop them; here they are part of the name, which no rule names.
        ("in/a.csv.", Err(Code::PolicyDenied)),
        ("in/a.csv ", Err(Code::PolicyDenied)),
        ("in./a.csv", Err(Code::PolicyDenied)),
        // File names are not URLs: nothing is decoded, so nothing can be hidden.
        ("in/%2e%2e/a.csv", Err(Code::PolicyDenied)),
        ("in%2fa.csv", Err(Code::PolicyDenied)),
        ("in\\a.csv", Err(Code::PolicyDenied)),
        ("in\\..\\secret.csv", Err(Code::PolicyDenied)),
        ("in/a.csv\0.txt", Err(Code::PathInvalid)),
        ("in/a\u{2215}b.csv", Ok(1)), // a character like a slash is none
        // The same letters in another normal form are another name, as they are for the target's disk.
        ("in/caf\u{e9}.txt", Ok(1)),
        ("in/cafe\u{301}.txt", Err(Code::PolicyDenied)),
    ] {
        let got = ask(&settings, "files", "drop", &json!({"path": path}), Some(1))
            .map_err(|refused| refused.failure.code);
        assert_eq!(got, expected, "{path:?}");
    }
}

#[test]
fn a_listing_shows_what_its_rule_allows_and_nothing_beside() {
    let settings = settings();
    let list = |params: Value| {
        let resource = "files".parse().unwrap();
        let question = Question {
            resource: &resource,
            operation: "list",
            params: &params,
            has_payload: false,
            size: None,
        };
        settings.judge(question, &Spent::new()).map(|judged| judged.visible)
    };
    assert!(list(json!({"path": "in", "pattern": "*.csv"})).unwrap().is_everything());
    for params in
        [json!({"path": "in"}), json!({}), json!({"recursive": true}), json!({"path": "in", "pattern": "*"})]
    {
        let visible = list(params.clone()).unwrap();
        let shown =
            ["in/a.csv", "in/café.txt", "in/a*.csv", "in/b.txt", "in", "out/a", "in/x/a.csv", "../in/a.csv"]
                .map(|path| visible.shows(path));
        assert_eq!(shown, [true, true, true, false, false, false, false, false], "{params}");
    }
    // Where it could show nothing, not even whether there is such a folder is told.
    for params in
        [json!({"path": "out"}), json!({"path": "in/deep"}), json!({"path": "secret", "recursive": true})]
    {
        let Err(refused) = list(params.clone()) else { panic!("{params}") };
        assert_eq!(refused.failure.code, Code::PolicyDenied, "{params}");
    }
}

#[test]
fn http_paths_are_compared_after_one_decoding() {
    let settings = settings();
    for (params, expected) in [
        (json!({"method": "GET", "path": "orders/1"}), Ok(1)),
        (json!({"method": "GET", "path": "orders/%31"}), Ok(1)),
        (json!({"method": "GET", "path": "%6frders/1"}), Ok(1)),
        (json!({"method": "GET", "path": "orders/%2531"}), Ok(1)), // decoded once: the name is "%31"
        (
            json!({"method": "GET", "path": "orders/1", "query": {"page": "2"}, "headers": {"X-Trace": "1"}}),
            Ok(1),
        ),
        (json!({"method": "GET", "path": "orders/1", "query": {"PAGE": "2"}}), Err(Code::PolicyDenied)),
        (json!({"method": "GET", "path": "orders/1", "headers": {"x-other": "1"}}), Err(Code::PolicyDenied)),
        (json!({"method": "POST", "path": "orders/1"}), Err(Code::PolicyDenied)),
        (json!({"method": "GET", "path": "Orders/1"}), Err(Code::PolicyDenied)),
        (json!({"method": "GET", "path": "orders/1/lines"}), Err(Code::PolicyDenied)),
        (json!({"method": "GET", "path": "orders/%2e%2e/admin"}), Err(Code::PathInvalid)),
        (json!({"method": "GET", "path": "orders/%2E%2e"}), Err(Code::PathInvalid)),
        (json!({"method": "GET", "path": "orders/..%2fadmin"}), Err(Code::PathInvalid)),
        (json!({"method": "GET", "path": "orders/1%2fadmin"}), Err(Code::PathInvalid)),
        (json!({"method": "GET", "path": "orders/1\\admin"}), Err(Code::PathInvalid)),
        (json!({"method": "GET", "path": "orders/1%5cadmin"}), Err(Code::PathInvalid)),
        (json!({"method": "GET", "path": "/orders/1"}), Err(Code::PathInvalid)),
        (json!({"method": "GET", "path": "orders/%00"}), Err(Code::PathInvalid)),
        (json!({"method": "GET", "path": "http://169.254.169.254/"}), Err(Code::PathInvalid)),
        (json!({"method": "GET", "path": "//169.254.169.254/"}), Err(Code::PathInvalid)),
    ] {
        let got = ask(&settings, "app", "request", &params, None).map_err(|refused| refused.failure.code);
        assert_eq!(got, expected, "{params}");
    }
}

#[test]
fn two_rules_never_add_up() {
    let settings = settings();
    let refused =
        |operation: &str, params: Value, size| ask(&settings, "files", operation, &params, size).unwrap_err();
    // From a path of one rule to a path of the other.
    let moved = refused("move", json!({"from": "in/a.csv", "to": "out/a.csv"}), None);
    assert_eq!((moved.failure.code, moved.nearest), (Code::PolicyDenied, Some(1)));
    // The size of one with the path of the other.
    let large = refused("drop", json!({"path": "in/a.csv"}), Some(1025));
    assert_eq!((large.failure.code, large.nearest), (Code::TooLarge, Some(1)));
    // Fetching is one rule's, deleting another's.
    let both = refused("fetch", json!({"path": "in/done.csv", "then": "delete"}), None);
    assert_eq!((both.failure.code, both.nearest), (Code::PolicyDenied, Some(1)));
    let kept = ask(&settings, "files", "drop", &json!({"path": "out/a", "on_conflict": "fail"}), Some(4096));
    assert_eq!(kept.unwrap(), 2);
}

#[test]
fn what_is_not_configured_or_not_asked_rightly_is_refused_with_its_own_code() {
    let settings = settings();
    for (resource, operation, params, code, verdict) in [
        ("closed", "stat", json!({"path": "a"}), Code::PolicyDenied, Verdict::Denied),
        ("nowhere", "stat", json!({"path": "a"}), Code::PolicyDenied, Verdict::Denied),
        ("files", "format", json!({}), Code::InvalidParams, Verdict::Permanent),
        ("files", "drop", json!({"path": 1}), Code::InvalidParams, Verdict::Permanent),
        ("files", "drop", json!({"path": "in/a.csv", "mode": "x"}), Code::InvalidParams, Verdict::Permanent),
    ] {
        let refused = ask(&settings, resource, operation, &params, None).unwrap_err();
        assert_eq!(
            (refused.failure.code, refused.failure.verdict),
            (code, verdict),
            "{resource} {operation} {params}"
        );
        assert_eq!(refused.nearest, None);
    }
    let unwanted = ask(&settings, "files", "stat", &json!({"path": "in/a.csv"}), Some(1)).unwrap_err();
    assert_eq!(unwanted.failure.code, Code::InvalidParams);
}

#[test]
fn a_rule_that_is_used_up_today_leaves_the_job_for_another_day_or_another_rule() {
    let settings = settings();
    let resource = "day".parse().unwrap();
    let judge = |path: &str, size: u64, spent: Used| {
        let params = json!({"path": path});
        let question = Question {
            resource: &resource,
            operation: "drop",
            params: &params,
            has_payload: true,
            size: Some(size),
        };
        settings.judge(question, &Spent::from([(1, spent)])).map(|judged| judged.rule)
    };
    let used = |attempts, bytes| Used { attempts, bytes };
    assert_eq!(judge("a", 1024, used(0, 0)).unwrap(), 1);
    assert_eq!(judge("a", 24, used(1, 1000)).unwrap(), 1);
    assert_eq!(judge("more/a", 25, used(1, 1000)).unwrap(), 2);
    for refused in [judge("a", 25, used(1, 1000)), judge("a", 0, used(2, 0)), judge("a", 0, used(0, 1024))] {
        let failure = refused.unwrap_err().failure;
        assert_eq!((failure.verdict, failure.code), (Verdict::Retry, Code::Busy));
        assert!(failure.retry_after_ms.is_some_and(|ms| ms <= 24 * 3600 * 1000), "{failure:?}");
    }
    // What fits on no day does not wait for one.
    let never = judge("a", 1025, used(0, 0)).unwrap_err().failure;
    assert_eq!((never.verdict, never.code), (Verdict::Denied, Code::TooLarge));
}
