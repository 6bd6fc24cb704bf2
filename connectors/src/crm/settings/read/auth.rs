//! The table `auth`: each kind has its own keys, and nothing but these.

use super::Reader;
use crate::{crm::settings::Auth, http::oauth::RawOauth};
use http::HeaderName;
use passerelle_config::SecretRef;
use schemars::JsonSchema;
use serde::Deserialize;

/// The keys of every kind of `auth`; which belong to which kind is checked below, so that a finding has its position.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAuth {
    /// How the agent shows who it is.
    #[schemars(extend("enum" = ["bearer", "basic", "api_key", "hmac", "oauth2"]))]
    kind: String,
    /// Token: for `bearer`.
    token: Option<SecretRef>,
    /// The word before the token: for `bearer`.
    #[schemars(extend("default" = "Bearer"))]
    scheme: Option<String>,
    /// User name: for `basic`, and for the password grant of `oauth2`.
    username: Option<String>,
    /// Password: for `basic`, and for the password grant of `oauth2`.
    password: Option<SecretRef>,
    /// Name of the header that carries the key, such as `X-Api-Key`: for `api_key`.
    header: Option<String>,
    /// The key: for `api_key`.
    value: Option<SecretRef>,
    /// Id of the key: for `hmac`.
    key: Option<String>,
    /// The key that signs each request: for `hmac`.
    secret: Option<SecretRef>,
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

impl Reader<'_> {
    pub(super) fn auth(&mut self, raw: RawAuth) -> Option<Auth> {
        let RawAuth { kind, token, scheme, username, password, header, value, key, secret, .. } = raw;
        let (token_url, client_id, client_secret) = (raw.token_url, raw.client_id, raw.client_secret);
        let (scope, audience, style) = (raw.scope, raw.audience, raw.style);
        let given = [
            ("token", token.is_some()),
            ("scheme", scheme.is_some()),
            ("username", username.is_some()),
            ("password", password.is_some()),
            ("header", header.is_some()),
            ("value", value.is_some()),
            ("key", key.is_some()),
            ("secret", secret.is_some()),
            ("token_url", token_url.is_some()),
            ("client_id", client_id.is_some()),
            ("client_secret", client_secret.is_some()),
            ("scope", scope.is_some()),
            ("audience", audience.is_some()),
            ("style", style.is_some()),
        ];
        let (needed, optional): (&[&str], &[&str]) = match kind.as_str() {
            "bearer" => (&["token"], &["scheme"]),
            "basic" => (&["username", "password"], &[]),
            "api_key" => (&["header", "value"], &[]),
            "hmac" => (&["key", "secret"], &[]),
            "oauth2" => (
                &["token_url", "client_id", "client_secret"],
                &["scope", "audience", "style", "username", "password"],
            ),
            other => {
                let message =
                    format!("unknown kind {other:?}; expected bearer, basic, api_key, hmac or oauth2");
                self.wrong("auth.kind", message);
                return None;
            }
        };
        for (key, is_given) in given {
            match (is_given, needed.contains(&key)) {
                (true, false) if !optional.contains(&key) => {
                    let message = format!("not a key of kind {kind:?}, which takes {}", needed.join(" and "));
                    self.wrong(&format!("auth.{key}"), message);
                }
                (false, true) => self.wrong("auth", format!("kind {kind:?} needs the key {key}")),
                (true, _) | (false, false) => {}
            }
        }
        match kind.as_str() {
            "bearer" => {
                let scheme = scheme.unwrap_or_else(|| "Bearer".to_owned());
                if HeaderName::from_bytes(scheme.as_bytes()).is_err() {
                    self.wrong(
                        "auth.scheme",
                        "not a word that can stand before a token; write \"Token\", say",
                    );
                }
                Some(Auth::Bearer { token: token?, scheme })
            }
            "basic" => {
                let username = username?;
                if username.contains(':') || username.chars().any(char::is_control) {
                    self.wrong("auth.username", "must not contain a colon or control characters");
                }
                Some(Auth::Basic { username, password: password? })
            }
            "hmac" => Some(Auth::Hmac { key: key?, secret: secret? }),
            "oauth2" => {
                let own = client_secret.clone();
                let raw = RawOauth {
                    token_url,
                    client_id,
                    client_secret,
                    scope,
                    audience,
                    style,
                    username,
                    password,
                };
                let settings = raw.check(&mut |key, message| self.wrong(&format!("auth.{key}"), message));
                Some(Auth::Oauth { settings: Box::new(settings?), client_secret: own? })
            }
            _ => {
                let (name, value) = (header?, value?);
                let known = HeaderName::from_bytes(name.as_bytes()).ok();
                let header = known
                    .filter(|header| !matches!(header.as_str(), "host" | "content-length" | "connection"));
                if header.is_none() {
                    let message = format!("{name:?} cannot carry a key; expected the like of \"X-Api-Key\"");
                    self.wrong("auth.header", message);
                }
                Some(Auth::ApiKey { header: header?, value })
            }
        }
    }
}
