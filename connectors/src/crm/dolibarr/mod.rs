//! Dolibarr by its REST API (`api/index.php/`).
//!
//! - Keys are fields like any other (`ref_ext`), which nothing keeps unique.
//! - A page that is empty is a 404; a filter that is wrong is a 503 with the SQL in its body, of which nothing is told.
//! - Creating answers a bare number. Unknown fields are dropped with a 200, and no metadata tells of them: what was written
//!   is read back.
//! - Times are told as seconds since 1970 but filtered in the server's own zone, which nothing tells either:
//!   [`zone`] finds it out.

mod filter;
mod zone;

use super::{
    dialect::{Abilities, Boxed, Changed, Dialect, Feed, Listed, Page, Span, Written},
    dialects::{KnownEntity, Product},
    error::{CrmError, FieldError, Problem},
    exchange::{
        Exchange, Talk,
        answer::Answer,
        request::{Request, segment},
    },
    settings::{CallSpec, Findings, Settings},
    shape,
    vocabulary::{Entity, Field, FieldType, Given, Record},
};
use crate::BuildError;
use filter::{Filter, Operator};
use http::Method;
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde_json::{Map, Value, json};
use std::{path::Path, sync::Arc, time::Duration};
use zone::Zone;

const UTC_OFFSET: &str = "utc_offset";
const MAX_PAGE: usize = 100;
/// Pages that a search goes through for one of its own: more means that its filter is not heeded.
const MAX_SEARCHED: usize = 50;
const DAY: i64 = 86_400;

/// Dolibarr.
pub(super) const PRODUCT: Product = Product {
    name: "dolibarr",
    auth: &["api_key"],
    options: &[UTC_OFFSET],
    entities: &[
        KnownEntity {
            name: "contact",
            target: "contacts",
            fields: &[
                ("external_id", "ref_ext"),
                ("first_name", "firstname"),
                ("last_name", "lastname"),
                ("email", "email"),
                ("phone", "phone_pro"),
                ("mobile", "phone_mobile"),
                ("company", "socid"),
                ("street", "address"),
                ("postal_code", "zip"),
                ("city", "town"),
            ],
        },
        KnownEntity {
            name: "company",
            target: "thirdparties",
            fields: &[
                ("external_id", "ref_ext"),
                ("name", "name"),
                ("email", "email"),
                ("phone", "phone"),
                ("website", "url"),
                ("vat_number", "tva_intra"),
                ("street", "address"),
                ("postal_code", "zip"),
                ("city", "town"),
            ],
        },
        KnownEntity {
            name: "order",
            target: "orders",
            fields: &[
                ("external_id", "ref_ext"),
                ("number", "ref"),
                ("customer", "socid"),
                ("date", "date"),
                ("status", "statut"),
                ("total_excl_tax", "total_ht"),
                ("total_incl_tax", "total_ttc"),
            ],
        },
    ],
    check,
    build,
};

/// Columns that are called otherwise than the fields.
const COLUMNS: &[(&str, &str, &str)] = &[
    ("contacts", "phone_pro", "phone"),
    ("contacts", "socid", "fk_soc"),
    ("thirdparties", "name", "nom"),
    ("orders", "socid", "fk_soc"),
    ("orders", "date", "date_commande"),
    ("orders", "statut", "fk_statut"),
];

fn check(settings: &Settings, findings: &mut Findings<'_>) {
    if settings.auth.is_none() {
        findings.wrong(
            "auth",
            "missing; write { kind = \"api_key\", header = \"DOLAPIKEY\", value = { file = \"…\" } }",
        );
    }
    if settings.option(UTC_OFFSET).is_some_and(|text| zone::parse(text).is_none()) {
        findings.wrong(
            "options.utc_offset",
            "expected the like of \"+01:00\", the offset of the server's time zone",
        );
    }
    shape::check_calls(settings, findings);
}

fn build(settings: &Settings, _base: &Path, exchange: Arc<Exchange>) -> Result<Arc<dyn Dialect>, BuildError> {
    let zone = Zone::new(settings.option(UTC_OFFSET).and_then(zone::parse));
    Ok(Arc::new(Dolibarr { exchange, zone }))
}

struct Dolibarr {
    exchange: Arc<Exchange>,
    zone: Zone,
}

