//! Conditions and keys of mediations: a small, total part of CEL, the Common Expression Language.
//!
//! Whoever may write a definition may write an expression, so every one of them ends: its length and depth are bounded when
//! it is read, and its steps and what it makes when it is evaluated. It reads the values that it is given and nothing
//! else. What a value holds never comes into an error.
//!
//! Literals, lists, maps, `a.b`, `a[b]`, `? :`, `||`, `&&`, comparisons, `in`, arithmetic; `has`, `size`, `int`, `double`,
//! `string`, `timestamp`, `duration`; `contains`, `startsWith`, `endsWith`, `matches` (a literal pattern), `lowerAscii`,
//! `upperAscii`, `trim`; the macros `all`, `exists`, `exists_one`, `map`, `filter`. Unlike CEL's, whole numbers and
//! others may be mixed: JSON does not tell 100 from 100.0.

mod eval;
mod parse;
mod pattern;
mod tokens;
mod tree;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use std::collections::BTreeSet;

/// The longest expression, in bytes.
pub const MAX_SOURCE: usize = 2048;

/// An expression that can be evaluated.
#[derive(Debug, Clone)]
pub struct Expression {
    source: String,
    root: tree::Node,
    names: BTreeSet<String>,
    patterns: Vec<String>,
}

/// Whether a text is a pattern that `matches()` takes. Compiling one takes time and memory.
///
/// # Errors
/// That it is none, or too large a one.
pub(super) fn pattern(text: &str) -> Result<(), String> {
    pattern::compile(text).map(drop)
}

/// Why an expression cannot be read or evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}")]
pub struct Error {
    /// Where, counted in characters from 1.
    pub column: usize,
    /// What is wrong, without what any value holds.
    pub message: String,
}

impl Error {
    fn new(column: usize, message: impl Into<String>) -> Self {
        Self { column, message: message.into() }
    }
}

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parse(source: &str) -> Result<Self, Error> {
        let parse::Parsed { root, names, patterns } = parse::parse(source)?;
        Ok(Self { source: source.to_owned(), root, names, patterns })
    }

    /// As it was written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The names that have to be given to it.
    #[must_use]
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// Whether it may use these names alone.
    ///
    /// # Errors
    /// The name that is not among them.
    pub fn knows_only(&self, known: &[&str]) -> Result<(), String> {
        match self.names.iter().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(format!("{name:?} is not known here; there is {}", known.join(", "))),
            None => Ok(()),
        }
    }

    /// The patterns of its `matches()`: [`pattern`] says of each whether it is one.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter().map(String::as_str)
    }

    /// Its value; `given` are the names it may use.
    ///
    /// # Errors
    /// A field that is not there, values that do not go together, or too much work.
    pub fn evaluate(&self, given: &[(&str, &Value)]) -> Result<Value, Error> {
        eval::evaluate(&self.root, given)
    }

    /// Whether the condition is met.
    ///
    /// # Errors
    /// As [`Self::evaluate`], and when the value is neither true nor false.
    pub fn holds(&self, given: &[(&str, &Value)]) -> Result<bool, Error> {
        match self.evaluate(given)? {
            Value::Bool(holds) => Ok(holds),
            other => Err(Error::new(1, format!("gives {}, not true or false", eval::kind(&other)))),
        }
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Expression {}

impl Serialize for Expression {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.source)
    }
}

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let source = String::deserialize(deserializer)?;
        Self::parse(&source).map_err(|error| de::Error::custom(format!("not an expression: {error}")))
    }
}

#[cfg(test)]
mod tests;
