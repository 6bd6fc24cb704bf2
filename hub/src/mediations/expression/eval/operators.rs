//! What operators give: sums and differences, of times too, comparisons, `in`. Whole numbers and others may be mixed.

use super::{Val, Work, bool, kind, number};
use crate::mediations::expression::{
    Error,
    tree::{Binary, Node},
};
use serde_json::{Number, Value};
use std::{borrow::Cow, cmp::Ordering};

impl Work<'_> {
    pub(super) fn binary<'v>(
        &mut self,
        node: &Node,
        sign: Binary,
        left: Val<'v>,
        right: Val<'v>,
    ) -> Result<Val<'v>, Error> {
        let fault = |message: String| Error::new(node.column, message);
        match sign {
            Binary::Equal => return Ok(bool(self.equal(node, &left, &right)?)),
            Binary::NotEqual => return Ok(bool(!self.equal(node, &left, &right)?)),
            Binary::Less => return Ok(bool(self.order(node, &left, &right)?.is_lt())),
            Binary::LessOrEqual => return Ok(bool(self.order(node, &left, &right)?.is_le())),
            Binary::Greater => return Ok(bool(self.order(node, &left, &right)?.is_gt())),
            Binary::GreaterOrEqual => return Ok(bool(self.order(node, &left, &right)?.is_ge())),
            Binary::In | Binary::Plus | Binary::Minus | Binary::Times | Binary::Divided | Binary::Rest => {}
        }
        let unfit = || fault("these values do not go together here".to_owned());
        match (sign, left, right) {
            (Binary::In, left, Val::Json(right)) => match right.as_ref() {
                Value::Array(items) => {
                    for item in items {
                        if self.equal(node, &left, &Val::Json(Cow::Borrowed(item)))? {
                            return Ok(bool(true));
                        }
                    }
                    Ok(bool(false))
                }
                Value::Object(fields) => match left {
                    Val::Json(left) => Ok(bool(left.as_str().is_some_and(|name| fields.contains_key(name)))),
                    Val::Time(_) | Val::Span(_) => Err(unfit()),
                },
                _ => Err(unfit()),
            },
            (Binary::Plus, Val::Time(time), Val::Span(span))
            | (Binary::Plus, Val::Span(span), Val::Time(time)) => {
                time.checked_add(span).map(Val::Time).map_err(|_| unfit())
            }
            (Binary::Minus, Val::Time(time), Val::Span(span)) => {
                time.checked_sub(span).map(Val::Time).map_err(|_| unfit())
            }
            (Binary::Minus, Val::Time(left), Val::Time(right)) => Ok(Val::Span(left.duration_since(right))),
            (Binary::Plus, Val::Span(left), Val::Span(right)) => {
                left.checked_add(right).map(Val::Span).ok_or_else(unfit)
            }
            (Binary::Minus, Val::Span(left), Val::Span(right)) => {
                left.checked_sub(right).map(Val::Span).ok_or_else(unfit)
            }
            (sign, Val::Json(left), Val::Json(right)) => match (sign, left.as_ref(), right.as_ref()) {
                (_, Value::Number(left), Value::Number(right)) => {
                    arithmetic(sign, left, right).map_err(fault).map(number)
                }
                (Binary::Plus, Value::String(left), Value::String(right)) => {
                    self.spend(node, (left.len() + right.len()) / 32)?;
                    Ok(Val::Json(Cow::Owned(Value::String(format!("{left}{right}")))))
                }
                (Binary::Plus, Value::Array(left), Value::Array(right)) => {
                    left.iter().chain(right).try_for_each(|item| self.pay(node, item))?;
                    Ok(Val::Json(Cow::Owned(Value::Array(left.iter().chain(right).cloned().collect()))))
                }
                _ => Err(unfit()),
            },
            _ => Err(unfit()),
        }
    }

    fn equal(&mut self, node: &Node, left: &Val<'_>, right: &Val<'_>) -> Result<bool, Error> {
        match (left, right) {
            (Val::Json(left), Val::Json(right)) => self.same(node, left, right),
            (Val::Time(left), Val::Time(right)) => Ok(left == right),
            (Val::Span(left), Val::Span(right)) => Ok(left == right),
            _ => Ok(false),
        }
    }

    /// Paid for as far as it is looked at: what differs in kind or length is not.
    fn same(&mut self, node: &Node, left: &Value, right: &Value) -> Result<bool, Error> {
        self.spend(node, 1)?;
        match (left, right) {
            (Value::Number(left), Value::Number(right)) => Ok(compare(left, right) == Some(Ordering::Equal)),
            (Value::String(left), Value::String(right)) if left.len() == right.len() => {
                self.spend(node, left.len() / 32)?;
                Ok(left == right)
            }
            (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
                for (left, right) in left.iter().zip(right) {
                    if !self.same(node, left, right)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (Value::Object(left), Value::Object(right)) if left.len() == right.len() => {
                for (name, value) in left {
                    self.spend(node, name.len() / 32)?;
                    let Some(other) = right.get(name) else { return Ok(false) };
                    if !self.same(node, value, other)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (Value::Bool(left), Value::Bool(right)) => Ok(left == right),
            (Value::Null, Value::Null) => Ok(true),
            _ => Ok(false),
        }
    }

    fn order(&mut self, node: &Node, left: &Val<'_>, right: &Val<'_>) -> Result<Ordering, Error> {
        if let (Val::Json(left), Val::Json(right)) = (left, right)
            && let (Some(left), Some(right)) = (left.as_str(), right.as_str())
        {
            self.spend(node, left.len().min(right.len()) / 32)?;
        }
        order(left, right).map_err(|message| Error::new(node.column, message))
    }
}

fn order(left: &Val<'_>, right: &Val<'_>) -> Result<Ordering, String> {
    let unfit = || "these values cannot be compared".to_owned();
    match (left, right) {
        (Val::Time(left), Val::Time(right)) => Ok(left.cmp(right)),
        (Val::Span(left), Val::Span(right)) => Ok(left.cmp(right)),
        (Val::Json(left), Val::Json(right)) => match (left.as_ref(), right.as_ref()) {
            (Value::Number(left), Value::Number(right)) => compare(left, right).ok_or_else(unfit),
            (Value::String(left), Value::String(right)) => Ok(left.cmp(right)),
            (Value::Bool(left), Value::Bool(right)) => Ok(left.cmp(right)),
            (left, right) => Err(format!("{} cannot be compared with {}", kind(left), kind(right))),
        },
        _ => Err(unfit()),
    }
}

fn int(n: &Number) -> Option<i128> {
    n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from))
}

fn compare(left: &Number, right: &Number) -> Option<Ordering> {
    match (int(left), int(right)) {
        (Some(left), Some(right)) => Some(left.cmp(&right)),
        _ => left.as_f64()?.partial_cmp(&right.as_f64()?),
    }
}

pub(super) fn arithmetic(sign: Binary, left: &Number, right: &Number) -> Result<Number, String> {
    if let (Some(left), Some(right)) = (int(left), int(right)) {
        let result = match sign {
            Binary::Plus => left.checked_add(right),
            Binary::Minus => left.checked_sub(right),
            Binary::Times => left.checked_mul(right),
            Binary::Divided => left.checked_div(right),
            Binary::Rest => left.checked_rem(right),
            _ => None,
        };
        let result = result.and_then(|n| i64::try_from(n).ok());
        return result.map(Number::from).ok_or_else(|| "the result is no whole number of 64 bits".to_owned());
    }
    let (left, right) = (left.as_f64().unwrap_or(f64::NAN), right.as_f64().unwrap_or(f64::NAN));
    let result = match sign {
        Binary::Plus => left + right,
        Binary::Minus => left - right,
        Binary::Times => left * right,
        Binary::Divided => left / right,
        _ => f64::NAN,
    };
    Number::from_f64(result).ok_or_else(|| "the result is no number".to_owned())
}
