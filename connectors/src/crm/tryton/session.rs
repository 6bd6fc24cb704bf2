//! The way to a Tryton server: one log-in for all attempts, and what its answers mean.
//!
//! - A session is made when it is first needed, and again when the server no longer knows it (401: the request was not
//!   carried out). A wrong password is tried twice at most: after five, Tryton refuses the right one too.
//! - Failures come with HTTP status 200. Their texts are in the user's language: only their class is relied on.
//! - The path tells the release: `rpc/` below the database in newer ones, the database itself in older ones. A wrong path is
//!   answered 405, and is no attempt to log in.

use crate::crm::{
    error::{Clash, CrmError, Problem},
    exchange::{Exchange, Talk, answer::Answer, request::Request},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Method, header::AUTHORIZATION};
use passerelle_config::Secret;
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// The paths of procedure calls, newest release first.
const PATHS: [&str; 2] = ["rpc/", ""];
/// How long Tryton refuses everybody after too many wrong passwords, unless it is configured otherwise.
const LOCKED: Duration = Duration::from_secs(300);

/// A server and the account at it.
pub(super) struct Server {
    pub(super) exchange: Arc<Exchange>,
    pub(super) username: String,
    pub(super) password: Secret,
    session: Mutex<Option<Arc<Session>>>,
    /// Held while somebody logs in.
    turn: tokio::sync::Mutex<()>,
}

struct Session {
    authorization: String,
    path: &'static str,
}

/// How a procedure failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The server's own words to its user, in the user's language. Nothing was done.
    User(String),
    /// It does not know this name. Nothing was done.
    Unknown(String),
    /// All else.
    Other(CrmError),
}

impl From<CrmError> for Fault {
    fn from(error: CrmError) -> Self {
        Self::Other(error)
    }
}

impl Server {
    pub(super) fn new(exchange: Arc<Exchange>, username: String, password: Secret) -> Self {
        Self { exchange, username, password, session: Mutex::new(None), turn: tokio::sync::Mutex::new(()) }
    }

    /// Calls a procedure; `params` without the context, which comes last.
    pub(super) async fn call(
        &self,
        talk: &Talk,
        method: &str,
        mut params: Vec<Value>,
        context: Value,
        writes: bool,
    ) -> Result<Value, Fault> {
        params.push(context);
        let body = json!({ "id": 0, "method": method, "params": params });
        let mut session = self.session(talk, None).await?;
        let mut answer = self.post(talk, &session, &body, writes).await?;
        if answer.status == 401 {
            session = self.session(talk, Some(&session)).await?;
            answer = self.post(talk, &session, &body, writes).await?;
            if answer.status == 401 {
                return Err(CrmError::new(Problem::Auth).detail("a new session is refused").into());
            }
        }
        result(&answer)
    }

    async fn post(
        &self,
        talk: &Talk,
        session: &Session,
        body: &Value,
        writes: bool,
    ) -> Result<Answer, CrmError> {
        let request = Request::path(Method::POST, session.path)
            .json(body)
            .header(AUTHORIZATION, &session.authorization)
            .bare();
        self.exchange.send(talk, if writes { request } else { request.reads() }).await
    }

    /// The session, but not the stale one.
    async fn session(&self, talk: &Talk, stale: Option<&Arc<Session>>) -> Result<Arc<Session>, CrmError> {
        let current = || {
            let kept = self.session.lock().unwrap_or_else(PoisonError::into_inner);
            kept.clone().filter(|kept| stale.is_none_or(|stale| !Arc::ptr_eq(kept, stale)))
        };
        if let Some(session) = current() {
            return Ok(session);
        }
        let turn = self.turn.lock().await;
        if let Some(session) = current() {
            return Ok(session);
        }
        let session = Arc::new(self.exchange.trust.try_with(self.log_in(talk)).await?);
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session.clone());
        drop(turn);
        Ok(session)
    }

    async fn log_in(&self, talk: &Talk) -> Result<Session, CrmError> {
        let params = json!([self.username, { "password": self.password.expose() }]);
        let body = json!({ "id": 0, "method": "common.db.login", "params": params });
        for path in PATHS {
            let request = Request::path(Method::POST, path).json(&body).bare().reads();
            let answer = self.exchange.send(talk, request).await?;
            match answer.status.as_u16() {
                404 | 405 => continue,
                401 => return Err(CrmError::new(Problem::Auth).detail("log-in refused with status 401")),
                429 => {
                    let after = answer.retry_after().or(Some(LOCKED));
                    return Err(CrmError::new(Problem::Throttled { retry_after: after })
                        .reason("after too many failed log-ins it lets nobody in for some minutes"));
                }
                _ => {}
            }
            answer.check()?;
            let logged_in = match result(&answer) {
                Ok(logged_in) => logged_in,
                Err(Fault::Other(error)) => return Err(error),
                Err(Fault::User(_) | Fault::Unknown(_)) => return Err(no_session(&answer)),
            };
            let id = logged_in.get(0).and_then(Value::as_i64).ok_or_else(|| no_session(&answer))?;
            let key = logged_in.get(1).and_then(Value::as_str).ok_or_else(|| no_session(&answer))?;
            let token = STANDARD.encode(format!("{}:{id}:{key}", self.username));
            return Ok(Session { authorization: format!("Session {token}"), path });
        }
        let reason = "there is no Tryton database at the resource's url; it is the server's address with the database's name";
        Err(CrmError::new(Problem::Protocol).reason(reason))
    }
}

