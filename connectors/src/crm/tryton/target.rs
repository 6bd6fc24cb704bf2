//! What a field is at Tryton: a column, or a column of a row of one of the record's lists.
//!
//! | written | means |
//! |---|---|
//! | `name` | the column |
//! | `!active` | the opposite of the column, true or false |
//! | `lang.code` | the column `code` of the record that `lang` leads to; written by looking that record up |
//! | `addresses[].city` | of the first row of the list |
//! | `addresses[].country.code` | both |
//! | `contact_mechanisms[type=email].value` | of the first row with this type; clearing it deletes the row |

use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Where a field's value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// The list, where it is in one.
    pub(super) list: Option<List>,
    /// The column.
    pub(super) column: String,
    /// The column of the record that `column` leads to.
    pub(super) reference: Option<String>,
    /// The opposite of the column.
    pub(super) negated: bool,
}

/// A row of a list of the record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct List {
    /// The list's column.
    pub(super) name: String,
    /// The row is the first one whose column has this value.
    pub(super) filter: Option<(String, String)>,
}

impl Target {
    /// Reads what the configuration says.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (negated, text) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (list, path) = match text.split_once('[') {
            None => (None, text),
            Some((name, rest)) => {
                let (filter, path) = rest.split_once("].")?;
                let filter = match filter {
                    "" => None,
                    filter => {
                        let (column, value) = filter.split_once('=')?;
                        Some((word(column)?, value.to_owned()))
                    }
                };
                (Some(List { name: word(name)?, filter }), path)
            }
        };
        let (column, reference) = match path.split_once('.') {
            Some((column, reference)) => (column, Some(word(reference)?)),
            None => (path, None),
        };
        let column = word(column)?;
        (!negated || (list.is_none() && reference.is_none())).then_some(Self {
            list,
            column,
            reference,
            negated,
        })
    }

    /// The names that have to be read for it.
    pub(super) fn names(&self, names: &mut BTreeSet<String>) {
        let column = match &self.reference {
            Some(reference) => format!("{}.{reference}", self.column),
            None => self.column.clone(),
        };
        match &self.list {
            None => drop(names.insert(column)),
            Some(List { name, filter }) => {
                names.insert(format!("{name}.{column}"));
                if let Some((column, _)) = filter {
                    names.insert(format!("{name}.{column}"));
                }
            }
        }
    }

    /// Its value in a record as it was read; `None` if it was not read.
    pub(super) fn value(&self, record: &Value) -> Option<Value> {
        let place = match &self.list {
            None => record,
            Some(list) => match list.row(record) {
                Some(row) => row,
                None => return record.get(format!("{}.", list.name)).map(|_| Value::Null),
            },
        };
        let value = match &self.reference {
            None => place.get(&self.column)?.clone(),
            Some(reference) => {
                let led = place.get(format!("{}.", self.column))?;
                led.get(reference).cloned().unwrap_or(Value::Null)
            }
        };
        Some(if self.negated { opposite(&value) } else { value })
    }

    /// A clause that finds records of this value, already in the wire's form; of none, an empty text counts as none.
    pub(super) fn clause(&self, value: &Value) -> Value {
        let value = if self.negated { opposite(value) } else { value.clone() };
        let path = match &self.reference {
            Some(reference) => format!("{}.{reference}", self.column),
            None => self.column.clone(),
        };
        match &self.list {
            None if value.is_null() && self.reference.is_none() => {
                json!(["OR", [path, "=", null], [path, "=", ""]])
            }
            None => json!([path, "=", value]),
            Some(List { name, filter: None }) => json!([format!("{name}.{path}"), "=", value]),
            Some(List { name, filter: Some((column, wanted)) }) => {
                json!([name, "where", [[column, "=", wanted], [path, "=", value]]])
            }
        }
    }
}

