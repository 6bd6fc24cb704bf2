//! Whole folders: what loads, and what each mistake is told as, word for word.

mod agent_toml;
mod listeners;
mod triggers;

use crate::{AgentConfig, Diagnostics, LogFormat, SecretRef, load::load_with};
use std::{collections::BTreeMap, fs, path::Path};
use tempfile::TempDir;

const HUB: &str = "[hub]\nurl = \"https://hub.example.com\"\n";

/// A folder of these files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let file = dir.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }
    dir
}

fn load_in(dir: &Path, env: &[(&str, &str)]) -> Result<AgentConfig, Diagnostics> {
    let env: BTreeMap<_, _> = env.iter().copied().collect();
    load_with(dir, &|name| env.get(name).map(|value| (*value).to_owned()))
}

/// The findings of a folder, one a line, with the folder's name taken out.
fn findings(files: &[(&str, &[u8])]) -> Vec<String> {
    let dir = folder(files);
    let prefix = format!("{}/", dir.path().display());
    let diagnostics = load_in(dir.path(), &[]).unwrap_err();
    diagnostics.findings().iter().map(|finding| finding.to_string().replace(&prefix, "")).collect()
}

/// Checks the findings of an `agent.toml` that starts with a good `[hub]` in lines 1 and 2.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let text = format!("{HUB}{text}");
    assert_eq!(findings(&[("agent.toml", text.as_bytes())]), expected, "{text}");
}

fn accept(text: &str) {
    let dir = folder(&[("agent.toml", format!("{HUB}{text}").as_bytes())]);
    assert!(load_in(dir.path(), &[]).is_ok(), "{text}");
}

#[test]
fn the_shortest_configuration_gets_every_default() {
    let dir = folder(&[("agent.toml", HUB.as_bytes())]);
    let config = load_in(dir.path(), &[]).unwrap();
    assert_eq!(config.dir, dir.path());
    assert_eq!(config.hub.url.as_str(), "https://hub.example.com/");
    assert!(
        config.hub.enrolment_token.is_none() && config.hub.ca_file.is_none() && config.hub.proxy.is_none()
    );
    assert!(config.trust.job_keys.is_empty());
    assert!(crate::check::is_name(&config.agent.name), "{}", config.agent.name);
    assert_eq!(config.agent.state_dir, dir.path().join("state"));
    assert_eq!(config.agent.listen.to_string(), "127.0.0.1:9464");
    assert_eq!(config.agent.max_jobs, 32);
    assert_eq!(config.agent.shutdown_grace.0.as_secs(), 30);
    assert_eq!(config.agent.key_rotation.0.map(|period| period.as_secs()), Some(30 * 86_400));
    assert_eq!((config.log.format, config.log.level.as_str()), (LogFormat::Text, "info"));
    assert!(config.log.classic.is_none());
    assert!(config.resources.is_empty() && config.warnings.is_empty());
}

