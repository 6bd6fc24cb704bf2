//! The checked configuration of an agent: defaults filled in, no `Option` that must be `Some`.

use crate::{
    AuditSection, ByteSize, Changes, Finding, HumanDuration, KeyRotation, ListenerConfig, Pickup, SecretRef,
    Section, Watch,
};
use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf};
use url::Url;

/// The whole configuration folder.
#[derive(Debug)]
pub struct AgentConfig {
    /// The configuration folder, absolute. The paths in these sections start from it and are absolute too.
    pub dir: PathBuf,
    /// `agent.toml` without resources and listeners: where in it what is found out later belongs.
    pub main: Section,
    /// `[hub]`
    pub hub: HubSection,
    /// `[trust]`
    pub trust: TrustSection,
    /// `[agent]`
    pub agent: AgentSection,
    /// `[log]`
    pub log: LogSection,
    /// `[audit]`
    pub audit: AuditSection,
    /// `[resources.*]`, sorted by name.
    pub resources: Vec<ResourceConfig>,
    /// `[listeners.*]`, sorted by name.
    pub listeners: Vec<ListenerConfig>,
    /// What is worth a look, but refuses nothing.
    pub warnings: Vec<Finding>,
    /// What `[hub]` says but for the enrolment token, without places and spelling: the same settings have the same text.
    pub hub_text: String,
    /// The files that this names, absolute.
    pub hub_files: BTreeSet<PathBuf>,
    /// The files that the sections other than resources name, absolute: secrets, certificates, keys.
    pub files: BTreeSet<PathBuf>,
}

/// `[hub]`
#[derive(Debug, Clone)]
pub struct HubSection {
    /// `https://…`, or `http://` to loopback.
    pub url: Url,
    /// The one-time token; needed until the agent is enrolled.
    pub enrolment_token: Option<SecretRef>,
    /// PEM file of certificates added to the system's roots.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the certificate that the agent shows where one is asked for, with its chain.
    pub client_cert: Option<PathBuf>,
    /// Its private key; there if and only if the certificate is.
    pub client_key: Option<SecretRef>,
    /// The proxy towards the hub; else `HTTPS_PROXY` and `NO_PROXY` count.
    pub proxy: Option<ProxySection>,
}

/// `[hub] proxy`
#[derive(Debug, Clone)]
pub struct ProxySection {
    /// `http://host:port`, or `https://host:port` where the proxy itself is spoken to in TLS.
    pub url: Url,
    /// User name for Basic authentication.
    pub username: Option<String>,
    /// Password for Basic authentication.
    pub password: Option<SecretRef>,
}

/// `[trust]`
#[derive(Debug, Default)]
pub struct TrustSection {
    /// PEM files of the public keys that may sign jobs; empty: those pinned at enrolment.
    pub job_keys: Vec<PathBuf>,
}

/// `[agent]`
#[derive(Debug, Clone)]
pub struct AgentSection {
    /// The agent's name; default: the host's name, made to fit.
    pub name: String,
    /// Identity, journal, audit.
    pub state_dir: PathBuf,
    /// Where `/healthz`, `/readyz`, `/metrics` are served.
    pub listen: SocketAddr,
    /// How many jobs at once.
    pub max_jobs: u32,
    /// How many real-time calls at once; 0: none.
    pub max_calls: u32,
    /// How long running jobs may go on after SIGTERM.
    pub shutdown_grace: HumanDuration,
    /// The most bytes of payloads on their way.
    pub spool_quota: ByteSize,
    /// The most bytes of the journal.
    pub journal_quota: ByteSize,
    /// The most bytes of the audit's files.
    pub audit_quota: ByteSize,
    /// How old the agent's own key becomes.
    pub key_rotation: KeyRotation,
}

/// `[log] format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct LogSection {
    /// Text or JSON.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a `tracing` filter.
    pub level: String,
    /// The classic log files; `None`: there are none.
    pub classic: Option<ClassicLog>,
}

/// `[log] classic_dir`, `classic_keep` and `classic_quota`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassicLog {
    /// Their folder.
    pub dir: PathBuf,
    /// How long a file is kept.
    pub keep: HumanDuration,
    /// What they may take of the disk.
    pub quota: ByteSize,
}

/// `[resources.NAME] limits`
#[derive(Debug, Clone)]
pub struct Limits {
    /// Jobs of this resource at once.
    pub max_concurrent: u32,
    /// Attempts started per minute; `None`: no limit.
    pub rate_per_minute: Option<u32>,
}

/// `[resources.NAME]`
#[derive(Debug)]
pub struct ResourceConfig {
    /// Its name.
    pub name: String,
    /// Its kind of connector.
    pub connector: String,
    /// Its limits.
    pub limits: Limits,
    /// Its allow rules, in order. Nothing is allowed without one.
    pub allow: Vec<AllowRule>,
    /// Folders from which files are taken.
    pub pickups: Vec<Pickup>,
    /// Files whose changes are told.
    pub watches: Vec<Watch>,
    /// Change feeds whose changes are told.
    pub changes: Vec<Changes>,
    /// Everything else: the connector's own settings.
    pub section: Section,
    /// All that the table says, without places and spelling: the same settings have the same text.
    pub text: String,
    /// The files that it names, absolute: secrets, certificates, known hosts.
    pub files: BTreeSet<PathBuf>,
}

/// `[[resources.NAME.allow]]`: its keys are AND, the rules of a resource are OR.
#[derive(Debug, Clone)]
pub struct AllowRule {
    /// Operations it allows.
    pub operations: Vec<String>,
    /// Path globs: `*` does not cross `/`, `**/` matches zero or more folders, case-sensitive.
    pub paths: Vec<String>,
    /// HTTP methods; empty: none but what the operation implies (`GET` for request, `POST` for notify).
    pub methods: Vec<String>,
    /// Query keys a job may set.
    pub query: Vec<String>,
    /// Headers a job may set, lower case.
    pub headers: Vec<String>,
    /// Requests that the operator wrote, by their names.
    pub requests: Vec<String>,
    /// Entities of a CRM.
    pub entities: Vec<String>,
    /// Their fields; `*` means all that the resource maps.
    pub fields: Vec<String>,
    /// Declared calls of a CRM.
    pub calls: Vec<String>,
    /// Largest payload or file.
    pub max_size: Option<ByteSize>,
    /// Rights on top (`replace`, `create_dirs`, `delete_after_fetch`); `None`: the default of the operation.
    pub may: Option<Vec<String>>,
    /// Attempts per day; `None`: no limit.
    pub max_per_day: Option<u32>,
    /// Bytes of payloads and outputs per day; `None`: no limit.
    pub daily_volume: Option<ByteSize>,
    /// Where the rule stands, for messages.
    pub at: Finding,
}
