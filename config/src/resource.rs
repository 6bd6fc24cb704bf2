//! Checks one `[resources.NAME]` table: the keys that every resource has. The rest is its connector's.

use crate::{
    AllowRule, Diagnostics, Limits, ResourceConfig, Section, check, defaults,
    hint::unknown_value,
    path_glob, raw,
    tree::{Node, Source, Value, join},
    trigger,
};
use std::{collections::BTreeSet, path::Path, sync::Arc};

/// The keys that every resource has.
pub(crate) const COMMON_KEYS: &[&str] = &["connector", "limits", "allow", "pickup", "watch", "changes"];
/// The rights that a rule may give with `may`.
pub(crate) const RIGHTS: &[&str] = &["replace", "create_dirs", "delete_after_fetch"];

/// Checks a resource. `None` if it cannot be used at all; findings say why.
pub(crate) fn check(
    name: &str,
    mut node: Node,
    source: &Arc<Source>,
    dir: &Path,
    diagnostics: &mut Diagnostics,
) -> Option<ResourceConfig> {
    let path = join("resources", name);
    let at = node.at;
    let (mut text, mut files) = (String::new(), BTreeSet::new());
    node.write_canonical(&mut text);
    node.named_files(dir, &mut files);
    let Value::Table(table) = &mut node.value else {
        let message = format!("expected a table: write [{path}] and its keys below");
        diagnostics.push(source.finding(at, &path, message));
        return None;
    };
    let mut common = table.clone();
    common.retain(|key, _| COMMON_KEYS.contains(&key.as_str()));
    table.retain(|key, _| !COMMON_KEYS.contains(&key.as_str()));
    let common =
        Section::new(name, path.clone(), Node { at, value: Value::Table(common) }, Arc::clone(source), &[]);
    let section = Section::new(name, path, node, Arc::clone(source), COMMON_KEYS);

    if !check::is_name(name) {
        diagnostics.push(common.finding("", format!("not a resource's name: {}", check::NAME_RULE)));
    }
    let raw: raw::Resource = common.parse_leniently(diagnostics)?;
    let connector = check_connector(&common, raw.connector, diagnostics);
    let limits = check_limits(&common, connector.as_deref(), &raw.limits.unwrap_or_default(), diagnostics);
    let rules = raw.allow.unwrap_or_default();
    if rules.len() > defaults::MAX_RULES {
        let message = format!("expected at most {} allow rules, found {}", defaults::MAX_RULES, rules.len());
        diagnostics.push(common.finding("allow", message));
    }
    let allow = rules
        .into_iter()
        .enumerate()
        .map(|(i, rule)| check_rule(&common, i + 1, rule, diagnostics))
        .collect();
    let raw_triggers = trigger::Raw {
        pickups: raw.pickup.unwrap_or_default(),
        watches: raw.watch.unwrap_or_default(),
        changes: raw.changes.unwrap_or_default(),
    };
    let trigger::Checked { pickups, watches, changes } = trigger::check(&common, raw_triggers, diagnostics);
    Some(ResourceConfig {
        name: name.to_owned(),
        connector: connector?,
        limits,
        allow,
        pickups,
        watches,
        changes,
        section,
        text,
        files,
    })
}

fn check_connector(
    common: &Section,
    connector: Option<String>,
    diagnostics: &mut Diagnostics,
) -> Option<String> {
    let message = match connector {
        None if common.has("connector") => return None,
        None => "missing; name the kind of connector, such as \"file\" or \"http\"".to_owned(),
        Some(connector) if check::is_name(&connector) => return Some(connector),
        Some(_) => format!("not a connector's name: {}", check::NAME_RULE),
    };
    diagnostics.push(common.finding("connector", message));
    None
}

fn check_limits(
    common: &Section,
    connector: Option<&str>,
    raw: &raw::Limits,
    diagnostics: &mut Diagnostics,
) -> Limits {
    let max_concurrent = match connector {
        Some("crm") => defaults::CRM_MAX_CONCURRENT,
        _ => defaults::MAX_CONCURRENT,
    };
    let mut number = |key: &str, value: i64, max| {
        check::in_range(common, &format!("limits.{key}"), value, 1..=max, diagnostics)
    };
    Limits {
        max_concurrent: raw
            .max_concurrent
            .map_or(max_concurrent, |value| number("max_concurrent", value, defaults::MAX_CONCURRENT_LIMIT)),
        rate_per_minute: raw
            .rate_per_minute
            .map(|value| number("rate_per_minute", value, defaults::RATE_LIMIT)),
    }
}

