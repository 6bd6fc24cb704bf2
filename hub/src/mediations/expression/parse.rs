//! Text into a tree of bounded size and depth: what binds tighter stands deeper.

use super::{
    Error, MAX_SOURCE,
    pattern::Pattern,
    tokens::{Token, tokens},
    tree::{Binary, Function, Kind, MAX_DEPTH, Macro, Node},
};
use serde_json::Value;
use std::collections::BTreeSet;

const RESERVED: [&str; 10] =
    ["in", "as", "break", "const", "continue", "else", "for", "function", "if", "while"];

/// What was read.
pub(super) struct Parsed {
    pub(super) root: Node,
    pub(super) names: BTreeSet<String>,
    pub(super) patterns: Vec<String>,
}

pub(super) fn parse(source: &str) -> Result<Parsed, Error> {
    if source.len() > MAX_SOURCE {
        return Err(Error::new(MAX_SOURCE, format!("the expression is longer than {MAX_SOURCE} bytes")));
    }
    let mut parser = Parser {
        tokens: tokens(source)?,
        at: 0,
        nesting: 0,
        bound: Vec::new(),
        names: BTreeSet::new(),
        patterns: Vec::new(),
    };
    let root = parser.choice()?;
    match parser.peek() {
        Token::End => Ok(Parsed { root, names: parser.names, patterns: parser.patterns }),
        _ => Err(parser.fault("the expression goes on where it should end")),
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    nesting: usize,
    /// The variables of the macros around.
    bound: Vec<String>,
    names: BTreeSet<String>,
    patterns: Vec<String>,
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
            node = Node::new(column, Kind::Choice(Box::new((node, met, unmet))))?;
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
                Node::new(column, of(nodes))
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
            left = Node::new(column, Kind::Binary(*binary, Box::new(left), Box::new(right)))?;
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
            node = Node::new(column, if sign == "!" { Kind::Not(of) } else { Kind::Negative(of) })?;
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
                    Node::new(column, Kind::Field(Box::new(node), name))?
                };
            } else if self.takes("[") {
                let index = self.choice()?;
                self.wants("]")?;
                node = Node::new(column, Kind::Index(Box::new(node), Box::new(index)))?;
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
                Node::new(column, Kind::Literal(value))
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
                Node::new(column, Kind::Name(name))
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
                Node::new(column, Kind::List(items))
            }
            Token::Sign("{") => {
                self.at += 1;
                let pairs = self.list("}", |parser| {
                    let key = parser.choice()?;
                    parser.wants(":")?;
                    Ok((key, parser.choice()?))
                })?;
                Node::new(column, Kind::Map(pairs))
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
                Kind::Field(of, field) => Node::new(column, Kind::Has(of, field)),
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
        Node::new(column, Kind::Call(function, arguments))
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
            return Node::new(column, Kind::Macro(kind, Box::new(of), variable, parts));
        }
        let mut arguments = self.list(")", Self::choice)?;
        if name == "matches" {
            let Some(Node { kind: Kind::Literal(Value::String(pattern)), .. }) = arguments.first() else {
                return Err(Error::new(
                    column,
                    "matches() takes a pattern that is written there, as r'^FA[0-9]+$'",
                ));
            };
            self.patterns.push(pattern.clone());
            return Node::new(column, Kind::Matches(Box::new(of), Pattern::new(pattern.clone())));
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
        Node::new(column, Kind::Call(function, arguments))
    }
}
