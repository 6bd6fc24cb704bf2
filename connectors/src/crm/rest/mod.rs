//! The declarative dialect: any REST interface that an operator can describe by a [`Shape`].
//!
//! Other dialects use its pieces: [`shape::at`] and [`shape::object`] for dotted paths, [`Shape`] for answers and refusals.

mod answer;
mod hints;
mod paging;
pub(crate) mod shape;

use super::{
    dialect::{Abilities, Boxed, Changed, Dialect, Feed, Listed, Page, Span, Written},
    dialects::Product,
    error::{Clash, CrmError, Problem},
    exchange::{
        Exchange, Talk,
        answer::Answer,
        request::{Request, leads_astray, segment},
    },
    settings::CallSpec,
    vocabulary::{Entity, Field, Given, Record},
};
use crate::Code;
use answer::moment;
use http::{HeaderName, Method};
use jiff::Timestamp;
use paging::List;
use serde_json::{Map, Value, json};
use shape::{Shape, VersionAt, at, object, plain};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

/// `dialect = "rest"`.
pub(crate) const PRODUCT: Product = Product {
    name: "rest",
    auth: &["basic", "bearer", "api_key", "oauth2"],
    options: &[],
    entities: &[],
    check: |settings, findings| {
        for call in &settings.calls {
            if call.method.is_none() || call.path.is_none() {
                let message =
                    "method and path are needed, such as \"POST\" and \"contacts/{id}/recalculate\"";
                findings.wrong(&format!("calls.{}", call.name), message);
            }
        }
    },
    build: |settings, _, exchange| {
        Ok(Arc::new(Rest { exchange, shapes: settings.shapes.clone(), disordered: Mutex::default() }))
    },
};

/// A REST interface.
pub(crate) struct Rest {
    exchange: Arc<Exchange>,
    /// By our names of the entities.
    shapes: BTreeMap<String, Shape>,
    /// The entities whose lists did not sort records of one time by their ids.
    disordered: Mutex<BTreeSet<String>>,
}

impl Rest {
    fn shape(&self, entity: &Entity) -> Result<&Shape, CrmError> {
        self.shapes.get(&entity.name).ok_or_else(|| CrmError::new(Problem::Unsupported))
    }

    fn request(shape: &Shape, method: Method, path: impl Into<String>) -> Request {
        let request = Request::path(method, path);
        shape.query.iter().fold(request, |request, (key, value)| request.query(key, value))
    }

    fn item(shape: &Shape, method: Method, id: &str) -> Result<Request, CrmError> {
        Ok(Self::request(shape, method, shape.item.replace("{id}", &segment(id)?)))
    }

    async fn send(
        &self,
        talk: &Talk,
        shape: &Shape,
        entity: &Entity,
        request: Request,
    ) -> Result<Answer, CrmError> {
        let answer = self.exchange.send(talk, request).await?;
        shape.check(&answer, Some(entity))?;
        Ok(answer)
    }

    fn list<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        wanted: &'a [&'a Field],
        query: &'a [(String, String)],
    ) -> Result<List<'a>, CrmError> {
        Ok(List { rest: self, talk, entity, shape: self.shape(entity)?, wanted, query })
    }

    /// A written record: from the answer, or, where it is empty, by its id.
    fn written(shape: &Shape, answer: &Answer, id: Option<&str>) -> Result<Written, CrmError> {
        match (shape.one(answer, &[]), id) {
            (Ok(record), _) => Ok(Written { id: record.id, version: record.version }),
            (Err(_), Some(id)) => {
                let etag = (shape.version == VersionAt::ETag).then(|| answer.text("etag").map(str::to_owned));
                Ok(Written { id: id.to_owned(), version: etag.flatten() })
            }
            (Err(error), None) => {
                // Some only say where it is, or answer with the bare id.
                let location = answer.text("location").and_then(|link| {
                    let path = link.split(['?', '#']).next()?.trim_end_matches('/');
                    path.rsplit('/').next().map(str::to_owned)
                });
                let bare = answer
                    .json()
                    .ok()
                    .filter(|body| body.is_number() || body.is_string())
                    .map(|id| plain(&id));
                match location.or(bare).filter(|id| !id.is_empty() && !leads_astray(id)) {
                    Some(id) => Ok(Written { id, version: None }),
                    None => Err(error),
                }
            }
        }
    }
}

