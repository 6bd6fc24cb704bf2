//! The dialect `odata`: services of OData v4, such as the Web API of Microsoft Dynamics 365. The tests run it against a real
//! OData service, not against Dynamics itself.
//!
//! - With `upsert = "alternate_key"` one PATCH by alternate key creates or updates, atomically; else a record is looked
//!   up, then created, or changed with `If-Match`.
//! - A change always says `If-Match` (`*` without a version), so that it never creates what was deleted meanwhile.
//! - With `changes = "track"` the service's own deltas tell every deletion; else changes are read by time, and each page
//!   by the service's own link.
//! - Links of the service are followed below the resource's url only.

mod feed;
mod literal;
mod metadata;
mod place;
mod product;
mod refusal;

use super::{
    dialect::{
        Abilities, Boxed, Changed, Delta, Described, Description, Dialect, Done, Feed, Listed, Page, Span,
        Written,
    },
    error::{Clash, CrmError, FieldError, Problem},
    exchange::{
        Exchange, Talk,
        answer::Answer,
        request::{Request, segment},
    },
    pages::endless,
    settings::CallSpec,
    vocabulary::{Entity, Field, Given, Record, timestamp},
};
use http::{HeaderName, Method, header};
use metadata::Set;
use place::{Place, Turn, id_of, query, relative};
pub(super) use product::PRODUCT;
use refusal::refusal;
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

const PREFER: HeaderName = HeaderName::from_static("prefer");
const ODATA_VERSION: HeaderName = HeaderName::from_static("odata-version");
const ODATA_MAX_VERSION: HeaderName = HeaderName::from_static("odata-maxversion");
const DUPLICATE_DETECTION: HeaderName = HeaderName::from_static("mscrm.suppressduplicatedetection");
/// What looks for changes once more takes so many at a time: each request has the service sort anew.
const MAX_PAGE: usize = 2000;
/// How long what a service said of its model is taken for true.
const KEPT: Duration = Duration::from_secs(15 * 60);

/// What a service said of its model, when.
type Model = Arc<BTreeMap<String, Set>>;

struct OData {
    exchange: Arc<Exchange>,
    /// The entity sets that the settings name.
    sets: Vec<String>,
    native_upsert: bool,
    track: bool,
    detect_duplicates: bool,
    /// The property with the time of the last change.
    modified: String,
    model: Mutex<Option<(Instant, Model)>>,
}

/// A page of an answer.
struct Rows {
    rows: Vec<Value>,
    /// Relative to the resource's url.
    next: Option<String>,
    delta: Option<String>,
}

fn place(entity: &Entity) -> Result<Place, CrmError> {
    Place::parse(&entity.target).ok_or_else(|| CrmError::new(Problem::Unsupported))
}

impl OData {
    fn request(&self, method: Method, path: impl Into<String>) -> Request {
        let request = Request::path(method, path)
            .header(header::ACCEPT, "application/json;odata.metadata=minimal")
            .header(ODATA_VERSION, "4.0")
            .header(ODATA_MAX_VERSION, "4.0");
        if self.detect_duplicates { request.header(DUPLICATE_DETECTION, "false") } else { request }
    }

    async fn send(&self, talk: &Talk, request: Request, fields: &[&Field]) -> Result<Answer, CrmError> {
        let answer = self.exchange.send(talk, request).await?;
        match refusal(&answer, fields) {
            Some(error) => Err(error),
            None => Ok(answer),
        }
    }

