//! The policy against tables of cases, and against a reference evaluation written as naively as possible.

use super::{Allowed, ResourcePolicy};
use passerelle_config::{AllowRule, ByteSize, Diagnostics, ResourceConfig};
use passerelle_connectors::{Code, Demands, OperationSpec, REGISTRY, Repeat, Right};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::{LazyLock, Mutex};

fn spec(
    name: &'static str,
    parameters: &[&str],
    needs_paths: bool,
    payload: bool,
    output: bool,
) -> OperationSpec {
    let properties: serde_json::Map<_, _> =
        parameters.iter().map(|parameter| ((*parameter).to_owned(), json!({}))).collect();
    OperationSpec {
        name,
        repeat: Repeat::Safe,
        params_schema: json!({ "type": "object", "properties": properties }),
        takes_payload: payload,
        makes_output: output,
        needs_paths,
    }
}

fn file_operations() -> Vec<OperationSpec> {
    vec![
        spec("drop", &["path", "on_conflict", "create_dirs"], true, true, false),
        spec("fetch", &["path", "then"], true, false, true),
        spec("list", &["path", "pattern"], true, false, false),
        spec("move", &["from", "to", "on_conflict"], true, false, false),
        spec("delete", &["path"], true, false, false),
    ]
}

fn http_operations() -> Vec<OperationSpec> {
    vec![
        spec("request", &["method", "path", "query", "headers", "expect", "request"], true, true, true),
        spec("notify", &["path", "method", "headers", "request"], true, true, false),
    ]
}

/// The resource as the loader makes it of these rules, so that the tests speak the operator's language.
fn resource(connector: &str, rules: &str) -> ResourceConfig {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("resources.d")).unwrap();
    std::fs::write(dir.path().join("agent.toml"), "[hub]\nurl = \"https://hub.example.com\"\n").unwrap();
    let rules = rules.replace("[[allow]]", "[[resources.r.allow]]");
    let text = format!("[resources.r]\nconnector = \"{connector}\"\n{rules}");
    std::fs::write(dir.path().join("resources.d/r.toml"), text).unwrap();
    let mut config = passerelle_config::load(dir.path()).unwrap();
    config.resources.remove(0)
}

fn compile(resource: &ResourceConfig, operations: &[OperationSpec]) -> Result<ResourcePolicy, Vec<String>> {
    let mut diagnostics = Diagnostics::default();
    let policy = ResourcePolicy::compile(resource, operations, &mut diagnostics);
    policy.ok_or_else(|| {
        let show =
            |f: &passerelle_config::Finding| format!("{}:{}: {}: {}", f.line, f.column, f.path, f.message);
        diagnostics.findings().iter().map(show).collect()
    })
}

fn file_policy(rules: &str) -> ResourcePolicy {
    compile(&resource("file", rules), &file_operations()).unwrap()
}

fn http_policy(rules: &str) -> ResourcePolicy {
    compile(&resource("http", rules), &http_operations()).unwrap()
}

fn on(paths: &[&str]) -> Demands {
    Demands { paths: paths.iter().map(|path| (*path).to_owned()).collect(), ..Demands::default() }
}

fn http(method: &str, path: &str, query: &[&str], headers: &[&str]) -> Demands {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Demands { method: Some(method.to_owned()), query: owned(query), headers: owned(headers), ..on(&[path]) }
}

/// `ok 1` or the refusal as `code: message`.
fn decision(policy: &ResourcePolicy, operation: &str, demands: &Demands, size: Option<u64>) -> String {
    match policy.decide(operation, demands, size) {
        Ok(Allowed { rule, .. }) => format!("ok {rule}"),
        Err(denied) => format!("{:?}: {}", denied.code, denied.message),
    }
}

#[test]
fn without_a_rule_nothing_is_allowed() {
    let policy = file_policy("");
    assert!(policy.allowed_operations().is_empty());
    for spec in file_operations() {
        let expected = format!("PolicyDenied: operation \"{}\" is not allowed on this resource", spec.name);
        assert_eq!(decision(&policy, spec.name, &Demands::default(), None), expected);
    }
    assert!(policy.decide("no such", &Demands::default(), None).is_err());
}

