//! `EspoCRM` by its REST API (`api/v1/`).
//!
//! - Keys are fields like any other, which nothing keeps unique; `EspoCRM`'s own look for duplicates (by name and e-mail)
//!   lets parallel requests through, and is skipped unless the option `duplicate_check` says otherwise.
//! - Fields that it does not know are dropped with a 200: [`describe`] finds them before anything is written.
//! - Times are UTC in whole seconds; lists are ordered by (time, id), so a page can begin after a pair of them.
//! - Why it refuses stands in the header `X-Status-Reason`; the body is often empty.

mod describe;
mod refusal;

use super::{
    client,
    dialect::{Abilities, Boxed, Changed, Description, Dialect, Feed, Listed, Page, Span, Written},
    dialects::{KnownEntity, Product},
    error::{CrmError, Problem},
    exchange::{
        Exchange, Talk,
        answer::Answer,
        request::{Request, segment},
    },
    settings::{Auth, CallSpec, Findings, Settings},
    shape,
    vocabulary::{Entity, Field, FieldType, Given, Record, timestamp},
};
use crate::BuildError;
use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, Method};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Map, Value};
use std::{path::Path, sync::Arc, time::Duration};

const DUPLICATE_CHECK: &str = "duplicate_check";
const VERSIONS: &str = "versions";
const SKIP_DUPLICATE_CHECK: HeaderName = HeaderName::from_static("x-skip-duplicate-check");
const VERSION_NUMBER: HeaderName = HeaderName::from_static("x-version-number");
const HMAC_AUTHORIZATION: HeaderName = HeaderName::from_static("x-hmac-authorization");
const NO_TOTAL: HeaderName = HeaderName::from_static("x-no-total");
/// More on one page is refused with 403.
const MAX_PAGE: usize = 200;
/// A look for one key reads a few more, since keys that differ in case alone are found as well.
const MIN_PAGE: usize = 20;

/// `EspoCRM`.
pub(super) const PRODUCT: Product = Product {
    name: "espocrm",
    auth: &["api_key", "hmac", "basic"],
    options: &[DUPLICATE_CHECK, VERSIONS],
    entities: &[
        KnownEntity {
            name: "contact",
            target: "Contact",
            fields: &[
                ("external_id", "cExternalId"),
                ("first_name", "firstName"),
                ("last_name", "lastName"),
                ("email", "emailAddress"),
                ("phone", "phoneNumber"),
                ("company", "accountId"),
                ("street", "addressStreet"),
                ("postal_code", "addressPostalCode"),
                ("city", "addressCity"),
                ("country", "addressCountry"),
            ],
        },
        KnownEntity {
            name: "company",
            target: "Account",
            fields: &[
                ("external_id", "cExternalId"),
                ("name", "name"),
                ("email", "emailAddress"),
                ("phone", "phoneNumber"),
                ("website", "website"),
                ("street", "billingAddressStreet"),
                ("postal_code", "billingAddressPostalCode"),
                ("city", "billingAddressCity"),
                ("country", "billingAddressCountry"),
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
            "missing; write { kind = \"api_key\", header = \"X-Api-Key\", value = { file = \"…\" } }",
        );
    }
    for name in [DUPLICATE_CHECK, VERSIONS] {
        if settings.option(name).is_some_and(|value| !matches!(value, "on" | "off")) {
            findings.wrong(&format!("options.{name}"), "expected \"on\" or \"off\"");
        }
    }
    shape::check_calls(settings, findings);
}

fn build(settings: &Settings, base: &Path, exchange: Arc<Exchange>) -> Result<Arc<dyn Dialect>, BuildError> {
    let signer = match &settings.auth {
        Some(Auth::Hmac { key, .. }) => client::secret(settings, base)?
            .map(|secret| (key.clone(), hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes()))),
        _ => None,
    };
    Ok(Arc::new(EspoCrm {
        exchange,
        signer,
        duplicate_check: settings.option(DUPLICATE_CHECK) == Some("on"),
        versions: settings.option(VERSIONS) == Some("on"),
    }))
}

