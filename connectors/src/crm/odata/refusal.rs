//! What a service's refusal means: OData's error object, whose words are the service's own.

use crate::crm::{
    error::{Clash, CrmError, FieldError, Problem},
    exchange::answer::Answer,
    vocabulary::Field,
};
use serde_json::Value;

/// What Dynamics calls a second record of the same key, or one that its duplicate rules found.
const DUPLICATES: &[&str] = &["0x80060892", "0x80040237", "0x80040333"];

/// The error for an answer that is no success; `fields` are those that the request gave or asked for.
pub(super) fn refusal(answer: &Answer, fields: &[&Field]) -> Option<CrmError> {
    let mut error = answer.check().err()?;
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
    let told = body.get("error");
    let code = told.and_then(|told| told.get("code")).and_then(Value::as_str).unwrap_or_default();
    if DUPLICATES.contains(&code) {
        error.problem = Problem::Conflict { clash: Clash::Duplicate, candidates: Vec::new() };
    }
    // A change without If-Match where the service wants one, or one that it never takes.
    if answer.status == 428 {
        error.problem = Problem::Unsupported;
    }
    let message = told.and_then(|told| told.get("message")).and_then(Value::as_str).unwrap_or_default();
    let message = own_words(message);
    if let Problem::Invalid { fields: refused } = &mut error.problem {
        *refused = named(told, message, fields);
    }
    match &error.problem {
        Problem::Invalid { .. } | Problem::Conflict { .. } | Problem::Forbidden | Problem::Unsupported => {
            Some(error.reason(&without_namespace(message)))
        }
        Problem::NotFound
        | Problem::Auth
        | Problem::Throttled { .. }
        | Problem::Unavailable
        | Problem::Ambiguous
        | Problem::Protocol
        | Problem::Ours(_) => Some(error),
    }
}

/// Without the stack trace that some services append, and the classes they put before.
fn own_words(message: &str) -> &str {
    let line = message.lines().next().unwrap_or_default();
    line.rsplit_once("Exception: ").map_or(line, |(_, words)| words)
}

/// Without the namespace of Dynamics' own types, which has the look of a host.
fn without_namespace(words: &str) -> String {
    words.replace("Microsoft.Dynamics.CRM.", "")
}

/// The fields that are at fault: by `details`, or named in quotes.
fn named(told: Option<&Value>, message: &str, fields: &[&Field]) -> Vec<FieldError> {
    let details = told.and_then(|told| told.get("details")).and_then(Value::as_array);
    let detailed = details.into_iter().flatten().take(20).filter_map(|detail| {
        let target = detail.get("target").and_then(Value::as_str)?;
        let field = fields.iter().find(|field| field.target == target)?;
        let message = detail.get("message").and_then(Value::as_str).unwrap_or_default();
        Some(FieldError::new(&field.name, &without_namespace(own_words(message))))
    });
    let mut named: Vec<FieldError> = detailed.collect();
    if named.is_empty() {
        let quoted = |target: &str| {
            ['\'', '"'].iter().any(|quote| message.contains(&format!("{quote}{target}{quote}")))
        };
        let found = fields.iter().filter(|field| quoted(&field.target));
        named.extend(found.map(|field| FieldError::new(&field.name, "")));
    }
    named
}

#[cfg(test)]
mod tests {
    use super::refusal;
    use crate::crm::{
        error::{Clash, Problem},
        exchange::answer::Answer,
        vocabulary::{Field, FieldType},
    };
    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};

    fn answer(status: u16, body: &'static str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
            writes: true,
        }
    }

    #[test]
    fn a_refusal_names_the_field_and_tells_no_stack() {
        let field = Field {
            name: "title".to_owned(),
            target: "jobtitel".to_owned(),
            kind: FieldType::Text,
            read_only: false,
            masked: false,
        };
        let body = r#"{"error":{"code":"0x0","message":"An error occurred while validating input parameters: Microsoft.OData.ODataException: The property 'jobtitel' does not exist on type 'Microsoft.Dynamics.CRM.contact'.\r\n   at Microsoft.Crm.Extensibility.OData.CrmODataEntityDeserializer.ReadEntry()"}}"#;
        let error = refusal(&answer(400, body), &[&field]).unwrap();
        assert!(
            matches!(&error.problem, Problem::Invalid { fields } if fields[0].field == "title"),
            "{error:?}"
        );
        let reason = error.reason.unwrap();
        assert!(reason.starts_with("The property 'jobtitel' does not exist"), "{reason}");
        assert!(reason.ends_with("on type 'contact'"), "{reason}");
    }

    #[test]
    fn statuses_and_codes_become_problems() {
        let taken = r#"{"error":{"code":"0x80060892","message":"A record with matching key values already exists."}}"#;
        for (status, body, problem) in [
            (412, taken, Problem::Conflict { clash: Clash::Duplicate, candidates: vec![] }),
            (412, "{}", Problem::Conflict { clash: Clash::Version, candidates: vec![] }),
            (404, "<html>", Problem::NotFound),
            (428, "{}", Problem::Unsupported),
            (500, "<html>boom</html>", Problem::Ambiguous),
            (403, "{}", Problem::Forbidden),
        ] {
            assert_eq!(refusal(&answer(status, body), &[]).unwrap().problem, problem, "{status} {body}");
        }
        assert!(refusal(&answer(204, ""), &[]).is_none());
    }
}
