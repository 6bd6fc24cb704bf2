//! Documents that are no configuration folder: one TOML text or JSON value, read as strictly and with the same findings.
//!
//! A part of a document is a [`Section`] again, so that whoever owns a part reads it alone: the word that tells its kind is
//! looked at first, and the rest keeps its places.

use crate::{
    Diagnostics, Finding, Section,
    hint::unknown_value,
    tree::{self, Entry, Node, Source, Table, Value},
};
use std::{path::Path, sync::Arc};

impl Section {
    /// A whole TOML text; `file` is how findings name it. `None`: its syntax is broken, as the findings say.
    pub fn of_toml(file: &Path, text: &str, diagnostics: &mut Diagnostics) -> Option<Self> {
        let source = Arc::new(Source::new(file.to_owned(), text.to_owned()));
        let mut findings = Vec::new();
        let root = tree::parse(&source, &mut findings);
        findings.into_iter().for_each(|finding| diagnostics.push(finding));
        root.map(|node| Self::new("", String::new(), node, source, &[]))
    }

    /// A JSON value; its findings name keys, and no places.
    #[must_use]
    pub fn of_json(value: &serde_json::Value) -> Self {
        let source = Arc::new(Source::new("body".into(), String::new()));
        Self::new("", String::new(), node_of(value), source, &[])
    }

    /// The part under a key, if there is one.
    #[must_use]
    pub fn part(&self, key: &str) -> Option<Self> {
        let node = self.node().find(key)?.clone();
        Some(self.below(key, node))
    }

    /// The items of the array under a key, one section each; nothing if there is no such key or it is no array, which
    /// becomes a finding.
    pub fn parts(&self, key: &str, diagnostics: &mut Diagnostics) -> Vec<Self> {
        let Some(node) = self.node().find(key) else { return Vec::new() };
        let Value::Array(items) = &node.value else {
            diagnostics.push(self.finding(key, "expected an array of tables"));
            return Vec::new();
        };
        let item = |(index, item): (usize, &Node)| self.below(&format!("{key}[{}]", index + 1), item.clone());
        items.iter().enumerate().map(item).collect()
    }

    /// Parts it: the keys of `keys`, and the rest. Both know the other's keys when one is misspelt.
    #[must_use]
    pub fn split(self, keys: &'static [&'static str]) -> (Self, Self) {
        let (at, value) = (self.node().at, self.node().value.clone());
        let (mine, rest) = match value {
            Value::Table(table) => {
                let (mine, rest): (Table, Table) =
                    table.into_iter().partition(|(key, _)| keys.contains(&key.as_str()));
                (Value::Table(mine), Value::Table(rest))
            }
            // What reads it says that it is no table.
            other @ (Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Bool(_)
            | Value::Datetime
            | Value::Null
            | Value::Array(_)) => (other.clone(), other),
        };
        (self.with(Node { at, value: mine }, &[]), self.with(Node { at, value: rest }, keys))
    }

    /// The word under `key`, which has to be one of `known`.
    pub fn word(
        &self,
        key: &str,
        known: &'static [&'static str],
        diagnostics: &mut Diagnostics,
    ) -> Option<&'static str> {
        match self.text(key) {
            Some(text) => {
                let found = known.iter().find(|word| **word == text).copied();
                if found.is_none() {
                    diagnostics.push(self.finding(key, unknown_value(text, known)));
                }
                found
            }
            None => {
                let names: Vec<_> = known.iter().map(|name| format!("\"{name}\"")).collect();
                let found = if self.has(key) { "expected a string" } else { "missing; this key is required" };
                diagnostics.push(self.finding(key, format!("{found}: one of {}", names.join(", "))));
                None
            }
        }
    }
}

/// A finding of a document that was sent as JSON: it has no place, only a path.
#[must_use]
pub fn without_place(finding: &Finding) -> String {
    match finding.path.as_str() {
        "" => finding.message.clone(),
        path => format!("{path}: {}", finding.message),
    }
}

fn node_of(value: &serde_json::Value) -> Node {
    use serde_json::Value as Json;
    let value = match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(integer) => Value::Integer(integer),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(text.clone()),
        Json::Array(items) => Value::Array(items.iter().map(node_of).collect()),
        Json::Object(object) => {
            let entry =
                |(key, value): (&String, &Json)| (key.clone(), Entry { key_at: 0, node: node_of(value) });
            Value::Table(object.iter().map(entry).collect())
        }
    };
    Node { at: 0, value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rest {
        size: Option<u8>,
        note: Option<String>,
    }

    fn told(diagnostics: &Diagnostics) -> Vec<String> {
        diagnostics.findings().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_part_is_read_alone_and_its_findings_keep_their_places() {
        let text = "[[step]]\nkind = \"a\"\nname = \"x\"\nsize = 300\nnam = 1\n[[step]]\nkind = \"other\"\n";
        let mut diagnostics = Diagnostics::default();
        let document = Section::of_toml(Path::new("m.toml"), text, &mut diagnostics).unwrap();
        for step in document.parts("step", &mut diagnostics) {
            let kind = step.word("kind", &["a", "b"], &mut diagnostics);
            let (_, rest) = step.split(&["kind", "name"]);
            let read: Option<Rest> = rest.parse(&mut diagnostics);
            assert_eq!(read.is_none(), kind.is_some());
        }
        diagnostics.sort();
        assert_eq!(
            told(&diagnostics),
            [
                "m.toml:4:8: step[1].size: expected an integer from 0 to 255, found 300",
                "m.toml:5:1: step[1].nam: unknown key; did you mean \"name\"? known keys: kind, name, note, size",
                "m.toml:7:8: step[2].kind: unknown value; expected one of \"a\", \"b\"",
            ]
        );
    }

    #[test]
    fn json_is_read_with_the_same_strictness_and_keeps_its_nulls() {
        let mut diagnostics = Diagnostics::default();
        let section = Section::of_json(&serde_json::json!({"size": 7, "note": null}));
        let rest: Rest = section.parse(&mut diagnostics).unwrap();
        assert_eq!((rest.size, rest.note), (Some(7), None));
        let value = serde_json::json!({"a": [null, 1, -2.5, "t"], "b": {"c": null}});
        let read: serde_json::Value = Section::of_json(&value).parse(&mut diagnostics).unwrap();
        assert_eq!(read, value);
        assert!(diagnostics.is_empty(), "{diagnostics}");
        let wrong = Section::of_json(&serde_json::json!({"size": -1}));
        assert!(wrong.parse::<Rest>(&mut diagnostics).is_none());
        let finding = diagnostics.findings().first().unwrap();
        assert_eq!(without_place(finding), "size: expected an integer from 0 to 255, found -1");
    }
}
