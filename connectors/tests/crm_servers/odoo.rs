//! Odoo's external API: JSON-RPC as recorded from Odoo 18, JSON-2 as recorded from Odoo 19 (November 2026).

mod domain;
mod values;

use super::{Answering, Asked, Clock, Product, Reply, Row, Table, Window};
use domain::{compare, holds};
use serde_json::{Map, Value, json};
use std::{
    cmp::Ordering as Order,
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
};
use values::{COUNTRIES, PARTNER, converted, fields_get, read, whole};

pub const DB: &str = "crm";
pub const LOGIN: &str = "svc";
pub const API_KEY: &str = "odoo-api-key";
const UID: i64 = 2;

#[derive(Default)]
pub struct Odoo {
    pub partners: Table,
    /// (module, name) of an external id, and the record that it names.
    pub xmlids: Mutex<BTreeMap<(String, String), i64>>,
    pub clock: Clock,
    pub window: Window,
    serial: AtomicI64,
    /// The major version: below 19 there is no JSON-2, from 22 on no JSON-RPC.
    pub major: AtomicUsize,
    /// Whether the model of partners says that a name is needed, as a customer's module can have it.
    pub needs_names: AtomicBool,
    pub logins: AtomicUsize,
    pub failed_logins: AtomicUsize,
}