/// Checks rule `number`, counted from 1 as in receipts (`compta#1`).
fn check_rule(common: &Section, number: usize, raw: raw::Rule, diagnostics: &mut Diagnostics) -> AllowRule {
    let rule = format!("allow[{number}]");
    let key = format!("{rule}.operations");
    if raw.operations.as_ref().map_or(!common.has(&key), Vec::is_empty) {
        let message = "missing or empty; list the operations that this rule allows";
        diagnostics.push(common.finding(&key, message));
    }
    let mut each = |key: &str, values: &[String], problem: &dyn Fn(&str) -> Option<String>| {
        for (index, value) in values.iter().enumerate() {
            if let Some(message) = problem(value) {
                diagnostics.push(common.finding(&format!("{rule}.{key}[{}]", index + 1), message));
            }
        }
    };
    let operations = raw.operations.unwrap_or_default();
    let paths = raw.paths.unwrap_or_default();
    let methods = raw.methods.unwrap_or_default();
    let query = raw.query.unwrap_or_default();
    let headers = raw.headers.unwrap_or_default();
    let requests = raw.requests.unwrap_or_default();
    let entities = raw.entities.unwrap_or_default();
    let fields = raw.fields.unwrap_or_default();
    let calls = raw.calls.unwrap_or_default();
    each("operations", &operations, &|name| {
        (!check::is_name(name)).then(|| format!("not an operation's name: {}", check::NAME_RULE))
    });
    each("paths", &paths, &|pattern| path_glob(pattern).err());
    each("methods", &methods, &method_problem);
    each("query", &query, &|key| key.is_empty().then(|| "empty; write the name of a query key".to_owned()));
    each("headers", &headers, &|name| {
        (!check::is_token(name)).then(|| "not a header's name; write one such as \"x-request-id\"".to_owned())
    });
    each("requests", &requests, &|name| {
        name.is_empty().then(|| "empty; write the name of a request of this resource".to_owned())
    });
    let word_problem = |name: &str| {
        let is_word = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        (name.is_empty() || !is_word)
            .then(|| "not a name of the resource's vocabulary; write one of a–z, 0–9 and _".to_owned())
    };
    each("entities", &entities, &word_problem);
    each("fields", &fields, &|name| if name == "*" { None } else { word_problem(name) });
    each("calls", &calls, &word_problem);
    if let Some(may) = &raw.may {
        each("may", may, &|right| (!RIGHTS.contains(&right)).then(|| unknown_value(right, RIGHTS)));
    }
    let max_per_day = raw.max_per_day.map(|value| {
        let key = format!("{rule}.max_per_day");
        check::in_range(common, &key, value, 1..=defaults::MAX_PER_DAY_LIMIT, diagnostics)
    });
    if raw.daily_volume.is_some_and(|volume| volume.0 == 0) {
        let message = "must be larger than 0; a rule that allows nothing is better left out";
        diagnostics.push(common.finding(&format!("{rule}.daily_volume"), message));
    }
    AllowRule {
        max_per_day,
        daily_volume: raw.daily_volume,
        operations,
        paths,
        methods,
        query,
        headers: headers.iter().map(|name| name.to_ascii_lowercase()).collect(),
        requests,
        entities,
        fields,
        calls,
        max_size: raw.max_size,
        may: raw.may,
        at: common.finding(&rule, ""),
    }
}

/// The methods that jobs can use.
const METHODS: [&str; 7] = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"];

/// HTTP methods are case-sensitive (RFC 9110 §9.1), so `post` would never match.
fn method_problem(method: &str) -> Option<String> {
    if !check::is_token(method) {
        return Some("not an HTTP method; write one such as \"GET\" or \"POST\"".to_owned());
    }
    let upper = method.to_ascii_uppercase();
    if upper != method {
        return Some(format!("HTTP methods are upper case: write \"{upper}\""));
    }
    (!METHODS.contains(&method)).then(|| format!("no job can use it; write one of {}", METHODS.join(", ")))
}
