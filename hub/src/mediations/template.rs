//! Short templates in definitions: parameters, order keys, payloads (minijinja's language, limited in steps and size).
//!
//! A text that is one expression alone, `{{ … }}`, keeps the type of its value, so that numbers and lists can be handed on;
//! an object's entry whose expression gives nothing is left out. Everything else gives a text.
//!
//! Steps and size do not bound what an expression takes on its way: templates are checked here, and filled in a process of
//! their own (`sandbox`).

use super::rendering::filters::{self, Bounded};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, machinery, syntax::SyntaxConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use std::collections::{BTreeSet, HashSet};

/// Steps that one rendering may take.
const FUEL: u64 = 200_000;
/// The longest template.
pub const MAX_SOURCE: usize = 64 * 1024;
/// The most that one rendering may give.
const MAX_RENDERED: usize = 1024 * 1024;
const DEPTH: usize = 32;
/// How many of the names that are not there are told.
const MAX_MISSING: usize = 5;
/// How deep values may nest in which templates are looked for.
const MAX_NESTING: usize = 64;

/// Templates to be filled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Wanted {
    /// One that gives a text.
    Text(String),
    /// A text that keeps the type of its value, or a value all of whose texts are filled.
    Value(Json),
}

impl Wanted {
    /// What it gives if there is nothing to fill.
    pub(super) fn fixed(&self) -> Option<Json> {
        match self {
            Self::Text(source) => (!is_template(source)).then(|| Json::String(source.clone())),
            Self::Value(value) => is_fixed(value, MAX_NESTING).then(|| value.clone()),
        }
    }
}

pub(super) fn is_template(source: &str) -> bool {
    ["{{", "{%", "{#"].into_iter().any(|start| source.contains(start))
}

fn is_fixed(value: &Json, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else { return false };
    match value {
        Json::String(text) => !is_template(text),
        Json::Array(items) => items.iter().all(|item| is_fixed(item, depth)),
        Json::Object(entries) => entries.values().all(|entry| is_fixed(entry, depth)),
        Json::Null | Json::Bool(_) | Json::Number(_) => true,
    }
}

/// Fills what is wanted from `names`: nothing if it is one expression that gives nothing.
///
/// # Errors
/// What does not fit, in words that may be public, with the path of the text inside of a value.
pub(super) fn fill(wanted: &Wanted, names: &Value) -> Result<Option<Json>, String> {
    match wanted {
        Wanted::Text(source) => text(source, names).map(Json::String).map(Some),
        Wanted::Value(value) => any(value, names, MAX_NESTING),
    }
}

/// The environment that all templates share: strict about what is not defined, bounded.
fn environment<'a>() -> Environment<'a> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(DEPTH);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    filters::add(&mut environment);
    environment.set_formatter(filters::print);
    super::nesting::limit(&mut environment);
    environment
}

/// Whether a text is a template as far as its parser tells. To compile it, which computes its constants, is for
/// [`findings`], in a process of its own.
///
/// # Errors
/// What is wrong with it, for the finding at its key.
pub fn check(source: &str) -> Result<(), String> {
    if source.len() > MAX_SOURCE {
        return Err(format!("longer than {MAX_SOURCE} bytes"));
    }
    super::nesting::check(source, false)?;
    let parsed = match expression(source) {
        Some(expression) => machinery::parse_expr(expression).map(drop),
        None => machinery::parse(source, "", SyntaxConfig::default()).map(drop),
    };
    parsed.map_err(|error| format!("not a template: {}", said(&error)))
}

/// A text of a definition that has to be compiled to be checked: what it is, and which names it sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Source {
    pub(crate) text: String,
    pub(crate) dialect: Dialect,
    pub(crate) known: Vec<String>,
    /// The steps that `steps` holds, if the text may ask for one.
    pub(crate) steps: Vec<String>,
}

/// Which kind of text it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Dialect {
    /// A parameter, label, payload: this file's.
    Short,
    /// A file (`rendering.rs`).
    File,
    /// An expression of a column.
    Column,
    /// A pattern of a condition.
    Pattern,
}

