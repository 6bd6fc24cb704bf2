//! Records by their key: what a search gave is held to the key that was searched for.
//!
//! - A record is of a key only if it shows that very key. Many targets search without regard to case and spaces around
//!   (MySQL's and SQL Server's usual collations, Django's filters), so a search may well give a record of a key that differs
//!   in these: it is somebody else's, and never written, returned or deleted.
//! - A page that has none, or one, is not the end: the target's pages are followed.

use super::{
    Crm,
    dialect::Page,
    error::{Clash, CrmError, Problem},
    exchange::Talk,
    params::Pair,
    vocabulary::{Entity, Field, Given, Record},
};
use crate::Failure;
use serde_json::Value;
use uuid::Uuid;

/// How many pages a look for a key reads. A key has one record: who gives more pages does not search.
const MAX_PAGES: usize = 10;

/// The key that a record is addressed by, looked up.
pub(super) async fn id_of(
    crm: &Crm,
    talk: &Talk,
    entity: &Entity,
    key: &Pair<'_>,
) -> Result<Option<Record>, Failure> {
    let found = look(crm, talk, entity, &[key.0], Given { field: key.0, value: &key.1 }).await?;
    match <[Record; 1]>::try_from(found) {
        Ok([record]) => Ok(Some(record)),
        Err(found) if found.is_empty() => Ok(None),
        Err(several) => Err(conflict(&several)),
    }
}

/// The records of a key: none, the one, or those that show that there are several. Reads pages until the last one, or
/// until there are two.
///
/// # Errors
/// [`Problem::Protocol`] for records of other keys, and for pages without end; [`Problem::Conflict`] if there is none of
/// this key, but one of a key that differs from it only in case or spaces.
pub(super) async fn look(
    crm: &Crm,
    talk: &Talk,
    entity: &Entity,
    wanted: &[&Field],
    key: Given<'_>,
) -> Result<Vec<Record>, CrmError> {
    let (mut found, mut alike) = (Vec::<Record>::new(), Vec::<String>::new());
    let mut cursor: Option<String> = None;
    for _ in 0..MAX_PAGES {
        let page = Page { limit: 2, cursor: cursor.as_deref() };
        let listed = crm.find(talk, entity, wanted, &[key], page).await?;
        for record in listed.records {
            if shows(&record, key) {
                // A list that grows while it is read may give a record twice.
                if found.iter().all(|known| known.id != record.id) {
                    found.push(record);
                }
            } else if nearly_shows(&record, key) {
                alike.push(record.id);
            } else {
                return Err(of_another(&record, key));
            }
        }
        if found.len() > 1 {
            return Ok(found);
        }
        match listed.next {
            Some(next) => cursor = Some(next),
            None if found.is_empty() && !alike.is_empty() => {
                let name = &key.field.name;
                let reason = format!(
                    "the target holds a record whose {name} differs from this key only in case or spaces; \
                     write the key as it stands there"
                );
                return Err(CrmError::conflict(Clash::Duplicate, alike).reason(&reason));
            }
            None => return Ok(found),
        }
    }
    let name = &key.field.name;
    let reason = format!("a search by {name} has no end after {MAX_PAGES} pages");
    Err(CrmError::new(Problem::Protocol).reason(&reason))
}

/// A server that ignores the search, or does not show the key, would make us write into a stranger's record.
fn of_another(record: &Record, key: Given<'_>) -> CrmError {
    let name = &key.field.name;
    let reason = if record.fields.contains_key(name) {
        format!("a search by {name} gave a record of another one")
    } else {
        format!("a search by {name} gave a record that does not show it: is it misspelt in the mapping")
    };
    CrmError::new(Problem::Protocol).reason(&reason)
}

/// Whether a record says that it has this key. One that says nothing of it may be anybody's.
pub(super) fn shows(record: &Record, key: Given<'_>) -> bool {
    record.fields.get(&key.field.name).is_some_and(|found| {
        key.field.kind.same(found, key.value) || one_uuid(found, key.value) || one_number(found, key.value)
    })
}

/// Whether a record has a key that such a target takes for this one.
fn nearly_shows(record: &Record, key: Given<'_>) -> bool {
    let folded = |value: &Value| value.as_str().map(|text| text.trim().to_lowercase());
    let found = record.fields.get(&key.field.name).and_then(folded);
    found.is_some() && found == folded(key.value)
}

/// Two spellings of one UUID: RFC 9562 §4 takes both cases, and columns of that type give one back whatever was stored.
fn one_uuid(a: &Value, b: &Value) -> bool {
    let hyphenated = |text: &&str| text.len() == 36 && Uuid::try_parse(text).is_ok();
    let (a, b) = (a.as_str().filter(hyphenated), b.as_str().filter(hyphenated));
    a.zip(b).is_some_and(|(a, b)| a.eq_ignore_ascii_case(b))
}

/// A number that one side writes as text.
fn one_number(a: &Value, b: &Value) -> bool {
    let is_text = a.is_string() && b.is_string();
    !is_text && a.to_string().trim_matches('"') == b.to_string().trim_matches('"')
}

/// Several records of one key: they are named, and none is chosen.
pub(super) fn conflict(several: &[Record]) -> Failure {
    CrmError::conflict(Clash::Duplicate, several.iter().map(|record| record.id.clone()).collect()).into()
}
