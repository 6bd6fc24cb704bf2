//! What most tests start from: a hub, an agent with a folder and an in-house application, and jobs for them.

use passerelle_tests::{Agent, App, Hub, Reply, Request, resources};
use serde_json::{Value, json};
use std::{fs, path::Path};
use tempfile::TempDir;

/// The site of [`Site`].
pub const SITE: &str = "paris";

/// A hub and one agent of the site `paris` with the resources `compta` (a folder) and `orders-app` (an application).
pub struct Site {
    pub agent: Agent,
    pub hub: Hub,
    pub app: App,
    pub files: TempDir,
}

impl Site {
    /// Hub, agent, and an application that answers 200.
    pub async fn start() -> Self {
        Self::with_app(|_, _| Reply::status(200)).await
    }

    /// Hub, agent, and an application that answers as said.
    pub async fn with_app(behaviour: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let mut site = Self::prepared(behaviour).await;
        site.agent.start().await;
        site
    }

    /// The same with the agent not yet started.
    pub async fn prepared(behaviour: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::at(Hub::start().await, behaviour).await
    }

    /// The same at this hub.
    pub async fn at(hub: Hub, behaviour: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let app = App::with(behaviour).await;
        let files = tempfile::tempdir().expect("a temporary folder");
        let agent = Agent::new(&hub, SITE, "paris-1");
        agent.resource("compta", &resources::folder("compta", files.path()));
        agent.resource("orders-app", &resources::application("orders-app", &app.url));
        Self { agent, hub, app, files }
    }

    /// The content of a dropped file.
    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.files.path().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }
}

/// A job that drops a text into `compta`.
pub fn drop_job(path: &str, text: &str) -> Value {
    drop_into("compta", path, json!({"text": text}))
}

/// A job that drops a payload into a folder.
pub fn drop_into(resource: &str, path: &str, payload: Value) -> Value {
    json!({"site": SITE, "resource": resource, "operation": "drop", "params": {"path": path}, "payload": payload})
}

/// A job that tells the application of an event.
pub fn notify_job(path: &str) -> Value {
    json!({
        "site": SITE, "resource": "orders-app", "operation": "notify", "params": {"path": path},
        "payload": {"text": r#"{"EventKind":"CommandeValidee"}"#, "media_type": "application/json"},
    })
}

/// A job without a payload.
pub fn job(resource: &str, operation: &str, params: Value) -> Value {
    json!({"site": SITE, "resource": resource, "operation": operation, "params": params})
}

/// The same job with more keys.
pub fn with(mut job: Value, more: Value) -> Value {
    for (key, value) in more.as_object().expect("an object") {
        job[key] = value.clone();
    }
    job
}

/// The names of all files below a folder, sorted, relative to it; parts and other leftovers included.
pub fn files_below(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}
