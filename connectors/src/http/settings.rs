//! The settings of an `http` resource.

use super::{
    auth::{Auth, RawAuth},
    requests::{RawRequest, Requests},
    sign,
};
use crate::address;
use http::{HeaderName, header::AUTHORIZATION};
use passerelle_config::{ByteSize, Diagnostics, HumanDuration, SecretRef, Section};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use url::Url;

/// How long a connection may take to be made, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest `connect_timeout`: a job's own timeout is minutes.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(120);
/// The largest response taken: enough for reports, too little to fill the agent's disk with one job.
const MAX_RESPONSE: u64 = 64 * 1024 * 1024;
/// The longest `timeouts.first_byte` and `timeouts.whole`.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Idle connections kept for the next jobs: as many as an agent may have jobs at once, or they would be made anew under
/// load.
const POOL_MAX_IDLE: usize = 256;
const MAX_POOL_MAX_IDLE: u64 = 1024;
/// Shorter than the keep-alive of common servers (nginx 75 s, Apache's longer ones, Kestrel 130 s), so that a request
/// seldom meets a connection that the server is just closing.
const POOL_IDLE: Duration = Duration::from_secs(30);
const MAX_POOL_IDLE: Duration = Duration::from_secs(3600);
/// Keys that follow one another: the next one beside the one in use, and some room.
const MAX_SECRETS: usize = 5;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Raw {
    /// `https://…` or `http://…`; jobs name paths below it.
    url: String,
    /// How the agent shows the application who it is.
    auth: Option<RawAuth>,
    /// PEM certificates trusted beside the system's own.
    ca_file: Option<PathBuf>,
    /// PEM file of the certificate shown to the application, with its chain.
    client_cert: Option<PathBuf>,
    /// The private key of `client_cert`, in PEM, without a passphrase.
    client_key: Option<SecretRef>,
    /// HTTP proxy towards the application. `HTTPS_PROXY` never counts here.
    proxy: Option<RawProxy>,
    /// The older way to write `timeouts.connect`.
    connect_timeout: Option<HumanDuration>,
    /// How long the parts of a request may take.
    timeouts: Option<RawTimeouts>,
    /// Connections that wait for the next job.
    pool: Option<RawPool>,
    /// Which HTTP is spoken; `auto` is HTTP/2 where TLS offers it.
    #[schemars(extend("enum" = ["auto", "1.1", "2"], "default" = "auto"))]
    http_version: Option<String>,
    /// Whether answers may come as gzip.
    #[schemars(extend("default" = true))]
    compression: Option<bool>,
    /// The largest answer that is taken, also unpacked.
    #[schemars(extend("default" = "64MiB"))]
    max_response: Option<ByteSize>,
    /// A signature over each request.
    sign: Option<RawSign>,
    /// Requests that you write and jobs name.
    requests: Option<BTreeMap<String, RawRequest>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawTimeouts {
    /// To connect, TLS included; at most 120s.
    #[schemars(extend("default" = "10s"))]
    connect: Option<HumanDuration>,
    /// From the last byte of the request to the first of the answer; at most 24h. Default: the job's own `timeout_s`.
    first_byte: Option<HumanDuration>,
    /// For the whole exchange; at most 24h. Default: no limit of its own.
    whole: Option<HumanDuration>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawPool {
    /// Idle connections kept for the next jobs.
    #[schemars(range(max = 1024), extend("default" = POOL_MAX_IDLE))]
    max_idle: Option<u64>,
    /// How long an idle connection is kept; at most 1h.
    #[schemars(extend("default" = "30s"))]
    idle_timeout: Option<HumanDuration>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawSign {
    /// The kind of signature.
    #[schemars(extend("enum" = ["standard_webhooks"]))]
    kind: String,
    /// The secret: `whsec_` and 24 to 64 bytes in base64.
    secret: Option<SecretRef>,
    /// In place of `secret`: up to 5 that sign side by side while they follow one another.
    secrets: Option<Vec<SecretRef>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawProxy {
    /// `http://host:port` or `https://host:port`.
    url: String,
    /// User name for Basic authentication.
    username: Option<String>,
    /// Password for Basic authentication.
    password: Option<SecretRef>,
}

/// Checked settings of an `http` resource.
#[derive(Debug)]
pub struct Settings {
    /// Its path ends with `/`.
    pub(super) url: Url,
    pub(super) auth: Option<Auth>,
    pub(super) ca_file: Option<PathBuf>,
    /// The certificate shown to the application, with its key.
    pub(super) client: Option<(PathBuf, SecretRef)>,
    pub(super) proxy: Option<Proxy>,
    pub(super) timeouts: Timeouts,
    pub(super) pool: Pool,
    pub(super) version: Version,
    /// Whether answers may come compressed.
    pub(super) compression: bool,
    pub(super) max_response: u64,
    /// The secrets that each request is signed with; none: it is not signed.
    pub(super) sign: Vec<SecretRef>,
    pub(super) requests: Requests,
}

/// How long the parts of an exchange may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) connect: Duration,
    /// From the last byte of the request to the first of the answer.
    pub(super) first_byte: Option<Duration>,
    pub(super) whole: Option<Duration>,
}

/// The connections that wait for the next job.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pool {
    pub(super) max_idle: usize,
    pub(super) idle: Duration,
}

/// Which HTTP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// HTTP/2 where TLS offers it.
    Auto,
    One,
    Two,
}

/// The proxy on the way to the application.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) url: Url,
    pub(super) username: Option<String>,
    pub(super) password: Option<SecretRef>,
}

