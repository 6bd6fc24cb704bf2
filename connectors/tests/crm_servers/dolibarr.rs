//! Dolibarr's REST API, as recorded from Dolibarr (November 2026); how `sqlfilters` are read follows what the versions
//! before 19 do with colons and parentheses, which breaks a filter in silence.

use super::{Answering, Asked, Clock, Product, Reply, Row, Table, parse_stamp, stamp};
use serde_json::{Map, Value, json};
use std::{
    cmp::Ordering as Order,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
};

const BASE: &str = "/api/index.php";
pub const API_KEY: &str = "dolibarr-api-key";

const COMMON: &[&str] = &[
    "ref_ext",
    "email",
    "address",
    "zip",
    "town",
    "phone_pro",
    "phone_mobile",
    "note_public",
    "note_private",
    "socid",
    "statut",
    "array_options",
    "poste",
    "url",
    "client",
    "code_client",
    "tva_intra",
    "date",
    "ref_client",
];

#[derive(Default)]
pub struct Dolibarr {
    pub contacts: Table,
    pub thirdparties: Table,
    pub orders: Table,
    pub clock: Clock,
    serial: AtomicUsize,
    /// How far east of UTC the server's local time is, in seconds: filters are in local time, answers are epochs.
    pub offset_s: AtomicI64,
    /// When its clocks are put back by an hour, in microseconds; 0: never.
    pub clocks_back: AtomicI64,
    /// Finds everything, whatever the filter is.
    pub ignores_filters: AtomicBool,
    /// Finds nothing at or after a time, as one that misreads it.
    pub misreads_times: AtomicBool,
}

impl Dolibarr {
    fn value(row: &Row) -> Value {
        let mut value = Map::new();
        for name in COMMON {
            value.insert((*name).to_owned(), Value::Null);
        }
        value.extend(row.fields.clone());
        // Dolibarr writes its integers as text here and there.
        value.insert("id".to_owned(), json!(row.id));
        value.insert("entity".to_owned(), json!("1"));
        value.insert("date_creation".to_owned(), json!(row.created.div_euclid(1_000_000)));
        value.insert("date_modification".to_owned(), json!(row.modified.div_euclid(1_000_000)));
        Value::Object(value)
    }

    fn route(&self, asked: &Asked) -> Reply {
        match asked.header("dolapikey") {
            None => {
                return error(
                    401,
                    "Failed to login to API. Neither parameter 'HTTP_DOLAPIKEY' nor 'Authentication: Bearer' found",
                );
            }
            Some(key) if key != API_KEY => {
                return error(
                    401,
                    "Error user not valid (not found with api key or bad status or bad validity dates) (conf->entity=1)",
                );
            }
            Some(_) => {}
        }
        let parts = asked.parts(BASE);
        let (table, mandatory, called, column) = match parts.first() {
            Some(&"status") => {
                let said =
                    json!({ "success": { "code": 200, "dolibarr_version": "20.0.0", "access_locked": "0" } });
                return Reply::json(200, &said);
            }
            Some(&"contacts") => (&self.contacts, "lastname", "Contact", "lastname"),
            Some(&"thirdparties") => (&self.thirdparties, "name", "Thirdparty", "nom"),
            Some(&"orders") => (&self.orders, "socid", "Order", "ref_client"),
            _ => return error(501, "API not found (failed to include API file)"),
        };
        let Some(id) = parts.get(1) else {
            return match asked.method.as_str() {
                "GET" => self.list(table, asked, called, column),
                "POST" => self.create(table, asked, mandatory),
                _ => error(405, "Method Not Allowed"),
            };
        };
        let mut rows = table.lock();
        let Some(row) = rows.iter_mut().find(|row| row.id == *id && !row.deleted) else {
            return error(404, &format!("{called} not found"));
        };
        match asked.method.as_str() {
            "GET" => Reply::json(200, &Self::value(row)),
            "PUT" => {
                let Some(Value::Object(fields)) = asked.json() else { return error(400, "Syntax error") };
                row.fields.extend(kept(fields, mandatory));
                row.modified = self.clock.now();
                row.version += 1;
                Reply::json(200, &Self::value(row))
            }
            "DELETE" => {
                row.deleted = true;
                Reply::json(200, &json!(1))
            }
            _ => error(405, "Method Not Allowed"),
        }
    }

