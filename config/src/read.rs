//! Reads a [`Node`] into a serde type and collects every mistake, each at its own place.
//!
//! Serde stops at the first error. So a read is repeated with the mistaken values left out until nothing new is
//! found; what is only missing because it was left out is not reported. No message quotes a value: it could be a
//! secret in the wrong place.

use crate::{
    hint::{unknown_key, unknown_value},
    tree::{Entry, Node, Value, join},
};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};
use std::{cell::RefCell, collections::BTreeSet, fmt};

/// A mistake: byte offset, path below the node that was read, message.
#[derive(Debug)]
pub(crate) struct Mistake {
    pub(crate) at: usize,
    pub(crate) path: String,
    pub(crate) message: String,
}

/// Mistakes of one table past this many are not looked for.
const MAX_MISTAKES: usize = 200;

/// Reads `node`; `also_known` are further keys worth a hint when a top-level key is unknown. The value is what is left
/// without the mistaken parts, or `None` if it cannot do without them.
pub(crate) fn read<T: DeserializeOwned>(node: &Node, also_known: &[&str]) -> (Option<T>, Vec<Mistake>) {
    let state = RefCell::new(State::default());
    loop {
        let left_out = state.borrow().left_out.len();
        let reader = Reader { node, path: String::new(), also_known, state: &state };
        let value = reader.run(T::deserialize).ok();
        let done = {
            let state = state.borrow();
            // Every pass leaves out more; the second check is for a type that breaks this rule.
            let stuck = state.left_out.len() == left_out;
            state.left_out.contains("") || stuck || state.mistakes.len() >= MAX_MISTAKES
        };
        if value.is_some() || done {
            return (value, state.into_inner().mistakes);
        }
    }
}

#[derive(Default)]
struct State {
    /// Paths of values that the next pass leaves out.
    left_out: BTreeSet<String>,
    /// Those of them that were mistaken, not just unknown: what their table then lacks is a consequence.
    mistaken: BTreeSet<String>,
    mistakes: Vec<Mistake>,
}

impl State {
    fn has_mistaken_part(&self, path: &str) -> bool {
        let is_part = |rest: &str| path.is_empty() || rest.starts_with(['.', '[']);
        self.mistaken.iter().any(|mistaken| mistaken.strip_prefix(path).is_some_and(is_part))
    }
}

/// What serde reports; [`Reader::run`] gives it its place.
#[derive(Debug)]
pub(crate) enum Error {
    Missing(&'static str),
    Unknown(String, &'static [&'static str]),
    Text(String),
    /// Already among the mistakes.
    Recorded,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(_) => f.write_str("missing; this key is required"),
            Self::Unknown(field, known) => f.write_str(&unknown_key(field, known)),
            Self::Text(text) => f.write_str(text),
            Self::Recorded => f.write_str("already reported"),
        }
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::Text(text.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Bool(_) => "a boolean",
            Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
            Unexpected::Float(_) => "a fraction",
            Unexpected::Char(_) | Unexpected::Str(_) => "a string",
            Unexpected::Seq => "an array",
            Unexpected::Map => "a table",
            Unexpected::Other(other) => other,
            _ => "another type",
        };
        Self::Text(format!("expected {expected}, found {found}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::Text(format!("expected {expected}"))
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Self::Text(unknown_value(found, known))
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self::Unknown(field.to_owned(), known)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }
}

/// A value being read, with its path from the root of the read.
struct Reader<'a> {
    node: &'a Node,
    path: String,
    also_known: &'a [&'a str],
    state: &'a RefCell<State>,
}

impl<'a> Reader<'a> {
    fn child(&self, node: &'a Node, path: String) -> Self {
        Self { node, path, also_known: &[], state: self.state }
    }

    fn is_left_out(&self, path: &str) -> bool {
        self.state.borrow().left_out.contains(path)
    }

