//! One TOML file as a tree of values that remember their places.
//!
//! The `toml` crate parses; its own deserializer is not used, because it borrows from the text, stops at the first
//! mistake and quotes the values it refuses.

use crate::{Finding, mapped};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};
use toml::de::{DeTable, DeValue};

/// The longest text that is looked at as a path.
const MAX_PATH: usize = 4096;

/// A configuration file's name and text, for turning offsets into lines and columns.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) file: PathBuf,
    pub(crate) text: String,
    /// Where each line but the first begins: a text with a mistake in each line would be counted through for each.
    lines: Vec<usize>,
}

/// How many mistakes of one kind are told: whoever makes more has sent something else.
pub(crate) const MAX_FINDINGS: usize = 1000;

impl Source {
    pub(crate) fn new(file: PathBuf, text: String) -> Self {
        let lines = text.match_indices('\n').map(|(at, _)| at + 1).collect();
        Self { file, text, lines }
    }

    /// A finding at a byte offset. Columns count characters.
    pub(crate) fn finding(&self, offset: usize, path: &str, message: impl Into<String>) -> Finding {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line = self.lines.partition_point(|start| *start <= before.len());
        let line_start = line.checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or(0);
        Finding {
            file: self.file.clone(),
            line: line + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
            path: path.to_owned(),
            message: message.into(),
        }
    }
}

/// A value and where it stands. A table under a `[header]` stands at its header.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) at: usize,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    Datetime,
    /// Only JSON has it.
    Null,
    Array(Vec<Node>),
    Table(Table),
}

/// The entries of a table by key.
pub(crate) type Table = BTreeMap<String, Entry>;

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Where the key stands.
    pub(crate) key_at: usize,
    pub(crate) node: Node,
}

impl Node {
    /// The value at a path such as `auth.token` or `allow[1].paths`; if there is none, the last value on the way.
    pub(crate) fn nearest(&self, path: &str) -> &Self {
        self.follow(path).unwrap_or_else(|nearest| nearest)
    }

    /// The value at a path.
    pub(crate) fn find(&self, path: &str) -> Option<&Self> {
        self.follow(path).ok()
    }

    fn follow(&self, path: &str) -> Result<&Self, &Self> {
        let mut node = self;
        for part in path.split('.') {
            let (key, indexes) = part.split_once('[').unwrap_or((part, ""));
            let Value::Table(table) = &node.value else { return Err(node) };
            node = &table.get(key).ok_or(node)?.node;
            for index in indexes.split('[').filter_map(|i| i.trim_end_matches(']').parse::<usize>().ok()) {
                let Value::Array(items) = &node.value else { return Err(node) };
                node = index.checked_sub(1).and_then(|i| items.get(i)).ok_or(node)?;
            }
        }
        Ok(node)
    }

    /// Writes the values without their places: what is said is the same if and only if the texts are.
    pub(crate) fn write_canonical(&self, out: &mut String) {
        match &self.value {
            Value::String(text) => *out += &format!("{text:?}"),
            Value::Integer(number) => *out += &number.to_string(),
            Value::Float(number) => *out += &format!("{number:?}"),
            Value::Bool(value) => *out += if *value { "true" } else { "false" },
            Value::Datetime => *out += "datetime",
            Value::Null => *out += "null",
            Value::Array(items) => {
                out.push('[');
                for item in items {
                    item.write_canonical(out);
                    out.push(',');
                }
                out.push(']');
            }
            Value::Table(table) => {
                out.push('{');
                for (key, entry) in table {
                    *out += &format!("{key:?}=");
                    entry.node.write_canonical(out);
                    out.push(',');
                }
                out.push('}');
            }
        }
    }

    /// The values that are paths as Windows writes them, with their places and what to say of them.
    fn paths_of_windows(&self, found: &mut Vec<(usize, String, String)>) {
        self.walk("", &mut |path, node| {
            if let Value::String(text) = &node.value
                && let Some(message) = mapped::windows(text)
            {
                found.push((node.at, path.to_owned(), message));
            }
        });
    }

    /// Shows every value with its path.
    fn walk(&self, path: &str, see: &mut dyn FnMut(&str, &Self)) {
        see(path, self);
        match &self.value {
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    item.walk(&format!("{path}[{}]", index + 1), see);
                }
            }
            Value::Table(table) => {
                for (key, entry) in table {
                    entry.node.walk(&join(path, key), see);
                }
            }
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Bool(_)
            | Value::Datetime
            | Value::Null => {}
        }
    }

    /// The files that the values name: those of secrets, there or not, and any other text that is a file's path.
    pub(crate) fn named_files(&self, dir: &Path, files: &mut BTreeSet<PathBuf>) {
        match &self.value {
            Value::String(text) => {
                if text.len() <= MAX_PATH && !text.contains("://") && dir.join(text).is_file() {
                    files.insert(dir.join(text));
                }
            }
            Value::Array(items) => items.iter().for_each(|item| item.named_files(dir, files)),
            Value::Table(table) => {
                for (key, entry) in table {
                    match &entry.node.value {
                        Value::String(text) if key == "file" => drop(files.insert(dir.join(text))),
                        _ => entry.node.named_files(dir, files),
                    }
                }
            }
            Value::Integer(_) | Value::Float(_) | Value::Bool(_) | Value::Datetime | Value::Null => {}
        }
    }

    /// The table's entries; none if it is something else.
    pub(crate) fn into_table(self) -> Option<Table> {
        match self.value {
            Value::Table(table) => Some(table),
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Bool(_)
            | Value::Datetime
            | Value::Null
            | Value::Array(_) => None,
        }
    }
}

