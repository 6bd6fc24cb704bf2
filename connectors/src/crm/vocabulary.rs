//! The words of jobs: entities and their fields, by our names, and how each leads to the target's own.
//!
//! Three entities are known everywhere, with the fields of [`NEUTRAL`]; a dialect says what they are called at its
//! target, and the operator may say it otherwise, or add entities and fields of their own. Values cross the border in
//! one form per type ([`FieldType::canonical`]); a dialect turns them into its target's form and back.

use jiff::{Timestamp, civil::Date};
use serde_json::{Map, Number, Value};

/// The longest text or list in one field, in bytes of JSON.
const MAX_VALUE: usize = 64 * 1024;

/// The fields that mean the same at every target. `external_id` is the key that links a record to its counterpart in the
/// cloud (the counterpart's Guid); an e-mail address is no key.
pub(crate) const NEUTRAL: &[(&str, &[(&str, FieldType)])] = &[
    (
        "contact",
        &[
            ("external_id", FieldType::Text),
            ("first_name", FieldType::Text),
            ("last_name", FieldType::Text),
            ("name", FieldType::Text),
            ("email", FieldType::Text),
            ("phone", FieldType::Text),
            ("mobile", FieldType::Text),
            ("company", FieldType::Text),
            ("street", FieldType::Text),
            ("street2", FieldType::Text),
            ("postal_code", FieldType::Text),
            ("city", FieldType::Text),
            ("country", FieldType::Text),
            ("language", FieldType::Text),
            ("opt_in", FieldType::Boolean),
            ("archived", FieldType::Boolean),
        ],
    ),
    (
        "company",
        &[
            ("external_id", FieldType::Text),
            ("name", FieldType::Text),
            ("email", FieldType::Text),
            ("phone", FieldType::Text),
            ("website", FieldType::Text),
            ("vat_number", FieldType::Text),
            ("accounting_code", FieldType::Text),
            ("street", FieldType::Text),
            ("street2", FieldType::Text),
            ("postal_code", FieldType::Text),
            ("city", FieldType::Text),
            ("country", FieldType::Text),
            ("archived", FieldType::Boolean),
        ],
    ),
    (
        "order",
        &[
            ("external_id", FieldType::Text),
            ("number", FieldType::Text),
            ("customer", FieldType::Text),
            ("date", FieldType::Date),
            ("status", FieldType::Text),
            ("currency", FieldType::Text),
            ("total_excl_tax", FieldType::Decimal),
            ("total_incl_tax", FieldType::Decimal),
            ("lines", FieldType::Json),
        ],
    ),
];

/// The type of a neutral field.
pub(crate) fn neutral_type(entity: &str, field: &str) -> Option<FieldType> {
    let (_, fields) = NEUTRAL.iter().find(|(name, _)| *name == entity)?;
    fields.iter().find(|(name, _)| *name == field).map(|(_, kind)| *kind)
}

/// The type of a field's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FieldType {
    /// A string.
    Text,
    /// A whole number.
    Integer,
    /// A decimal number, as a string such as `"12.50"`, so that no digit is lost.
    Decimal,
    /// True or false.
    Boolean,
    /// A day, `2026-11-22`.
    Date,
    /// A moment, RFC 3339 in UTC.
    DateTime,
    /// A string, number or boolean as it comes.
    Any,
    /// Whatever JSON, lists and objects too.
    Json,
}