    /// Runs one read of this value; an error without a place gets this one, and the value is left out from now on.
    fn run<T>(self, read: impl FnOnce(Self) -> Result<T, Error>) -> Result<T, Error> {
        let (node, path, state) = (self.node, self.path.clone(), self.state);
        read(self).map_err(|error| {
            let mut state = state.borrow_mut();
            let (at, at_path) = match &error {
                Error::Recorded => return Error::Recorded,
                Error::Missing(field) => (node.at, join(&path, field)),
                Error::Unknown(field, _) => (key_at(node, field), join(&path, field)),
                Error::Text(_) => (node.at, path.clone()),
            };
            let follows = match error {
                Error::Missing(_) => state.left_out.contains(&at_path),
                Error::Text(_) => state.has_mistaken_part(&path),
                Error::Unknown(..) | Error::Recorded => false,
            };
            if !follows {
                state.mistakes.push(Mistake { at, path: at_path, message: error.to_string() });
            }
            state.left_out.insert(path.clone());
            state.mistaken.insert(path);
            Error::Recorded
        })
    }

    fn wrong_type<T>(&self, expected: &dyn Expected) -> Result<T, Error> {
        let found = match &self.node.value {
            Value::String(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a fraction",
            Value::Bool(_) => "a boolean",
            Value::Datetime => "a date",
            Value::Null => "null",
            Value::Array(_) => "an array",
            Value::Table(_) => "a table",
        };
        Err(de::Error::invalid_type(Unexpected::Other(found), expected))
    }

    fn entries(&self, fields: Option<&[&str]>) -> Vec<(&'a str, &'a Entry)> {
        let Value::Table(table) = &self.node.value else { return Vec::new() };
        let known = |key: &str| fields.is_none_or(|fields| fields.contains(&key));
        let mut entries = Vec::with_capacity(table.len());
        for (key, entry) in table {
            let path = join(&self.path, key);
            if self.is_left_out(&path) {
                continue;
            }
            if known(key) {
                entries.push((key.as_str(), entry));
                continue;
            }
            let known: Vec<_> = fields.unwrap_or_default().iter().chain(self.also_known).copied().collect();
            let mut state = self.state.borrow_mut();
            let message = unknown_key(key, &known);
            state.mistakes.push(Mistake { at: entry.key_at, path: path.clone(), message });
            state.left_out.insert(path);
        }
        entries
    }

    fn integer<T: TryFrom<i64> + fmt::Display>(&self, min: T, max: T) -> Result<T, Error> {
        // The ends of the 64-bit types say nothing to an operator.
        let range = match (size_of::<T>() < size_of::<i64>(), T::try_from(-1).is_err()) {
            (true, _) => format!("an integer from {min} to {max}"),
            (false, true) => "an integer of 0 or more".to_owned(),
            (false, false) => "an integer".to_owned(),
        };
        match self.node.value {
            Value::Integer(integer) => {
                T::try_from(integer).map_err(|_| Error::Text(format!("expected {range}, found {integer}")))
            }
            Value::String(_)
            | Value::Float(_)
            | Value::Bool(_)
            | Value::Datetime
            | Value::Null
            | Value::Array(_)
            | Value::Table(_) => self.wrong_type(&range.as_str()),
        }
    }
}

fn key_at(node: &Node, key: &str) -> usize {
    match &node.value {
        Value::Table(table) => table.get(key).map_or(node.at, |entry| entry.key_at),
        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Bool(_)
        | Value::Datetime
        | Value::Null
        | Value::Array(_) => node.at,
    }
}

macro_rules! integers {
    ($($method:ident $type:ident $visit:ident),*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit(self.integer($type::MIN, $type::MAX)?)
        })*
    };
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::String(text) => visitor.visit_str(text),
            Value::Integer(integer) => visitor.visit_i64(*integer),
            Value::Float(float) => visitor.visit_f64(*float),
            Value::Bool(boolean) => visitor.visit_bool(*boolean),
            Value::Datetime => self.wrong_type(&visitor),
            Value::Null => visitor.visit_unit(),
            Value::Array(items) => {
                visitor.visit_seq(Items { items: items.iter().enumerate(), incomplete: false, parent: &self })
            }
            Value::Table(_) => visitor.visit_map(Entries::new(self.entries(None), &self)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Table(_) => visitor.visit_map(Entries::new(self.entries(Some(fields)), &self)),
            _ => self.wrong_type(&"a table"),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Table(_) => self.deserialize_any(visitor),
            _ => self.wrong_type(&"a table"),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Array(_) => self.deserialize_any(visitor),
            _ => self.wrong_type(&"an array"),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Bool(boolean) => visitor.visit_bool(boolean),
            _ => self.wrong_type(&"true or false"),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::String(text) => visitor.visit_str(text),
            _ => self.wrong_type(&visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    integers!(
        deserialize_u8 u8 visit_u8, deserialize_u16 u16 visit_u16, deserialize_u32 u32 visit_u32,
        deserialize_u64 u64 visit_u64, deserialize_i8 i8 visit_i8, deserialize_i16 i16 visit_i16,
        deserialize_i32 i32 visit_i32, deserialize_i64 i64 visit_i64
    );

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::String(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            Value::Table(table) => match table.iter().next() {
                Some((key, entry)) if table.len() == 1 => {
                    let value = self.child(&entry.node, join(&self.path, key));
                    visitor.visit_enum(Variant { key, value }).inspect_err(|error| {
                        // A variant cannot do without its content: the whole is left out.
                        if matches!(error, Error::Recorded) {
                            self.state.borrow_mut().left_out.insert(self.path.clone());
                        }
                    })
                }
                _ => Err(de::Error::custom(format_args!("expected exactly one key, found {}", table.len()))),
            },
            _ => self.wrong_type(&"a string"),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// The entries of a table, one after the other.
struct Entries<'a, 'p> {
    entries: std::vec::IntoIter<(&'a str, &'a Entry)>,
    value: Option<(&'a str, &'a Entry)>,
    parent: &'p Reader<'a>,
}

impl<'a, 'p> Entries<'a, 'p> {
    fn new(entries: Vec<(&'a str, &'a Entry)>, parent: &'p Reader<'a>) -> Self {
        Self { entries: entries.into_iter(), value: None, parent }
    }
}

impl<'de> MapAccess<'de> for Entries<'_, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.value = self.entries.next();
        let Some((key, entry)) = self.value else { return Ok(None) };
        let reader = self.parent.child(&entry.node, join(&self.parent.path, key));
        match seed.deserialize(key.into_deserializer()) {
            // An unknown key that the type itself refuses is told by the table, which knows the place of its keys.
            Err(error @ Error::Unknown(..)) => Err(error),
            result => reader.run(|_| result).map(Some),
        }
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let Some((key, entry)) = self.value.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        self.parent.child(&entry.node, join(&self.parent.path, key)).run(|reader| seed.deserialize(reader))
    }
}

/// The items of an array. Positions in paths count from 1, as rules do.
struct Items<'a, 'p> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
    /// Whether an item was left out.
    incomplete: bool,
    parent: &'p Reader<'a>,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        for (index, node) in self.items.by_ref() {
            let path = format!("{}[{}]", self.parent.path, index + 1);
            if !self.parent.is_left_out(&path) {
                return self.parent.child(node, path).run(|reader| seed.deserialize(reader)).map(Some);
            }
            self.incomplete = true;
        }
        if self.incomplete {
            // All its mistakes are known. Without the mistaken items the others would stand at wrong positions.
            self.parent.state.borrow_mut().left_out.insert(self.parent.path.clone());
            return Err(Error::Recorded);
        }
        Ok(None)
    }
}

/// A table of one key, read as an enum.
struct Variant<'a> {
    key: &'a str,
    value: Reader<'a>,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Error;
    type Variant = Reader<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Reader<'a>), Error> {
        Ok((seed.deserialize(self.key.into_deserializer())?, self.value))
    }
}

impl<'de> VariantAccess<'de> for Reader<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Err(de::Error::custom("expected a string, found a table"))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        self.run(|reader| seed.deserialize(reader))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.run(|reader| reader.deserialize_seq(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.run(|reader| reader.deserialize_struct("", fields, visitor))
    }
}
