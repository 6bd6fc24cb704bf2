//! What changed in Tryton: by the moment of the last change, or of the making where there was no change yet.
//!
//! Newer releases tell that moment as `last_modified_at`. Older ones leave `write_date` empty until the first change: there
//! the changed and the never changed records are read apart, each in order, and joined.

use super::{Found, Query, Tryton, value::moment};
use crate::crm::{
    dialect::{Changed, Span},
    error::CrmError,
    exchange::Talk,
    vocabulary::{Entity, Field},
};
use serde_json::{Value, json};

/// A page.
pub(super) async fn page(
    tryton: &Tryton,
    talk: &Talk,
    entity: &Entity,
    wanted: &[&Field],
    span: Span<'_>,
) -> Result<Changed, CrmError> {
    let model = tryton.models.get(&tryton.server, talk, &entity.target).await?;
    // One more, to see whether it is the last page.
    let upto = span.limit.saturating_add(1);
    let mut found = if model.columns.contains_key("last_modified_at") {
        let query = query("last_modified_at", &span, None, span.offset, upto);
        tryton.read(talk, entity, wanted, query).await?
    } else {
        let all = span.offset.saturating_add(upto);
        let made = query("create_date", &span, Some(json!(["write_date", "=", null])), 0, all);
        let made = tryton.read(talk, entity, wanted, made).await?;
        let changed = query("write_date", &span, Some(json!(["write_date", "!=", null])), 0, all);
        let changed = tryton.read(talk, entity, wanted, changed).await?;
        joined(made, changed).into_iter().skip(span.offset).take(upto).collect()
    };
    let end = found.len() <= span.limit;
    found.truncate(span.limit);
    Ok(Changed { records: found.into_iter().map(|found| found.record).collect(), end, ..Changed::default() })
}

fn query(column: &str, span: &Span<'_>, also: Option<Value>, offset: usize, limit: usize) -> Query {
    let mut domain: Vec<Value> = also.into_iter().collect();
    if let Some(since) = span.since {
        domain.push(json!([column, ">=", moment(since)]));
    }
    if let Some((at, id)) = span.after {
        // An id that is no number is none of ours: everything of that moment again is better than nothing of it.
        let id: i64 = id.parse().unwrap_or(0);
        let at = moment(at);
        domain.push(json!(["OR", [column, ">", at], [[column, "=", at], ["id", ">", id]]]));
    }
    Query { domain: Value::Array(domain), order: json!([[column, "ASC"], ["id", "ASC"]]), offset, limit }
}

/// Both in one order. A record that was changed for the first time between the two reads is in both, as it was and as it is.
fn joined(made: Vec<Found>, changed: Vec<Found>) -> Vec<Found> {
    let mut all = made;
    all.extend(changed);
    all.sort_by_key(|found| (found.record.modified, found.record.id.parse::<i64>().unwrap_or(0)));
    all
}
