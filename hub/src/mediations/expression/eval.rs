//! The value of a tree, within a budget of steps and of what is made on the way.

mod functions;
mod operators;

use super::{
    Error,
    tree::{Binary, Kind, Macro, Node},
};
use jiff::{SignedDuration, Timestamp};
use operators::arithmetic;
use serde_json::{Map, Number, Value};
use std::borrow::Cow;

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
        let left = self.left.checked_sub(steps);
        // What has taken too many is not tried in another branch.
        self.left = left.unwrap_or(0);
        left.map(drop).ok_or_else(|| Error::new(node.column, "the expression takes too many steps"))
    }

    /// Pays for all parts of a value, and looks at no more of them than are paid for. JSON from outside is never deeper than
    /// its reader allows.
    fn pay(&mut self, node: &Node, value: &Value) -> Result<(), Error> {
        self.spend(node, 1)?;
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
            Value::String(text) => self.spend(node, text.len() / 32),
            Value::Array(items) => items.iter().try_for_each(|item| self.pay(node, item)),
            Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
                self.spend(node, name.len() / 32)?;
                self.pay(node, value)
            }),
        }
    }

    /// Pays for making a value.
    fn made<'v>(&mut self, node: &Node, value: Value) -> Result<Val<'v>, Error> {
        self.pay(node, &value)?;
        Ok(Val::Json(Cow::Owned(value)))
    }

    /// A value of its own out of one that may be borrowed.
    fn owned(&mut self, node: &Node, value: Val<'_>) -> Result<Value, Error> {
        match value {
            Val::Json(json) => {
                self.pay(node, &json)?;
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
                        self.pay(node, value)?;
                        return Ok(Val::Json(Cow::Owned(value.clone())));
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
            Kind::Matches(of, pattern) => match self.json(of, scope)?.as_ref() {
                Value::String(text) => {
                    self.spend(node, text.len() / 32)?;
                    let met = pattern.is_match(text);
                    met.map(bool)
                        .ok_or_else(|| fault("matches(): not a pattern, or too large a one".to_owned()))
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
            Value::Array(items) => {
                items.iter().try_for_each(|item| self.pay(node, item))?;
                items.clone()
            }
            Value::Object(fields) => {
                fields.keys().try_for_each(|name| self.spend(node, 1 + name.len() / 32))?;
                fields.keys().cloned().map(Value::String).collect()
            }
            other => return Err(Error::new(node.column, format!("{} has no items", kind(other)))),
        };
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
