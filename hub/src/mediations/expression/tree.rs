//! The tree of an expression: of what parts it is made, and how deep they stand in each other.

use super::{Error, pattern::Pattern};
use serde_json::Value;

/// How deep expressions may stand in each other; evaluation goes no deeper.
pub(super) const MAX_DEPTH: usize = 48;

/// A part of an expression, with the column where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) column: usize,
    pub(super) kind: Kind,
    depth: usize,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Literal(Value),
    Name(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    Field(Box<Node>, String),
    Index(Box<Node>, Box<Node>),
    /// `has(a.b)`
    Has(Box<Node>, String),
    Not(Box<Node>),
    Negative(Box<Node>),
    /// All of them, or any of them.
    All(Vec<Node>),
    Any(Vec<Node>),
    Binary(Binary, Box<Node>, Box<Node>),
    Choice(Box<(Node, Node, Node)>),
    Call(Function, Vec<Node>),
    Matches(Box<Node>, Pattern),
    Macro(Macro, Box<Node>, String, Box<(Node, Option<Node>)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Plus,
    Minus,
    Times,
    Divided,
    Rest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Size,
    Int,
    Double,
    Text,
    Timestamp,
    Duration,
    Contains,
    StartsWith,
    EndsWith,
    LowerAscii,
    UpperAscii,
    Trim,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Macro {
    All,
    Exists,
    ExistsOne,
    Map,
    Filter,
}

impl Node {
    /// A part that stands at this column, unless too many stand in it.
    pub(super) fn new(column: usize, kind: Kind) -> Result<Self, Error> {
        let below = match &kind {
            Kind::Literal(_) | Kind::Name(_) => 0,
            Kind::List(nodes) | Kind::All(nodes) | Kind::Any(nodes) | Kind::Call(_, nodes) => {
                nodes.iter().map(|node| node.depth).max().unwrap_or(0)
            }
            Kind::Map(pairs) => pairs.iter().map(|(k, v)| k.depth.max(v.depth)).max().unwrap_or(0),
            Kind::Field(of, _) | Kind::Has(of, _) | Kind::Matches(of, _) => of.depth,
            Kind::Not(of) | Kind::Negative(of) => of.depth,
            Kind::Index(a, b) | Kind::Binary(_, a, b) => a.depth.max(b.depth),
            Kind::Choice(parts) => parts.0.depth.max(parts.1.depth).max(parts.2.depth),
            Kind::Macro(_, of, _, parts) => {
                of.depth.max(parts.0.depth).max(parts.1.as_ref().map_or(0, |node| node.depth))
            }
        };
        if below >= MAX_DEPTH {
            return Err(Error::new(column, format!("more than {MAX_DEPTH} parts stand in each other")));
        }
        Ok(Self { column, kind, depth: below + 1 })
    }
}