#[test]
fn files_are_allowed_by_operation_path_right_and_size() {
    let policy = file_policy(
        r#"
        [[allow]]
        operations = ["drop", "fetch"]
        paths = ["**/*.csv"]
        max_size = "1KiB"
        [[allow]]
        operations = ["move", "drop"]
        paths = ["in/*", "done/*"]
        may = ["create_dirs"]
        [[allow]]
        operations = ["list"]
        paths = ["in", "*"]
        "#,
    );
    assert_eq!(policy.allowed_operations(), ["drop", "fetch", "list", "move"]);
    let with = |mut demands: Demands, rights: &[Right]| {
        demands.rights = rights.to_vec();
        demands
    };
    let denied = |what: &str| format!("PolicyDenied: operation {what}");
    let cases = [
        ("drop", on(&["a.csv"]), Some(1024), "ok 1".to_owned()),
        ("drop", on(&["x/y/.a.csv"]), Some(0), "ok 1".to_owned()),
        ("drop", on(&["a.CSV"]), None, denied("\"drop\" is not allowed on path \"a.CSV\"")),
        ("drop", on(&["a.csv\0"]), None, denied("\"drop\" is not allowed on path \"a.csv\\0\"")),
        ("drop", on(&["../a.csv"]), None, denied("\"drop\" is not allowed on path \"../a.csv\"")),
        ("drop", on(&["x/./a.csv"]), None, denied("\"drop\" is not allowed on path \"x/./a.csv\"")),
        ("drop", on(&["/a.csv"]), None, denied("\"drop\" is not allowed on path \"/a.csv\"")),
        ("drop", on(&["a\n.csv"]), None, "ok 1".to_owned()),
        (
            "drop",
            on(&["a.csv"]),
            Some(1025),
            "TooLarge: the payload of 1025 bytes is larger than the 1024 bytes allowed here".to_owned(),
        ),
        // The second rule has no size limit.
        ("drop", on(&["in/a.csv"]), Some(1025), "ok 2".to_owned()),
        ("drop", with(on(&["a.csv"]), &[Right::Replace, Right::CreateDirs]), None, "ok 1".to_owned()),
        ("drop", with(on(&["in/a"]), &[Right::CreateDirs]), None, "ok 2".to_owned()),
        (
            "drop",
            with(on(&["in/a"]), &[Right::CreateDirs, Right::Replace]),
            None,
            denied("\"drop\" may not replace what is there here (right \"replace\")"),
        ),
        (
            "fetch",
            with(on(&["a.csv"]), &[Right::DeleteAfterFetch]),
            None,
            denied(
                "\"fetch\" may not delete or move away what it fetched here (right \"delete_after_fetch\")",
            ),
        ),
        ("move", on(&["in/a", "done/a"]), None, "ok 2".to_owned()),
        ("move", on(&["in/a", "out/a"]), None, denied("\"move\" is not allowed on path \"out/a\"")),
        // Each path alone is allowed by some rule, but no one rule allows both.
        ("drop", on(&["x/a.csv", "in/a"]), None, denied("\"drop\" is not allowed on path \"in/a\"")),
        ("list", on(&[]), None, "ok 3".to_owned()),
        ("list", on(&["in"]), None, "ok 3".to_owned()),
        // Shown is only what the rule allows, of all that lies beside `in/x`: nothing, as no glob leads below `in`.
        ("list", on(&["in/x"]), None, denied("\"list\" is not allowed on path \"in/x\"")),
        ("drop", on(&[]), None, denied("\"drop\" is not allowed on the root folder of this resource")),
        ("delete", on(&["a.csv"]), None, denied("\"delete\" is not allowed on this resource")),
    ];
    for (operation, demands, size, expected) in cases {
        assert_eq!(decision(&policy, operation, &demands, size), expected, "{operation} {demands:?}");
    }
    assert_eq!(policy.decide("drop", &on(&["a.csv"]), None).unwrap().max_size, Some(1024));
    assert_eq!(policy.decide("drop", &on(&["in/x"]), None).unwrap().max_size, None);
    assert_eq!(policy.decide("move", &on(&["in/a", "x"]), None).unwrap_err().nearest, Some(2));
}

