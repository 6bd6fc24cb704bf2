//! What leads from one of Odoo's records to others: external ids, many2one fields, the lines of an order.

use super::{
    Known, Model, Odoo,
    values::{Place, from_odoo, xmlid_key, xmlid_name},
};
use crate::crm::{
    error::{CrmError, FieldError, Problem},
    exchange::Talk,
    shape,
    vocabulary::{Entity, Field, Given, Record},
};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
};

/// Lines of one order.
const MAX_LINES: usize = 1000;

impl Odoo {
    /// The record that an external id of our module names.
    pub(super) async fn by_xmlid(
        &self,
        talk: &Talk,
        model: &str,
        key: &str,
    ) -> Result<Option<i64>, CrmError> {
        let domain =
            json!([["module", "=", self.module], ["name", "=", xmlid_name(key)], ["model", "=", model],]);
        let rows = self.search_read(talk, "ir.model.data", domain, &["res_id"], (0, 1), "id").await?;
        Ok(rows.first().and_then(|row| row.get("res_id")).and_then(Value::as_i64))
    }

    /// The keys of records by their external ids of our module.
    async fn keys_of(
        &self,
        talk: &Talk,
        model: &str,
        ids: &[i64],
    ) -> Result<BTreeMap<i64, String>, CrmError> {
        if ids.is_empty() {
            return Ok(BTreeMap::new());
        }
        let domain = json!([["module", "=", self.module], ["model", "=", model], ["res_id", "in", ids]]);
        let window = (0, ids.len().saturating_mul(2));
        let rows =
            self.search_read(talk, "ir.model.data", domain, &["res_id", "name"], window, "id desc").await?;
        let pair = |row: &Value| {
            let name = row.get("name")?.as_str()?;
            Some((row.get("res_id")?.as_i64()?, xmlid_key(name)))
        };
        // The oldest one wins.
        Ok(rows.iter().filter_map(pair).collect())
    }

    /// What a model looks like, asked anew.
    pub(super) async fn read_model(&self, talk: &Talk, model: &str) -> Result<Model, CrmError> {
        let args = vec![
            ("allfields", json!([])),
            ("attributes", json!(["type", "required", "readonly", "relation"])),
        ];
        let said = self.call(talk, model, "fields_get", None, args, false).await?;
        // Every model has these; an answer without them is none.
        let said = said.as_object().filter(|said| said.contains_key("id") || said.contains_key("write_date"));
        let said =
            said.ok_or_else(|| CrmError::new(Problem::Protocol).reason("fields_get gave no fields"))?;
        let known = |field: &Value| Known {
            kind: field.get("type").and_then(Value::as_str).unwrap_or("").to_owned(),
            required: field.get("required") == Some(&json!(true)),
            readonly: field.get("readonly") == Some(&json!(true)),
            relation: field.get("relation").and_then(Value::as_str).map(str::to_owned),
        };
        let read: Model = Arc::new(said.iter().map(|(name, field)| (name.clone(), known(field))).collect());
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.insert(model.to_owned(), Arc::clone(&read));
        Ok(read)
    }

    /// The model that a many2one field leads to.
    async fn relation(&self, talk: &Talk, entity: &Entity, name: &str) -> Result<String, CrmError> {
        let known = self.models.lock().unwrap_or_else(PoisonError::into_inner).get(&entity.target).cloned();
        let model = match known {
            Some(model) => model,
            None => self.read_model(talk, &entity.target).await?,
        };
        let field = model.get(name).filter(|known| known.kind == "many2one");
        field.and_then(|known| known.relation.clone()).ok_or_else(|| {
            let error = FieldError::new(name, "the target has no such many2one field");
            CrmError::invalid(vec![error])
        })
    }

