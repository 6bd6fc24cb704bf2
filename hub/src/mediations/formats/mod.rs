//! How flows are written: records in CSV dialects, JSON, NDJSON and XML, in several encodings.
//!
//! Records are read and written one at a time, so memory stays constant whatever a flow's size. Reading is strict: a file
//! that was cut short (an open quote, a line with fewer fields than the others, half a character) is an error that names
//! line and field, since *every file replaces all of the data* at whoever takes it.

pub(crate) mod columns;
pub(crate) mod csv;
pub(crate) mod decimal;
pub(crate) mod encoding;
pub(crate) mod json;
pub(crate) mod layout;
pub(crate) mod read;
pub(crate) mod write;
pub(crate) mod xml;

#[cfg(test)]
pub(super) mod tests;

use serde_json::{Map, Value};
use std::io;

/// The longest record, as text.
pub(crate) const MAX_RECORD: usize = 1024 * 1024;
/// The most fields of a record.
pub(crate) const MAX_FIELDS: usize = 2048;

/// Named values in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Record(pub(crate) Vec<(String, Value)>);

impl Record {
    /// A field's value.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    /// The same as a JSON object.
    pub(crate) fn into_json(self) -> Value {
        Value::Object(self.0.into_iter().collect::<Map<_, _>>())
    }
}

impl serde::Serialize for Record {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// Why a flow cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// What is in it does not fit; the sentence names line and field, and never their content.
    #[error("{0}")]
    Data(String),
    /// The disk.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What the hub needs for it is not there now; the sentence may be public.
    #[error("{0}")]
    Passing(String),
}

impl Error {
    pub(crate) fn data(message: impl Into<String>) -> Self {
        Self::Data(message.into())
    }

    /// The same with the place before it.
    pub(crate) fn at(self, place: &str) -> Self {
        match self {
            Self::Data(message) => Self::Data(format!("{place}: {message}")),
            error @ (Self::Io(_) | Self::Passing(_)) => error,
        }
    }
}
