//! What the hub's operator says: an optional TOML file, overridden by the command line.

use crate::{
    api::MAX_BLOB,
    notices, outbound,
    server::{MAX_CONNECTIONS, MAX_PER_ADDRESS},
    store::{quota, retention},
    tunnel::registry::LEASE,
};
use passerelle_config::{ByteSize, HumanDuration, LOG_LEVELS, LogFormat, is_log_level};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::{
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// The JSON Schema (2020-12) of the file. The comments on its keys are the operator's manual.
#[must_use]
pub fn schema() -> Value {
    passerelle_config::without_null(schemars::schema_for!(File).to_value())
}

/// The shortest lease: agents answer heartbeats four times in it.
const MIN_LEASE: Duration = Duration::from_secs(2);
/// The longest.
const MAX_LEASE: Duration = Duration::from_secs(24 * 3600);
/// The data folder if none is named.
pub const DEFAULT_DATA: &str = "passerelle-hub-data";
/// Where the hub listens if nothing is said: for this machine alone.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8080";

/// The shortest retention: enough to submit a job for a blob that was just uploaded.
const MIN_RETENTION: Duration = Duration::from_secs(1);

/// Configuration of a Passerelle hub, which needs none. Relative paths start from the folder of this file; the command
/// line wins.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The data folder: database, payloads and signing key. Also `--data`.
    #[schemars(extend("default" = DEFAULT_DATA))]
    pub data: Option<PathBuf>,
    /// Address and port to listen on. Also `--listen`.
    #[schemars(extend("default" = DEFAULT_LISTEN))]
    pub listen: Option<String>,
    /// PEM file of the certificate with its chain; needs `tls_key`. Also `--tls-cert`.
    pub tls_cert: Option<PathBuf>,
    /// PEM file of its private key. Also `--tls-key`.
    pub tls_key: Option<PathBuf>,
    /// Whether plain HTTP may be served beyond this machine, because a proxy in front speaks TLS. Also `--behind-proxy`.
    #[serde(default)]
    pub behind_proxy: bool,
    /// What is logged.
    #[serde(default)]
    pub log: Log,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
    /// How long things are kept. What is over is removed in the background.
    #[serde(default)]
    pub retention: Retention,
    /// What one tenant may have; past it the answer is `507 quota`.
    #[serde(default)]
    pub quotas: Quotas,
    /// How subscribers are told.
    #[serde(default)]
    pub notices: notices::settings::Section,
    /// Where the hub's own requests may lead.
    #[serde(default)]
    pub outbound: outbound::Section,
}

/// `[quotas]`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quotas {
    /// Jobs of one tenant that have not ended.
    pub open_jobs: u64,
    /// Blobs and uploads of one tenant together.
    pub blob_bytes: ByteSize,
    /// Enrolled agents of one tenant that are not revoked.
    pub agents: u64,
    /// Stored events of one tenant's triggers.
    pub events: u64,
}

impl Default for Quotas {
    fn default() -> Self {
        let quota::Quotas { open_jobs, blob_bytes, agents, events } = quota::Quotas::default();
        Self { open_jobs, blob_bytes: ByteSize(blob_bytes), agents, events }
    }
}

impl Quotas {
    /// The same as the store takes it.
    #[must_use]
    pub fn checked(&self) -> quota::Quotas {
        quota::Quotas {
            open_jobs: self.open_jobs,
            blob_bytes: self.blob_bytes.0,
            agents: self.agents,
            events: self.events,
        }
    }
}

/// `[retention]`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Uploaded blobs that no job uses, and payloads of jobs that succeeded or were denied.
    pub blobs: HumanDuration,
    /// Outputs of jobs.
    pub outputs: HumanDuration,
    /// Settled jobs, with attempts and idempotency key.
    pub jobs: HumanDuration,
    /// Uploads that stand still, and files that nobody names; not outputs that a job may yet need.
    pub uploads: HumanDuration,
    /// Events of triggers, with their payloads; their ids are remembered for 400 days.
    pub events: HumanDuration,
}

impl Default for Retention {
    fn default() -> Self {
        let retention::Retention { blobs, outputs, jobs, uploads, events } = retention::Retention::default();
        Self {
            blobs: HumanDuration(blobs),
            outputs: HumanDuration(outputs),
            jobs: HumanDuration(jobs),
            uploads: HumanDuration(uploads),
            events: HumanDuration(events),
        }
    }
}

impl Retention {
    /// The same as the store takes it.
    #[must_use]
    pub fn checked(&self) -> retention::Retention {
        retention::Retention {
            blobs: self.blobs.0,
            outputs: self.outputs.0,
            jobs: self.jobs.0,
            uploads: self.uploads.0,
            events: self.events.0,
        }
    }

    /// What is kept for no time cannot be used.
    fn finding(&self) -> Option<String> {
        let all = [
            ("blobs", self.blobs),
            ("outputs", self.outputs),
            ("jobs", self.jobs),
            ("uploads", self.uploads),
            ("events", self.events),
        ];
        let (key, _) = all.into_iter().find(|(_, kept)| kept.0 < MIN_RETENTION)?;
        Some(format!("retention.{key}: must be at least 1s"))
    }
}