#[test]
fn requests_that_the_operator_wrote_are_allowed_by_name_alone() {
    let requests = "[resources.r.requests.status]\nmethod = \"GET\"\npath = \"orders/{{ order }}\"\n\
                    [resources.r.requests.close]\nmethod = \"POST\"\npath = \"close\"\n";
    let named = |name: &str| Demands { request: Some(name.to_owned()), ..Demands::default() };
    let policy = http_policy(&format!(
        "{requests}[[allow]]\noperations = [\"request\"]\nrequests = [\"status\"]\nmax_size = \"10B\"\n\
         [[allow]]\noperations = [\"notify\"]\npaths = [\"**\"]\n"
    ));
    assert_eq!(policy.decide("request", &named("status"), None).unwrap().rule, 1);
    for (operation, demands, says) in [
        ("request", named("close"), "request \"close\" is not allowed for operation \"request\" here"),
        ("notify", named("status"), "request \"status\" is not allowed for operation \"notify\" here"),
        (
            "request",
            http("GET", "orders/1", &[], &[]),
            "operation \"request\" is not allowed on path \"orders/1\"",
        ),
    ] {
        assert_eq!(policy.decide(operation, &demands, None).unwrap_err().message, says);
    }
    assert_eq!(policy.decide("request", &named("status"), Some(11)).unwrap_err().code, Code::TooLarge);

    for (rule, says) in [
        ("requests = [\"other\"]", "requests: unknown request \"other\""),
        (
            "requests = [\"status\"]\nmethods = [\"GET\"]",
            "methods: none of this rule's operations takes it without paths",
        ),
        ("requests = []", "paths: missing"),
    ] {
        let rules = format!("{requests}[[allow]]\noperations = [\"request\"]\n{rule}\n");
        let findings = compile(&resource("http", &rules), &http_operations()).unwrap_err();
        assert!(findings[0].contains(says), "{findings:?}");
    }
    let rules = "[[allow]]\noperations = [\"drop\"]\npaths = [\"*\"]\nrequests = [\"a\"]\n";
    let findings = compile(&resource("file", rules), &file_operations()).unwrap_err();
    assert!(findings.iter().any(|finding| finding.contains("that the operator wrote")), "{findings:?}");
}

#[test]
fn requests_are_allowed_by_path_method_query_and_header() {
    let policy = http_policy(
        r#"
        [[allow]]
        operations = ["request", "notify"]
        paths = ["orders/*", "stock/**"]
        query = ["page"]
        headers = ["X-Request-Id"]
        [[allow]]
        operations = ["request"]
        methods = ["PUT", "DELETE"]
        paths = ["orders/*"]
        "#,
    );
    let denied = |what: &str| format!("PolicyDenied: {what}");
    let cases = [
        ("request", http("GET", "orders/1", &["page"], &["x-request-id"]), "ok 1".to_owned()),
        ("request", http("HEAD", "stock/a/b", &[], &[]), "ok 1".to_owned()),
        ("request", http("GET", "orders/1", &[], &["X-REQUEST-ID"]), "ok 1".to_owned()),
        ("request", http("PUT", "orders/1", &[], &[]), "ok 2".to_owned()),
        ("notify", http("POST", "orders/1", &[], &[]), "ok 1".to_owned()),
        (
            "notify",
            http("PUT", "orders/1", &[], &[]),
            denied("method \"PUT\" is not allowed for operation \"notify\" here"),
        ),
        (
            "request",
            http("POST", "orders/1", &[], &[]),
            denied("method \"POST\" is not allowed for operation \"request\" here"),
        ),
        (
            "request",
            http("get", "orders/1", &[], &[]),
            denied("method \"get\" is not allowed for operation \"request\" here"),
        ),
        (
            "request",
            http("GET", "orders/1/2", &[], &[]),
            denied("operation \"request\" is not allowed on path \"orders/1/2\""),
        ),
        (
            "request",
            http("GET", "orders/1", &["Page"], &[]),
            denied("query key \"Page\" is not allowed for operation \"request\" here"),
        ),
        (
            "request",
            http("PUT", "orders/1", &["page"], &[]),
            denied("query key \"page\" is not allowed for operation \"request\" here"),
        ),
        (
            "request",
            http("GET", "orders/1", &[], &["authorization"]),
            denied("header \"authorization\" is not allowed for operation \"request\" here"),
        ),
    ];
    for (operation, demands, expected) in cases {
        assert_eq!(decision(&policy, operation, &demands, None), expected, "{operation} {demands:?}");
    }
}

