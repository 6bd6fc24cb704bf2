//! A target's JSON objects, read and built by the names that the mapping gives: a dot leads into an inner object.

use super::{
    error::{CrmError, Problem},
    exchange::request::{Request, segment},
    settings::{CallSpec, Findings, Settings},
    vocabulary::{Field, Given},
};
use http::Method;
use serde_json::{Map, Value};

/// What stands at a path.
pub(super) fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(value, |value, part| value.get(part))
}

/// The fields wanted of a target's object, by our names; those that it does not have are left out.
pub(super) fn fields(value: &Value, wanted: &[&Field]) -> Map<String, Value> {
    wanted
        .iter()
        .filter_map(|field| Some((field.name.clone(), field.kind.read(at(value, &field.target)?))))
        .collect()
}

/// Sets a value at a path.
pub(super) fn put(object: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(object.insert(path.to_owned(), value)),
        Some((first, rest)) => {
            let inner = object.entry(first.to_owned()).or_insert_with(|| Value::Object(Map::new()));
            if !inner.is_object() {
                *inner = Value::Object(Map::new());
            }
            if let Value::Object(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// An id, which some targets write as a number here and as a string there.
pub(super) fn id(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The offset that a page's cursor stands for.
///
/// # Errors
/// [`Problem::Protocol`] for a cursor that is none of ours.
pub(super) fn offset(cursor: Option<&str>) -> Result<usize, CrmError> {
    cursor
        .map_or(Ok(0), str::parse)
        .map_err(|_| CrmError::new(Problem::Protocol).reason("the cursor is none of this target"))
}

/// Whether a record that a search found has the very values that were asked for: databases that do not tell upper from
/// lower case, or ignore spaces at the end, find more.
pub(super) fn matches(value: &Value, filter: &[Given<'_>]) -> bool {
    filter.iter().all(|given| {
        let found = at(value, &given.field.target).unwrap_or(&Value::Null);
        given.field.kind.same(found, given.value)
    })
}

/// Checks the calls of a target that is called by method and path.
pub(super) fn check_calls(settings: &Settings, findings: &mut Findings<'_>) {
    for call in &settings.calls {
        let key = |key: &str| format!("calls.{}.{key}", call.name);
        if call.target.is_some() {
            findings.wrong(&key("target"), "not a key of calls of this dialect, which take method and path");
        }
        if call.method.is_none() {
            findings.wrong(&format!("calls.{}", call.name), "needs the key method");
        }
        let Some(path) = &call.path else {
            findings.wrong(&format!("calls.{}", call.name), "needs the key path");
            continue;
        };
        let odd = path.starts_with('/') || path.contains(['?', '#', '\\', '%']) || path.contains("//");
        if odd || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            findings.wrong(
                &key("path"),
                "expected the like of \"Contact/{id}/action\", below the resource's url",
            );
        }
        for name in placeholders(path).filter(|name| !call.required.contains(*name)) {
            findings.wrong(&key("path"), format!("{{{name}}} must be one of args and of required"));
        }
    }
}

fn placeholders(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

/// The request of a call: arguments that the path does not hold go into the query of a GET or DELETE, else into a JSON
/// body.
///
/// # Errors
/// [`Problem::Unsupported`] for a call without method or path; [`Problem::Invalid`] for an argument that cannot stand in it.
pub(super) fn call_parts(
    call: &CallSpec,
    args: &Map<String, Value>,
) -> Result<(Method, String, Request), CrmError> {
    let unsupported = || CrmError::new(Problem::Unsupported);
    let (method, path) = call.method.as_deref().zip(call.path.as_deref()).ok_or_else(unsupported)?;
    let method: Method = method.parse().map_err(|_| unsupported())?;
    let text = |value: &Value| id(value).unwrap_or_else(|| value.to_string());
    let filled = path
        .split('/')
        .map(|part| {
            let value = part.strip_prefix('{').and_then(|part| args.get(part.strip_suffix('}')?));
            value.map_or_else(|| Ok(part.to_owned()), |value| segment(&text(value)))
        })
        .collect::<Result<Vec<String>, CrmError>>()?;
    let used: Vec<&str> = placeholders(path).collect();
    let rest = args.iter().filter(|(name, _)| !used.contains(&name.as_str()));
    let path = filled.join("/");
    let request = Request::path(method.clone(), path.clone());
    let request = if matches!(method, Method::GET | Method::DELETE) {
        rest.fold(request, |request, (name, value)| request.query(name, text(value)))
    } else {
        let body: Map<String, Value> = rest.map(|(name, value)| (name.clone(), value.clone())).collect();
        request.json(&Value::Object(body))
    };
    Ok((method, path, request))
}

/// A page by number that holds the window of `limit` records after the first `offset` ones: its size, its number from 0,
/// and how many of its first records are before the window. May hold only the beginning of the window.
pub(super) fn numbered(offset: usize, limit: usize, most: usize) -> (usize, usize, usize) {
    let limit = limit.clamp(1, most);
    let holds = |size: &usize| offset / size == (offset + limit - 1) / size;
    let size = (limit..=most).find(holds).unwrap_or(limit);
    (size, offset / size, offset % size)
}

#[cfg(test)]
mod tests {
    use super::{at, numbered, put};
    use serde_json::{Map, json};

    #[test]
    fn a_dot_leads_into_an_inner_object() {
        let mut object = Map::new();
        put(&mut object, "array_options.options_guid", json!("x"));
        put(&mut object, "array_options.options_b", json!(1));
        put(&mut object, "email", json!("a@b"));
        let object = json!(object);
        assert_eq!(
            object,
            json!({ "array_options": { "options_guid": "x", "options_b": 1 }, "email": "a@b" })
        );
        assert_eq!(at(&object, "array_options.options_b"), Some(&json!(1)));
        assert_eq!(at(&object, "email.x"), None);
    }

    #[test]
    fn a_window_lies_on_a_page_by_number_from_its_first_record_on() {
        for offset in 0..300 {
            for limit in [1, 2, 7, 99, 100] {
                let (size, number, skip) = numbered(offset, limit, 100);
                assert!(size <= 100 && skip < size, "{offset} {limit}");
                assert_eq!(size * number + skip, offset, "{offset} {limit}");
            }
        }
        assert_eq!(numbered(99, 50, 100), (75, 1, 24), "whole on one page");
    }
}
