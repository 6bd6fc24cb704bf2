//! The policy against a reference evaluation written as naively as possible.

use super::{
    ResourcePolicy,
    tests::{compile, file_operations, http_operations, resource},
};
use passerelle_config::{AllowRule, ByteSize, ResourceConfig};
use passerelle_connectors::{Code, Demands, OperationSpec, Right};
use proptest::prelude::*;
use serde_json::Value;
use std::sync::{LazyLock, Mutex};

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