/// A page of a list.
struct Window<'a> {
    filter: Option<&'a Filter>,
    order: &'a str,
    descending: bool,
    size: usize,
    number: usize,
}

impl Dolibarr {
    async fn send(&self, talk: &Talk, entity: &Entity, request: Request) -> Result<Answer, CrmError> {
        let answer = self.exchange.send(talk, request).await?;
        check_answer(&answer, Some(entity))?;
        Ok(answer)
    }

    async fn list(&self, talk: &Talk, entity: &Entity, window: Window<'_>) -> Result<Vec<Value>, CrmError> {
        let orders = window.order.split(',').count();
        let direction = if window.descending { "DESC" } else { "ASC" };
        let mut request = Request::path(Method::GET, segment(&entity.target)?)
            .query("sortfield", window.order)
            .query("sortorder", vec![direction; orders].join(","))
            .query("limit", window.size.to_string())
            .query("page", window.number.to_string());
        if let Some(filter) = window.filter {
            request = request.query("sqlfilters", filter.as_str());
        }
        let answer = self.exchange.send(talk, request).await?;
        match check_answer(&answer, Some(entity)) {
            Err(error) if error.problem == Problem::NotFound => return Ok(Vec::new()),
            done => done?,
        }
        match answer.json()? {
            Value::Array(rows) => Ok(rows),
            _ => Err(answer.nonsense("a page is no list of records")),
        }
    }

    /// The path of a record. Anything but a number would be another route (`thirdparties/email`).
    fn path(entity: &Entity, id: &str) -> Result<String, CrmError> {
        let id: u64 = id.parse().map_err(|_| CrmError::new(Problem::NotFound))?;
        Ok(format!("{}/{id}", segment(&entity.target)?))
    }

    /// Records in the order of their last change; whether they are the last ones.
    async fn rows(
        &self,
        talk: &Talk,
        entity: &Entity,
        filter: Option<&Filter>,
        offset: usize,
        limit: usize,
    ) -> Result<(Vec<Value>, bool), CrmError> {
        let (size, number, skip) = shape::numbered(offset, limit, MAX_PAGE);
        let window = Window { filter, order: "t.tms,t.rowid", descending: false, size, number };
        let rows = self.list(talk, entity, window).await?;
        let end = rows.len() < size && rows.len().saturating_sub(skip) <= limit;
        Ok((rows.into_iter().skip(skip).take(limit).collect(), end))
    }

    fn criterion(entity: &Entity, given: &Given<'_>) -> Result<Filter, CrmError> {
        let column = column(entity, &given.field.target);
        Ok(match to_dolibarr(given.field.kind, given.value) {
            Value::Null => Filter::empty(&column),
            Value::Bool(flag) => Filter::number(&column, Operator::Is, i64::from(flag)),
            Value::Number(number) if number.is_i64() => {
                Filter::number(&column, Operator::Is, number.as_i64().unwrap_or_default())
            }
            // A sum matches by its digits; a day is no text to the database.
            Value::Number(_) => {
                let error = FieldError::new(&given.field.name, "the target cannot be searched by it");
                return Err(CrmError::invalid(vec![error]));
            }
            Value::String(text) => Filter::text(&column, &text),
            other => Filter::text(&column, &other.to_string()),
        })
    }
}

/// The column behind a field; fields of the customer's own (`array_options.options_x`) stand in a table beside.
fn column(entity: &Entity, target: &str) -> String {
    if let Some(extra) = target.strip_prefix("array_options.options_") {
        return format!("te.{extra}");
    }
    let known = COLUMNS.iter().find(|(of, field, _)| *of == entity.target && *field == target);
    format!("t.{}", known.map_or(target, |(_, _, column)| column))
}

fn record(row: &Value, wanted: &[&Field]) -> Result<Record, CrmError> {
    let id = row.get("id").and_then(shape::id);
    let id = id.ok_or_else(|| CrmError::new(Problem::Protocol).reason("a record has no id"))?;
    let mut fields = Map::new();
    for field in wanted {
        let value = shape::at(row, &field.target).map(|value| from_dolibarr(field.kind, value));
        fields.extend(value.map(|value| (field.name.clone(), value)));
    }
    Ok(Record { id, version: None, modified: modified(row), fields })
}

