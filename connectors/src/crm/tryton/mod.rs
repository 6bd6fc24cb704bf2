//! The dialect `tryton`: Tryton's procedure calls, as its own clients make them; 8.2 and 6.0 are run by the tests.
//!
//! - A record's version is the moment of its last change, or of its making, in microseconds, and the server's own `_timestamp`
//!   of it. A conditional write hands the latter back: the server refuses if the record has changed since, by a
//!   `ConcurrencyException`. Where it knows whole seconds only (6.0 on SQLite), the former is compared before.
//! - `party.code` is unique: the second of two creations fails, and what it failed for is looked up, since the text is
//!   in the user's language.
//! - Changes are read by that moment. Deletions leave no trace that an ordinary account could read.

mod changes;
mod model;
mod product;
mod session;
mod target;
mod value;

use super::{
    dialect::{Abilities, Boxed, Changed, Description, Dialect, Feed, Listed, Page, Span, Written},
    error::{Clash, CrmError, FieldError, Problem},
    exchange::Talk,
    settings::CallSpec,
    vocabulary::{Entity, Field, Given, Record},
};
use jiff::Timestamp;
use model::{Models, Schema, reading};
pub(super) use product::PRODUCT;
use serde_json::{Map, Value, json};
use session::{Fault, Server};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use target::{List, Target};

/// The most records of one page: an answer of them stays far below `max_response`.
const MAX_PAGE: usize = 1000;