    fn create(&self, table: &Table, asked: &Asked, mandatory: &str) -> Reply {
        let Some(Value::Object(fields)) = asked.json() else { return error(400, "Syntax error") };
        if fields.get(mandatory).is_none_or(Value::is_null) {
            return error(400, &format!("{mandatory} field missing"));
        }
        let id = self.serial.fetch_add(1, Ordering::SeqCst) + 1;
        let now = self.clock.now();
        let fields = kept(fields, mandatory);
        table.lock().push(Row {
            id: id.to_string(),
            fields,
            created: now,
            modified: now,
            version: 1,
            deleted: false,
        });
        Reply::json(200, &json!(id))
    }

    fn list(&self, table: &Table, asked: &Asked, called: &str, column: &str) -> Reply {
        let number =
            |name: &str, or: usize| asked.param(name).and_then(|text| text.parse().ok()).unwrap_or(or);
        let (limit, page) = (number("limit", 100), number("page", 0));
        let filter = asked.param("sqlfilters").unwrap_or("");
        let filter = match Filter::parse(filter) {
            Ok(filter) => filter,
            Err(()) => {
                return error(503, &format!("Error when validating parameter sqlfilters -> {filter}"));
            }
        };
        let offset_s = self.offset_s.load(Ordering::SeqCst);
        let clocks_back = self.clocks_back.load(Ordering::SeqCst);
        let later = |row: &Row| clocks_back != 0 && row.modified >= clocks_back;
        let cell = |row: &Row, name: &str| -> Option<Value> {
            Some(match name {
                "t.rowid" => json!(row.id.parse::<i64>().unwrap()),
                "t.tms" => json!(stamp(row.modified, if later(row) { offset_s - 3600 } else { offset_s })),
                "t.ref_ext" => row.fields.get("ref_ext").cloned().unwrap_or(Value::Null),
                "t.email" => row.fields.get("email").cloned().unwrap_or(Value::Null),
                _ if name.strip_prefix("t.") == Some(column) => {
                    let field = if column == "nom" { "name" } else { column };
                    row.fields.get(field).cloned().unwrap_or(Value::Null)
                }
                _ => return None,
            })
        };
        if let Some(unknown) = filter.columns().into_iter().find(|name| cell(&blank(), name).is_none()) {
            let sql = format!("SELECT t.rowid FROM llx_socpeople as t WHERE ({unknown} = 1)");
            return error(
                503,
                &format!("Error when retrieve list : {sql} Unknown column '{unknown}' in 'where clause'"),
            );
        }
        let mut rows: Vec<Row> = table.rows();
        if self.misreads_times.load(Ordering::SeqCst)
            && asked.param("sqlfilters").is_some_and(|filter| filter.contains("t.tms"))
        {
            rows.clear();
        }
        let all = self.ignores_filters.load(Ordering::SeqCst);
        rows.retain(|row| all || filter.holds(&|name| cell(row, name).unwrap_or_default()));
        let by: Vec<String> =
            asked.param("sortfield").unwrap_or("t.rowid").split(',').map(str::to_owned).collect();
        rows.sort_by(|a, b| {
            by.iter().fold(Order::Equal, |so_far, name| {
                so_far.then_with(|| {
                    // Compared in local time, sorted by the instant: so does MySQL.
                    if name == "t.tms" {
                        return a.modified.cmp(&b.modified);
                    }
                    compare(&cell(a, name).unwrap_or_default(), &cell(b, name).unwrap_or_default())
                })
            })
        });
        if asked.param("sortorder").is_some_and(|order| order.starts_with("DESC")) {
            rows.reverse();
        }
        let rows: Vec<Value> = rows.iter().skip(limit * page).take(limit).map(Self::value).collect();
        if rows.is_empty() {
            return error(404, &format!("{called}s not found"));
        }
        Reply::json(200, &json!(rows))
    }
}

impl Product for Dolibarr {
    fn answer(self: Arc<Self>, asked: Asked) -> Answering {
        Box::pin(async move { self.route(&asked) })
    }
}

fn error(code: u16, message: &str) -> Reply {
    let name = match code {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        501 => "Not Implemented",
        _ => "Service Unavailable",
    };
    Reply::json(code, &json!({ "error": { "code": code, "message": format!("{name}: {message}") } }))
}

fn blank() -> Row {
    Row { id: "0".to_owned(), fields: Map::new(), created: 0, modified: 0, version: 1, deleted: false }
}

/// What is stored: fields of no known name are set on the object and then lost.
fn kept(mut fields: Map<String, Value>, mandatory: &str) -> Map<String, Value> {
    let known = |name: &str| {
        COMMON.contains(&name) || name == mandatory || name == "firstname" || name == "civility_code"
    };
    fields.retain(|name, _| known(name));
    fields
}

fn compare(a: &Value, b: &Value) -> Order {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ => a.as_str().unwrap_or("").cmp(b.as_str().unwrap_or("")),
    }
}

