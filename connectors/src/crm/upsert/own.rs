//! Whether a record is surely the one that this attempt has just made: nothing else is ever taken back.
//!
//! Some targets answer a creation with a record that was there before, found by its e-mail or merged with what was sent.
//! Deleting that one would lose somebody's data for good, so every doubt leaves the record where it is.

use super::Engine;
use crate::crm::vocabulary::{Field, FieldType, Record};
use serde_json::Value;
use std::time::Duration;

/// How far the time of a new record's making may be from the target's own clock.
const FRESH: Duration = Duration::from_secs(120);

impl Engine<'_> {
    /// Whether a record that came without our key is surely new: it was made just now, by the target's own word, and shows
    /// what was sent, no key, and no text that was not sent.
    pub(super) async fn is_surely_new(&self, id: &str) -> bool {
        let entity = self.entity();
        let all: Vec<&Field> = entity.fields.iter().collect();
        let Ok(record) = self.crm.dialect.get(&self.talk, entity, id, &all).await else { return false };
        let is_sent = |field: &Field| self.fields.iter().any(|given| given.field.name == field.name);
        let is_blank = |field: &Field| {
            let Some(found) = record.fields.get(&field.name) else { return true };
            // Numbers, times and the like may be the target's own defaults; texts are what people write.
            let is_telling = matches!(field.kind, FieldType::Text | FieldType::Any | FieldType::Json)
                && !field.read_only
                && found.as_str() != Some(id);
            if entity.keys.contains(&field.name) {
                is_empty(found)
            } else {
                !is_telling || has_no_text(found)
            }
        };
        self.looks_as_sent(&record)
            && all.iter().filter(|field| !is_sent(field)).all(|field| is_blank(field))
            && self.was_made_now(id).await == Some(true)
    }

    /// Whether a record was made just now; `None` if the target does not tell.
    pub(super) async fn was_made_now(&self, id: &str) -> Option<bool> {
        match self.crm.dialect.made(&self.talk, self.entity(), id).await {
            Ok(made) => {
                let now = self.crm.exchange.target_now();
                made.map(|at| now.duration_since(at).unsigned_abs() <= FRESH)
            }
            Err(_) => Some(false),
        }
    }

    /// Whether a record shows the values that were sent, however the target writes them.
    pub(super) fn looks_as_sent(&self, record: &Record) -> bool {
        self.fields.iter().all(|given| {
            let found = record.fields.get(&given.field.name).unwrap_or(&Value::Null);
            given.field.kind.same(found, given.value)
                || (bare(found) == bare(given.value) && !bare(found).is_empty())
        })
    }
}

pub(super) fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty())
}

fn has_no_text(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// A value without what targets change in it: telephone numbers lose their spaces, names get capitals.
fn bare(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}