fn condition(request: Request, shape: &Shape, version: Option<&str>) -> Request {
    let header = shape.version_header.as_ref().and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok());
    match (header, version) {
        (Some(header), Some(version)) => request.header(header, version),
        _ => request,
    }
}

impl Dialect for Rest {
    fn abilities(&self) -> Abilities {
        let shapes = || self.shapes.values();
        let feed = if shapes().any(|shape| shape.since.is_some()) {
            let granularity = shapes().map(|shape| shape.granularity).max().unwrap_or(Duration::from_secs(1));
            Feed::Time { granularity, keyset: false, ties_ordered: true }
        } else {
            Feed::None
        };
        Abilities {
            native_upsert: false,
            // Without a condition that the target checks, a version only tells.
            versions: shapes()
                .any(|shape| shape.version != VersionAt::None && shape.version_header.is_some()),
            unique_keys: shapes().all(|shape| shape.unique_keys),
            feed,
            max_page: shapes().map(|shape| shape.max_page).min().unwrap_or(100),
        }
    }

    fn probe<'a>(&'a self, talk: &'a Talk) -> Boxed<'a, ()> {
        Box::pin(async move {
            let Some((name, shape)) = self.shapes.iter().next() else { return Ok(()) };
            let collection = shape.item.split("{id}").next().unwrap_or_default();
            let answer = self.exchange.send(talk, Self::request(shape, Method::GET, collection)).await?;
            match answer.status.as_u16() {
                404 if shape.empty_page_is_404 => Ok(()),
                _ => shape.check(&answer, None).map_err(|error| error.of_collection(name)),
            }
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
            let shape = self.shape(entity)?;
            let answer = self.send(talk, shape, entity, Self::item(shape, Method::GET, id)?).await?;
            shape.one(&answer, wanted)
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
            let shape = self.shape(entity)?;
            let mut query = shape.filters(filter).ok_or_else(|| {
                let reason = "a value to search for has a character that its filter cannot take";
                CrmError::new(Problem::Unsupported).reason(reason)
            })?;
            query.extend(shape.find_order.iter().cloned());
            // What is searched by is read as well, to see whether the filter was heeded.
            let also: Vec<&Field> =
                filter.iter().map(|given| given.field).filter(|field| !wanted.contains(field)).collect();
            let fields = [wanted, &also].concat();
            let read = self.list(talk, entity, &fields, &query)?.find(page).await?;
            let mut records = Vec::new();
            for record in read.records {
                // What a list does not show of a record, the record itself may.
                let silent = |given: &Given<'_>| !record.fields.contains_key(&given.field.name);
                let record = if filter.iter().any(silent) {
                    match self.get(talk, entity, &record.id, &fields).await {
                        Ok(whole) => whole,
                        Err(error) if error.problem == Problem::NotFound => continue,
                        Err(error) => return Err(error),
                    }
                } else {
                    record
                };
                heeded(&record, filter)?;
                records.push(record);
            }
            for record in &mut records {
                also.iter().for_each(|field| drop(record.fields.remove(&field.name)));
            }
            // Lists have no ETag: a record that is looked for by its key is read for it.
            if let ([record], VersionAt::ETag) = (records.as_mut_slice(), &shape.version) {
                match self.get(talk, entity, &record.id.clone(), wanted).await {
                    Ok(read) => *record = read,
                    Err(error) if error.problem == Problem::NotFound => records.clear(),
                    Err(error) => return Err(error),
                }
            }
            Ok(Listed { records, next: read.next })
        })
    }