fn no_session(answer: &Answer) -> CrmError {
    answer.nonsense("the answer to a log-in holds no session")
}

/// What a procedure gave.
fn result(answer: &Answer) -> Result<Value, Fault> {
    if answer.status == 429 {
        let problem = Problem::Throttled { retry_after: answer.retry_after().or(Some(LOCKED)) };
        return Err(CrmError::new(problem).into());
    }
    answer.check()?;
    let mut body = answer.json()?;
    if let Some(error) = body.get("error") {
        return Err(fault(error));
    }
    match body.get_mut("result") {
        Some(result) => Ok(result.take()),
        None => Err(answer.nonsense("an answer is neither a result nor an error").into()),
    }
}

/// A failure in an answer of status 200. The server has undone what the procedure did.
fn fault(error: &Value) -> Fault {
    let class = error.get(0).and_then(Value::as_str).unwrap_or_default();
    let message = || error.pointer("/1/0").and_then(Value::as_str).unwrap_or_default().to_owned();
    match class {
        "UserError" => Fault::User(message()),
        "UserWarning" => {
            // [name, message, description]
            let message = error.pointer("/1/1").and_then(Value::as_str).unwrap_or_default();
            Fault::User(format!("it wants a user to confirm: {message}"))
        }
        "ConcurrencyException" => CrmError::conflict(Clash::Version, Vec::new()).into(),
        "LoginException" => {
            CrmError::new(Problem::Auth).detail("the server asks for more than a password").into()
        }
        "RateLimitException" => CrmError::new(Problem::Throttled { retry_after: Some(LOCKED) }).into(),
        other => server_fault(other),
    }
}

/// An exception of the server's own: its class is not told, only its text, which may hold anything.
fn server_fault(text: &str) -> Fault {
    let quoted = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    if let Some(name) = quoted.filter(|name| !name.is_empty() && name.len() <= 64 && is_name(name)) {
        return Fault::Unknown(name.to_owned());
    }
    let lower = text.to_ascii_lowercase();
    if ["locked", "deadlock", "serialize", "timeout"].iter().any(|word| lower.contains(word)) {
        let busy = CrmError::new(Problem::Throttled { retry_after: None });
        return busy.reason("its database is busy").into();
    }
    CrmError::new(Problem::Protocol).reason("its server failed and undid the request").into()
}

fn is_name(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::{Fault, fault};
    use crate::crm::error::Problem;
    use serde_json::json;

    #[test]
    fn the_class_of_a_failure_is_told_from_its_shape() {
        let user = fault(&json!(["UserError", ["The code on party must be unique.", "", null]]));
        assert!(matches!(user, Fault::User(text) if text == "The code on party must be unique."));
        let warning = fault(&json!(["UserWarning", ["name", "Really?", ""]]));
        assert!(matches!(warning, Fault::User(text) if text.ends_with("Really?")));
        assert!(matches!(fault(&json!(["'nope'", ""])), Fault::Unknown(name) if name == "nope"));
        for (error, problem) in [
            (
                json!(["ConcurrencyException", "Records were modified in the meanwhile"]),
                Problem::Conflict { clash: crate::crm::error::Clash::Version, candidates: vec![] },
            ),
            (json!(["LoginException", ["sms", "Code", "char"]]), Problem::Auth),
            (json!(["database is locked", ""]), Problem::Throttled { retry_after: None }),
            (json!(["", ""]), Problem::Protocol),
            (json!(["no such column: x", "Traceback (most recent call last)"]), Problem::Protocol),
            (json!(null), Problem::Protocol),
        ] {
            match fault(&error) {
                Fault::Other(found) => assert_eq!(found.problem, problem, "{error}"),
                Fault::User(_) | Fault::Unknown(_) => panic!("{error}"),
            }
        }
    }
}
