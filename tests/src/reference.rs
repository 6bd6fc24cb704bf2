//! The reference of every configuration key, made of the JSON Schemas that the programs print.

use crate::{binary, run};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Schemas of tables of the same keys appear at several places; they are written once.
struct Writer<'a> {
    definitions: &'a Map<String, Value>,
    /// Where the keys of a definition were written first.
    written: BTreeMap<String, String>,
    text: String,
}

/// The document in the repository.
#[must_use]
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/en/configuration-reference.md")
}

/// What it should say today, by the programs beside this one.
///
/// # Panics
/// If a program does not print its schema.
#[must_use]
pub fn text() -> String {
    let mut text = HEAD.to_owned();
    for (title, program) in
        [("The agent: `agent.toml`, `resources.d/*.toml`", "passerelle-agent"), ("The hub", "passerelle-hub")]
    {
        let schema = schema(program);
        let none = Map::new();
        let definitions = schema["$defs"].as_object().unwrap_or(&none);
        let mut writer = Writer { definitions, written: BTreeMap::new(), text: String::new() };
        writer.table("", &schema);
        let description = schema["description"].as_str().unwrap_or_default().replace('\n', " ");
        let _never_fails = write!(text, "\n## {title}\n\n{description}\n{}", writer.text);
    }
    text
}

const HEAD: &str = "\
# Every configuration key

