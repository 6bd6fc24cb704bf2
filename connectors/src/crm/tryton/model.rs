//! What a Tryton server says of its models: which columns there are, of which types, what they are called to its users.

use super::{
    session::{Fault, Server},
    target::Target,
    value,
};
use crate::crm::{
    dialect::Described,
    error::{CrmError, FieldError, Problem},
    exchange::Talk,
    vocabulary::{Entity, Field, FieldType},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long what a server said of a model is taken for true: modules are added seldom.
const KEPT: Duration = Duration::from_secs(15 * 60);

/// A column of a model.
#[derive(Debug)]
pub(super) struct Column {
    /// As `fields_get` names it: `char`, `numeric`, `many2one`, ….
    pub(super) kind: String,
    /// What users see, in the language of the account.
    label: String,
    required: bool,
    read_only: bool,
    relation: Option<String>,
    size: Option<usize>,
}

/// A model.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) columns: BTreeMap<String, Column>,
}

/// The models asked about so far.
#[derive(Default)]
pub(super) struct Models(Mutex<BTreeMap<String, (Instant, Arc<Model>)>>);

impl Models {
    /// A model.
    ///
    /// # Errors
    /// What asking met; a name that is no model's is [`Problem::Unsupported`].
    pub(super) async fn get(&self, server: &Server, talk: &Talk, name: &str) -> Result<Arc<Model>, CrmError> {
        {
            let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((at, model)) = kept.get(name)
                && at.elapsed() < KEPT
            {
                return Ok(model.clone());
            }
        }
        let method = format!("model.{name}.fields_get");
        let fields = server.call(talk, &method, vec![Value::Null], json!({}), false).await;
        let fields = fields.map_err(|fault| reading(fault, name))?;
        let model = Arc::new(Model::read(&fields));
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(name.to_owned(), (Instant::now(), model.clone()));
        Ok(model)
    }
}

/// What a failure of a read means: with parameters of ours, the user's own words can only be about a missing right.
pub(super) fn reading(fault: Fault, model: &str) -> CrmError {
    match fault {
        Fault::Other(error) => error,
        Fault::User(text) => CrmError::new(Problem::Forbidden).reason(&text),
        Fault::Unknown(name) if name == model => CrmError::new(Problem::Unsupported)
            .reason(&format!("it has no model {name}; the module that brings it is not active")),
        Fault::Unknown(name) => {
            CrmError::new(Problem::Unsupported).reason(&format!("its model {model} has no column {name}"))
        }
    }
}

impl Model {
    fn read(fields: &Value) -> Self {
        let columns = fields.as_object().into_iter().flatten().map(|(name, field)| {
            let text = |key: &str| field.get(key).and_then(Value::as_str).map(str::to_owned);
            let flag = |key: &str| field.get(key).and_then(Value::as_bool).unwrap_or(false);
            let column = Column {
                kind: text("type").unwrap_or_default(),
                label: text("string").unwrap_or_default(),
                required: flag("required"),
                read_only: flag("readonly"),
                relation: text("relation"),
                size: field.get("size").and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok()),
            };
            (name.clone(), column)
        });
        Self { columns: columns.collect() }
    }

    fn column(&self, name: &str) -> Option<&Column> {
        self.columns.get(name)
    }
}

/// A column with the model that the record, or row, is of.
pub(super) struct Place {
    pub(super) model: Arc<Model>,
    pub(super) column: String,
}

impl Place {
    pub(super) fn column(&self) -> Option<&Column> {
        self.model.column(&self.column)
    }

    /// The model that the column leads to.
    pub(super) fn relation(&self) -> Option<&str> {
        self.column()?.relation.as_deref()
    }

    fn is_called(&self, text: &str) -> bool {
        let label = self.column().map(|column| column.label.as_str()).unwrap_or_default();
        !label.is_empty()
            && [('"', '"'), ('«', '»'), ('“', '”'), ('„', '“')].iter().any(|(open, close)| {
                text.contains(&format!("{open}{label}{close}"))
                    || text.contains(&format!("{open}\u{a0}{label}\u{a0}{close}"))
            })
    }
}

/// The models behind an entity's fields.
pub(super) struct Schema<'a> {
    pub(super) models: &'a Models,
    pub(super) server: &'a Server,
    pub(super) talk: &'a Talk,
    pub(super) entity: &'a Entity,
}

