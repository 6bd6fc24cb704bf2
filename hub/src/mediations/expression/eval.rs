//! The value of a tree, within a budget of steps and of what is made on the way.

use super::{
    Error,
    parse::{Binary, Function, Kind, Macro, Node},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Number, Value};
use std::{borrow::Cow, cmp::Ordering};

/// How many steps one evaluation may take. Making a value costs as many as it has parts, and one for each 32 bytes of text.
const BUDGET: usize = 250_000;

/// A value on the way: CEL has times beside what JSON has.
#[derive(Debug, Clone)]
enum Val<'a> {
    Json(Cow<'a, Value>),
    Time(Timestamp),
    Span(SignedDuration),
}

/// What a name stands for.
type Given<'a> = (&'a str, &'a Value);

/// The variables of the macros around, the innermost first.
struct Scope<'s> {
    name: &'s str,
    value: &'s Value,
    outer: Option<&'s Scope<'s>>,
}

/// Names the kind of a value, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

pub(super) fn evaluate(root: &Node, given: &[Given<'_>]) -> Result<Value, Error> {
    let mut work = Work { given, left: BUDGET };
    let value = work.value(root, None)?;
    Ok(match value {
        Val::Json(json) => json.into_owned(),
        Val::Time(time) => Value::String(time.to_string()),
        Val::Span(span) => Value::String(format!("{span:#}")),
    })
}

struct Work<'g> {
    given: &'g [Given<'g>],
    left: usize,
}

impl<'g> Work<'g> {
    fn spend(&mut self, node: &Node, steps: usize) -> Result<(), Error> {
        self.left = self
            .left
            .checked_sub(steps)
            .ok_or_else(|| Error::new(node.column, "the expression takes too many steps"))?;
        Ok(())
    }

    /// Pays for making a value.
    fn made<'v>(&mut self, node: &Node, value: Value) -> Result<Val<'v>, Error> {
        self.spend(node, weight(&value))?;
        Ok(Val::Json(Cow::Owned(value)))
    }

    /// A value of its own out of one that may be borrowed.
    fn owned(&mut self, node: &Node, value: Val<'_>) -> Result<Value, Error> {
        match value {
            Val::Json(json) => {
                self.spend(node, weight(&json))?;
                Ok(json.into_owned())
            }
            Val::Time(time) => Ok(Value::String(time.to_string())),
            Val::Span(_) => Err(Error::new(node.column, "a duration cannot stand in a list or map")),
        }
    }

    fn value<'v>(&mut self, node: &'v Node, scope: Option<&Scope<'v>>) -> Result<Val<'v>, Error>
    where
        'g: 'v,
    {
        self.spend(node, 1)?;
        let fault = |message: String| Error::new(node.column, message);
        match &node.kind {
            Kind::Literal(value) => Ok(Val::Json(Cow::Borrowed(value))),
            Kind::Name(name) => {
                let mut inner = scope;
                while let Some(Scope { name: of, value, outer }) = inner {
                    if of == name {
                        let value: &Value = value;
                        return self.made(node, value.clone());
                    }
                    inner = *outer;
                }
                let found = self.given.iter().find(|(given, _)| given == name);
                found
                    .map(|(_, value)| Val::Json(Cow::Borrowed(*value)))
                    .ok_or_else(|| fault(format!("{name:?} is not known here")))
            }
            Kind::List(nodes) => {
                let mut items = Vec::with_capacity(nodes.len());
                for node in nodes {
                    let value = self.value(node, scope)?;
                    items.push(self.owned(node, value)?);
                }
                Ok(Val::Json(Cow::Owned(Value::Array(items))))
            }
            Kind::Map(pairs) => {
                let mut fields = Map::new();
                for (key, value) in pairs {
                    let name = match self.json(key, scope)?.into_owned() {
                        Value::String(name) => name,
                        other => {
                            return Err(Error::new(key.column, format!("{} cannot be a key", kind(&other))));
                        }
                    };
                    let made = self.value(value, scope)?;
                    let made = self.owned(value, made)?;
                    fields.insert(name, made);
                }
                Ok(Val::Json(Cow::Owned(Value::Object(fields))))
            }
            Kind::Field(of, name) => {
                let of = self.json(of, scope)?;
                field(of, name).ok_or_else(|| fault(format!("there is no field {name:?}"))).map(Val::Json)
            }
            Kind::Has(of, name) => match self.json(of, scope)?.as_ref() {
                Value::Object(fields) => Ok(bool(fields.contains_key(name))),
                other => Err(fault(format!("{} has no fields", kind(other)))),
            },
            Kind::Index(of, index) => {
                let index = self.json(index, scope)?;
                let of = self.json(of, scope)?;
                let found = match index.as_ref() {
                    Value::String(name) => field(of, name),
                    Value::Number(at) => item(of, at),
                    _ => None,
                };
                found.ok_or_else(|| fault("there is nothing at this index".to_owned())).map(Val::Json)
            }
            Kind::Not(of) => Ok(bool(!self.truth(of, scope)?)),
            Kind::Negative(of) => match self.value(of, scope)? {
                Val::Span(span) => Ok(Val::Span(-span)),
                Val::Json(json) => match json.as_ref() {
                    Value::Number(n) => {
                        arithmetic(Binary::Minus, &Number::from(0), n).map_err(fault).map(number)
                    }
                    other => Err(fault(format!("- does not go with {}", kind(other)))),
                },
                Val::Time(_) => Err(fault("- does not go with a timestamp".to_owned())),
            },
            Kind::All(nodes) => self.until(nodes, false, scope),
            Kind::Any(nodes) => self.until(nodes, true, scope),
            Kind::Binary(sign, left, right) => {
                let (left, right) = (self.value(left, scope)?, self.value(right, scope)?);
                self.binary(node, *sign, left, right)
            }
            Kind::Choice(parts) => {
                let (condition, met, unmet) = &**parts;
                let node = if self.truth(condition, scope)? { met } else { unmet };
                self.value(node, scope)
            }
            Kind::Call(function, arguments) => {
                let mut values = Vec::with_capacity(arguments.len());
                for argument in arguments {
                    values.push(self.value(argument, scope)?);
                }
                self.call(node, *function, values)
            }
            Kind::Matches(of, regex) => match self.json(of, scope)?.as_ref() {
                Value::String(text) => {
                    self.spend(node, text.len() / 32)?;
                    Ok(bool(regex.is_match(text)))
                }
                other => Err(fault(format!("matches() takes a text, not {}", kind(other)))),
            },
            Kind::Macro(kind, of, variable, parts) => {
                self.comprehension(node, *kind, of, variable, parts, scope)
            }
        }
    }