#[test]
fn rules_that_cannot_work_are_findings_at_their_place() {
    let findings = |connector, rules: &str, operations: Vec<OperationSpec>| {
        compile(&resource(connector, rules), &operations).map(drop).unwrap_err()
    };
    assert_eq!(
        findings("file", "[[allow]]\noperations = [\"drop\", \"notify\"]\n", file_operations()),
        [
            "3:1: resources.r.allow[1].operations: unknown operation \"notify\"; this connector has drop, fetch, list, move, delete",
            "3:1: resources.r.allow[1].paths: missing; operation \"drop\" needs path globs, such as [\"**/*.csv\"]",
        ]
    );
    let rule = "[[allow]]\noperations = [\"delete\"]\npaths = [\"*\"]\nmethods = [\"GET\"]\nquery = [\"q\"]\n\
                headers = [\"h\"]\nmax_size = \"1B\"\nmay = [\"replace\"]\n";
    assert_eq!(
        findings("file", rule, file_operations()),
        [
            "3:1: resources.r.allow[1].methods: none of this rule's operations takes an HTTP method; remove the key",
            "3:1: resources.r.allow[1].query: none of this rule's operations takes a query; remove the key",
            "3:1: resources.r.allow[1].headers: none of this rule's operations takes headers; remove the key",
            "3:1: resources.r.allow[1].max_size: none of this rule's operations takes a payload or makes an output; remove the key",
            "3:1: resources.r.allow[1].may: none of this rule's operations takes such a right; remove the key",
        ]
    );
    let rule = "[[allow]]\noperations = [\"notify\"]\npaths = [\"*\"]\nmay = [\"replace\"]\n";
    assert_eq!(
        findings("http", rule, http_operations()),
        ["3:1: resources.r.allow[1].may: none of this rule's operations takes such a right; remove the key"]
    );
    let records = vec![
        spec("get", &["entity", "id", "key", "fields"], false, false, false),
        spec("call", &["name", "args"], false, false, false),
    ];
    let rule = "[[allow]]\noperations = [\"get\", \"call\"]\nentities = [\"contact\", \"contcat\"]\nfields = [\"*\"]\n\
                calls = [\"merge\", \"merg\"]\n[resources.r.entities.contact]\n[resources.r.calls.merge]\n";
    assert_eq!(
        findings("crm", rule, records),
        [
            "3:1: resources.r.allow[1].entities: \"contcat\" is not described; write it as [resources.….entities.contcat]",
            "3:1: resources.r.allow[1].calls: \"merg\" is not described; write it as [resources.….calls.merg]",
        ]
    );
}

#[test]
fn a_rule_that_did_not_pass_the_loader_is_refused_too() {
    let mut config = resource("file", "[[allow]]\noperations = [\"drop\"]\npaths = [\"*\"]\n");
    config.allow[0].paths = vec!["[".to_owned(), "../*".to_owned()];
    config.allow[0].may = Some(vec!["everything".to_owned()]);
    assert_eq!(compile(&config, &file_operations()).unwrap_err().len(), 3);
    config.allow[0].operations.clear();
    assert!(compile(&config, &file_operations()).is_err());
}

const PATHS: [&str; 12] = [
    "a.csv",
    "b.txt",
    "in/a.csv",
    "in/b",
    "in/x/a.csv",
    ".h",
    "in",
    "",
    "../a.csv",
    "in/../b",
    "a\0",
    "/a.csv",
];
const GLOBS: [&str; 6] = ["**/*.csv", "*", "in/*", "**", "in/**/a.csv", "b.txt"];
const METHODS: [&str; 4] = ["GET", "HEAD", "POST", "DELETE"];
const NAMES: [&str; 3] = ["a", "b", "c"];
const OPERATIONS: [&str; 5] = ["drop", "fetch", "move", "request", "notify"];
const RIGHTS: [Right; 3] = [Right::Replace, Right::CreateDirs, Right::DeleteAfterFetch];

fn every_operation() -> Vec<OperationSpec> {
    let open = |mut spec: OperationSpec| {
        // Without a list of parameters every key makes sense everywhere, so that all combinations get tried.
        spec.params_schema = Value::Bool(true);
        spec.takes_payload = true;
        spec
    };
    let known = |spec: &OperationSpec| OPERATIONS.contains(&spec.name);
    file_operations().into_iter().chain(http_operations()).filter(known).map(open).collect()
}

fn names_of(words: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let owned = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect();
    proptest::sample::subsequence(words, 0..=words.len().min(3)).prop_map(owned)
}