/// `path.key`, with quotes around a key that is not bare.
pub(crate) fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    let dot = if path.is_empty() { "" } else { "." };
    if bare { format!("{path}{dot}{key}") } else { format!("{path}{dot}{key:?}") }
}

/// Parses a file. `None`: its syntax is broken beyond reading on.
pub(crate) fn parse(source: &Arc<Source>, findings: &mut Vec<Finding>) -> Option<Node> {
    let before = findings.len();
    if let Some(offset) = overlong_key(&source.text) {
        let message = format!("a dotted key has at most {MAX_KEY_PARTS} parts");
        findings.push(source.finding(offset, "syntax", message));
        return None;
    }
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    // A broken text leads nowhere, however many of its mistakes are told.
    let mut readable = errors.len() <= MAX_FINDINGS;
    for error in errors.into_iter().take(MAX_FINDINGS) {
        let span = error.span().unwrap_or(0..0);
        findings.push(if error.message() == "duplicate key" {
            let message = "set twice; keep one of the two";
            source.finding(span.start, &duplicate_path(&source.text, &span), message)
        } else {
            readable = false;
            let hint = windows_hint(&source.text, span.start);
            source.finding(span.start, "syntax", format!("not valid TOML: {}{hint}", error.message()))
        });
    }
    if !readable {
        // What follows a broken place is mostly its consequence: one broken line, one finding.
        let mut lines = BTreeSet::new();
        let mut at = 0;
        findings.retain(|finding| {
            at += 1;
            at <= before || lines.insert(finding.line)
        });
        return None;
    }
    let mut too_large = Vec::new();
    let root = Node { at: 0, value: convert_table(table.into_inner(), &mut too_large) };
    for offset in too_large.into_iter().take(MAX_FINDINGS) {
        findings.push(source.finding(
            offset,
            "syntax",
            "the number is too large: use at most 9223372036854775807",
        ));
    }
    let mut windows = Vec::new();
    root.paths_of_windows(&mut windows);
    findings.extend(
        windows.into_iter().take(MAX_FINDINGS).map(|(at, path, message)| source.finding(at, &path, message)),
    );
    Some(root)
}

/// Why a backslash is no good there, if the broken line has a path of Windows in quotes.
fn windows_hint(text: &str, at: usize) -> String {
    let start = text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |end| end + 1);
    let line = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let hint = line.split('"').skip(1).step_by(2).find_map(mapped::windows);
    hint.map_or(String::new(), |hint| format!("; {hint}"))
}

/// How many parts a dotted key may have; the tree below is walked recursively.
const MAX_KEY_PARTS: usize = 64;

/// The parser bounds the nesting of brackets but not of dotted keys: finds one that no honest file has.
fn overlong_key(text: &str) -> Option<usize> {
    let is_key =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '"' | '\'' | ' ' | '\t');
    let is_long = |key: &str| {
        key.rsplit(|c| !is_key(c)).next().unwrap_or_default().matches('.').count() >= MAX_KEY_PARTS
    };
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        let header = trimmed.strip_prefix('[').map(|rest| rest.split(']').next().unwrap_or_default());
        // A key stands before each '=': several in an inline table.
        let mut keys = line.rsplit('=').skip(1);
        if !trimmed.starts_with('#') && (header.is_some_and(is_long) || keys.any(is_long)) {
            return Some(offset);
        }
        offset += line.len();
    }
    None
}

/// The full path of a key that is set twice: its own text after the last header above it.
fn duplicate_path(text: &str, span: &Range<usize>) -> String {
    let key = text.get(span.clone()).unwrap_or_default();
    let start = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
    let line = text[start..].lines().next().unwrap_or_default();
    let header = |line: &str| {
        let inner = line.trim().strip_prefix('[')?;
        Some(inner.trim_start_matches('[').split(']').next()?.trim().to_owned())
    };
    header(line).unwrap_or_else(|| match text[..start].lines().rev().find_map(header) {
        Some(table) => format!("{table}.{key}"),
        None => key.to_owned(),
    })
}

fn convert_table(table: DeTable<'_>, too_large: &mut Vec<usize>) -> Value {
    let entries = table.into_iter().map(|(key, value)| {
        let key_at = key.span().start;
        let at = value.span().start;
        let node = Node { at, value: convert(value.into_inner(), at, too_large) };
        (key.into_inner().into_owned(), Entry { key_at, node })
    });
    Value::Table(entries.collect())
}

fn convert(value: DeValue<'_>, at: usize, too_large: &mut Vec<usize>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(integer) => {
            Value::Integer(i64::from_str_radix(integer.as_str(), integer.radix()).unwrap_or_else(|_| {
                too_large.push(at);
                i64::MAX
            }))
        }
        DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(boolean) => Value::Bool(boolean),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(items) => {
            let items = items.into_iter().map(|item| {
                let at = item.span().start;
                Node { at, value: convert(item.into_inner(), at, too_large) }
            });
            Value::Array(items.collect())
        }
        DeValue::Table(table) => convert_table(table, too_large),
    }
}
