//! What the cloud can do here, read from a configuration folder: the model behind `policy explain`.
//!
//! It is made of the compiled rules that decide about jobs, not of the text they came from. A folder with mistakes is
//! explained as far as that is all of its resources, beside every finding: an agent would not take it up. Where a file cannot be
//! read nothing is said: what is missing would look as if it were denied.

mod diff;
mod listeners;
#[cfg(test)]
mod tests;
mod triggers;
mod words;

pub use diff::{Difference, difference};
pub use listeners::ListenerView;
pub use triggers::TriggerView;

use super::{ResourcePolicy, Rule, default_methods, default_rights, paths::covers};
use crate::settings::Settings;
use passerelle_config::{ByteSize, Diagnostics, Finding, Readable, ResourceConfig};
use passerelle_connectors::REGISTRY;
use serde::Serialize;
use std::path::Path;
use url::Url;

/// Everything that a configuration folder lets the cloud do.
#[derive(Debug, Serialize)]
pub struct Overview {
    /// The resources, by name.
    pub resources: Vec<ResourceView>,
    /// The listeners, by name.
    pub listeners: Vec<ListenerView>,
    /// What the agent tells the hub or sends elsewhere by itself.
    pub sends: Vec<&'static str>,
    /// What is wrong with the folder: an agent does not take it up.
    pub findings: Vec<String>,
    /// Whether all resources and listeners of the folder are here: else nothing can be said of what the cloud cannot do.
    #[serde(skip)]
    pub complete: bool,
}

/// What the agent says without being asked by a job.
const SENDS: &[&str] = &[
    "to the hub: the agent's name and version, and of each resource its name, its kind, the operations that a rule allows, \
     their parameters, its limits and pauses; never a host, an outside path or a secret",
    "to each resource, at the start, after a change of its configuration and for `check`: a look whether it answers and takes the \
     credentials; to an in-house application that is a HEAD request to its address",
    "to the hub: which jobs it holds, how far they are and how they ended, with what their operations give back",
    "to the hub: the files and changes of the triggers that are listed with their resources above, each file with its path below \
     the resource",
    "to the hub: what is posted to the listeners that are listed above, and their names",
    "nothing else: there are no ports for the cloud and no diagnostics that leave this machine",
];

/// One resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResourceView {
    /// Its name.
    pub name: String,
    /// Its kind of connector.
    pub connector: String,
    /// Where it leads in the private network; null if the configuration does not say it rightly.
    pub place: Option<String>,
    /// Where it stands: `resources.d/compta.toml:1`.
    pub at: String,
    /// Its rules; none: nothing is allowed.
    pub rules: Vec<RuleView>,
    /// What is sent to the cloud by itself.
    pub triggers: Vec<TriggerView>,
    /// Operations that no rule allows.
    pub never: Vec<String>,
    /// Attempts at once.
    pub max_concurrent: u32,
    /// Attempts started per minute; null: no limit.
    pub rate_per_minute: Option<u32>,
    /// Whether its rules could not be read: then it allows nothing until they are mended.
    pub broken: bool,
}

/// One allow rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleView {
    /// Its number, from 1, as in receipts.
    pub number: usize,
    /// Where it stands.
    pub at: String,
    /// What it allows.
    pub operations: Vec<OperationView>,
    /// On which paths.
    pub paths: Vec<String>,
    /// Query keys that a job may set.
    pub query: Vec<String>,
    /// Headers that a job may set.
    pub headers: Vec<String>,
    /// Requests that the operator wrote and a job may name, each with method and path.
    pub requests: Vec<String>,
    /// Entities of a CRM.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entities: Vec<String>,
    /// Their fields; `*`: all that the resource maps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
    /// Declared calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<String>,
    /// The largest payload or output in bytes; null: no limit.
    pub max_size: Option<u64>,
    /// Attempts per day; null: no limit.
    pub max_per_day: Option<u64>,
    /// Bytes per day; null: no limit.
    pub daily_volume: Option<u64>,
}

/// One operation of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OperationView {
    /// Its name.
    pub name: String,
    /// With which HTTP methods; empty where that has no meaning.
    pub methods: Vec<String>,
    /// With which rights on top.
    pub may: Vec<&'static str>,
}

