//! The configuration as it stands in the files. The comments here are the operator's manual: they become the
//! descriptions of the JSON Schema.

use crate::{
    ByteSize, HumanDuration, KeyRotation, LogFormat, SecretRef, WhenFull, defaults,
    listener::RawListener,
    trigger::{RawChanges, RawPickup, RawWatch},
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{collections::BTreeMap, path::PathBuf};

/// Configuration of a Passerelle agent (`agent.toml`). Relative paths start from the folder of this file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// The hub to which the agent opens its tunnel.
    #[schemars(required)]
    pub(crate) hub: Option<Hub>,
    /// Who may sign jobs.
    pub(crate) trust: Option<Trust>,
    /// The agent itself.
    pub(crate) agent: Option<Agent>,
    /// Its logs.
    pub(crate) log: Option<Log>,
    /// What becomes of its audit.
    pub(crate) audit: Option<Audit>,
    /// Where in-house applications post what the cloud is to hear of.
    #[expect(
        dead_code,
        reason = "for the schema: the loader takes the listeners out and reads them one by one"
    )]
    pub(crate) listeners: Option<BTreeMap<String, RawListener>>,
    /// The private systems that the cloud may name, and what it may do with them.
    #[expect(
        dead_code,
        reason = "for the schema: the loader takes the resources out and reads them one by one"
    )]
    pub(crate) resources: Option<BTreeMap<String, Resource>>,
}

/// The hub to which the agent opens its tunnel.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hub {
    /// `https://…`; plain `http://` only to this machine.
    #[schemars(required)]
    pub(crate) url: Option<String>,
    /// One-time token of the first start; not needed once the agent is enrolled.
    pub(crate) enrolment_token: Option<SecretRef>,
    /// PEM file of certificates that are trusted beside the system's own, for a private hub or a TLS-inspecting proxy.
    pub(crate) ca_file: Option<PathBuf>,
    /// PEM file of the certificate that the agent shows to a hub or proxy that asks for one, with its chain.
    pub(crate) client_cert: Option<PathBuf>,
    /// The private key of `client_cert`, in PEM.
    pub(crate) client_key: Option<SecretRef>,
    /// HTTP proxy towards the hub. Without it `HTTPS_PROXY` and `NO_PROXY` count.
    pub(crate) proxy: Option<Proxy>,
}

/// HTTP proxy towards the hub.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Proxy {
    /// `http://host:port`, or `https://host:port` where the proxy itself speaks TLS.
    #[schemars(required)]
    pub(crate) url: Option<String>,
    /// User name for Basic authentication.
    pub(crate) username: Option<String>,
    /// Password for Basic authentication.
    pub(crate) password: Option<SecretRef>,
}

/// Who may sign jobs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Trust {
    /// PEM files of the public keys that may sign jobs. Without it, the hub's keys pinned at enrolment.
    pub(crate) job_keys: Option<Vec<PathBuf>>,
}

/// The agent itself.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Agent {
    /// Name under which the hub shows this agent. Default: the host's name.
    pub(crate) name: Option<String>,
    /// Folder of identity, journal and audit, made by the agent.
    #[schemars(extend("default" = defaults::STATE_DIR))]
    pub(crate) state_dir: Option<PathBuf>,
    /// Address and port of the local health and status page. `PASSERELLE_LISTEN` overrides it.
    #[schemars(extend("default" = defaults::LISTEN))]
    pub(crate) listen: Option<String>,
    /// Jobs at once, over all resources.
    #[schemars(range(min = 1, max = 1024), extend("default" = defaults::MAX_JOBS))]
    pub(crate) max_jobs: Option<i64>,
    /// Real-time calls at once, beside the jobs; 0: this agent takes none.
    #[schemars(range(min = 0, max = 1024), extend("default" = defaults::MAX_CALLS))]
    pub(crate) max_calls: Option<i64>,
    /// How long running jobs may go on after SIGTERM.
    #[schemars(extend("default" = "30s"))]
    pub(crate) shutdown_grace: Option<HumanDuration>,
    /// The most that payloads on their way may take of the disk; past it jobs that need more are declined as busy.
    #[schemars(extend("default" = "16GiB"))]
    pub(crate) spool_quota: Option<ByteSize>,
    /// The most that the journal may take of the disk; past it jobs are declined as busy.
    #[schemars(extend("default" = "1GiB"))]
    pub(crate) journal_quota: Option<ByteSize>,
    /// How old the agent's own key becomes before it makes a new one by itself, or `off`.
    #[schemars(extend("default" = "30d"))]
    pub(crate) key_rotation: Option<KeyRotation>,
    /// The most that the audit's files may take of the disk; `audit.when_full` says what happens then.
    #[schemars(extend("default" = "1GiB"))]
    pub(crate) audit_quota: Option<ByteSize>,
}