    fn json<'v>(&mut self, node: &'v Node, scope: Option<&Scope<'v>>) -> Result<Cow<'v, Value>, Error>
    where
        'g: 'v,
    {
        match self.value(node, scope)? {
            Val::Json(json) => Ok(json),
            Val::Time(_) | Val::Span(_) => Err(Error::new(node.column, "a time does not go here")),
        }
    }

    fn truth<'v>(&mut self, node: &'v Node, scope: Option<&Scope<'v>>) -> Result<bool, Error>
    where
        'g: 'v,
    {
        match self.json(node, scope)?.as_ref() {
            Value::Bool(truth) => Ok(*truth),
            other => Err(Error::new(node.column, format!("{} is neither true nor false", kind(other)))),
        }
    }

    /// As CEL has it, an error on one side does not matter if another side decides.
    fn until<'v>(
        &mut self,
        nodes: &'v [Node],
        decides: bool,
        scope: Option<&Scope<'v>>,
    ) -> Result<Val<'v>, Error>
    where
        'g: 'v,
    {
        let mut error = None;
        for node in nodes {
            match self.truth(node, scope) {
                Ok(truth) if truth == decides => return Ok(bool(decides)),
                Ok(_) => {}
                Err(other) => error = error.or(Some(other)),
            }
        }
        error.map_or(Ok(bool(!decides)), Err)
    }

    fn binary<'v>(
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
            Binary::Less => return order(&left, &right).map(|o| bool(o.is_lt())).map_err(fault),
            Binary::LessOrEqual => return order(&left, &right).map(|o| bool(o.is_le())).map_err(fault),
            Binary::Greater => return order(&left, &right).map(|o| bool(o.is_gt())).map_err(fault),
            Binary::GreaterOrEqual => return order(&left, &right).map(|o| bool(o.is_ge())).map_err(fault),
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
                    let cost = left.iter().chain(right).map(weight).sum();
                    self.spend(node, cost)?;
                    Ok(Val::Json(Cow::Owned(Value::Array(left.iter().chain(right).cloned().collect()))))
                }
                _ => Err(unfit()),
            },
            _ => Err(unfit()),
        }
    }

    fn equal(&mut self, node: &Node, left: &Val<'_>, right: &Val<'_>) -> Result<bool, Error> {
        match (left, right) {
            (Val::Json(left), Val::Json(right)) => {
                self.spend(node, weight(left).min(weight(right)))?;
                Ok(same(left, right))
            }
            (Val::Time(left), Val::Time(right)) => Ok(left == right),
            (Val::Span(left), Val::Span(right)) => Ok(left == right),
            _ => Ok(false),
        }
    }

    fn call<'v>(&mut self, node: &Node, function: Function, values: Vec<Val<'v>>) -> Result<Val<'v>, Error> {
        let fault = |message: &str| Error::new(node.column, message);
        let mut values = values.into_iter();
        let (first, second) = (values.next(), values.next());
        let text = |value: &Option<Val<'v>>| match value {
            Some(Val::Json(json)) => json.as_str().map(str::to_owned),
            _ => None,
        };
        if let Some(Val::Json(json)) = &first {
            self.spend(node, json.as_str().map_or(0, |text| text.len() / 32))?;
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

    fn comprehension<'v>(
        &mut self,
        node: &'v Node,
        macro_kind: Macro,
        of: &'v Node,
        variable: &'v str,
        parts: &'v (Node, Option<Node>),
        scope: Option<&Scope<'v>>,
    ) -> Result<Val<'v>, Error>
    where
        'g: 'v,
    {
        let of = self.json(of, scope)?;
        let items: Vec<Value> = match of.as_ref() {
            Value::Array(items) => items.clone(),
            Value::Object(fields) => fields.keys().cloned().map(Value::String).collect(),
            other => return Err(Error::new(node.column, format!("{} has no items", kind(other)))),
        };
        self.spend(node, items.iter().map(weight).sum())?;
        let (first, second) = parts;
        let (mut kept, mut met, mut error) = (Vec::new(), 0_u32, None);
        for item in &items {
            let mut inner = Inner { work: self, variable, item };
            let decided = match macro_kind {
                Macro::All => inner.truth(first, scope).map(|truth| !truth),
                Macro::Exists => inner.truth(first, scope),
                Macro::ExistsOne => {
                    met += u32::from(inner.truth(first, scope)?);
                    Ok(false)
                }
                Macro::Filter => {
                    if inner.truth(first, scope)? {
                        kept.push(item.clone());
                    }
                    Ok(false)
                }
                Macro::Map => {
                    let (condition, made) = match second {
                        Some(made) => (Some(first), made),
                        None => (None, first),
                    };
                    let wanted = condition.map_or(Ok(true), |condition| inner.truth(condition, scope))?;
                    if wanted {
                        kept.push(inner.owned(made, scope)?);
                    }
                    Ok(false)
                }
            };
            match decided {
                Ok(true) => return Ok(bool(macro_kind == Macro::Exists)),
                Ok(false) => {}
                Err(other) => error = error.or(Some(other)),
            }
        }
        match (error, macro_kind) {
            (Some(error), _) => Err(error),
            (None, Macro::All) => Ok(bool(true)),
            (None, Macro::Exists) => Ok(bool(false)),
            (None, Macro::ExistsOne) => Ok(bool(met == 1)),
            (None, Macro::Map | Macro::Filter) => Ok(Val::Json(Cow::Owned(Value::Array(kept)))),
        }
    }
}

