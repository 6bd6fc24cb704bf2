//! Builds a resource's way to its target: TLS roots, proxy, pool, and the header that authenticates each request.

use super::{
    exchange::{Exchange, credentials::Credentials},
    settings::{Auth, Settings},
};
use crate::{
    BuildError, address,
    apart::{Client, Lane},
    connecting::Limited,
    hiding::Secrets,
    http::{
        client::{MAX_HEADERS, tls_of},
        oauth::{OauthSettings, Tokens},
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, header::AUTHORIZATION};
use passerelle_config::{Secret, SecretRef};
use std::{path::Path, sync::atomic::AtomicI64, time::Duration};

/// Connections that wait to be used again: more than a resource has attempts at once.
const POOL_MAX_IDLE: usize = 32;
/// Shorter than common servers keep them.
const POOL_IDLE: Duration = Duration::from_secs(30);
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// How often an HTTP/2 connection in use is tried, and how long its peer may take to answer that.
const HTTP2_PING: Duration = Duration::from_secs(20);
const HTTP2_PONG: Duration = Duration::from_secs(60);

/// The way to the target.
///
/// # Errors
/// If a secret or the CA file cannot be used.
pub(super) fn exchange(settings: &Settings, base: &Path) -> Result<Exchange, BuildError> {
    let oauth = match &settings.auth {
        Some(Auth::Oauth { settings, .. }) => Some(settings.as_ref()),
        _ => None,
    };
    let speaks_tls = settings.url.scheme() == "https"
        || oauth.is_some_and(OauthSettings::speaks_tls)
        || settings.proxy.as_ref().is_some_and(|proxy| proxy.url.scheme() == "https");
    let ca_file = settings.ca_file.as_ref().map(|file| base.join(file));
    let tls = tls_of(speaks_tls, ca_file.as_deref(), &[b"h2", b"http/1.1"])
        .map_err(|(key, cause)| BuildError::at(key, cause))?;
    let mut builder = reqwest::Client::builder()
        .http1_max_headers(MAX_HEADERS)
        .user_agent(concat!("passerelle-agent/", env!("CARGO_PKG_VERSION")))
        // A resource's requests ignore HTTPS_PROXY and the like; only its own setting counts.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(settings.connect_timeout)
        .connector_layer(Limited)
        .pool_max_idle_per_host(POOL_MAX_IDLE)
        .pool_idle_timeout(POOL_IDLE)
        .tcp_nodelay(true)
        .tcp_keepalive(TCP_KEEPALIVE)
        // A target that is slow to take what is sent has the attempt's own time, not the library's thirty seconds.
        .tcp_user_timeout(None)
        // A connection over which many requests go at once is left when its peer does not answer to this either.
        .http2_keep_alive_interval(HTTP2_PING)
        .http2_keep_alive_timeout(HTTP2_PONG)
        .dns_resolver(address::resolver())
        .tls_backend_preconfigured(tls);
    if let Some(proxy) = &settings.proxy {
        let mut to = reqwest::Proxy::all(proxy.url.as_str())
            .map_err(|e| BuildError::at("proxy.url", e.without_url()))?;
        if let (Some(username), Some(password)) = (&proxy.username, &proxy.password) {
            to = to.basic_auth(username, read("proxy.password", password, base)?.expose());
        }
        builder = builder.proxy(to);
    }
    let client = builder.build().map_err(|e| BuildError::at("url", e))?;
    let client = Client::new(client, &Lane::default());
    let tokens = oauth.map(|oauth| Tokens::build(oauth, client.clone(), base)).transpose();
    let tokens = tokens.map_err(|(key, cause)| BuildError::at(format!("auth.{key}"), cause))?;
    Ok(Exchange {
        base: settings.url.clone(),
        client,
        credentials: header(settings, base)?,
        tokens,
        trust: Credentials::default(),
        secrets: secrets(settings, base)?,
        max_response: usize::try_from(settings.max_response).unwrap_or(usize::MAX),
        ahead_ms: AtomicI64::new(0),
    })
}

/// The header that authenticates each request; marked sensitive, so no log shows its value. A dialect that logs in, or
/// signs, makes its own of [`secret`] and sends bare requests.
fn header(settings: &Settings, base: &Path) -> Result<Option<(HeaderName, HeaderValue)>, BuildError> {
    let Some(auth) = &settings.auth else { return Ok(None) };
    let (key, _) = auth.secret();
    let secret = secret(settings, base)?;
    let secret = secret.as_ref().map(Secret::expose).unwrap_or_default();
    let (name, value) = match auth {
        Auth::Bearer { scheme, .. } => (AUTHORIZATION, HeaderValue::from_str(&format!("{scheme} {secret}"))),
        Auth::Basic { username, .. } => {
            let pair = STANDARD.encode(format!("{username}:{secret}"));
            (AUTHORIZATION, HeaderValue::from_str(&format!("Basic {pair}")))
        }
        Auth::ApiKey { header, .. } => (header.clone(), HeaderValue::from_str(secret)),
        Auth::Hmac { .. } | Auth::Oauth { .. } => return Ok(None),
    };
    let mut value = value.map_err(|_| {
        BuildError::at(key, "the secret contains a line end or another character that no header may carry")
    })?;
    value.set_sensitive(true);
    Ok(Some((name, value)))
}

/// All that a target could repeat of what it, its proxy or its token server is shown.
fn secrets(settings: &Settings, base: &Path) -> Result<Secrets, BuildError> {
    let mut secrets = Secrets::default();
    if let Some(secret) = secret(settings, base)? {
        match &settings.auth {
            Some(Auth::Basic { username, .. }) => secrets.add_basic(username, secret.expose()),
            _ => secrets.add(secret.expose()),
        }
    }
    if let Some(Auth::Oauth { settings: oauth, .. }) = &settings.auth {
        oauth
            .secrets(base, &mut secrets)
            .map_err(|(key, cause)| BuildError::at(format!("auth.{key}"), cause))?;
    }
    if let Some(proxy) = &settings.proxy
        && let (Some(username), Some(password)) = (&proxy.username, &proxy.password)
    {
        secrets.add_basic(username, read("proxy.password", password, base)?.expose());
    }
    Ok(secrets)
}

/// The secret of the resource's `auth`.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn secret(settings: &Settings, base: &Path) -> Result<Option<Secret>, BuildError> {
    let secret = settings.auth.as_ref().map(Auth::secret);
    secret.map(|(key, secret)| read(key, secret, base)).transpose()
}

pub(super) fn read(key: &str, secret: &SecretRef, base: &Path) -> Result<Secret, BuildError> {
    secret.read(base).map_err(|e| BuildError::at(key, e))
}
