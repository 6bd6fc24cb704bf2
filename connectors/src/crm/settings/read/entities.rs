//! The entities with their fields, and the calls: all that jobs may name.

use super::Reader;
use crate::crm::{
    dialects::Product,
    rest::shape::RawShape,
    settings::CallSpec,
    vocabulary::{Entity, Field, FieldType, neutral_type},
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// More entities, fields or calls are a mistake.
const MAX_ENTITIES: usize = 100;
const MAX_FIELDS: usize = 500;
const WORD_RULE: &str = "1 to 64 of a–z, 0–9 and _, beginning with a letter";

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEntity {
    /// What the product calls it: a model, a module, a collection.
    target: Option<String>,
    /// The fields that a record can be found by. Default: `external_id`.
    key: Option<Vec<String>>,
    /// Our name = the product's name, for every field that may ever be named; `""` takes one of the dialect's away.
    fields: Option<BTreeMap<String, String>>,
    /// Types of fields: `text`, `integer`, `decimal`, `boolean`, `date`, `datetime`, `any`, `json`.
    types: Option<BTreeMap<String, String>>,
    /// Fields that jobs may read, not write.
    read_only: Option<Vec<String>>,
    /// Personal data: taken out of every failure's message and of the agent's log.
    masked: Option<Vec<String>>,
    /// Dialect `rest`: what differs for this entity.
    pub(super) rest: Option<RawShape>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCall {
    /// What it calls, in the dialect's words.
    target: Option<String>,
    /// The HTTP method.
    #[schemars(extend("enum" = ["GET", "POST", "PUT", "PATCH", "DELETE"]))]
    method: Option<String>,
    /// The path below `url`; `{arg}` stands for an argument.
    path: Option<String>,
    /// The arguments and their types.
    args: Option<BTreeMap<String, String>>,
    /// Those that must be given.
    required: Option<Vec<String>>,
}

impl Reader<'_> {
    pub(super) fn entities(&mut self, product: &Product, raw: BTreeMap<String, RawEntity>) -> Vec<Entity> {
        if raw.is_empty() {
            self.wrong(
                "entities",
                "missing; write [resources.NAME.entities.contact] for each entity jobs may name",
            );
        }
        if raw.len() > MAX_ENTITIES {
            self.wrong("entities", format!("expected at most {MAX_ENTITIES}, found {}", raw.len()));
        }
        raw.into_iter().map(|(name, raw)| self.entity(product, name, raw)).collect()
    }

    fn entity(&mut self, product: &Product, name: String, raw: RawEntity) -> Entity {
        let at = format!("entities.{name}");
        if !is_word(&name) {
            self.wrong(&at, format!("not an entity's name: {WORD_RULE}"));
        }
        let known = product.entities.iter().find(|known| known.name == name);
        let target = raw.target.or_else(|| known.map(|known| known.target.to_owned()));
        if target.as_ref().is_none_or(String::is_empty) {
            let message = format!(
                "missing; dialect {:?} does not know what {name} is called at the target",
                product.name
            );
            self.wrong(&format!("{at}.target"), message);
        }
        let mut names: BTreeMap<String, String> = known
            .iter()
            .flat_map(|known| known.fields.iter())
            .map(|(ours, theirs)| ((*ours).to_owned(), (*theirs).to_owned()))
            .collect();
        for (ours, theirs) in raw.fields.unwrap_or_default() {
            if !is_word(&ours) {
                self.wrong(&format!("{at}.fields.{ours}"), format!("not a field's name: {WORD_RULE}"));
            }
            if theirs.is_empty() {
                // An empty name takes a field of the dialect away.
                names.remove(&ours);
            } else {
                names.insert(ours, theirs);
            }
        }
        if names.is_empty() || names.len() > MAX_FIELDS {
            let message = format!(
                "expected 1 to {MAX_FIELDS} fields, such as {{ email = \"email\" }}, found {}",
                names.len()
            );
            self.wrong(&format!("{at}.fields"), message);
        }
        let types = raw.types.unwrap_or_default();
        let (read_only, masked) = (raw.read_only.unwrap_or_default(), raw.masked.unwrap_or_default());
        let mut known_here = |key: &str, field: &String| {
            if !names.contains_key(field) {
                self.wrong(&format!("{at}.{key}"), format!("{field:?} is not one of its fields"));
            }
        };
        types.keys().for_each(|field| known_here("types", field));
        read_only.iter().for_each(|field| known_here("read_only", field));
        masked.iter().for_each(|field| known_here("masked", field));
        let keys = raw.key.unwrap_or_else(|| {
            let link = "external_id".to_owned();
            if names.contains_key(&link) { vec![link] } else { Vec::new() }
        });
        keys.iter().for_each(|field| known_here("key", field));
        let fields = names
            .into_iter()
            .map(|(ours, theirs)| {
                let kind = types.get(&ours).map(|text| {
                    FieldType::named(text).unwrap_or_else(|| {
                        let all: Vec<_> = FieldType::NAMES.iter().map(|(name, _)| *name).collect();
                        let message = format!("unknown type {text:?}; there are {}", all.join(", "));
                        self.wrong(&format!("{at}.types.{ours}"), message);
                        FieldType::Any
                    })
                });
                Field {
                    kind: kind.or_else(|| neutral_type(&name, &ours)).unwrap_or(FieldType::Any),
                    read_only: read_only.contains(&ours),
                    masked: masked.contains(&ours),
                    name: ours,
                    target: theirs,
                }
            })
            .collect();
        Entity { name, target: target.unwrap_or_default(), fields, keys }
    }

    pub(super) fn calls(&mut self, raw: BTreeMap<String, RawCall>) -> Vec<CallSpec> {
        if raw.len() > MAX_ENTITIES {
            self.wrong("calls", format!("expected at most {MAX_ENTITIES}, found {}", raw.len()));
        }
        raw.into_iter().map(|(name, raw)| self.one_call(name, raw)).collect()
    }

    fn one_call(&mut self, name: String, raw: RawCall) -> CallSpec {
        let at = format!("calls.{name}");
        if !is_word(&name) {
            self.wrong(&at, format!("not a call's name: {WORD_RULE}"));
        }
        let mut args = BTreeMap::new();
        for (arg, kind) in raw.args.unwrap_or_default() {
            match FieldType::named(&kind) {
                Some(kind) if is_word(&arg) => drop(args.insert(arg, kind)),
                Some(_) => self.wrong(&format!("{at}.args.{arg}"), format!("not a name: {WORD_RULE}")),
                None => {
                    let all: Vec<_> = FieldType::NAMES.iter().map(|(name, _)| *name).collect();
                    let message = format!("unknown type {kind:?}; there are {}", all.join(", "));
                    self.wrong(&format!("{at}.args.{arg}"), message);
                }
            }
        }
        let required: BTreeSet<String> = raw.required.unwrap_or_default().into_iter().collect();
        for arg in required.iter().filter(|arg| !args.contains_key(*arg)) {
            self.wrong(&format!("{at}.required"), format!("{arg:?} is not one of its args"));
        }
        let method = raw.method;
        if method
            .as_deref()
            .is_some_and(|method| !matches!(method, "GET" | "POST" | "PUT" | "PATCH" | "DELETE"))
        {
            self.wrong(&format!("{at}.method"), "expected GET, POST, PUT, PATCH or DELETE");
        }
        CallSpec { name, target: raw.target, method, path: raw.path, args, required }
    }
}

/// Whether a name of ours is one that jobs and rules can write without doubt.
fn is_word(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
