//! The JSON Schema of `agent.toml`, for editors.

use crate::raw;
use serde_json::Value;

/// The JSON Schema (2020-12) of `agent.toml`. A resource's own keys depend on its connector and are left open: whoever
/// knows the connectors adds them.
#[must_use]
pub fn schema() -> Value {
    without_null(schemars::schema_for!(raw::File).to_value())
}

/// A schema made of Rust types, for TOML: an optional key is left out there, never null.
#[must_use]
pub fn without_null(mut schema: Value) -> Value {
    remove_null(&mut schema);
    schema
}

/// TOML has no null: an optional key is left out, so its type is just its type.
fn remove_null(schema: &mut Value) {
    let null = Value::from("null");
    if let Value::Object(object) = schema {
        if let Some(Value::Array(types)) = object.get_mut("type") {
            types.retain(|name| *name != null);
            if let [only] = &types[..] {
                let only = only.clone();
                object.insert("type".to_owned(), only);
            }
        }
        if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
            choices.retain(|choice| choice["type"] != null);
            if let [Value::Object(only)] = &choices[..] {
                let only = only.clone();
                object.remove("anyOf");
                for (key, value) in only {
                    object.entry(key).or_insert(value);
                }
            }
        }
        object.values_mut().for_each(remove_null);
    } else if let Value::Array(items) = schema {
        items.iter_mut().for_each(remove_null);
    }
}

#[cfg(test)]
mod tests {
    use super::schema;
    use std::{collections::BTreeSet, fs, path::Path};

    /// Every key that the schema names, with the tables that have it.
    fn keys() -> BTreeSet<String> {
        let schema = schema();
        let tables =
            schema["$defs"].as_object().unwrap().values().chain([&schema, &schema["properties"]["hub"]]);
        let properties = tables.filter_map(|table| table["properties"].as_object());
        properties.flat_map(|properties| properties.keys().cloned()).collect()
    }

    fn text_of(files: &[&str]) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        files.iter().map(|file| fs::read_to_string(root.join(file)).unwrap()).collect()
    }

    #[test]
    fn the_schema_describes_every_key_and_refuses_unknown_ones() {
        let schema = schema();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["required"], serde_json::json!(["hub"]));
        assert_eq!(schema["$defs"]["Agent"]["properties"]["max_jobs"]["default"], 32);
        assert_eq!(schema["properties"]["hub"]["required"], serde_json::json!(["url"]));
        assert_eq!(schema["$defs"]["Proxy"]["required"], serde_json::json!(["url"]));
        assert_eq!(schema["$defs"]["Agent"]["properties"]["name"]["type"], "string");
        let grace = &schema["$defs"]["Agent"]["properties"]["shutdown_grace"];
        assert_eq!((&grace["$ref"], &grace["default"]), (&"#/$defs/Duration".into(), &"30s".into()));
        assert!(!schema.to_string().contains("null"), "{schema:#}");
        assert_eq!(schema["$defs"]["Rule"]["required"], serde_json::json!(["operations"]));
        // A resource has its connector's keys too.
        assert!(schema["$defs"]["Resource"].get("additionalProperties").is_none());
        for (name, table) in schema["$defs"].as_object().unwrap() {
            for (key, property) in table["properties"].as_object().into_iter().flatten() {
                assert!(property["description"].as_str().is_some_and(|text| text.len() > 5), "{name}.{key}");
            }
        }
        assert!(keys().len() >= 30, "{:?}", keys());
    }

    #[test]
    fn the_examples_load_and_show_every_key() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        let config = crate::load(&root).unwrap_or_else(|findings| panic!("{findings}"));
        let names: Vec<_> = config.resources.iter().map(|resource| resource.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "archive",
                "compta",
                "crm",
                "documents",
                "factures",
                "invoices",
                "loyalty",
                "orders-app",
                "partner",
                "returns",
                "stock"
            ]
        );
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        let text = text_of(&[
            "examples/agent.toml",
            "examples/resources.d/files.toml",
            "examples/resources.d/applications.toml",
            "examples/resources.d/crm.toml",
            "examples/resources.d/listeners.toml",
        ]);
        for key in keys() {
            let shown =
                [format!("\n{key} ="), format!("\n#{key} ="), format!(" {key} = "), format!("[{key}")];
            let as_table = text.contains(&format!(".{key}]"));
            assert!(
                as_table || shown.iter().any(|form| text.contains(form)),
                "the examples don't show {key}"
            );
        }
        // What is behind a '#' must be right as well.
        let all: String = fs::read_to_string(root.join("agent.toml"))
            .unwrap()
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("agent.toml"), all).unwrap();
        let config = crate::load(dir.path()).unwrap_or_else(|findings| panic!("{findings}"));
        assert!(
            config.hub.proxy.is_some() && config.log.classic.is_some() && !config.trust.job_keys.is_empty()
        );
    }

    #[test]
    fn the_reference_names_every_key() {
        let text = text_of(&["../docs/configuration.md"]);
        for key in keys() {
            assert!(text.contains(&format!("`{key}`")) || text.contains(&format!("`[{key}]`")), "{key}");
        }
    }
}