Made from the programs by `cargo run -p passerelle-tests --bin reference`; a test fails when it is out of date, so mend the comment in
the code instead. How the files work, what rules allow and examples: [configuration.md](../configuration.md) and
[hub.md](../hub.md#configuration-file). `passerelle-agent config schema` and `passerelle-hub config schema` print the same as JSON Schema,
for editors.

A *size* is a text such as `\"64MiB\"`, a *duration* one such as `\"30s\"`, `\"1h30m\"` or `\"7d\"`. A *secret* is never written here, but
referred to: `{ file = \"secrets/x\" }` or `{ env = \"X\" }`. `NAME` is a name of your own.
";

/// What a program says of its configuration.
///
/// # Panics
/// If it prints no schema.
#[must_use]
pub fn schema(program: &str) -> Value {
    let output = run(Command::new(binary(program)).args(["config", "schema"]));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a schema in JSON")
}

impl<'a> Writer<'a> {
    /// The schema that this one refers to, with its name; else itself.
    fn resolve(&self, schema: &'a Value) -> (Option<&'a str>, &'a Value) {
        let name = schema["$ref"].as_str().and_then(|to| to.strip_prefix("#/$defs/"));
        (name, name.and_then(|name| self.definitions.get(name)).unwrap_or(schema))
    }

    /// The keys of a table, and then those of the tables in it.
    fn table(&mut self, path: &str, schema: &'a Value) {
        let (name, schema) = self.resolve(schema);
        if let Some(name) = name {
            if let Some(first) = self.written.get(name) {
                let _never_fails = write!(self.text, "\n### `{path}`\n\nThe same keys as `{first}`.\n");
                return;
            }
            self.written.insert(name.to_owned(), path.to_owned());
        }
        self.keys(path, schema);
        // The kinds of a resource, which have more keys each.
        for branch in schema["allOf"].as_array().into_iter().flatten() {
            let kind = branch["if"]["properties"]["connector"]["const"].as_str().unwrap_or_default();
            let (_, own) = self.resolve(&branch["then"]);
            let _never_fails = write!(self.text, "\n### `{path}` with `connector = \"{kind}\"`\n");
            self.rows(path, own);
            self.below(path, own);
        }
    }

    fn keys(&mut self, path: &str, schema: &'a Value) {
        if path.is_empty() {
            // A file's own tables have sections of their own; what is no table stands first.
            if self.is_plain(schema) {
                self.rows(path, schema);
            }
        } else {
            let _never_fails = write!(self.text, "\n### `{path}`\n");
            self.rows(path, schema);
        }
        self.below(path, schema);
    }

    /// Whether any key of a table is no table.
    fn is_plain(&self, schema: &'a Value) -> bool {
        properties(schema).any(|(_, property)| self.inner(property).is_none())
    }

    fn rows(&mut self, path: &str, schema: &'a Value) {
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        self.text.push_str("\n| key | type | default | |\n|---|---|---|---|\n");
        for (key, property) in properties(schema) {
            if path.is_empty() && self.inner(property).is_some() {
                continue;
            }
            let kind = self.kind(property);
            let default = match property.get("default") {
                Some(default) => format!("`{default}`"),
                None if required.contains(&key) => "required".to_owned(),
                None => String::new(),
            };
            let text =
                property["description"].as_str().unwrap_or_default().replace('\n', " ").replace('|', "\\|");
            let _never_fails = writeln!(self.text, "| `{key}` | {kind} | {default} | {text} |");
        }
    }

    fn below(&mut self, path: &str, schema: &'a Value) {
        for (key, property) in properties(schema) {
            if let Some((form, inner)) = self.inner(property) {
                let path = if path.is_empty() {
                    form.replace("KEY", key)
                } else {
                    format!("{path}.{}", form.replace("KEY", key))
                };
                self.table(&path, inner);
            }
        }
    }

    /// The table that a key holds, alone, by name or in a list, and how it is written.
    fn inner(&self, property: &'a Value) -> Option<(&'static str, &'a Value)> {
        let has_keys = |schema: &'a Value| self.resolve(schema).1["properties"].is_object();
        if has_keys(property) {
            return Some(("KEY", property));
        }
        let (items, values) = (&property["items"], &property["additionalProperties"]);
        if has_keys(items) {
            return Some(("KEY[]", items));
        }
        (values.is_object() && has_keys(values)).then_some(("KEY.NAME", values))
    }

    /// The type of a key, in words.
    fn kind(&self, property: &'a Value) -> String {
        match self.inner(property) {
            Some(("KEY", _)) => return "table, below".to_owned(),
            Some(("KEY[]", _)) => return "list of tables, below".to_owned(),
            Some(_) => return "tables by name, below".to_owned(),
            None => {}
        }
        let (name, schema) = self.resolve(property);
        match name {
            Some("Secret") => return "secret".to_owned(),
            Some("ByteSize") => return "size".to_owned(),
            Some("Duration") => return "duration".to_owned(),
            Some("KeyRotation") => return "duration or `\"off\"`".to_owned(),
            Some(_) | None => {}
        }
        let choices = schema["enum"].as_array().map(|all| all.iter().collect()).or_else(|| {
            let all = schema["oneOf"].as_array()?;
            all.iter().map(|one| one.get("const")).collect::<Option<Vec<_>>>()
        });
        if let Some(choices) = choices {
            return choices.iter().map(|one| format!("`{one}`")).collect::<Vec<_>>().join(", ");
        }
        let (least, most) = (&schema["minimum"], &schema["maximum"]);
        match schema["type"].as_str() {
            Some("integer") if most.is_null() => "integer".to_owned(),
            Some("integer") => format!("integer, {least} to {most}"),
            Some("number") => "number".to_owned(),
            Some("boolean") => "`true` or `false`".to_owned(),
            Some("array") => match schema["items"]["type"].as_str() {
                Some("integer") => "list of integers".to_owned(),
                _ if self.resolve(&schema["items"]).0 == Some("Secret") => "list of secrets".to_owned(),
                _ => "list of texts".to_owned(),
            },
            Some("object") => "texts by name".to_owned(),
            Some(_) => "text".to_owned(),
            None => "see right".to_owned(),
        }
    }
}

fn properties(schema: &Value) -> impl Iterator<Item = (&str, &Value)> {
    schema["properties"].as_object().into_iter().flatten().map(|(key, property)| (key.as_str(), property))
}
