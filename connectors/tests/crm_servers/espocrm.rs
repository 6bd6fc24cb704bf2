//! `EspoCRM`'s REST API. Statuses, headers and bodies as recorded from `EspoCRM` 8 and 9 (November 2026).

use super::{Answering, Asked, Clock, Product, Reply, Row, Table, Window, parse_stamp, stamp};
use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use std::{
    cmp::Ordering as Order,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

const BASE: &str = "/api/v1";
pub const API_KEY: &str = "espo-api-key";
pub const SECRET_KEY: &str = "espo-secret-key";
pub const PASSWORD: &str = "espo-password";
/// After so many failures, everybody at that address is shut out.
const MAX_FAILURES: usize = 10;

/// A kind of record: its name, its attributes, the required one.
type Kind = (&'static str, &'static [(&'static str, &'static str)], &'static str);

const KINDS: &[Kind] = &[
    (
        "Contact",
        &[
            ("firstName", "varchar"),
            ("lastName", "varchar"),
            ("title", "varchar"),
            ("description", "text"),
            ("emailAddress", "email"),
            ("phoneNumber", "phone"),
            ("doNotCall", "bool"),
            ("account", "link"),
            ("cExternalId", "varchar"),
        ],
        "lastName",
    ),
    (
        "Account",
        &[
            ("name", "varchar"),
            ("emailAddress", "email"),
            ("website", "url"),
            ("billingAddress", "address"),
            ("employees", "int"),
            ("cExternalId", "varchar"),
        ],
        "name",
    ),
];

#[derive(Default)]
pub struct EspoCrm {
    contacts: Table,
    accounts: Table,
    pub clock: Clock,
    pub window: Window,
    failures: AtomicUsize,
    serial: AtomicUsize,
    /// Optimistic concurrency control is a setting of each kind of record.
    pub versions: AtomicBool,
}

impl EspoCrm {
    pub fn table(&self, kind: &str) -> Option<&Table> {
        match kind {
            "Contact" => Some(&self.contacts),
            "Account" => Some(&self.accounts),
            _ => None,
        }
    }

    fn authenticate(&self, asked: &Asked) -> Result<(), Reply> {
        if self.failures.load(Ordering::SeqCst) > MAX_FAILURES {
            return Err(empty(403, "Max failed login attempts exceeded."));
        }
        let basic = format!("Basic {}", STANDARD.encode(format!("svc:{PASSWORD}")));
        let known = match (asked.header("x-api-key"), asked.header("x-hmac-authorization")) {
            (Some(key), _) => key == API_KEY,
            (None, Some(signed)) => signed_well(asked, signed),
            (None, None) => asked.header("authorization") == Some(&basic),
        };
        if known {
            return Ok(());
        }
        self.failures.fetch_add(1, Ordering::SeqCst);
        Err(Reply { status: 401, headers: Vec::new(), body: Vec::new() })
    }

    fn value(&self, row: &Row) -> Value {
        let mut value = row.fields.clone();
        value.insert("id".to_owned(), json!(row.id));
        value.insert("deleted".to_owned(), json!(row.deleted));
        value.insert("createdAt".to_owned(), json!(stamp(row.created, 0)));
        value.insert("modifiedAt".to_owned(), json!(stamp(row.modified, 0)));
        let name = [row.fields.get("firstName"), row.fields.get("lastName")];
        let name: Vec<&str> = name.into_iter().flatten().filter_map(Value::as_str).collect();
        if !name.is_empty() {
            value.insert("name".to_owned(), json!(name.join(" ")));
        }
        if self.versions.load(Ordering::SeqCst) {
            value.insert("versionNumber".to_owned(), json!(row.version));
        }
        Value::Object(value)
    }

    fn list(&self, table: &Table, asked: &Asked) -> Reply {
        let max_size = asked.param("maxSize").map_or(Ok(20), str::parse::<usize>);
        let (Ok(max_size), Ok(offset)) = (max_size, asked.param("offset").map_or(Ok(0), str::parse::<usize>))
        else {
            return empty(400, "Bad maxSize or offset.");
        };
        if max_size > 200 {
            return empty(403, "Max size should not exceed 200. Use offset and limit.");
        }
        let filter = bracketed(&asked.query, "where");
        let mut rows: Vec<Value> = table.rows().iter().map(|row| self.value(row)).collect();
        let mut wrong = false;
        rows.retain(|row| {
            filter.as_array().is_none_or(|items| items.iter().all(|item| holds(item, row, &mut wrong)))
        });
        if wrong {
            // What the database cannot read ends as a server error.
            return empty(500, "");
        }
        let by = asked.param("orderBy").unwrap_or("createdAt").to_owned();
        rows.sort_by(|a, b| compare(&a[&by], &b[&by]).then_with(|| compare(&a["id"], &b["id"])));
        if asked.param("order") == Some("desc") {
            rows.reverse();
        }
        let total = rows.len();
        let select: Option<Vec<&str>> = asked.param("select").map(|names| names.split(',').collect());
        let list: Vec<Value> = rows
            .into_iter()
            .skip(offset)
            .take(max_size)
            .map(|row| selected(row, select.as_deref()))
            .collect();
        Reply::json(200, &json!({ "total": total, "list": list }))
    }

    async fn create(&self, kind: &Kind, table: &Table, asked: &Asked) -> Reply {
        let Some(fields) = body(asked, kind) else { return empty(500, "") };
        if let Err(reply) = validate(kind, &fields, true) {
            return reply;
        }
        if asked.header("x-skip-duplicate-check") != Some("true") {
            let same = |row: &Row| {
                ["emailAddress", "lastName", "name"]
                    .iter()
                    .any(|name| row.fields.get(*name).is_some_and(|value| Some(value) == fields.get(*name)))
            };
            let found: Vec<Value> =
                table.rows().iter().filter(|row| same(row)).map(|row| self.value(row)).collect();
            if !found.is_empty() {
                return Reply::json(409, &json!(found)).with("x-status-reason", "duplicate");
            }
            self.window.pass().await;
        }
        let serial = self.serial.fetch_add(1, Ordering::SeqCst) + 1;
        let now = self.clock.now();
        let row = Row {
            id: format!("{serial:017x}"),
            fields,
            created: now,
            modified: now,
            version: 1,
            deleted: false,
        };
        let value = self.value(&row);
        table.lock().push(row);
        Reply::json(200, &value)
    }

    fn update(&self, kind: &Kind, row: &mut Row, asked: &Asked) -> Reply {
        let Some(fields) = body(asked, kind) else { return empty(500, "") };
        if let Err(reply) = validate(kind, &fields, false) {
            return reply;
        }
        if self.versions.load(Ordering::SeqCst)
            && let Some(known) = asked.header("x-version-number")
            && known != row.version.to_string()
        {
            let other: Map<String, Value> = fields
                .iter()
                .filter(|(name, value)| row.fields.get(*name) != Some(value))
                .map(|(name, _)| (name.clone(), row.fields.get(name).cloned().unwrap_or_default()))
                .collect();
            if !other.is_empty() {
                let said = json!({ "values": other, "versionNumber": row.version });
                return Reply::json(409, &said).with("x-status-reason", "modified");
            }
        }
        row.fields.extend(fields);
        row.version += 1;
        row.modified = self.clock.now();
        Reply::json(200, &self.value(row))
    }

    async fn route(&self, asked: &Asked) -> Reply {
        if let Err(reply) = self.authenticate(asked) {
            return reply;
        }
        let parts = asked.parts(BASE);
        if parts.as_slice() == ["App", "user"] {
            return Reply::json(200, &json!({ "user": { "id": "1", "type": "api" }, "acl": {} }));
        }
        if parts.as_slice() == ["Metadata"] {
            return metadata(asked);
        }
        let kind = parts.first().and_then(|name| KINDS.iter().find(|kind| kind.0 == *name));
        let Some((kind, table)) = kind.and_then(|kind| Some((kind, self.table(kind.0)?))) else {
            return empty(404, "");
        };
        let Some(id) = parts.get(1) else {
            return match asked.method.as_str() {
                "GET" => self.list(table, asked),
                "POST" => self.create(kind, table, asked).await,
                _ => empty(405, ""),
            };
        };
        let mut rows = table.lock();
        let Some(row) = rows.iter_mut().find(|row| row.id == *id && !row.deleted) else {
            return empty(404, &format!("Record {id} does not exist."));
        };
        match asked.method.as_str() {
            "GET" => Reply::json(200, &self.value(row)),
            "PUT" | "PATCH" => self.update(kind, row, asked),
            "DELETE" => {
                row.deleted = true;
                Reply::json(200, &json!(true))
            }
            _ => empty(405, ""),
        }
    }
}

impl Product for EspoCrm {
    fn answer(self: Arc<Self>, asked: Asked) -> Answering {
        Box::pin(async move { self.route(&asked).await })
    }
}

fn empty(status: u16, reason: &str) -> Reply {
    let reply = Reply { status, headers: Vec::new(), body: Vec::new() };
    if reason.is_empty() { reply } else { reply.with("x-status-reason", reason) }
}

/// `base64(key:hmac_sha256("METHOD /path"))` with the raw digest, as the vendor's own clients sign.
fn signed_well(asked: &Asked, signed: &str) -> bool {
    let Ok(signed) = STANDARD.decode(signed) else { return false };
    let said = format!("{} {}", asked.method, asked.path.strip_prefix(BASE).unwrap_or(""));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET_KEY.as_bytes());
    signed
        .strip_prefix(format!("{API_KEY}:").as_bytes())
        .is_some_and(|tag| hmac::verify(&key, said.as_bytes(), tag).is_ok())
}

fn attributes(kind: &Kind) -> impl Iterator<Item = String> {
    kind.1.iter().flat_map(|(name, of)| match *of {
        "link" => vec![format!("{name}Id"), format!("{name}Name")],
        "address" => ["Street", "City", "State", "Country", "PostalCode"]
            .iter()
            .map(|part| format!("{name}{part}"))
            .collect(),
        _ => vec![(*name).to_owned()],
    })
}

/// The fields of a request that the kind knows; the others are dropped without a word.
fn body(asked: &Asked, kind: &Kind) -> Option<Map<String, Value>> {
    let Value::Object(mut fields) = asked.json()? else { return None };
    let known: Vec<String> = attributes(kind).collect();
    fields.retain(|name, _| known.contains(name));
    Some(fields)
}

fn validate(kind: &Kind, fields: &Map<String, Value>, whole: bool) -> Result<(), Reply> {
    let refuse = |field: &str, of: &str| {
        let said = format!("Field validation failure; entityType: {}, field: {field}, type: {of}.", kind.0);
        Err(empty(400, &said))
    };
    let required =
        fields.get(kind.2).is_some_and(|value| value.as_str().is_some_and(|text| !text.is_empty()));
    if !required && (whole || fields.contains_key(kind.2)) {
        return refuse(kind.2, "required");
    }
    let email = fields.get("emailAddress").and_then(Value::as_str);
    if email.is_some_and(|text| !text.is_empty() && !text.contains('@')) {
        return refuse("emailAddress", "emailAddress");
    }
    Ok(())
}

fn metadata(asked: &Asked) -> Reply {
    let wanted = asked.param("key").unwrap_or("");
    let Some(kind) = KINDS.iter().find(|kind| wanted == format!("entityDefs.{}.fields", kind.0)) else {
        return Reply::json(200, &Value::Null);
    };
    let mut fields: Map<String, Value> = kind
        .1
        .iter()
        .map(|(name, of)| {
            let required = *name == kind.2;
            ((*name).to_owned(), json!({ "type": of, "required": required }))
        })
        .collect();
    for name in ["createdAt", "modifiedAt"] {
        fields.insert(name.to_owned(), json!({ "type": "datetime", "readOnly": true }));
    }
    Reply::json(200, &Value::Object(fields))
}

fn selected(row: Value, select: Option<&[&str]>) -> Value {
    let Value::Object(mut row) = row else { return row };
    if let Some(names) = select {
        row.retain(|name, _| name == "id" || name == "versionNumber" || names.contains(&name.as_str()));
    }
    Value::Object(row)
}

/// `where[0][type]=equals&where[0][value][1]=x` as PHP reads it.
pub fn bracketed(query: &[(String, String)], root: &str) -> Value {
    let mut tree = json!({});
    for (name, value) in query {
        let Some(rest) = name.strip_prefix(root).filter(|rest| rest.starts_with('[')) else { continue };
        let mut at = &mut tree;
        for part in rest.trim_start_matches('[').trim_end_matches(']').split("][") {
            if !at.is_object() {
                *at = json!({});
            }
            at = &mut at[part];
        }
        *at = json!(value);
    }
    listed(tree)
}

/// Objects whose names count from 0 are lists.
fn listed(tree: Value) -> Value {
    let Value::Object(map) = tree else { return tree };
    let is_list = !map.is_empty() && (0..map.len()).all(|i| map.contains_key(&i.to_string()));
    let mut numbered: Vec<(String, Value)> = map.into_iter().map(|(k, v)| (k, listed(v))).collect();
    if is_list {
        numbered.sort_by_key(|(name, _)| name.parse::<usize>().unwrap());
        return Value::Array(numbered.into_iter().map(|(_, value)| value).collect());
    }
    Value::Object(numbered.into_iter().collect())
}

fn compare(a: &Value, b: &Value) -> Order {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ => text(a).cmp(&text(b)),
    }
}

