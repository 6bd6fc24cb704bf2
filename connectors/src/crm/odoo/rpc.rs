//! Calling Odoo's methods: by JSON-RPC (`execute_kw`, up to Odoo 21) or JSON-2 (from Odoo 19 on).
//!
//! Both run one call in one transaction, which an exception rolls back: what Odoo refuses has had no effect, whatever the
//! status says. An exception's traceback (`debug`) is never read.

use crate::crm::{
    error::{Clash, CrmError, FieldError, Problem},
    exchange::{
        Exchange, Talk,
        answer::Answer,
        request::{Request, segment},
    },
};
use http::{HeaderName, Method, header::AUTHORIZATION};
use passerelle_config::Secret;
use serde_json::{Map, Value, json};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

const DATABASE: HeaderName = HeaderName::from_static("x-odoo-database");
/// From this version on JSON-2 is there.
const JSON2_SINCE: u64 = 19;

/// Which interface is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    JsonRpc,
    Json2,
}

pub(super) struct Rpc {
    pub(super) exchange: Arc<Exchange>,
    pub(super) database: Option<String>,
    /// The login; JSON-2 knows its user by the key.
    pub(super) login: Option<String>,
    pub(super) key: Secret,
    /// `None`: as the server's version has it.
    pub(super) configured: Option<Api>,
    pub(super) found: Mutex<Found>,
    pub(super) serial: AtomicU64,
}

/// What was found out about the server and the account.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Found {
    api: Option<Api>,
    uid: Option<i64>,
}

/// A call of a model's method.
pub(super) struct Invoked<'a> {
    pub(super) model: &'a str,
    pub(super) method: &'a str,
    /// The records it is for.
    pub(super) ids: Option<Vec<i64>>,
    /// The arguments, in the order of JSON-RPC, by their names in JSON-2.
    pub(super) args: Vec<(&'static str, Value)>,
    /// Arguments that both give by name.
    pub(super) named: Map<String, Value>,
    pub(super) context: Value,
    pub(super) writes: bool,
}

impl Rpc {
    /// Calls a method.
    pub(super) async fn call(&self, talk: &Talk, call: Invoked<'_>) -> Result<Value, CrmError> {
        let done = self
            .exchange
            .trust
            .try_with(async {
                match self.api(talk).await? {
                    Api::JsonRpc => {
                        let uid = self.uid(talk).await?;
                        self.execute(talk, uid, call).await
                    }
                    Api::Json2 => self.post(talk, call).await,
                }
            })
            .await;
        if done.as_ref().is_err_and(|error| error.problem == Problem::Auth) {
            self.note(|found| found.uid = None);
        }
        done
    }