/// What is wrong with a text: it does not compile, or uses names, filters and tests that are neither known nor the language's.
pub(super) fn findings(source: &Source) -> Vec<String> {
    let bare = match source.dialect {
        Dialect::Short => expression(&source.text),
        Dialect::File => None,
        Dialect::Column => Some(source.text.as_str()),
        Dialect::Pattern => return super::expression::pattern(&source.text).err().into_iter().collect(),
    };
    let environment =
        if source.dialect == Dialect::Short { environment() } else { super::rendering::small() };
    let text = bare.unwrap_or(&source.text);
    let paths = match bare {
        Some(_) => environment.compile_expression(text).map(|made| made.undeclared_variables(true)),
        None => environment.template_from_str(text).map(|made| made.undeclared_variables(true)),
    };
    let paths = match paths {
        Ok(paths) => paths,
        Err(error) => {
            let what = if source.dialect == Dialect::Column { "an expression" } else { "a template" };
            return vec![format!("not {what}: {}", said(&error))];
        }
    };
    let used = super::nesting::used(text, bare.is_some());
    let is_known = |name: &String| {
        source.known.contains(name)
            || used.own.contains(name)
            || environment.globals().any(|(global, _)| global == name)
    };
    let paths: BTreeSet<String> = paths.into_iter().collect();
    let names: BTreeSet<String> = paths.iter().map(|path| head(path).0.to_owned()).collect();
    let names = names.into_iter().filter(|name| !is_known(name));
    let unknown = |name: String| match source.dialect {
        Dialect::Column => format!("{name:?} is not known here; write record.{name}, or 'text' for a text"),
        _ => format!("{name:?} is not known here; a template sees {}", source.known.join(", ")),
    };
    let mut found: Vec<String> = names.map(unknown).collect();
    if !used.own.contains("steps") {
        found.extend(paths.iter().filter_map(|path| wrong_step(path, &source.steps)));
    }
    let is = |kind: ErrorKind, probe: String| {
        let probed = environment.compile_expression(&probe).and_then(|probe| probe.eval(()).map(drop));
        probed.is_err_and(|error| error.kind() == kind)
    };
    let filters =
        used.filters.into_iter().filter(|name| is(ErrorKind::UnknownFilter, format!("none|{name}")));
    found.extend(filters.map(|name| format!("there is no filter {name:?}")));
    let tests = used.tests.into_iter().filter(|name| is(ErrorKind::UnknownTest, format!("none is {name}")));
    found.extend(tests.map(|name| format!("there is no test {name:?}")));
    found
}

/// The first name of a path, and what follows it.
fn head(path: &str) -> (&str, Option<&str>) {
    path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)))
}

/// What is wrong with a path into `steps`, where only what each of `names` left can be asked for.
fn wrong_step(path: &str, names: &[String]) -> Option<String> {
    let (_, rest) = Some(head(path)).filter(|(name, _)| *name == "steps")?;
    let (step, rest) = head(rest?);
    if !names.iter().any(|name| name == step) {
        return Some(format!("there is no step {step:?}; the steps are {}", names.join(", ")));
    }
    let (what, _) = head(rest?);
    (!["result", "flows"].contains(&what))
        .then(|| format!("steps.{step} has no {what:?}, but result and flows"))
}

