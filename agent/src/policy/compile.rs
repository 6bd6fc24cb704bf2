//! Turns the configured allow rules of a resource into a policy; what cannot work becomes a finding.

use super::{Daily, Named, Operation, ResourcePolicy, Rule, paths::PathRule};
use passerelle_config::{AllowRule, Diagnostics, Finding, ResourceConfig, Section, path_glob};
use passerelle_connectors::{OperationSpec, Right};

const RIGHTS: [Right; 3] = [Right::Replace, Right::CreateDirs, Right::DeleteAfterFetch];

impl ResourcePolicy {
    /// Compiles the rules of a resource for the operations of its connector. Findings stand at the rule's place;
    /// `None` if there is one.
    pub fn compile(
        resource: &ResourceConfig,
        operations: &[OperationSpec],
        diagnostics: &mut Diagnostics,
    ) -> Option<Self> {
        let mut refused = false;
        let compiled = |rule| compile_rule(rule, &resource.section, operations, diagnostics, &mut refused);
        let rules = resource.allow.iter().map(compiled).collect();
        let known =
            |spec: &OperationSpec| Operation { name: spec.name.to_owned(), needs_paths: spec.needs_paths };
        (!refused).then(|| Self { rules, operations: operations.iter().map(known).collect() })
    }
}

fn compile_rule(
    rule: &AllowRule,
    section: &Section,
    operations: &[OperationSpec],
    diagnostics: &mut Diagnostics,
    refused: &mut bool,
) -> Rule {
    let mut report = |key: &str, message: String| {
        let path = format!("{}.{key}", rule.at.path);
        *refused = true;
        // The loader may have told it already, at the very place.
        if diagnostics.findings().iter().all(|told| told.path != path || told.file != rule.at.file) {
            diagnostics.push(Finding { path, message, ..rule.at.clone() });
        }
    };
    let known: Vec<_> =
        operations.iter().filter(|spec| rule.operations.iter().any(|name| name == spec.name)).collect();
    if rule.operations.is_empty() {
        report("operations", "missing or empty; list the operations that this rule allows".to_owned());
    }
    for (index, name) in rule.operations.iter().enumerate() {
        if known.iter().all(|spec| spec.name != *name) {
            let names: Vec<_> = operations.iter().map(|spec| spec.name).collect();
            let message = format!("unknown operation {name:?}; this connector has {}", names.join(", "));
            report(&element("operations", index), message);
        }
    }
    if let Some(spec) =
        known.iter().find(|spec| spec.needs_paths && rule.paths.is_empty() && rule.requests.is_empty())
    {
        let message = format!("missing; operation {:?} needs path globs, such as [\"**/*.csv\"]", spec.name);
        report("paths", message);
    }
    let takes = |spec: &OperationSpec, parameters: &[&str]| {
        let properties = spec.params_schema.get("properties").and_then(serde_json::Value::as_object);
        properties.is_some_and(|known| parameters.iter().all(|parameter| known.contains_key(*parameter)))
    };
    for (key, parameters, given, such_as) in [
        ("entities", &["entity"][..], !rule.entities.is_empty(), "[\"contact\"]"),
        (
            "fields",
            &["entity", "fields"],
            !rule.fields.is_empty(),
            "[\"email\", \"name\"] or, for all, [\"*\"]",
        ),
        ("calls", &["name", "args"], !rule.calls.is_empty(), "[\"recalculate\"]"),
    ] {
        if let Some(spec) = known.iter().find(|spec| !given && takes(spec, parameters)) {
            report(key, format!("missing; operation {:?} needs {key}, such as {such_as}", spec.name));
        }
    }
    // A key that none of the rule's operations can use would promise a limit that does not exist. With an unknown
    // operation among them, or none at all, nobody can tell.
    if known.len() == rule.operations.len() && !known.is_empty() {
        for (key, parameter) in useless_keys(rule, &known) {
            report(key, format!("none of this rule's operations takes {parameter}; remove the key"));
        }
    }
    let mut paths = Vec::with_capacity(rule.paths.len());
    for (index, pattern) in rule.paths.iter().enumerate() {
        match path_glob(pattern) {
            Ok(glob) => paths.push(PathRule::new(&glob)),
            Err(message) => report(&element("paths", index), format!("{pattern:?}: {message}")),
        }
    }
    // A right to something that is not there is a misspelt one to something else.
    for (key, names) in [("entities", &rule.entities), ("calls", &rule.calls)] {
        for (index, name) in names.iter().enumerate() {
            if name != "*" && !section.has(&format!("{key}.{name}")) {
                let message = format!("{name:?} is not described; write it as [resources.….{key}.{name}]");
                report(&element(key, index), message);
            }
        }
    }
    let mut requests = Vec::with_capacity(rule.requests.len());
    for (index, name) in rule.requests.iter().enumerate() {
        let text = |key: &str| section.text(&format!("requests.{name}.{key}"));
        match (text("method"), text("path")) {
            (Some(method), Some(path)) if !name.contains('.') => {
                requests.push(Named { name: name.clone(), does: format!("{method} {path}") });
            }
            _ => {
                let message = format!("unknown request {name:?}; write it as [resources.….requests.{name}]");
                report(&element("requests", index), message);
            }
        }
    }
    let may = rule.may.as_ref().map(|names| {
        let mut rights = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            match RIGHTS.into_iter().find(|right| right.as_str() == name) {
                Some(right) => rights.push(right),
                None => {
                    let names = RIGHTS.map(Right::as_str).join(", ");
                    report(&element("may", index), format!("unknown right {name:?}; there are {names}"));
                }
            }
        }
        rights
    });
    Rule {
        operations: rule.operations.clone(),
        paths,
        methods: rule.methods.clone(),
        query: rule.query.clone(),
        headers: rule.headers.clone(),
        requests,
        entities: rule.entities.clone(),
        fields: rule.fields.clone(),
        calls: rule.calls.clone(),
        max_size: rule.max_size.map(|size| size.0),
        may,
        daily: Daily {
            attempts: rule.max_per_day.map(u64::from),
            bytes: rule.daily_volume.map(|volume| volume.0),
        },
        at: rule.at.clone(),
    }
}