impl List {
    /// The row in a record as it was read.
    pub(super) fn row<'a>(&self, record: &'a Value) -> Option<&'a Value> {
        let rows = record.get(format!("{}.", self.name))?.as_array()?;
        rows.iter().find(|row| {
            self.filter
                .as_ref()
                .is_none_or(|(column, wanted)| row.get(column).and_then(Value::as_str) == Some(wanted))
        })
    }

    /// What is done to the row so that it has these values: nothing, where there is none and there is nothing to say.
    pub(super) fn action(&self, record: &Value, values: Map<String, Value>) -> Option<Value> {
        let cleared = values.values().all(Value::is_null);
        let row = self.row(record).and_then(|row| row.get("id")).and_then(Value::as_i64);
        match (row, cleared) {
            // What makes the row the one that it is stays, and a row of that alone is no row.
            (Some(id), true) if self.filter.is_some() => Some(json!(["delete", [id]])),
            (Some(id), _) => Some(json!(["write", [id], values])),
            (None, true) => None,
            (None, false) => {
                let mut values = values;
                if let Some((column, wanted)) = &self.filter {
                    values.insert(column.clone(), Value::from(wanted.as_str()));
                }
                Some(json!(["create", [values]]))
            }
        }
    }
}

/// Databases without booleans give 0 and 1.
fn opposite(value: &Value) -> Value {
    match value {
        Value::Bool(flag) => Value::Bool(!flag),
        Value::Number(number) => Value::Bool(number.as_i64() == Some(0)),
        Value::Null => Value::Bool(true),
        Value::String(_) | Value::Array(_) | Value::Object(_) => value.clone(),
    }
}

/// A name of Tryton's.
fn word(text: &str) -> Option<String> {
    let sound = text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    sound.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::Target;
    use serde_json::{Map, Value, json};
    use std::collections::BTreeSet;

    fn names(text: &str) -> Vec<String> {
        let mut names = BTreeSet::new();
        Target::parse(text).unwrap().names(&mut names);
        names.into_iter().collect()
    }

    #[test]
    fn a_field_is_read_from_where_it_is() {
        let record = json!({
            "name": "Bob", "active": 1, "lang.": null,
            "addresses.": [{ "id": 2, "city": "Paris", "country.": { "id": 7, "code": "FR" } }],
            "contact_mechanisms.": [{ "id": 4, "type": "phone", "value": "1" }, { "id": 5, "type": "email", "value": "b@ex.org" }],
        });
        for (target, expected) in [
            ("name", json!("Bob")),
            ("!active", json!(false)),
            ("lang.code", Value::Null),
            ("addresses[].city", json!("Paris")),
            ("addresses[].country.code", json!("FR")),
            ("contact_mechanisms[type=email].value", json!("b@ex.org")),
            ("contact_mechanisms[type=fax].value", Value::Null),
        ] {
            assert_eq!(Target::parse(target).unwrap().value(&record), Some(expected), "{target}");
        }
        assert_eq!(Target::parse("nope").unwrap().value(&record), None);
        assert_eq!(
            names("contact_mechanisms[type=email].value"),
            ["contact_mechanisms.type", "contact_mechanisms.value"]
        );
        assert_eq!(names("addresses[].country.code"), ["addresses.country.code"]);
        assert_eq!(names("lang.code"), ["lang.code"]);
    }

    #[test]
    fn what_is_no_target_is_found_when_the_configuration_is_read() {
        for text in
            ["", "a b", "a[b].c", "a[]", "a[].", "[x=y].c", "a.b.c", "!a.b", "!a[].b", "a[b=c]d", "1a"]
        {
            assert_eq!(Target::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_row_is_made_changed_or_deleted() {
        let list = Target::parse("contact_mechanisms[type=email].value").unwrap().list.unwrap();
        let there = json!({ "contact_mechanisms.": [{ "id": 5, "type": "email", "value": "old" }] });
        let none = json!({ "contact_mechanisms.": [] });
        let values = |value: Value| Map::from_iter([("value".to_owned(), value)]);
        assert_eq!(
            list.action(&there, values(json!("new"))),
            Some(json!(["write", [5], { "value": "new" }]))
        );
        assert_eq!(list.action(&there, values(Value::Null)), Some(json!(["delete", [5]])));
        assert_eq!(
            list.action(&none, values(json!("new"))),
            Some(json!(["create", [{ "type": "email", "value": "new" }]]))
        );
        assert_eq!(list.action(&none, values(Value::Null)), None);
        let address = Target::parse("addresses[].city").unwrap().list.unwrap();
        let there = json!({ "addresses.": [{ "id": 2, "city": "Paris" }] });
        let city = |value: Value| Map::from_iter([("city".to_owned(), value)]);
        assert_eq!(address.action(&there, city(Value::Null)), Some(json!(["write", [2], { "city": null }])));
    }
}
