//! Columns of what is written or read: a name, and where the value comes from.

use crate::mediations::rendering;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use std::fmt;

/// One column; in a definition its name alone, or a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its name, in a header and as a field.
    pub name: String,
    /// What is written in it: an expression of the template language over `record`; without it the field of this name.
    pub value: Option<String>,
    /// What is read from it; a text if nothing is said.
    pub kind: Kind,
}

/// What a column of CSV is read as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// As it stands. Amounts stay exact this way.
    #[default]
    Text,
    /// A number, with the dialect's decimal mark.
    Number,
    /// `true`, `false`, `1` or `0`.
    Boolean,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, rename = "type")]
    kind: Kind,
}

impl Column {
    /// A column that is its field.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), value: None, kind: Kind::Text }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.name.is_empty() || self.name.len() > 200 || self.name.chars().any(char::is_control) {
            return Err("name: must have 1 to 200 characters, and no control characters".to_owned());
        }
        match &self.value {
            Some(value) => rendering::check_expression(value).map_err(|why| format!("value: {why}")),
            None => Ok(()),
        }
    }
}

impl Serialize for Column {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.value.is_none() && self.kind == Kind::Text {
            return serializer.serialize_str(&self.name);
        }
        Table { name: self.name.clone(), value: self.value.clone(), kind: self.kind }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Column {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Column;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a column's name, or a table with name, value and type")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Column, E> {
                Ok(Column::named(name))
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Column, A::Error> {
                let Table { name, value, kind } = Table::deserialize(MapAccessDeserializer::new(fields))?;
                Ok(Column { name, value, kind })
            }
        }

        deserializer.deserialize_any(Either)
    }
}
