//! What functions give: conversions, and questions to texts. What they take is bounded, and what they make is paid for.

use super::{Val, Work, bool, number};
use crate::mediations::expression::{
    Error,
    tree::{Function, Node},
};
use serde_json::{Number, Value};
use std::borrow::Cow;

impl Work<'_> {
    pub(super) fn call<'v>(
        &mut self,
        node: &Node,
        function: Function,
        values: Vec<Val<'v>>,
    ) -> Result<Val<'v>, Error> {
        let fault = |message: &str| Error::new(node.column, message);
        let mut values = values.into_iter();
        let (first, second) = (values.next(), values.next());
        let text = |value: &Option<Val<'v>>| match value {
            Some(Val::Json(json)) => json.as_str().map(str::to_owned),
            _ => None,
        };
        for value in [&first, &second].into_iter().flatten() {
            if let Val::Json(json) = value {
                self.spend(node, json.as_str().map_or(0, |text| text.len() / 32))?;
            }
        }
        let of_text = || text(&first).ok_or_else(|| fault("this function takes a text"));
        match function {
            Function::Size => match &first {
                Some(Val::Json(json)) => match json.as_ref() {
                    Value::String(text) => Ok(number(Number::from(text.chars().count()))),
                    Value::Array(items) => Ok(number(Number::from(items.len()))),
                    Value::Object(fields) => Ok(number(Number::from(fields.len()))),
                    _ => Err(fault("size() takes a text, a list or an object")),
                },
                _ => Err(fault("size() takes a text, a list or an object")),
            },
            Function::Int => {
                let whole = match &first {
                    Some(Val::Time(time)) => Some(time.as_second()),
                    Some(Val::Json(json)) => match json.as_ref() {
                        Value::Number(n) => n.as_i64().or_else(|| n.as_f64().and_then(whole)),
                        Value::String(text) => text.trim().parse().ok(),
                        _ => None,
                    },
                    _ => None,
                };
                whole.map(|n| number(Number::from(n))).ok_or_else(|| fault("int() takes a whole number"))
            }
            Function::Double => {
                let parsed = match &first {
                    Some(Val::Json(json)) => match json.as_ref() {
                        Value::Number(n) => n.as_f64(),
                        // Amounts come with the French decimal mark as often as not.
                        Value::String(text) => text.trim().replace(',', ".").parse().ok(),
                        _ => None,
                    },
                    _ => None,
                };
                let parsed = parsed.and_then(Number::from_f64);
                parsed.map(number).ok_or_else(|| fault("double() takes a number, as 12.5 or '12,5'"))
            }
            Function::Text => match first {
                Some(Val::Time(time)) => Ok(Val::Json(Cow::Owned(Value::String(time.to_string())))),
                Some(Val::Json(json)) => match json.as_ref() {
                    Value::String(_) => Ok(Val::Json(json)),
                    Value::Number(_) | Value::Bool(_) => {
                        let text = json.to_string();
                        Ok(Val::Json(Cow::Owned(Value::String(text))))
                    }
                    _ => Err(fault("string() takes a text, a number, a boolean or a timestamp")),
                },
                _ => Err(fault("string() takes a text, a number, a boolean or a timestamp")),
            },
            Function::Timestamp => match &first {
                Some(Val::Time(time)) => Ok(Val::Time(*time)),
                _ => {
                    let parsed = of_text()?
                        .parse()
                        .map_err(|_| fault("timestamp() takes the like of '2026-11-21T06:00:00Z'"))?;
                    Ok(Val::Time(parsed))
                }
            },
            Function::Duration => {
                let parsed = of_text()?
                    .parse()
                    .map_err(|_| fault("duration() takes the like of '90s', '15m' or '24h'"))?;
                Ok(Val::Span(parsed))
            }
            Function::Contains | Function::StartsWith | Function::EndsWith => {
                let (of, part) =
                    (of_text()?, text(&second).ok_or_else(|| fault("this function takes a text"))?);
                Ok(bool(match function {
                    Function::Contains => of.contains(&part),
                    Function::StartsWith => of.starts_with(&part),
                    _ => of.ends_with(&part),
                }))
            }
            Function::LowerAscii => self.made(node, Value::String(of_text()?.to_ascii_lowercase())),
            Function::UpperAscii => self.made(node, Value::String(of_text()?.to_ascii_uppercase())),
            Function::Trim => self.made(node, Value::String(of_text()?.trim().to_owned())),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the range is checked before")]
fn whole(n: f64) -> Option<i64> {
    (n.is_finite() && n.abs() < 9.0e18).then(|| n.trunc() as i64)
}