impl FieldType {
    /// All types, as operators write them.
    pub(crate) const NAMES: &'static [(&'static str, Self)] = &[
        ("text", Self::Text),
        ("integer", Self::Integer),
        ("decimal", Self::Decimal),
        ("boolean", Self::Boolean),
        ("date", Self::Date),
        ("datetime", Self::DateTime),
        ("any", Self::Any),
        ("json", Self::Json),
    ];

    /// The type that operators call so.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    /// What a job should have written.
    pub(crate) fn expected(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Integer => "a whole number",
            Self::Decimal => "a decimal number, best as a string such as \"12.50\"",
            Self::Boolean => "true or false",
            Self::Date => "a day such as \"2026-11-22\"",
            Self::DateTime => "a time such as \"2026-11-22T09:30:00Z\"",
            Self::Any => "a string, number or boolean",
            Self::Json => "a value of at most 64 KiB",
        }
    }

    /// The one form of a value of this type that a job or a mapping gave. `null` clears a field and fits every type.
    ///
    /// # Errors
    /// What was expected.
    pub(crate) fn canonical(self, value: &Value) -> Result<Value, &'static str> {
        if value.is_null() {
            return Ok(Value::Null);
        }
        let found = match (self, value) {
            (Self::Text, Value::String(text)) if text.len() <= MAX_VALUE => Some(value.clone()),
            (Self::Integer, Value::Number(number)) if number.is_i64() || number.is_u64() => {
                Some(value.clone())
            }
            (Self::Decimal, Value::Number(number)) => decimal(&number.to_string()).map(Value::String),
            (Self::Decimal, Value::String(text)) => decimal(text).map(Value::String),
            (Self::Boolean, Value::Bool(_)) => Some(value.clone()),
            (Self::Date, Value::String(text)) => text
                .parse::<Date>()
                .ok()
                .filter(|_| text.len() == 10)
                .map(|day| Value::String(day.to_string())),
            (Self::DateTime, Value::String(text)) => {
                text.parse::<Timestamp>().ok().map(|at| Value::String(at.to_string()))
            }
            (Self::Any, Value::String(text)) if text.len() <= MAX_VALUE => Some(value.clone()),
            (Self::Any, Value::Number(_) | Value::Bool(_)) => Some(value.clone()),
            (Self::Json, _) if value.to_string().len() <= MAX_VALUE => Some(value.clone()),
            _ => None,
        };
        found.ok_or_else(|| self.expected())
    }

    /// Reads a target's value leniently: numbers in strings, `0` and `1` for booleans, times without a zone as UTC, an
    /// empty text where a target has no null. What does not fit stays as it is, so that nothing is lost.
    pub(crate) fn read(self, value: &Value) -> Value {
        if let Ok(canonical) = self.canonical(value) {
            return canonical;
        }
        let text = match value {
            Value::String(text) => Some(text.trim().to_owned()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        };
        let read = text.and_then(|text| match self {
            Self::Text => Some(Value::String(text)),
            _ if text.is_empty() => Some(Value::Null),
            Self::Integer => text.parse::<i64>().ok().map(|n| Value::Number(Number::from(n))),
            Self::Boolean => match text.as_str() {
                "1" | "true" | "True" | "yes" => Some(Value::Bool(true)),
                "0" | "false" | "False" | "no" => Some(Value::Bool(false)),
                _ => None,
            },
            Self::Date => text.get(..10)?.parse::<Date>().ok().map(|day| Value::String(day.to_string())),
            Self::DateTime => timestamp(&text).map(|at| Value::String(at.to_string())),
            Self::Decimal | Self::Any | Self::Json => None,
        });
        read.unwrap_or_else(|| value.clone())
    }

    /// Whether two values of this type are one to a reader: an empty text and none are, and `12.5` and `12.50`.
    pub(crate) fn same(self, a: &Value, b: &Value) -> bool {
        let empty = |value: &Value| value.is_null() || value.as_str().is_some_and(str::is_empty);
        let (a, b) = (self.read(a), self.read(b));
        a == b || (empty(&a) && empty(&b))
    }
}

/// A decimal number without needless zeros.
fn decimal(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let dangling = digits.contains('.') && fraction.is_empty();
    if whole.is_empty() || dangling || digits.len() > 64 || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let whole = whole.trim_start_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let fraction = fraction.trim_end_matches('0');
    if whole == "0" && fraction.is_empty() {
        return Some("0".to_owned());
    }
    let point = if fraction.is_empty() { "" } else { "." };
    Some(format!("{sign}{whole}{point}{fraction}"))
}

/// A target's time: RFC 3339, or the like of `2026-11-21 21:05:21.302` without a zone, which is taken for UTC.
pub(crate) fn timestamp(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at);
    }
    let civil = text.replacen(' ', "T", 1).parse::<jiff::civil::DateTime>().ok()?;
    civil.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

/// A field of an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    /// Ours.
    pub(crate) name: String,
    /// The target's own. What it looks like is the dialect's (a column, a path such as `address.city`, …).
    pub(crate) target: String,
    /// The type of its values.
    pub(crate) kind: FieldType,
    /// Jobs may read it, not write it.
    pub(crate) read_only: bool,
    /// Personal data that no log shows.
    pub(crate) masked: bool,
}

