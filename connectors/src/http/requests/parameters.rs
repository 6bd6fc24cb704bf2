//! The declared parameters of a named request, and the values that a job gives them.

use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

pub(super) const MAX_PARAMETERS: usize = 64;
/// The longest value, where a parameter does not say less or more; and the most that one may say.
const MAX_LENGTH: usize = 1024;
const MAX_LENGTH_LIMIT: usize = 256 * 1024;
const MAX_PATTERN: usize = 1024;
/// What a compiled pattern may take of the memory.
const PATTERN_MEMORY: usize = 256 * 1024;

/// One parameter as the operator writes it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawParameter {
    /// What a value is.
    #[schemars(extend("enum" = ["string", "integer", "number", "boolean", "json"], "default" = "string"))]
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Regular expression that the whole value must match.
    pattern: Option<String>,
    /// The longest value, in bytes.
    #[schemars(range(max = MAX_LENGTH_LIMIT), extend("default" = MAX_LENGTH))]
    max_length: Option<u64>,
    /// The values that are taken; without it any.
    values: Option<Vec<String>>,
    /// The least number.
    min: Option<f64>,
    /// The greatest number.
    max: Option<f64>,
    /// Whether a job must give it.
    #[schemars(extend("default" = true))]
    required: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    String,
    Integer,
    Number,
    Boolean,
    Json,
}

const TYPES: [(&str, Type); 5] = [
    ("string", Type::String),
    ("integer", Type::Integer),
    ("number", Type::Number),
    ("boolean", Type::Boolean),
    ("json", Type::Json),
];

#[derive(Debug)]
struct Parameter {
    kind: Type,
    pattern: Option<Regex>,
    /// In bytes; of JSON, as it is written.
    max_length: usize,
    values: Option<Vec<String>>,
    min: Option<f64>,
    max: Option<f64>,
    required: bool,
}

/// All parameters of a request.
#[derive(Debug, Default)]
pub(super) struct Parameters(BTreeMap<String, Parameter>);

impl Parameters {
    /// Checks them; `wrong` hears of each mistake with the key below the table of parameters.
    pub(super) fn check(raw: BTreeMap<String, RawParameter>, wrong: &mut dyn FnMut(&str, String)) -> Self {
        if raw.len() > MAX_PARAMETERS {
            wrong("", format!("expected at most {MAX_PARAMETERS} parameters, found {}", raw.len()));
        }
        let mut parameters = BTreeMap::new();
        for (name, raw) in raw {
            let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                && name.starts_with(|c: char| c.is_ascii_alphabetic());
            if !is_name || name.len() > 64 {
                wrong(&name, "not a parameter's name: a letter, then letters, digits and _".to_owned());
            }
            let checked = Parameter::check(raw, &mut |key, message| wrong(&format!("{name}.{key}"), message));
            parameters.insert(name, checked);
        }
        Self(parameters)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether a value may be missing.
    pub(super) fn is_optional(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|parameter| !parameter.required)
    }

    /// The values for the templates: null for what is not given.
    ///
    /// # Errors
    /// What is wrong with them, with the argument named.
    pub(super) fn fill(&self, args: &Map<String, Value>) -> Result<Map<String, Value>, String> {
        if let Some(name) = args.keys().find(|name| !self.0.contains_key(*name)) {
            return Err(format!("args.{name}: this request has no such parameter"));
        }
        let value = |(name, parameter): (&String, &Parameter)| {
            let value = match args.get(name) {
                None | Some(Value::Null) if parameter.required => Err("missing".to_owned()),
                None | Some(Value::Null) => Ok(Value::Null),
                Some(value) => parameter.take(value).map(|()| value.clone()),
            };
            value.map(|value| (name.clone(), value)).map_err(|what| format!("args.{name}: {what}"))
        };
        self.0.iter().map(value).collect()
    }

    /// Some values that could be given, for a try.
    pub(super) fn sample(&self) -> Map<String, Value> {
        let one = |parameter: &Parameter| match (parameter.kind, &parameter.values) {
            (Type::String, Some(values)) => values.first().cloned().unwrap_or_default().into(),
            (Type::String, None) => "x".into(),
            (Type::Integer, _) => 1.into(),
            (Type::Number, _) => 1.5.into(),
            (Type::Boolean, _) => true.into(),
            (Type::Json, _) => Value::Object(Map::new()),
        };
        self.0.iter().map(|(name, parameter)| (name.clone(), one(parameter))).collect()
    }
}

