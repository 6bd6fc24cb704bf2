//! Rules about entities, fields and calls of a CRM, asked as jobs ask: through the configuration and the connector.

use super::{Question, Spent};
use crate::settings::Settings;
use passerelle_protocol::{Code, Name};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

const RESOURCE: &str = r#"
[hub]
url = "https://hub.example.com"

[resources.crm]
connector = "crm"
dialect = "rest"
url = "http://127.0.0.1:1/api/"

[resources.crm.entities.contact]
target = "contacts/"
fields = { external_id = "guid", email = "email", name = "nom", salary = "salary" }

[resources.crm.entities.company]
target = "companies/"
fields = { external_id = "guid", name = "nom" }

[resources.crm.calls.recalculate]
method = "POST"
path = "recalculate/"

[resources.crm.calls.purge]
method = "POST"
path = "purge/"
"#;

fn settings(rules: &str) -> (TempDir, Result<Settings, String>) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("agent.toml"), format!("{RESOURCE}{rules}")).unwrap();
    let loaded = Settings::load(dir.path()).map_err(|stop| stop.to_string());
    (dir, loaded)
}

fn judge(settings: &Settings, operation: &str, params: &Value) -> Result<Vec<&'static str>, (Code, String)> {
    let resource: Name = "crm".parse().unwrap();
    let question = Question { resource: &resource, operation, params, has_payload: false, size: None };
    let judged = settings
        .judge(question, &Spent::new())
        .map_err(|refused| (refused.failure.code, refused.failure.message))?;
    Ok(["external_id", "email", "name", "salary"]
        .into_iter()
        .filter(|name| judged.visible.shows(name))
        .collect())
}

#[test]
fn a_rule_allows_its_entities_fields_and_calls_and_shows_no_others() {
    let (_dir, settings) = settings(
        "[[resources.crm.allow]]\noperations = [\"upsert\", \"get\", \"find\", \"changes\", \"delete\"]\n\
         entities = [\"contact\"]\nfields = [\"email\", \"name\"]\n\
         [[resources.crm.allow]]\noperations = [\"get\"]\nentities = [\"company\"]\nfields = [\"*\"]\n\
         [[resources.crm.allow]]\noperations = [\"call\"]\ncalls = [\"recalculate\"]\n",
    );
    let settings = settings.unwrap();
    let key = json!({ "external_id": "a" });
    let upsert = |fields: Value| json!({ "entity": "contact", "key": key, "fields": fields });
    // A key finds its record; it is shown only where it is listed.
    assert_eq!(judge(&settings, "upsert", &upsert(json!({ "email": "a" }))).unwrap(), ["email", "name"]);
    assert_eq!(
        judge(&settings, "get", &json!({ "entity": "contact", "key": key })).unwrap(),
        ["email", "name"]
    );
    assert_eq!(judge(&settings, "delete", &json!({ "entity": "contact", "id": "1" })).unwrap().len(), 2);
    assert_eq!(judge(&settings, "get", &json!({ "entity": "company", "id": "1" })).unwrap().len(), 4);
    assert!(judge(&settings, "call", &json!({ "name": "recalculate" })).is_ok());
    for (operation, params, says) in [
        ("upsert", upsert(json!({ "email": "a", "salary": "1" })), "field \"salary\""),
        ("get", json!({ "entity": "contact", "id": "1", "fields": ["salary"] }), "field \"salary\""),
        ("changes", json!({ "entity": "contact", "fields": ["external_id"] }), "field \"external_id\""),
        // Searching by a field tells what is in it.
        ("find", json!({ "entity": "contact", "where": { "salary": "1" } }), "field \"salary\""),
        ("delete", json!({ "entity": "company", "id": "1" }), "entity \"company\""),
        ("find", json!({ "entity": "company", "where": {} }), "entity \"company\""),
        ("call", json!({ "name": "purge" }), "call \"purge\""),
    ] {
        let (code, message) = judge(&settings, operation, &params).unwrap_err();
        assert_eq!(code, Code::PolicyDenied, "{params}");
        assert!(message.contains(says), "{params}: {message}");
    }
    let (code, _) = judge(&settings, "get", &json!({ "entity": "invoice", "id": "1" })).unwrap_err();
    assert_eq!(code, Code::InvalidParams);
}

#[test]
fn a_rule_that_names_no_entity_field_or_call_is_a_mistake() {
    for (rule, says) in [
        (
            "operations = [\"get\"]\nfields = [\"email\"]\n",
            "allow[1].entities: missing; operation \"get\" needs entities",
        ),
        (
            "operations = [\"get\"]\nentities = [\"contact\"]\n",
            "allow[1].fields: missing; operation \"get\" needs fields",
        ),
        ("operations = [\"call\"]\n", "allow[1].calls: missing; operation \"call\" needs calls"),
        (
            "operations = [\"call\"]\ncalls = [\"recalculate\"]\nentities = [\"contact\"]\n",
            "allow[1].entities: none of this rule's",
        ),
        (
            "operations = [\"get\"]\nentities = [\"Contact\"]\nfields = [\"*\"]\n",
            "allow[1].entities[1]: not a name",
        ),
    ] {
        let (_dir, settings) = settings(&format!("[[resources.crm.allow]]\n{rule}"));
        let findings = settings.err().expect(rule);
        assert!(findings.contains(says), "{rule}: {findings}");
    }
}

#[test]
fn policy_explain_tells_of_entities_fields_and_calls() {
    let (dir, _) = settings(
        "[[resources.crm.allow]]\noperations = [\"get\", \"delete\"]\nentities = [\"contact\"]\nfields = [\"email\"]\n\
         [[resources.crm.allow]]\noperations = [\"call\"]\ncalls = [\"recalculate\"]\n",
    );
    let overview = super::explain::Overview::read(dir.path());
    let text = overview.to_string();
    for line in
        ["delete: delete records", "on entities contact", "with fields email", "with calls recalculate"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
}