    fn note<T>(&self, with: impl FnOnce(&mut Found) -> T) -> T {
        with(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn api(&self, talk: &Talk) -> Result<Api, CrmError> {
        if let Some(api) = self.configured.or_else(|| self.note(|found| found.api)) {
            return Ok(api);
        }
        let answer = self.rpc(talk, "common", "version", json!([]), false).await;
        let api = match answer {
            Ok(version) => {
                let major = version.get("server_version_info").and_then(|info| info.get(0));
                let newer = major.and_then(Value::as_u64).is_some_and(|major| major >= JSON2_SINCE);
                if newer { Api::Json2 } else { Api::JsonRpc }
            }
            // Later versions no longer have JSON-RPC.
            Err(error) if error.problem == Problem::NotFound => Api::Json2,
            Err(error) => return Err(error),
        };
        self.note(|found| found.api = Some(api));
        Ok(api)
    }

    /// Logs in, once: the number of the user goes with each call.
    async fn uid(&self, talk: &Talk) -> Result<i64, CrmError> {
        if let Some(uid) = self.note(|found| found.uid) {
            return Ok(uid);
        }
        let args = json!([self.database, self.login, self.key.expose()]);
        let uid = self.rpc(talk, "common", "login", args, false).await?.as_i64();
        let uid = uid.ok_or_else(|| {
            CrmError::new(Problem::Auth).detail("the log-in gave no user; database, username or key is wrong")
        })?;
        self.note(|found| found.uid = Some(uid));
        Ok(uid)
    }

    async fn execute(&self, talk: &Talk, uid: i64, call: Invoked<'_>) -> Result<Value, CrmError> {
        let mut positional: Vec<Value> = call.ids.into_iter().map(|ids| json!(ids)).collect();
        positional.extend(call.args.into_iter().map(|(_, value)| value));
        let mut named = call.named;
        named.insert("context".to_owned(), call.context);
        let args = json!([self.database, uid, self.key.expose(), call.model, call.method, positional, named]);
        self.rpc(talk, "object", "execute_kw", args, call.writes).await
    }

    async fn rpc(
        &self,
        talk: &Talk,
        service: &str,
        method: &str,
        args: Value,
        writes: bool,
    ) -> Result<Value, CrmError> {
        let id = self.serial.fetch_add(1, Ordering::Relaxed);
        let body = json!({
            "jsonrpc": "2.0", "method": "call", "id": id,
            "params": { "service": service, "method": method, "args": args },
        });
        let request = Request::path(Method::POST, "jsonrpc").json(&body).bare();
        let answer = self.exchange.send(talk, if writes { request } else { request.reads() }).await?;
        answer.check()?;
        let mut said = answer.json()?;
        if let Some(data) = said.get("error") {
            return Err(raised(data.get("data").unwrap_or(data)));
        }
        match said.get_mut("result") {
            Some(result) => Ok(result.take()),
            None => Err(answer.nonsense("an answer has neither result nor error")),
        }
    }

    async fn post(&self, talk: &Talk, call: Invoked<'_>) -> Result<Value, CrmError> {
        let mut body: Map<String, Value> =
            call.args.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        body.extend(call.named);
        body.insert("context".to_owned(), call.context);
        if let Some(ids) = call.ids {
            body.insert("ids".to_owned(), json!(ids));
        }
        let path = format!("json/2/{}/{}", segment(call.model)?, segment(call.method)?);
        let mut request = Request::path(Method::POST, path)
            .json(&Value::Object(body))
            .bare()
            .header(AUTHORIZATION, &format!("bearer {}", self.key.expose()));
        if let Some(database) = &self.database {
            request = request.header(DATABASE, database);
        }
        let answer = self.exchange.send(talk, if call.writes { request } else { request.reads() }).await?;
        match answer.check() {
            Ok(()) => answer.json(),
            Err(error) => Err(refused(&answer, error)),
        }
    }
}

/// A refusal of JSON-2: the exception's name says more than the status, if there is one.
fn refused(answer: &Answer, error: CrmError) -> CrmError {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    match body.get("name").and_then(Value::as_str) {
        Some(name) if !name.starts_with("werkzeug.") => raised(&body),
        Some(_) | None if answer.status.as_u16() == 401 => CrmError::new(Problem::Auth).detail("status 401"),
        Some(_) => {
            let message = body.get("message").and_then(Value::as_str).unwrap_or("");
            match error.problem {
                // A model or a method that is not there is no missing record.
                Problem::NotFound => CrmError::new(Problem::Unsupported).reason(message),
                _ => error.reason(message),
            }
        }
        None => error,
    }
}

/// What an exception means. Its transaction was rolled back.
fn raised(data: &Value) -> CrmError {
    let name = data.get("name").and_then(Value::as_str).unwrap_or("");
    let message = data.get("message").and_then(Value::as_str).unwrap_or("");
    let kind = name.rsplit('.').next().unwrap_or(name);
    let error = CrmError::new(match kind {
        "AccessDenied" | "SessionExpiredException" | "Unauthorized" => Problem::Auth,
        "AccessError" | "Forbidden" => Problem::Forbidden,
        "MissingError" => Problem::NotFound,
        "ValidationError" | "UserError" | "RedirectWarning" => return refused_values(message),
        "UniqueViolation" => Problem::Conflict { clash: Clash::Duplicate, candidates: Vec::new() },
        "ForeignKeyViolation" | "RestrictViolation" | "NotNullViolation" | "CheckViolation" => {
            return refused_values(message);
        }
        "SerializationFailure" | "LockNotAvailable" | "DeadlockDetected" | "OperationalError" => {
            Problem::Throttled { retry_after: None }
        }
        "ValueError" | "KeyError" => return refused_values(message),
        "AttributeError" | "NotFound" => Problem::Unsupported,
        _ => Problem::Protocol,
    });
    // Names of exceptions are Odoo's own, or a module's; they go to the local log.
    error.detail(format!("exception {}", kind.chars().take(64).collect::<String>()))
}

/// Values that Odoo does not take, with the field where its message names one (`Invalid field 'x' in …`, and of a search
/// `Invalid field res.partner.x in leaf …`).
fn refused_values(message: &str) -> CrmError {
    let word = message.split_once("nvalid field ").and_then(|(_, rest)| rest.split_whitespace().next());
    let quoted = word.and_then(|word| word.strip_prefix('\'')?.split('\'').next());
    let field = quoted.or_else(|| word?.rsplit_once('.').map(|(_, field)| field));
    match field {
        Some(field) if !field.is_empty() => {
            CrmError::invalid(vec![FieldError::new(field, "the target does not know it")])
        }
        Some(_) | None => CrmError::invalid(Vec::new()).reason(message),
    }
}