fn some_rule() -> impl Strategy<Value = AllowRule> {
    let right_names = &["replace", "create_dirs", "delete_after_fetch"];
    (
        proptest::sample::subsequence(&OPERATIONS, 1..=3),
        proptest::sample::subsequence(&GLOBS, 1..=3),
        names_of(&METHODS),
        names_of(&NAMES),
        names_of(&NAMES),
        proptest::option::of(0..20_u64),
        proptest::option::of(names_of(right_names)),
    )
        .prop_map(|(operations, paths, methods, query, headers, max_size, may)| AllowRule {
            operations: operations.into_iter().map(str::to_owned).collect(),
            paths: paths.into_iter().map(str::to_owned).collect(),
            methods,
            query,
            headers,
            requests: Vec::new(),
            entities: Vec::new(),
            fields: Vec::new(),
            calls: Vec::new(),
            max_size: max_size.map(ByteSize),
            may,
            max_per_day: None,
            daily_volume: None,
            at: passerelle_config::Finding {
                file: "agent.toml".into(),
                line: 1,
                column: 1,
                path: "resources.r.allow[1]".to_owned(),
                message: String::new(),
            },
        })
}

fn some_demands() -> impl Strategy<Value = Demands> {
    (
        proptest::collection::vec(proptest::sample::select(&PATHS), 0..3),
        proptest::option::of(proptest::sample::select(&METHODS)),
        names_of(&NAMES),
        names_of(&NAMES),
        proptest::sample::subsequence(&RIGHTS, 0..=2),
    )
        .prop_map(|(paths, method, query, headers, rights)| Demands {
            paths: paths.into_iter().map(str::to_owned).collect(),
            method: method.map(str::to_owned),
            query,
            headers,
            rights,
            ..Demands::default()
        })
}

/// Whether a glob matches, told apart from `globset`: split into parts and walked by hand.
fn reference_match(glob: &str, path: &str) -> bool {
    fn part(glob: &[u8], text: &[u8]) -> bool {
        match glob.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|taken| part(rest, &text[taken..])),
            Some((byte, rest)) => text.first() == Some(byte) && part(rest, &text[1..]),
        }
    }
    fn parts(globs: &[&str], path: &[&str]) -> bool {
        match globs {
            [] => path.is_empty(),
            ["**"] => !path.is_empty(),
            ["**", rest @ ..] => (0..=path.len()).any(|taken| parts(rest, &path[taken..])),
            [glob, rest @ ..] => {
                path.first().is_some_and(|first| part(glob.as_bytes(), first.as_bytes()))
                    && parts(rest, &path[1..])
            }
        }
    }
    parts(&glob.split('/').collect::<Vec<_>>(), &path.split('/').collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn a_policy_allows_what_one_of_its_rules_allows_alone(
        rules in proptest::collection::vec(some_rule(), 0..4),
        operation in proptest::sample::select(&OPERATIONS),
        demands in some_demands(),
        size in proptest::option::of(0..30_u64),
    ) {
        let policy = |allow: Vec<AllowRule>| {
            let mut config = resource("file", "");
            config.allow = allow;
            compile(&config, &every_operation()).unwrap()
        };
        let alone = rules.iter().position(|rule| policy(vec![rule.clone()]).decide(operation, &demands, size).is_ok());
        let together = policy(rules).decide(operation, &demands, size).ok();
        prop_assert_eq!(together.map(|allowed| allowed.rule), alone.map(|index| index + 1));
    }
}

/// What the contract says, written down without any thought of speed or messages.
fn reference(rules: &[AllowRule], operation: &str, demands: &Demands, size: Option<u64>) -> Option<usize> {
    let mut paths = demands.paths.clone();
    if paths.is_empty() {
        paths.push(String::new());
    }
    for (index, rule) in rules.iter().enumerate() {
        let mut allowed = rule.operations.iter().any(|name| name == operation);
        for path in &paths {
            let bad =
                path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..");
            let matched = rule.paths.iter().any(|glob| reference_match(glob, path));
            allowed = allowed && !bad && matched;
        }
        if let Some(method) = &demands.method {
            let methods: Vec<String> = match (rule.methods.is_empty(), operation) {
                (false, _) => rule.methods.clone(),
                (true, "request") => vec!["GET".to_owned(), "HEAD".to_owned()],
                (true, "notify") => vec!["POST".to_owned()],
                (true, _) => Vec::new(),
            };
            allowed = allowed && methods.contains(method);
        }
        allowed = allowed && demands.query.iter().all(|key| rule.query.contains(key));
        allowed = allowed && demands.headers.iter().all(|name| rule.headers.contains(name));
        let default = if operation == "drop" { vec!["replace", "create_dirs"] } else { Vec::new() };
        let may = match &rule.may {
            Some(may) => may.iter().map(String::as_str).collect(),
            None => default,
        };
        allowed = allowed && demands.rights.iter().all(|right| may.contains(&right.as_str()));
        if let (Some(size), Some(max)) = (size, rule.max_size) {
            allowed = allowed && size <= max.0;
        }
        if allowed {
            return Some(index + 1);
        }
    }
    None
}

