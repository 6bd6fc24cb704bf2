//! The parameters of jobs: their schemas, their checks against the vocabulary, and what they demand of the policy.

use super::{
    settings::CallSpec,
    vocabulary::{Entity, Field, FieldType, Given},
};
use crate::{Code, Demands, Failure};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Records of one page if a job does not say, and the most it may ask for.
const LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;
const MAX_ID: usize = 256;
const MAX_CURSOR: usize = 4096;

/// Creates or changes the record of a key.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct UpsertParams {
    /// The entity, such as `contact`.
    entity: String,
    /// The key: one field and its value.
    #[schemars(with = "BTreeMap<String, Value>")]
    key: Map<String, Value>,
    /// The fields to set; the others stay as they are.
    #[schemars(with = "BTreeMap<String, Value>")]
    fields: Map<String, Value>,
    /// Only if the record is still at this version.
    if_version: Option<String>,
    /// Check against the target without writing.
    #[serde(default)]
    dry_run: bool,
}

/// Reads one record.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetParams {
    /// The entity.
    entity: String,
    /// The target's id, or else `key`.
    #[schemars(schema_with = "id_schema")]
    id: Option<Value>,
    /// The key: one field and its value, or else `id`.
    #[schemars(with = "Option<BTreeMap<String, Value>>")]
    key: Option<Map<String, Value>>,
    /// The fields to read; without it all that the rule allows.
    fields: Option<Vec<String>>,
}

/// Reads the records whose fields have these values.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FindParams {
    /// The entity.
    entity: String,
    /// Fields and the values they must have.
    #[serde(rename = "where")]
    #[schemars(with = "BTreeMap<String, Value>")]
    filter: Map<String, Value>,
    /// The fields to read; without it all that the rule allows.
    fields: Option<Vec<String>>,
    /// The most records of one page.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Reads what changed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ChangesParams {
    /// The entity.
    entity: String,
    /// The `next_cursor` of the page before, or else `since`.
    cursor: Option<String>,
    /// Changes of this time and later (RFC 3339); with neither: all records.
    since: Option<String>,
    /// The fields to read; without it all that the rule allows.
    fields: Option<Vec<String>>,
    /// The most changes of one page.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
}

/// Deletes one record; that it is gone already is a success.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DeleteParams {
    /// The entity.
    entity: String,
    /// The target's id, or else `key`.
    #[schemars(schema_with = "id_schema")]
    id: Option<Value>,
    /// The key: one field and its value, or else `id`.
    #[schemars(with = "Option<BTreeMap<String, Value>>")]
    key: Option<Map<String, Value>>,
    /// Only if the record is still at this version.
    if_version: Option<String>,
    /// Check without deleting.
    #[serde(default)]
    dry_run: bool,
}

/// Makes a call that the resource's configuration declares.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CallParams {
    /// Its name there.
    name: String,
    /// Its arguments.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Value>")]
    args: Map<String, Value>,
}

fn id_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let mut schema = schemars::Schema::default();
    schema.insert("type".to_owned(), json!(["string", "integer"]));
    schema
}

/// The operations' schemas, in the order in which they are announced.
pub(super) fn schemas() -> [(&'static str, Value); 6] {
    [
        ("upsert", schemars::schema_for!(UpsertParams).to_value()),
        ("get", schemars::schema_for!(GetParams).to_value()),
        ("find", schemars::schema_for!(FindParams).to_value()),
        ("changes", schemars::schema_for!(ChangesParams).to_value()),
        ("delete", schemars::schema_for!(DeleteParams).to_value()),
        ("call", schemars::schema_for!(CallParams).to_value()),
    ]
}

/// A field and its canonical value, owned.
pub(super) type Pair<'e> = (&'e Field, Value);

/// As dialects take them.
pub(super) fn given<'a>(pairs: &'a [Pair<'a>]) -> Vec<Given<'a>> {
    pairs.iter().map(|(field, value)| Given { field, value }).collect()
}

/// Which record.
#[derive(Debug)]
pub(super) enum Which<'e> {
    Id(String),
    Key(Pair<'e>),
}

/// Where changes begin.
#[derive(Debug)]
pub(super) enum From {
    Beginning,
    Since(Timestamp),
    Cursor(String),
}

/// Checked parameters.
#[derive(Debug)]
pub(super) enum Params<'e> {
    Upsert {
        entity: &'e Entity,
        key: Pair<'e>,
        fields: Vec<Pair<'e>>,
        if_version: Option<String>,
        dry_run: bool,
    },
    Get {
        entity: &'e Entity,
        which: Which<'e>,
        fields: Option<Vec<&'e Field>>,
    },
    Find {
        entity: &'e Entity,
        filter: Vec<Pair<'e>>,
        fields: Option<Vec<&'e Field>>,
        limit: usize,
        cursor: Option<String>,
    },
    Changes {
        entity: &'e Entity,
        from: From,
        fields: Option<Vec<&'e Field>>,
        limit: usize,
    },
    Delete {
        entity: &'e Entity,
        which: Which<'e>,
        if_version: Option<String>,
        dry_run: bool,
    },
    Call {
        call: &'e CallSpec,
        args: Map<String, Value>,
    },
}