#[test]
fn every_common_key_arrives() {
    let text = r#"
[hub]
url = "https://hub.example.com/base/"
enrolment_token = { env = "TOKEN" }
ca_file = "ca.pem"
proxy = { url = "http://proxy:3128", username = "svc", password = { file = "/run/secrets/p" } }
[trust]
job_keys = ["a.pem", "/b.pem"]
[agent]
name = "paris-1"
state_dir = "/var/lib/agent"
listen = "[::]:9464"
max_jobs = 1024
shutdown_grace = "1m30s"
[log]
format = "json"
level = "warn,passerelle_agent=DEBUG"
classic_dir = "logs"
classic_keep = "7d"
classic_quota = "2MiB"
[resources.b]
connector = "file"
url = "file:///srv"
[resources.a]
connector = "http"
limits = { max_concurrent = 1, rate_per_minute = 60 }
[[resources.a.allow]]
operations = ["request"]
paths = ["**"]
methods = ["GET"]
query = ["Page"]
headers = ["X-Id"]
max_size = "2GiB"
may = []
[[resources.a.allow]]
operations = ["notify"]
"#;
    let dir = folder(&[("agent.toml", text.as_bytes())]);
    let config = load_in(dir.path(), &[]).unwrap();
    let at = |path: &str| dir.path().join(path);
    assert_eq!(config.hub.url.as_str(), "https://hub.example.com/base/");
    assert_eq!(config.hub.enrolment_token, Some(SecretRef::Env("TOKEN".to_owned())));
    assert_eq!(config.hub.ca_file, Some(at("ca.pem")));
    let proxy = config.hub.proxy.unwrap();
    assert_eq!((proxy.url.as_str(), proxy.username.as_deref()), ("http://proxy:3128/", Some("svc")));
    assert_eq!(proxy.password, Some(SecretRef::File("/run/secrets/p".into())));
    assert_eq!(config.trust.job_keys, [at("a.pem"), "/b.pem".into()]);
    assert_eq!((config.agent.name.as_str(), config.agent.max_jobs), ("paris-1", 1024));
    assert_eq!(config.agent.state_dir, Path::new("/var/lib/agent"));
    assert_eq!(config.agent.shutdown_grace.0.as_secs(), 90);
    let classic = config.log.classic.unwrap();
    assert_eq!((config.log.format, classic.dir), (LogFormat::Json, at("logs")));
    assert_eq!((classic.keep.0.as_secs(), classic.quota.0), (7 * 86_400, 2 << 20));
    let [a, b] = &config.resources[..] else { panic!("{:?}", config.resources) };
    assert_eq!((a.name.as_str(), a.connector.as_str(), a.limits.max_concurrent), ("a", "http", 1));
    assert_eq!(a.limits.rate_per_minute, Some(60));
    let [rule, second] = &a.allow[..] else { panic!("{:?}", a.allow) };
    assert_eq!(
        (&rule.operations[..], &rule.paths[..]),
        (&["request".to_owned()][..], &["**".to_owned()][..])
    );
    assert_eq!((&rule.methods[..], &rule.query[..]), (&["GET".to_owned()][..], &["Page".to_owned()][..]));
    assert_eq!((&rule.headers[..], rule.max_size.unwrap().0), (&["x-id".to_owned()][..], 2 << 30));
    assert_eq!(rule.may, Some(Vec::new()));
    assert_eq!((rule.at.line, rule.at.column, rule.at.path.as_str()), (27, 1, "resources.a.allow[1]"));
    assert_eq!((second.at.line, second.may.is_none()), (35, true));
    assert_eq!((b.limits.max_concurrent, b.limits.rate_per_minute, b.section.name()), (4, None, "b"));
    let warnings: Vec<_> =
        config.warnings.iter().map(|w| format!("{}:{}: {}", w.line, w.path, w.message)).collect();
    assert_eq!(
        warnings,
        ["21:resources.b: nothing is allowed here: add an allow rule if the cloud should use it"]
    );
}

#[test]
fn resources_d_is_merged_in_order_and_other_files_do_not_count() {
    let resource =
        |name: &str| format!("\u{feff}[resources.{name}]\r\nconnector = \"file\"\r\nallow = []\r\n");
    let main = format!("\u{feff}{HUB}").replace('\n', "\r\n") + "[resources.m]\r\nconnector = \"http\"\r\n";
    let dir = folder(&[
        ("agent.toml", main.as_bytes()),
        ("resources.d/b.toml", resource("x").as_bytes()),
        ("resources.d/a.toml", resource("y").as_bytes()),
        ("resources.d/empty.toml", b""),
        ("resources.d/note.txt", b"not TOML"),
        ("resources.d/.hidden.toml", b"not TOML"),
        ("elsewhere/z.toml", resource("z").as_bytes()),
    ]);
    std::os::unix::fs::symlink("../elsewhere/z.toml", dir.path().join("resources.d/z.toml")).unwrap();
    let config = load_in(dir.path(), &[]).unwrap();
    let names: Vec<_> = config.resources.iter().map(|resource| resource.name.as_str()).collect();
    assert_eq!(names, ["m", "x", "y", "z"]);
}