struct EspoCrm {
    exchange: Arc<Exchange>,
    /// The key's name and the key that signs requests, with `auth` of kind `hmac`.
    signer: Option<(String, hmac::Key)>,
    duplicate_check: bool,
    /// Optimistic concurrency control is on for the entities; otherwise a stale version would be ignored.
    versions: bool,
}

impl EspoCrm {
    /// Sends a request to a path that holds nothing to be encoded but ids, and signs it if need be.
    async fn send(
        &self,
        talk: &Talk,
        method: Method,
        path: &str,
        with: impl FnOnce(Request) -> Request,
    ) -> Result<Answer, CrmError> {
        let request = with(Request::path(method.clone(), path));
        let answer = match &self.signer {
            None => self.exchange.send(talk, request).await?,
            Some((name, key)) => {
                let tag = hmac::sign(key, format!("{method} /{path}").as_bytes());
                let signed = STANDARD.encode([format!("{name}:").as_bytes(), tag.as_ref()].concat());
                let request = request.header(HMAC_AUTHORIZATION, &signed);
                let sent = async {
                    let answer = self.exchange.send(talk, request).await?;
                    refusal::unauthorized(&answer).map_or(Ok(answer), Err)
                };
                self.exchange.trust.try_with(sent).await?
            }
        };
        refusal::unauthorized(&answer).map_or(Ok(answer), Err)
    }

    async fn list(
        &self,
        talk: &Talk,
        entity: &Entity,
        wanted: &[&Field],
        query: Vec<(String, String)>,
        order: &str,
    ) -> Result<Vec<Value>, CrmError> {
        let mut select: Vec<&str> = wanted.iter().map(|field| field.target.as_str()).collect();
        select.extend(["id", "modifiedAt"]);
        if self.versions {
            select.push("versionNumber");
        }
        let with = |request: Request| {
            let request = request
                .header(NO_TOTAL, "true")
                .query("select", select.join(","))
                .query("orderBy", order)
                .query("order", "asc");
            query.into_iter().fold(request, |request, (key, value)| request.query(key, value))
        };
        let answer = self.send(talk, Method::GET, &segment(&entity.target)?, with).await?;
        refusal::check(&answer, Some(entity))?;
        match answer.json()?.get_mut("list").map(Value::take) {
            Some(Value::Array(rows)) => Ok(rows),
            _ => Err(answer.nonsense("a page has no list of records")),
        }
    }

    fn written(&self, answer: &Answer, entity: &Entity, id: Option<&str>) -> Result<Written, CrmError> {
        refusal::check(answer, Some(entity))?;
        let body = answer.json()?;
        let id = body.get("id").and_then(shape::id).or_else(|| id.map(str::to_owned));
        let id = id.ok_or_else(|| answer.nonsense("it does not tell the id of the record"))?;
        Ok(Written { id, version: self.version(&body) })
    }

    fn version(&self, row: &Value) -> Option<String> {
        row.get("versionNumber").filter(|_| self.versions).and_then(shape::id)
    }

    fn record(&self, row: &Value, wanted: &[&Field]) -> Result<Record, CrmError> {
        let id = row.get("id").and_then(shape::id);
        let id = id.ok_or_else(|| CrmError::new(Problem::Protocol).reason("a record has no id"))?;
        let modified = row.get("modifiedAt").and_then(Value::as_str).and_then(timestamp);
        Ok(Record { id, version: self.version(row), modified, fields: shape::fields(row, wanted) })
    }

    fn path(entity: &Entity, id: &str) -> Result<String, CrmError> {
        Ok(format!("{}/{}", segment(&entity.target)?, segment(id)?))
    }
}

