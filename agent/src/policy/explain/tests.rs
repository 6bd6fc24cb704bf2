//! Explanations and differences of folders as operators write them.

use super::{Overview, difference};
use std::{fs, path::Path};
use tempfile::TempDir;

const HUB: &str = "[hub]\nurl = \"https://hub.example.com\"\n[agent]\nname = \"a\"\n";

fn folder(resources: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("resources.d")).unwrap();
    fs::write(dir.path().join("agent.toml"), HUB).unwrap();
    fs::write(dir.path().join("resources.d/r.toml"), resources).unwrap();
    dir
}

fn read(dir: &Path) -> Overview {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    Overview::read(dir)
}

const COMPTA: &str = r#"[resources.compta]
connector = "file"
url = "file:///srv/compta"

[[resources.compta.allow]]
operations = ["drop", "list"]
paths = ["**/*.csv"]
max_size = "1GiB"
"#;

#[test]
fn an_explanation_says_what_where_and_by_which_line() {
    let app = r#"
[resources.orders]
connector = "http"
url = "https://orders.intra:8443/api/"
auth = { kind = "bearer", token = { env = "PASSERELLE_TEST_NO_SUCH_TOKEN" } }
[[resources.orders.allow]]
operations = ["request"]
methods = ["GET", "PUT"]
paths = ["orders/*"]
query = ["page"]
headers = ["x-trace"]
max_per_day = 10
[[resources.orders.allow]]
operations = ["request"]
requests = ["status"]
[resources.orders.requests.status]
method = "GET"
path = "orders/{{ order }}"
parameters = { order = {} }
[resources.closed]
connector = "file"
url = "file:///srv/closed"
"#;
    let dir = folder(&format!("{COMPTA}{app}"));
    let overview = read(dir.path());
    let text = overview.to_string();
    for line in [
        "compta (file, resources.d/r.toml:1) leads to file:///srv/compta\n",
        "  Rule 1 (resources.d/r.toml:5) lets the cloud\n",
        "    drop: put whole files there; it may replace what is there and create folders\n",
        "    list: see names, sizes and times of what lies on these paths\n",
        "    on paths **/*.csv\n",
        "    up to 1GiB each\n",
        "  Never: fetch, stat, move, delete\n",
        "leads to https://orders.intra:8443/api/\n",
        "    request: send requests and read the answers (GET, PUT)\n",
        "    with query keys page\n",
        "    with headers x-trace\n",
        "    at most 10 times a day\n",
        "  Nothing: it has no allow rule.\n",
        "  Rule 2 (resources.d/r.toml:21) lets the cloud\n    request: send requests and read the answers\n    as its requests say: status (GET orders/{{ order }})\n",
        "no ports for the cloud",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    // The missing secret is told, with all that can be read.
    assert!(
        overview.findings.iter().any(|f| f.contains("PASSERELLE_TEST_NO_SUCH_TOKEN")),
        "{:?}",
        overview.findings
    );
}

#[test]
fn a_broken_folder_is_explained_as_far_as_it_can_be_read() {
    let broken = r#"
[resources.broken]
connector = "file"
url = "file:///srv/x"
[[resources.broken.allow]]
operations = ["teleport"]
paths = ["**"]
[resources.what]
connector = "carrier-pigeon"
"#;
    let dir = folder(&format!("{COMPTA}{broken}"));
    let overview = read(dir.path());
    assert_eq!(overview.findings.len(), 2, "{:?}", overview.findings);
    let text = overview.to_string();
    assert!(text.contains("drop: put whole files there"), "{text}");
    assert_eq!(text.matches("Nothing until its mistakes are mended").count(), 2, "{text}");
}

#[test]
fn a_password_in_an_address_is_never_shown() {
    let dir = folder(
        "[resources.x]\nconnector = \"file\"\nurl = \"sftp://u:geheim@files.intra/x\"\nknown_hosts = \"k\"\n\
         [[resources.x.allow]]\noperations = [\"stat\"]\npaths = [\"**\"]\n",
    );
    let overview = read(dir.path());
    let all = format!("{overview}{:?}{}", overview.findings, serde_json::to_string(&overview).unwrap());
    assert!(all.contains("files.intra") && !all.contains("geheim"), "{all}");
}

#[test]
fn what_may_be_a_secret_in_an_address_is_never_shown() {
    for url in
        ["https://app.intra/x?token=geheim", "https://geheim@app.intra/x", "https://app.intra/x#geheim"]
    {
        let app = format!(
            "[resources.x]\nconnector = \"http\"\nurl = \"{url}\"\nauth = {{ kind = \"oauth2\", token_url = \"{url}\", \
             client_id = \"a\", client_secret = {{ env = \"T\" }} }}\n"
        );
        let dir = folder(&app);
        let overview = read(dir.path());
        let all = format!("{overview}{:?}{}", overview.findings, serde_json::to_string(&overview).unwrap());
        assert!(all.contains("leads to https://app.intra/x with tokens from https://app.intra/x"), "{all}");
        assert!(!all.contains("geheim"), "{all}");
    }
}

#[test]
fn where_tokens_come_from_is_told_and_a_change_of_it_is_a_difference() {
    let app = |server: &str| {
        format!(
            "[resources.x]\nconnector = \"http\"\nurl = \"http://app/\"\nauth = {{ kind = \"oauth2\", token_url = \
             \"https://u:geheim@{server}/token\", client_id = \"a\", client_secret = {{ env = \"T\" }} }}\n\
             [[resources.x.allow]]\noperations = [\"notify\"]\npaths = [\"*\"]\n"
        )
    };
    let (old, new) = (folder(&app("login.intra")), folder(&app("elsewhere.intra")));
    let (old, new) = (read(old.path()), read(new.path()));
    let text = old.to_string();
    assert!(text.contains("leads to http://app/ with tokens from https://login.intra/token"), "{text}");
    assert!(!text.contains("geheim"), "{text}");
    let more = difference(&old, &new).to_string();
    assert!(more.contains("with tokens from https://elsewhere.intra/token"), "{more}");
}

#[test]
fn a_difference_is_told_in_both_directions() {
    let rules = |rules: &str| format!("[resources.r]\nconnector = \"http\"\nurl = \"http://app/\"\n{rules}");
    let rule = |keys: &str| rules(&format!("[[resources.r.allow]]\n{keys}\n"));
    let request = "operations = [\"request\"]\npaths = [\"a/*\"]";
    let status = "[resources.r.requests.status]\nmethod = \"GET\"\npath = \"orders/{{ order }}\"\nparameters = { order = {} }\n";
    let named =
        format!("{status}[[resources.r.allow]]\noperations = [\"request\"]\nrequests = [\"status\"]\n");
    let cases: &[(String, String, &[&str])] = &[
        (COMPTA.to_owned(), COMPTA.to_owned(), &[]),
        (
            String::new(),
            COMPTA.to_owned(),
            &[
                "drop on **/*.csv, up to 1GiB; it may replace what is there and create folders",
                "list on **/*.csv, up to 1GiB",
            ],
        ),
        // A path that the wider one allowed already is nothing new.
        (
            rule("operations = [\"notify\"]\npaths = [\"a/**\"]"),
            rule("operations = [\"notify\"]\npaths = [\"a/b/*.csv\", \"a/x\"]"),
            &[],
        ),
        (
            rule("operations = [\"notify\"]\npaths = [\"a/*\"]"),
            rule("operations = [\"notify\"]\npaths = [\"**\"]"),
            &["notify on ** (POST)"],
        ),
        (
            rule(request),
            rule(&format!("{request}\nmethods = [\"GET\", \"PUT\"]")),
            &["request on a/* with method PUT"],
        ),
        (
            rule(request),
            rule(&format!("{request}\nquery = [\"q\"]\nheaders = [\"h\"]")),
            &["request on a/* with header h", "request on a/* with query key q"],
        ),
        (
            rule(&format!("{request}\nmax_size = \"1MiB\"")),
            rule(request),
            &["request on a/*: size any (before: 1MiB)"],
        ),
        (
            rule(&format!("{request}\nmax_per_day = 1")),
            rule(&format!("{request}\nmax_per_day = 2")),
            &["request on a/*: times a day 2 (before: 1)"],
        ),
        (
            rules(&format!("limits = {{ max_concurrent = 1 }}\n[[resources.r.allow]]\n{request}")),
            rules(&format!("limits = {{ max_concurrent = 2 }}\n[[resources.r.allow]]\n{request}")),
            &["attempts at once: 2 (before: 1)"],
        ),
        (
            COMPTA.replace("[\"drop\", \"list\"]", "[\"drop\"]\nmay = []"),
            COMPTA.replace("[\"drop\", \"list\"]", "[\"drop\"]"),
            &["drop on **/*.csv: it may create folders", "drop on **/*.csv: it may replace what is there"],
        ),
        (
            rules(&format!("{status}[[resources.r.allow]]\noperations = [\"request\"]\npaths = [\"**\"]\n")),
            rules(&format!(
                "{status}[[resources.r.allow]]\noperations = [\"request\"]\npaths = [\"**\"]\nrequests = [\"status\"]\n"
            )),
            &["request by request status (GET orders/{{ order }})"],
        ),
        // What the request does is part of it.
        (
            rules(&named),
            rules(&named.replace("path = \"orders", "path = \"clients")),
            &["request by request status (GET clients/{{ order }})"],
        ),
        // Elsewhere it is all new.
        (
            COMPTA.replace(", \"list\"", ""),
            COMPTA.replace(", \"list\"", "").replace("/srv/compta", "/srv"),
            &[
                "drop on **/*.csv, up to 1GiB; it may replace what is there and create folders",
                "leads to file:///srv",
            ],
        ),
        // Two rules never add up: the parts of one rule are less than the rule.
        (
            rules(
                "[[resources.r.allow]]\noperations = [\"request\"]\npaths = [\"a/*\"]\nmethods = [\"PUT\"]\n\
                   [[resources.r.allow]]\noperations = [\"request\"]\npaths = [\"a/*\"]\nquery = [\"q\"]\n",
            ),
            rule("operations = [\"request\"]\npaths = [\"a/*\"]\nmethods = [\"PUT\"]\nquery = [\"q\"]"),
            &["request on a/* with query key q"],
        ),
    ];
    for (old, new, expected) in cases {
        let (old_dir, new_dir) = (folder(old), folder(new));
        let (old_view, new_view) = (read(old_dir.path()), read(new_dir.path()));
        let said =
            |changes: &[super::diff::Change]| changes.iter().map(|c| c.what.clone()).collect::<Vec<_>>();
        let found = difference(&old_view, &new_view);
        assert_eq!(said(&found.more), *expected, "from\n{old}\nto\n{new}");
        // Backwards the same is less.
        let back = difference(&new_view, &old_view);
        let swapped: Vec<String> = said(&back.less);
        assert_eq!(swapped.len(), expected.len(), "{swapped:?}");
    }
    let dir = folder(COMPTA);
    let same = difference(&read(dir.path()), &read(dir.path())).to_string();
    assert_eq!(same, "The cloud can do the same as before.\n");
}

#[test]
fn triggers_are_told_in_plain_words_and_a_new_one_is_a_difference() {
    let triggers = "[[resources.compta.pickup]]\nfolder = \"out\"\npattern = \"*.xml\"\nafter = \"delete\"\nmax_size = \"1MiB\"\n\
                    [[resources.compta.watch]]\npath = \"prices.csv\"\n";
    let (old, new) = (folder(COMPTA), folder(&format!("{COMPTA}{triggers}")));
    let (old, new) = (read(old.path()), read(new.path()));
    assert!(new.findings.is_empty(), "{:?}", new.findings);
    let text = new.to_string();
    for line in [
        "  By itself, by pickup pickup (resources.d/r.toml:9): files matching *.xml in out/ up to 1MiB are sent to the cloud \
         when they have not changed for 10s, and then deleted; looked for every 30s.\n",
        "  By itself, by watch watch (resources.d/r.toml:14): each new content of the file prices.csv is sent to the cloud; \
         looked at every 30s.\n",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let difference = difference(&old, &new);
    assert_eq!((difference.more.len(), difference.less.len()), (2, 0), "{difference:?}");
    assert!(difference.more.iter().all(|change| change.what.starts_with("by itself: ")), "{difference:?}");
}

#[test]
fn a_kind_without_triggers_is_told() {
    let app = "[resources.app]\nconnector = \"http\"\nurl = \"http://127.0.0.1:1/\"\n\
               [[resources.app.pickup]]\npattern = \"*\"\nafter = \"keep\"\n";
    let folder = folder(app);
    let findings = read(folder.path()).findings;
    let [finding] = findings.as_slice() else { panic!("{findings:?}") };
    assert!(
        finding.contains("r.toml:4:1: resources.app.pickup[1]: ") && finding.contains("no triggers"),
        "{finding}"
    );
}
