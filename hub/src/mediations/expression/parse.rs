//! Text into a tree of bounded size and depth.

use super::{Error, MAX_SOURCE};
use regex::{Regex, RegexBuilder};
use serde_json::{Number, Value};
use std::collections::BTreeSet;

/// How deep expressions may stand in each other; evaluation goes no deeper.
const MAX_DEPTH: usize = 48;
/// How large a compiled pattern may become.
const MAX_PATTERN: usize = 256 * 1024;

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
    Matches(Box<Node>, Regex),
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

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    Literal(Value),
    Sign(&'static str),
    End,
}

/// Longer signs first.
const SIGNS: [&str; 26] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "-", "+", "*", "/", "%", "?", ":", ".", ",", "(", ")",
    "[", "]", "{", "}", "&", "|",
];
const RESERVED: [&str; 10] =
    ["in", "as", "break", "const", "continue", "else", "for", "function", "if", "while"];

pub(super) fn parse(source: &str) -> Result<(Node, BTreeSet<String>), Error> {
    if source.len() > MAX_SOURCE {
        return Err(Error::new(MAX_SOURCE, format!("the expression is longer than {MAX_SOURCE} bytes")));
    }
    let mut parser =
        Parser { tokens: tokens(source)?, at: 0, nesting: 0, bound: Vec::new(), names: BTreeSet::new() };
    let root = parser.choice()?;
    match parser.peek() {
        Token::End => Ok((root, parser.names)),
        _ => Err(parser.fault("the expression goes on where it should end")),
    }
}

fn tokens(source: &str) -> Result<Vec<(usize, Token)>, Error> {
    let chars: Vec<char> = source.chars().collect();
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(&c) = chars.get(at) {
        let column = at + 1;
        let rest = chars.get(at..).unwrap_or_default();
        let next = rest.get(1).copied().unwrap_or(' ');
        let token = match c {
            c if c.is_whitespace() => {
                at += 1;
                continue;
            }
            '"' | '\'' => text(rest, false, column)?,
            'r' if matches!(next, '"' | '\'') => {
                let (token, taken) = text(rest.get(1..).unwrap_or_default(), true, column)?;
                (token, taken + 1)
            }
            c if c.is_ascii_digit() || (c == '.' && next.is_ascii_digit()) => number(rest, column)?,
            c if c.is_alphabetic() || c == '_' => {
                let name: String = rest.iter().take_while(|c| c.is_alphanumeric() || **c == '_').collect();
                let taken = name.chars().count();
                let token = match name.as_str() {
                    "true" => Token::Literal(Value::Bool(true)),
                    "false" => Token::Literal(Value::Bool(false)),
                    "null" => Token::Literal(Value::Null),
                    "in" => Token::Sign("in"),
                    _ => Token::Name(name),
                };
                (token, taken)
            }
            _ => {
                let sign = SIGNS.iter().find(|sign| rest.iter().take(sign.len()).copied().eq(sign.chars()));
                match sign {
                    Some(sign) if !matches!(*sign, "&" | "|") => (Token::Sign(sign), sign.len()),
                    _ if c == '=' => return Err(Error::new(column, "equality is written ==")),
                    _ => return Err(Error::new(column, "a sign that no expression has")),
                }
            }
        };
        at += token.1;
        found.push((column, token.0));
    }
    found.push((chars.len() + 1, Token::End));
    Ok(found)
}

fn text(chars: &[char], raw: bool, column: usize) -> Result<(Token, usize), Error> {
    let quote = chars.first().copied().unwrap_or('"');
    let (mut text, mut at) = (String::new(), 1);
    loop {
        let Some(&c) = chars.get(at).filter(|c| **c != '\n') else {
            return Err(Error::new(column, "the text has no closing quote"));
        };
        at += 1;
        match c {
            c if c == quote => return Ok((Token::Literal(Value::String(text)), at)),
            '\\' if !raw => {
                let escaped = chars.get(at).copied().unwrap_or(' ');
                at += 1;
                match escaped {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    '\\' | '\'' | '"' => text.push(escaped),
                    'u' => {
                        let code: String = chars.iter().skip(at).take(4).collect();
                        let code = u32::from_str_radix(&code, 16).ok().filter(|_| code.len() == 4);
                        let c = code.and_then(char::from_u32);
                        text.push(
                            c.ok_or_else(|| Error::new(column + at, "\\u takes four hexadecimal digits"))?,
                        );
                        at += 4;
                    }
                    _ => {
                        return Err(Error::new(
                            column + at - 1,
                            "an escape that is not known; patterns are written r'…'",
                        ));
                    }
                }
            }
            c => text.push(c),
        }
    }
}

