//! What a change changes: the keys whose values differ between two definitions.

use serde::Serialize;
use serde_json::Value;

/// One difference.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Difference {
    /// The key, as `steps[1].params.path`; arrays count from 1.
    pub path: String,
    /// What stood there; null: nothing.
    #[schema(value_type = Value)]
    pub before: Option<Value>,
    /// What stands there now; null: nothing.
    #[schema(value_type = Value)]
    pub after: Option<Value>,
}

/// All differences, in the order of the keys.
#[must_use]
pub fn differences(before: &Value, after: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare("", Some(before), Some(after), &mut found);
    found
}

fn compare(path: &str, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<Difference>) {
    match (before, after) {
        (before, after) if before == after => {}
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let added = b.keys().filter(|key| !a.contains_key(*key));
            for key in a.keys().chain(added) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, a.get(key), b.get(key), found);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            for index in 0..a.len().max(b.len()) {
                compare(&format!("{path}[{}]", index + 1), a.get(index), b.get(index), found);
            }
        }
        (before, after) => {
            found.push(Difference { path: path.to_owned(), before: before.cloned(), after: after.cloned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_difference_is_told_by_its_deepest_key() {
        let before = json!({"label": "a", "steps": [{"name": "x", "params": {"path": "1"}}], "same": [1]});
        let after = json!({"label": "b", "steps": [{"name": "x", "params": {"path": "2"}}, {"name": "y"}], "same": [1]});
        let told: Vec<String> = differences(&before, &after)
            .iter()
            .map(|d| format!("{}: {:?} -> {:?}", d.path, d.before.is_some(), d.after.is_some()))
            .collect();
        assert_eq!(
            told,
            ["label: true -> true", "steps[1].params.path: true -> true", "steps[2]: false -> true",]
        );
        assert!(differences(&before, &before).is_empty());
    }
}
