//! What an answer shows of there being more than it holds, whatever the settings say of pages.

use super::shape::{Shape, at};
use crate::crm::{exchange::answer::Answer, recent::floor_to, vocabulary::Record};
use serde_json::Value;

/// Where answers have the link to their next page, beside where the settings say.
const NEXT: &[&str] = &["next", "links.next", "_links.next", "next_page_url", "pagination.next", "meta.next"];
/// Where they say how many records there are in all.
const TOTALS: &[&str] = &[
    "count",
    "total",
    "total_count",
    "totalCount",
    "totalItems",
    "total_results",
    "meta.total",
    "meta.total_count",
    "meta.count",
    "pagination.total",
    "pagination.count",
    "page.totalElements",
];

/// Whether an answer of so many records says that there are more. One record is what searches for a key find, by servers that
/// count without regard to the search, too.
pub(super) fn says_more(body: &Value, answer: &Answer, next: &str, records: usize) -> bool {
    if records < 2 {
        return false;
    }
    let leads_on = |path: &&str| match at(body, path) {
        Some(Value::String(link)) => !matches!(link.as_str(), "" | "false"),
        Some(Value::Number(number)) => number.as_i64() != Some(0),
        Some(Value::Object(link)) => link.get("href").is_some_and(Value::is_string),
        Some(Value::Bool(more)) => *more,
        Some(Value::Null | Value::Array(_)) | None => false,
    };
    let is_beyond = |total: Option<u64>| total.is_some_and(|total| total > records as u64);
    let in_link = |link: &str| link.contains("rel=\"next\"") || link.contains("rel=next");
    body.is_object()
        && ([next].iter().chain(NEXT).any(leads_on)
            || TOTALS.iter().any(|path| is_beyond(at(body, path).and_then(Value::as_u64))))
        || answer.text("link").is_some_and(in_link)
        || is_beyond(answer.text("x-total-count").and_then(|text| text.parse().ok()))
}

/// Whether all are of one time, so that nobody can go on from the last one.
pub(super) fn is_one_time(records: &[Record], shape: &Shape) -> bool {
    let grain =
        |record: &Record| record.modified.map(|time| floor_to(time.as_microsecond(), shape.granularity));
    records.first().map(grain) == records.last().map(grain)
}

/// Whether these are of one time, and as many as a server gives that has more: a page's measure, or a round number beyond it.
pub(super) fn is_full(records: &[Record], shape: &Shape) -> bool {
    let count = records.len();
    let is_measure = count == shape.max_page
        || count > shape.max_page && (count.is_multiple_of(50) || count.is_power_of_two());
    is_measure && is_one_time(records, shape)
}
