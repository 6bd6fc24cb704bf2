//! Values in OData: as literals in a URL (`$filter`, keys) and as JSON.

use crate::crm::vocabulary::FieldType;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Number, Value};
use uuid::Uuid;

/// What may stand unquoted in a key in a path. A quote is a delimiter there; it is encoded too where it is content, and
/// doubled before.
const KEY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A canonical value as a literal of `$filter`; `edm` is the property's type, where the service tells it.
///
/// # Errors
/// What was expected.
pub(super) fn literal(edm: Option<&str>, kind: FieldType, value: &Value) -> Result<String, &'static str> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    match value {
        Value::Null => Ok("null".to_owned()),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Number(number) => match edm {
            Some("Edm.String") => Ok(quoted(&number.to_string())),
            _ => Ok(number.to_string()),
        },
        Value::String(text) => match (edm, kind) {
            (Some("Edm.Guid"), _) => text
                .parse::<Uuid>()
                .map(|id| id.to_string())
                .map_err(|_| "expected an id such as \"0193b3f0-7e7a-7c3e-8a51-0d9c6c2a4f11\""),
            (Some("Edm.Date" | "Edm.DateTimeOffset" | "Edm.TimeOfDay"), _)
            | (None, FieldType::Date | FieldType::DateTime) => {
                // Digits, dashes, colons: nothing that ends a literal.
                let sound =
                    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b':' | b'.' | b'+'));
                if sound { Ok(text.clone()) } else { Err("expected a day or a time") }
            }
            (
                Some(
                    "Edm.Decimal" | "Edm.Double" | "Edm.Single" | "Edm.Int16" | "Edm.Int32" | "Edm.Int64"
                    | "Edm.Byte" | "Edm.SByte",
                ),
                _,
            )
            | (None, FieldType::Decimal) => {
                let sound = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'.'));
                if sound && !text.is_empty() { Ok(text.clone()) } else { Err("expected a number") }
            }
            _ => Ok(quoted(text)),
        },
        Value::Array(_) | Value::Object(_) => Err("lists and objects cannot be searched for"),
    }
}

/// A literal as it stands in the parentheses of a key.
pub(super) fn in_path(literal: &str) -> String {
    match literal.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        Some(content) => format!("'{}'", utf8_percent_encode(content, KEY)),
        None => utf8_percent_encode(literal, KEY).to_string(),
    }
}

/// A canonical value as JSON of a property.
///
/// # Errors
/// What was expected.
pub(super) fn json(edm: Option<&str>, kind: FieldType, value: &Value) -> Result<Value, &'static str> {
    let number = |text: &str| {
        let parsed: Number = text.parse().map_err(|_| "expected a number")?;
        // JSON numbers are binary ones to most services: a digit that would be lost is refused instead.
        let same = FieldType::Decimal.same(&Value::Number(parsed.clone()), &Value::from(text));
        if same { Ok(Value::Number(parsed)) } else { Err("expected a number of at most 15 digits") }
    };
    match (value, edm, kind) {
        (
            Value::String(text),
            Some(
                "Edm.Decimal" | "Edm.Double" | "Edm.Single" | "Edm.Int16" | "Edm.Int32" | "Edm.Int64"
                | "Edm.Byte" | "Edm.SByte",
            ),
            _,
        )
        | (Value::String(text), None, FieldType::Decimal) => number(text),
        (
            Value::Number(_) | Value::Bool(_),
            Some("Edm.String" | "Edm.Guid" | "Edm.Date" | "Edm.DateTimeOffset"),
            _,
        ) => Err("expected a string"),
        (Value::String(_) | Value::Number(_), Some("Edm.Boolean"), _) => Err("expected true or false"),
        _ => Ok(value.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::{in_path, json, literal};
    use crate::crm::vocabulary::FieldType as T;
    use serde_json::{Value, json as value};

    #[test]
    fn nothing_in_a_value_ends_its_literal() {
        for (edm, kind, given, expected) in [
            (None, T::Text, value!("O'Neil"), Some("'O''Neil'")),
            (None, T::Text, value!("x' or 1 eq 1 or '"), Some("'x'' or 1 eq 1 or '''")),
            (Some("Edm.String"), T::Any, value!(7), Some("'7'")),
            (
                Some("Edm.Guid"),
                T::Text,
                value!("0193B3F0-7e7a-7c3e-8a51-0d9c6c2a4f11"),
                Some("0193b3f0-7e7a-7c3e-8a51-0d9c6c2a4f11"),
            ),
            (Some("Edm.Guid"), T::Text, value!("x"), None),
            (None, T::Date, value!("2026-11-22"), Some("2026-11-22")),
            (Some("Edm.DateTimeOffset"), T::Text, value!("2026-11-22 or 1"), None),
            (None, T::Decimal, value!("12.5"), Some("12.5")),
            (Some("Edm.Int32"), T::Text, value!("1 or 1 eq 1"), None),
            (None, T::Integer, value!(5), Some("5")),
            (None, T::Boolean, value!(true), Some("true")),
            (None, T::Text, Value::Null, Some("null")),
            (None, T::Json, value!([1]), None),
        ] {
            assert_eq!(literal(edm, kind, &given).ok().as_deref(), expected, "{edm:?} {kind:?} {given}");
        }
        assert_eq!(in_path("'O''Neil/é)'"), "'O%27%27Neil%2F%C3%A9%29'");
        assert_eq!(in_path("0193b3f0-7e7a-7c3e-8a51-0d9c6c2a4f11"), "0193b3f0-7e7a-7c3e-8a51-0d9c6c2a4f11");
    }

    #[test]
    fn no_digit_is_lost_on_the_way() {
        assert_eq!(json(Some("Edm.Decimal"), T::Decimal, &value!("12.5")), Ok(value!(12.5)));
        assert_eq!(json(None, T::Decimal, &value!("100")), Ok(value!(100)));
        assert!(json(None, T::Decimal, &value!("12345678901234567.25")).is_err());
        assert_eq!(json(Some("Edm.String"), T::Text, &value!("12.5")), Ok(value!("12.5")));
        assert!(json(Some("Edm.String"), T::Any, &value!(7)).is_err());
        assert_eq!(json(None, T::Text, &Value::Null), Ok(Value::Null));
    }
}
