//! `SuiteCRM` by its V8 API (JSON:API below `Api/`).
//!
//! - **Keys**: a new record gets an id that follows from its key ([`ids`]), so of several at once one is made and the
//!   others are refused. The key stands in a field as well (`external_id_c`), or, mapped to `id`, in the id alone.
//! - A deleted record keeps its id: the next one of its key takes the next id of the key's row.
//! - It refuses nearly everything with 400 and a sentence; it saves records without their required fields.
//! - Text comes back with HTML entities (its public issue 8101), which are undone.
//! - Times are in whole seconds; lists are ordered by one field alone.

mod ids;
mod refusal;

use super::{
    dialect::{
        Abilities, Boxed, Changed, Described, Description, Dialect, Feed, Listed, Page, Span, Written,
    },
    dialects::{KnownEntity, Product},
    error::{Clash, CrmError, Problem},
    exchange::{
        Exchange, Talk,
        request::{Request, segment},
    },
    settings::{CallSpec, Findings, Settings},
    shape,
    vocabulary::{Entity, Field, FieldType, Given, Record, timestamp},
};
use crate::BuildError;
use http::Method;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Map, Value, json};
use std::{path::Path, sync::Arc, time::Duration};
use uuid::Uuid;

const NAMESPACE: &str = "namespace";
const MAX_PAGE: usize = 100;
/// How many records of one key may have been deleted before it finds no id any more.
const GENERATIONS: u32 = 4;

/// `SuiteCRM`.
pub(super) const PRODUCT: Product = Product {
    name: "suitecrm",
    auth: &["oauth2"],
    options: &[NAMESPACE],
    entities: &[
        KnownEntity {
            name: "contact",
            target: "Contacts",
            fields: &[
                ("external_id", "external_id_c"),
                ("first_name", "first_name"),
                ("last_name", "last_name"),
                ("email", "email1"),
                ("phone", "phone_work"),
                ("mobile", "phone_mobile"),
                ("street", "primary_address_street"),
                ("postal_code", "primary_address_postalcode"),
                ("city", "primary_address_city"),
                ("country", "primary_address_country"),
            ],
        },
        KnownEntity {
            name: "company",
            target: "Accounts",
            fields: &[
                ("external_id", "external_id_c"),
                ("name", "name"),
                ("email", "email1"),
                ("phone", "phone_office"),
                ("website", "website"),
                ("street", "billing_address_street"),
                ("postal_code", "billing_address_postalcode"),
                ("city", "billing_address_city"),
                ("country", "billing_address_country"),
            ],
        },
    ],
    check,
    build,
};

fn check(settings: &Settings, findings: &mut Findings<'_>) {
    if settings.auth.is_none() {
        findings.wrong(
            "auth",
            "missing; write { kind = \"oauth2\", token_url = \"…/Api/access_token\", style = \"body\", client_id = \"…\", client_secret = { file = \"…\" } }",
        );
    }
    if settings.option(NAMESPACE).is_some_and(|text| text.parse::<Uuid>().is_err()) {
        findings.wrong("options.namespace", "expected a UUID");
    }
    shape::check_calls(settings, findings);
}

fn build(settings: &Settings, _base: &Path, exchange: Arc<Exchange>) -> Result<Arc<dyn Dialect>, BuildError> {
    let namespace = settings.option(NAMESPACE).and_then(|text| text.parse().ok()).unwrap_or(ids::NAMESPACE);
    let one_key = settings.entities.iter().all(|entity| entity.keys.len() <= 1);
    Ok(Arc::new(SuiteCrm { exchange, namespace, one_key }))
}

struct SuiteCrm {
    exchange: Arc<Exchange>,
    namespace: Uuid,
    /// Ids follow from the first key of an entity alone, so a second one is not kept unique by them.
    one_key: bool,
}

