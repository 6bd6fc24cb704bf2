//! What a mapped field stands for in Odoo, and how its values look there.
//!
//! - `email`: a field of the model.
//! - `!active`: a boolean field, turned round.
//! - `xmlid`: the record's external id, in the module that the resource's options name.
//! - `country_id/code`: a many2one field, told by a field of the record it leads to; `/id` by its number, `/xmlid` by
//!   its external id. A bare `country_id` is the number.

use crate::crm::vocabulary::{Field, FieldType, timestamp};
use jiff::tz::TimeZone;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde_json::{Value, json};

/// External ids hold no spaces.
const XMLID: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

/// What a mapped field stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place<'a> {
    Xmlid,
    Plain(&'a str),
    Negated(&'a str),
    /// The many2one field, and the field of its record.
    Through(&'a str, &'a str),
}

impl<'a> Place<'a> {
    pub(super) fn of(field: &'a Field) -> Self {
        match field.target.as_str() {
            "xmlid" => Self::Xmlid,
            target => match (target.strip_prefix('!'), target.split_once('/')) {
                (Some(rest), _) => Self::Negated(rest),
                (None, Some((name, through))) => Self::Through(name, through),
                (None, None) => Self::Plain(target),
            },
        }
    }

    /// The field of the model.
    pub(super) fn name(self) -> Option<&'a str> {
        match self {
            Self::Xmlid => None,
            Self::Plain(name) | Self::Negated(name) | Self::Through(name, _) => Some(name),
        }
    }
}

/// The name of an external id for a key.
pub(super) fn xmlid_name(key: &str) -> String {
    utf8_percent_encode(key, XMLID).to_string()
}

/// The key of an external id's name.
pub(super) fn xmlid_key(name: &str) -> String {
    percent_decode_str(name).decode_utf8_lossy().into_owned()
}

/// A value as `write`, `create` and domains take it; Odoo has false where others have null.
pub(super) fn to_odoo(kind: FieldType, value: &Value) -> Value {
    match (kind, value) {
        (_, Value::Null) => json!(false),
        (FieldType::DateTime, Value::String(text)) => timestamp(text).map_or_else(
            || value.clone(),
            |at| json!(at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S").to_string()),
        ),
        (FieldType::Decimal, Value::String(text)) => {
            text.parse::<f64>().map_or_else(|_| value.clone(), |number| json!(number))
        }
        _ => value.clone(),
    }
}

/// A value as `load` takes it, which is text as in a CSV file.
pub(super) fn to_cell(kind: FieldType, value: &Value) -> String {
    if let (FieldType::Decimal, Value::String(text)) = (kind, value) {
        return text.clone();
    }
    match to_odoo(kind, value) {
        Value::String(text) => text,
        Value::Bool(true) => "1".to_owned(),
        // Null has become false as well, and an empty cell is what clears a field.
        Value::Bool(false) if kind == FieldType::Boolean && !value.is_null() => "0".to_owned(),
        Value::Bool(false) if value == &Value::Bool(false) => "0".to_owned(),
        Value::Bool(false) | Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A value that Odoo gave for a field of its model, in canonical form.
pub(super) fn from_odoo(kind: FieldType, value: &Value) -> Value {
    match value {
        Value::Bool(false) if kind != FieldType::Boolean && kind != FieldType::Any => Value::Null,
        // A many2one that is mapped bare: its number.
        Value::Array(pair) if kind != FieldType::Json && pair.len() == 2 && pair[0].is_i64() => {
            kind.read(&pair[0])
        }
        value => kind.read(value),
    }
}

#[cfg(test)]
mod tests {
    use super::{from_odoo, to_cell, to_odoo, xmlid_key, xmlid_name};
    use crate::crm::vocabulary::FieldType as T;
    use serde_json::json;

    #[test]
    fn values_go_there_and_back() {
        for (kind, ours, written, cell) in [
            (T::Text, json!("a b"), json!("a b"), "a b"),
            (T::Text, json!(null), json!(false), ""),
            (T::Boolean, json!(false), json!(false), "0"),
            (T::Boolean, json!(true), json!(true), "1"),
            (T::Integer, json!(7), json!(7), "7"),
            (T::Decimal, json!("12.5"), json!(12.5), "12.5"),
            (T::Date, json!("2026-11-22"), json!("2026-11-22"), "2026-11-22"),
            (T::DateTime, json!("2026-11-22T09:00:00Z"), json!("2026-11-22 09:00:00"), "2026-11-22 09:00:00"),
        ] {
            assert_eq!(to_odoo(kind, &ours), written, "{ours}");
            assert_eq!(to_cell(kind, &ours), cell, "{ours}");
            assert_eq!(from_odoo(kind, &written), ours, "{written}");
        }
        assert_eq!(from_odoo(T::Text, &json!([75, "France"])), json!("75"));
    }

    #[test]
    fn any_key_becomes_an_external_id_without_spaces_and_comes_back() {
        for (key, name) in [("ext_42", "ext_42"), ("a b%", "a%20b%25"), ("Zoé/1.2", "Zo%C3%A9/1.2")] {
            assert_eq!(xmlid_name(key), name);
            assert_eq!(xmlid_key(name), key);
        }
    }
}
