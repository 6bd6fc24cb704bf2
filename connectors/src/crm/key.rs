//! Records by their key: what a search gave is held to the key that was searched for.

use super::{
    Crm,
    dialect::Page,
    error::{Clash, CrmError, Problem},
    exchange::Talk,
    params::Pair,
    vocabulary::{Entity, Given, Record},
};
use crate::Failure;
use serde_json::Value;

/// The key that a record is addressed by, looked up.
pub(super) async fn id_of(
    crm: &Crm,
    talk: &Talk,
    entity: &Entity,
    key: &Pair<'_>,
) -> Result<Option<Record>, Failure> {
    let filter = [Given { field: key.0, value: &key.1 }];
    let page = Page { limit: 2, cursor: None };
    let found = crm.find(talk, entity, &[key.0], &filter, page).await?.records;
    hold_to_key(&found, Given { field: key.0, value: &key.1 })?;
    match <[Record; 1]>::try_from(found) {
        Ok([record]) => Ok(Some(record)),
        Err(found) if found.is_empty() => Ok(None),
        Err(several) => Err(conflict(&several)),
    }
}

/// A server that ignores the search, or does not show the key, would make us write into a stranger's record.
pub(super) fn hold_to_key(records: &[Record], key: Given<'_>) -> Result<(), CrmError> {
    let name = &key.field.name;
    let reason = match records.iter().find(|record| !shows(record, key)) {
        None => return Ok(()),
        Some(record) if record.fields.contains_key(name) => {
            format!("a search by {name} gave a record of another one")
        }
        Some(_) => {
            format!("a search by {name} gave a record that does not show it: is it misspelt in the mapping")
        }
    };
    Err(CrmError::new(Problem::Protocol).reason(&reason))
}

/// Whether a record says that it has this key. One that says nothing of it may be anybody's.
pub(super) fn shows(record: &Record, key: Given<'_>) -> bool {
    let found = record.fields.get(&key.field.name);
    found.is_some_and(|found| key.field.kind.same(found, key.value) || alike(found, key.value))
}

/// Some targets compare texts without regard to case or spaces around them.
fn alike(a: &Value, b: &Value) -> bool {
    match (a.as_str(), b.as_str()) {
        (Some(a), Some(b)) => a.trim().to_lowercase() == b.trim().to_lowercase(),
        _ => a.to_string().trim_matches('"') == b.to_string().trim_matches('"'),
    }
}

/// Several records of one key: they are named, and none is chosen.
pub(super) fn conflict(several: &[Record]) -> Failure {
    CrmError::conflict(Clash::Duplicate, several.iter().map(|record| record.id.clone()).collect()).into()
}
