//! How `SuiteCRM` refuses: with 400 and a sentence for nearly everything.

use crate::crm::{
    error::{Clash, CrmError, FieldError, Problem},
    exchange::answer::Answer,
    shape,
    vocabulary::Entity,
};
use serde_json::Value;

/// What an answer means; `Ok` for 2xx.
pub(super) fn check(answer: &Answer, entity: Option<&Entity>) -> Result<(), CrmError> {
    let Err(error) = answer.check() else { return Ok(()) };
    if answer.status.as_u16() != 400 {
        return Err(error);
    }
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let said = shape::at(&body, "errors.detail").and_then(Value::as_str).unwrap_or("");
    let lower = said.to_lowercase();
    Err(if lower.contains("already exist") {
        CrmError::conflict(Clash::Duplicate, Vec::new())
    } else if is_missing(&lower) {
        CrmError::new(Problem::NotFound)
    } else if lower.contains("access") && (lower.contains("denied") || lower.contains("not allowed")) {
        CrmError::new(Problem::Forbidden)
    } else if let Some(field) = named(said) {
        let ours = entity.and_then(|entity| entity.of_target(field)).map_or(field, |field| &field.name);
        CrmError::invalid(vec![FieldError::new(ours, "the target does not know it")])
    } else {
        error.reason(said)
    })
}

/// `The option "id" with value "…" is invalid`, or `Contacts module with id … is not found`.
fn is_missing(said: &str) -> bool {
    (said.contains("option \"id\"") && said.contains("is invalid"))
        || (said.contains("with id") && said.contains("not found"))
}

/// The field that a sentence names.
fn named(said: &str) -> Option<&str> {
    ["Property ", "Filter field ", "Sort field ", "Field "]
        .iter()
        .find_map(|before| said.strip_prefix(before)?.split(' ').next().filter(|field| !field.is_empty()))
}

/// Whether an id is taken.
pub(super) fn is_taken(error: &CrmError) -> bool {
    matches!(error.problem, Problem::Conflict { clash: Clash::Duplicate, .. })
}