impl Schema<'_> {
    /// Where a target's value is; `None` if there is no such column.
    pub(super) async fn place(&self, target: &Target) -> Result<Option<Place>, CrmError> {
        let mut model = self.models.get(self.server, self.talk, &self.entity.target).await?;
        if let Some(list) = &target.list {
            let Some(relation) = model.column(&list.name).and_then(|column| column.relation.clone()) else {
                return Ok(None);
            };
            model = self.models.get(self.server, self.talk, &relation).await?;
            if list.filter.as_ref().is_some_and(|(column, _)| model.column(column).is_none()) {
                return Ok(None);
            }
        }
        let known = model.column(&target.column).is_some();
        Ok(known.then(|| Place { model, column: target.column.clone() }))
    }

    /// A canonical value as the wire has it, for a write or a search. A reference is looked up.
    pub(super) async fn encode(
        &self,
        field: &Field,
        target: &Target,
        value: &Value,
    ) -> Result<Value, CrmError> {
        let wrong = |reason: &str| CrmError::invalid(vec![FieldError::new(&field.name, reason)]);
        let place = self.place(target).await?;
        let Some(place) = place else { return Err(wrong("the target has no such field")) };
        if let Some(reference) = &target.reference {
            return self.look_up(&place, reference, value).await?.ok_or_else(|| {
                wrong("the target has no, or more than one, record that this value leads to")
            });
        }
        let kind = place.column().map(|column| column.kind.as_str()).unwrap_or_default();
        let encoded = value::encode(kind, value).map_err(wrong)?;
        match (target.negated, encoded) {
            (true, Value::Bool(flag)) => Ok(Value::Bool(!flag)),
            (true, Value::Null) => Ok(Value::Bool(true)),
            (_, encoded) => Ok(encoded),
        }
    }

    async fn look_up(
        &self,
        place: &Place,
        reference: &str,
        value: &Value,
    ) -> Result<Option<Value>, CrmError> {
        if value.is_null() || value.as_str() == Some("") {
            return Ok(Some(Value::Null));
        }
        let Some(relation) = place.relation() else { return Ok(None) };
        let params = vec![json!([[reference, "=", value]]), json!(0), json!(2), Value::Null, json!(["id"])];
        let method = format!("model.{relation}.search_read");
        let found = self.server.call(self.talk, &method, params, json!({}), false).await;
        let found = found.map_err(|fault| reading(fault, relation))?;
        Ok(match found.as_array().map(Vec::as_slice) {
            Some([one]) => one.get("id").cloned(),
            _ => None,
        })
    }

    /// The fields that a text of the server's names by what users call them.
    pub(super) async fn named_in(&self, text: &str, fields: &[&Field]) -> Result<Vec<FieldError>, CrmError> {
        let mut named = Vec::new();
        for field in fields {
            let Some(target) = Target::parse(&field.target) else { continue };
            if self.place(&target).await?.is_some_and(|place| place.is_called(text)) {
                named.push(FieldError::new(&field.name, ""));
            }
        }
        Ok(named)
    }

    /// What the server says of the entity's fields; those that are not there are left out.
    pub(super) async fn describe(&self) -> Result<Vec<Described>, CrmError> {
        let mut described = Vec::new();
        let mut required = Vec::new();
        for field in &self.entity.fields {
            let Some(target) = Target::parse(&field.target) else { continue };
            let Some(place) = self.place(&target).await? else { continue };
            let Some(column) = place.column() else { continue };
            let own = target.list.is_none();
            if own && column.required {
                required.push((described.len(), target.column.clone()));
            }
            described.push(Described {
                target: field.target.clone(),
                required: false,
                read_only: column.read_only,
                kind: if target.reference.is_some() { None } else { field_type(&column.kind) },
                max_length: column.size.filter(|_| target.reference.is_none()),
            });
        }
        // A column that is filled in by itself need not be given.
        let names: Vec<&str> = required.iter().map(|(_, column)| column.as_str()).collect();
        let method = format!("model.{}.default_get", self.entity.target);
        let defaults = self.server.call(self.talk, &method, vec![json!(names)], json!({}), false).await;
        if let Ok(defaults) = defaults {
            for (index, column) in &required {
                let filled = defaults.get(column).is_some_and(|value| !value.is_null());
                if let Some(described) = described.get_mut(*index) {
                    described.required = !filled;
                }
            }
        }
        Ok(described)
    }
}

fn field_type(kind: &str) -> Option<FieldType> {
    match kind {
        "char" | "text" | "fulltext" | "selection" => Some(FieldType::Text),
        "integer" | "biginteger" => Some(FieldType::Integer),
        "numeric" => Some(FieldType::Decimal),
        "boolean" => Some(FieldType::Boolean),
        "date" => Some(FieldType::Date),
        "datetime" | "timestamp" => Some(FieldType::DateTime),
        _ => None,
    }
}