    fn create<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        fields: &'a [Given<'a>],
    ) -> Boxed<'a, Written> {
        Box::pin(async move {
            let shape = self.shape(entity)?;
            let request = Self::request(shape, Method::POST, entity.target.clone()).json(&object(fields));
            let answer = self.send(talk, shape, entity, request).await.map_err(|error| {
                let error = error.of_collection(&entity.name);
                // A target that keeps keys unique says so of the key's field.
                match &error.problem {
                    Problem::Invalid { fields }
                        if shape.unique_keys
                            && fields.iter().any(|field| entity.keys.contains(&field.field)) =>
                    {
                        CrmError {
                            problem: Problem::Conflict { clash: Clash::Duplicate, candidates: Vec::new() },
                            ..error
                        }
                    }
                    _ => error,
                }
            })?;
            Self::written(shape, &answer, None)
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
            let shape = self.shape(entity)?;
            let mut body = object(fields);
            if shape.update == Method::PUT {
                // A PUT replaces the whole: what stays has to be said as well.
                let answer = self.send(talk, shape, entity, Self::item(shape, Method::GET, id)?).await?;
                let whole = answer.json()?;
                let mut whole = at(&whole, &shape.record).cloned().unwrap_or_default();
                merge(&mut whole, body);
                body = whole;
            }
            let request = Self::item(shape, shape.update.clone(), id)?.json(&body);
            let answer = self.send(talk, shape, entity, condition(request, shape, if_version)).await?;
            Self::written(shape, &answer, Some(id))
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
            let shape = self.shape(entity)?;
            let request = Self::item(shape, Method::DELETE, id)?;
            self.send(talk, shape, entity, condition(request, shape, if_version)).await?;
            Ok(())
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
            let shape = self.shape(entity)?;
            let Some((param, value)) = &shape.since else {
                return Err(CrmError::new(Problem::Unsupported).reason("it does not tell what changed"));
            };
            let mut query = shape.since_order.clone();
            if let Some(since) = span.since {
                query.push((param.clone(), value.replace("{time}", &shape.time(since))));
            }
            self.list(talk, entity, wanted, &query)?.starting_at(span.offset, span.limit).await
        })
    }

    fn made<'a>(&'a self, talk: &'a Talk, entity: &'a Entity, id: &'a str) -> Boxed<'a, Option<Timestamp>> {
        Box::pin(async move {
            let shape = self.shape(entity)?;
            let Some(path) = &shape.created else { return Ok(None) };
            let answer = self.send(talk, shape, entity, Self::item(shape, Method::GET, id)?).await?;
            let body = answer.json()?;
            Ok(at(&body, &shape.record).and_then(|record| at(record, path)).and_then(moment))
        })
    }

    fn call<'a>(
        &'a self,
        talk: &'a Talk,
        call: &'a CallSpec,
        args: &'a Map<String, Value>,
    ) -> Boxed<'a, Value> {
        Box::pin(async move {
            let method: Method =
                call.method.as_deref().and_then(|method| method.parse().ok()).unwrap_or(Method::POST);
            let mut path = call.path.clone().unwrap_or_default();
            let mut rest = Map::new();
            for (name, value) in args {
                let place = format!("{{{name}}}");
                if path.contains(&place) {
                    path = path.replace(&place, &segment(&plain(value))?);
                } else {
                    rest.insert(name.clone(), value.clone());
                }
            }
            if path.contains('{') {
                let reason = "an argument that stands in the path of this call is missing";
                return Err(CrmError::new(Problem::Ours(Code::InvalidParams)).reason(reason));
            }
            let bodiless = matches!(method, Method::GET | Method::DELETE);
            let mut request = Request::path(method, path);
            if bodiless {
                request = rest.iter().fold(request, |request, (key, value)| request.query(key, plain(value)));
            } else {
                request = request.json(&Value::Object(rest));
            }
            let answer = self.exchange.send(talk, request).await?;
            match self.shapes.values().next() {
                Some(shape) => shape.check(&answer, None)?,
                None => answer.check()?,
            }
            if answer.body.is_empty() { Ok(json!({})) } else { answer.json() }
        })
    }
}

/// A record that does not show what was searched for may be anybody's.
fn heeded(record: &Record, filter: &[Given<'_>]) -> Result<(), CrmError> {
    for given in filter {
        let reason = match record.fields.get(&given.field.name) {
            Some(found) if like(given, found) => continue,
            None if given.value.is_null() => continue,
            Some(_) => "it ignores the filter of a search: is filter_param right".to_owned(),
            None => {
                let name = &given.field.name;
                format!("a search by {name} gave records that do not show it: is it misspelt in the mapping")
            }
        };
        return Err(CrmError::new(Problem::Protocol).reason(&reason));
    }
    Ok(())
}

/// Whether a found value is what was searched for, without regard to case and spaces around it: so do some targets search.
fn like(given: &Given<'_>, found: &Value) -> bool {
    let folded = |value: &Value| plain(value).trim().to_lowercase();
    given.field.kind.same(found, given.value) || folded(found) == folded(given.value)
}

/// Puts the values of `new` into `whole`, objects part by part.
fn merge(whole: &mut Value, new: Value) {
    match (whole, new) {
        (Value::Object(whole), Value::Object(new)) => {
            for (key, value) in new {
                merge(whole.entry(key).or_insert(Value::Null), value);
            }
        }
        (whole, new) => *whole = new,
    }
}