impl Settings {
    /// The JSON Schema of the settings.
    pub(super) fn schema() -> serde_json::Value {
        schemars::schema_for!(Raw).to_value()
    }

    /// Reads and checks the settings; findings go to `diagnostics`.
    pub(super) fn check(section: &Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let raw: Raw = section.parse(diagnostics)?;
        let mut reader = Reader { section, diagnostics, sound: true };
        let url = reader.url(&raw.url);
        let auth = raw.auth.and_then(|auth| reader.auth(auth));
        let proxy = raw.proxy.and_then(|proxy| reader.proxy(proxy));
        let timeouts = reader.timeouts(raw.connect_timeout, &raw.timeouts.unwrap_or_default());
        let pool = reader.pool(&raw.pool.unwrap_or_default());
        let client = match (raw.client_cert, raw.client_key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => {
                reader.wrong(
                    "client_cert",
                    "needs the key client_key beside it: { file = \"…\" } or { env = \"…\" }",
                );
                None
            }
            (None, Some(_)) => {
                reader.wrong(
                    "client_key",
                    "needs the key client_cert beside it: the PEM file of its certificate",
                );
                None
            }
        };
        let version = match raw.http_version.as_deref() {
            None | Some("auto") => Version::Auto,
            Some("1.1") => Version::One,
            Some("2") => Version::Two,
            Some(other) => {
                reader.wrong("http_version", format!("unknown version {other:?}; expected auto, 1.1 or 2"));
                Version::Auto
            }
        };
        let max_response = raw.max_response.map_or(MAX_RESPONSE, |given| given.0);
        if max_response == 0 {
            reader.wrong("max_response", "must be larger than 0");
        }
        let sign = raw.sign.map_or_else(Vec::new, |raw| reader.sign(raw));
        let own = own_headers(auth.as_ref(), !sign.is_empty());
        let before = reader.diagnostics.findings().len();
        let requests = Requests::check(raw.requests.unwrap_or_default(), &own, section, reader.diagnostics);
        let sound = reader.sound && reader.diagnostics.findings().len() == before;
        let settings = Self {
            url: url?,
            auth,
            ca_file: raw.ca_file,
            client,
            proxy,
            timeouts,
            pool,
            version,
            compression: raw.compression.unwrap_or(true),
            max_response,
            sign,
            requests,
        };
        sound.then_some(settings)
    }

    /// The header fields that the resource itself fills.
    pub(super) fn own_headers(&self) -> Vec<HeaderName> {
        own_headers(self.auth.as_ref(), !self.sign.is_empty())
    }
}

fn own_headers(auth: Option<&Auth>, signs: bool) -> Vec<HeaderName> {
    let mut own = match auth {
        None => Vec::new(),
        Some(Auth::ApiKey { header, .. }) => vec![header.clone()],
        Some(Auth::Bearer { .. } | Auth::Basic { .. } | Auth::Oauth(_)) => vec![AUTHORIZATION],
    };
    if signs {
        own.extend([sign::ID, sign::TIMESTAMP, sign::SIGNATURE]);
    }
    own
}