/// `[log]`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `text` for people or `json` for machines.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a `tracing` filter.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// `[limits]`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The largest payload.
    pub max_blob: ByteSize,
    /// Open connections, tunnels included.
    #[schemars(range(min = 1))]
    pub max_connections: usize,
    /// Those of one address; without effect behind a proxy, where all have the proxy's.
    #[schemars(range(min = 1))]
    pub max_connections_per_address: usize,
    /// How long an agent may be silent before its attempts and triggers go on at another agent of the site; 2s to 1d. Also
    /// `--lease` and `PASSERELLE_LEASE`.
    pub lease: HumanDuration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_blob: ByteSize(MAX_BLOB),
            max_connections: MAX_CONNECTIONS,
            max_connections_per_address: MAX_PER_ADDRESS,
            lease: HumanDuration(LEASE),
        }
    }
}

impl File {
    /// Reads a file; relative paths in it are relative to its folder.
    ///
    /// # Errors
    /// One line, `file:line:column: key: what is wrong`.
    pub fn read(path: &Path) -> Result<Self, String> {
        let read = passerelle_config::read_file(path).and_then(|bytes| {
            String::from_utf8(bytes)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not text in UTF-8"))
        });
        let text = read.map_err(|error| format!("{}: {error}", path.display()))?;
        let mut file = Self::parse(&text).map_err(|place| format!("{}:{place}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for inside in [&mut file.data, &mut file.tls_cert, &mut file.tls_key].into_iter().flatten() {
            *inside = folder.join(&*inside);
        }
        Ok(file)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let place = |key: &str, error: &toml::de::Error| {
            let reason = error.message().replace('\n', " ");
            let key = if key == "." { String::new() } else { format!("{key}: ") };
            format!("{}: {key}{reason}", line_and_column(text, error.span().map_or(0, |span| span.start)))
        };
        let toml = toml::Deserializer::parse(text).map_err(|error| place(".", &error))?;
        let file: Self = serde_path_to_error::deserialize(toml)
            .map_err(|error| place(&error.path().to_string(), error.inner()))?;
        match file.finding() {
            None => Ok(file),
            Some(finding) => {
                let key = finding.split(':').next().unwrap_or_default();
                let at = offset(text, key).map_or(String::new(), |at| line_and_column(text, at) + ": ");
                Err(format!("{at}{finding}"))
            }
        }
    }

    /// What is of the right type and cannot be used all the same: `key: what is wrong`.
    fn finding(&self) -> Option<String> {
        let limits = &self.limits;
        let none =
            |key: &str, count: usize| (count == 0).then(|| format!("limits.{key}: must be at least 1"));
        let data = self.data.as_ref().filter(|data| data.as_os_str().is_empty());
        data.map(|_| "data: must not be empty: name a folder".to_owned())
            .or_else(|| none("max_connections", limits.max_connections))
            .or_else(|| none("max_connections_per_address", limits.max_connections_per_address))
            .or_else(|| check_lease(limits.lease).err().map(|wrong| format!("limits.lease: {wrong}")))
            .or_else(|| {
                let level = &self.log.level;
                (!is_log_level(level)).then(|| format!("log.level: expected {LOG_LEVELS}, found {level:?}"))
            })
            .or_else(|| self.retention.finding())
            .or_else(|| self.notices.finding())
            .or_else(|| self.outbound.finding())
    }
}

/// Where the value of a dotted key stands, in bytes.
fn offset(text: &str, key: &str) -> Option<usize> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let (mut table, mut at) = (document.get_ref(), None);
    for part in key.split('.') {
        let value = table.get(part)?;
        at = Some(value.span().start);
        let toml::de::DeValue::Table(inner) = value.get_ref() else { break };
        table = inner;
    }
    at
}

/// A place for people, both counted from 1; columns count characters.
fn line_and_column(text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("{line}:{column}")
}

/// Judges the length of a lease.
///
/// # Errors
/// If it is out of bounds.
pub fn check_lease(lease: HumanDuration) -> Result<(), String> {
    let allowed = MIN_LEASE..=MAX_LEASE;
    if allowed.contains(&lease.0) {
        return Ok(());
    }
    Err(format!("must be {} s to {} s", MIN_LEASE.as_secs(), MAX_LEASE.as_secs()))
}

/// How the hub is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// Plain HTTP, on loopback or behind a proxy.
    Plain,
    /// TLS with this certificate and key.
    Tls {
        /// The chain.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
}

/// Resolves an address to listen on.
///
/// # Errors
/// If it is none.
pub fn address(listen: &str) -> Result<SocketAddr, String> {
    let mut found = listen.to_socket_addrs().map_err(|error| {
        format!("listen: {listen:?} is no address to listen on, as 127.0.0.1:8080: {error}")
    })?;
    found.next().ok_or_else(|| format!("listen: {listen:?} names no address"))
}