impl Parameter {
    fn check(raw: RawParameter, wrong: &mut dyn FnMut(&str, String)) -> Self {
        let RawParameter { kind, pattern, max_length, values, min, max, required } = raw;
        let kind = match kind.as_deref() {
            None => Type::String,
            Some(text) => TYPES.iter().find(|(name, _)| *name == text).map_or_else(
                || {
                    let names = TYPES.map(|(name, _)| name).join(", ");
                    wrong("type", format!("unknown type {text:?}; there are {names}"));
                    Type::String
                },
                |(_, kind)| *kind,
            ),
        };
        let is_text = kind == Type::String;
        for (key, given) in [("pattern", pattern.is_some()), ("values", values.is_some())] {
            if given && !is_text {
                wrong(key, "only a parameter of type string has one".to_owned());
            }
        }
        if max_length.is_some() && !matches!(kind, Type::String | Type::Json) {
            wrong("max_length", "only parameters of the types string and json have one".to_owned());
        }
        for (key, given) in [("min", min.is_some()), ("max", max.is_some())] {
            if given && !matches!(kind, Type::Integer | Type::Number) {
                wrong(key, "only parameters of the types integer and number have one".to_owned());
            }
        }
        if values.as_ref().is_some_and(Vec::is_empty) {
            wrong("values", "empty; list the values that are allowed".to_owned());
        }
        let limit = max_length.map_or(Some(MAX_LENGTH), |length| usize::try_from(length).ok());
        let limit = limit.filter(|limit| (1..=MAX_LENGTH_LIMIT).contains(limit)).unwrap_or_else(|| {
            wrong("max_length", format!("expected 1 to {MAX_LENGTH_LIMIT} bytes"));
            MAX_LENGTH
        });
        let pattern = pattern.and_then(|text| match whole(&text) {
            Ok(pattern) => Some(pattern),
            Err(message) => {
                wrong("pattern", message);
                None
            }
        });
        Self { kind, pattern, max_length: limit, values, min, max, required: required.unwrap_or(true) }
    }

    /// Whether a value fits.
    fn take(&self, value: &Value) -> Result<(), String> {
        match (self.kind, value) {
            (Type::String, Value::String(text)) => self.take_text(text),
            (Type::Integer, Value::Number(number)) if number.is_i64() || number.is_u64() => {
                self.take_number(number.as_f64().unwrap_or(f64::NAN))
            }
            (Type::Number, Value::Number(number)) => self.take_number(number.as_f64().unwrap_or(f64::NAN)),
            (Type::Boolean, Value::Bool(_)) => Ok(()),
            (Type::Json, value) => self.fits(value.to_string().len()),
            (kind, _) => {
                let name = TYPES.iter().find(|(_, of)| *of == kind).map_or("", |(name, _)| name);
                Err(format!("expected a value of type {name}"))
            }
        }
    }

    fn take_text(&self, text: &str) -> Result<(), String> {
        self.fits(text.len())?;
        if self.values.as_ref().is_some_and(|values| !values.iter().any(|value| value == text)) {
            return Err("not one of the values that are allowed here".to_owned());
        }
        if self.pattern.as_ref().is_some_and(|pattern| !pattern.is_match(text)) {
            return Err("does not fit the pattern that is set here".to_owned());
        }
        Ok(())
    }

    fn take_number(&self, number: f64) -> Result<(), String> {
        if number.is_nan()
            || self.min.is_some_and(|min| number < min)
            || self.max.is_some_and(|max| number > max)
        {
            return Err("outside the range that is set here".to_owned());
        }
        Ok(())
    }

    fn fits(&self, length: usize) -> Result<(), String> {
        if length > self.max_length {
            return Err(format!("longer than {} bytes", self.max_length));
        }
        Ok(())
    }
}

