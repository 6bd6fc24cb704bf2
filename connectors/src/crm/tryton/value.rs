//! Values on Tryton's wire: JSON with objects such as `{"__class__": "Decimal", "decimal": "12.50"}` for what JSON has
//! not. Times are UTC and have no zone.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::{Timestamp, civil, tz::TimeZone};
use serde_json::{Map, Value, json};

/// A moment as Tryton writes it.
pub(super) fn moment(at: Timestamp) -> Value {
    let at = at.to_zoned(TimeZone::UTC).datetime();
    json!({
        "__class__": "datetime",
        "year": at.year(), "month": at.month(), "day": at.day(),
        "hour": at.hour(), "minute": at.minute(), "second": at.second(),
        "microsecond": at.subsec_nanosecond() / 1000,
    })
}

/// The moment in a value, if it is one.
pub(super) fn timestamp(value: &Value) -> Option<Timestamp> {
    let at = civil_datetime(value.as_object()?)?;
    at.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

fn civil_datetime(object: &Map<String, Value>) -> Option<civil::DateTime> {
    let part = |name: &str| object.get(name).and_then(Value::as_i64);
    let nanoseconds = part("microsecond").unwrap_or(0).checked_mul(1000)?;
    civil::DateTime::new(
        i16::try_from(part("year")?).ok()?,
        i8::try_from(part("month")?).ok()?,
        i8::try_from(part("day")?).ok()?,
        i8::try_from(part("hour").unwrap_or(0)).ok()?,
        i8::try_from(part("minute").unwrap_or(0)).ok()?,
        i8::try_from(part("second").unwrap_or(0)).ok()?,
        i32::try_from(nanoseconds).ok()?,
    )
    .ok()
}

/// A value of the wire as jobs see it: times and decimal numbers as strings.
pub(super) fn decode(value: &Value) -> Value {
    match value {
        Value::Object(object) => match object.get("__class__").and_then(Value::as_str) {
            Some("datetime") => timestamp(value).map_or(Value::Null, |at| Value::String(at.to_string())),
            Some("date") => {
                civil_datetime(object).map_or(Value::Null, |at| Value::String(at.date().to_string()))
            }
            Some("time") => {
                let part = |name: &str| object.get(name).and_then(Value::as_i64).unwrap_or(0);
                Value::String(format!("{:02}:{:02}:{:02}", part("hour"), part("minute"), part("second")))
            }
            Some("timedelta") => object.get("seconds").cloned().unwrap_or(Value::Null),
            Some("Decimal") => object.get("decimal").cloned().unwrap_or(Value::Null),
            Some("bytes") => {
                // Tryton breaks its lines.
                let text = object.get("base64").and_then(Value::as_str).unwrap_or_default();
                Value::String(text.split_whitespace().collect())
            }
            _ => Value::Object(object.iter().map(|(key, value)| (key.clone(), decode(value))).collect()),
        },
        Value::Array(values) => Value::Array(values.iter().map(decode).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// A canonical value as a column of this type (as `fields_get` names it) takes it.
///
/// # Errors
/// What was expected.
pub(super) fn encode(column: &str, value: &Value) -> Result<Value, &'static str> {
    if value.is_null() {
        return Ok(Value::Null);
    }
    let text = value.as_str();
    match column {
        "char" | "text" | "fulltext" | "selection" | "reference" => {
            text.map(Value::from).ok_or("expected a string")
        }
        "integer" | "biginteger" | "many2one" | "one2one" => {
            let number = value.as_i64().or_else(|| text?.parse().ok());
            number.map(Value::from).ok_or("expected a whole number")
        }
        "float" => {
            let number = value.as_f64().or_else(|| text?.parse().ok());
            number.map(Value::from).ok_or("expected a number")
        }
        "numeric" => {
            let digits = match value {
                Value::Number(number) => number.to_string(),
                _ => text.unwrap_or_default().to_owned(),
            };
            let sound = !digits.is_empty()
                && digits.len() <= 64
                && digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'.'));
            if sound {
                Ok(json!({ "__class__": "Decimal", "decimal": digits }))
            } else {
                Err("expected a decimal number such as \"12.50\"")
            }
        }
        "boolean" => value.as_bool().map(Value::from).ok_or("expected true or false"),
        "date" => {
            let day = text.and_then(|text| text.parse::<civil::Date>().ok());
            day.map(|day| json!({ "__class__": "date", "year": day.year(), "month": day.month(), "day": day.day() }))
                .ok_or("expected a day such as \"2026-11-22\"")
        }
        "datetime" | "timestamp" => {
            let at = text.and_then(|text| text.parse::<Timestamp>().ok());
            at.map(moment).ok_or("expected a time such as \"2026-11-22T09:30:00Z\"")
        }
        "timedelta" => {
            let seconds = value.as_f64();
            seconds
                .map(|seconds| json!({ "__class__": "timedelta", "seconds": seconds }))
                .ok_or("expected seconds")
        }
        "binary" => {
            let sound = text.filter(|text| STANDARD.decode(text).is_ok());
            sound.map(|text| json!({ "__class__": "bytes", "base64": text })).ok_or("expected base64")
        }
        "multiselection" | "dict" => Ok(value.clone()),
        _ => Err("lists of records are written row by row: name the column, as in addresses[].city"),
    }
}

#[cfg(test)]
mod tests {
    use super::{decode, encode, moment, timestamp};
    use serde_json::{Value, json};

    #[test]
    fn times_days_and_decimal_numbers_go_out_and_come_back() {
        for (column, value) in [
            ("numeric", json!("12.50")),
            ("numeric", json!("-0.1")),
            ("date", json!("2026-02-28")),
            ("datetime", json!("2026-11-22T12:23:01.239194Z")),
            ("char", json!("é")),
            ("boolean", json!(false)),
            ("integer", json!(7)),
            ("char", Value::Null),
        ] {
            assert_eq!(decode(&encode(column, &value).unwrap()), value, "{column}");
        }
        let at = "2026-11-22T12:23:01.239194Z".parse().unwrap();
        assert_eq!(timestamp(&moment(at)), Some(at));
    }

    #[test]
    fn what_fits_no_column_is_refused_before_it_is_sent() {
        for (column, value) in [
            ("char", json!(5)),
            ("integer", json!("x")),
            ("numeric", json!("1e5")),
            ("numeric", json!("")),
            ("boolean", json!("maybe")),
            ("date", json!("soon")),
            ("one2many", json!([1])),
        ] {
            assert!(encode(column, &value).is_err(), "{column} {value}");
        }
    }

    #[test]
    fn what_is_nested_is_read_too() {
        let wire = json!([{ "a": { "__class__": "date", "year": 2026, "month": 1, "day": 2 },
                            "b": { "__class__": "bytes", "base64": "YWJj\nZGVm\n" },
                            "c": { "__class__": "datetime", "year": 2026, "month": 13, "day": 2 } }]);
        assert_eq!(decode(&wire), json!([{ "a": "2026-01-02", "b": "YWJjZGVm", "c": null }]));
    }
}
