//! `SuiteCRM`'s V8 JSON:API, as recorded from `SuiteCRM` (November 2026); that text comes back with HTML entities is its
//! public issue 8101.

use super::{Answering, Asked, Clock, Product, Reply, Row, Table, espocrm::bracketed, parse_stamp, stamp};
use serde_json::{Map, Value, json};
use std::{
    cmp::Ordering as Order,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

const BASE: &str = "/Api";
pub const CLIENT_ID: &str = "suite-client";
pub const CLIENT_SECRET: &str = "suite-client-secret";

const FIELDS: &[(&str, &str)] = &[
    ("name", "name"),
    ("first_name", "varchar"),
    ("last_name", "varchar"),
    ("title", "varchar"),
    ("description", "text"),
    ("email1", "varchar"),
    ("phone_work", "phone"),
    ("phone_mobile", "phone"),
    ("primary_address_street", "varchar"),
    ("primary_address_postalcode", "varchar"),
    ("primary_address_city", "varchar"),
    ("primary_address_country", "varchar"),
    ("website", "url"),
    ("employees", "varchar"),
    ("do_not_call", "bool"),
    ("external_id_c", "varchar"),
    ("account_id", "relate"),
    ("birthdate", "date"),
    ("date_entered", "datetime"),
    ("date_modified", "datetime"),
    ("deleted", "bool"),
];

#[derive(Default)]
pub struct SuiteCrm {
    pub contacts: Table,
    pub accounts: Table,
    pub clock: Clock,
    tokens: Mutex<Vec<String>>,
    pub token_requests: AtomicUsize,
    serial: AtomicUsize,
}

impl SuiteCrm {
    /// Makes every token given out so far worthless.
    pub fn revoke(&self) {
        self.tokens.lock().unwrap().clear();
    }

    fn token(&self, asked: &Asked) -> Reply {
        let count = self.token_requests.fetch_add(1, Ordering::SeqCst);
        let form: Vec<(String, String)> = url::form_urlencoded::parse(&asked.body).into_owned().collect();
        let json = asked.json().unwrap_or_default();
        let given = |name: &str| {
            let in_form = form.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
            in_form.or_else(|| json[name].as_str().map(str::to_owned)).unwrap_or_default()
        };
        if given("client_id") != CLIENT_ID || given("client_secret") != CLIENT_SECRET {
            let said = json!({
                "error": "invalid_client", "error_description": "Client authentication failed",
                "message": "Client authentication failed",
            });
            return Reply::json(401, &said);
        }
        let token = format!("eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.{count}");
        self.tokens.lock().unwrap().push(token.clone());
        Reply::json(200, &json!({ "token_type": "Bearer", "expires_in": 3600, "access_token": token }))
    }

    fn table(&self, module: &str) -> Option<&Table> {
        match module {
            "Contacts" => Some(&self.contacts),
            "Accounts" => Some(&self.accounts),
            _ => None,
        }
    }

    fn route(&self, asked: &Asked) -> Reply {
        let parts = asked.parts(BASE);
        if parts.as_slice() == ["access_token"] {
            return self.token(asked);
        }
        let bearer = asked.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        if !bearer.is_some_and(|token| self.tokens.lock().unwrap().iter().any(|known| known == token)) {
            let said = json!({
                "error": "access_denied",
                "error_description": "The resource owner or authorization server denied the request.",
                "hint": "Error while decoding to JSON",
            });
            return Reply::json(401, &said);
        }
        match (asked.method.as_str(), parts.as_slice()) {
            ("GET", ["V8", "module", module]) => self.list(module, asked),
            ("GET", ["V8", "module", module, id]) => self.one(module, id),
            ("DELETE", ["V8", "module", module, id]) => self.delete(module, id),
            ("POST", ["V8", "module"]) => self.create(asked),
            ("PATCH", ["V8", "module"]) => self.update(asked),
            ("GET", ["V8", "meta", "fields", module]) if self.table(module).is_some() => {
                let field = |(name, of): &(&str, &str)| {
                    let mut said = json!({ "type": of, "dbType": "varchar" });
                    if *name == "last_name" {
                        said["required"] = json!(true);
                    }
                    ((*name).to_owned(), said)
                };
                let attributes: Map<String, Value> = FIELDS.iter().map(field).collect();
                Reply::json(200, &json!({ "data": { "type": "fields", "attributes": attributes } }))
            }
            _ => Reply::json(404, &json!({ "message": "Not found" })),
        }
    }

    fn list(&self, module: &str, asked: &Asked) -> Reply {
        let Some(table) = self.table(module) else {
            return wrong(&format!("Module {module} does not exist"));
        };
        let filter = bracketed(&asked.query, "filter");
        let page = bracketed(&asked.query, "page");
        let number = |name: &str| page[name].as_str().and_then(|text| text.parse::<usize>().ok());
        let any = filter["operator"].as_str().is_some_and(|operator| operator.eq_ignore_ascii_case("or"));
        let mut terms = Vec::new();
        for (field, expression) in
            filter.as_object().into_iter().flatten().filter(|(name, _)| *name != "operator")
        {
            if field == "deleted" || field != "id" && !FIELDS.iter().any(|(known, _)| known == field) {
                return wrong(&format!("Filter field {field} in {module} module is not found"));
            }
            for (operator, value) in expression.as_object().into_iter().flatten() {
                if !["eq", "neq", "gt", "gte", "lt", "lte", "like"].contains(&operator.as_str()) {
                    return wrong(&format!("Filter operator {operator} is invalid"));
                }
                terms.push((field.clone(), operator.clone(), value.as_str().unwrap_or("").to_owned()));
            }
        }
        let mut rows: Vec<Row> = table.rows();
        rows.retain(|row| {
            let mut holds =
                terms.iter().map(|(field, operator, want)| is(&column(row, field), operator, want));
            terms.is_empty() || if any { holds.any(|holds| holds) } else { holds.all(|holds| holds) }
        });
        let sort = asked.param("sort").unwrap_or("date_entered");
        let (sort, down) = sort.strip_prefix('-').map_or((sort, false), |sort| (sort, true));
        if sort != "id" && !FIELDS.iter().any(|(known, _)| *known == sort) {
            return wrong(&format!("Sort field {sort} in {module} module is not found"));
        }
        // Of equal ones the order is the database's own.
        rows.sort_by(|a, b| column(a, sort).cmp(&column(b, sort)));
        if down {
            rows.reverse();
        }
        let size = number("size").unwrap_or(20).max(1);
        let skip = number("number").unwrap_or(1).saturating_sub(1) * size;
        let pages = rows.len().div_ceil(size);
        let fields = bracketed(&asked.query, "fields");
        let wanted = fields[module].as_str().map(str::to_owned);
        let data: Vec<Value> =
            rows.iter().skip(skip).take(size).map(|row| resource(module, row, wanted.as_deref())).collect();
        let count = data.len();
        let mut said = json!({ "data": data });
        if count > 0 {
            said["meta"] = json!({ "total-pages": pages, "records-on-this-page": count });
        }
        Reply::json(200, &said)
    }

    fn one(&self, module: &str, id: &str) -> Reply {
        let row = self.table(module).and_then(|table| table.rows().into_iter().find(|row| row.id == id));
        match row {
            Some(row) => Reply::json(200, &json!({ "data": resource(module, &row, None) })),
            None => wrong(&format!("The option \"id\" with value \"{id}\" is invalid.")),
        }
    }

    fn delete(&self, module: &str, id: &str) -> Reply {
        let Some(table) = self.table(module) else { return wrong("Module does not exist") };
        match table.lock().iter_mut().find(|row| row.id == id && !row.deleted) {
            Some(row) => {
                row.deleted = true;
                Reply::json(200, &json!({ "meta": { "message": format!("Record with id {id} is deleted") } }))
            }
            None => wrong(&format!("The option \"id\" with value \"{id}\" is invalid.")),
        }
    }

    fn create(&self, asked: &Asked) -> Reply {
        let (module, id, fields) = match document(asked) {
            Ok(read) => read,
            Err(reply) => return reply,
        };
        let Some(table) = self.table(&module) else {
            return wrong(&format!("Module {module} does not exist"));
        };
        let mut rows = table.lock();
        let serial = self.serial.fetch_add(1, Ordering::SeqCst) + 1;
        let id = id.unwrap_or_else(|| format!("00000000-0000-4000-8000-{serial:012x}"));
        // A deleted record still holds its id.
        if rows.iter().any(|row| row.id == id) {
            return wrong(&format!("Bean {module} with id {id} is already exist"));
        }
        let now = self.clock.now();
        let row = Row { id, fields, created: now, modified: now, version: 1, deleted: false };
        let said = json!({ "data": resource(&module, &row, None) });
        rows.push(row);
        Reply::json(201, &said)
    }

    fn update(&self, asked: &Asked) -> Reply {
        let (module, id, fields) = match document(asked) {
            Ok(read) => read,
            Err(reply) => return reply,
        };
        let Some(table) = self.table(&module) else {
            return wrong(&format!("Module {module} does not exist"));
        };
        let id = id.unwrap_or_default();
        let mut rows = table.lock();
        let Some(row) = rows.iter_mut().find(|row| row.id == id && !row.deleted) else {
            return wrong(&format!("The option \"id\" with value \"{id}\" is invalid."));
        };
        row.fields.extend(fields);
        row.modified = self.clock.now();
        row.version += 1;
        Reply::json(201, &json!({ "data": resource(&module, row, None) }))
    }
}

impl Product for SuiteCrm {
    fn answer(self: Arc<Self>, asked: Asked) -> Answering {
        Box::pin(async move { self.route(&asked) })
    }
}

fn wrong(detail: &str) -> Reply {
    Reply::json(400, &json!({ "errors": { "status": 400, "title": null, "detail": detail } }))
}

/// The module, the id and the attributes of a request; unknown attributes are refused.
fn document(asked: &Asked) -> Result<(String, Option<String>, Map<String, Value>), Reply> {
    let said = asked.json().ok_or_else(|| wrong("Json decode error"))?;
    let data = &said["data"];
    let module = data["type"].as_str().ok_or_else(|| wrong("The required option \"type\" is missing."))?;
    let fields = data["attributes"].as_object().cloned().unwrap_or_default();
    if let Some(unknown) = fields.keys().find(|name| !FIELDS.iter().any(|(known, _)| known == name)) {
        return Err(wrong(&format!("Property {unknown} in Contact module is invalid")));
    }
    Ok((module.to_owned(), data["id"].as_str().map(str::to_owned), fields))
}

fn resource(module: &str, row: &Row, wanted: Option<&str>) -> Value {
    let mut attributes = Map::new();
    for (name, of) in FIELDS {
        let stored = row.fields.get(*name).cloned().unwrap_or(json!(""));
        let value = match (&stored, *of) {
            (Value::String(text), _) => json!(entities(text)),
            (Value::Bool(flag), "bool") => json!(if *flag { "1" } else { "0" }),
            _ => stored,
        };
        attributes.insert((*name).to_owned(), value);
    }
    let at = |micros| json!(format!("{}+00:00", stamp(micros, 0).replace(' ', "T")));
    attributes.insert("date_entered".to_owned(), at(row.created));
    attributes.insert("date_modified".to_owned(), at(row.modified));
    attributes.insert("deleted".to_owned(), json!("0"));
    if let Some(wanted) = wanted {
        attributes.retain(|name, _| wanted.split(',').any(|part| part == name));
    }
    json!({ "type": module.trim_end_matches('s'), "id": row.id, "attributes": attributes, "relationships": {} })
}

fn entities(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('"', "&quot;").replace('\'', "&#039;");
    text.replace('<', "&lt;").replace('>', "&gt;")
}

fn column(row: &Row, name: &str) -> String {
    match name {
        "id" => row.id.clone(),
        "date_modified" => stamp(row.modified, 0),
        "date_entered" => stamp(row.created, 0),
        _ => row.fields.get(name).and_then(Value::as_str).unwrap_or("").to_owned(),
    }
}

fn is(have: &str, operator: &str, want: &str) -> bool {
    let order: Order = match (parse_stamp(have), parse_stamp(want)) {
        (Some(have), Some(want)) if have.to_string().len() > 12 => have.cmp(&want),
        _ => have.to_lowercase().cmp(&want.to_lowercase()),
    };
    match operator {
        "eq" | "like" => order.is_eq(),
        "neq" => order.is_ne(),
        "gt" => order.is_gt(),
        "gte" => order.is_ge(),
        "lt" => order.is_lt(),
        _ => order.is_le(),
    }
}
