//! The fields of `res.partner`: described, given and taken as Odoo does.

use super::{
    super::{Row, stamp},
    Raised,
};
use serde_json::{Value, json};

/// The fields of `res.partner` that matter here, with their types.
pub(super) const PARTNER: &[(&str, &str)] = &[
    ("name", "char"),
    ("email", "char"),
    ("phone", "char"),
    ("street", "char"),
    ("street2", "char"),
    ("zip", "char"),
    ("city", "char"),
    ("lang", "char"),
    ("website", "char"),
    ("vat", "char"),
    ("parent_id", "many2one"),
    ("ref", "char"),
    ("comment", "html"),
    ("is_company", "boolean"),
    ("active", "boolean"),
    ("color", "integer"),
    ("credit_limit", "float"),
    ("country_id", "many2one"),
    ("type", "selection"),
    ("date", "date"),
    ("write_date", "datetime"),
    ("create_date", "datetime"),
];

pub(super) const COUNTRIES: &[(i64, &str, &str)] = &[(75, "France", "FR"), (57, "Germany", "DE")];

pub(super) fn fields_get() -> Value {
    let field = |(name, of): &(&str, &str)| {
        let mut described = json!({
            "type": of,
            "required": *name == "type",
            "readonly": name.ends_with("_date"),
            "string": name,
        });
        match *of {
            "many2one" if *name == "parent_id" => described["relation"] = json!("res.partner"),
            "many2one" => described["relation"] = json!("res.country"),
            "selection" => {
                described["selection"] = json!([["contact", "Contact"], ["invoice", "Invoice Address"]])
            }
            _ => {}
        }
        ((*name).to_owned(), described)
    };
    Value::Object(PARTNER.iter().map(field).collect())
}

/// A cell of `load`, which is text as in a CSV file.
pub(super) fn converted(header: &str, cell: &str) -> Result<(String, Value), String> {
    let (name, sub) = header.split_once('/').map_or((header, None), |(name, sub)| (name, Some(sub)));
    let Some((_, of)) = PARTNER.iter().find(|(known, _)| *known == name) else {
        return Err(format!("Unknown error during import: <class 'KeyError'>: '{name}'"));
    };
    let value = match (*of, sub) {
        _ if cell.is_empty() => json!(false),
        ("boolean", _) => match cell {
            "1" | "true" | "True" => json!(true),
            "0" | "false" | "False" => json!(false),
            other => return Err(format!("Unknown value '{other}' for boolean field '{name}'")),
        },
        ("integer", _) => {
            json!(
                cell.parse::<i64>()
                    .map_err(|_| format!("'{cell}' does not seem to be an integer for field '{name}'"))?
            )
        }
        ("float", _) => {
            json!(
                cell.parse::<f64>()
                    .map_err(|_| format!("'{cell}' does not seem to be a number for field '{name}'"))?
            )
        }
        ("many2one", Some(".id")) => {
            let known = |id: &i64| name == "parent_id" || COUNTRIES.iter().any(|(known, ..)| known == id);
            let id = cell.parse::<i64>().ok().filter(known);
            json!(id.ok_or_else(|| format!(
                "No matching record found for database id '{cell}' in field '{name}'"
            ))?)
        }
        ("many2one", None) => {
            let found = COUNTRIES.iter().find(|(_, country, _)| *country == cell);
            json!(
                found
                    .ok_or_else(|| format!("No matching record found for name '{cell}' in field '{name}'"))?
                    .0
            )
        }
        ("selection", _) if !["contact", "invoice"].contains(&cell) => {
            return Err(format!("Value '{cell}' not found in selection field '{name}'"));
        }
        _ => json!(cell),
    };
    Ok((name.to_owned(), value))
}

/// All fields as `read` gives them: false for what is empty, pairs for many2one, whole seconds.
pub(super) fn whole(row: &Row) -> Value {
    let mut value = json!({ "id": row.id.parse::<i64>().unwrap() });
    for (name, of) in PARTNER {
        let stored = row.fields.get(*name).cloned().unwrap_or(json!(false));
        value[*name] = match *of {
            "many2one" if *name == "parent_id" && stored.is_i64() => json!([stored, "a company"]),
            "many2one" => COUNTRIES
                .iter()
                .find(|(id, ..)| stored == json!(id))
                .map_or(json!(false), |(id, name, _)| json!([id, name])),
            "integer" | "float" if stored == json!(false) => json!(0),
            _ => stored,
        };
    }
    value["write_date"] = json!(stamp(row.modified, 0));
    value["create_date"] = json!(stamp(row.created, 0));
    value["display_name"] = value["name"].clone();
    value
}

pub(super) fn read(row: &Row, fields: Option<&Value>) -> Result<Value, Raised> {
    let Value::Object(mut value) = whole(row) else { return Ok(Value::Null) };
    if let Some(names) = fields.and_then(Value::as_array).filter(|names| !names.is_empty()) {
        if let Some(unknown) = names.iter().filter_map(Value::as_str).find(|name| !value.contains_key(*name))
        {
            return Err(("builtins.ValueError", format!("Invalid field '{unknown}' on model 'res.partner'")));
        }
        value.retain(|name, _| name == "id" || names.iter().any(|wanted| wanted == name));
    }
    Ok(Value::Object(value))
}
