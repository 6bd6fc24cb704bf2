//! A place: a server with its ways, and a connector that leads to it.

use passerelle_config::Diagnostics;
use passerelle_connectors::{Call, DynConnector, Failure, Gate, Intent, Output, Progress, REGISTRY, Visible};
use serde_json::Value;
use std::{
    future::Future,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A record as the server itself shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    pub id: String,
    pub key: String,
    pub email: String,
}

/// What a place must let the cases do behind the agent's back. The entity is always `contact`, with the fields `external_id`
/// (its key), `last_name`, `email` and `phone`.
pub trait Server: Send {
    /// The body of `[resources.crm]` and of its sub-tables, from `connector = "crm"` on. `misspelt`: with one more field of
    /// this name of ours that does not exist at the target. `wrong`: with wrong credentials.
    fn settings(&self, misspelt: Option<&str>, wrong: bool) -> String;

    /// Every record whose key begins with `prefix`.
    fn records<'a>(&'a self, prefix: &'a str) -> Boxed<'a, Vec<Raw>>;

    /// Creates a record; its id.
    fn insert<'a>(&'a self, key: &'a str, email: &'a str) -> Boxed<'a, String>;

    /// Changes a record.
    fn edit<'a>(&'a self, id: &'a str, email: &'a str) -> Boxed<'a, ()>;

    /// How many requests with wrong credentials it has seen; `None` if nobody can tell.
    fn refusals(&self) -> Boxed<'_, Option<usize>>;

    /// Kills it.
    fn stop(&mut self);

    /// Starts it again with its records, at the same address.
    fn start(&mut self);
}

/// What a place can do.
#[derive(Debug, Clone, Copy)]
pub struct Traits {
    /// `if_version` is offered.
    pub versions: bool,
    /// The server itself refuses a second record of a key.
    pub unique_keys: bool,
    /// Deletions show in the feed.
    pub tells_deletions: bool,
    /// The server checks e-mail addresses, and names the field.
    pub checks_email: bool,
    /// Secrets and words of its inside that must never get out.
    pub secrets: &'static [&'static str],
}

/// A server and a connector to it.
pub struct Place {
    pub name: &'static str,
    pub server: Box<dyn Server>,
    pub traits: Traits,
}

impl Place {
    /// A connector, as an agent that has just started has one.
    pub fn connector(&self) -> Agent {
        self.agent(None, false)
    }

    pub fn agent(&self, misspelt: Option<&str>, wrong: bool) -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let settings = self.server.settings(misspelt, wrong);
        let connector = build(dir.path(), &settings).unwrap_or_else(|findings| panic!("{findings}"));
        Agent { connector, _dir: dir }
    }
}

/// Builds a connector of the body of `[resources.crm]`.
pub fn build(dir: &Path, settings: &str) -> Result<Arc<dyn DynConnector>, String> {
    let text = format!("[hub]\nurl = \"https://hub.example.com\"\n[resources.crm]\n{settings}\n");
    std::fs::write(dir.join("agent.toml"), text).unwrap();
    let config = passerelle_config::load(dir).map_err(|findings| findings.to_string())?;
    let resource = config.resources.first().unwrap();
    let entry = REGISTRY.iter().find(|entry| entry.name == resource.connector).unwrap();
    let mut diagnostics = Diagnostics::default();
    match entry.check(&resource.section, &mut diagnostics) {
        Some(checked) => checked.build(dir).map_err(|error| error.to_string()),
        None => Err(diagnostics.to_string()),
    }
}

/// A connector, with its folder.
pub struct Agent {
    pub connector: Arc<dyn DynConnector>,
    _dir: TempDir,
}

impl Agent {
    /// Of a connector and the folder that it was built from.
    pub fn of(connector: Arc<dyn DynConnector>, dir: TempDir) -> Self {
        Self { connector, _dir: dir }
    }

    /// An operation as a job of its own.
    pub async fn run(&self, operation: &str, params: Value) -> Result<Value, Failure> {
        Job::new().attempt(self, operation, &params, false).await
    }
}

/// Keeps the last intent, as the agent's journal does.
#[derive(Default)]
pub struct Journal(Mutex<Option<Intent>>);

impl Gate for Journal {
    fn pass<'a>(&'a self, intent: &'a Intent) -> Boxed<'a, Result<(), Failure>> {
        Box::pin(async move {
            *self.0.lock().unwrap() = Some(intent.clone());
            Ok(())
        })
    }
}

/// A job, of which attempts are made.
#[derive(Clone)]
pub struct Job {
    id: Uuid,
    journal: Arc<Journal>,
    /// How long an attempt may take.
    pub timeout: Duration,
}

impl Job {
    pub fn new() -> Self {
        Self { id: Uuid::now_v7(), journal: Arc::default(), timeout: Duration::from_secs(20) }
    }

    /// One attempt; `again`: after a crash, with what the journal holds.
    pub async fn attempt(
        &self,
        agent: &Agent,
        operation: &str,
        params: &Value,
        again: bool,
    ) -> Result<Value, Failure> {
        let prior_intent = if again { self.journal.0.lock().unwrap().clone() } else { None };
        let call = Call {
            job: self.id,
            attempt: 1,
            timeout: self.timeout,
            cancel: CancellationToken::new(),
            progress: Progress::default(),
            gate: Arc::clone(&self.journal) as Arc<dyn Gate>,
            prior_intent,
            traceparent: None,
            visible: Visible::default(),
        };
        agent.connector.demands(operation, params)?;
        let mut output = Output::new(Box::new(tokio::io::sink()), 0);
        let outcome = agent.connector.execute(&call, operation, params, None, &mut output).await?;
        Ok(outcome.result)
    }
}