/// What a method raised: the exception's name and its message.
type Raised = (&'static str, String);

impl Odoo {
    pub fn version(major: usize) -> Self {
        Self { major: AtomicUsize::new(major), ..Self::default() }
    }

    fn major(&self) -> usize {
        self.major.load(Ordering::SeqCst)
    }

    async fn json_rpc(&self, asked: &Asked) -> Reply {
        let Some(message) = asked.json() else {
            return Reply::text(400, "text/html", "<h1>Bad Request</h1>");
        };
        let id = message["id"].clone();
        let params = &message["params"];
        let done = match (params["service"].as_str(), params["method"].as_str()) {
            (Some("common"), Some("version")) => Ok(json!({
                "server_version": format!("{}.0", self.major()),
                "server_version_info": [self.major(), 0, 0, "final", 0, ""],
                "server_serie": format!("{}.0", self.major()),
                "protocol_version": 1,
            })),
            (Some("common"), Some("login" | "authenticate")) => {
                self.logins.fetch_add(1, Ordering::SeqCst);
                let args = &params["args"];
                let good = args[0] == json!(DB) && args[1] == json!(LOGIN) && args[2] == json!(API_KEY);
                if !good {
                    self.failed_logins.fetch_add(1, Ordering::SeqCst);
                }
                Ok(if good { json!(UID) } else { json!(false) })
            }
            (Some("object"), Some("execute_kw")) => {
                let args = &params["args"];
                if args[0] != json!(DB) || args[1] != json!(UID) || args[2] != json!(API_KEY) {
                    Err(("odoo.exceptions.AccessDenied", "Access Denied".to_owned()))
                } else {
                    let model = args[3].as_str().unwrap_or("").to_owned();
                    let method = args[4].as_str().unwrap_or("").to_owned();
                    let positional = args[5].as_array().cloned().unwrap_or_default();
                    let named = args[6].as_object().cloned().unwrap_or_default();
                    self.call(&model, &method, named_args(&method, positional, named)).await
                }
            }
            _ => Err(("builtins.KeyError", "service".to_owned())),
        };
        match done {
            Ok(result) => Reply::json(200, &json!({ "jsonrpc": "2.0", "id": id, "result": result })),
            Err((name, message)) => {
                let data = json!({
                    "name": name, "message": message, "arguments": [message], "context": {},
                    "debug": "Traceback (most recent call last):\n  File \"/opt/odoo/odoo/http.py\", line 2178",
                });
                let error = json!({ "code": 200, "message": "Odoo Server Error", "data": data });
                Reply::json(200, &json!({ "jsonrpc": "2.0", "id": id, "error": error }))
            }
        }
    }

    async fn json_2(&self, asked: &Asked) -> Reply {
        let parts = asked.parts("/json/2");
        let refuse = |status: u16, name: &str, message: &str| {
            let debug = "Traceback (most recent call last):\n  File \"/opt/odoo/odoo/http.py\", line 2178";
            let body = json!({ "name": name, "message": message, "arguments": [message], "context": {}, "debug": debug });
            Reply::json(status, &body)
        };
        if asked.header("authorization") != Some(&format!("bearer {API_KEY}"))
            || asked.header("x-odoo-database").is_some_and(|db| db != DB)
        {
            return refuse(401, "werkzeug.exceptions.Unauthorized", "Invalid apikey");
        }
        let Some(Value::Object(named)) = asked.json() else {
            return refuse(400, "werkzeug.exceptions.BadRequest", "could not parse the body as json");
        };
        let [model, method] = parts.as_slice() else {
            return refuse(
                404,
                "werkzeug.exceptions.NotFound",
                "Did you mean POST /json/2/<model>/<method>?",
            );
        };
        match self.call(model, method, named).await {
            Ok(result) => Reply::json(200, &result),
            Err((name, message)) => {
                let status = match name {
                    "odoo.exceptions.ValidationError" | "odoo.exceptions.UserError" => 422,
                    "odoo.exceptions.MissingError" | "werkzeug.exceptions.NotFound" => 404,
                    "odoo.exceptions.AccessError" => 403,
                    _ => 500,
                };
                refuse(status, name, &message)
            }
        }
    }

    async fn call(&self, model: &str, method: &str, named: Map<String, Value>) -> Result<Value, Raised> {
        match model {
            "res.partner" => {}
            "ir.model.data" if method == "search_read" => return Ok(self.external_ids(&named)),
            "res.users" if method == "search_count" => return Ok(json!(0)),
            "res.country" if method == "search_read" => {
                let domain = named.get("domain").cloned().unwrap_or_default();
                let rows =
                    COUNTRIES.iter().map(|(id, name, code)| json!({ "id": id, "name": name, "code": code }));
                return Ok(rows.filter(|row| holds(&domain, row).unwrap_or(false)).collect());
            }
            "ir.model.data" => {
                return Err(("odoo.exceptions.AccessError", "not allowed to modify".to_owned()));
            }
            other => {
                let message = format!("the model '{other}' does not exist");
                return Err(("werkzeug.exceptions.NotFound", message));
            }
        }
        let ids = || -> Vec<String> {
            named.get("ids").and_then(Value::as_array).into_iter().flatten().map(Value::to_string).collect()
        };
        match method {
            "fields_get" => {
                let mut fields = fields_get();
                if self.needs_names.load(Ordering::SeqCst) {
                    fields["name"]["required"] = json!(true);
                }
                Ok(fields)
            }
            "default_get" => Ok(json!({ "type": "contact" })),
            "load" => self.load(&named).await,
            "search_read" | "search" | "search_count" => self.search(method, &named),
            "read" => {
                let rows = self.partners.rows();
                let found = ids().into_iter().filter_map(|id| rows.iter().find(|row| row.id == id).cloned());
                found
                    .map(|row| read(&row, named.get("fields")))
                    .collect::<Result<Vec<_>, _>>()
                    .map(Value::Array)
            }
            "create" => {
                let vals = named.get("vals_list").and_then(Value::as_array).cloned().unwrap_or_default();
                let mut made = Vec::new();
                for vals in vals {
                    made.push(json!(self.create(vals.as_object().cloned().unwrap_or_default())?));
                }
                Ok(Value::Array(made))
            }
            "write" => {
                let vals = named.get("vals").and_then(Value::as_object).cloned().unwrap_or_default();
                for id in ids() {
                    self.write(&id, &vals)?;
                }
                Ok(json!(true))
            }
            "unlink" => {
                let mut rows = self.partners.lock();
                for id in ids() {
                    let row = rows.iter_mut().find(|row| row.id == id && !row.deleted);
                    row.ok_or_else(|| missing(&id))?.deleted = true;
                    self.xmlids.lock().unwrap().retain(|_, of| of.to_string() != id);
                }
                Ok(json!(true))
            }
            "get_external_id" => {
                let known = self.xmlids.lock().unwrap();
                let name = |id: &str| {
                    let first = known.iter().find(|(_, of)| of.to_string() == id);
                    first.map_or_else(String::new, |((module, name), _)| format!("{module}.{name}"))
                };
                Ok(Value::Object(ids().into_iter().map(|id| (id.clone(), json!(name(&id)))).collect()))
            }
            "action_archive" => {
                for id in ids() {
                    self.write(&id, &Map::from_iter([("active".to_owned(), json!(false))]))?;
                }
                Ok(json!(true))
            }
            other => {
                let message = format!("The method 'res.partner.{other}' does not exist");
                Err(("builtins.AttributeError", message))
            }
        }
    }

    fn check(vals: &Map<String, Value>, whole: bool) -> Result<(), Raised> {
        for name in vals.keys() {
            if !PARTNER.iter().any(|(known, _)| known == name) {
                return Err(("builtins.ValueError", format!("Invalid field '{name}' in 'res.partner'")));
            }
        }
        let named = vals.get("name").and_then(Value::as_str).is_some_and(|name| !name.is_empty());
        if (whole || vals.contains_key("name")) && !named {
            let message = "The operation cannot be completed: Contacts require a name";
            return Err(("odoo.exceptions.ValidationError", message.to_owned()));
        }
        Ok(())
    }

    fn create(&self, vals: Map<String, Value>) -> Result<i64, Raised> {
        Self::check(&vals, true)?;
        let id = self.serial.fetch_add(1, Ordering::SeqCst) + 7;
        let now = self.clock.now();
        let mut fields = Map::from_iter([
            ("active".to_owned(), json!(true)),
            ("is_company".to_owned(), json!(false)),
            ("type".to_owned(), json!("contact")),
        ]);
        fields.extend(vals);
        let row = Row { id: id.to_string(), fields, created: now, modified: now, version: 1, deleted: false };
        self.partners.lock().push(row);
        Ok(id)
    }

    fn write(&self, id: &str, vals: &Map<String, Value>) -> Result<(), Raised> {
        Self::check(vals, false)?;
        let mut rows = self.partners.lock();
        let row = rows.iter_mut().find(|row| row.id == id && !row.deleted).ok_or_else(|| missing(id))?;
        row.fields.extend(vals.clone());
        row.modified = self.clock.now();
        row.version += 1;
        Ok(())
    }

    /// Creates or updates by external id in one transaction; what goes wrong is a message beside `ids: false`.
    async fn load(&self, named: &Map<String, Value>) -> Result<Value, Raised> {
        let headers: Vec<&str> =
            named["fields"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut ids = Vec::new();
        let mut messages = Vec::new();
        for (at, line) in named["data"].as_array().into_iter().flatten().enumerate() {
            let mut complain = |field: Option<&str>, message: &str| {
                let mut said = json!({
                    "type": "error", "record": at, "rows": { "from": at, "to": at }, "message": message,
                });
                if let Some(field) = field {
                    said["field"] = json!(field);
                }
                messages.push(said);
            };
            let mut vals = Map::new();
            let mut xmlid = None;
            let mut bad = false;
            for (header, cell) in headers.iter().zip(line.as_array().into_iter().flatten()) {
                let cell = cell.as_str().map(str::to_owned).unwrap_or_default();
                if *header == "id" {
                    let (module, name) = cell.split_once('.').unwrap_or(("__import__", &cell));
                    xmlid = Some((module.to_owned(), name.to_owned()));
                    continue;
                }
                match converted(header, &cell) {
                    Ok((name, value)) => {
                        vals.insert(name, value);
                    }
                    Err(message) => {
                        complain(Some(header.split('/').next().unwrap_or(header)), &message);
                        bad = true;
                    }
                }
            }
            if bad {
                continue;
            }
            let known = xmlid.as_ref().and_then(|xmlid| self.xmlids.lock().unwrap().get(xmlid).copied());
            self.window.pass().await;
            let done = match known {
                Some(id) => self.write(&id.to_string(), &vals).map(|()| id),
                None => {
                    let mut xmlids = self.xmlids.lock().unwrap();
                    if xmlid.as_ref().is_some_and(|xmlid| xmlids.contains_key(xmlid)) {
                        Err(("", "duplicate key value violates unique constraint \"ir_model_data_module_name_uniq_index\"\nDETAIL:  Key (module, name)=(x, y) already exists.".to_owned()))
                    } else {
                        let made = self.create(vals);
                        if let (Ok(id), Some(xmlid)) = (&made, xmlid) {
                            xmlids.insert(xmlid, *id);
                        }
                        made
                    }
                }
            };
            match done {
                Ok(id) => ids.push(id),
                Err((_, message)) => complain(None, &message),
            }
        }
        let ids = if messages.is_empty() { json!(ids) } else { json!(false) };
        Ok(json!({ "ids": ids, "messages": messages, "nextrow": 0 }))
    }

    fn external_ids(&self, named: &Map<String, Value>) -> Value {
        let known = self.xmlids.lock().unwrap();
        let rows = known.iter().zip(1i64..).map(|(((module, name), res_id), id)| {
            json!({ "id": id, "module": module, "name": name, "model": "res.partner", "res_id": res_id })
        });
        let domain = named.get("domain").cloned().unwrap_or_default();
        Value::Array(rows.filter(|row| holds(&domain, row).unwrap_or(false)).collect())
    }

    fn search(&self, method: &str, named: &Map<String, Value>) -> Result<Value, Raised> {
        let domain = named.get("domain").cloned().unwrap_or_default();
        let everything = named.get("context").is_some_and(|context| context["active_test"] == json!(false));
        let mut rows = Vec::new();
        for row in self.partners.rows() {
            let mut value = whole(&row);
            // The database compares what the wire truncates.
            value["write_date"] = json!(row.modified);
            value["create_date"] = json!(row.created);
            let active = everything
                || domain.to_string().contains("\"active\"")
                || row.fields.get("active") == Some(&json!(true));
            if active && holds(&domain, &value)? {
                rows.push((row, value));
            }
        }
        let order = named.get("order").and_then(Value::as_str).unwrap_or("id").to_owned();
        rows.sort_by(|(_, a), (_, b)| {
            order.split(',').map(str::trim).fold(Order::Equal, |so_far, part| {
                let (name, down) =
                    part.split_once(' ').map_or((part, false), |(n, d)| (n, d.trim() == "desc"));
                let here = compare(&a[name], &b[name]);
                so_far.then(if down { here.reverse() } else { here })
            })
        });
        if method == "search_count" {
            return Ok(json!(rows.len()));
        }
        let number =
            |name: &str| named.get(name).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let page =
            rows.into_iter().skip(number("offset").unwrap_or(0)).take(number("limit").unwrap_or(usize::MAX));
        let page: Result<Vec<Value>, Raised> =
            page.map(|(row, value)| {
                if method == "search" { Ok(value["id"].clone()) } else { read(&row, named.get("fields")) }
            })
            .collect();
        page.map(Value::Array)
    }
}

impl Product for Odoo {
    fn answer(self: Arc<Self>, asked: Asked) -> Answering {
        Box::pin(async move {
            match asked.path.as_str() {
                "/jsonrpc" if self.major() < 22 => self.json_rpc(&asked).await,
                path if path.starts_with("/json/2/") && self.major() >= 19 => self.json_2(&asked).await,
                _ => Reply::text(
                    404,
                    "text/html; charset=utf-8",
                    "<!doctype html><title>404 Not Found</title>",
                ),
            }
        })
    }
}

/// Positional arguments get the names that JSON-2 gives them.
fn named_args(method: &str, positional: Vec<Value>, mut named: Map<String, Value>) -> Map<String, Value> {
    let names: &[&str] = match method {
        "load" => &["fields", "data"],
        "read" => &["ids", "fields"],
        "write" => &["ids", "vals"],
        "create" => &["vals_list"],
        "unlink" | "get_external_id" | "action_archive" => &["ids"],
        "default_get" => &["fields_list"],
        "search_read" => &["domain", "fields", "offset", "limit", "order"],
        "fields_get" => &["allfields", "attributes"],
        _ => &["domain"],
    };
    for (name, value) in names.iter().zip(positional) {
        named.insert((*name).to_owned(), value);
    }
    named
}

fn missing(id: &str) -> Raised {
    let message =
        format!("Record does not exist or has been deleted.\n(Record: res.partner({id},), User: 2)");
    ("odoo.exceptions.MissingError", message)
}