    /// The number of the record that a value of a many2one field means, or false for none; the inner error: there is none
    /// such, or more than one.
    pub(super) async fn resolve(
        &self,
        talk: &Talk,
        entity: &Entity,
        given: &Given<'_>,
    ) -> Result<Result<Value, FieldError>, CrmError> {
        let Place::Through(name, through) = Place::of(given.field) else {
            return Ok(Ok(given.value.clone()));
        };
        let Some(text) = shape::id(given.value) else { return Ok(Ok(json!(false))) };
        let wrong = |reason: &str| Ok(Err(FieldError::new(&given.field.name, reason)));
        let model = self.relation(talk, entity, name).await?;
        match through {
            "id" => match text.parse::<i64>() {
                Ok(id) => Ok(Ok(json!(id))),
                Err(_) => wrong("expected the number of a record"),
            },
            "xmlid" => match self.by_xmlid(talk, &model, &text).await? {
                Some(id) => Ok(Ok(json!(id))),
                None => wrong("there is no record of this external id"),
            },
            field => {
                let domain = json!([[field, "=", text]]);
                let rows = self.search_read(talk, &model, domain, &["id"], (0, 2), "id").await?;
                match rows.as_slice() {
                    [one] => Ok(Ok(one.get("id").cloned().unwrap_or(json!(false)))),
                    [] => wrong("there is no such record"),
                    _ => wrong("there is more than one such record"),
                }
            }
        }
    }

    /// Adds the values of a field that stand in other records.
    pub(super) async fn fill_in(
        &self,
        talk: &Talk,
        entity: &Entity,
        field: &Field,
        rows: &[Value],
        records: &mut [Record],
    ) -> Result<(), CrmError> {
        let place = Place::of(field);
        let number = |row: &Value| match place {
            Place::Xmlid => row.get("id").and_then(Value::as_i64),
            Place::Through(name, _) => row.get(name).and_then(|pair| pair.get(0)).and_then(Value::as_i64),
            Place::Plain(_) | Place::Negated(_) => None,
        };
        let mut ids: Vec<i64> = rows.iter().filter_map(number).collect();
        ids.sort_unstable();
        ids.dedup();
        let told: BTreeMap<i64, Value> = match place {
            Place::Plain(_) | Place::Negated(_) => return Ok(()),
            Place::Xmlid => {
                let keys = self.keys_of(talk, &entity.target, &ids).await?;
                keys.into_iter().map(|(id, key)| (id, json!(key))).collect()
            }
            Place::Through(_, "id") => ids.iter().map(|id| (*id, field.kind.read(&json!(id)))).collect(),
            Place::Through(_, _) if ids.is_empty() => BTreeMap::new(),
            Place::Through(name, "xmlid") => {
                let model = self.relation(talk, entity, name).await?;
                let keys = self.keys_of(talk, &model, &ids).await?;
                keys.into_iter().map(|(id, key)| (id, json!(key))).collect()
            }
            Place::Through(name, through) => {
                let model = self.relation(talk, entity, name).await?;
                let domain = json!([["id", "in", ids]]);
                let found = self.search_read(talk, &model, domain, &[through], (0, ids.len()), "id").await?;
                let pair =
                    |row: &Value| Some((row.get("id")?.as_i64()?, from_odoo(field.kind, row.get(through)?)));
                found.iter().filter_map(pair).collect()
            }
        };
        for (row, record) in rows.iter().zip(records) {
            let value = number(row).and_then(|id| told.get(&id).cloned()).unwrap_or(Value::Null);
            record.fields.insert(field.name.clone(), value);
        }
        Ok(())
    }
}

/// The lines of an order, each an object by Odoo's own names.
fn lines<'a>(given: &Given<'a>) -> Result<Vec<&'a Map<String, Value>>, CrmError> {
    let wrong = || {
        let error = FieldError::new(
            &given.field.name,
            "expected a list of objects, one per line, by the target's names, with plain values",
        );
        CrmError::invalid(vec![error])
    };
    match given.value {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) if list.len() <= MAX_LINES => {
            list.iter().map(|line| line.as_object().filter(|line| plain(line)).ok_or_else(wrong)).collect()
        }
        _ => Err(wrong()),
    }
}