/// When a record last changed.
fn modified(row: &Value) -> Option<Timestamp> {
    let seconds = row.get("date_modification").or_else(|| row.get("tms")).and_then(shape::id)?;
    Timestamp::from_second(seconds.parse().ok()?).ok()
}

/// A value as Dolibarr takes it: days and times are seconds since 1970.
fn to_dolibarr(kind: FieldType, value: &Value) -> Value {
    let text = value.as_str();
    match kind {
        // Noon is the same day in every zone.
        FieldType::Date => {
            let day = text.and_then(|text| text.parse::<Date>().ok());
            let noon = day.and_then(|day| day.at(12, 0, 0, 0).to_zoned(TimeZone::UTC).ok());
            noon.map_or_else(|| value.clone(), |noon| json!(noon.timestamp().as_second()))
        }
        FieldType::DateTime => {
            let at = text.and_then(|text| text.parse::<Timestamp>().ok());
            at.map_or_else(|| value.clone(), |at| json!(at.as_second()))
        }
        FieldType::Boolean => value.as_bool().map_or_else(|| value.clone(), |flag| json!(i64::from(flag))),
        _ => value.clone(),
    }
}

/// A value that Dolibarr gave, in canonical form.
fn from_dolibarr(kind: FieldType, value: &Value) -> Value {
    let seconds = shape::id(value).and_then(|text| text.parse::<i64>().ok());
    match (kind, seconds) {
        // Midnight in the server's zone is within twelve hours of midnight in UTC.
        (FieldType::Date, Some(seconds)) => {
            let midnight = Timestamp::from_second((seconds + DAY / 2).div_euclid(DAY) * DAY);
            midnight.map_or_else(|_| value.clone(), |at| json!(at.to_zoned(TimeZone::UTC).date().to_string()))
        }
        (FieldType::DateTime, Some(seconds)) => {
            Timestamp::from_second(seconds).map_or_else(|_| value.clone(), |at| json!(at.to_string()))
        }
        (FieldType::Decimal, _) => {
            // `12.50000000`, as its database has it.
            value.as_str().map_or_else(|| kind.read(value), |text| kind.read(&json!(text.trim())))
        }
        _ => kind.read(value),
    }
}

/// What an answer means; `Ok` for 2xx.
fn check_answer(answer: &Answer, entity: Option<&Entity>) -> Result<(), CrmError> {
    let Err(error) = answer.check() else { return Ok(()) };
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let said = shape::at(&body, "error.message").and_then(Value::as_str).unwrap_or("");
    let said = said.split_once(": ").map_or(said, |(_, rest)| rest);
    Err(match answer.status.as_u16() {
        // `lastname field missing`.
        400 => match said.strip_suffix(" field missing") {
            Some(field) => {
                let ours =
                    entity.and_then(|entity| entity.of_target(field)).map_or(field, |field| &field.name);
                CrmError::invalid(vec![FieldError::new(ours, "the target needs it")])
            }
            None => error.reason(said),
        },
        // Its own words for a filter, or a database, that does not work: nothing was written, and the text holds SQL.
        503 if said.starts_with("Error when") => {
            CrmError::new(Problem::Protocol).reason("it could not carry out the search").detail("status 503")
        }
        // A missing right is no missing key.
        403 => error,
        500 if answer.writes && said.starts_with("Error ") => error.reason("it could not store the record"),
        _ => error,
    })
}

impl Dialect for Dolibarr {
    fn abilities(&self) -> Abilities {
        Abilities {
            native_upsert: false,
            versions: false,
            unique_keys: false,
            feed: Feed::Time { granularity: Duration::from_secs(1), keyset: false, ties_ordered: true },
            max_page: MAX_PAGE,
        }
    }