    /// The model, as far as the service tells it: an empty one where it does not.
    async fn model(&self, talk: &Talk) -> Result<Model, CrmError> {
        {
            let kept = self.model.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((at, model)) = kept.as_ref()
                && at.elapsed() < KEPT
            {
                return Ok(model.clone());
            }
        }
        let request = Request::path(Method::GET, "$metadata").header(header::ACCEPT, "application/xml");
        let answer = match self.exchange.send(talk, request).await {
            Ok(answer) => Some(answer),
            // Larger than max_response: then names and types are the operator's word.
            Err(error) if error.problem == Problem::Protocol => None,
            Err(error) => return Err(error),
        };
        // What passes by must not count as "has none" until the next look.
        let tells = |answer: &Answer| match answer.status.as_u16() {
            403 | 404 | 405 | 406 | 410 | 501 => Ok(false),
            _ => answer.check().map(|()| true),
        };
        let told = match answer {
            Some(answer) if tells(&answer)? => Some(answer),
            Some(_) | None => None,
        };
        let names: Vec<&str> = self.sets.iter().map(String::as_str).collect();
        let model =
            Arc::new(told.and_then(|answer| metadata::read(&answer.body, &names)).unwrap_or_default());
        *self.model.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), model.clone()));
        Ok(model)
    }

    /// A page of records.
    async fn rows(&self, talk: &Talk, link: &str, prefer: &str, fields: &[&Field]) -> Result<Rows, CrmError> {
        let request = self.request(Method::GET, link).header(PREFER, prefer);
        let answer = self.send(talk, request, fields).await?;
        let mut page = answer.json()?;
        let link = |name: &str| {
            let link = page.get(name).and_then(Value::as_str);
            link.map(|link| relative(&self.exchange, link)).transpose()
        };
        let (next, delta) = (link("@odata.nextLink")?, link("@odata.deltaLink")?);
        match page.get_mut("value").map(Value::take) {
            Some(Value::Array(rows)) => Ok(Rows { rows, next, delta }),
            _ => Err(answer.nonsense("an answer to a search is no list of records")),
        }
    }

    /// The properties to be read.
    fn select(&self, place: &Place, wanted: &[&Field]) -> String {
        let mut names = vec![place.id.as_str()];
        let others = wanted.iter().map(|field| field.target.as_str()).filter(|target| !target.contains('@'));
        for name in others.chain([self.modified.as_str()]) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.join(",")
    }

    fn record(&self, place: &Place, row: &Value, wanted: &[&Field], etag: Option<&str>) -> Option<Record> {
        let id = match row.get(&place.id)? {
            Value::String(id) => id.clone(),
            Value::Number(id) => id.to_string(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
        };
        let fields = wanted
            .iter()
            .filter_map(|field| Some((field.name.clone(), field.kind.read(row.get(&field.target)?))))
            .collect();
        Some(Record {
            id,
            version: row.get("@odata.etag").and_then(Value::as_str).or(etag).map(str::to_owned),
            modified: row.get(&self.modified).and_then(Value::as_str).and_then(timestamp),
            fields,
        })
    }

    async fn filter(
        &self,
        talk: &Talk,
        place: &Place,
        filter: &[Given<'_>],
    ) -> Result<Option<String>, CrmError> {
        if filter.is_empty() {
            return Ok(None);
        }
        let model = self.model(talk).await?;
        let mut clauses = Vec::new();
        for Given { field, value } in filter {
            let edm = edm(&model, place, field);
            let literal = literal::literal(edm, field.kind, value).map_err(|reason| unfit(field, reason))?;
            clauses.push(format!("{} eq {literal}", field.target));
        }
        Ok(Some(clauses.join(" and ")))
    }

    async fn body(&self, talk: &Talk, place: &Place, fields: &[Given<'_>]) -> Result<Value, CrmError> {
        let model = self.model(talk).await?;
        let mut body = Map::new();
        for Given { field, value } in fields {
            let edm = edm(&model, place, field);
            let value = literal::json(edm, field.kind, value).map_err(|reason| unfit(field, reason))?;
            body.insert(field.target.clone(), value);
        }
        Ok(Value::Object(body))
    }

    /// What an answer to a write says of the record.
    fn written(&self, place: &Place, answer: &Answer) -> Result<Written, CrmError> {
        let etag = answer.text(header::ETAG.as_str());
        let row: Option<Value> = serde_json::from_slice(&answer.body).ok();
        if let Some(record) = row.and_then(|row| self.record(place, &row, &[], etag)) {
            return Ok(Written { id: record.id, version: record.version });
        }
        let link = answer.text("odata-entityid").or_else(|| answer.text(header::LOCATION.as_str()));
        let id = link.and_then(id_of);
        let id = id.ok_or_else(|| answer.nonsense("the answer to a write names no record"))?;
        Ok(Written { id, version: etag.map(str::to_owned) })
    }

    /// A write whose answer holds the record: some services tell its version in a body alone. Without `$select`, which
    /// services of OData 4.0 refuse here.
    fn write(&self, method: Method, path: &str, body: &Value) -> Request {
        self.request(method, path).header(PREFER, "return=representation").json(body)
    }
}

fn edm<'a>(model: &'a Model, place: &Place, field: &Field) -> Option<&'a str> {
    Some(model.get(&place.set)?.properties.get(&field.target)?.edm.as_str())
}

