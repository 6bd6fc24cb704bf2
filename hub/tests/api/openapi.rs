//! The OpenAPI document and the router are the same list of calls.

use crate::support::{Answer, Hub};
use reqwest::Method;
use serde_json::Value;
use std::collections::BTreeSet;

const METHODS: [&str; 6] = ["get", "head", "post", "put", "patch", "delete"];

#[tokio::test]
async fn every_route_is_in_the_document_and_the_other_way_round() {
    let hub = Hub::start().await;
    let answer = Answer::of(hub.anonymous(Method::GET, "/v1/openapi.json")).await.expect(200);
    let document = answer.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."), "{}", document["openapi"]);
    let paths = document["paths"].as_object().unwrap();
    for (path, item) in paths {
        let listed: BTreeSet<String> =
            METHODS.iter().filter(|m| item.get(m).is_some()).map(|m| m.to_uppercase()).collect();
        let real = path
            .replace("{id}", "x")
            .replace("{site}", "x")
            .replace("{job}", "x")
            .replace("{attempt}", "1")
            .replace("{event}", "x")
            .replace("{delivery}", "1")
            .replace("{guid}", "x")
            .replace("{flow}", "x");
        let refused =
            Answer::of(hub.request("BREW".parse().unwrap(), &real)).await.expect_problem(405, "bad_request");
        // The router answers HEAD wherever it answers GET.
        let mut allowed: BTreeSet<String> =
            refused.header("allow").split(',').map(|m| m.trim().to_owned()).collect();
        if !listed.contains("HEAD") {
            allowed.remove("HEAD");
        }
        assert_eq!(allowed, listed, "{path}");
    }
    for path in [
        "/v1/jobs",
        "/v1/jobs/{id}",
        "/v1/jobs/{id}/cancel",
        "/v1/jobs/{id}/retry",
        "/v1/jobs/{id}/resolve",
        "/v1/jobs/{id}/output",
        "/v1/jobs/{id}/envelope",
        "/v1/calls",
        "/v1/blobs",
        "/v1/blobs/{id}",
        "/v1/sites",
        "/v1/agents",
        "/v1/agents/{id}/revoke",
        "/v1/sites/{site}/resources",
        "/v1/mediations/definitions",
        "/v1/mediations/definitions/{guid}",
        "/v1/mediations/definitions/{guid}/run",
        "/v1/mediations/runs",
        "/v1/mediations/runs/{id}",
        "/v1/mediations/runs/{id}/restart",
        "/v1/mediations/runs/{id}/flows/{flow}",
        "/v1/events",
        "/v1/events/received",
        "/v1/events/received/{id}",
        "/v1/events/received/{id}/payload",
        "/v1/subscriptions",
        "/v1/subscriptions/{id}",
        "/v1/subscriptions/{id}/test",
        "/v1/subscriptions/{id}/resend",
        "/v1/subscriptions/{id}/deliveries",
        "/v1/subscriptions/{id}/deliveries/{delivery}/resend",
        "/v1/openapi.json",
        "/healthz",
        "/readyz",
        "/metrics",
        "/agent/v1/enrol",
        "/agent/v1/tunnel",
        "/agent/v1/jobs/{job}/payload",
        "/agent/v1/jobs/{job}/attempts/{attempt}/output",
        "/agent/v1/events/{event}/payload",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    hub.end().await;
}

/// Routes are registered through `routes!` alone, which fills router and document at once.
#[test]
fn no_route_is_registered_beside_the_document() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api");
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        // The vendor's API has paths and shapes of its own: it is no part of the document.
        if path.is_dir() {
            assert!(path.ends_with("vendor"), "{}", path.display());
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        let source = source.split("#[cfg(test)]").next().unwrap();
        for call in [".route(", ".route_service(", ".nest_service(", "Router::new()"] {
            assert!(!source.contains(call), "{}: {call}", path.display());
        }
    }
}

#[test]
fn a_job_can_be_submitted_in_two_forms() {
    let document = serde_json::to_value(passerelle_hub::api::openapi()).unwrap();
    let body = &document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"];
    let name = body["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
    let forms = document["components"]["schemas"][name]["oneOf"].as_array().unwrap();
    let text = serde_json::to_string(forms).unwrap();
    assert_eq!(forms.len(), 2, "{text}");
    assert!(text.contains("/Submission") && text.contains("/SignedSubmission"), "{text}");
    assert!(!text.contains("\"properties\""), "the forms are wrapped: {text}");
}

#[test]
fn every_reference_of_the_document_is_defined() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(target)) = fields.get("$ref") {
                    found.insert(target.clone());
                }
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let document = serde_json::to_value(passerelle_hub::api::openapi()).unwrap();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

/// OpenAPI 3.1 §4.8.17: a response has a description.
#[test]
fn every_answer_is_described() {
    let document = serde_json::to_value(passerelle_hub::api::openapi()).unwrap();
    let mut missing = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, call) in methods.as_object().unwrap() {
            for (status, response) in call["responses"].as_object().into_iter().flatten() {
                if response["description"].as_str().is_none_or(str::is_empty) {
                    missing.push(format!("{method} {path} {status}"));
                }
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn what_may_be_null_or_anything_is_declared_so() {
    let document = serde_json::to_value(passerelle_hub::api::openapi()).unwrap();
    let schema =
        |name: &str, field: &str| document["components"]["schemas"][name]["properties"][field].clone();
    assert_eq!(schema("Job", "result")["type"], serde_json::json!(["object", "null"]));
    for (name, field) in
        [("Difference", "before"), ("Difference", "after"), ("OccurrenceView", "data"), ("Start", "data")]
    {
        let declared = schema(name, field);
        assert!(declared.is_object() && declared.get("type").is_none(), "{name}.{field}: {declared}");
    }
}
