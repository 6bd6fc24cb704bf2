//! Reading records of a model: the search, what of a record is asked for, and its fields by our names.

use super::{
    Odoo,
    values::{Place, from_odoo, to_odoo},
};
use crate::crm::{
    error::{CrmError, FieldError, Problem},
    exchange::Talk,
    shape,
    vocabulary::{Entity, Field, Given, Record, timestamp},
};
use serde_json::{Map, Value, json};

impl Odoo {
    pub(super) async fn search_read(
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
    pub(super) fn kind_of(entity: &Entity) -> Option<bool> {
        match (entity.target.as_str(), entity.name.as_str()) {
            ("res.partner", "contact") => Some(false),
            ("res.partner", "company") => Some(true),
            _ => None,
        }
    }

    pub(super) fn base_domain(entity: &Entity) -> Vec<Value> {
        Self::kind_of(entity).map(|company| json!(["is_company", "=", company])).into_iter().collect()
    }

    /// The names of the model's fields to read.
    pub(super) fn names<'f>(wanted: &[&'f Field]) -> Vec<&'f str> {
        let mut names: Vec<&str> = wanted.iter().filter_map(|field| Place::of(field).name()).collect();
        names.extend(["id", "write_date"]);
        names.sort_unstable();
        names.dedup();
        names
    }

    pub(super) async fn records(
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

    pub(super) async fn one(
        &self,
        talk: &Talk,
        entity: &Entity,
        id: &str,
        wanted: &[&Field],
    ) -> Result<Record, CrmError> {
        let number: i64 = id.parse().map_err(|_| CrmError::new(Problem::NotFound))?;
        let domain = json!([["id", "=", number]]);
        let rows = self.search_read(talk, &entity.target, domain, &Self::names(wanted), (0, 1), "id").await;
        let rows = rows.map_err(|error| by_our_names(error, entity))?;
        let records = self.records(talk, entity, wanted, &rows).await?;
        records.into_iter().next().ok_or_else(|| CrmError::new(Problem::NotFound))
    }

    /// What a filter comes to; `None`: nothing can fit.
    pub(super) async fn domain(
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
}

/// A read names no field but those of the mapping.
pub(super) fn by_our_names(mut error: CrmError, entity: &Entity) -> CrmError {
    if let Problem::Invalid { fields } = &mut error.problem {
        for refused in fields {
            let ours = entity.fields.iter().find(|field| Place::of(field).name() == Some(&refused.field));
            if let Some(field) = ours {
                let reason = "the target has no such field: is it misspelt in the mapping";
                *refused = FieldError::new(&field.name, reason);
            }
        }
    }
    error
}