#[test]
fn all_findings_of_all_files_are_told_at_once() {
    let files: &[(&str, &[u8])] = &[
        (
            "agent.toml",
            b"[hub]\nurl = \"http://hub.example.com\"\nenrolment_token = \"s3cr3t\"\n[agnt]\n[agent]\nmax_jobs = \"x22\"\n\
              max_job = 3\nlisten = 9464\n[resources.x]\nconnector = 5\n[resources.y]\nlimits = { max_concurent = 4 }\n",
        ),
        (
            "resources.d/a.toml",
            b"[resources.x]\nconnector = \"file\"\n[hub]\nurl = \"x\"\n[resource.z]\n[resources.\"A b\"]\nconnector = \"file\"\n",
        ),
        ("resources.d/b.toml", b"[resources.w\nconnector = \"file\"\n"),
    ];
    assert_eq!(
        findings(files),
        [
            "agent.toml:2:7: hub.url: plain http goes only to this machine (localhost, 127.0.0.1, [::1]); write https://",
            "agent.toml:3:19: hub.enrolment_token: a secret is never written here: put it into a file and write { file = \"secrets/…\" }, or { env = \"…\" }",
            "agent.toml:4:2: agnt: unknown key; did you mean \"agent\"? known keys: agent, audit, hub, listeners, log, resources, trust",
            "agent.toml:6:12: agent.max_jobs: expected an integer, found a string",
            "agent.toml:7:1: agent.max_job: unknown key; did you mean \"max_jobs\"? known keys: audit_quota, journal_quota, key_rotation, listen, max_calls, max_jobs, name, shutdown_grace, spool_quota, state_dir",
            "agent.toml:8:10: agent.listen: expected a string, found an integer",
            "agent.toml:10:13: resources.x.connector: expected a string, found an integer",
            "agent.toml:11:1: resources.y.connector: missing; name the kind of connector, such as \"file\" or \"http\"",
            "agent.toml:12:12: resources.y.limits.max_concurent: unknown key; did you mean \"max_concurrent\"? known keys: max_concurrent, rate_per_minute",
            "resources.d/a.toml:1:1: resources.x: there is already a resource of this name at DIR/agent.toml:9; rename or remove one of them",
            "resources.d/a.toml:3:2: hub: only [resources.*] and [listeners.*] stand in resources.d; move this to agent.toml",
            "resources.d/a.toml:5:2: resource: unknown key; did you mean \"resources\"? known keys: listeners, resources",
            "resources.d/a.toml:6:1: resources.\"A b\": not a resource's name: a name is 1 to 64 of a-z, 0-9, '.', '_' and '-', and starts with a letter or digit",
            "resources.d/b.toml:1:13: syntax: not valid TOML: unclosed table, expected `]`",
        ]
        .map(|line| line.replace("DIR/", ""))
    );
}

#[test]
fn secrets_stand_by_reference_only() {
    let rule = "a secret is never written here: put it into a file and write { file = \"secrets/…\" }, or { env = \"…\" }";
    let found = |value: &str, column: usize, path: &str, message: &str| {
        let expected = format!("agent.toml:3:{column}: hub.enrolment_token{path}: {message}");
        check(&format!("enrolment_token = {value}\n"), &[&expected]);
    };
    found("\"geheim\"", 19, "", rule);
    found("4711", 19, "", rule);
    found(
        "true",
        19,
        "",
        "expected a secret by reference: { file = \"secrets/…\" } or { env = \"…\" }, found a boolean",
    );
    found(
        "[\"geheim\"]",
        19,
        "",
        "expected a secret by reference: { file = \"secrets/…\" } or { env = \"…\" }, found an array",
    );
    found("{}", 19, "", "expected exactly one of \"file\" and \"env\", found neither");
    found(
        "{ file = \"a\", env = \"B\" }",
        19,
        "",
        "expected exactly one of \"file\" and \"env\", found both",
    );
    found("{ file = \"\" }", 19, "", "expected the name of a secret in \"file\"");
    found("{ env = \"A=geheim\" }", 19, "", "expected the name of a secret in \"env\"");
    found("{ file = 5 }", 28, ".file", "expected a string, found an integer");
    found("{ value = \"geheim\" }", 21, ".value", "unknown key; known keys: env, file");
}