/// What becomes of the agent's audit. It is always kept in the state folder; exports are copies of it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Audit {
    /// File to which each row is appended as a line of JSON. It may be rotated; the agent makes it anew.
    pub(crate) file: Option<PathBuf>,
    /// Syslog server to which each row is sent (RFC 5424; on a local socket as syslog(3) does): `unix:/dev/log`, `udp://host:514` or `tcp://host:514`.
    pub(crate) syslog: Option<String>,
    /// Past `agent.audit_quota`: `delete_oldest`, which the audit itself tells of, or `stop` taking jobs.
    #[schemars(extend("default" = "delete_oldest"))]
    pub(crate) when_full: Option<WhenFull>,
}

/// The agent's logs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    /// `text` for people or `json` for machines.
    #[schemars(extend("default" = "text"))]
    pub(crate) format: Option<LogFormat>,
    /// `error`, `warn`, `info`, `debug`, `trace`, `off`, or a list such as `info,passerelle_agent=debug`.
    #[schemars(extend("default" = defaults::LOG_LEVEL))]
    pub(crate) level: Option<String>,
    /// Folder of the classic log files; without it there are none.
    pub(crate) classic_dir: Option<PathBuf>,
    /// How long a classic log file is kept.
    #[schemars(extend("default" = "30d"))]
    pub(crate) classic_keep: Option<HumanDuration>,
    /// What the classic log files may take of the disk; past it the oldest go.
    #[schemars(extend("default" = "1GiB"))]
    pub(crate) classic_quota: Option<ByteSize>,
}

/// One private system. Beside these keys it has those of its connector.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct Resource {
    /// The kind of connector.
    #[schemars(required)]
    pub(crate) connector: Option<String>,
    /// How hard the resource may be used.
    pub(crate) limits: Option<Limits>,
    /// What the cloud may do here: the rules are alternatives; without one nothing is allowed.
    pub(crate) allow: Option<Vec<Rule>>,
    /// Folders from which the agent sends files to the cloud by itself.
    pub(crate) pickup: Option<Vec<RawPickup>>,
    /// Files whose changes the agent sends to the cloud by itself.
    pub(crate) watch: Option<Vec<RawWatch>>,
    /// Change feeds whose changes the agent sends to the cloud by itself.
    pub(crate) changes: Option<Vec<RawChanges>>,
}

/// How hard a resource may be used.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    /// Attempts at once.
    #[schemars(range(min = 1, max = 1000), extend("default" = defaults::MAX_CONCURRENT))]
    pub(crate) max_concurrent: Option<i64>,
    /// Attempts started per minute; without it there is no such limit.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) rate_per_minute: Option<i64>,
}

/// An allow rule: a job must fit all of its keys.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// The operations it allows.
    #[schemars(required, length(min = 1))]
    pub(crate) operations: Option<Vec<String>>,
    /// Path globs below the resource's root: `*` does not cross `/`, `**/` matches any number of folders.
    pub(crate) paths: Option<Vec<String>>,
    /// HTTP methods, upper case. Default: `GET` and `HEAD` for `request`, `POST` for `notify`.
    pub(crate) methods: Option<Vec<String>>,
    /// Query keys that a job may set. Default: none.
    pub(crate) query: Option<Vec<String>>,
    /// HTTP headers that a job may set. Default: none.
    pub(crate) headers: Option<Vec<String>>,
    /// Requests of this resource, by their names, that a job may have sent. Default: none.
    pub(crate) requests: Option<Vec<String>>,
    /// Entities of a CRM (`contact`, …), by the names of the resource's `entities`.
    pub(crate) entities: Option<Vec<String>>,
    /// Their fields that a job may write, search by and see; `*` means all that the resource maps.
    pub(crate) fields: Option<Vec<String>>,
    /// Calls of a CRM, by the names of the resource's `calls`.
    pub(crate) calls: Option<Vec<String>>,
    /// The largest payload and output.
    pub(crate) max_size: Option<ByteSize>,
    /// Rights on top: `replace`, `create_dirs`, `delete_after_fetch`. Default: the first two for `drop`, else none.
    pub(crate) may: Option<Vec<String>>,
    /// How many attempts it allows per day (UTC). Default: no limit.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub(crate) max_per_day: Option<i64>,
    /// How many bytes of payloads and outputs it allows per day (UTC), all jobs together. Default: no limit.
    pub(crate) daily_volume: Option<ByteSize>,
}