    fn probe<'a>(&'a self, talk: &'a Talk) -> Boxed<'a, ()> {
        Box::pin(async move {
            let answer = self.exchange.send(talk, Request::path(Method::GET, "status")).await?;
            check_answer(&answer, None)?;
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
            let answer = self.send(talk, entity, Request::path(Method::GET, Self::path(entity, id)?)).await?;
            record(&answer.json()?, wanted)
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
            let terms =
                filter.iter().map(|given| Self::criterion(entity, given)).collect::<Result<Vec<_>, _>>()?;
            let terms = Filter::all(terms);
            let mut listed = Listed::default();
            let mut read = offset;
            let mut before = None;
            // The filter may let others through, in any number: they must not hide the one that is looked for.
            for _ in 0..MAX_SEARCHED {
                let (number, skip) = (read / MAX_PAGE, read % MAX_PAGE);
                let window = Window {
                    filter: terms.as_ref(),
                    order: "t.rowid",
                    descending: false,
                    size: MAX_PAGE,
                    number,
                };
                let rows = self.list(talk, entity, window).await?;
                let first = rows.first().and_then(|row| row.get("id")).and_then(shape::id);
                if first.is_some() && first == before {
                    let reason = "it gives the same page of a search again and again";
                    return Err(CrmError::new(Problem::Protocol).reason(reason));
                }
                before = first;
                for row in rows.iter().skip(skip) {
                    if listed.records.len() == page.limit {
                        listed.next = Some(read.to_string());
                        return Ok(listed);
                    }
                    read += 1;
                    let looks_so = filter.iter().all(|given| {
                        let found = shape::at(row, &given.field.target).unwrap_or(&Value::Null);
                        given.field.kind.same(&from_dolibarr(given.field.kind, found), given.value)
                    });
                    if looks_so {
                        listed.records.push(record(row, wanted)?);
                    }
                }
                if rows.len() < MAX_PAGE {
                    return Ok(listed);
                }
            }
            Err(CrmError::new(Problem::Protocol).reason("it ignores the filter of a search"))
        })
    }

    fn create<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        fields: &'a [Given<'a>],
    ) -> Boxed<'a, Written> {
        Box::pin(async move {
            let request = Request::path(Method::POST, segment(&entity.target)?).json(&body(fields));
            let answer = self.send(talk, entity, request).await?;
            let said = answer.json()?;
            let id = shape::id(&said).or_else(|| said.get("id").and_then(shape::id));
            let id = id.filter(|id| id.parse::<i64>().is_ok_and(|id| id > 0));
            let id = id.ok_or_else(|| answer.nonsense("it does not tell the id of the record"))?;
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
            let request = Request::path(Method::PUT, Self::path(entity, id)?).json(&body(fields));
            let answer = self.send(talk, entity, request).await?;
            match answer.json()? {
                Value::Object(_) => Ok(Written { id: id.to_owned(), version: None }),
                Value::Bool(false) => Err(CrmError::invalid(Vec::new())
                    .reason("it did not change the record, and does not say why")),
                _ => Err(answer.nonsense("it does not tell what became of the record")),
            }
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
            let answer =
                self.send(talk, entity, Request::path(Method::DELETE, Self::path(entity, id)?)).await?;
            let said = answer.json()?;
            let refused = said.as_i64().is_some_and(|code| code <= 0) || said == json!(false);
            if refused {
                let reason = "it did not delete the record; other records may depend on it";
                return Err(CrmError::invalid(Vec::new()).reason(reason));
            }
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
            let (rows, end) = match span.since {
                Some(since) => self.rows_since(talk, entity, since, span.offset, span.limit).await?,
                None => self.rows(talk, entity, None, span.offset, span.limit).await?,
            };
            let records = rows.iter().map(|row| record(row, wanted)).collect::<Result<Vec<_>, _>>()?;
            if records.iter().any(|record| record.modified.is_none()) {
                return Err(
                    CrmError::new(Problem::Unsupported).reason("its records do not tell date_modification")
                );
            }
            Ok(Changed { records, end, ..Changed::default() })
        })
    }

    fn made<'a>(&'a self, talk: &'a Talk, entity: &'a Entity, id: &'a str) -> Boxed<'a, Option<Timestamp>> {
        Box::pin(async move {
            let answer = self.send(talk, entity, Request::path(Method::GET, Self::path(entity, id)?)).await?;
            let seconds = answer.json()?.get("date_creation").and_then(shape::id);
            Ok(seconds.and_then(|text| Timestamp::from_second(text.parse().ok()?).ok()))
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
            check_answer(&answer, None)?;
            if answer.body.is_empty() { Ok(Value::Null) } else { answer.json() }
        })
    }
}

fn body(fields: &[Given<'_>]) -> Value {
    let mut object = Map::new();
    for given in fields {
        shape::put(&mut object, &given.field.target, to_dolibarr(given.field.kind, given.value));
    }
    Value::Object(object)
}