fn is_name(text: &str) -> bool {
    text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// What a call names: a method of a model, and which argument stands where.
struct Procedure {
    method: String,
    /// Its name, and whether it stands in a list of its own.
    args: Vec<(String, bool)>,
}

impl Procedure {
    fn parse(text: &str) -> Option<Self> {
        let (method, args) = text.trim().strip_suffix(')')?.split_once('(')?;
        let sound =
            method.split('.').count() >= 2 && method.split('.').all(|part| !part.is_empty() && is_name(part));
        let args = args.split(',').map(str::trim).filter(|arg| !arg.is_empty()).map(|arg| {
            let listed = arg.strip_prefix('[').and_then(|arg| arg.strip_suffix(']'));
            (listed.unwrap_or(arg).trim().to_owned(), listed.is_some())
        });
        sound.then(|| Self { method: method.to_owned(), args: args.collect() })
    }
}

struct Tryton {
    server: Server,
    models: Models,
    unique_keys: bool,
    /// The model that a probe looks at.
    first: String,
}

/// A record as it was read, and as the wire had it.
struct Found {
    record: Record,
    raw: Value,
}

impl Tryton {
    fn schema<'a>(&'a self, talk: &'a Talk, entity: &'a Entity) -> Schema<'a> {
        Schema { models: &self.models, server: &self.server, talk, entity }
    }

    /// Reads records; archived ones too.
    async fn read(
        &self,
        talk: &Talk,
        entity: &Entity,
        wanted: &[&Field],
        query: Query,
    ) -> Result<Vec<Found>, CrmError> {
        let mut names = BTreeSet::from(["write_date", "create_date", "_timestamp"].map(str::to_owned));
        let targets: Vec<(&Field, Target)> = wanted
            .iter()
            .filter_map(|field| Target::parse(&field.target).map(|target| (*field, target)))
            .collect();
        targets.iter().for_each(|(_, target)| target.names(&mut names));
        let method = format!("model.{}.search_read", entity.target);
        let params = vec![query.domain, json!(query.offset), json!(query.limit), query.order, json!(names)];
        let rows = self.server.call(talk, &method, params, all(), false).await;
        let mut rows = rows.map_err(|fault| self.misread(fault, entity, wanted))?;
        let rows = rows.as_array_mut().map(std::mem::take).ok_or_else(|| {
            CrmError::new(Problem::Protocol).reason("an answer to a search is no list of records")
        })?;
        Ok(rows.into_iter().filter_map(|raw| found(raw, &targets)).collect())
    }

    /// A column that is not there is a mistake of the mapping: it is named.
    fn misread(&self, fault: Fault, entity: &Entity, wanted: &[&Field]) -> CrmError {
        let unknown = match &fault {
            Fault::Unknown(name) => wanted.iter().find(|field| {
                let target = Target::parse(&field.target);
                target.is_some_and(|target| target.column == *name || target.reference.as_ref() == Some(name))
            }),
            Fault::User(_) | Fault::Other(_) => None,
        };
        match unknown {
            Some(field) => {
                CrmError::invalid(vec![FieldError::new(&field.name, "the target has no such field")])
            }
            None => reading(fault, &entity.target),
        }
    }

    async fn by_id(
        &self,
        talk: &Talk,
        entity: &Entity,
        id: &str,
        wanted: &[&Field],
    ) -> Result<Found, CrmError> {
        let id: i64 = id.parse().map_err(|_| CrmError::new(Problem::NotFound))?;
        let query = Query::of(json!([["id", "=", id]]), 1);
        self.read(talk, entity, wanted, query).await?.pop().ok_or(CrmError::new(Problem::NotFound))
    }

    /// What a refused write means.
    async fn refused(
        &self,
        talk: &Talk,
        entity: &Entity,
        fields: &[Given<'_>],
        fault: Fault,
        right: &str,
    ) -> CrmError {
        let schema = self.schema(talk, entity);
        let given: Vec<&Field> = fields.iter().map(|given| given.field).collect();
        match fault {
            Fault::User(text) => {
                if !self.may(talk, entity, right).await {
                    return CrmError::new(Problem::Forbidden).reason(&text);
                }
                let named = schema.named_in(&text, &given).await.unwrap_or_default();
                CrmError::invalid(named).reason(&text)
            }
            fault @ (Fault::Unknown(_) | Fault::Other(_)) => self.misread(fault, entity, &given),
        }
    }

    /// Whether the account may do this to the model, as far as the server tells.
    async fn may(&self, talk: &Talk, entity: &Entity, right: &str) -> bool {
        let params = vec![json!([entity.target])];
        let access =
            self.server.call(talk, "model.ir.model.access.get_access", params, json!({}), false).await;
        access.map_or(true, |access| {
            access.get(&entity.target).and_then(|access| access.get(right)).and_then(Value::as_bool)
                != Some(false)
        })
    }

    /// What is to be written, in the wire's form; rows of lists are compared with the record's own.
    async fn values(
        &self,
        talk: &Talk,
        entity: &Entity,
        fields: &[Given<'_>],
        record: &Value,
    ) -> Result<Map<String, Value>, CrmError> {
        let schema = self.schema(talk, entity);
        let mut values = Map::new();
        let mut rows: BTreeMap<List, Map<String, Value>> = BTreeMap::new();
        for Given { field, value } in fields {
            let Some(target) = Target::parse(&field.target) else { continue };
            let encoded = schema.encode(field, &target, value).await?;
            match target.list {
                None => drop(values.insert(target.column, encoded)),
                Some(list) => drop(rows.entry(list).or_default().insert(target.column, encoded)),
            }
        }
        for (list, row) in rows {
            let Some(action) = list.action(record, row) else { continue };
            let actions = values.entry(list.name.clone()).or_insert_with(|| Value::Array(Vec::new()));
            if let Some(actions) = actions.as_array_mut() {
                actions.push(action);
            }
        }
        Ok(values)
    }

    /// The records that have one of these keys already.
    async fn same_key(
        &self,
        talk: &Talk,
        entity: &Entity,
        fields: &[Given<'_>],
    ) -> Result<Vec<String>, CrmError> {
        let mut ids = Vec::new();
        for Given { field, value } in fields.iter().filter(|given| entity.keys.contains(&given.field.name)) {
            let Some(target) = Target::parse(&field.target) else { continue };
            let query = Query::of(json!([target.clause(value)]), 2);
            ids.extend(self.read(talk, entity, &[], query).await?.into_iter().map(|found| found.record.id));
        }
        Ok(ids)
    }
}

/// A search.
struct Query {
    domain: Value,
    order: Value,
    offset: usize,
    limit: usize,
}

impl Query {
    fn of(domain: Value, limit: usize) -> Self {
        Self { domain, order: json!([["id", "ASC"]]), offset: 0, limit }
    }
}

/// The context in which archived records are records.
fn all() -> Value {
    json!({ "active_test": false })
}

fn found(raw: Value, targets: &[(&Field, Target)]) -> Option<Found> {
    let id = raw.get("id").and_then(Value::as_i64)?;
    let moment = |name: &str| raw.get(name).and_then(value::timestamp);
    // Older releases tell no time of change before the first change.
    let modified: Option<Timestamp> = moment("write_date").or_else(|| moment("create_date"));
    let fields = targets
        .iter()
        .filter_map(|(field, target)| {
            let value = field.kind.read(&value::decode(&target.value(&raw)?));
            Some((field.name.clone(), value))
        })
        .collect();
    let guard = raw.get("_timestamp").and_then(Value::as_str).unwrap_or_default();
    let version = modified.map(|at| format!("{}/{guard}", at.as_microsecond()));
    Some(Found { record: Record { id: id.to_string(), version, modified, fields }, raw })
}

/// The context by which the server refuses a record that is no longer of this version.
fn guarded(entity: &Entity, id: &str, version: Option<&str>) -> Value {
    match version.and_then(|version| version.split_once('/')) {
        Some((_, guard)) if !guard.is_empty() => {
            json!({ "active_test": false, "_timestamp": { format!("{},{id}", entity.target): guard } })
        }
        _ => all(),
    }
}

/// Whether the server can tell this version from one a moment later: 6.0 on SQLite knows whole seconds only.
fn is_fine(version: &str) -> bool {
    version.split_once('/').is_some_and(|(_, guard)| guard.contains('.'))
}

impl Dialect for Tryton {
    fn abilities(&self) -> Abilities {
        Abilities {
            native_upsert: false,
            versions: true,
            unique_keys: self.unique_keys,
            feed: Feed::Time { granularity: Duration::from_micros(1), keyset: true, ties_ordered: true },
            max_page: MAX_PAGE,
        }
    }

    fn probe<'a>(&'a self, talk: &'a Talk) -> Boxed<'a, ()> {
        Box::pin(async move {
            let method = format!("model.{}.search_count", self.first);
            let params = vec![json!([["id", "=", 0]])];
            let counted = self.server.call(talk, &method, params, json!({}), false).await;
            counted.map(drop).map_err(|fault| reading(fault, &self.first))
        })
    }

    fn get<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        id: &'a str,
        wanted: &'a [&'a Field],
    ) -> Boxed<'a, Record> {
        Box::pin(async move { Ok(self.by_id(talk, entity, id, wanted).await?.record) })
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
            let schema = self.schema(talk, entity);
            let mut domain = Vec::new();
            for Given { field, value } in filter {
                let Some(target) = Target::parse(&field.target) else { continue };
                // A reference is searched by its value, not by the id that it leads to.
                let value = match (&target.reference, target.negated) {
                    (Some(_), _) | (None, true) => (*value).clone(),
                    (None, false) => schema.encode(field, &target, value).await?,
                };
                domain.push(target.clause(&value));
            }
            if let Some(cursor) = page.cursor {
                let after: i64 = cursor.parse().map_err(|_| {
                    CrmError::new(Problem::Unsupported).reason("the cursor is none of this search")
                })?;
                domain.push(json!(["id", ">", after]));
            }
            let query = Query::of(Value::Array(domain), page.limit.saturating_add(1));
            let mut records: Vec<Record> =
                self.read(talk, entity, wanted, query).await?.into_iter().map(|found| found.record).collect();
            let more = records.len() > page.limit;
            records.truncate(page.limit);
            let next = records.last().filter(|_| more).map(|last| last.id.clone());
            Ok(Listed { records, next })
        })
    }

    fn create<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        fields: &'a [Given<'a>],
    ) -> Boxed<'a, Written> {
        Box::pin(async move {
            let values = self.values(talk, entity, fields, &Value::Null).await?;
            let method = format!("model.{}.create", entity.target);
            let made = self.server.call(talk, &method, vec![json!([values])], all(), true).await;
            let made = match made {
                Ok(made) => made,
                Err(Fault::User(text)) => {
                    let candidates = self.same_key(talk, entity, fields).await?;
                    if !candidates.is_empty() {
                        return Err(CrmError::conflict(Clash::Duplicate, candidates));
                    }
                    return Err(self.refused(talk, entity, fields, Fault::User(text), "create").await);
                }
                Err(fault) => return Err(self.refused(talk, entity, fields, fault, "create").await),
            };
            let id = made.get(0).and_then(Value::as_i64).ok_or_else(|| {
                CrmError::new(Problem::Ambiguous).reason("the answer to a creation names no record")
            })?;
            Ok(Written { id: id.to_string(), version: None })
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
            let number: i64 = id.parse().map_err(|_| CrmError::new(Problem::NotFound))?;
            let listed: Vec<&Field> = fields
                .iter()
                .map(|given| given.field)
                .filter(|field| Target::parse(&field.target).is_some_and(|target| target.list.is_some()))
                .collect();
            // Rows of lists are told by their ids.
            let current = if listed.is_empty() && if_version.is_none_or(is_fine) {
                None
            } else {
                let current = self.by_id(talk, entity, id, &listed).await?;
                stale(&current, if_version)?;
                Some(current)
            };
            let context = guarded(entity, id, if_version);
            let record = current.as_ref().map_or(&Value::Null, |current| &current.raw);
            let values = self.values(talk, entity, fields, record).await?;
            let method = format!("model.{}.write", entity.target);
            let params = vec![json!([number]), Value::Object(values)];
            match self.server.call(talk, &method, params, context, true).await {
                Ok(_) => Ok(Written { id: id.to_owned(), version: None }),
                Err(Fault::User(text)) => {
                    // "No such record" and "not these values" differ in the user's language only.
                    self.by_id(talk, entity, id, &[]).await?;
                    Err(self.refused(talk, entity, fields, Fault::User(text), "write").await)
                }
                Err(fault) => Err(self.refused(talk, entity, fields, fault, "write").await),
            }
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
            // Deleting what is not there is a success to Tryton.
            let current = self.by_id(talk, entity, id, &[]).await?;
            stale(&current, if_version)?;
            let context = guarded(entity, id, if_version);
            let number: i64 = id.parse().map_err(|_| CrmError::new(Problem::NotFound))?;
            let method = format!("model.{}.delete", entity.target);
            match self.server.call(talk, &method, vec![json!([number])], context, true).await {
                Ok(_) => Ok(()),
                Err(fault) => Err(self.refused(talk, entity, &[], fault, "delete").await),
            }
        })
    }

    fn changed<'a>(
        &'a self,
        talk: &'a Talk,
        entity: &'a Entity,
        wanted: &'a [&'a Field],
        span: Span<'a>,
    ) -> Boxed<'a, Changed> {
        Box::pin(changes::page(self, talk, entity, wanted, span))
    }

    fn call<'a>(
        &'a self,
        talk: &'a Talk,
        call: &'a CallSpec,
        args: &'a Map<String, Value>,
    ) -> Boxed<'a, Value> {
        Box::pin(async move {
            let procedure = call.target.as_deref().and_then(Procedure::parse);
            let Some(procedure) = procedure else { return Err(CrmError::new(Problem::Unsupported)) };
            let params = procedure.args.iter().map(|(name, listed)| {
                let value = args.get(name).cloned().unwrap_or(Value::Null);
                if *listed { json!([value]) } else { value }
            });
            let method = format!("model.{}", procedure.method);
            match self.server.call(talk, &method, params.collect(), json!({}), true).await {
                Ok(result) => Ok(value::decode(&result)),
                Err(Fault::User(text)) => Err(CrmError::invalid(Vec::new()).reason(&text)),
                Err(Fault::Unknown(_)) => Err(CrmError::new(Problem::Unsupported)
                    .reason("it has no such model, or the call's arguments are not what it expects")),
                Err(Fault::Other(error)) => Err(error),
            }
        })
    }

    fn describe<'a>(&'a self, talk: &'a Talk, entity: &'a Entity) -> Boxed<'a, Option<Description>> {
        Box::pin(async move {
            let fields = self.schema(talk, entity).describe().await?;
            Ok(Some(Description { fields, complete: true }))
        })
    }
}

fn stale(current: &Found, if_version: Option<&str>) -> Result<(), CrmError> {
    match if_version {
        Some(version) if current.record.version.as_deref() != Some(version) => {
            Err(CrmError::conflict(Clash::Version, vec![current.record.id.clone()]))
        }
        _ => Ok(()),
    }
}
