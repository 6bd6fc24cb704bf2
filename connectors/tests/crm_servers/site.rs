//! A configured resource on a server, and jobs run on it.

use passerelle_config::Diagnostics;
use passerelle_connectors::{Call, DynConnector, Failure, Gate, Intent, Output, Progress, REGISTRY, Visible};
use serde_json::{Value, json};
use std::{
    fs,
    future::Future,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A resource, and every public sentence that its failures had.
pub struct Site {
    pub connector: Arc<dyn DynConnector>,
    pub told: Arc<Mutex<Vec<String>>>,
    _dir: TempDir,
}

impl Site {
    /// Of the body of `[resources.test]`; `secret` is what `{ file = "secret" }` holds.
    pub fn new(settings: &str, secret: &str) -> Self {
        Self::try_new(settings, secret).unwrap()
    }

    /// The same, or the findings.
    pub fn try_new(settings: &str, secret: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), secret).unwrap();
        let connector = build(dir.path(), settings)?;
        Ok(Self { connector, told: Arc::default(), _dir: dir })
    }

    /// Runs a new job.
    pub async fn run(&self, operation: &str, params: Value) -> Result<Value, Failure> {
        self.run_as(&call(), operation, params).await
    }

    /// Runs an attempt.
    pub async fn run_as(&self, call: &Call, operation: &str, params: Value) -> Result<Value, Failure> {
        let demanded = self.connector.demands(operation, &params);
        let done = match demanded {
            Ok(_) => {
                let mut output = Output::new(Box::new(tokio::io::sink()), 1);
                self.connector.execute(call, operation, &params, None, &mut output).await
            }
            Err(failure) => Err(failure),
        };
        if let Err(failure) = &done {
            self.told.lock().unwrap().push(failure.message.clone());
        }
        done.map(|outcome| outcome.result)
    }

    /// Upserts a contact.
    pub async fn upsert(&self, key: &str, fields: Value) -> Result<Value, Failure> {
        self.run("upsert", upsert(key, fields)).await
    }

    /// Gets a contact.
    pub async fn get(&self, key: &str) -> Result<Value, Failure> {
        self.run("get", json!({ "entity": "contact", "key": { "external_id": key } })).await
    }

    /// A page of changes of contacts.
    pub async fn changes(&self, cursor: Option<&str>, limit: usize) -> Result<Value, Failure> {
        let mut params = json!({ "entity": "contact", "limit": limit });
        if let Some(cursor) = cursor {
            params["cursor"] = json!(cursor);
        }
        self.run("changes", params).await
    }

    /// All changes from a cursor on, and the cursor after them.
    pub async fn all_changes(&self, mut cursor: Option<String>, limit: usize) -> (Vec<Value>, String) {
        let mut all = Vec::new();
        loop {
            let page = self.changes(cursor.as_deref(), limit).await.unwrap();
            all.extend(page["items"].as_array().unwrap().iter().cloned());
            let next = page["next_cursor"].as_str().unwrap().to_owned();
            if !page["more"].as_bool().unwrap() {
                return (all, next);
            }
            assert!(all.len() < 100_000, "a feed without end");
            cursor = Some(next);
        }
    }
}

/// The parameters of an upsert of a contact.
pub fn upsert(key: &str, fields: Value) -> Value {
    json!({ "entity": "contact", "key": { "external_id": key }, "fields": fields })
}

fn build(base: &Path, settings: &str) -> Result<Arc<dyn DynConnector>, String> {
    fs::create_dir_all(base.join("resources.d")).unwrap();
    fs::write(base.join("agent.toml"), "[hub]\nurl = \"https://hub.example.com\"\n").unwrap();
    fs::write(base.join("resources.d/test.toml"), format!("[resources.test]\n{settings}\n")).unwrap();
    let config = passerelle_config::load(base).map_err(|diagnostics| diagnostics.to_string())?;
    let resource = config.resources.first().unwrap();
    let entry = REGISTRY.iter().find(|entry| entry.name == resource.connector).unwrap();
    let mut diagnostics = Diagnostics::default();
    match entry.check(&resource.section, &mut diagnostics) {
        Some(checked) => checked.build(base).map_err(|error| error.to_string()),
        None => Err(diagnostics.to_string()),
    }
}

/// The first attempt of a new job.
pub fn call() -> Call {
    Call {
        job: Uuid::now_v7(),
        attempt: 1,
        timeout: Duration::from_secs(60),
        cancel: CancellationToken::new(),
        progress: Progress::default(),
        gate: Arc::new(Recorder::default()),
        prior_intent: None,
        traceparent: None,
        visible: Visible::default(),
    }
}

/// A gate that lets everybody through and remembers the intents.
#[derive(Default)]
pub struct Recorder(pub Mutex<Vec<Intent>>);

impl Gate for Recorder {
    fn pass<'a>(
        &'a self,
        intent: &'a Intent,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        self.0.lock().unwrap().push(intent.clone());
        Box::pin(async { Ok(()) })
    }
}