/// All texts in the values of an object, each with its path below `path`.
pub(super) fn texts<'v>(values: &'v Map<String, Json>, path: &str) -> Vec<(String, &'v str)> {
    fn add<'v>(value: &'v Json, path: String, found: &mut Vec<(String, &'v str)>) {
        match value {
            Json::String(text) => found.push((path, text)),
            Json::Array(items) => {
                items
                    .iter()
                    .enumerate()
                    .for_each(|(at, item)| add(item, format!("{path}[{}]", at + 1), found));
            }
            Json::Object(entries) => {
                entries.iter().for_each(|(key, entry)| add(entry, format!("{path}.{key}"), found));
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
    }

    let mut found = Vec::new();
    values.iter().for_each(|(key, value)| add(value, format!("{path}.{key}"), &mut found));
    found
}

/// [`check`] of all of [`texts`]; what is found is told with its path.
pub fn check_all(values: &Map<String, Json>, path: &str) -> Vec<(String, String)> {
    let texts = texts(values, path).into_iter();
    texts.filter_map(|(path, text)| Some((path, check(text).err()?))).collect()
}

fn text(source: &str, names: &Value) -> Result<String, String> {
    if !is_template(source) {
        return Ok(source.to_owned());
    }
    super::nesting::check(source, false)?;
    let environment = environment();
    let template = environment.template_from_str(source).map_err(|error| said(&error))?;
    let mut text = Bounded::new(MAX_RENDERED);
    template
        .render_captured_to(names.clone(), &mut text)
        .map_err(|error| said_of(&error, &environment, template.undeclared_variables(true), names))?;
    String::from_utf8(text.written).map_err(|error| error.to_string())
}

fn value(source: &str, names: &Value) -> Result<Option<Json>, String> {
    let Some(expression) = expression(source) else { return text(source, names).map(Json::String).map(Some) };
    super::nesting::check(expression, true)?;
    let environment = environment();
    let compiled = environment.compile_expression(expression).map_err(|error| said(&error))?;
    let value = compiled
        .eval(names.clone())
        .map_err(|error| said_of(&error, &environment, compiled.undeclared_variables(true), names))?;
    if value.is_undefined() || value.is_none() {
        return Ok(None);
    }
    // Looked at first: what follows makes all of it, however long that is.
    filters::json(&value, MAX_RENDERED).map_err(|error| said(&error))?;
    let json = serde_json::to_value(&value).map_err(|_| "a value cannot be written as JSON".to_owned())?;
    Ok(Some(json))
}

fn any(template: &Json, names: &Value, depth: usize) -> Result<Option<Json>, String> {
    let Some(depth) = depth.checked_sub(1) else { return Err("nested too deeply".to_owned()) };
    Ok(Some(match template {
        Json::String(source) => return value(source, names),
        Json::Array(items) => {
            let filled: Result<Vec<_>, _> = items.iter().map(|item| any(item, names, depth)).collect();
            Json::Array(filled?.into_iter().map(|item| item.unwrap_or(Json::Null)).collect())
        }
        Json::Object(entries) => {
            let mut filled = Map::new();
            for (key, entry) in entries {
                if let Some(entry) = any(entry, names, depth).map_err(|why| format!("{key}: {why}"))? {
                    filled.insert(key.clone(), entry);
                }
            }
            Json::Object(filled)
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => template.clone(),
    }))
}

/// The inside of a text that is one expression alone.
fn expression(source: &str) -> Option<&str> {
    let inner = source.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    (!inner.contains("{{") && !inner.contains("}}")).then(|| inner.trim_matches('-').trim())
}

/// The error without the template's text around it.
pub(super) fn said(error: &Error) -> String {
    let line = error.line().map_or(String::new(), |line| format!(" (line {line} of the template)"));
    match (error.detail(), error.kind()) {
        (_, ErrorKind::OutOfFuel) => "the template takes too many steps".to_owned(),
        (_, ErrorKind::WriteFailure) => format!("the template gives more than {MAX_RENDERED} bytes"),
        (Some(detail), _) => format!("{detail}{line}"),
        (None, kind) => format!("{kind}{line}"),
    }
}

/// The same, and where something is not defined, which of the names that the template uses (`a.b.c`) are not there.
pub(super) fn said_of(
    error: &Error,
    environment: &Environment<'_>,
    used: HashSet<String>,
    names: &Value,
) -> String {
    let said = said(error);
    if error.kind() != ErrorKind::UndefinedError {
        return said;
    }
    let is_missing = |path: &String| {
        let mut found = names.clone();
        !path.split('.').all(|part| {
            found = found.get_attr(part).unwrap_or_default();
            !found.is_undefined()
        })
    };
    let is_function = |path: &String| environment.globals().any(|(name, _)| name == path.as_str());
    let mut missing: Vec<_> =
        used.into_iter().filter(|path| !is_function(path) && is_missing(path)).collect();
    if missing.is_empty() {
        return said;
    }
    missing.sort();
    let more = if missing.len() > MAX_MISSING { ", …" } else { "" };
    missing.truncate(MAX_MISSING);
    format!("{said}; not there: {}{more}", missing.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names() -> Value {
        let names = json!({"trigger": {"data": {"Numero": 42, "lines": [1, 2]}}, "watermarks": {}, "flow": {"label": "a"}});
        Value::from(minijinja::value::Serde(names))
    }

    #[test]
    fn one_expression_alone_keeps_its_type_and_nothing_is_left_out() {
        let params = json!({
            "path": "orders/{{ trigger.data.Numero }}/validated", "number": "{{ trigger.data.Numero }}",
            "lines": "{{ trigger.data.lines }}", "cursor": "{{ watermarks.customers }}", "plain": "x", "flag": true,
            "deep": {"list": ["{{ flow.label }}", "{{ watermarks.none }}"], "none": "{{ watermarks.none }}"},
        });
        let filled = fill(&Wanted::Value(params), &names()).unwrap().unwrap();
        assert_eq!(
            filled,
            json!({
                "path": "orders/42/validated", "number": 42, "lines": [1, 2], "plain": "x", "flag": true,
                "deep": {"list": ["a", null]},
            })
        );
    }

    #[test]
    fn what_is_not_defined_inside_a_text_is_a_mistake_that_names_its_place() {
        let params = json!({"deep": {"path": "x/{{ trigger.data.Nom }}.csv"}});
        let why = fill(&Wanted::Value(params), &names()).unwrap_err();
        assert!(why.starts_with("deep: path: ") && why.contains("undefined"), "{why}");
        assert!(why.ends_with("; not there: trigger.data.Nom"), "{why}");
        let several =
            "{{ range(2)|join }}{{ trigger.data.Numero }}{{ flow.x.y ~ watermarks.a or '' }}{{ nope }}";
        let why = fill(&Wanted::Text(several.to_owned()), &names()).unwrap_err();
        assert!(why.ends_with("; not there: flow.x.y, nope, watermarks.a"), "{why}");
    }

    fn source(text: &str, known: &[&str]) -> Source {
        let all = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Source {
            text: text.to_owned(),
            dialect: Dialect::Short,
            known: all(known),
            steps: all(&["make", "send"]),
        }
    }

    #[test]
    fn a_step_that_is_not_there_is_found_before_a_run_asks_for_it() {
        let found = |text: &str| findings(&source(text, &["steps", "trigger"])).join("; ");
        for good in [
            "{{ steps.make.result.id }}",
            "{{ steps.send.flows[0].label }}",
            "{{ steps['a-b'] }}",
            "{{ steps | length }}{{ steps.make }}",
            "{% for steps in trigger.data %}{{ steps.other.x }}{% endfor %}",
            "{{ trigger.steps.other }}",
        ] {
            assert_eq!(found(good), "", "{good}");
        }
        assert_eq!(found("{{ steps.mkae.result }}"), "there is no step \"mkae\"; the steps are make, send");
        assert_eq!(
            found("a{% if steps.none is defined %}b{% endif %}{{ steps.make.results }}"),
            "steps.make has no \"results\", but result and flows; there is no step \"none\"; the steps are make, send"
        );
        assert_eq!(found("{{ stepz.make }}"), "\"stepz\" is not known here; a template sees steps, trigger");
    }

    #[test]
    fn a_template_cannot_run_for_ever_or_fill_the_memory() {
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(text(endless, &names()).unwrap_err().contains("too many steps"));
        let large = "{% for a in range(2000) %}{{ 'x' * 100000 }}{% endfor %}";
        assert!(text(large, &names()).is_err());
        // Lists that hold each other, and of which nothing is in memory.
        let doubled = format!("{{% set a = [1] %}}{}", "{% set a = [a, a] %}".repeat(50));
        let error = text(&format!("{doubled}{{{{ a | tojson }}}}"), &names()).unwrap_err();
        assert!(error.contains("too long to be written out"), "{error}");
        let error = value("{{ [[1] * 100000000] * 100000000 }}", &names()).unwrap_err();
        assert!(error.contains("too long to be written out"), "{error}");
        let compiles = |text: &str| findings(&source(text, &["a"])).is_empty();
        assert!(compiles("{% if a %}{% set s = ';' %}{% else %}{% set s = ',' %}{% endif %}{{ s }}"));
        assert!(compiles(
            "{% set s %}{% for x in a %}{{ loop.index }}{% set t = x %}{{ t }}{% endfor %}{% endset %}{{ s }}"
        ));
        assert!(compiles(
            "{{ b if b is defined else [] }}{{ c | default('') }}{% with d = a %}{{ d }}{% endwith %}"
        ));
        assert!(
            !compiles("{{ 1 +") && !compiles("a {% for %}") && compiles("{{ a.b }}") && !compiles("{{ b }}")
        );
    }
}