/// What parameters are checked against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words<'e> {
    pub(super) entities: &'e [Entity],
    pub(super) calls: &'e [CallSpec],
}

impl<'e> Words<'e> {
    /// Checks the parameters of an operation.
    ///
    /// # Errors
    /// `invalid_params` (permanent), naming what is wrong.
    pub(super) fn check(self, operation: &str, params: &Value) -> Result<Params<'e>, Failure> {
        Ok(match operation {
            "upsert" => {
                let raw: UpsertParams = parse(params)?;
                let entity = self.entity(&raw.entity)?;
                let key = self.key(entity, &raw.key)?;
                let mut fields = Vec::with_capacity(raw.fields.len());
                for (name, value) in &raw.fields {
                    let pair = pair(entity, "fields", name, value)?;
                    if pair.0.read_only {
                        return Err(invalid(format!("fields.{name}: may only be read")));
                    }
                    if pair.0.name == key.0.name {
                        if pair.1 != key.1 {
                            return Err(invalid(format!(
                                "fields.{name}: differs from key.{name}; a key stays what it is"
                            )));
                        }
                        continue;
                    }
                    fields.push(pair);
                }
                let if_version = version(raw.if_version)?;
                Params::Upsert { entity, key, fields, if_version, dry_run: raw.dry_run }
            }
            "get" => {
                let raw: GetParams = parse(params)?;
                let entity = self.entity(&raw.entity)?;
                let which = self.which(entity, raw.id, raw.key)?;
                Params::Get { entity, which, fields: names(entity, raw.fields)? }
            }
            "find" => {
                let raw: FindParams = parse(params)?;
                let entity = self.entity(&raw.entity)?;
                let filter: Result<Vec<_>, _> =
                    raw.filter.iter().map(|(name, value)| pair(entity, "where", name, value)).collect();
                let limit = limit(raw.limit)?;
                let cursor = cursor(raw.cursor)?;
                Params::Find { entity, filter: filter?, fields: names(entity, raw.fields)?, limit, cursor }
            }
            "changes" => {
                let raw: ChangesParams = parse(params)?;
                let entity = self.entity(&raw.entity)?;
                let from = match (cursor(raw.cursor)?, raw.since) {
                    (Some(_), Some(_)) => {
                        return Err(invalid("since: not together with cursor; give one of them"));
                    }
                    (Some(cursor), None) => From::Cursor(cursor),
                    (None, Some(since)) => From::Since(since.parse().map_err(|_| {
                        invalid(format!("since: expected {}", FieldType::DateTime.expected()))
                    })?),
                    (None, None) => From::Beginning,
                };
                Params::Changes { entity, from, fields: names(entity, raw.fields)?, limit: limit(raw.limit)? }
            }
            "delete" => {
                let raw: DeleteParams = parse(params)?;
                let entity = self.entity(&raw.entity)?;
                let which = self.which(entity, raw.id, raw.key)?;
                Params::Delete { entity, which, if_version: version(raw.if_version)?, dry_run: raw.dry_run }
            }
            "call" => {
                let raw: CallParams = parse(params)?;
                let call = self.calls.iter().find(|call| call.name == raw.name);
                let call = call.ok_or_else(|| {
                    invalid(format!("name: this resource has no call {:?}", short(&raw.name)))
                })?;
                Params::Call { call, args: args(call, &raw.args)? }
            }
            other => return Err(invalid(format!("the crm connector has no operation {other}"))),
        })
    }

    /// The entity of our name.
    pub(super) fn entity(self, name: &str) -> Result<&'e Entity, Failure> {
        self.entities
            .iter()
            .find(|entity| entity.name == name)
            .ok_or_else(|| invalid(format!("entity: this resource has no entity {:?}", short(name))))
    }

    fn key(self, entity: &'e Entity, key: &Map<String, Value>) -> Result<Pair<'e>, Failure> {
        let mut pairs = key.iter();
        let (Some((name, value)), None) = (pairs.next(), pairs.next()) else {
            return Err(invalid("key: expected one field and its value"));
        };
        if !entity.keys.contains(name) {
            let known = entity.keys.join(", ");
            let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {known}") };
            return Err(invalid(format!(
                "key: {:?} is no key of entity {}; {known}",
                short(name),
                entity.name
            )));
        }
        let pair = pair(entity, "key", name, value)?;
        if pair.1.is_null() || pair.1.as_str().is_some_and(|text| text.trim().is_empty()) {
            return Err(invalid(format!("key.{name}: must not be empty")));
        }
        Ok(pair)
    }

    fn which(
        self,
        entity: &'e Entity,
        id: Option<Value>,
        key: Option<Map<String, Value>>,
    ) -> Result<Which<'e>, Failure> {
        match (id, key) {
            (Some(Value::String(id)), None) if matches!(id.as_str(), "." | "..") => {
                Err(invalid("id: dots alone are no id"))
            }
            (Some(Value::String(id)), None)
                if (1..=MAX_ID).contains(&id.len()) && !id.chars().any(char::is_control) =>
            {
                Ok(Which::Id(id))
            }
            (Some(Value::Number(id)), None) if id.is_u64() => Ok(Which::Id(id.to_string())),
            (Some(_), None) => {
                Err(invalid(format!("id: expected a string of 1 to {MAX_ID} characters or an integer")))
            }
            (None, Some(key)) => self.key(entity, &key).map(Which::Key),
            (Some(_), Some(_)) | (None, None) => Err(invalid("id, key: give one of them")),
        }
    }
}