/// An entity that jobs may name.
#[derive(Debug, Clone)]
pub(crate) struct Entity {
    /// Ours.
    pub(crate) name: String,
    /// The target's own: a model, module, table or collection.
    pub(crate) target: String,
    /// Its fields, at least one.
    pub(crate) fields: Vec<Field>,
    /// The names (ours) of the fields that may be keys; the first one is the key that changes are told with.
    pub(crate) keys: Vec<String>,
}

impl Entity {
    /// The field of our name.
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The field that the target calls so.
    pub(crate) fn of_target(&self, target: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.target == target)
    }

    /// The field that links records to their counterparts.
    pub(crate) fn key(&self) -> Option<&Field> {
        self.keys.first().and_then(|name| self.field(name))
    }
}

/// A field and a value for it, in its type's canonical form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given<'a> {
    /// The field.
    pub(crate) field: &'a Field,
    /// Its value.
    pub(crate) value: &'a Value,
}

/// A record as it was read.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Record {
    /// The target's id.
    pub(crate) id: String,
    /// Its version, where the target has versions.
    pub(crate) version: Option<String>,
    /// When it last changed, where the target tells.
    pub(crate) modified: Option<Timestamp>,
    /// What was asked for, by our names, in canonical form ([`FieldType::read`]). A field that the target did not give at
    /// all is left out; an empty one is `null`.
    pub(crate) fields: Map<String, Value>,
}

#[cfg(test)]
mod tests {
    use super::{FieldType, timestamp};
    use serde_json::{Value, json};

    #[test]
    fn values_have_one_form_per_type() {
        for (kind, value, canonical) in [
            (FieldType::Text, json!("a"), Some(json!("a"))),
            (FieldType::Text, json!(1), None),
            (FieldType::Text, json!(null), Some(json!(null))),
            (FieldType::Integer, json!(5), Some(json!(5))),
            (FieldType::Integer, json!(5.5), None),
            (FieldType::Integer, json!("5"), None),
            (FieldType::Decimal, json!("012.500"), Some(json!("12.5"))),
            (FieldType::Decimal, json!(12.5), Some(json!("12.5"))),
            (FieldType::Decimal, json!("-0.00"), Some(json!("0"))),
            (FieldType::Decimal, json!("1."), None),
            (FieldType::Decimal, json!("1e5"), None),
            (FieldType::Boolean, json!(true), Some(json!(true))),
            (FieldType::Boolean, json!(1), None),
            (FieldType::Date, json!("2026-11-22"), Some(json!("2026-11-22"))),
            (FieldType::Date, json!("2026-13-22"), None),
            (FieldType::Date, json!("2026-11-22T00:00:00Z"), None),
            (FieldType::DateTime, json!("2026-11-22T10:00:00+01:00"), Some(json!("2026-11-22T09:00:00Z"))),
            (FieldType::DateTime, json!("yesterday"), None),
            (FieldType::Any, json!({}), None),
            (FieldType::Json, json!([{ "a": 1 }]), Some(json!([{ "a": 1 }]))),
        ] {
            assert_eq!(kind.canonical(&value).ok(), canonical, "{kind:?} {value}");
        }
        assert!(FieldType::Text.canonical(&Value::String("x".repeat(70_000))).is_err());
    }

    #[test]
    fn a_targets_value_is_read_leniently_and_never_lost() {
        for (kind, value, read) in [
            (FieldType::Integer, json!("42"), json!(42)),
            (FieldType::Boolean, json!("0"), json!(false)),
            (FieldType::Boolean, json!(1), json!(true)),
            (FieldType::DateTime, json!("2026-11-21 21:05:21"), json!("2026-11-21T21:05:21Z")),
            (FieldType::Date, json!("2026-11-21T00:00:00"), json!("2026-11-21")),
            (FieldType::Date, json!(""), json!(null)),
            (FieldType::Text, json!(7), json!("7")),
            (FieldType::Text, json!(["x"]), json!(["x"])),
            (FieldType::Date, json!("soon"), json!("soon")),
        ] {
            assert_eq!(kind.read(&value), read, "{kind:?} {value}");
        }
        assert!(FieldType::Decimal.same(&json!("12.50"), &json!(12.5)));
        assert!(FieldType::Text.same(&json!(""), &json!(null)));
        assert!(!FieldType::Text.same(&json!("a"), &json!("A")));
        assert_eq!(
            timestamp("2026-11-21 21:05:21.302623").unwrap().to_string(),
            "2026-11-21T21:05:21.302623Z"
        );
        assert_eq!(timestamp("never"), None);
    }
}
