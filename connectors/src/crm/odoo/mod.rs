//! Odoo by its external API: JSON-RPC up to version 18, JSON-2 from 19 on, or as the server's version has it.
//!
//! - A key that is mapped to `xmlid` is the record's external id. `load` makes record and external id in one transaction,
//!   and of several at once one wins; a key in another field is kept apart by nothing.
//! - `load` refuses inside a success: no ids, and messages that name fields.
//! - Times come cut off to the second while the database goes on in microseconds, so within a second the order
//!   is not by id.
//! - Archived records are found like others; the field `archived` tells them.

mod product;
mod read;
mod relation;
mod rpc;
mod values;
mod write;

use super::{
    dialect::{
        Abilities, Boxed, Changed, Described, Description, Dialect, Feed, Listed, Page, Span, Written,
    },
    error::{CrmError, Problem},
    exchange::Talk,
    settings::CallSpec,
    shape,
    vocabulary::{Entity, Field, Given, Record},
};
use jiff::tz::TimeZone;
pub(super) use product::PRODUCT;
use read::by_our_names;
use rpc::{Invoked, Rpc};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use values::Place;

const MAX_PAGE: usize = 500;

/// What `fields_get` says of a field.
#[derive(Debug, Clone)]
struct Known {
    kind: String,
    required: bool,
    readonly: bool,
    relation: Option<String>,
}

type Model = Arc<BTreeMap<String, Known>>;

struct Odoo {
    rpc: Rpc,
    module: String,
    archives: bool,
    unique_keys: bool,
    /// What models look like, for the relations.
    models: Mutex<BTreeMap<String, Model>>,
}

/// Archived records count; texts of selections and times do not depend on the account's language and zone.
fn context() -> Value {
    json!({ "active_test": false, "lang": "en_US", "tz": "UTC" })
}

impl Odoo {
    async fn call(
        &self,
        talk: &Talk,
        model: &str,
        method: &str,
        ids: Option<Vec<i64>>,
        args: Vec<(&'static str, Value)>,
        writes: bool,
    ) -> Result<Value, CrmError> {
        let call = Invoked { model, method, ids, args, named: Map::new(), context: context(), writes };
        self.rpc.call(talk, call).await
    }
}

impl Dialect for Odoo {
    fn abilities(&self) -> Abilities {
        Abilities {
            native_upsert: false,
            versions: false,
            unique_keys: self.unique_keys,
            feed: Feed::Time { granularity: Duration::from_secs(1), keyset: false, ties_ordered: true },
            max_page: MAX_PAGE,
        }
    }

    fn probe<'a>(&'a self, talk: &'a Talk) -> Boxed<'a, ()> {
        Box::pin(async move {
            let args = vec![("domain", json!([["id", "=", 0]]))];
            self.call(talk, "res.users", "search_count", None, args, false).await.map(|_| ())
        })
    }

