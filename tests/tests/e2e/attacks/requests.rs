//! Offers that are signed as they should be, and reach for what the owner's rules do not give.

use super::{
    Attack,
    Outcome::{self, Contained, Refused, Undecided},
    world::World,
};
use passerelle_protocol::{Intent, Sha256};
use serde_json::{Value, json};

/// A path of a form that no rule can allow.
const FORM: Outcome = Refused(&["path_invalid"]);
/// Allowed by no rule.
const RULE: Outcome = Refused(&["policy_denied"]);
/// Allowed by name, but it leads out of the root, or is no file.
const JAIL: Outcome =
    Refused(&["path_invalid", "policy_denied", "target_refused", "target_not_found", "target_conflict"]);
/// Nothing is done; what the earlier attempt did, nobody can tell.
const UNDECIDED: Outcome = Undecided("path_invalid");
const PARAMS: Outcome = Refused(&["invalid_params"]);
/// Refused for its form or its words, whichever is looked at first.
const FORM_OR_WORDS: Outcome = Refused(&["path_invalid", "invalid_params", "policy_denied"]);

pub(super) fn attacks(world: &World) -> Vec<Attack> {
    let mut all = Vec::new();
    for (name, path, outcome) in [
        ("a drop one folder up", "../a.csv", FORM),
        ("a drop that climbs out of an allowed folder", "in/../../a.csv", FORM),
        ("a drop that climbs within the root", "in/../private/a.csv", FORM),
        ("a drop to an absolute path", "/etc/passerelle.csv", FORM),
        ("a drop to a path with an empty part", "in//a.csv", FORM),
        ("a drop to a path with a dot", "in/./a.csv", FORM),
        ("a drop to nowhere", "", FORM),
        ("a drop to a folder", "in/", FORM),
        ("a drop to a path that ends in dots", "in/..", FORM),
        ("a drop with a NUL", "in/a.csv\0.txt", FORM),
        ("a drop under a name of 300 bytes", LONG_NAME, JAIL),
        ("a drop outside the rule", "private/a.csv", RULE),
        ("a drop in capitals", "IN/a.csv", RULE),
        ("a drop of another kind of file", "in/a.exe", RULE),
        ("a drop with a trailing dot", "in/a.csv.", RULE),
        ("a drop with a trailing space", "in/a.csv ", RULE),
        ("a drop with full-width dots", "．．/a.csv", RULE),
        ("a drop with a fraction slash", "in\u{2215}a.csv", RULE),
        ("a drop through a linked folder", "in/link/a.csv", JAIL),
        ("a drop through /proc", "in/proc/tmp/a.csv", JAIL),
        ("a drop into a folder that is not there", "in/new/a.csv", JAIL),
        // The name is a file's on this system, whatever it would be elsewhere.
        ("a drop with backslashes", "in\\..\\..\\a.csv", RULE),
        ("a drop with encoded dots", "in/%2e%2e/a.csv", JAIL),
    ] {
        all.push(Attack::new(name, world.drop(path).message(), outcome));
    }
    let compta = |operation: &str, params: Value| world.hub.draft("compta", operation, params).message();
    for (name, operation, params, outcome) in [
        ("a fetch through a link", "fetch", json!({"path": "in/out.csv"}), JAIL),
        ("a fetch through a relative link", "fetch", json!({"path": "in/relative.csv"}), JAIL),
        ("a fetch through a linked folder", "fetch", json!({"path": "in/link/secret.csv"}), JAIL),
        ("a fetch through /proc", "fetch", json!({"path": "in/proc/etc/a.csv"}), JAIL),
        ("a fetch of a pipe that nobody writes", "fetch", json!({"path": "in/pipe.csv"}), JAIL),
        ("a fetch of a link to itself", "fetch", json!({"path": "in/loop.csv"}), JAIL),
        ("a fetch of a folder", "fetch", json!({"path": "in/folder.csv"}), JAIL),
        ("a fetch outside the rule", "fetch", json!({"path": "private/secret.csv"}), RULE),
        (
            "a fetch that deletes without the right",
            "fetch",
            json!({"path": "in/there.csv", "then": "delete"}),
            RULE,
        ),
        (
            "a fetch that moves away without the right",
            "fetch",
            json!({"path": "in/there.csv", "then": {"move_to": "in/b.csv"}}),
            RULE,
        ),
        ("a stat outside the rule", "stat", json!({"path": "private/secret.csv"}), RULE),
        ("a list of the folder above", "list", json!({"path": "..", "pattern": "*.csv"}), FORM),
        ("a move out of the rule", "move", json!({"from": "in/there.csv", "to": "private/x.csv"}), RULE),
        ("a move into the rule", "move", json!({"from": "private/secret.csv", "to": "in/x.csv"}), RULE),
        ("a move into a linked folder", "move", json!({"from": "in/there.csv", "to": "in/link/x.csv"}), JAIL),
        ("a deletion through a linked folder", "delete", json!({"path": "in/link/secret.csv"}), JAIL),
        ("a deletion outside the rule", "delete", json!({"path": "private/secret.csv"}), RULE),
        ("a deletion of the root", "delete", json!({"path": "."}), FORM),
        ("an operation that does not exist", "format", json!({}), PARAMS),
        ("a path that is a number", "stat", json!({"path": 7}), PARAMS),
        ("a parameter that does not exist", "stat", json!({"path": "in/there.csv", "mode": 777}), PARAMS),
    ] {
        all.push(Attack::new(name, compta(operation, params), outcome));
    }
    // The link itself may be looked at or replaced by the rules; what it points to is never touched.
    for (name, operation, params) in [
        // Of names it gives those of the rule at most.
        ("a list of everything", "list", json!({"pattern": "*", "recursive": true})),
        ("a stat of a link", "stat", json!({"path": "in/out.csv"})),
        (
            "a fetch sideways, out of the rule and inside the root",
            "fetch",
            json!({"path": "in/sideways.csv"}),
        ),
    ] {
        all.push(Attack::new(name, compta(operation, params), Contained));
    }
    let spoilt = |params: Value| world.hub.draft("compta", "drop", params).with_payload(b"x").message();
    for (name, params, outcome) in [
        (
            "a drop that replaces without the right",
            json!({"path": "in/there.csv", "on_conflict": "replace"}),
            RULE,
        ),
        ("a drop that replaces by default", json!({"path": "in/there.csv"}), RULE),
        (
            "a drop that makes folders without the right",
            json!({"path": "in/n/a.csv", "create_dirs": true}),
            RULE,
        ),
        ("a drop that ends in another way", json!({"path": "in/a.csv", "on_conflict": "format"}), PARAMS),
    ] {
        all.push(Attack::new(name, spoilt(params), outcome));
    }
    let fail = json!({"path": "in/a.csv", "on_conflict": "fail"});
    let large = world.hub.draft("compta", "drop", fail).with_payload(&[b'x'; 2048]);
    all.push(Attack::new("a drop larger than allowed", large.message(), Refused(&["too_large"])));
    let elsewhere = world.hub.draft("hub", "drop", json!({"path": "in/a.csv"})).with_payload(b"x");
    all.push(Attack::new("a resource that is not configured", elsewhere.message(), RULE));
    all.extend(granted(world));
    all.extend(applications(world));
    all
}