impl SuiteCrm {
    async fn resource(&self, talk: &Talk, entity: &Entity, id: &str) -> Result<Value, CrmError> {
        let path = format!("V8/module/{}/{}", segment(&entity.target)?, segment(id)?);
        let answer = self.exchange.send(talk, Request::path(Method::GET, path)).await?;
        refusal::check(&answer, Some(entity))?;
        answer
            .json()?
            .get_mut("data")
            .map(Value::take)
            .ok_or_else(|| answer.nonsense("an answer has no data"))
    }

    async fn list(
        &self,
        talk: &Talk,
        entity: &Entity,
        filter: Vec<(String, String)>,
        sort: &str,
        (size, number): (usize, usize),
    ) -> Result<Vec<Value>, CrmError> {
        let mut request = Request::path(Method::GET, format!("V8/module/{}", segment(&entity.target)?))
            .query("sort", sort)
            .query("page[size]", size.to_string())
            .query("page[number]", (number + 1).to_string());
        if !filter.is_empty() {
            request = request.query("filter[operator]", "and");
        }
        for (key, value) in filter {
            request = request.query(key, value);
        }
        let answer = self.exchange.send(talk, request).await?;
        refusal::check(&answer, Some(entity))?;
        match answer.json()?.get_mut("data").map(Value::take) {
            Some(Value::Array(rows)) => Ok(rows),
            _ => Err(answer.nonsense("a page has no list of records")),
        }
    }