fn policy_of(rules: Vec<AllowRule>) -> ResourcePolicy {
    static CONFIG: LazyLock<Mutex<ResourceConfig>> = LazyLock::new(|| Mutex::new(resource("file", "")));
    let mut config = CONFIG.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    config.allow = rules;
    compile(&config, &every_operation()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn a_call_is_allowed_exactly_when_the_reference_allows_it(
        rules in proptest::collection::vec(some_rule(), 0..4),
        operation in proptest::sample::select(&OPERATIONS),
        demands in some_demands(),
        size in proptest::option::of(0..30_u64),
    ) {
        let expected = reference(&rules, operation, &demands, size);
        let decided = policy_of(rules).decide(operation, &demands, size);
        prop_assert_eq!(decided.as_ref().ok().map(|allowed| allowed.rule), expected, "{:?}", decided);
    }

    #[test]
    fn demanding_more_never_turns_a_refusal_into_a_permission(
        rules in proptest::collection::vec(some_rule(), 0..4),
        operation in proptest::sample::select(&OPERATIONS),
        demands in some_demands(),
        more in some_demands(),
        size in 0..30_u64,
        extra in 0..30_u64,
    ) {
        // A call that names no path acts on the root: naming one is another call, not a wider one.
        prop_assume!(!demands.paths.is_empty());
        let policy = policy_of(rules);
        let mut wider = demands.clone();
        wider.paths.extend(more.paths);
        wider.query.extend(more.query);
        wider.headers.extend(more.headers);
        wider.rights.extend(more.rights);
        wider.method = demands.method.clone().or(more.method);
        if policy.decide(operation, &wider, Some(size + extra)).is_ok() {
            prop_assert!(policy.decide(operation, &demands, Some(size)).is_ok());
        }
    }

    #[test]
    fn a_payload_that_is_too_large_is_the_only_thing_wrong_with_a_call_refused_as_such(
        rules in proptest::collection::vec(some_rule(), 1..4),
        operation in proptest::sample::select(&OPERATIONS),
        demands in some_demands(),
        size in 0..30_u64,
    ) {
        let policy = policy_of(rules);
        if let Err(denied) = policy.decide(operation, &demands, Some(size)) {
            let too_large = denied.code == Code::TooLarge;
            prop_assert_eq!(too_large, policy.decide(operation, &demands, None).is_ok(), "{:?}", denied);
        }
    }
}

#[test]
fn the_example_folder_passes_its_connectors_and_the_policy() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples");
    let config = passerelle_config::load(&examples).unwrap_or_else(|findings| panic!("{findings}"));
    let mut diagnostics = Diagnostics::default();
    let mut allowed = Vec::new();
    for resource in &config.resources {
        let kind = REGISTRY.iter().find(|entry| entry.name == resource.connector).unwrap();
        assert!(kind.check(&resource.section, &mut diagnostics).is_some(), "{diagnostics}");
        let policy = ResourcePolicy::compile(resource, &kind.operations(), &mut diagnostics);
        let operations = policy.map(|policy| policy.allowed_operations()).unwrap_or_default();
        allowed.push(format!("{}: {}", resource.name, operations.join(" ")));
    }
    assert!(diagnostics.is_empty(), "{diagnostics}");
    assert_eq!(
        allowed,
        [
            "archive: drop list stat",
            "compta: drop fetch list stat",
            "crm: upsert get changes call",
            "documents: drop list",
            "factures: drop list stat move",
            "invoices: drop",
            "loyalty: request",
            "orders-app: notify",
            "partner: fetch list stat",
            "returns: request notify",
            "stock: request"
        ]
    );
}
