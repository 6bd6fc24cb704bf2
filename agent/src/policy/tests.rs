//! The policy against tables of cases.

use super::{Allowed, ResourcePolicy};
use passerelle_config::{Diagnostics, Finding, ResourceConfig};
use passerelle_connectors::{Code, Demands, OperationSpec, REGISTRY, Repeat, Right};
use serde_json::json;

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

pub(super) fn file_operations() -> Vec<OperationSpec> {
    vec![
        spec("drop", &["path", "on_conflict", "create_dirs"], true, true, false),
        spec("fetch", &["path", "then"], true, false, true),
        spec("list", &["path", "pattern"], true, false, false),
        spec("move", &["from", "to", "on_conflict"], true, false, false),
        spec("delete", &["path"], true, false, false),
    ]
}

pub(super) fn http_operations() -> Vec<OperationSpec> {
    vec![
        spec("request", &["method", "path", "query", "headers", "expect", "request"], true, true, true),
        spec("notify", &["path", "method", "headers", "request"], true, true, false),
    ]
}

/// The resource as the loader makes it of these rules, so that the tests speak the operator's language.
pub(super) fn resource(connector: &str, rules: &str) -> ResourceConfig {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("resources.d")).unwrap();
    std::fs::write(dir.path().join("agent.toml"), "[hub]\nurl = \"https://hub.example.com\"\n").unwrap();
    let rules = rules.replace("[[allow]]", "[[resources.r.allow]]");
    let text = format!("[resources.r]\nconnector = \"{connector}\"\n{rules}");
    std::fs::write(dir.path().join("resources.d/r.toml"), text).unwrap();
    let mut config = passerelle_config::load(dir.path()).unwrap();
    config.resources.remove(0)
}

pub(super) fn compile(
    resource: &ResourceConfig,
    operations: &[OperationSpec],
) -> Result<ResourcePolicy, Vec<String>> {
    let mut diagnostics = Diagnostics::default();
    let policy = ResourcePolicy::compile(resource, operations, &mut diagnostics);
    policy.ok_or_else(|| {
        let show = |f: &Finding| format!("{}:{}: {}: {}", f.line, f.column, f.path, f.message);
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
            denied(
                "\"drop\" may not replace what is there here (right \"replace\"); a job with on_conflict \"fail\" or \"suffix\" needs no such right",
            ),
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
        ("requests = [\"other\"]", "requests[1]: unknown request \"other\""),
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
            "3:1: resources.r.allow[1].operations[2]: unknown operation \"notify\"; this connector has drop, fetch, list, move, delete",
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
            "3:1: resources.r.allow[1].entities[2]: \"contcat\" is not described; write it as [resources.….entities.contcat]",
            "3:1: resources.r.allow[1].calls[2]: \"merg\" is not described; write it as [resources.….calls.merg]",
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

#[test]
fn what_the_loader_told_is_refused_and_not_told_again() {
    let mut config = resource("file", "[[allow]]\noperations = [\"drop\"]\npaths = [\"*\"]\n");
    let rule = &mut config.allow[0];
    rule.paths = vec!["[".to_owned()];
    let mut told = Diagnostics::default();
    told.push(Finding { path: format!("{}.paths[1]", rule.at.path), ..rule.at.clone() });
    assert!(ResourcePolicy::compile(&config, &file_operations(), &mut told).is_none());
    assert_eq!(told.findings().len(), 1, "{told}");

    // Without operations nobody can tell what the other keys are for.
    config.allow[0].operations.clear();
    config.allow[0].paths = vec!["*".to_owned()];
    let told = compile(&config, &file_operations()).map(drop).unwrap_err();
    assert!(matches!(told.as_slice(), [one] if one.contains("allow[1].operations: missing")), "{told:?}");
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