fn unfit(field: &Field, reason: &str) -> CrmError {
    CrmError::invalid(vec![FieldError::new(&field.name, reason)])
}

fn of<'a>(fields: &[Given<'a>]) -> Vec<&'a Field> {
    fields.iter().map(|given| given.field).collect()
}

impl Dialect for OData {
    fn abilities(&self) -> Abilities {
        let feed = if self.track {
            Feed::Token { complete_deletes: true }
        } else {
            Feed::Time { granularity: Duration::from_secs(1), keyset: false, ties_ordered: true }
        };
        Abilities {
            native_upsert: self.native_upsert,
            versions: true,
            unique_keys: self.native_upsert,
            feed,
            max_page: MAX_PAGE,
        }
    }

    fn probe<'a>(&'a self, talk: &'a Talk) -> Boxed<'a, ()> {
        Box::pin(async move {
            let set = self.sets.first().map(String::as_str).unwrap_or_default();
            let path = query(set, &[("$top", "1".to_owned())]);
            self.rows(talk, &path, "odata.maxpagesize=1", &[]).await.map(drop)
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
            let place = place(entity)?;
            let path = place.of(id).ok_or_else(|| CrmError::new(Problem::NotFound))?;
            let path = query(&path, &[("$select", self.select(&place, wanted))]);
            let answer = self.send(talk, self.request(Method::GET, path), wanted).await?;
            let row = answer.json()?;
            self.record(&place, &row, wanted, answer.text(header::ETAG.as_str()))
                .ok_or_else(|| answer.nonsense("an answer holds no record"))
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
            let place = place(entity)?;
            let mut options = vec![("$select", self.select(&place, wanted))];
            if let Some(filter) = self.filter(talk, &place, filter).await? {
                options.push(("$filter", filter));
            }
            options.push(("$orderby", place.id.clone()));
            let first = query(&place.set, &options);
            let turn = Turn::read(page.cursor, &first)?;
            let prefer = format!("odata.maxpagesize={}", page.limit);
            let mut fields = wanted.to_vec();
            fields.extend(of(filter));
            let rows = self.rows(talk, &turn.link, &prefer, &fields).await?;
            if rows.next.as_ref() == Some(&turn.link) {
                return Err(endless());
            }
            let left = rows.rows.get(turn.skip..).unwrap_or_default();
            let taken = left.get(..page.limit).unwrap_or(left);
            let next = if left.len() > taken.len() {
                Some(Turn { link: turn.link, skip: turn.skip + taken.len() })
            } else {
                rows.next.map(|link| Turn { link, skip: 0 })
            };
            let records = taken.iter().filter_map(|row| self.record(&place, row, wanted, None)).collect();
            Ok(Listed { records, next: next.map(|next| next.cursor(&first)).transpose()? })
        })
    }

