//! The settings of an `http` resource.

use super::oauth::{OauthSettings, RawOauth};
use crate::address;
use http::HeaderName;
use passerelle_config::{ByteSize, Diagnostics, HumanDuration, SecretRef, Section};
use serde::Deserialize;
use std::{path::PathBuf, time::Duration};
use url::Url;

/// How long a connection may take to be made, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest `connect_timeout`: a job's own timeout is minutes.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(120);
/// The largest response taken: enough for reports, too little to fill the agent's disk with one job.
const MAX_RESPONSE: u64 = 64 * 1024 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    url: String,
    auth: Option<RawAuth>,
    ca_file: Option<PathBuf>,
    proxy: Option<RawProxy>,
    connect_timeout: Option<HumanDuration>,
    max_response: Option<ByteSize>,
}

/// The keys of every kind of `auth`; which belong to which kind is checked below, so that a finding has its position.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAuth {
    kind: String,
    token: Option<SecretRef>,
    username: Option<String>,
    password: Option<SecretRef>,
    header: Option<String>,
    value: Option<SecretRef>,
    token_url: Option<String>,
    client_id: Option<String>,
    client_secret: Option<SecretRef>,
    scope: Option<String>,
    audience: Option<String>,
    style: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProxy {
    url: String,
    username: Option<String>,
    password: Option<SecretRef>,
}

/// Checked settings of an `http` resource.
#[derive(Debug)]
pub struct Settings {
    pub(super) resource: String,
    /// Its path ends with `/`.
    pub(super) url: Url,
    pub(super) auth: Option<Auth>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) proxy: Option<Proxy>,
    pub(super) connect_timeout: Duration,
    pub(super) max_response: u64,
}

/// How the agent authenticates to the application.
#[derive(Debug)]
pub(super) enum Auth {
    Bearer { token: SecretRef },
    Basic { username: String, password: SecretRef },
    ApiKey { header: HeaderName, value: SecretRef },
    Oauth(OauthSettings),
}

/// The proxy on the way to the application.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) url: Url,
    pub(super) username: Option<String>,
    pub(super) password: Option<SecretRef>,
}

/// Header names that an API key may not have.
const NOT_A_KEY: &[&str] = &[
    "connection",
    "content-length",
    "content-type",
    "host",
    "idempotency-key",
    "te",
    "traceparent",
    "transfer-encoding",
    "upgrade",
];

impl Settings {
    /// Reads and checks the settings; findings go to `diagnostics`.
    pub(super) fn check(section: &Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let raw: Raw = section.parse(diagnostics)?;
        let mut reader = Reader { section, diagnostics, sound: true };
        let url = reader.url(&raw.url);
        let auth = raw.auth.and_then(|auth| reader.auth(auth));
        let proxy = raw.proxy.and_then(|proxy| reader.proxy(proxy));
        let connect_timeout = raw.connect_timeout.map_or(CONNECT_TIMEOUT, |given| given.0);
        if connect_timeout.is_zero() || connect_timeout > MAX_CONNECT_TIMEOUT {
            reader.wrong("connect_timeout", "must be longer than 0 and at most 120s");
        }
        let max_response = raw.max_response.map_or(MAX_RESPONSE, |given| given.0);
        if max_response == 0 {
            reader.wrong("max_response", "must be larger than 0");
        }
        let sound = reader.sound;
        let settings = Self {
            resource: section.name().to_owned(),
            url: url?,
            auth,
            ca_file: raw.ca_file,
            proxy,
            connect_timeout,
            max_response,
        };
        sound.then_some(settings)
    }
}

struct Reader<'a> {
    section: &'a Section,
    diagnostics: &'a mut Diagnostics,
    sound: bool,
}

impl Reader<'_> {
    fn wrong(&mut self, key: &str, message: impl Into<String>) {
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

    fn auth(&mut self, raw: RawAuth) -> Option<Auth> {
        let RawAuth {
            kind,
            token,
            username,
            password,
            header,
            value,
            token_url,
            client_id,
            client_secret,
            scope,
            audience,
            style,
        } = raw;
        let given = [
            ("token", token.is_some()),
            ("username", username.is_some()),
            ("password", password.is_some()),
            ("header", header.is_some()),
            ("value", value.is_some()),
            ("token_url", token_url.is_some()),
            ("client_id", client_id.is_some()),
            ("client_secret", client_secret.is_some()),
            ("scope", scope.is_some()),
            ("audience", audience.is_some()),
            ("style", style.is_some()),
        ];
        let needed: &[&str] = match kind.as_str() {
            "bearer" => &["token"],
            "basic" => &["username", "password"],
            "api_key" => &["header", "value"],
            "oauth2" => &["token_url", "client_id", "client_secret"],
            other => {
                let message = format!("unknown kind {other:?}; expected bearer, basic or api_key, or oauth2");
                self.wrong("auth.kind", message);
                return None;
            }
        };
        let also: &[&str] = if kind == "oauth2" { &["scope", "audience", "style"] } else { &[] };
        for (key, is_given) in given.into_iter().filter(|(key, _)| !also.contains(key)) {
            let at = format!("auth.{key}");
            match (is_given, needed.contains(&key)) {
                (true, false) => {
                    self.wrong(
                        &at,
                        format!("not a key of kind {kind:?}, which takes {}", needed.join(" and ")),
                    );
                }
                (false, true) => {
                    self.wrong("auth", format!("kind {kind:?} needs the key {key}"));
                }
                (true, true) | (false, false) => {}
            }
        }
        match kind.as_str() {
            "bearer" => Some(Auth::Bearer { token: token? }),
            "basic" => {
                let username = username?;
                if username.contains(':') || username.chars().any(char::is_control) {
                    self.wrong("auth.username", "must not contain a colon or control characters");
                }
                Some(Auth::Basic { username, password: password? })
            }
            "oauth2" => {
                let raw = RawOauth {
                    token_url,
                    client_id,
                    client_secret,
                    scope,
                    audience,
                    style,
                    ..RawOauth::default()
                };
                let settings = raw.check(&mut |key, message| self.wrong(&format!("auth.{key}"), message));
                settings.map(Auth::Oauth)
            }
            _ => {
                let (name, value) = (header?, value?);
                match HeaderName::from_bytes(name.as_bytes()) {
                    Ok(header) if !NOT_A_KEY.contains(&header.as_str()) => {
                        Some(Auth::ApiKey { header, value })
                    }
                    Ok(_) | Err(_) => {
                        let message =
                            format!("{name:?} cannot carry a key; expected the like of \"X-Api-Key\"");
                        self.wrong("auth.header", message);
                        None
                    }
                }
            }
        }
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
}