/// A filter: criteria joined by `and` and `or`, grouped by parentheses.
enum Filter {
    True,
    Is(String, String, Value),
    All(Vec<Filter>),
    Any(Vec<Filter>),
}

impl Filter {
    fn parse(text: &str) -> Result<Self, ()> {
        if text.is_empty() {
            return Ok(Self::True);
        }
        let mut rest = text;
        let filter = Self::expression(&mut rest)?;
        if rest.trim().is_empty() { Ok(filter) } else { Err(()) }
    }

    fn expression(rest: &mut &str) -> Result<Self, ()> {
        let mut any = vec![vec![Self::term(rest)?]];
        loop {
            *rest = rest.trim_start();
            let word: String = rest.chars().take_while(char::is_ascii_alphabetic).collect();
            match word.to_lowercase().as_str() {
                "and" => {
                    *rest = &rest[3..];
                    any.last_mut().ok_or(())?.push(Self::term(rest)?);
                }
                "or" => {
                    *rest = &rest[2..];
                    any.push(vec![Self::term(rest)?]);
                }
                "" => break,
                _ => return Err(()),
            }
        }
        Ok(Self::Any(any.into_iter().map(Self::All).collect()))
    }

    fn term(rest: &mut &str) -> Result<Self, ()> {
        *rest = rest.trim_start().strip_prefix('(').ok_or(())?;
        if rest.trim_start().starts_with('(') {
            let inner = Self::expression(rest)?;
            *rest = rest.trim_start().strip_prefix(')').ok_or(())?;
            return Ok(inner);
        }
        // A value with a parenthesis ends early, and the rest is no syntax any more.
        let end = rest.find(['(', ')']).ok_or(())?;
        let (inside, after) = rest.split_at(end);
        *rest = after.strip_prefix(')').ok_or(())?;
        // A value with a colon is cut at it.
        let parts: Vec<&str> = inside.split(':').collect();
        let [name, operator, value, ..] = parts.as_slice() else { return Err(()) };
        let value = match value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')) {
            Some(text) => json!(text),
            // What is not quoted is a number; text becomes 0, and 0 equals every text in MySQL.
            None => json!(value.parse::<i64>().unwrap_or(0)),
        };
        Ok(Self::Is((*name).to_owned(), operator.to_lowercase(), value))
    }

    fn columns(&self) -> Vec<String> {
        match self {
            Self::True => Vec::new(),
            Self::Is(name, ..) => vec![name.clone()],
            Self::All(inner) | Self::Any(inner) => inner.iter().flat_map(Self::columns).collect(),
        }
    }

    fn holds(&self, cell: &dyn Fn(&str) -> Value) -> bool {
        match self {
            Self::True => true,
            Self::All(inner) => inner.iter().all(|filter| filter.holds(cell)),
            Self::Any(inner) => inner.iter().any(|filter| filter.holds(cell)),
            Self::Is(name, operator, want) => is(&cell(name), operator, want, name.ends_with(".tms")),
        }
    }
}

fn is(have: &Value, operator: &str, want: &Value, time: bool) -> bool {
    if have.is_null() {
        return false;
    }
    if operator == "like" {
        let (have, want) =
            (have.as_str().unwrap_or("").to_lowercase(), want.as_str().unwrap_or("").to_lowercase());
        return like(&have.chars().collect::<Vec<_>>(), &want.chars().collect::<Vec<_>>());
    }
    let order = match (have, want) {
        (Value::String(_), Value::Number(number)) if number.as_i64() == Some(0) => Order::Equal,
        (Value::String(have), Value::String(want)) if time => {
            let (Some(have), Some(want)) = (parse_stamp(have), parse_stamp(want)) else { return false };
            have.cmp(&want)
        }
        (Value::String(have), Value::String(want)) => have.to_lowercase().cmp(&want.to_lowercase()),
        (Value::Number(_), Value::String(text)) => compare(have, &json!(text.parse::<i64>().unwrap_or(0))),
        _ => compare(have, want),
    };
    match operator {
        "=" => order.is_eq(),
        "!=" => order.is_ne(),
        ">" => order.is_gt(),
        ">=" => order.is_ge(),
        "<" => order.is_lt(),
        "<=" => order.is_le(),
        _ => false,
    }
}

fn like(have: &[char], want: &[char]) -> bool {
    match (have, want) {
        (_, ['%', rest @ ..]) => (0..=have.len()).any(|i| like(&have[i..], rest)),
        ([_, have @ ..], ['_', want @ ..]) => like(have, want),
        ([a, have @ ..], [b, want @ ..]) => a == b && like(have, want),
        ([], []) => true,
        _ => false,
    }
}
