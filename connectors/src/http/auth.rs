//! How the agent shows an application who it is: the `auth` key.

use super::{
    oauth::{OauthSettings, RawOauth},
    settings::Reader,
};
use http::HeaderName;
use passerelle_config::SecretRef;
use schemars::JsonSchema;
use serde::Deserialize;

/// The keys of every kind of `auth`; which belong to which kind is checked below, so that a finding has its position.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAuth {
    /// How the agent shows who it is.
    #[schemars(extend("enum" = ["bearer", "basic", "api_key", "oauth2"]))]
    kind: String,
    /// Token of `Authorization: Bearer …`: for `bearer`.
    token: Option<SecretRef>,
    /// User name: for `basic`.
    username: Option<String>,
    /// Password: for `basic`.
    password: Option<SecretRef>,
    /// Name of the header that carries the key, such as `X-Api-Key`: for `api_key`.
    header: Option<String>,
    /// The key: for `api_key`.
    value: Option<SecretRef>,
    /// Address of the token server: for `oauth2`.
    token_url: Option<String>,
    /// The agent's id there: for `oauth2`.
    client_id: Option<String>,
    /// The secret that belongs to it: for `oauth2`.
    client_secret: Option<SecretRef>,
    /// Scopes to ask for, separated by spaces: for `oauth2`.
    scope: Option<String>,
    /// Audience to ask for: for `oauth2`.
    audience: Option<String>,
    /// How the client shows who it is: for `oauth2`.
    #[schemars(extend("enum" = ["basic", "body"], "default" = "basic"))]
    style: Option<String>,
}

/// How the agent authenticates to the application.
#[derive(Debug)]
pub(super) enum Auth {
    Bearer { token: SecretRef },
    Basic { username: String, password: SecretRef },
    ApiKey { header: HeaderName, value: SecretRef },
    Oauth(OauthSettings),
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

impl Reader<'_> {
    pub(super) fn auth(&mut self, raw: RawAuth) -> Option<Auth> {
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
}