    fn create<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        fields: &'a [Given<'a>],
    ) -> Boxed<'a, Written> {
        Box::pin(async move {
            let place = place(entity)?;
            let body = self.body(talk, &place, fields).await?;
            let request = self.write(Method::POST, &place.set, &body);
            let answer = self.send(talk, request, &of(fields)).await.map_err(|mut error| {
                // There is no version to be stale here.
                if let Problem::Conflict { clash, .. } = &mut error.problem {
                    *clash = Clash::Duplicate;
                }
                error
            })?;
            self.written(&place, &answer)
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
            let place = place(entity)?;
            let path = place.of(id).ok_or_else(|| CrmError::new(Problem::NotFound))?;
            let body = self.body(talk, &place, fields).await?;
            let request = self.write(Method::PATCH, &path, &body);
            let request = request.header(header::IF_MATCH, if_version.unwrap_or("*"));
            let answer = self.send(talk, request, &of(fields)).await?;
            let version = self.written(&place, &answer).ok().and_then(|written| written.version);
            let version = version.or_else(|| answer.text(header::ETAG.as_str()).map(str::to_owned));
            Ok(Written { id: id.to_owned(), version })
        })
    }

    fn upsert_native<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        key: Given<'a>,
        fields: &'a [Given<'a>],
    ) -> Boxed<'a, (Written, Done)> {
        Box::pin(async move {
            let place = place(entity)?;
            let model = self.model(talk).await?;
            let literal = literal::literal(edm(&model, &place, key.field), key.field.kind, key.value)
                .map_err(|reason| unfit(key.field, reason))?;
            let body = self.body(talk, &place, fields).await?;
            let path = place.by(&key.field.target, &literal);
            let mut given = of(fields);
            given.push(key.field);
            let answer = self.send(talk, self.write(Method::PATCH, &path, &body), &given).await;
            let answer = answer.map_err(|error| match error.problem {
                Problem::NotFound => CrmError::new(Problem::Unsupported)
                    .reason("it does not create by alternate key; set options.upsert to \"find\""),
                _ => error,
            })?;
            let done = if answer.status == 201 { Done::Created } else { Done::Updated };
            Ok((self.written(&place, &answer)?, done))
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
            let place = place(entity)?;
            let path = place.of(id).ok_or_else(|| CrmError::new(Problem::NotFound))?;
            let request = self.request(Method::DELETE, path);
            let request = request.header(header::IF_MATCH, if_version.unwrap_or("*"));
            self.send(talk, request, &[]).await.map(drop)
        })
    }

    fn changed<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        wanted: &'a [&'a Field],
        span: Span<'a>,
    ) -> Boxed<'a, Changed> {
        Box::pin(feed::changed(self, talk, entity, wanted, span))
    }

    fn delta<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        wanted: &'a [&'a Field],
        token: Option<&'a str>,
        limit: usize,
    ) -> Boxed<'a, Delta> {
        Box::pin(feed::delta(self, talk, entity, wanted, token, limit))
    }

    fn call<'a>(
        &'a self,
        talk: &'a Talk,
        call: &'a CallSpec,
        args: &'a Map<String, Value>,
    ) -> Boxed<'a, Value> {
        Box::pin(async move {
            let (Some(method), Some(path)) = (&call.method, &call.path) else {
                return Err(CrmError::new(Problem::Unsupported));
            };
            let method: Method = method.parse().map_err(|_| CrmError::new(Problem::Unsupported))?;
            let mut path = path.clone();
            let mut rest = Map::new();
            for (name, value) in args {
                let place = format!("{{{name}}}");
                if path.contains(&place) {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    path = path.replace(&place, &segment(&text.replace('\'', "''"))?);
                } else {
                    rest.insert(name.clone(), value.clone());
                }
            }
            let request = if method.is_safe() {
                let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let options: Vec<_> = rest.iter().map(|(name, value)| (name.as_str(), text(value))).collect();
                self.request(method, query(&path, &options))
            } else {
                self.request(method, path).json(&Value::Object(rest))
            };
            let answer = self.send(talk, request, &[]).await?;
            if answer.body.is_empty() { Ok(Value::Null) } else { answer.json() }
        })
    }

    fn describe<'a>(&'a self, talk: &'a Talk, entity: &'a Entity) -> Boxed<'a, Option<Description>> {
        Box::pin(async move {
            let place = place(entity)?;
            let model = self.model(talk).await?;
            if model.is_empty() {
                return Ok(None);
            }
            let set = model.get(&place.set).ok_or_else(|| {
                CrmError::new(Problem::Unsupported).reason(&format!("it has no entity set {}", place.set))
            })?;
            let described = set.properties.iter().map(|(name, property)| Described {
                target: name.clone(),
                required: property.required && *name != place.id,
                read_only: *name == self.modified,
                kind: metadata::field_type(&property.edm),
                max_length: property.max_length,
            });
            let mut fields: Vec<Described> = described.collect();
            // Links to other records are no properties.
            fields.extend(entity.fields.iter().filter(|field| field.target.contains('@')).map(|field| {
                let target = field.target.clone();
                Described { target, required: false, read_only: false, kind: None, max_length: None }
            }));
            Ok(Some(Description { fields, complete: !set.open }))
        })
    }
}