/// A ticket may say what an earlier attempt was granted, and a breached hub says there what it likes.
fn granted(world: &World) -> Vec<Attack> {
    let intent = |part: &str, target: &str, state: Value| Intent {
        part: Some(part.to_owned()),
        target: Some(target.to_owned()),
        size: Some(1),
        sha256: Some(Sha256::of(b"x")),
        state: Some(state),
    };
    let synced = json!({"operation": "drop", "synced": true, "folder": "x"});
    let damaged = json!({"operation": "drop", "synced": false, "folder": "x"});
    let mut all = Vec::new();
    for (name, intent) in [
        ("a part that is another file", intent("private/secret.csv", "in/a.csv", synced.clone())),
        ("a part that is to be removed as damaged", intent("in/there.csv", "in/a.csv", damaged)),
        ("a part outside the root", intent("../outside/secret.csv", "in/a.csv", synced.clone())),
        ("a part that goes to another name", intent("in/there.csv", "private/a.csv", synced)),
    ] {
        let mut draft = world.drop("in/a.csv");
        draft.granted = Some(intent);
        all.push(Attack::new(name, draft.message(), UNDECIDED));
    }
    let moved = json!({"operation": "move", "file": {"size": 5, "modified": null, "inode": null}});
    let mut draft = world.hub.draft("compta", "move", json!({"from": "in/there.csv", "to": "in/b.csv"}));
    draft.granted = Some(Intent { part: None, sha256: None, ..intent("", "../b.csv", moved) });
    all.push(Attack::new("a move that was granted elsewhere", draft.message(), UNDECIDED));
    all
}