/// Judges how `address` may be served. `own` is the certificate that `--bootstrap` makes, if it is asked for.
///
/// # Errors
/// What is wrong and what to do.
pub fn transport(
    address: SocketAddr,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    behind_proxy: bool,
    own: Option<(PathBuf, PathBuf)>,
) -> Result<Transport, String> {
    match (certificate, key, own) {
        (Some(certificate), Some(key), _) => Ok(Transport::Tls { certificate, key }),
        (Some(_), None, _) => Err("tls_cert needs tls_key (--tls-key FILE) beside it".to_owned()),
        (None, Some(_), _) => Err("tls_key needs tls_cert (--tls-cert FILE) beside it".to_owned()),
        (None, None, _) if address.ip().is_loopback() || behind_proxy => Ok(Transport::Plain),
        (None, None, Some((certificate, key))) => Ok(Transport::Tls { certificate, key }),
        (None, None, None) => Err(format!(
            "listen: {address} can be reached from other machines, and plain HTTP would show them keys and jobs: \
             give --tls-cert and --tls-key, or --behind-proxy if a proxy in front speaks TLS, or listen on 127.0.0.1"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_name_line_column_and_key() {
        for (text, expected) in [
            ("listen = 8080\n", "1:10: listen: invalid type: integer `8080`, expected a string"),
            ("data = \"x\"\ncolour = 1\n", "2:1: colour: unknown field `colour`"),
            ("[limits]\nmax_blob = \"lots\"\n", "2:12: limits.max_blob: "),
            ("[log]\nformat = \"xml\"\n", "2:10: log.format: unknown variant `xml`"),
            ("listen = \n", "1:"),
            ("[limits]\nlease = \"1s\"\n", "2:9: limits.lease: must be 2 s to 86400 s"),
            ("[limits]\nmax_connections = 0\n", "2:19: limits.max_connections: must be at least 1"),
            (
                "[limits]\nmax_connections_per_address = 0\n",
                "2:31: limits.max_connections_per_address: must be",
            ),
            ("data = \"\"\n", "1:8: data: must not be empty"),
            ("[log]\nlevel = \"verbose\"\n", "2:9: log.level: expected \"error\", "),
            ("[notices]\ntimeout = \"0s\"\n", "2:11: notices.timeout: must be"),
            ("[quotas]\nblob_bytes = 7.5\n", "2:14: quotas.blob_bytes: "),
            ("[quotas]\njobs = 7\n", "2:1: quotas.jobs: unknown field"),
            ("[retention]\njobs = \"0s\"\n", "2:8: retention.jobs: must be at least 1s"),
            ("[retention]\nblobs = 7\n", "2:9: retention.blobs: "),
            ("[retention]\nbackups = \"7d\"\n", "2:1: retention.backups: unknown field"),
        ] {
            let finding = File::parse(text).unwrap_err();
            assert!(finding.starts_with(expected), "{text}: {finding}");
        }
        let file = File::parse("listen = \"[::1]:0\"\n[limits]\nmax_blob = \"2GiB\"\n").unwrap();
        assert_eq!(file.limits.max_blob, ByteSize(2 << 30));
        assert_eq!(file.retention.checked(), retention::Retention::default());
        assert_eq!(file.quotas.checked(), quota::Quotas::default());
        let file =
            File::parse("[quotas]\nopen_jobs = 5\nblob_bytes = \"1MiB\"\nagents = 2\nevents = 7\n").unwrap();
        assert_eq!(
            file.quotas.checked(),
            quota::Quotas { open_jobs: 5, blob_bytes: 1 << 20, agents: 2, events: 7 }
        );
        let kept =
            File::parse("[retention]\nblobs = \"2d\"\njobs = \"26w1h\"\n").unwrap().retention.checked();
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        assert_eq!((kept.blobs, kept.outputs, kept.jobs), (hours(48), hours(720), hours(26 * 168 + 1)));
    }

    #[test]
    fn plain_http_stays_on_this_machine_unless_a_proxy_stands_before_it() {
        let near: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let far: SocketAddr = "0.0.0.0:0".parse().unwrap();
        let file = |name: &str| Some(PathBuf::from(name));
        let pair = || Transport::Tls { certificate: "c".into(), key: "k".into() };
        assert_eq!(transport(near, None, None, false, None), Ok(Transport::Plain));
        assert_eq!(transport(far, None, None, true, None), Ok(Transport::Plain));
        assert_eq!(transport(far, file("c"), file("k"), false, None), Ok(pair()));
        assert_eq!(transport(far, None, None, false, Some(("c".into(), "k".into()))), Ok(pair()));
        assert_eq!(transport(near, None, None, false, Some(("c".into(), "k".into()))), Ok(Transport::Plain));
        assert!(transport(far, None, None, false, None).unwrap_err().contains("--behind-proxy"));
        assert!(transport(near, file("c"), None, false, None).is_err());
        assert!(transport(near, None, file("k"), false, None).is_err());
    }
}