fn holds(item: &Value, row: &Value, wrong: &mut bool) -> bool {
    let inner = || item["value"].as_array().cloned().unwrap_or_default();
    let attribute = item["attribute"].as_str().unwrap_or("");
    let (have, want) = (&row[attribute], &item["value"]);
    let time = |value: &Value| value.as_str().and_then(parse_stamp);
    if attribute.ends_with("At") && time(want).is_none() {
        *wrong = true;
    }
    let order = || match (time(have), time(want)) {
        (Some(have), Some(want)) => have.cmp(&want),
        _ => compare(have, want),
    };
    match item["type"].as_str().unwrap_or("") {
        "and" => inner().iter().all(|item| holds(item, row, wrong)),
        "or" => inner().iter().any(|item| holds(item, row, wrong)),
        // MySQL's usual collation does not tell upper from lower case.
        "equals" => compare(have, want).is_eq() || lower(have) == lower(want),
        "greaterThan" => order().is_gt(),
        "greaterThanOrEquals" => order().is_ge(),
        "lessThan" => order().is_lt(),
        "isTrue" => *have == json!(true),
        "isFalse" => *have != json!(true),
        "isNull" => have.is_null(),
        _ => {
            *wrong = true;
            false
        }
    }
}

fn lower(value: &Value) -> Option<String> {
    value.as_str().map(str::to_lowercase)
}