/// A pattern for the whole value: an operator who forgets `^` and `$` means them.
fn whole(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > MAX_PATTERN {
        return Err(format!("longer than {MAX_PATTERN} bytes"));
    }
    // By itself first, so that no parenthesis in it reaches out of the group.
    Regex::new(pattern).map_err(|_| "not a regular expression".to_owned())?;
    RegexBuilder::new(&format!(r"\A(?:{pattern})\z"))
        .size_limit(PATTERN_MEMORY)
        .build()
        .map_err(|_| "not a regular expression, or one that takes too much memory".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Parameters, RawParameter};
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    fn parameters(text: Value) -> (Parameters, Vec<String>) {
        let raw: BTreeMap<String, RawParameter> = serde_json::from_value(text).unwrap();
        let mut findings = Vec::new();
        let checked = Parameters::check(raw, &mut |key, message| findings.push(format!("{key}: {message}")));
        (checked, findings)
    }

    #[test]
    fn values_are_held_to_type_length_pattern_list_and_range() {
        let (parameters, findings) = parameters(json!({
            "number": { "pattern": "CMD-[0-9]{4}|X" }, "shop": { "values": ["Lyon", "Paris"], "required": false },
            "short": { "max_length": 3, "required": false }, "n": { "type": "integer", "min": 1, "max": 9, "required": false },
            "ratio": { "type": "number", "required": false }, "flag": { "type": "boolean", "required": false },
            "lines": { "type": "json", "max_length": 20, "required": false },
        }));
        assert_eq!(findings, [""; 0]);
        let good = json!({ "number": "CMD-0042", "shop": "Lyon", "short": "abc", "n": 9, "ratio": 1, "flag": false, "lines": [{ "a": 1 }] });
        assert_eq!(Value::Object(parameters.fill(good.as_object().unwrap()).unwrap()), good);
        let least = parameters.fill(json!({ "number": "X" }).as_object().unwrap()).unwrap();
        assert_eq!(least["shop"], Value::Null);
        for (args, says) in [
            (json!({}), "args.number: missing"),
            (json!({ "number": null }), "args.number: missing"),
            (json!({ "number": "CMD-0042x" }), "args.number: does not fit"),
            (json!({ "number": "xX" }), "args.number: does not fit"),
            (json!({ "number": "X\n" }), "args.number: does not fit"),
            (json!({ "number": 5 }), "args.number: expected a value of type string"),
            (json!({ "number": "X", "shop": "Nice" }), "args.shop: not one of"),
            (json!({ "number": "X", "short": "abcd" }), "args.short: longer than 3"),
            (json!({ "number": "X", "n": 0 }), "args.n: outside"),
            (json!({ "number": "X", "n": 1.0 }), "args.n: expected a value of type integer"),
            (json!({ "number": "X", "flag": "true" }), "args.flag: expected"),
            (json!({ "number": "X", "lines": "a".repeat(30) }), "args.lines: longer"),
            (json!({ "number": "X", "other": 1 }), "args.other: this request has no such parameter"),
        ] {
            let error = parameters.fill(args.as_object().unwrap()).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn mistakes_in_the_declaration_are_named() {
        for (text, says) in [
            (json!({ "a": { "type": "text" } }), "a.type: unknown type"),
            (json!({ "a": { "pattern": "(" } }), "a.pattern: not a regular"),
            (json!({ "a": { "pattern": "a)|(b" } }), "a.pattern: not a regular"),
            (json!({ "a": { "pattern": "(\\w{500}){500}" } }), "a.pattern: not a regular"),
            (json!({ "a": { "type": "integer", "pattern": "x" } }), "a.pattern: only"),
            (json!({ "a": { "type": "boolean", "max_length": 3 } }), "a.max_length: only"),
            (json!({ "a": { "min": 1 } }), "a.min: only"),
            (json!({ "a": { "max_length": 0 } }), "a.max_length: expected"),
            (json!({ "a": { "values": [] } }), "a.values: empty"),
            (json!({ "a-b": {} }), "a-b: not a parameter's name"),
        ] {
            let (_, findings) = parameters(text);
            assert!(findings.iter().any(|finding| finding.contains(says)), "{says}: {findings:?}");
        }
    }
}