    async fn write(
        &self,
        talk: &Talk,
        entity: &Entity,
        method: Method,
        id: Option<&str>,
        fields: &[Given<'_>],
    ) -> Result<Written, CrmError> {
        let mut attributes = Map::new();
        for given in fields.iter().filter(|given| given.field.target != "id") {
            attributes.insert(given.field.target.clone(), to_suite(given.field.kind, given.value));
        }
        let mut data = json!({ "type": entity.target, "attributes": attributes });
        if let Some(id) = id {
            data["id"] = json!(id);
        }
        let request = Request::path(method, "V8/module").json(&json!({ "data": data }));
        let answer = self.exchange.send(talk, request).await?;
        refusal::check(&answer, Some(entity))?;
        let said = answer.json()?;
        let id = shape::at(&said, "data.id").and_then(shape::id);
        let id = id.ok_or_else(|| answer.nonsense("it does not tell the id of the record"))?;
        Ok(Written { id, version: None })
    }

    /// The record whose id follows from a key.
    async fn by_id_of(
        &self,
        talk: &Talk,
        entity: &Entity,
        key: &str,
        wanted: &[&Field],
    ) -> Result<Option<Record>, CrmError> {
        for generation in 0..GENERATIONS {
            let id = ids::of(self.namespace, &entity.target, key, generation);
            match self.resource(talk, entity, &id).await {
                Ok(row) => return record(&row, wanted, Some(key)).map(Some),
                Err(error) if error.problem == Problem::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// A record of JSON:API. `key` stands for the field that is mapped to the id, if the id follows from it.
fn record(row: &Value, wanted: &[&Field], key: Option<&str>) -> Result<Record, CrmError> {
    let id = row.get("id").and_then(shape::id);
    let id = id.ok_or_else(|| CrmError::new(Problem::Protocol).reason("a record has no id"))?;
    let attributes = row.get("attributes").unwrap_or(&Value::Null);
    let modified = attributes.get("date_modified").and_then(Value::as_str).and_then(timestamp);
    let mut fields = Map::new();
    for field in wanted {
        if field.target == "id" {
            fields.insert(field.name.clone(), json!(key.unwrap_or(&id)));
            continue;
        }
        let value = attributes.get(&field.target).map(|value| from_suite(field.kind, value));
        fields.extend(value.map(|value| (field.name.clone(), value)));
    }
    Ok(Record { id, version: None, modified, fields })
}

/// `2026-11-21 21:05:21`.
fn written_time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn to_suite(kind: FieldType, value: &Value) -> Value {
    match (kind, value) {
        (_, Value::Null) => json!(""),
        (FieldType::DateTime, Value::String(text)) => {
            timestamp(text).map_or_else(|| value.clone(), |at| json!(written_time(at)))
        }
        (FieldType::Boolean, Value::Bool(flag)) => json!(if *flag { "1" } else { "0" }),
        _ => value.clone(),
    }
}

fn from_suite(kind: FieldType, value: &Value) -> Value {
    match value {
        Value::String(text) => kind.read(&json!(unescape(text))),
        value => kind.read(value),
    }
}

/// Undoes the entities that `SuiteCRM` puts into text.
fn unescape(text: &str) -> String {
    if !text.contains('&') {
        return text.to_owned();
    }
    let text = text.replace("&quot;", "\"").replace("&#039;", "'").replace("&#39;", "'");
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

impl Dialect for SuiteCrm {
    fn abilities(&self) -> Abilities {
        Abilities {
            native_upsert: false,
            versions: false,
            // Of ours; what people make by hand has other ids.
            unique_keys: self.one_key,
            feed: Feed::Time { granularity: Duration::from_secs(1), keyset: false, ties_ordered: false },
            max_page: MAX_PAGE,
        }
    }

    fn probe<'a>(&'a self, talk: &'a Talk) -> Boxed<'a, ()> {
        Box::pin(async move {
            let answer = self.exchange.send(talk, Request::path(Method::GET, "V8/meta/modules")).await?;
            // Older versions have no such page, but they have looked at the token.
            if answer.status.as_u16() == 404 { Ok(()) } else { refusal::check(&answer, None) }
        })
    }

    fn get<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        id: &'a str,
        wanted: &'a [&'a Field],
    ) -> Boxed<'a, Record> {
        Box::pin(async move { record(&self.resource(talk, entity, id).await?, wanted, None) })
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
            let key =
                filter.iter().find(|given| given.field.target == "id").and_then(|given| given.value.as_str());
            if let Some(key) = key {
                let found = self.by_id_of(talk, entity, key, wanted).await?;
                return Ok(Listed { records: found.into_iter().collect(), next: None });
            }
            let mut terms = Vec::new();
            for given in filter {
                let value = match to_suite(given.field.kind, given.value) {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                terms.push((format!("filter[{}][eq]", given.field.target), value));
            }
            let offset = shape::offset(page.cursor)?;
            let (size, number, skip) = shape::numbered(offset, page.limit, MAX_PAGE);
            let rows = self.list(talk, entity, terms, "id", (size, number)).await?;
            let mut listed = Listed::default();
            let mut read = offset;
            for row in rows.iter().skip(skip) {
                if listed.records.len() == page.limit {
                    break;
                }
                read += 1;
                let found = record(row, &filter.iter().map(|given| given.field).collect::<Vec<_>>(), None)?;
                // Its database does not tell upper from lower case.
                let same = |given: &Given<'_>| {
                    let value = found.fields.get(&given.field.name).unwrap_or(&Value::Null);
                    given.field.kind.same(value, given.value)
                };
                if filter.iter().all(same) {
                    listed.records.push(record(row, wanted, None)?);
                }
            }
            let more = rows.len() == size || read < offset + rows.len().saturating_sub(skip);
            listed.next = more.then(|| read.to_string());
            Ok(listed)
        })
    }

    fn create<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        fields: &'a [Given<'a>],
    ) -> Boxed<'a, Written> {
        Box::pin(async move {
            let link = entity.key().and_then(|key| fields.iter().find(|given| given.field.name == key.name));
            let Some(key) = link.and_then(|given| shape::id(given.value)) else {
                return self.write(talk, entity, Method::POST, None, fields).await;
            };
            for generation in 0..GENERATIONS {
                let id = ids::of(self.namespace, &entity.target, &key, generation);
                match self.write(talk, entity, Method::POST, Some(&id), fields).await {
                    Err(error) if refusal::is_taken(&error) => {}
                    done => return done,
                }
                match self.resource(talk, entity, &id).await {
                    // A deleted one has it.
                    Err(error) if error.problem == Problem::NotFound => {}
                    Err(error) => return Err(error),
                    Ok(_) => return Err(CrmError::conflict(Clash::Duplicate, vec![id])),
                }
            }
            let reason = "too many records of this key have been deleted at the target";
            Err(CrmError::conflict(Clash::Duplicate, Vec::new()).reason(reason))
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
        Box::pin(self.write(talk, entity, Method::PATCH, Some(id), fields))
    }

    fn delete<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        id: &'a str,
        _if_version: Option<&'a str>,
    ) -> Boxed<'a, ()> {
        Box::pin(async move {
            let path = format!("V8/module/{}/{}", segment(&entity.target)?, segment(id)?);
            let answer = self.exchange.send(talk, Request::path(Method::DELETE, path)).await?;
            refusal::check(&answer, Some(entity))
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
            let since =
                span.since.map(|since| ("filter[date_modified][gte]".to_owned(), written_time(since)));
            let (size, number, skip) = shape::numbered(span.offset, span.limit, MAX_PAGE);
            let filter = since.into_iter().collect();
            let rows = self.list(talk, entity, filter, "date_modified", (size, number)).await?;
            let records = rows.iter().skip(skip).take(span.limit).map(|row| record(row, wanted, None));
            let records = records.collect::<Result<Vec<_>, _>>()?;
            if records.iter().any(|record| record.modified.is_none()) {
                return Err(
                    CrmError::new(Problem::Unsupported).reason("its records do not tell date_modified")
                );
            }
            Ok(Changed {
                end: rows.len() < size && rows.len().saturating_sub(skip) <= span.limit,
                records,
                ..Changed::default()
            })
        })
    }

    fn made<'a>(&'a self, talk: &'a Talk, entity: &'a Entity, id: &'a str) -> Boxed<'a, Option<Timestamp>> {
        Box::pin(async move {
            let row = self.resource(talk, entity, id).await?;
            Ok(shape::at(&row, "attributes.date_entered").and_then(Value::as_str).and_then(timestamp))
        })
    }

    fn call<'a>(
        &'a self,
        talk: &'a Talk,
        call: &'a CallSpec,
        args: &'a Map<String, Value>,
    ) -> Boxed<'a, Value> {
        Box::pin(async move {
            let (_, _, request) = shape::call_parts(call, args)?;
            let answer = self.exchange.send(talk, request).await?;
            refusal::check(&answer, None)?;
            if answer.body.is_empty() { Ok(Value::Null) } else { answer.json() }
        })
    }

    fn describe<'a>(&'a self, talk: &'a Talk, entity: &'a Entity) -> Boxed<'a, Option<Description>> {
        Box::pin(async move {
            let path = format!("V8/meta/fields/{}", segment(&entity.target)?);
            let answer = self.exchange.send(talk, Request::path(Method::GET, path)).await?;
            if !answer.status.is_success() {
                return Ok(None);
            }
            let said = answer.json()?;
            let known = shape::at(&said, "data.attributes").and_then(Value::as_object);
            // Every module has it; an answer without it describes nothing.
            let Some(known) = known.filter(|known| known.contains_key("date_modified")) else {
                return Ok(None);
            };
            let mut fields: Vec<Described> = known
                .iter()
                .map(|(name, field)| Described {
                    target: name.clone(),
                    required: matches!(field.get("required"), Some(Value::Bool(true))),
                    read_only: matches!(name.as_str(), "date_modified" | "date_entered"),
                    kind: None,
                    max_length: field.get("len").and_then(shape::id).and_then(|text| text.parse().ok()),
                })
                .collect();
            if !known.contains_key("id") {
                let id = Described {
                    target: "id".to_owned(),
                    required: false,
                    read_only: false,
                    kind: None,
                    max_length: None,
                };
                fields.push(id);
            }
            Ok(Some(Description { fields, complete: true }))
        })
    }
}
