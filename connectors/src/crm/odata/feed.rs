//! What changed in an OData service: by its own deltas, or by the time of the last change.

use super::{OData, place, query};
use crate::{
    ChangeOp,
    crm::{
        dialect::{Changed, Delta, Span, Told},
        error::{CrmError, Problem},
        exchange::Talk,
        pages::{Pages, endless},
        vocabulary::{Entity, Field, Record},
    },
};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::Value;

/// The most pages followed for one page of ours: services may give less than they were asked for.
const MAX_PAGES: usize = 1000;

/// A page by time. Services know no order by id within one moment that could be gone on from, nor (Dynamics) how to skip: what
/// was given out already is read again, and left out.
pub(super) async fn changed(
    odata: &OData,
    talk: &Talk,
    entity: &Entity,
    wanted: &[&Field],
    span: Span<'_>,
) -> Result<Changed, CrmError> {
    let place = place(entity)?;
    let mut options = vec![("$select", odata.select(&place, wanted))];
    if let Some(since) = span.since {
        options.push(("$filter", format!("{} ge {}", odata.modified, second(since))));
    }
    options.push(("$orderby", format!("{} asc,{} asc", odata.modified, place.id)));
    let offset = if span.next.is_some() { 0 } else { span.offset };
    let upto = offset.saturating_add(span.limit);
    let prefer = format!("odata.maxpagesize={upto}");
    let mut next = Some(span.next.map_or_else(|| query(&place.set, &options), str::to_owned));
    let mut records: Vec<Record> = Vec::new();
    let mut pages = Pages::new(talk);
    for _ in 0..MAX_PAGES {
        let Some(link) = next.take() else { break };
        pages.follow(&link)?;
        let rows = odata.rows(&pages.talk, &link, &prefer, wanted).await?;
        let before = records.len();
        for row in &rows.rows {
            let record = odata.record(&place, row, wanted, None).filter(|record| record.modified.is_some());
            let record = record.ok_or_else(|| {
                let reason = format!("its records tell no {}; see options.modified", odata.modified);
                CrmError::new(Problem::Unsupported).reason(&reason)
            })?;
            records.push(record);
        }
        next = rows.next;
        if pages.read(records.get(before..).unwrap_or_default())? && next.is_some() {
            return Err(endless());
        }
        if records.len() >= upto {
            break;
        }
    }
    if next.is_some() && records.len() <= offset {
        // To end here would say that there is no more.
        let reason = format!(
            "{MAX_PAGES} of its pages, one after the other, bring nothing new, and it says that there is more"
        );
        return Err(CrmError::new(Problem::Protocol).reason(&reason));
    }
    let whole = records.len() <= upto;
    let records = records.into_iter().skip(offset).take(span.limit).collect();
    Ok(Changed { records, end: whole && next.is_none(), next: next.filter(|_| whole) })
}

/// A moment, not later, as literals have it.
fn second(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A page of the service's own feed: all that is there, then what changed since. The token is the link to go on with.
pub(super) async fn delta(
    odata: &OData,
    talk: &Talk,
    entity: &Entity,
    wanted: &[&Field],
    token: Option<&str>,
    limit: usize,
) -> Result<Delta, CrmError> {
    let place = place(entity)?;
    let first = query(&place.set, &[("$select", odata.select(&place, wanted))]);
    let link = token.unwrap_or(&first);
    let prefer = format!("odata.track-changes,odata.maxpagesize={limit}");
    let rows =
        odata.rows(talk, link, &prefer, wanted).await.map_err(|error| match (&error.problem, token) {
            // Forgotten by the service: told as 410, or as a bad request.
            (Problem::NotFound | Problem::Invalid { .. }, Some(_)) => CrmError::new(Problem::Unsupported)
                .reason("it no longer knows where the cursor stands; begin again without one"),
            _ => error,
        })?;
    let mut changes = Vec::new();
    for row in &rows.rows {
        let told = match removed(row) {
            Some(id) => Some(Told { op: ChangeOp::Delete, record: Record { id, ..Record::default() } }),
            None => {
                odata.record(&place, row, wanted, None).map(|record| Told { op: ChangeOp::Upsert, record })
            }
        };
        changes.push(told.ok_or_else(|| {
            CrmError::new(Problem::Protocol).reason("a change of its feed names no record")
        })?);
    }
    let more = rows.next.is_some();
    if rows.next.as_deref() == Some(link) {
        return Err(endless());
    }
    let token = rows.next.or(rows.delta).ok_or_else(|| {
        let reason = format!(
            "it does not track the changes of {}; switch it on there, or set options.changes to \"time\"",
            place.set
        );
        CrmError::new(Problem::Unsupported).reason(&reason)
    })?;
    Ok(Delta { changes, token, more })
}

/// The id of a deleted record: OData 4.0 and 4.01 tell it in different forms.
fn removed(row: &Value) -> Option<String> {
    let context = row.get("@odata.context").and_then(Value::as_str).unwrap_or_default();
    let is_removed = context.ends_with("/$deletedEntity")
        || row.get("@removed").is_some()
        || row.get("@odata.removed").is_some();
    if !is_removed {
        return None;
    }
    let id = ["@odata.id", "@id", "id"].iter().find_map(|name| row.get(*name).and_then(Value::as_str));
    Some(id.and_then(super::id_of).unwrap_or_default()).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{removed, second};
    use serde_json::json;

    #[test]
    fn a_deletion_is_told_in_both_forms() {
        let id = "5236125b-1930-446b-adef-1fdcd94d6edf";
        for row in [
            // As Microsoft's documentation of change tracking shows it.
            json!({ "@odata.context": "https://crm/api/data/v9.1/$metadata#contacts/$deletedEntity", "id": id, "reason": "deleted" }),
            json!({ "@removed": { "reason": "deleted" }, "@odata.id": format!("https://crm/api/contacts({id})") }),
            json!({ "@removed": { "reason": "changed" }, "@id": format!("contacts({id})") }),
        ] {
            assert_eq!(removed(&row).as_deref(), Some(id), "{row}");
        }
        assert_eq!(removed(&json!({ "contactid": id, "reason": "x" })), None);
    }

    #[test]
    fn a_moment_is_rounded_down() {
        assert_eq!(second("2026-11-22T12:23:01.999999Z".parse().unwrap()), "2026-11-22T12:23:01Z");
    }
}