/// Reads the settings key by key.
pub(super) struct Reader<'a> {
    section: &'a Section,
    diagnostics: &'a mut Diagnostics,
    sound: bool,
}

impl Reader<'_> {
    pub(super) fn wrong(&mut self, key: &str, message: impl Into<String>) {
        self.sound = false;
        self.diagnostics.push(self.section.finding(key, message));
    }

    fn url(&mut self, text: &str) -> Option<Url> {
        let mut url = self.host_url("url", text)?;
        if !url.username().is_empty() || url.password().is_some() {
            self.wrong("url", "must not contain credentials; put them into auth");
        }
        if url.query().is_some() || url.fragment().is_some() {
            self.wrong("url", "must end with the path; jobs add the query");
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Some(url)
    }

    fn host_url(&mut self, key: &str, text: &str) -> Option<Url> {
        address::host_url(text).map_err(|message| self.wrong(key, message)).ok()
    }

    fn proxy(&mut self, raw: RawProxy) -> Option<Proxy> {
        let url = self.host_url("proxy.url", &raw.url)?;
        if !url.username().is_empty() || url.password().is_some() {
            self.wrong("proxy.url", "must not contain credentials; use username and password");
        }
        if raw.username.is_some() != raw.password.is_some() {
            self.wrong("proxy", "username and password go together");
        }
        Some(Proxy { url, username: raw.username, password: raw.password })
    }

    fn timeouts(&mut self, alone: Option<HumanDuration>, raw: &RawTimeouts) -> Timeouts {
        if alone.is_some() && raw.connect.is_some() {
            self.wrong("connect_timeout", "stands in timeouts.connect too; remove one of the two");
        }
        let key = if raw.connect.is_some() { "timeouts.connect" } else { "connect_timeout" };
        let connect = raw.connect.or(alone).map_or(CONNECT_TIMEOUT, |given| given.0);
        if connect.is_zero() || connect > MAX_CONNECT_TIMEOUT {
            self.wrong(key, "must be longer than 0 and at most 120s");
        }
        let mut limit = |key: &str, given: Option<HumanDuration>| {
            let given = given?.0;
            if given.is_zero() || given > MAX_TIMEOUT {
                self.wrong(key, "must be longer than 0 and at most 24h");
            }
            Some(given)
        };
        let first_byte = limit("timeouts.first_byte", raw.first_byte);
        let whole = limit("timeouts.whole", raw.whole);
        if first_byte > whole && whole.is_some() {
            self.wrong("timeouts.first_byte", "is longer than timeouts.whole");
        }
        Timeouts { connect, first_byte, whole }
    }

    fn pool(&mut self, raw: &RawPool) -> Pool {
        if raw.max_idle.is_some_and(|max| max > MAX_POOL_MAX_IDLE) {
            self.wrong("pool.max_idle", format!("must be at most {MAX_POOL_MAX_IDLE}"));
        }
        let idle = raw.idle_timeout.map_or(POOL_IDLE, |given| given.0);
        if idle.is_zero() || idle > MAX_POOL_IDLE {
            self.wrong("pool.idle_timeout", "must be longer than 0 and at most 1h");
        }
        let max_idle =
            raw.max_idle.map_or(POOL_MAX_IDLE, |max| usize::try_from(max).unwrap_or(POOL_MAX_IDLE));
        Pool { max_idle, idle }
    }

    fn sign(&mut self, raw: RawSign) -> Vec<SecretRef> {
        if raw.kind != "standard_webhooks" {
            self.wrong("sign.kind", format!("unknown kind {:?}; expected standard_webhooks", raw.kind));
        }
        let secrets: Vec<SecretRef> = match (raw.secret, raw.secrets) {
            (Some(secret), None) => vec![secret],
            (None, Some(secrets)) => secrets,
            (Some(_), Some(_)) | (None, None) => {
                self.wrong("sign", "needs either secret, or secrets for several that follow one another");
                return Vec::new();
            }
        };
        if secrets.is_empty() || secrets.len() > MAX_SECRETS {
            self.wrong(
                "sign.secrets",
                format!("expected 1 to {MAX_SECRETS} secrets, found {}", secrets.len()),
            );
        }
        secrets
    }
}