/// An element of a list, as findings call it.
fn element(key: &str, index: usize) -> String {
    format!("{key}[{}]", index + 1)
}

/// The keys of a rule that none of its operations can use, each with what it would limit. An operation tells by the
/// parameters in its schema; one whose schema lists none is taken to use everything.
fn useless_keys(rule: &AllowRule, operations: &[&OperationSpec]) -> Vec<(&'static str, &'static str)> {
    let takes = |parameter: &str| {
        operations.iter().any(|spec| {
            let properties = spec.params_schema.get("properties").and_then(serde_json::Value::as_object);
            properties.is_none_or(|properties| properties.contains_key(parameter))
        })
    };
    let any = |test: fn(&OperationSpec) -> bool| operations.iter().any(|spec| test(spec));
    let mut useless = Vec::new();
    if !rule.paths.is_empty() && !any(|spec| spec.needs_paths) && !takes("path") {
        useless.push(("paths", "a path"));
    }
    if !rule.requests.is_empty() && !takes("request") {
        useless.push(("requests", "a request that the operator wrote"));
    }
    // What the operator wrote needs no further limits, and nothing else is allowed.
    if !rule.requests.is_empty() && rule.paths.is_empty() {
        for (key, list) in [("methods", &rule.methods), ("query", &rule.query), ("headers", &rule.headers)] {
            if !list.is_empty() {
                useless.push((key, "it without paths"));
            }
        }
        return useless;
    }
    if !rule.methods.is_empty() && !takes("method") {
        useless.push(("methods", "an HTTP method"));
    }
    if !rule.query.is_empty() && !takes("query") {
        useless.push(("query", "a query"));
    }
    if !rule.headers.is_empty() && !takes("headers") {
        useless.push(("headers", "headers"));
    }
    if !rule.entities.is_empty() && !takes("entity") {
        useless.push(("entities", "an entity"));
    }
    if !rule.fields.is_empty() && !takes("entity") {
        useless.push(("fields", "fields of an entity"));
    }
    let makes_calls = takes("name") && takes("args");
    if !rule.calls.is_empty() && !makes_calls {
        useless.push(("calls", "the name of a call"));
    }
    let carries = any(|spec| spec.takes_payload || spec.makes_output);
    for (key, set) in [("max_size", rule.max_size.is_some()), ("daily_volume", rule.daily_volume.is_some())] {
        if set && !carries {
            useless.push((key, "a payload or makes an output"));
        }
    }
    if rule.may.as_ref().is_some_and(|may| !may.is_empty())
        && !["on_conflict", "create_dirs", "then"].into_iter().any(takes)
    {
        useless.push(("may", "such a right"));
    }
    useless
}