    fn get<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        id: &'a str,
        wanted: &'a [&'a Field],
    ) -> Boxed<'a, Record> {
        Box::pin(self.one(talk, entity, id, wanted))
    }

    fn find<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        wanted: &'a [&'a Field],
        filter: &'a [Given<'a>],
        page: Page<'a>,
    ) -> Boxed<'a, Listed> {
        Box::pin(async move {
            let offset = shape::offset(page.cursor)?;
            let Some(domain) = self.domain(talk, entity, filter).await? else { return Ok(Listed::default()) };
            let window = (offset, page.limit);
            let names = Self::names(wanted);
            let rows = self.search_read(talk, &entity.target, json!(domain), &names, window, "id").await;
            let rows = rows.map_err(|error| by_our_names(error, entity))?;
            let next = (rows.len() >= page.limit).then(|| (offset + rows.len()).to_string());
            Ok(Listed { records: self.records(talk, entity, wanted, &rows).await?, next })
        })
    }

    fn create<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        fields: &'a [Given<'a>],
    ) -> Boxed<'a, Written> {
        Box::pin(async move {
            let key = fields.iter().find(|given| Place::of(given.field) == Place::Xmlid);
            if let Some(key) = key.and_then(|given| given.value.as_str()) {
                self.hold_to_kind(talk, entity, key).await?;
                return self.load(talk, entity, key, fields).await;
            }
            let mut values = self.values(talk, entity, fields).await?;
            if let Some(company) = Self::kind_of(entity) {
                values.entry("is_company").or_insert(json!(company));
            }
            let args = vec![("vals_list", json!([values]))];
            let made = self.call(talk, &entity.target, "create", None, args, true).await?;
            let id = made.get(0).and_then(shape::id);
            let id = id.ok_or_else(|| {
                CrmError::new(Problem::Ambiguous).reason("it does not tell the id of the record")
            })?;
            Ok(Written { id, version: None })
        })
    }

    fn update<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        id: &'a str,
        fields: &'a [Given<'a>],
        _if_version: Option<&'a str>,
    ) -> Boxed<'a, Written> {
        Box::pin(async move {
            let number: i64 = id.parse().map_err(|_| CrmError::new(Problem::NotFound))?;
            let values = self.values(talk, entity, fields).await?;
            self.call(talk, &entity.target, "write", Some(vec![number]), vec![("vals", json!(values))], true)
                .await?;
            Ok(Written { id: id.to_owned(), version: None })
        })
    }

    fn delete<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        id: &'a str,
        _if_version: Option<&'a str>,
    ) -> Boxed<'a, ()> {
        Box::pin(async move {
            // Some versions delete what is not there without a word.
            self.one(talk, entity, id, &[]).await?;
            let ids = Some(vec![id.parse().map_err(|_| CrmError::new(Problem::NotFound))?]);
            let done = if self.archives {
                self.call(
                    talk,
                    &entity.target,
                    "write",
                    ids,
                    vec![("vals", json!({ "active": false }))],
                    true,
                )
                .await
            } else {
                self.call(talk, &entity.target, "unlink", ids, Vec::new(), true).await
            };
            done.map(|_| ())
        })
    }

    fn changed<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        wanted: &'a [&'a Field],
        span: Span<'a>,
    ) -> Boxed<'a, Changed> {
        Box::pin(async move {
            let mut domain = Self::base_domain(entity);
            if let Some(since) = span.since {
                let since = since.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S").to_string();
                domain.push(json!(["write_date", ">=", since]));
            }
            let (names, window) = (Self::names(wanted), (span.offset, span.limit));
            let rows =
                self.search_read(talk, &entity.target, json!(domain), &names, window, "write_date, id").await;
            let rows = rows.map_err(|error| by_our_names(error, entity))?;
            let records = self.records(talk, entity, wanted, &rows).await?;
            if records.iter().any(|record| record.modified.is_none()) {
                return Err(CrmError::new(Problem::Unsupported).reason("its records do not tell write_date"));
            }
            Ok(Changed { end: rows.len() < span.limit, records, ..Changed::default() })
        })
    }

    fn call<'a>(
        &'a self,
        talk: &'a Talk,
        call: &'a CallSpec,
        args: &'a Map<String, Value>,
    ) -> Boxed<'a, Value> {
        Box::pin(async move {
            let unsupported = || CrmError::new(Problem::Unsupported);
            let (model, method) =
                call.target.as_deref().and_then(|target| target.rsplit_once('.')).ok_or_else(unsupported)?;
            let ids = match args.get("ids").or_else(|| args.get("id")) {
                None => None,
                Some(Value::Array(ids)) => Some(ids.iter().filter_map(Value::as_i64).collect()),
                Some(one) => Some(shape::id(one).and_then(|id| id.parse().ok()).into_iter().collect()),
            };
            let rest: Map<String, Value> = args
                .iter()
                .filter(|(name, _)| !matches!(name.as_str(), "id" | "ids" | "context"))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            let call = Invoked {
                model,
                method,
                ids,
                args: Vec::new(),
                named: rest,
                context: context(),
                writes: true,
            };
            self.rpc.call(talk, call).await
        })
    }

    fn describe<'a>(&'a self, talk: &'a Talk, entity: &'a Entity) -> Boxed<'a, Option<Description>> {
        Box::pin(async move {
            let model = self.read_model(talk, &entity.target).await?;
            let required: Vec<&String> =
                model.iter().filter(|(_, known)| known.required).map(|(name, _)| name).collect();
            let args = vec![("fields_list", json!(required))];
            let defaults = self.call(talk, &entity.target, "default_get", None, args, false).await?;
            let described = |field: &Field| {
                let place = Place::of(field);
                let Some(name) = place.name() else {
                    return Some(Described {
                        target: field.target.clone(),
                        required: false,
                        read_only: false,
                        kind: None,
                        max_length: None,
                    });
                };
                let known = model.get(name)?;
                Some(Described {
                    target: field.target.clone(),
                    required: known.required && defaults.get(name).is_none(),
                    read_only: known.readonly,
                    kind: None,
                    max_length: None,
                })
            };
            let fields = entity.fields.iter().filter_map(described).collect();
            Ok(Some(Description { fields, complete: true }))
        })
    }
}