#[test]
fn resources_and_their_rules_are_checked() {
    let name = "a name is 1 to 64 of a-z, 0-9, '.', '_' and '-', and starts with a letter or digit";
    check(
        "[resources.r]\nconnector = \"File!\"\nlimits = { max_concurrent = 0, rate_per_minute = -1 }\n\
         [[resources.r.allow]]\npaths = [\"**\"]\n\
         [[resources.r.allow]]\noperations = []\nmax_size = \"64MB\"\n\
         [[resources.r.allow]]\noperations = [\"drop\", \"Drop\"]\npaths = [\"*.csv\", \"/x\", \"[\", \"a/../b\"]\n\
         methods = [\"GET\", \"post\", \"\", \"PSOT\"]\nquery = [\"\"]\nheaders = [\"X-A\", \"a b\"]\nmay = [\"replce\", \"create_dirs\"]\n\
         [[resources.r.allow]]\noperations = [5, \"x\"]\noperation = \"x\"\n",
        &[
            &format!("agent.toml:4:13: resources.r.connector: not a connector's name: {name}"),
            "agent.toml:5:29: resources.r.limits.max_concurrent: expected an integer from 1 to 1000, found 0",
            "agent.toml:5:50: resources.r.limits.rate_per_minute: expected an integer from 1 to 1000000, found -1",
            "agent.toml:6:1: resources.r.allow[1].operations: missing or empty; list the operations that this rule allows",
            "agent.toml:9:14: resources.r.allow[2].operations: missing or empty; list the operations that this rule allows",
            "agent.toml:10:12: resources.r.allow[2].max_size: expected a size such as \"512KiB\", \"64MiB\" or \"2GiB\" (whole numbers of B, KiB, MiB, GiB, TiB)",
            &format!("agent.toml:12:23: resources.r.allow[3].operations[2]: not an operation's name: {name}"),
            "agent.toml:13:19: resources.r.allow[3].paths[2]: never matches: paths are relative to the resource's root; leave the leading '/' out",
            "agent.toml:13:25: resources.r.allow[3].paths[3]: not a glob: unclosed character class; missing ']'",
            "agent.toml:13:30: resources.r.allow[3].paths[4]: never matches: paths have no '.' or '..' parts and no NUL",
            "agent.toml:14:19: resources.r.allow[3].methods[2]: HTTP methods are upper case: write \"POST\"",
            "agent.toml:14:27: resources.r.allow[3].methods[3]: not an HTTP method; write one such as \"GET\" or \"POST\"",
            "agent.toml:14:31: resources.r.allow[3].methods[4]: no job can use it; write one of GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE",
            "agent.toml:15:10: resources.r.allow[3].query[1]: empty; write the name of a query key",
            "agent.toml:16:19: resources.r.allow[3].headers[2]: not a header's name; write one such as \"x-request-id\"",
            "agent.toml:17:8: resources.r.allow[3].may[1]: unknown value; did you mean \"replace\"? expected one of \"replace\", \"create_dirs\", \"delete_after_fetch\"",
            "agent.toml:19:15: resources.r.allow[4].operations[1]: expected a string, found an integer",
            "agent.toml:20:1: resources.r.allow[4].operation: unknown key; did you mean \"operations\"? known keys: calls, daily_volume, entities, fields, headers, max_per_day, max_size, may, methods, operations, paths, query, requests",
        ],
    );
    check(
        "[resources]\nr = 5\n",
        &["agent.toml:4:5: resources.r: expected a table: write [resources.r] and its keys below"],
    );
    check(
        "[[resources]]\nr = 5\n",
        &["agent.toml:3:1: resources: expected a table: write [resources.NAME] and its keys below"],
    );
    check(
        "[resources.r]\nconnector = \"file\"\nallow = { operations = [\"drop\"] }\nlimits = 4\n",
        &[
            "agent.toml:5:9: resources.r.allow: expected an array, found a table",
            "agent.toml:6:10: resources.r.limits: expected a table, found an integer",
        ],
    );
}