impl Params<'_> {
    /// What the policy must allow. Fields that are only shown are no demand: the rule's other fields are left out. Nor is
    /// a key: the operator declared it as what records are found by.
    pub(super) fn demands(&self) -> Demands {
        let of = |entity: &Entity, fields: Vec<&Field>| {
            let mut fields: Vec<String> = fields.iter().map(|field| field.name.clone()).collect();
            fields.sort();
            fields.dedup();
            Demands { entities: vec![entity.name.clone()], fields, ..Demands::default() }
        };
        let asked = |fields: &Option<Vec<&Field>>| -> Vec<String> {
            fields.iter().flatten().map(|field| field.name.clone()).collect()
        };
        let with = |mut demands: Demands, more: Vec<String>| {
            demands.fields.extend(more);
            demands.fields.sort();
            demands.fields.dedup();
            demands
        };
        match self {
            Self::Upsert { entity, fields, .. } => {
                of(entity, fields.iter().map(|(field, _)| *field).collect())
            }
            Self::Get { entity, fields, .. } => with(of(entity, Vec::new()), asked(fields)),
            Self::Find { entity, filter, fields, .. } => {
                with(of(entity, filter.iter().map(|(field, _)| *field).collect()), asked(fields))
            }
            Self::Changes { entity, fields, .. } => with(of(entity, Vec::new()), asked(fields)),
            Self::Delete { entity, .. } => of(entity, Vec::new()),
            Self::Call { call, .. } => Demands { calls: vec![call.name.clone()], ..Demands::default() },
        }
    }
}

fn parse<T: DeserializeOwned>(params: &Value) -> Result<T, Failure> {
    // Serde would take an array for a struct as well.
    if !params.is_object() {
        return Err(invalid("params: expected an object"));
    }
    T::deserialize(params).map_err(|e| invalid(e.to_string()))
}

pub(super) fn invalid(message: impl Into<String>) -> Failure {
    Failure::permanent(Code::InvalidParams, message)
}

/// A name of a job in a message: bounded.
fn short(name: &str) -> String {
    name.chars().take(64).collect()
}

fn field<'e>(entity: &'e Entity, at: &str, name: &str) -> Result<&'e Field, Failure> {
    entity.field(name).ok_or_else(|| {
        invalid(format!("{at}: entity {} has no field {:?} at this resource", entity.name, short(name)))
    })
}

fn pair<'e>(entity: &'e Entity, at: &str, name: &str, value: &Value) -> Result<Pair<'e>, Failure> {
    let field = field(entity, at, name)?;
    let value = field
        .kind
        .canonical(value)
        .map_err(|expected| invalid(format!("{at}.{name}: expected {expected}")))?;
    Ok((field, value))
}

fn names(entity: &Entity, names: Option<Vec<String>>) -> Result<Option<Vec<&Field>>, Failure> {
    names.map(|names| names.iter().map(|name| field(entity, "fields", name)).collect()).transpose()
}

fn limit(limit: Option<usize>) -> Result<usize, Failure> {
    match limit {
        None => Ok(LIMIT),
        Some(limit @ 1..=MAX_LIMIT) => Ok(limit),
        Some(_) => Err(invalid(format!("limit: expected 1 to {MAX_LIMIT}"))),
    }
}

fn cursor(cursor: Option<String>) -> Result<Option<String>, Failure> {
    match cursor {
        Some(cursor) if cursor.len() > MAX_CURSOR => Err(invalid("cursor: longer than any of this resource")),
        other => Ok(other),
    }
}

fn version(version: Option<String>) -> Result<Option<String>, Failure> {
    match version {
        Some(version)
            if version.is_empty() || version.len() > MAX_ID || version.chars().any(char::is_control) =>
        {
            Err(invalid("if_version: not a version of a record"))
        }
        other => Ok(other),
    }
}

fn args(call: &CallSpec, args: &Map<String, Value>) -> Result<Map<String, Value>, Failure> {
    if let Some(missing) = call.required.iter().find(|name| !args.contains_key(*name)) {
        return Err(invalid(format!("args.{missing}: missing; this call needs it")));
    }
    args.iter()
        .map(|(name, value)| {
            let kind = call
                .args
                .get(name)
                .ok_or_else(|| invalid(format!("args: call {} takes no {:?}", call.name, short(name))))?;
            let value = kind
                .canonical(value)
                .map_err(|expected| invalid(format!("args.{name}: expected {expected}")))?;
            Ok((name.clone(), value))
        })
        .collect()
}
