//! How `EspoCRM` refuses: by status, with the reason in a header and now and then details in the body.

use crate::crm::{
    error::{Clash, CrmError, FieldError, Problem},
    exchange::answer::Answer,
    shape,
    vocabulary::Entity,
};
use serde_json::Value;

const REASON: &str = "x-status-reason";
/// What it says to everybody at an address from which too many wrong credentials came.
const LOCKED: &str = "Max failed login";

/// Credentials that it refuses, or an address that it has locked.
pub(super) fn unauthorized(answer: &Answer) -> Option<CrmError> {
    let reason = answer.text(REASON).unwrap_or("");
    match answer.status.as_u16() {
        401 => Some(CrmError::new(Problem::Auth).detail("status 401")),
        403 if reason.contains(LOCKED) => {
            let said = "it has locked the agent's address after wrong credentials; wait, or lift it under Administration";
            Some(CrmError::new(Problem::Auth).reason(said).detail("status 403"))
        }
        _ => None,
    }
}

/// What an answer means; `Ok` for 2xx.
pub(super) fn check(answer: &Answer, entity: Option<&Entity>) -> Result<(), CrmError> {
    let Err(error) = answer.check() else { return Ok(()) };
    let reason = answer.text(REASON).unwrap_or("");
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    Err(match (&error.problem, reason) {
        (Problem::Conflict { .. }, "modified") => CrmError::conflict(Clash::Version, Vec::new()),
        (Problem::Conflict { .. }, _) => {
            let rows = body.as_array().map(Vec::as_slice).unwrap_or_default();
            let ids = rows.iter().take(10).filter_map(|row| row.get("id").and_then(shape::id)).collect();
            CrmError::conflict(Clash::Duplicate, ids)
        }
        (Problem::Invalid { .. }, _) => match field(reason, &body) {
            Some((field, rule)) => {
                let ours = entity.and_then(|entity| entity.of_target(&field)).map(|field| field.name.clone());
                CrmError::invalid(vec![FieldError::new(ours.unwrap_or(field), &rule)])
            }
            None => error.reason(reason),
        },
        (Problem::NotFound, _) => error,
        _ => match reason {
            "" => error,
            reason => error.reason(reason),
        },
    })
}

/// The field that did not pass, and the rule: in the reason (`…, field: lastName, type: required.`) or in the body.
fn field(reason: &str, body: &Value) -> Option<(String, String)> {
    let part = |name: &str| {
        let rest = reason.split_once(&format!("{name}: "))?.1;
        Some(rest.split([',', '.']).next()?.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let told = |name: &str| {
        let data = shape::at(body, "messageTranslation.data").unwrap_or(body);
        data.get(name).and_then(Value::as_str).map(str::to_owned)
    };
    let field = part("field").or_else(|| told("field"))?;
    Some((field, part("type").or_else(|| told("type")).unwrap_or_default()))
}
