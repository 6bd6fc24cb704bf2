//! Writing records: their values as `create` and `write` take them, and `load`, which makes a record with its external id.

use super::{
    Odoo, relation,
    values::{Place, to_cell, to_odoo, xmlid_name},
};
use crate::crm::{
    dialect::Written,
    error::{Clash, CrmError, FieldError, Problem},
    exchange::Talk,
    shape,
    vocabulary::{Entity, FieldType, Given},
};
use serde_json::{Map, Value, json};

impl Odoo {
    /// The values of a record as `write` and `create` take them.
    pub(super) async fn values(
        &self,
        talk: &Talk,
        entity: &Entity,
        fields: &[Given<'_>],
    ) -> Result<Map<String, Value>, CrmError> {
        let mut values = Map::new();
        let mut wrong = Vec::new();
        for given in fields {
            let (name, value) = match Place::of(given.field) {
                Place::Plain("order_line") => ("order_line", relation::lines_to_write(given)?),
                Place::Plain(name) => (name, to_odoo(given.field.kind, given.value)),
                Place::Negated(name) => (name, json!(given.value != &json!(true))),
                Place::Through(name, _) => match self.resolve(talk, entity, given).await? {
                    Ok(id) => (name, id),
                    Err(error) => {
                        wrong.push(error);
                        continue;
                    }
                },
                Place::Xmlid => {
                    wrong.push(FieldError::new(
                        &given.field.name,
                        "an external id is set with the record's creation",
                    ));
                    continue;
                }
            };
            values.insert(name.to_owned(), value);
        }
        if wrong.is_empty() { Ok(values) } else { Err(CrmError::invalid(wrong)) }
    }

    /// Sees that an external id does not name a record already, of the other kind, say: `load` would change that one.
    pub(super) async fn hold_to_kind(&self, talk: &Talk, entity: &Entity, key: &str) -> Result<(), CrmError> {
        let Some(id) = self.by_xmlid(talk, &entity.target, key).await? else { return Ok(()) };
        let rows =
            self.search_read(talk, &entity.target, json!([["id", "=", id]]), &["id"], (0, 1), "id").await?;
        if rows.is_empty() {
            // What it named is gone; `load` makes another one.
            return Ok(());
        }
        Err(CrmError::conflict(Clash::Duplicate, vec![id.to_string()]))
    }

    /// Makes a record together with its external id, in one transaction.
    pub(super) async fn load(
        &self,
        talk: &Talk,
        entity: &Entity,
        key: &str,
        fields: &[Given<'_>],
    ) -> Result<Written, CrmError> {
        let mut headers = vec!["id".to_owned()];
        let mut cells = vec![format!("{}.{}", self.module, xmlid_name(key))];
        let mut more = Vec::new();
        let mut wrong = Vec::new();
        for given in fields {
            match Place::of(given.field) {
                Place::Xmlid => {}
                Place::Plain("order_line") => {
                    more = relation::lines_to_load(given, &mut headers, &mut cells)?;
                }
                Place::Plain(name) => {
                    headers.push(name.to_owned());
                    cells.push(to_cell(given.field.kind, given.value));
                }
                Place::Negated(name) => {
                    headers.push(name.to_owned());
                    cells.push(to_cell(FieldType::Boolean, &json!(given.value != &json!(true))));
                }
                Place::Through(name, _) => match self.resolve(talk, entity, given).await? {
                    Ok(id) => {
                        headers.push(format!("{name}/.id"));
                        cells.push(id.as_i64().map(|id| id.to_string()).unwrap_or_default());
                    }
                    Err(error) => wrong.push(error),
                },
            }
        }
        if !wrong.is_empty() {
            return Err(CrmError::invalid(wrong));
        }
        if let Some(company) =
            Self::kind_of(entity).filter(|_| !headers.iter().any(|name| name == "is_company"))
        {
            headers.push("is_company".to_owned());
            cells.push(to_cell(FieldType::Boolean, &json!(company)));
        }
        let width = headers.len();
        let lines: Vec<Vec<String>> = std::iter::once(cells).chain(more).collect();
        let padded: Vec<Vec<String>> = lines
            .into_iter()
            .map(|mut line| {
                line.resize(width, String::new());
                line
            })
            .collect();
        let args = vec![("fields", json!(headers)), ("data", json!(padded))];
        let said = self.call(talk, &entity.target, "load", None, args, true).await?;
        let id = said.get("ids").and_then(|ids| ids.get(0)).and_then(shape::id);
        id.map(|id| Written { id, version: None }).ok_or_else(|| refused_load(entity, &said))
    }
}

/// Why `load` made nothing: its messages.
fn refused_load(entity: &Entity, said: &Value) -> CrmError {
    let messages = said.get("messages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |message: &Value| message.get("message").and_then(Value::as_str).unwrap_or("").to_owned();
    if messages.iter().any(|message| text(message).contains("duplicate key")) {
        return CrmError::conflict(Clash::Duplicate, Vec::new());
    }
    if messages.iter().any(|message| text(message).contains("could not serialize")) {
        return CrmError::new(Problem::Throttled { retry_after: None });
    }
    let field = |message: &Value| {
        let theirs = message.get("field")?;
        let theirs = theirs.as_str().or_else(|| theirs.get(0)?.as_str())?;
        let ours = entity.fields.iter().find(|field| Place::of(field).name() == Some(theirs));
        Some(FieldError::new(ours.map_or(theirs, |field| field.name.as_str()), &text(message)))
    };
    let fields: Vec<FieldError> = messages.iter().filter_map(field).collect();
    let reason = messages.first().map(text).unwrap_or_default();
    let error = CrmError::invalid(fields.clone());
    if fields.is_empty() { error.reason(&reason) } else { error }
}