fn number(chars: &[char], column: usize) -> Result<(Token, usize), Error> {
    let mut taken = 0;
    for (index, c) in chars.iter().enumerate() {
        let exponent = index > 0 && matches!(chars.get(index - 1), Some('e' | 'E'));
        if !(c.is_ascii_alphanumeric() || *c == '.' || (exponent && matches!(c, '+' | '-'))) {
            break;
        }
        taken = index + 1;
    }
    let text: String = chars.iter().take(taken).collect();
    let whole = text.strip_suffix('u').unwrap_or(&text);
    let number = match whole.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).ok().map(Number::from),
        None => whole.parse::<i64>().ok().map(Number::from),
    };
    let number = number.or_else(|| text.parse().ok().and_then(Number::from_f64));
    match number {
        Some(number) => Ok((Token::Literal(Value::Number(number)), taken)),
        None => Err(Error::new(column, "not a number")),
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    nesting: usize,
    /// The variables of the macros around.
    bound: Vec<String>,
    names: BTreeSet<String>,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(_, token)| token)
    }

    fn column(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(column, _)| *column)
    }

    fn fault(&self, message: impl Into<String>) -> Error {
        Error::new(self.column(), message)
    }

    fn takes(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Token::Sign(other) if *other == sign);
        self.at += usize::from(found);
        found
    }

    fn wants(&mut self, sign: &str) -> Result<(), Error> {
        if self.takes(sign) { Ok(()) } else { Err(self.fault(format!("expected {sign}"))) }
    }

    fn node(column: usize, kind: Kind) -> Result<Node, Error> {
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
        Ok(Node { column, kind, depth: below + 1 })
    }

    fn choice(&mut self) -> Result<Node, Error> {
        self.nesting += 1;
        if self.nesting > MAX_DEPTH {
            return Err(self.fault(format!("more than {MAX_DEPTH} parts stand in each other")));
        }
        let column = self.column();
        let mut node = self.any()?;
        if self.takes("?") {
            let met = self.choice()?;
            self.wants(":")?;
            let unmet = self.choice()?;
            node = Self::node(column, Kind::Choice(Box::new((node, met, unmet))))?;
        }
        self.nesting -= 1;
        Ok(node)
    }

    fn any(&mut self) -> Result<Node, Error> {
        let column = self.column();
        let mut nodes = vec![self.all()?];
        while self.takes("||") {
            nodes.push(self.all()?);
        }
        Self::one_or(column, nodes, Kind::Any)
    }

    fn all(&mut self) -> Result<Node, Error> {
        let column = self.column();
        let mut nodes = vec![self.comparison()?];
        while self.takes("&&") {
            nodes.push(self.comparison()?);
        }
        Self::one_or(column, nodes, Kind::All)
    }

    fn one_or(column: usize, mut nodes: Vec<Node>, of: fn(Vec<Node>) -> Kind) -> Result<Node, Error> {
        match (nodes.len(), nodes.pop()) {
            (1, Some(node)) => Ok(node),
            (_, last) => {
                nodes.extend(last);
                Self::node(column, of(nodes))
            }
        }
    }

    fn comparison(&mut self) -> Result<Node, Error> {
        const SIGNS: [(&str, Binary); 7] = [
            ("==", Binary::Equal),
            ("!=", Binary::NotEqual),
            ("<=", Binary::LessOrEqual),
            (">=", Binary::GreaterOrEqual),
            ("<", Binary::Less),
            (">", Binary::Greater),
            ("in", Binary::In),
        ];
        self.chain(&SIGNS, Self::sum)
    }

    fn sum(&mut self) -> Result<Node, Error> {
        self.chain(&[("+", Binary::Plus), ("-", Binary::Minus)], Self::product)
    }

    fn product(&mut self) -> Result<Node, Error> {
        const SIGNS: [(&str, Binary); 3] =
            [("*", Binary::Times), ("/", Binary::Divided), ("%", Binary::Rest)];
        self.chain(&SIGNS, Self::unary)
    }

    fn chain(
        &mut self,
        signs: &[(&str, Binary)],
        below: fn(&mut Self) -> Result<Node, Error>,
    ) -> Result<Node, Error> {
        let mut left = below(self)?;
        loop {
            let column = self.column();
            let Some((_, binary)) = signs.iter().find(|(sign, _)| self.takes(sign)) else { return Ok(left) };
            let right = below(self)?;
            left = Self::node(column, Kind::Binary(*binary, Box::new(left), Box::new(right)))?;
        }
    }

    fn unary(&mut self) -> Result<Node, Error> {
        let column = self.column();
        let mut signs = Vec::new();
        while let Some(sign) = ["!", "-"].into_iter().find(|sign| self.takes(sign)) {
            signs.push(sign);
        }
        let mut node = self.member()?;
        for sign in signs.into_iter().rev() {
            let of = Box::new(node);
            node = Self::node(column, if sign == "!" { Kind::Not(of) } else { Kind::Negative(of) })?;
        }
        Ok(node)
    }

    fn member(&mut self) -> Result<Node, Error> {
        let mut node = self.primary()?;
        loop {
            let column = self.column();
            if self.takes(".") {
                let name = self.name()?;
                node = if self.takes("(") {
                    self.method(column, node, &name)?
                } else {
                    Self::node(column, Kind::Field(Box::new(node), name))?
                };
            } else if self.takes("[") {
                let index = self.choice()?;
                self.wants("]")?;
                node = Self::node(column, Kind::Index(Box::new(node), Box::new(index)))?;
            } else {
                return Ok(node);
            }
        }
    }

    fn name(&mut self) -> Result<String, Error> {
        match self.peek() {
            Token::Name(name) => {
                let name = name.clone();
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.fault("expected a name")),
        }
    }

    fn primary(&mut self) -> Result<Node, Error> {
        let column = self.column();
        match self.peek().clone() {
            Token::Literal(value) => {
                self.at += 1;
                Self::node(column, Kind::Literal(value))
            }
            Token::Name(name) => {
                self.at += 1;
                if self.takes("(") {
                    return self.function(column, &name);
                }
                if RESERVED.contains(&name.as_str()) {
                    return Err(Error::new(
                        column,
                        format!("{name:?} is a word of the language, not a name"),
                    ));
                }
                if !self.bound.contains(&name) {
                    self.names.insert(name.clone());
                }
                Self::node(column, Kind::Name(name))
            }
            Token::Sign("(") => {
                self.at += 1;
                let node = self.choice()?;
                self.wants(")")?;
                Ok(node)
            }
            Token::Sign("[") => {
                self.at += 1;
                let items = self.list("]", Self::choice)?;
                Self::node(column, Kind::List(items))
            }
            Token::Sign("{") => {
                self.at += 1;
                let pairs = self.list("}", |parser| {
                    let key = parser.choice()?;
                    parser.wants(":")?;
                    Ok((key, parser.choice()?))
                })?;
                Self::node(column, Kind::Map(pairs))
            }
            Token::End => Err(self.fault("the expression ends too early")),
            Token::Sign(_) => Err(self.fault("expected a value")),
        }
    }

    /// Up to the closing sign, between commas.
    fn list<T>(&mut self, end: &str, item: impl Fn(&mut Self) -> Result<T, Error>) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        while !self.takes(end) {
            if !items.is_empty() {
                self.wants(",")?;
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn function(&mut self, column: usize, name: &str) -> Result<Node, Error> {
        if name == "has" {
            let node = self.choice()?;
            self.wants(")")?;
            return match node.kind {
                Kind::Field(of, field) => Self::node(column, Kind::Has(of, field)),
                _ => Err(Error::new(column, "has() takes a field, as has(event.Data)")),
            };
        }
        let function = match name {
            "size" => Function::Size,
            "int" => Function::Int,
            "double" => Function::Double,
            "string" => Function::Text,
            "timestamp" => Function::Timestamp,
            "duration" => Function::Duration,
            _ => return Err(Error::new(column, format!("{name}() is not known"))),
        };
        let arguments = self.list(")", Self::choice)?;
        if arguments.len() != 1 {
            return Err(Error::new(column, format!("{name}() takes one value")));
        }
        Self::node(column, Kind::Call(function, arguments))
    }

    fn method(&mut self, column: usize, of: Node, name: &str) -> Result<Node, Error> {
        let is_macro = match name {
            "all" => Some(Macro::All),
            "exists" => Some(Macro::Exists),
            "exists_one" => Some(Macro::ExistsOne),
            "map" => Some(Macro::Map),
            "filter" => Some(Macro::Filter),
            _ => None,
        };
        if let Some(kind) = is_macro {
            let variable = self.name()?;
            self.wants(",")?;
            self.bound.push(variable.clone());
            let mut parts = self.list(")", Self::choice)?;
            self.bound.pop();
            let second = if kind == Macro::Map && parts.len() == 2 { parts.pop() } else { None };
            let (Some(first), true) = (parts.pop(), parts.is_empty()) else {
                return Err(Error::new(column, format!("{name}() takes a name and an expression")));
            };
            let parts = Box::new((first, second));
            return Self::node(column, Kind::Macro(kind, Box::new(of), variable, parts));
        }
        let mut arguments = self.list(")", Self::choice)?;
        if name == "matches" {
            let Some(Node { kind: Kind::Literal(Value::String(pattern)), .. }) = arguments.first() else {
                return Err(Error::new(
                    column,
                    "matches() takes a pattern that is written there, as r'^FA[0-9]+$'",
                ));
            };
            let built =
                RegexBuilder::new(pattern).size_limit(MAX_PATTERN).dfa_size_limit(MAX_PATTERN).build();
            let regex =
                built.map_err(|_| Error::new(column, "matches(): not a pattern, or too large a one"))?;
            return Self::node(column, Kind::Matches(Box::new(of), regex));
        }
        let (function, takes) = match name {
            "contains" => (Function::Contains, 1),
            "startsWith" => (Function::StartsWith, 1),
            "endsWith" => (Function::EndsWith, 1),
            "size" => (Function::Size, 0),
            "lowerAscii" => (Function::LowerAscii, 0),
            "upperAscii" => (Function::UpperAscii, 0),
            "trim" => (Function::Trim, 0),
            _ => return Err(Error::new(column, format!(".{name}() is not known"))),
        };
        if arguments.len() != takes {
            return Err(Error::new(column, format!(".{name}() takes {takes} values")));
        }
        arguments.insert(0, of);
        Self::node(column, Kind::Call(function, arguments))
    }
}
