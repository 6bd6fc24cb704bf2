//! Records out of JSON, one at a time: an array may be as large as it likes, one record may not.

use super::{Error, MAX_FIELDS, MAX_RECORD, Record};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::{
    cell::Cell,
    fmt, io,
    io::{BufReader, Read},
    rc::Rc,
};

type Each<'a> = dyn FnMut(u64, Record) -> Result<(), Error> + 'a;

/// Reads an array of objects, which may stand in a field (`path`); records are counted from 1.
///
/// # Errors
/// What is wrong, with its line and column.
pub(crate) fn array(input: &mut dyn Read, path: &[&str], each: &mut Each<'_>) -> Result<(), Error> {
    let budget = Budget::default();
    let mut told = None;
    let mut reader = serde_json::Deserializer::from_reader(Metered {
        inner: BufReader::new(input),
        budget: budget.clone(),
    });
    let walk = Walk { path, state: &mut State { each, told: &mut told, budget: &budget, count: 0 } };
    let result = walk.deserialize(&mut reader).and_then(|found| reader.end().map(|()| found));
    match (told, result) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(fault(error)),
        (None, Ok(false)) => {
            Err(Error::data(format!("there is no field {:?} to take the records from", path.join("."))))
        }
        (None, Ok(true)) => Ok(()),
    }
}

/// One record out of one line of NDJSON.
///
/// # Errors
/// What is wrong, without the line.
pub(crate) fn line(text: &str) -> Result<Record, Error> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let record = reader.deserialize_map(OneRecord).map_err(|e| Error::data(said(&e)))?;
    reader.end().map_err(|e| Error::data(said(&e)))?;
    Ok(record)
}

fn fault(error: serde_json::Error) -> Error {
    if error.is_io() {
        let error = io::Error::from(error);
        return match error.get_ref().and_then(|inner| inner.downcast_ref::<TooLong>()) {
            Some(TooLong) => Error::data(TooLong.to_string()),
            None => Error::Io(error),
        };
    }
    let (line, column) = (error.line(), error.column());
    Error::data(said(&error)).at(&format!("line {line}, column {column}"))
}

/// The parser's words without its place and without what stood there.
fn said(error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "the JSON ends too early: it is cut short".to_owned();
    }
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    match text.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected ")) {
        Some((_, expected)) => format!("expected {expected}"),
        None => text.to_owned(),
    }
}

/// How many bytes the record under way may still have.
#[derive(Debug, Clone, Default)]
struct Budget(Rc<Cell<usize>>);

#[derive(Debug, thiserror::Error)]
#[error("a record is longer than 1 MiB")]
struct TooLong;

struct Metered<'a> {
    inner: BufReader<&'a mut dyn Read>,
    budget: Budget,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let used = self.budget.0.get() + count;
        self.budget.0.set(used);
        if used > MAX_RECORD { Err(io::Error::other(TooLong)) } else { Ok(count) }
    }
}

struct State<'s, 'e> {
    each: &'s mut Each<'e>,
    told: &'s mut Option<Error>,
    budget: &'s Budget,
    count: u64,
}

/// Goes down the path to the array; true if it was there.
struct Walk<'p, 's, 't, 'e> {
    path: &'p [&'p str],
    state: &'t mut State<'s, 'e>,
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_, '_, '_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        if self.path.is_empty() {
            deserializer.deserialize_seq(self)
        } else {
            deserializer.deserialize_map(self)
        }
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_, '_, '_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.path.is_empty() { "an array of objects" } else { "an object" })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<bool, A::Error> {
        self.state.budget.0.set(0);
        while let Some(record) = items.next_element_seed(OneRecord)? {
            self.state.count += 1;
            self.state.budget.0.set(0);
            if let Err(error) = (self.state.each)(self.state.count, record) {
                *self.state.told = Some(error);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(true)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<bool, A::Error> {
        let (here, below) = self.path.split_first().unwrap_or((&"", &[]));
        let mut found = false;
        while let Some(name) = fields.next_key::<String>()? {
            if name == *here && !found {
                found = fields.next_value_seed(Walk { path: below, state: &mut *self.state })?;
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// An object with its fields in their order.
struct OneRecord;

impl<'de> DeserializeSeed<'de> for OneRecord {
    type Value = Record;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Record, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OneRecord {
    type Value = Record;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Record, A::Error> {
        let mut record: Vec<(String, Value)> = Vec::new();
        while let Some((name, value)) = fields.next_entry::<String, Value>()? {
            if record.len() == MAX_FIELDS {
                return Err(A::Error::custom(format!("a record has more than {MAX_FIELDS} fields")));
            }
            if record.iter().any(|(other, _)| *other == name) {
                return Err(A::Error::custom("a record has the same field twice"));
            }
            record.push((name, value));
        }
        Ok(Record(record))
    }
}