impl Dialect for EspoCrm {
    fn abilities(&self) -> Abilities {
        Abilities {
            native_upsert: false,
            versions: self.versions,
            unique_keys: false,
            feed: Feed::Time { granularity: Duration::from_secs(1), keyset: true, ties_ordered: true },
            max_page: MAX_PAGE,
        }
    }

    fn probe<'a>(&'a self, talk: &'a Talk) -> Boxed<'a, ()> {
        Box::pin(async move {
            let answer = self.send(talk, Method::GET, "App/user", |request| request).await?;
            refusal::check(&answer, None)?;
            answer.json().map(|_| ())
        })
    }

    fn get<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        id: &'a str,
        wanted: &'a [&'a Field],
    ) -> Boxed<'a, Record> {
        Box::pin(async move {
            let answer = self.send(talk, Method::GET, &Self::path(entity, id)?, |request| request).await?;
            refusal::check(&answer, Some(entity))?;
            let row = answer.json()?;
            // An administrator is shown what has been deleted.
            if row.get("deleted") == Some(&Value::Bool(true)) {
                return Err(Problem::NotFound.into());
            }
            self.record(&row, wanted)
        })
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
            let size = page.limit.clamp(MIN_PAGE, MAX_PAGE);
            let mut query = Vec::new();
            for (at, given) in filter.iter().enumerate() {
                equals(&format!("where[{at}]"), given, &mut query);
            }
            query.push(("offset".to_owned(), offset.to_string()));
            query.push(("maxSize".to_owned(), size.to_string()));
            let mut asked = wanted.to_vec();
            asked.extend(filter.iter().map(|given| given.field));
            let rows = self.list(talk, entity, &asked, query, "createdAt").await?;
            let mut listed = Listed::default();
            let mut read = 0;
            for row in &rows {
                if listed.records.len() == page.limit {
                    break;
                }
                read += 1;
                if shape::matches(row, filter) {
                    listed.records.push(self.record(row, wanted)?);
                }
            }
            let more = read < rows.len() || rows.len() >= size;
            listed.next = more.then(|| (offset + read).to_string());
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
            let skip = if self.duplicate_check { "false" } else { "true" };
            let body = Value::Object(object(fields));
            let with = |request: Request| request.json(&body).header(SKIP_DUPLICATE_CHECK, skip);
            let answer = self.send(talk, Method::POST, &segment(&entity.target)?, with).await?;
            self.written(&answer, entity, None)
        })
    }

    fn update<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        id: &'a str,
        fields: &'a [Given<'a>],
        if_version: Option<&'a str>,
    ) -> Boxed<'a, Written> {
        Box::pin(async move {
            let body = Value::Object(object(fields));
            let with = |request: Request| {
                let request = request.json(&body).header(SKIP_DUPLICATE_CHECK, "true");
                match if_version {
                    Some(version) => request.header(VERSION_NUMBER, version),
                    None => request,
                }
            };
            let answer = self.send(talk, Method::PUT, &Self::path(entity, id)?, with).await?;
            self.written(&answer, entity, Some(id))
        })
    }

    fn delete<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        id: &'a str,
        if_version: Option<&'a str>,
    ) -> Boxed<'a, ()> {
        Box::pin(async move {
            if let Some(version) = if_version {
                // A deletion takes no version: looked at just before, which leaves a moment for somebody else.
                let now = self.get(talk, entity, id, &[]).await?.version;
                if now.as_deref() != Some(version) {
                    return Err(CrmError::conflict(super::error::Clash::Version, vec![id.to_owned()]));
                }
            }
            let answer = self.send(talk, Method::DELETE, &Self::path(entity, id)?, |request| request).await?;
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
            let mut query = Vec::new();
            let mut term = |at: &str, kind: &str, attribute: &str, value: String| {
                query.push((format!("where{at}[type]"), kind.to_owned()));
                query.push((format!("where{at}[attribute]"), attribute.to_owned()));
                query.push((format!("where{at}[value]"), value));
            };
            if let Some(since) = span.since {
                term("[0]", "greaterThanOrEquals", "modifiedAt", written_time(since));
            }
            if let Some((at, id)) = span.after {
                term("[1][value][0]", "greaterThan", "modifiedAt", written_time(at));
                term("[1][value][1][value][0]", "equals", "modifiedAt", written_time(at));
                term("[1][value][1][value][1]", "greaterThan", "id", id.to_owned());
                query.push(("where[1][type]".to_owned(), "or".to_owned()));
                query.push(("where[1][value][1][type]".to_owned(), "and".to_owned()));
            }
            let size = span.limit.clamp(1, MAX_PAGE);
            query.push(("offset".to_owned(), span.offset.to_string()));
            query.push(("maxSize".to_owned(), size.to_string()));
            let rows = self.list(talk, entity, wanted, query, "modifiedAt").await?;
            let records = rows.iter().map(|row| self.record(row, wanted)).collect::<Result<Vec<_>, _>>()?;
            if records.iter().any(|record| record.modified.is_none()) {
                return Err(CrmError::new(Problem::Unsupported).reason("its records do not tell modifiedAt"));
            }
            Ok(Changed { end: records.len() < size, records, ..Changed::default() })
        })
    }

    fn made<'a>(&'a self, talk: &'a Talk, entity: &'a Entity, id: &'a str) -> Boxed<'a, Option<Timestamp>> {
        Box::pin(async move {
            let answer = self.send(talk, Method::GET, &Self::path(entity, id)?, |request| request).await?;
            refusal::check(&answer, Some(entity))?;
            Ok(answer.json()?.get("createdAt").and_then(Value::as_str).and_then(timestamp))
        })
    }

    fn call<'a>(
        &'a self,
        talk: &'a Talk,
        call: &'a CallSpec,
        args: &'a Map<String, Value>,
    ) -> Boxed<'a, Value> {
        Box::pin(async move {
            let (method, path, request) = shape::call_parts(call, args)?;
            let answer = self.send(talk, method, &path, |_| request).await?;
            refusal::check(&answer, None)?;
            if answer.body.is_empty() { Ok(Value::Null) } else { answer.json() }
        })
    }

    fn describe<'a>(&'a self, talk: &'a Talk, entity: &'a Entity) -> Boxed<'a, Option<Description>> {
        Box::pin(async move {
            let key = format!("entityDefs.{}.fields", entity.target);
            let answer =
                self.send(talk, Method::GET, "Metadata", |request| request.query("key", &key)).await?;
            if !answer.status.is_success() {
                // An account that may not read it is no reason to write nothing.
                return Ok(None);
            }
            Ok(describe::read(&answer.json()?, &entity.target))
        })
    }
}

/// `2026-11-21 21:05:21`, cut off to the second.
fn written_time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The fields as `EspoCRM` takes them: times in its own form.
fn object(given: &[Given<'_>]) -> Map<String, Value> {
    let mut object = Map::new();
    for given in given {
        shape::put(&mut object, &given.field.target, espo_value(given));
    }
    object
}

fn espo_value(given: &Given<'_>) -> Value {
    match (given.field.kind, given.value.as_str().and_then(timestamp)) {
        (FieldType::DateTime, Some(at)) => Value::String(written_time(at)),
        _ => given.value.clone(),
    }
}

/// A criterion of a search.
fn equals(at: &str, given: &Given<'_>, query: &mut Vec<(String, String)>) {
    let (kind, value) = match espo_value(given) {
        Value::Null => ("isNull", None),
        Value::Bool(true) => ("isTrue", None),
        Value::Bool(false) => ("isFalse", None),
        Value::String(text) => ("equals", Some(text)),
        other => ("equals", Some(other.to_string())),
    };
    query.push((format!("{at}[type]"), kind.to_owned()));
    query.push((format!("{at}[attribute]"), given.field.target.clone()));
    query.extend(value.map(|value| (format!("{at}[value]"), value)));
}