/// Whether a line holds nothing but fields of its own: a list or an object is a command that writes into other models, and
/// a name with more in it a path there. `id` would be another line's.
fn plain(line: &Map<String, Value>) -> bool {
    let name = |name: &String| {
        name != "id" && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    line.iter().all(|(key, value)| name(key) && !key.is_empty() && !value.is_array() && !value.is_object())
}

/// Commands that replace all lines.
pub(super) fn lines_to_write(given: &Given<'_>) -> Result<Value, CrmError> {
    let lines = lines(given)?;
    let commands = std::iter::once(json!([5, 0, 0])).chain(lines.into_iter().map(|line| json!([0, 0, line])));
    Ok(commands.collect())
}

/// The columns of the lines; the first line stands beside the order, the others are returned.
pub(super) fn lines_to_load(
    given: &Given<'_>,
    headers: &mut Vec<String>,
    cells: &mut Vec<String>,
) -> Result<Vec<Vec<String>>, CrmError> {
    let lines = lines(given)?;
    let mut names: Vec<&String> = lines.iter().flat_map(|line| line.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let before = headers.len();
    headers.extend(names.iter().map(|name| match name.strip_suffix("_id") {
        Some(_) => format!("order_line/{name}/.id"),
        None => format!("order_line/{name}"),
    }));
    let cell = |value: Option<&Value>| match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => u8::from(*flag).to_string(),
        Some(other) => other.to_string(),
    };
    let mut rows =
        lines.iter().map(|line| names.iter().map(|name| cell(line.get(*name))).collect::<Vec<_>>());
    cells.extend(rows.next().unwrap_or_default());
    let padded = rows.map(|row| std::iter::repeat_n(String::new(), before).chain(row).collect());
    Ok(padded.collect())
}

#[cfg(test)]
mod tests {
    use super::{lines_to_load, lines_to_write};
    use crate::crm::vocabulary::{Field, FieldType, Given};
    use serde_json::json;

    #[test]
    fn the_lines_of_an_order_become_columns_beside_it_or_replace_all_lines() {
        let field = Field {
            name: "lines".to_owned(),
            target: "order_line".to_owned(),
            kind: FieldType::Json,
            read_only: false,
            masked: false,
        };
        let lines = json!([{ "product_id": 7, "product_uom_qty": 2 }, { "product_id": 8, "name": "Gift" }]);
        let given = Given { field: &field, value: &lines };
        let (mut headers, mut cells) = (vec!["id".to_owned()], vec!["passerelle.o1".to_owned()]);
        let more = lines_to_load(&given, &mut headers, &mut cells).unwrap();
        assert_eq!(
            headers,
            ["id", "order_line/name", "order_line/product_id/.id", "order_line/product_uom_qty"]
        );
        assert_eq!(cells, ["passerelle.o1", "", "7", "2"]);
        assert_eq!(more, [["", "Gift", "8", ""]]);
        let commands = lines_to_write(&given).unwrap();
        assert_eq!(commands, json!([[5, 0, 0], [0, 0, lines[0]], [0, 0, lines[1]]]));
        for wrong in [
            json!("x"),
            json!([1]),
            json!({}),
            json!([{ "product_id": [0, 0, { "name": "x" }] }]),
            json!([{ "tax_id": [[0, 0, { "name": "x" }]] }]),
            json!([{ "name": { "a": 1 } }]),
            json!([{ "product_id/name": "x" }]),
            json!([{ "id": "base.x" }]),
            json!([{ "": "x" }]),
        ] {
            assert!(
                lines_to_load(&Given { field: &field, value: &wrong }, &mut headers, &mut cells).is_err()
            );
            assert!(lines_to_write(&Given { field: &field, value: &wrong }).is_err(), "{wrong}");
        }
    }
}