#[test]
fn syntax_errors_and_keys_set_twice_stand_at_their_place() {
    check(
        "[agent]\nname = \"a\"\nname = \"b\"\n[log]\n[log]\n",
        &[
            "agent.toml:5:1: agent.name: set twice; keep one of the two",
            "agent.toml:7:2: log: set twice; keep one of the two",
        ],
    );
    check(
        "ca_file = été.pem\n",
        &["agent.toml:3:11: syntax: not valid TOML: string values must be quoted, expected literal string"],
    );
    check(
        "[agent]\nname = \"a\n",
        &["agent.toml:4:10: syntax: not valid TOML: invalid basic string, expected `\"`"],
    );
    let deep = format!("x = {}1{}\n", "[".repeat(1000), "]".repeat(1000));
    assert_eq!(findings(&[("agent.toml", deep.as_bytes())]).len(), 1);
    let dotted = format!("{}\n", ["a"; 100_000].join("."));
    let dotted = dotted.trim();
    let quoted = vec!["\"a\""; 100_000].join(" . ");
    for text in [
        format!("{dotted}= 1\n"),
        format!("[{dotted}]\n"),
        format!("[[{dotted}]]\n"),
        format!("x = {{ y = 1, {dotted} = 1 }}\n"),
        format!("{quoted} = 1\n"),
    ] {
        assert_eq!(
            findings(&[("agent.toml", text.as_bytes())]),
            ["agent.toml:1:1: syntax: a dotted key has at most 64 parts"]
        );
    }
    // Columns count characters, not bytes.
    check(
        "proxy = { username = \"é\", uri = \"x\" }\n",
        &[
            "agent.toml:3:9: hub.proxy.url: missing; write the proxy's address: url = \"http://proxy.example.com:3128\"",
            "agent.toml:3:27: hub.proxy.uri: unknown key; did you mean \"url\"? known keys: password, url, username",
        ],
    );
}

#[test]
fn files_that_cannot_be_read_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let told = |dir: &Path| load_in(dir, &[]).unwrap_err().to_string();
    let missing = dir.path().join("none");
    assert_eq!(
        told(&missing),
        format!(
            "error: {}:1:1: configuration folder: no such folder; mount the configuration folder there, or name \
             another one with --config or PASSERELLE_CONFIG\n",
            missing.display()
        )
    );
    let single = |files: &[(&str, &[u8])], expected: &str| assert_eq!(findings(files), [expected]);
    single(
        &[("other.toml", b"")],
        "agent.toml:1:1: agent.toml: no such file; write one with `passerelle-agent init`, or name another folder with --config",
    );
    single(
        &[("agent.toml/x", b"")],
        "agent.toml:1:1: agent.toml: not a file; put a TOML file there (a bind mount of a missing file makes a folder)",
    );
    single(
        &[("agent.toml", HUB.as_bytes()), ("resources.d", b"")],
        "resources.d:1:1: resources.d: not a folder; make it one that holds *.toml files",
    );
    single(
        &[("agent.toml", b"[hub]\n# \xc3\xa9t\xc3\xa9 \xe9\n")],
        "agent.toml:2:7: agent.toml: not text in UTF-8; save the file as UTF-8",
    );
    let mut large = HUB.as_bytes().to_vec();
    large.resize(1024 * 1024, b'\n');
    let dir = folder(&[("agent.toml", &large)]);
    assert!(load_in(dir.path(), &[]).is_ok());
    large.push(b'\n');
    single(
        &[("agent.toml", &large)],
        "agent.toml:1:1: agent.toml: larger than 1 MiB; split the resources over several files in resources.d",
    );
    let file = dir.path().join("agent.toml");
    assert!(
        told(&file)
            .contains("not a folder; --config and PASSERELLE_CONFIG name the folder that holds agent.toml")
    );
}

#[test]
fn resources_and_rules_are_bounded() {
    let many: String = (0..501).map(|i| format!("[resources.r{i:03}]\nconnector = \"file\"\n")).collect();
    check(&many, &["agent.toml:1003:1: resources: expected at most 500 resources, found 501"]);
    let rules = "[[resources.r.allow]]\noperations = [\"drop\"]\n".repeat(101);
    check(
        &format!("[resources.r]\nconnector = \"file\"\n{rules}"),
        &["agent.toml:5:1: resources.r.allow: expected at most 100 allow rules, found 101"],
    );
}

