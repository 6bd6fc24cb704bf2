//! The whole JSON Schema of the configuration: `agent.toml` with the settings of every kind of connector.

use passerelle_connectors::REGISTRY;
use serde_json::{Map, Value, json};

/// What a definition's address begins with.
const DEFINITIONS: &str = "#/$defs/";

/// The JSON Schema (2020-12) of `agent.toml`. A resource has the keys that all have and those of its connector, no other.
#[must_use]
pub fn config_schema() -> Value {
    let mut schema = passerelle_config::schema();
    let Some(definitions) = schema.get_mut("$defs").and_then(Value::as_object_mut) else { return schema };
    let mut kinds = Vec::new();
    for entry in REGISTRY {
        let Value::Object(mut settings) = entry.settings_schema() else { continue };
        let own = match settings.remove("$defs") {
            Some(Value::Object(own)) => own,
            Some(_) | None => Map::new(),
        };
        let name = |definition: &str| format!("{}_{definition}", entry.name);
        let shared = |definition: &str| definitions.get(definition) == own.get(definition);
        // Two kinds may call different tables by one name.
        let rename = |definition: &str| {
            if shared(definition) { definition.to_owned() } else { name(definition) }
        };
        let mut added: Vec<(String, Value)> = Vec::new();
        for (definition, table) in own.iter().filter(|(definition, _)| !shared(definition)) {
            added.push((name(definition), refer(table.clone(), &rename)));
        }
        // Closed below, together with the keys that every resource has.
        for key in ["$schema", "title", "additionalProperties"] {
            settings.remove(key);
        }
        let text = format!("Keys of a resource with `connector = \"{}\"`.", entry.name);
        settings.insert("description".to_owned(), text.into());
        added.push((entry.name.to_owned(), refer(Value::Object(settings), &rename)));
        definitions.extend(added);
        kinds.push(entry.name);
    }
    if let Some(resource) = definitions.get_mut("Resource").and_then(Value::as_object_mut) {
        let branches: Vec<Value> = kinds
            .iter()
            .map(|kind| {
                json!({
                    "if": { "required": ["connector"], "properties": { "connector": { "const": kind } } },
                    "then": { "$ref": format!("{DEFINITIONS}{kind}") },
                })
            })
            .collect();
        resource.insert("allOf".to_owned(), branches.into());
        resource.insert("unevaluatedProperties".to_owned(), false.into());
        if let Some(connector) = resource.get_mut("properties").and_then(|all| all.get_mut("connector")) {
            connector["enum"] = kinds.into();
        }
    }
    schema
}

/// The same schema with its references to definitions renamed.
fn refer(schema: Value, rename: &impl Fn(&str) -> String) -> Value {
    match schema {
        Value::Object(table) => {
            let renamed = |(key, value): (String, Value)| match (key.as_str(), &value) {
                ("$ref", Value::String(to)) => {
                    let to =
                        to.strip_prefix(DEFINITIONS).map(|name| format!("{DEFINITIONS}{}", rename(name)));
                    (key, to.map_or(value, Value::String))
                }
                _ => (key, refer(value, rename)),
            };
            Value::Object(table.into_iter().map(renamed).collect())
        }
        Value::Array(items) => items.into_iter().map(|item| refer(item, rename)).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Every reference of a schema.
    fn references(schema: &Value, found: &mut BTreeSet<String>) {
        match schema {
            Value::Object(table) => {
                if let Some(Value::String(to)) = table.get("$ref") {
                    found.insert(to.clone());
                }
                table.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_kind_of_connector_has_its_keys_with_descriptions_and_every_reference_leads_somewhere() {
        let schema = config_schema();
        let definitions = schema["$defs"].as_object().unwrap();
        for entry in REGISTRY {
            let keys = definitions[entry.name]["properties"].as_object().unwrap();
            assert!(keys.contains_key("url") && keys.len() > 5, "{}: {keys:?}", entry.name);
        }
        assert_eq!(
            schema["$defs"]["Resource"]["properties"]["connector"]["enum"],
            json!(["file", "http", "crm"])
        );
        assert_eq!(schema["$defs"]["http_RawAuth"]["properties"]["kind"]["enum"][0], "bearer");
        assert_eq!(schema["$defs"]["crm"]["properties"]["dialect"]["enum"][0], "rest");
        assert_eq!(schema["$defs"]["file"]["properties"]["max_sessions"]["default"], 4);
        let mut found = BTreeSet::new();
        references(&schema, &mut found);
        for to in &found {
            let name = to.strip_prefix(DEFINITIONS).unwrap_or_else(|| panic!("{to}"));
            assert!(definitions.contains_key(name), "{to} leads nowhere");
        }
        assert!(found.len() > 20, "{found:?}");
        for (name, table) in definitions {
            for (key, property) in table["properties"].as_object().into_iter().flatten() {
                assert!(property["description"].as_str().is_some_and(|text| text.len() > 5), "{name}.{key}");
            }
        }
    }
}