/// Evaluation with one more variable. What it gives is its own: the item does not outlive its turn.
struct Inner<'w, 'g, 'i> {
    work: &'w mut Work<'g>,
    variable: &'i str,
    item: &'i Value,
}

impl Inner<'_, '_, '_> {
    fn truth(&mut self, node: &Node, scope: Option<&Scope<'_>>) -> Result<bool, Error> {
        let inner = Scope { name: self.variable, value: self.item, outer: scope };
        self.work.truth(node, Some(&inner))
    }

    fn owned(&mut self, node: &Node, scope: Option<&Scope<'_>>) -> Result<Value, Error> {
        let inner = Scope { name: self.variable, value: self.item, outer: scope };
        let value = self.work.value(node, Some(&inner))?;
        self.work.owned(node, value)
    }
}

fn bool<'v>(truth: bool) -> Val<'v> {
    Val::Json(Cow::Owned(Value::Bool(truth)))
}

fn number<'v>(number: Number) -> Val<'v> {
    Val::Json(Cow::Owned(Value::Number(number)))
}

/// How many steps a value costs; JSON from outside is never deeper than its reader allows.
fn weight(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
        Value::String(text) => 1 + text.len() / 32,
        Value::Array(items) => 1 + items.iter().map(weight).sum::<usize>(),
        Value::Object(fields) => {
            1 + fields.iter().map(|(name, value)| name.len() / 32 + weight(value)).sum::<usize>()
        }
    }
}

fn field<'v>(of: Cow<'v, Value>, name: &str) -> Option<Cow<'v, Value>> {
    match of {
        Cow::Borrowed(value) => value.as_object()?.get(name).map(Cow::Borrowed),
        Cow::Owned(Value::Object(mut fields)) => fields.remove(name).map(Cow::Owned),
        Cow::Owned(_) => None,
    }
}

fn item<'v>(of: Cow<'v, Value>, at: &Number) -> Option<Cow<'v, Value>> {
    let at = usize::try_from(at.as_u64()?).ok()?;
    match of {
        Cow::Borrowed(value) => value.as_array()?.get(at).map(Cow::Borrowed),
        Cow::Owned(Value::Array(mut items)) if at < items.len() => Some(Cow::Owned(items.swap_remove(at))),
        Cow::Owned(_) => None,
    }
}

fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => compare(left, right) == Some(Ordering::Equal),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(name, value)| right.get(name).is_some_and(|other| same(value, other)))
        }
        _ => left == right,
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

#[expect(clippy::cast_possible_truncation, reason = "the range is checked before")]
fn whole(n: f64) -> Option<i64> {
    (n.is_finite() && n.abs() < 9.0e18).then(|| n.trunc() as i64)
}

fn arithmetic(sign: Binary, left: &Number, right: &Number) -> Result<Number, String> {
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