#[test]
fn no_finding_repeats_a_value() {
    // The same word stands wherever a secret could have been pasted by mistake.
    let text = r#"
[hub]
url = "https://geheim:geheim@hub"
enrolment_token = "geheim"
ca_file = ["geheim"]
proxy = "geheim"
[agent]
name = "GEHEIM geheim"
listen = "geheim"
max_jobs = "geheim"
shutdown_grace = "geheim"
[log]
format = "geheim"
level = "geheim"
[resources.r]
connector = "geheim geheim"
limits = "geheim"
allow = ["geheim", { operations = "geheim", may = ["geheim"], max_size = "geheim" }]
"#;
    let told = findings(&[("agent.toml", text.as_bytes())]);
    assert!(told.len() >= 12, "{told:#?}");
    for finding in told {
        assert!(!finding.to_lowercase().contains("geheim"), "{finding}");
    }
}

#[test]
fn what_a_table_says_is_told_from_where_and_how_it_says_it() {
    let load = |text: &str| {
        let text = format!("{HUB}{text}");
        let dir = folder(&[("agent.toml", text.as_bytes()), ("hosts", b"h"), ("ca.pem", b"c")]);
        let config = load_in(dir.path(), &[]).unwrap();
        let below = |files: &std::collections::BTreeSet<std::path::PathBuf>| -> Vec<String> {
            files.iter().map(|f| f.strip_prefix(dir.path()).unwrap().display().to_string()).collect()
        };
        let resource = &config.resources[0];
        (resource.text.clone(), below(&resource.files), config.hub_text.clone(), below(&config.files))
    };
    let first = load(
        "ca_file = \"ca.pem\"\n[resources.r]\nconnector = \"x\"\nknown_hosts = \"hosts\"\nurl = \"sftp://hosts\"\n\
         key = { file = \"secrets/absent\" }\n",
    );
    assert_eq!(first.1, ["hosts", "secrets/absent"], "files, and secrets that are yet to come");
    assert_eq!(first.3, ["ca.pem"]);
    let same = load(
        "enrolment_token = { env = \"T\" }\nca_file = 'ca.pem'\n# moved\n\n[resources.r]\nurl = 'sftp://hosts'\n\
         key.file = \"secrets/absent\"\nconnector = \"x\"\nknown_hosts = \"hosts\"\n",
    );
    assert_eq!((&first.0, &first.2), (&same.0, &same.2));
    let other = load("[resources.r]\nconnector = \"x\"\nknown_hosts = \"hosts\"\n");
    assert!(other.0 != first.0 && other.2 != first.2);
}

/// Whoever sends a long text with a mistake in each line, or many in one, does not have the time of all others.
#[test]
fn a_text_full_of_mistakes_is_read_once() {
    let places = |text: &str| {
        let mut found = Diagnostics::default();
        let section = crate::Section::of_toml(Path::new("m.toml"), text, &mut found);
        #[derive(serde::Deserialize, Debug)]
        #[serde(deny_unknown_fields)]
        struct Nothing {}
        let _: Option<Nothing> = section.and_then(|section| section.parse(&mut found));
        found.sort();
        found.findings().iter().map(|finding| (finding.line, finding.column)).collect::<Vec<_>>()
    };
    let lines: String = (0..50_000).map(|n| format!("[a{n}]\n")).collect();
    let told = places(&lines);
    assert_eq!((told.len(), told[0], told[999].1), (1000, (1, 2), 2));
    let numbers = format!("x = [{}]\n", vec!["99999999999999999999"; 20_000].join(","));
    assert!(places(&numbers).len() <= 1001);
    let broken = "= 1\n".repeat(50_000);
    assert!((1..=1000).contains(&places(&broken).len()));
    assert_eq!(places("a = \"é\"\n  [é"), [(2, 5)]);
}
