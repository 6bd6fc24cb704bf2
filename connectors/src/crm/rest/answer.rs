//! Reads the answers of a REST interface by its [`Shape`]: records, lists, and refusals.

use super::shape::{Shape, VersionAt, at, plain};
use crate::crm::{
    error::{Clash, CrmError, FieldError, Problem},
    exchange::{answer::Answer, request::leads_astray},
    vocabulary::{Entity, Field, FieldType, Record},
};
use jiff::Timestamp;
use serde_json::{Map, Value};

/// The most field errors that are read.
const MAX_FIELD_ERRORS: usize = 20;

impl Shape {
    /// A record of an answer or a list; `None` without an id.
    pub(crate) fn record(&self, value: &Value, wanted: &[&Field]) -> Option<Record> {
        let id = at(value, &self.id).filter(|id| id.is_string() || id.is_number()).map(plain)?;
        // Such an id would name another place than a record.
        if id.is_empty() || leads_astray(&id) {
            return None;
        }
        let version = match &self.version {
            VersionAt::Field(path) => at(value, path).filter(|version| !version.is_null()).map(plain),
            VersionAt::None | VersionAt::ETag => None,
        };
        let modified = self.modified.as_ref().and_then(|path| at(value, path)).and_then(moment);
        let fields: Map<String, Value> = wanted
            .iter()
            .filter_map(|field| Some((field.name.clone(), field.kind.read(at(value, &field.target)?))))
            .collect();
        Some(Record { id, version, modified, fields })
    }

    /// The record of an answer about one.
    ///
    /// # Errors
    /// If there is none in it.
    pub(crate) fn one(&self, answer: &Answer, wanted: &[&Field]) -> Result<Record, CrmError> {
        let body = answer.json()?;
        let record = at(&body, &self.record).and_then(|value| self.record(value, wanted));
        let mut record = record.ok_or_else(|| answer.nonsense("an answer holds no record with an id"))?;
        if self.version == VersionAt::ETag {
            record.version = answer.text("etag").map(str::to_owned);
        }
        Ok(record)
    }

    /// The records of a page.
    ///
    /// # Errors
    /// If there is no list in it.
    pub(crate) fn many(
        &self,
        body: &Value,
        answer: &Answer,
        wanted: &[&Field],
    ) -> Result<Vec<Record>, CrmError> {
        let nonsense = || answer.nonsense("an answer holds no list of records with ids");
        let list = at(body, &self.list).and_then(Value::as_array).ok_or_else(nonsense)?;
        list.iter().map(|value| self.record(value, wanted).ok_or_else(nonsense)).collect()
    }

    /// Judges an answer.
    ///
    /// # Errors
    /// The refusal, with the target's own words as far as they may be told.
    pub(crate) fn check(&self, answer: &Answer, entity: Option<&Entity>) -> Result<(), CrmError> {
        let Err(mut error) = answer.check() else { return self.hidden_failure(answer, entity) };
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        if let Some(reason) = self.message(answer, &body) {
            error = error.reason(&reason);
        }
        if let Problem::Invalid { fields } = &mut error.problem {
            *fields = self.field_errors(&body, entity);
        }
        // The status of a stale version, with interfaces whose versions are in the record.
        if answer.status.as_u16() == 409 && self.version_header.is_some() && !self.unique_keys {
            error.problem = Problem::Conflict { clash: Clash::Version, candidates: Vec::new() };
        }
        Err(error)
    }

    /// A success that says of itself that it is none.
    fn hidden_failure(&self, answer: &Answer, entity: Option<&Entity>) -> Result<(), CrmError> {
        let Some(path) = &self.failure else { return Ok(()) };
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        let failed = at(&body, path).is_some_and(|value| match value {
            Value::Bool(failed) => *failed,
            Value::Null => false,
            Value::String(text) => !matches!(text.as_str(), "" | "0" | "false" | "ok" | "success"),
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::Array(items) => !items.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
        });
        if !failed {
            return Ok(());
        }
        let error = CrmError::invalid(self.field_errors(&body, entity));
        Err(match self.message(answer, &body) {
            Some(reason) => error.reason(&reason),
            None => error,
        })
    }

    fn message(&self, answer: &Answer, body: &Value) -> Option<String> {
        let of_header = self.error_header.as_deref().and_then(|name| answer.text(name)).map(str::to_owned);
        let of_body =
            || self.error_message.iter().find_map(|path| at(body, path)?.as_str().map(str::to_owned));
        of_header.or_else(of_body)
    }

    /// `{field: text or [text, …]}`, or `[{field, message}, …]`.
    fn field_errors(&self, body: &Value, entity: Option<&Entity>) -> Vec<FieldError> {
        let place = match &self.error_fields {
            Some(path) => at(body, path),
            None => {
                at(body, "errors").filter(|errors| errors.is_object() || errors.is_array()).or(Some(body))
            }
        };
        let ours = |target: &str| {
            let known = entity.and_then(|entity| {
                entity.of_target(target).or_else(|| {
                    // A field of a nested object is refused by the name of its outermost part.
                    entity.fields.iter().find(|field| field.target.split('.').next() == Some(target))
                })
            });
            known.map(|field| field.name.clone())
        };
        let named = |target: &str, reason: &str| {
            FieldError::new(ours(target).unwrap_or_else(|| target.to_owned()), reason)
        };
        match place {
            Some(Value::Object(fields)) => fields
                .iter()
                .filter(|(target, _)| self.error_fields.is_some() || ours(target).is_some())
                .take(MAX_FIELD_ERRORS)
                .map(|(target, reason)| named(target, &first_text(reason)))
                .collect(),
            Some(Value::Array(items)) => {
                let text = |item: &Value, names: &[&str]| {
                    names.iter().find_map(|name| item.get(name)?.as_str().map(str::to_owned))
                };
                items
                    .iter()
                    .take(MAX_FIELD_ERRORS)
                    .filter_map(|item| {
                        let target = text(item, &["field", "name", "attribute", "property", "path"])?;
                        let reason =
                            text(item, &["message", "reason", "detail", "error"]).unwrap_or_default();
                        Some(named(&target, &reason))
                    })
                    .collect()
            }
            _ => Vec::new(),
        }
    }
}

fn first_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.first().map(first_text).unwrap_or_default(),
        Value::Object(fields) => fields.values().next().map(first_text).unwrap_or_default(),
        Value::Null | Value::Bool(_) | Value::Number(_) => String::new(),
    }
}

/// A time of a record: text, or seconds since 1970.
pub(super) fn moment(value: &Value) -> Option<Timestamp> {
    match value {
        Value::Number(seconds) => {
            if let Some(whole) = seconds.as_i64() {
                return Timestamp::from_second(whole).ok();
            }
            #[expect(
                clippy::cast_possible_truncation,
                reason = "microseconds since 1970 fit, whatever the fraction"
            )]
            let micros = (seconds.as_f64()? * 1e6) as i64;
            Timestamp::from_microsecond(micros).ok()
        }
        other => {
            let read = FieldType::DateTime.read(other);
            read.as_str()?.parse().ok()
        }
    }
}
