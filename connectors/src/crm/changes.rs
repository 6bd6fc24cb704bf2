//! What changed: resumable, without loss, without endless repetition.
//!
//! A target tells changes by time ([`by_time`]), or by a token of its own, which is passed on inside the cursor.

mod by_time;

use super::{
    Crm, cursor,
    dialect::Feed,
    error::{CrmError, Problem},
    exchange::Talk,
    params::From,
    recent::{At, Recent, floor_to},
    vocabulary::{Entity, Field, Record},
};
use crate::{Change, ChangeOp, Changes, Failure, Start};
use aws_lc_rs::digest;
use by_time::Reader;
use serde::{Deserialize, Serialize};
use serde_json::Map;

/// Pages that are read and dropped to begin a target's own feed with now.
const MAX_SKIPPED: usize = 10_000;

/// The head of a cursor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Head {
    /// The entity, by our name.
    e: String,
    #[serde(flatten)]
    kind: HeadKind,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "k", rename_all = "snake_case")]
enum HeadKind {
    /// By time.
    Time(At),
    /// By the target's token; `s` is a digest of the mapping, which such tokens may have inside.
    Token { t: String, s: String },
}

/// Reads one page for a job or a trigger. `wanted` are the fields that may be shown.
pub(super) async fn page(
    crm: &Crm,
    talk: &Talk,
    entity: &Entity,
    wanted: &[&Field],
    from: &From,
    limit: usize,
) -> Result<Changes, Failure> {
    let head = match from {
        From::Cursor(text) => {
            let (head, tail): (Head, Vec<u8>) = crm.cursors.open(text)?;
            if head.e != entity.name {
                return Err(cursor::refused());
            }
            Some((head.kind, tail))
        }
        From::Beginning | From::Since(_) => None,
    };
    let since = match from {
        From::Since(since) => Some(*since),
        From::Beginning | From::Cursor(_) => None,
    };
    // The key is told with every change, whether it is shown as a field or not.
    let key = entity.key().filter(|key| !wanted.iter().any(|field| field.name == key.name));
    let shown = wanted;
    let wanted: &[&Field] = &[wanted, key.as_slice()].concat();
    match (crm.dialect.abilities().feed, head) {
        (Feed::None, _) => {
            Err(CrmError::new(Problem::Unsupported).reason("it does not tell what changed").into())
        }
        (Feed::Time { granularity, keyset, ties_ordered }, head) => {
            let (at, recent) = match head {
                Some((HeadKind::Time(at), tail)) => {
                    let recent = Recent::from_bytes(&tail, at.high.unwrap_or_default());
                    (at, recent)
                }
                Some((HeadKind::Token { .. }, _)) => return Err(cursor::refused()),
                None => {
                    let floor = since.map(|since| since.as_microsecond());
                    (At { floor, ..At::default() }, Recent::default())
                }
            };
            let reader =
                Reader { crm, talk, entity, wanted, shown, granularity, keyset, ties_ordered, limit };
            reader.read(at, recent).await
        }
        (Feed::Token { complete_deletes }, head) => {
            let schema = schema(entity, wanted);
            let token = match head {
                Some((HeadKind::Token { t, s }, _)) if s == schema => Some(t),
                Some(_) => return Err(cursor::refused()),
                None if since.is_some() => {
                    let reason = "its feed has no times; begin with all records, or with a cursor";
                    return Err(CrmError::new(Problem::Unsupported).reason(reason).into());
                }
                None => None,
            };
            let delta = crm.dialect.delta(talk, entity, wanted, token.as_deref(), limit).await;
            let delta = delta.map_err(|error| error.of_collection(&entity.name))?;
            let items =
                delta.changes.into_iter().map(|told| change(entity, shown, told.op, told.record)).collect();
            let kind = HeadKind::Token { t: delta.token, s: schema };
            let next_cursor = crm.cursors.seal(&Head { e: entity.name.clone(), kind }, &[])?;
            Ok(Changes { items, next_cursor, more: delta.more, complete_deletes })
        }
    }
}

/// Where a trigger begins that wants only what changes from now on.
pub(super) async fn now(
    crm: &Crm,
    talk: &Talk,
    entity: &Entity,
    wanted: &[&Field],
) -> Result<String, Failure> {
    match crm.dialect.abilities().feed {
        Feed::None => Err(CrmError::new(Problem::Unsupported).reason("it does not tell what changed").into()),
        Feed::Time { granularity, .. } => {
            // Says what its clock shows, where it answers with a date.
            crm.dialect.probe(talk).await?;
            let now = crm.exchange.target_now().as_microsecond();
            let floor = Some(floor_to(now, granularity));
            let kind = HeadKind::Time(At { floor, ..At::default() });
            crm.cursors.seal(&Head { e: entity.name.clone(), kind }, &[])
        }
        Feed::Token { .. } => {
            let mut from = From::Beginning;
            let limit = crm.dialect.abilities().max_page;
            for _ in 0..MAX_SKIPPED {
                let page = page(crm, talk, entity, wanted, &from, limit).await?;
                if !page.more {
                    return Ok(page.next_cursor);
                }
                from = From::Cursor(page.next_cursor);
            }
            Err(CrmError::new(Problem::Protocol).reason("its feed has no end").into())
        }
    }
}

/// As triggers begin.
pub(super) async fn start(
    crm: &Crm,
    talk: &Talk,
    entity: &Entity,
    wanted: &[&Field],
    start: Start<'_>,
    limit: usize,
) -> Result<Changes, Failure> {
    let from = match start {
        Start::Now => {
            let next_cursor = now(crm, talk, entity, wanted).await?;
            let complete_deletes =
                matches!(crm.dialect.abilities().feed, Feed::Token { complete_deletes: true });
            return Ok(Changes { items: Vec::new(), next_cursor, more: false, complete_deletes });
        }
        Start::Beginning => From::Beginning,
        Start::Since(since) => From::Since(since),
        Start::Cursor(cursor) => From::Cursor(cursor.to_owned()),
    };
    page(crm, talk, entity, wanted, &from, limit).await
}

/// A digest of what a target's own token may have inside.
fn schema(entity: &Entity, wanted: &[&Field]) -> String {
    let names: Vec<_> = wanted.iter().map(|field| (field.name.as_str(), field.target.as_str())).collect();
    let digest = digest::digest(&digest::SHA256, format!("{} {names:?}", entity.target).as_bytes());
    digest.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// A record as a change.
fn change(entity: &Entity, shown: &[&Field], op: ChangeOp, mut record: Record) -> Change {
    let key = entity.key().and_then(|key| {
        let value = record.fields.get(&key.name).filter(|value| !value.is_null())?;
        Some(Map::from_iter([(key.name.clone(), value.clone())]))
    });
    record.fields.retain(|name, _| shown.iter().any(|field| field.name == *name));
    let stamp = match (&record.modified, &record.version) {
        (Some(modified), Some(version)) => format!("{modified} {version}"),
        (Some(modified), None) => modified.to_string(),
        (None, Some(version)) => version.clone(),
        (None, None) => String::new(),
    };
    let fields = (op == ChangeOp::Upsert).then_some(record.fields);
    Change { op, key, version: record.version, fields, stamp, id: record.id }
}
