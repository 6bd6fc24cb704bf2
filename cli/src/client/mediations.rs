//! Mediation definitions and runs over the hub's API.

use super::Client;
use crate::Failure;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

impl Client {
    /// A request to a definition, by its name or guid.
    fn definition_request(&self, method: Method, id: &str, rest: &str) -> Result<RequestBuilder, Failure> {
        let fits = !id.is_empty()
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !fits || id.starts_with('.') {
            return Err(Failure::usage(format!("{id:?} is neither a mediation's name nor a guid")));
        }
        self.request(method, &format!("v1/mediations/definitions/{id}{rest}"))
    }

    /// A request to a run, whose guid must be one.
    fn run_request(&self, method: Method, id: &str, rest: &str) -> Result<RequestBuilder, Failure> {
        let id: uuid::Uuid = id.parse().map_err(|_| Failure::usage(format!("{id:?} is no run's guid")))?;
        self.request(method, &format!("v1/mediations/runs/{id}{rest}"))
    }

    /// Reads a definition.
    pub(crate) async fn definition(&self, id: &str) -> Result<Value, Failure> {
        self.ask(self.definition_request(Method::GET, id, "")?).await
    }

    /// Creates and changes definitions by a file's text.
    pub(crate) async fn apply(&self, file: &str, toml: &str, dry_run: bool) -> Result<Value, Failure> {
        let request = self.request(Method::POST, "v1/mediations/definitions")?;
        let request = request.query(&[("dry_run", dry_run)]).json(&json!({ "file": file, "toml": toml }));
        // Applied twice is applied once.
        self.ask(request).await
    }

    /// Starts a run; the body has a key, so that a lost answer can be asked for again.
    pub(crate) async fn start_run(&self, definition: &str, body: &Value) -> Result<Value, Failure> {
        self.ask(self.definition_request(Method::POST, definition, "/run")?.json(body)).await
    }

    /// Reads a run.
    pub(crate) async fn mediation_run(&self, id: &str) -> Result<Value, Failure> {
        self.ask(self.run_request(Method::GET, id, "")?).await
    }

    /// Reads a run's messages after one of them.
    pub(crate) async fn run_messages(&self, id: &str, after: i64) -> Result<Value, Failure> {
        self.ask(self.run_request(Method::GET, id, "/messages")?.query(&[("after", after)])).await
    }

    /// Restarts or ignores a run.
    pub(crate) async fn act_on_run(&self, id: &str, action: &str) -> Result<Value, Failure> {
        self.once(self.run_request(Method::POST, id, &format!("/{action}"))?).await?.json()
    }
}
