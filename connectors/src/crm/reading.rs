//! Reading records: one, or pages of those that fit.

use super::{
    Crm, cursor,
    dialect::Page,
    exchange::Talk,
    key::id_of,
    pages,
    params::{Pair, Which, given},
    vocabulary::{Entity, Field, Record},
};
use crate::{Call, Failure, Outcome};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What is searched for.
pub(super) struct Find<'e> {
    pub(super) entity: &'e Entity,
    pub(super) filter: Vec<Pair<'e>>,
    pub(super) limit: usize,
    pub(super) cursor: Option<String>,
}

/// The head of a cursor of a search.
#[derive(Serialize, Deserialize)]
struct Head {
    /// A digest of what is searched for.
    f: String,
    /// Where the dialect goes on.
    n: String,
    /// How many records a page has, where those asked for did not fit into a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    l: Option<usize>,
    /// A digest of the records of this page, which the next one does not repeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    p: Option<String>,
}

/// How long a page of records may be as JSON: the agent takes results of up to 256 KiB.
const MAX_PAGE: usize = 240 * 1024;

/// With how many records to ask again for a page that was too long; `None`: it is short enough, or cannot be shorter.
pub(super) fn shorter(limit: usize, page: &Value) -> Option<usize> {
    let length = page.to_string().len();
    if length <= MAX_PAGE || limit <= 1 {
        return None;
    }
    // With some room: other records are longer.
    Some((limit.saturating_mul(MAX_PAGE / 4 * 3) / length).clamp(1, limit / 2))
}

/// One record.
pub(super) async fn get(
    crm: &Crm,
    call: &Call,
    entity: &Entity,
    which: &Which<'_>,
    wanted: &[&Field],
) -> Result<Outcome, Failure> {
    let talk = Talk::from(call);
    let id = match which {
        Which::Id(id) => id.clone(),
        Which::Key(key) => match id_of(crm, &talk, entity, key).await? {
            Some(record) => record.id,
            None => return Err(super::error::CrmError::new(super::error::Problem::NotFound).into()),
        },
    };
    let record = crm.dialect.get(&talk, entity, &id, wanted).await?;
    Ok(Outcome { result: shown(record, wanted), synced: None, leaves: false })
}

/// A page of records.
pub(super) async fn find(
    crm: &Crm,
    call: &Call,
    find: &Find<'_>,
    wanted: &[&Field],
) -> Result<Outcome, Failure> {
    let talk = Talk::from(call);
    let asked = print(find, wanted);
    let (mut smaller, mut before) = (None, None);
    let next = match &find.cursor {
        None => None,
        Some(text) => {
            let (head, _): (Head, _) = crm.cursors.open(text)?;
            if head.f != asked {
                return Err(cursor::refused());
            }
            (smaller, before) = (head.l, head.p);
            Some(head.n)
        }
    };
    let most = find.limit.min(crm.dialect.abilities().max_page.max(1));
    loop {
        let page = Page { limit: smaller.unwrap_or(most), cursor: next.as_deref() };
        let listed = crm.find(&talk, find.entity, wanted, &given(&find.filter), page).await?;
        // One record that comes twice may be chance.
        let ids = pages::print(&listed.records).filter(|_| listed.records.len() > 1);
        if before.is_some() && ids == before {
            return Err(pages::endless().into());
        }
        let head = listed.next.map(|n| Head { f: asked.clone(), n, l: smaller, p: ids });
        let next_cursor = head.map(|head| crm.cursors.seal(&head, &[])).transpose()?;
        let items: Vec<Value> = listed.records.into_iter().map(|record| shown(record, wanted)).collect();
        let result = json!({ "items": items, "next_cursor": next_cursor });
        // Later pages are counted in the size of the first.
        match shorter(page.limit, &result).filter(|_| next.is_none()) {
            Some(limit) => smaller = Some(limit),
            None => return Ok(Outcome { result, synced: None, leaves: false }),
        }
        call.progress.beat();
    }
}

/// A cursor goes on with the search it came from, and no other.
fn print(find: &Find<'_>, wanted: &[&Field]) -> String {
    let filter: Vec<_> = find.filter.iter().map(|(field, value)| (&field.name, value)).collect();
    let names: Vec<_> = wanted.iter().map(|field| &field.name).collect();
    let text = format!("{} {filter:?} {names:?} {}", find.entity.name, find.limit);
    cursor::digest_of(&text)
}

/// A record as the contract has it: nothing but what was asked for and may be shown.
fn shown(mut record: Record, wanted: &[&Field]) -> Value {
    record.fields.retain(|name, _| wanted.iter().any(|field| field.name == *name));
    let mut item = json!({ "id": record.id, "fields": record.fields });
    if let Some(version) = record.version {
        item["version"] = Value::String(version);
    }
    if let Some(modified) = record.modified {
        item["modified_at"] = Value::String(modified.to_string());
    }
    item
}
