//! The configuration as data to be shown to others: without comments, and without what could be a secret in the wrong
//! place. Secrets stand by reference in it anyhow; the references are kept, what they refer to is not read.

use crate::files;
use serde_json::{Map, Value, json};
use std::path::Path;

const HIDDEN: &str = "[redacted]";
/// A text under a key with one of these in its name is hidden unless it is a reference.
const SECRET_KEYS: [&str; 7] = ["password", "passphrase", "secret", "token", "credential", "value", "key"];

/// Every file of the configuration folder `dir` as JSON, by its name.
#[must_use]
pub fn redacted(dir: &Path) -> Value {
    let mut all = Map::new();
    let mut paths = vec![dir.join("agent.toml")];
    paths.extend(files::list_resources(dir).unwrap_or_default());
    for path in paths {
        let name = path.strip_prefix(dir).unwrap_or(&path).display().to_string();
        let content = match files::read(&path) {
            // Not the parser's own words: they could quote a secret.
            Ok(text) => {
                toml::from_str::<Value>(&text).map_or_else(|_| json!("not valid TOML"), |v| redact("", v))
            }
            Err(finding) => json!(finding.message),
        };
        all.insert(name, content);
    }
    Value::Object(all)
}

fn redact(key: &str, value: Value) -> Value {
    match value {
        Value::Object(table) => {
            let reference = table.len() == 1 && table.keys().all(|key| key == "file" || key == "env");
            if reference {
                return Value::Object(table);
            }
            let redacted = table.into_iter().map(|(key, value)| (key.clone(), redact(&key, value)));
            Value::Object(redacted.collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(|item| redact(key, item)).collect()),
        // These name files.
        Value::String(text) if key == "job_keys" => Value::String(text),
        Value::String(_) | Value::Number(_) if SECRET_KEYS.iter().any(|part| key.contains(part)) => {
            json!(HIDDEN)
        }
        Value::String(text) => Value::String(without_credentials(text)),
        other => other,
    }
}

/// A URL without user name, password and query.
fn without_credentials(text: String) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (hidden, host) = match authority.rsplit_once('@') {
        Some((_, host)) => (format!("{HIDDEN}@"), host),
        None => (String::new(), authority),
    };
    let (path, query) = path.split_at(path.find(['?', '#']).unwrap_or(path.len()));
    let query = if query.is_empty() { "" } else { "?[redacted]" };
    format!("{scheme}://{hidden}{host}{path}{query}")
}

#[cfg(test)]
mod tests {
    use super::redacted;
    use serde_json::json;
    use std::fs;

    #[test]
    fn references_stay_and_everything_that_could_be_a_secret_goes() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("resources.d")).unwrap();
        let main = "# geheim-1\n[hub]\nurl = \"https://hub.example.com\"\nenrolment_token = { file = \"secrets/t\" }\n\
                    proxy = { url = \"http://u:geheim-2@p:3128/\", password = \"geheim-3\" }\n[trust]\njob_keys = [\"a.pem\"]\n";
        fs::write(dir.path().join("agent.toml"), main).unwrap();
        let more = "[resources.r]\nurl = \"https://r/x?sig=geheim-4\" # geheim-5\nmax_size = \"2GiB\"\n\
                    auth = { kind = \"api_key\", header = \"x-key\", value = 4711 }\n";
        fs::write(dir.path().join("resources.d/r.toml"), more).unwrap();
        fs::write(dir.path().join("resources.d/s.toml"), "geheim-6").unwrap();
        assert_eq!(
            redacted(dir.path()),
            json!({
                "agent.toml": {
                    "hub": {
                        "url": "https://hub.example.com",
                        "enrolment_token": { "file": "secrets/t" },
                        "proxy": { "url": "http://[redacted]@p:3128/", "password": "[redacted]" },
                    },
                    "trust": { "job_keys": ["a.pem"] },
                },
                "resources.d/r.toml": { "resources": { "r": {
                    "url": "https://r/x?[redacted]",
                    "max_size": "2GiB",
                    "auth": { "kind": "api_key", "header": "x-key", "value": "[redacted]" },
                } } },
                "resources.d/s.toml": "not valid TOML",
            })
        );
    }
}
