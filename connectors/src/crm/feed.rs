//! The change feed, for triggers and for the operation `changes`.

use super::{Crm, changes, exchange::Talk, mask};
use crate::{Change, Changes, Failure, Feeds, Outcome, Patience, Start};
use serde_json::{Map, Value, json};
use std::{future::Future, pin::Pin};

impl Feeds for Crm {
    fn changes<'a>(
        &'a self,
        entity: &'a str,
        start: Start<'a>,
        limit: usize,
        patience: &'a Patience,
    ) -> Pin<Box<dyn Future<Output = Result<Changes, Failure>> + Send + 'a>> {
        Box::pin(async move {
            let entity = self.words().entity(entity)?;
            let wanted: Vec<_> = entity.fields.iter().collect();
            changes::start(self, &Talk::from(patience), entity, &wanted, start, limit.clamp(1, 1000))
                .await
                .map_err(|failure| {
                    let failure = self.exchange.secrets.leave(failure);
                    mask::without_host(failure, self.exchange.base.host_str())
                })
        })
    }
}

/// A page as the contract has it.
pub(super) fn outcome(page: Changes) -> Outcome {
    let items: Vec<Value> = page.items.into_iter().map(item).collect();
    let result = json!({
        "items": items,
        "next_cursor": page.next_cursor,
        "more": page.more,
        "complete_deletes": page.complete_deletes,
    });
    Outcome { result, synced: None, leaves: false }
}

fn item(change: Change) -> Value {
    let mut item = Map::new();
    item.insert("op".to_owned(), json!(change.op.as_str()));
    item.insert("id".to_owned(), json!(change.id));
    if let Some(key) = change.key {
        item.insert("key".to_owned(), Value::Object(key));
    }
    if let Some(version) = change.version {
        item.insert("version".to_owned(), json!(version));
    }
    if let Some(fields) = change.fields {
        item.insert("fields".to_owned(), Value::Object(fields));
    }
    Value::Object(item)
}