fn applications(world: &World) -> Vec<Attack> {
    let port = world.forbidden.port();
    let get = |path: &str| json!({"method": "GET", "path": path});
    let mut all = Vec::new();
    for (name, params, outcome) in [
        ("a request up to the application's root", get("../admin"), FORM_OR_WORDS),
        ("a request that climbs", get("orders/../../admin"), FORM_OR_WORDS),
        ("a request that climbs in percent signs", get("orders/%2e%2e/%2e%2e/admin"), FORM_OR_WORDS),
        ("a request with an encoded slash", get("orders/1%2fadmin"), FORM_OR_WORDS),
        ("a request with an encoded backslash", get("orders/1%5cadmin"), FORM_OR_WORDS),
        ("a request with a backslash", get("orders\\..\\admin"), FORM_OR_WORDS),
        ("a request encoded twice", get("orders/%252e%252e/admin"), RULE),
        ("a request to another host", get("//127.0.0.1/admin"), FORM_OR_WORDS),
        ("a request with a query in its path", get("orders/1?admin=1"), FORM_OR_WORDS),
        ("a request with a fragment", get("orders/1#admin"), FORM_OR_WORDS),
        ("a request with a line break", get("orders/1\r\nX-Admin: 1"), FORM_OR_WORDS),
        ("a request with a NUL", get("orders/\0"), FORM_OR_WORDS),
        ("a request outside the rule", get("admin"), RULE),
        ("a deletion", json!({"method": "DELETE", "path": "orders/1"}), RULE),
        (
            "a method that smuggles",
            json!({"method": "GET / HTTP/1.1\r\nX: 1", "path": "orders/1"}),
            FORM_OR_WORDS,
        ),
        ("another tunnel", json!({"method": "CONNECT", "path": "orders/1"}), FORM_OR_WORDS),
        ("a header that is not listed", with_header("x-admin", "1"), RULE),
        ("another user by header", with_header("authorization", "Bearer x"), FORM_OR_WORDS),
        ("another host by header", with_header("Host", "admin.example.com"), FORM_OR_WORDS),
        ("a body of another length", with_header("Content-Length", "0"), FORM_OR_WORDS),
        ("a body in pieces", with_header("Transfer-Encoding", "chunked"), FORM_OR_WORDS),
        ("a header with a line break", with_header("x-origin", "a\r\nX-Admin: 1"), FORM_OR_WORDS),
        (
            "a query key that is not listed",
            json!({"method": "GET", "path": "orders/1", "query": {"admin": "1"}}),
            RULE,
        ),
        ("a redirect to another application", get("orders/away"), Contained),
        ("an answer that unpacks to a thousand times its size", get("orders/bomb"), Contained),
        ("an answer larger than the rule", get("orders/endless"), Contained),
    ] {
        all.push(Attack::new(name, world.hub.draft("orders-app", "request", params).message(), outcome));
    }
    for (name, path) in [
        ("a request to an address with a port", format!("http://127.0.0.1:{port}/admin")),
        ("a request behind a user name", format!("@127.0.0.1:{port}/admin")),
    ] {
        let offer = world.hub.draft("orders-app", "request", get(&path)).message();
        all.push(Attack::new(name, offer, FORM_OR_WORDS));
    }
    let put = json!({"path": "orders/1/validated", "method": "PUT"});
    all.push(Attack::new(
        "a notification by another method",
        world.hub.draft("orders-app", "notify", put).with_payload(b"{}").message(),
        RULE,
    ));
    all
}

fn with_header(name: &str, value: &str) -> Value {
    json!({"method": "GET", "path": "orders/1", "headers": {name: value}})
}

/// `in/`, 296 letters and `.csv`.
const LONG_NAME: &str = concat!(
    "in/",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ".csv"
);
