//! Builds a resource's HTTP client: TLS roots, proxy, pool, and the credentials it sends.

use super::{
    oauth::{Token, Tokens},
    settings::{Auth, Settings},
};
use crate::{BuildError, Failure, address};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, header::AUTHORIZATION};
use passerelle_config::{Secret, SecretRef};
use rustls::{ClientConfig, RootCertStore, crypto::CryptoProvider};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use std::{path::Path, sync::Arc, time::Duration};

/// Idle connections kept for the next jobs: as many as an agent may have jobs at once, or they would be made anew under
/// load.
const POOL_MAX_IDLE: usize = 256;
/// Shorter than the keep-alive of common servers (nginx 75 s, Apache's longer ones, Kestrel 130 s), so that a request
/// seldom meets a connection that the server is just closing.
const POOL_IDLE: Duration = Duration::from_secs(30);
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// Builds the client.
///
/// # Errors
/// If a secret of the proxy cannot be used.
pub(super) fn client(
    settings: &Settings,
    base: &Path,
    tls: ClientConfig,
) -> Result<reqwest::Client, BuildError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("passerelle-agent/", env!("CARGO_PKG_VERSION")))
        // A resource's requests ignore HTTPS_PROXY and the like; only its own setting counts.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(settings.connect_timeout)
        .pool_max_idle_per_host(POOL_MAX_IDLE)
        .pool_idle_timeout(POOL_IDLE)
        .tcp_nodelay(true)
        .tcp_keepalive(TCP_KEEPALIVE)
        .dns_resolver(address::resolver())
        .tls_backend_preconfigured(tls);
    if let Some(proxy) = &settings.proxy {
        let mut to = reqwest::Proxy::all(proxy.url.as_str())
            .map_err(|e| failed(settings, "proxy.url", &e.without_url()))?;
        if let (Some(username), Some(password)) = (&proxy.username, &proxy.password) {
            to = to.basic_auth(username, read(settings, "proxy.password", password, base)?.expose());
        }
        builder = builder.proxy(to);
    }
    builder.build().map_err(|e| failed(settings, "url", &e))
}

/// What the client speaks TLS with.
///
/// # Errors
/// If the CA file cannot be used.
pub(super) fn tls(settings: &Settings, base: &Path) -> Result<ClientConfig, BuildError> {
    let speaks_tls = settings.url.scheme() == "https"
        || settings.proxy.as_ref().is_some_and(|proxy| proxy.url.scheme() == "https");
    let ca_file = settings.ca_file.as_ref().map(|file| base.join(file));
    tls_of(speaks_tls, ca_file.as_deref(), &[b"h2", b"http/1.1"])
        .map_err(|(key, cause)| failed(settings, key, &cause))
}

/// TLS by the system's roots and those of `ca_file`, offering these protocols.
///
/// # Errors
/// The key that is to blame, and why.
pub(crate) fn tls_of(
    speaks_tls: bool,
    ca_file: Option<&Path>,
    protocols: &[&[u8]],
) -> Result<ClientConfig, (&'static str, String)> {
    let provider: Arc<CryptoProvider> = rustls::crypto::aws_lc_rs::default_provider().into();
    let versions = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| ("url", e.to_string()))?;
    if !speaks_tls {
        // Never used: the client wants a configuration, and the system's roots need not be there.
        return Ok(versions.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    }
    let extra = ca_file.map(certificates).transpose().map_err(|cause| ("ca_file", cause))?;
    let verifier =
        rustls_platform_verifier::Verifier::new_with_extra_roots(extra.unwrap_or_default(), provider)
            .map_err(|e| {
                let key = if ca_file.is_some() { "ca_file" } else { "url" };
                let hint = "install the system's CA certificates or name the target's CA in ca_file";
                (key, format!("{e}; {hint}"))
            })?;
    let mut config =
        versions.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |what: &dyn std::fmt::Display| {
        format!("{}: {what}; expected a PEM file of certificates", file.display())
    };
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| wrong(&e))?;
    if certificates.is_empty() { Err(wrong(&"no certificate in it")) } else { Ok(certificates) }
}

/// What shows the application who asks.
pub(super) enum Credentials {
    None,
    /// The same header with each request; marked sensitive, so no log shows its value.
    Fixed(HeaderName, HeaderValue),
    /// A token that comes from a server and ends after a while.
    Oauth(Tokens),
}

/// A header with its value, and the token that it carries, if it is one that can be replaced.
pub(super) struct Shown {
    pub(super) name: HeaderName,
    pub(super) value: HeaderValue,
    pub(super) token: Option<Token>,
}

impl Credentials {
    /// The header for a request now.
    ///
    /// # Errors
    /// If there is no token; nothing was asked of the application.
    pub(super) async fn shown(&self) -> Result<Option<Shown>, Failure> {
        Ok(match self {
            Self::None => None,
            Self::Fixed(name, value) => Some(Shown { name: name.clone(), value: value.clone(), token: None }),
            Self::Oauth(tokens) => Some(tokens.current().await?.into()),
        })
    }

    /// The header that they fill.
    pub(super) fn header(&self) -> Option<&HeaderName> {
        match self {
            Self::None => None,
            Self::Fixed(name, _) => Some(name),
            Self::Oauth(_) => Some(&AUTHORIZATION),
        }
    }
}

impl From<Token> for Shown {
    fn from(token: Token) -> Self {
        Self { name: AUTHORIZATION, value: token.header.clone(), token: Some(token) }
    }
}

/// Reads what shows the application who asks. `client` fetches tokens.
///
/// # Errors
/// If a secret cannot be read, or cannot be sent in a header.
pub(super) fn credentials(
    settings: &Settings,
    base: &Path,
    client: &reqwest::Client,
) -> Result<Credentials, BuildError> {
    let Some(auth) = &settings.auth else {
        return Ok(Credentials::None);
    };
    let (name, key, value) = match auth {
        Auth::Bearer { token } => {
            let secret = read(settings, "auth.token", token, base)?;
            (AUTHORIZATION, "auth.token", HeaderValue::from_str(&format!("Bearer {}", secret.expose())))
        }
        Auth::Basic { username, password } => {
            let secret = read(settings, "auth.password", password, base)?;
            let pair = STANDARD.encode(format!("{username}:{}", secret.expose()));
            (AUTHORIZATION, "auth.password", HeaderValue::from_str(&format!("Basic {pair}")))
        }
        Auth::ApiKey { header, value } => {
            let secret = read(settings, "auth.value", value, base)?;
            (header.clone(), "auth.value", HeaderValue::from_str(secret.expose()))
        }
        Auth::Oauth(oauth) => {
            let tokens = Tokens::build(oauth, client.clone(), base);
            return tokens
                .map(Credentials::Oauth)
                .map_err(|(key, cause)| failed(settings, &format!("auth.{key}"), &cause));
        }
    };
    let mut value = value.map_err(|_| {
        failed(settings, key, &"the secret contains a line end or another character that no header may carry")
    })?;
    value.set_sensitive(true);
    Ok(Credentials::Fixed(name, value))
}

fn read(settings: &Settings, key: &str, secret: &SecretRef, base: &Path) -> Result<Secret, BuildError> {
    secret.read(base).map_err(|e| failed(settings, key, &e))
}

fn failed(settings: &Settings, key: &str, cause: &dyn std::fmt::Display) -> BuildError {
    BuildError(format!("resources.{}.{key}: {cause}", settings.resource))
}