impl Overview {
    /// Reads a folder. Does not connect to anything.
    pub fn read(dir: &Path) -> Self {
        let base = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        // The whole check of a start, which reads secrets and certificates too.
        let loaded = Settings::load(dir);
        let Readable { resources, listeners, complete } = passerelle_config::readable(dir);
        let listeners = listeners.iter().map(|listener| listeners::view(listener, &base)).collect();
        let findings = loaded.err().map_or(String::new(), |stop| stop.to_string());
        let findings = findings.lines().map(|line| line.trim_start_matches("error: ").to_owned()).collect();
        let resources = resources.iter().map(|resource| view(resource, &base)).collect();
        Self { resources, listeners, sends: SENDS.to_vec(), findings, complete }
    }

    /// Whether what each of its rules allows is known, so that it can be compared.
    pub fn is_certain(&self) -> bool {
        self.complete && !self.resources.iter().any(|resource| resource.broken)
    }
}

fn view(resource: &ResourceConfig, base: &Path) -> ResourceView {
    let mut ignored = Diagnostics::default();
    let operations = REGISTRY.iter().find(|entry| entry.name == resource.connector);
    let operations = operations.map(|entry| entry.operations()).unwrap_or_default();
    let policy = ResourcePolicy::compile(resource, &operations, &mut ignored);
    let broken = policy.is_none() || operations.is_empty();
    let rules: Vec<RuleView> = policy.iter().flat_map(|policy| policy.views(base)).collect();
    let allowed = |name: &str| rules.iter().any(|rule| rule.operations.iter().any(|of| of.name == name));
    let never = operations.iter().map(|of| of.name).filter(|name| !allowed(name)).map(str::to_owned);
    ResourceView {
        name: resource.name.clone(),
        connector: resource.connector.clone(),
        place: place(resource),
        at: at(&resource.section.finding("", ""), base),
        never: never.collect(),
        triggers: triggers::views(resource, base),
        rules,
        max_concurrent: resource.limits.max_concurrent,
        rate_per_minute: resource.limits.rate_per_minute,
        broken,
    }
}

impl ResourcePolicy {
    fn views(&self, base: &Path) -> impl Iterator<Item = RuleView> {
        self.rules.iter().enumerate().map(|(index, rule)| rule.view(index + 1, base))
    }
}

impl Rule {
    fn view(&self, number: usize, base: &Path) -> RuleView {
        let operation = |name: &String| OperationView {
            name: name.clone(),
            methods: match (self.methods.as_slice(), default_methods(name)) {
                // Not an operation over HTTP.
                (_, []) => Vec::new(),
                // Each of its requests says its own.
                _ if self.paths.is_empty() => Vec::new(),
                ([], default) => default.iter().map(|method| (*method).to_owned()).collect(),
                (listed, _) => listed.to_vec(),
            },
            may: self
                .may
                .as_deref()
                .unwrap_or(default_rights(name))
                .iter()
                .filter(|right| words::has_right(name, **right))
                .map(|right| right.as_str())
                .collect(),
        };
        RuleView {
            number,
            at: at(&self.at, base),
            operations: self.operations.iter().map(operation).collect(),
            paths: self.paths.iter().map(|path| path.text().to_owned()).collect(),
            query: self.query.clone(),
            headers: self.headers.clone(),
            requests: self.requests.iter().map(|of| format!("{} ({})", of.name, of.does)).collect(),
            entities: self.entities.clone(),
            fields: self.fields.clone(),
            calls: self.calls.clone(),
            max_size: self.max_size,
            max_per_day: self.daily.attempts,
            daily_volume: self.daily.bytes,
        }
    }
}

/// `resources.d/compta.toml:12`, below the folder.
pub fn at(finding: &Finding, base: &Path) -> String {
    let file = finding.file.strip_prefix(base).unwrap_or(&finding.file);
    format!("{}:{}", file.display(), finding.line)
}

/// Where a resource leads, for its owner's eyes: address and account, never a secret.
fn place(resource: &ResourceConfig) -> Option<String> {
    let url = shown(resource.section.text("url")?)?;
    let account =
        resource.section.text("username").map_or(String::new(), |username| format!(" as {username}"));
    // Where the client's secret goes is as much as where the jobs go.
    let tokens = resource.section.text("auth.token_url").and_then(shown);
    let tokens = tokens.map_or(String::new(), |url| format!(" with tokens from {url}"));
    Some(format!("{url}{account}{tokens}"))
}

/// An address without what may be a secret in it. Most of that is refused elsewhere, and none of it ever shown.
fn shown(text: &str) -> Option<Url> {
    let mut url: Url = text.parse().ok()?;
    // An address that has no host has no account either.
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    url.set_query(None);
    url.set_fragment(None);
    Some(url)
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// Whether a glob allows every path that another one does. May say no where it cannot tell.
fn glob_covers(wide: &str, narrow: &str) -> bool {
    wide == narrow || covers(wide, narrow)
}
