//! Odoo by its external API: JSON-RPC up to version 18, JSON-2 from 19 on, or as the server's version has it.
//!
//! - A key that is mapped to `xmlid` is the record's external id. `load` makes record and external id in one transaction,
//!   and of several at once one wins; a key in another field is kept apart by nothing.
//! - `load` refuses inside a success: no ids, and messages that name fields.
//! - Times come cut off to the second while the database goes on in microseconds, so within a second the order
//!   is not by id.
//! - Archived records are found like others; the field `archived` tells them.

mod product;
mod relation;
mod rpc;
mod values;

use super::{
    dialect::{
        Abilities, Boxed, Changed, Described, Description, Dialect, Feed, Listed, Page, Span, Written,
    },
    error::{Clash, CrmError, FieldError, Problem},
    exchange::Talk,
    settings::CallSpec,
    shape,
    vocabulary::{Entity, Field, FieldType, Given, Record, timestamp},
};
use jiff::tz::TimeZone;
pub(super) use product::PRODUCT;
use rpc::{Invoked, Rpc};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use values::{Place, from_odoo, to_cell, to_odoo, xmlid_key, xmlid_name};

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

    async fn search_read(
        &self,
        talk: &Talk,
        model: &str,
        domain: Value,
        fields: &[&str],
        window: (usize, usize),
        order: &str,
    ) -> Result<Vec<Value>, CrmError> {
        let args = vec![
            ("domain", domain),
            ("fields", json!(fields)),
            ("offset", json!(window.0)),
            ("limit", json!(window.1)),
            ("order", json!(order)),
        ];
        match self.call(talk, model, "search_read", None, args, false).await? {
            Value::Array(rows) => Ok(rows),
            _ => Err(CrmError::new(Problem::Protocol).reason("a search gave no list")),
        }
    }

    /// People and companies are records of one model.
    fn kind_of(entity: &Entity) -> Option<bool> {
        match (entity.target.as_str(), entity.name.as_str()) {
            ("res.partner", "contact") => Some(false),
            ("res.partner", "company") => Some(true),
            _ => None,
        }
    }

    fn base_domain(entity: &Entity) -> Vec<Value> {
        Self::kind_of(entity).map(|company| json!(["is_company", "=", company])).into_iter().collect()
    }

    /// The names of the model's fields to read.
    fn names<'f>(wanted: &[&'f Field]) -> Vec<&'f str> {
        let mut names: Vec<&str> = wanted.iter().filter_map(|field| Place::of(field).name()).collect();
        names.extend(["id", "write_date"]);
        names.sort_unstable();
        names.dedup();
        names
    }

    async fn records(
        &self,
        talk: &Talk,
        entity: &Entity,
        wanted: &[&Field],
        rows: &[Value],
    ) -> Result<Vec<Record>, CrmError> {
        let mut records = Vec::new();
        for row in rows {
            let id = row.get("id").and_then(shape::id);
            let id = id.ok_or_else(|| CrmError::new(Problem::Protocol).reason("a record has no id"))?;
            let modified = row.get("write_date").and_then(Value::as_str).and_then(timestamp);
            let mut fields = Map::new();
            for field in wanted {
                let value = match Place::of(field) {
                    Place::Plain(name) => row.get(name).map(|value| from_odoo(field.kind, value)),
                    Place::Negated(name) => row.get(name).and_then(Value::as_bool).map(|flag| json!(!flag)),
                    Place::Xmlid | Place::Through(..) => None,
                };
                fields.extend(value.map(|value| (field.name.clone(), value)));
            }
            records.push(Record { id, version: None, modified, fields });
        }
        for field in wanted {
            self.fill_in(talk, entity, field, rows, &mut records).await?;
        }
        Ok(records)
    }

    async fn one(
        &self,
        talk: &Talk,
        entity: &Entity,
        id: &str,
        wanted: &[&Field],
    ) -> Result<Record, CrmError> {
        let number: i64 = id.parse().map_err(|_| CrmError::new(Problem::NotFound))?;
        let domain = json!([["id", "=", number]]);
        let rows = self.search_read(talk, &entity.target, domain, &Self::names(wanted), (0, 1), "id").await?;
        let records = self.records(talk, entity, wanted, &rows).await?;
        records.into_iter().next().ok_or_else(|| CrmError::new(Problem::NotFound))
    }

    /// What a filter comes to; `None`: nothing can fit.
    async fn domain(
        &self,
        talk: &Talk,
        entity: &Entity,
        filter: &[Given<'_>],
    ) -> Result<Option<Vec<Value>>, CrmError> {
        let mut domain = Self::base_domain(entity);
        for given in filter {
            let term = match Place::of(given.field) {
                Place::Plain(name) => json!([name, "=", to_odoo(given.field.kind, given.value)]),
                Place::Negated(name) => json!([name, "=", given.value != &json!(true)]),
                Place::Through(name, _) => match self.resolve(talk, entity, given).await? {
                    Ok(id) => json!([name, "=", id]),
                    Err(_) => return Ok(None),
                },
                Place::Xmlid => {
                    let Some(key) = given.value.as_str() else { return Ok(None) };
                    match self.by_xmlid(talk, &entity.target, key).await? {
                        Some(id) => json!(["id", "=", id]),
                        None => return Ok(None),
                    }
                }
            };
            domain.push(term);
        }
        Ok(Some(domain))
    }

    /// The values of a record as `write` and `create` take them.
    async fn values(
        &self,
        talk: &Talk,
        entity: &Entity,
        fields: &[Given<'_>],
    ) -> Result<Map<String, Value>, CrmError> {
        let mut values = Map::new();
        let mut wrong = Vec::new();
        for given in fields {
            let (name, value) = match Place::of(given.field) {
                Place::Plain("order_line") => ("order_line", relation::lines_to_write(given)?),
                Place::Plain(name) => (name, to_odoo(given.field.kind, given.value)),
                Place::Negated(name) => (name, json!(given.value != &json!(true))),
                Place::Through(name, _) => match self.resolve(talk, entity, given).await? {
                    Ok(id) => (name, id),
                    Err(error) => {
                        wrong.push(error);
                        continue;
                    }
                },
                Place::Xmlid => {
                    wrong.push(FieldError::new(
                        &given.field.name,
                        "an external id is set with the record's creation",
                    ));
                    continue;
                }
            };
            values.insert(name.to_owned(), value);
        }
        if wrong.is_empty() { Ok(values) } else { Err(CrmError::invalid(wrong)) }
    }

    /// Sees that an external id does not name a record already, of the other kind, say: `load` would change that one.
    async fn hold_to_kind(&self, talk: &Talk, entity: &Entity, key: &str) -> Result<(), CrmError> {
        let Some(id) = self.by_xmlid(talk, &entity.target, key).await? else { return Ok(()) };
        let rows =
            self.search_read(talk, &entity.target, json!([["id", "=", id]]), &["id"], (0, 1), "id").await?;
        if rows.is_empty() {
            // What it named is gone; `load` makes another one.
            return Ok(());
        }
        Err(CrmError::conflict(Clash::Duplicate, vec![id.to_string()]))
    }

    /// Makes a record together with its external id, in one transaction.
    async fn load(
        &self,
        talk: &Talk,
        entity: &Entity,
        key: &str,
        fields: &[Given<'_>],
    ) -> Result<Written, CrmError> {
        let mut headers = vec!["id".to_owned()];
        let mut cells = vec![format!("{}.{}", self.module, xmlid_name(key))];
        let mut more = Vec::new();
        let mut wrong = Vec::new();
        for given in fields {
            match Place::of(given.field) {
                Place::Xmlid => {}
                Place::Plain("order_line") => {
                    more = relation::lines_to_load(given, &mut headers, &mut cells)?;
                }
                Place::Plain(name) => {
                    headers.push(name.to_owned());
                    cells.push(to_cell(given.field.kind, given.value));
                }
                Place::Negated(name) => {
                    headers.push(name.to_owned());
                    cells.push(to_cell(FieldType::Boolean, &json!(given.value != &json!(true))));
                }
                Place::Through(name, _) => match self.resolve(talk, entity, given).await? {
                    Ok(id) => {
                        headers.push(format!("{name}/.id"));
                        cells.push(id.as_i64().map(|id| id.to_string()).unwrap_or_default());
                    }
                    Err(error) => wrong.push(error),
                },
            }
        }
        if !wrong.is_empty() {
            return Err(CrmError::invalid(wrong));
        }
        if let Some(company) =
            Self::kind_of(entity).filter(|_| !headers.iter().any(|name| name == "is_company"))
        {
            headers.push("is_company".to_owned());
            cells.push(to_cell(FieldType::Boolean, &json!(company)));
        }
        let width = headers.len();
        let lines: Vec<Vec<String>> = std::iter::once(cells).chain(more).collect();
        let padded: Vec<Vec<String>> = lines
            .into_iter()
            .map(|mut line| {
                line.resize(width, String::new());
                line
            })
            .collect();
        let args = vec![("fields", json!(headers)), ("data", json!(padded))];
        let said = self.call(talk, &entity.target, "load", None, args, true).await?;
        let id = said.get("ids").and_then(|ids| ids.get(0)).and_then(shape::id);
        id.map(|id| Written { id, version: None }).ok_or_else(|| refused_load(entity, &said))
    }
}

/// Why `load` made nothing: its messages.
fn refused_load(entity: &Entity, said: &Value) -> CrmError {
    let messages = said.get("messages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |message: &Value| message.get("message").and_then(Value::as_str).unwrap_or("").to_owned();
    if messages.iter().any(|message| text(message).contains("duplicate key")) {
        return CrmError::conflict(Clash::Duplicate, Vec::new());
    }
    if messages.iter().any(|message| text(message).contains("could not serialize")) {
        return CrmError::new(Problem::Throttled { retry_after: None });
    }
    let field = |message: &Value| {
        let theirs = message.get("field")?;
        let theirs = theirs.as_str().or_else(|| theirs.get(0)?.as_str())?;
        let ours = entity.fields.iter().find(|field| Place::of(field).name() == Some(theirs));
        Some(FieldError::new(ours.map_or(theirs, |field| field.name.as_str()), &text(message)))
    };
    let fields: Vec<FieldError> = messages.iter().filter_map(field).collect();
    let reason = messages.first().map(text).unwrap_or_default();
    let error = CrmError::invalid(fields.clone());
    if fields.is_empty() { error.reason(&reason) } else { error }
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
            let rows = self.search_read(talk, &entity.target, json!(domain), &names, window, "id").await?;
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
            let rows = self
                .search_read(talk, &entity.target, json!(domain), &names, window, "write_date, id")
                .await?;
            let records = self.records(talk, entity, wanted, &rows).await?;
            if records.iter().any(|record| record.modified.is_none()) {
                return Err(CrmError::new(Problem::Unsupported).reason("its records do not tell write_date"));
            }
            Ok(Changed { end: rows.len() < span.limit, records })
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
