//! Builds a resource's HTTP client: TLS roots, proxy, pool, and the credentials it sends.

use super::{
    auth::Auth,
    oauth::{Token, Tokens},
    settings::{Settings, Version},
    sign::Signer,
};
use crate::{
    BuildError, Failure, address,
    apart::{Client, Lane},
    connecting::Limited,
    hiding::Secrets,
    trust,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, header::AUTHORIZATION};
use passerelle_config::{Secret, SecretRef};
use rustls::{ClientConfig, RootCertStore, crypto::CryptoProvider};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{path::Path, sync::Arc, time::Duration};

const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// The most header fields of an answer over HTTP/1.1; the library's hundred are legal and few.
pub(crate) const MAX_HEADERS: usize = 1000;
/// How often an HTTP/2 connection in use is tried, and how long its peer may take to answer that.
const HTTP2_PING: Duration = Duration::from_secs(20);
const HTTP2_PONG: Duration = Duration::from_secs(60);

/// Builds a client that speaks this version, with connections that `lane` serves.
///
/// # Errors
/// If a secret of the proxy cannot be used.
pub(super) fn client(
    settings: &Settings,
    base: &Path,
    mut tls: ClientConfig,
    version: Version,
    lane: &Lane,
) -> Result<Client, BuildError> {
    let protocols: &[&[u8]] = match version {
        Version::Auto => &[b"h2", b"http/1.1"],
        Version::One => &[b"http/1.1"],
        Version::Two => &[b"h2"],
    };
    tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("passerelle-agent/", env!("CARGO_PKG_VERSION")))
        // A resource's requests ignore HTTPS_PROXY and the like; only its own setting counts.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(settings.timeouts.connect)
        .connector_layer(Limited)
        .pool_max_idle_per_host(settings.pool.max_idle)
        .pool_idle_timeout(settings.pool.idle)
        .tcp_nodelay(true)
        .tcp_keepalive(TCP_KEEPALIVE)
        // A target that is slow to take what is sent has the attempt's own time, not the library's thirty seconds.
        .tcp_user_timeout(None)
        .http1_max_headers(MAX_HEADERS)
        // A connection over which many requests go at once is left when its peer does not answer to this either.
        .http2_keep_alive_interval(HTTP2_PING)
        .http2_keep_alive_timeout(HTTP2_PONG)
        .dns_resolver(address::resolver())
        .tls_backend_preconfigured(tls);
    builder = match version {
        Version::Auto => builder,
        Version::One => builder.http1_only(),
        Version::Two => builder.http2_prior_knowledge(),
    };
    if let Some(proxy) = &settings.proxy {
        let mut to = reqwest::Proxy::all(proxy.url.as_str())
            .map_err(|e| BuildError::at("proxy.url", e.without_url()))?;
        if let (Some(username), Some(password)) = (&proxy.username, &proxy.password) {
            to = to.basic_auth(username, read("proxy.password", password, base)?.expose());
        }
        builder = builder.proxy(to);
    }
    builder.build().map(|client| Client::new(client, lane)).map_err(|e| BuildError::at("url", e))
}

/// What the client speaks TLS with.
///
/// # Errors
/// If the CA file, the client's certificate or its key cannot be used.
pub(super) fn tls(settings: &Settings, base: &Path) -> Result<ClientConfig, BuildError> {
    let fetches_by_tls = matches!(&settings.auth, Some(Auth::Oauth(oauth)) if oauth.speaks_tls());
    let speaks_tls = settings.url.scheme() == "https"
        || fetches_by_tls
        || settings.proxy.as_ref().is_some_and(|proxy| proxy.url.scheme() == "https");
    let ca_file = settings.ca_file.as_ref().map(|file| base.join(file));
    let wrong = |(key, cause): (&str, String)| BuildError::at(key, cause);
    let client = match &settings.client {
        Some((cert, key)) => Some(client_certificate(&base.join(cert), key, base).map_err(wrong)?),
        None => None,
    };
    tls_with(speaks_tls, ca_file.as_deref(), &[], client).map_err(wrong)
}

/// A certificate with its chain, and its key.
pub(crate) type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Reads the certificate that is shown to a target, and its key.
///
/// # Errors
/// The key of the configuration that is to blame, and why.
pub(crate) fn client_certificate(
    cert: &Path,
    key: &SecretRef,
    base: &Path,
) -> Result<ClientCertificate, (&'static str, String)> {
    let chain = trust::certificates(cert).map_err(|cause| ("client_cert", cause))?;
    let pem = key.read(base).map_err(|e| ("client_key", e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(pem.expose().as_bytes()).map_err(|_| {
        // Not the parser's own words: they could quote the key.
        let message = "not a private key in PEM (BEGIN PRIVATE KEY): write one without a passphrase";
        ("client_key", message.to_owned())
    })?;
    Ok((chain, key))
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
    tls_with(speaks_tls, ca_file, protocols, None)
}

/// The same, showing a certificate to a target that asks for one.
///
/// # Errors
/// The key that is to blame, and why.
pub(crate) fn tls_with(
    speaks_tls: bool,
    ca_file: Option<&Path>,
    protocols: &[&[u8]],
    client: Option<ClientCertificate>,
) -> Result<ClientConfig, (&'static str, String)> {
    let provider: Arc<CryptoProvider> = rustls::crypto::aws_lc_rs::default_provider().into();
    let versions = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| ("url", e.to_string()))?;
    if !speaks_tls {
        // Never used: the client wants a configuration, and the system's roots need not be there.
        return Ok(versions.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    }
    let named = ca_file.map(trust::certificates).transpose().map_err(|cause| ("ca_file", cause))?;
    let verifier = trust::verifier(named.unwrap_or_default(), provider).map_err(|e| {
        let key = if ca_file.is_some() { "ca_file" } else { "url" };
        let hint = "install the system's CA certificates or name the target's CA in ca_file";
        (key, format!("{e}; {hint}"))
    })?;
    let builder = versions.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|e| {
            let hint = "name the certificate that belongs to client_key";
            ("client_cert", format!("does not go with client_key ({e}); {hint}"))
        })?,
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
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

    /// Another header in the place of one whose token the application did not take, if there is any use in it.
    ///
    /// # Errors
    /// If there is no other token.
    pub(super) async fn instead_of(&self, refused: &Token) -> Result<Option<Shown>, Failure> {
        match self {
            Self::None | Self::Fixed(..) => Ok(None),
            Self::Oauth(tokens) => Ok(tokens.instead_of(refused).await?.map(Shown::from)),
        }
    }

    /// The application did not take the other token either.
    pub(super) fn refused_again(&self, token: &Token) {
        if let Self::Oauth(tokens) = self {
            tokens.refused_again(token);
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
    client: &Client,
) -> Result<Credentials, BuildError> {
    let Some(auth) = &settings.auth else {
        return Ok(Credentials::None);
    };
    let (name, key, value) = match auth {
        Auth::Bearer { token } => {
            let secret = read("auth.token", token, base)?;
            (AUTHORIZATION, "auth.token", HeaderValue::from_str(&format!("Bearer {}", secret.expose())))
        }
        Auth::Basic { username, password } => {
            let secret = read("auth.password", password, base)?;
            let pair = STANDARD.encode(format!("{username}:{}", secret.expose()));
            (AUTHORIZATION, "auth.password", HeaderValue::from_str(&format!("Basic {pair}")))
        }
        Auth::ApiKey { header, value } => {
            let secret = read("auth.value", value, base)?;
            (header.clone(), "auth.value", HeaderValue::from_str(secret.expose()))
        }
        Auth::Oauth(oauth) => {
            let tokens = Tokens::build(oauth, client.clone(), base);
            return tokens
                .map(Credentials::Oauth)
                .map_err(|(key, cause)| BuildError::at(format!("auth.{key}"), cause));
        }
    };
    let mut value = value.map_err(|_| {
        BuildError::at(key, "the secret contains a line end or another character that no header may carry")
    })?;
    value.set_sensitive(true);
    Ok(Credentials::Fixed(name, value))
}

/// All that an answer could repeat of what the application, its proxy or its token server is shown.
///
/// # Errors
/// If a secret cannot be read.
pub(super) fn secrets(settings: &Settings, base: &Path) -> Result<Secrets, BuildError> {
    let mut secrets = Secrets::default();
    match &settings.auth {
        None => {}
        Some(Auth::Bearer { token }) => secrets.add(read("auth.token", token, base)?.expose()),
        Some(Auth::Basic { username, password }) => {
            secrets.add_basic(username, read("auth.password", password, base)?.expose());
        }
        Some(Auth::ApiKey { value, .. }) => secrets.add(read("auth.value", value, base)?.expose()),
        Some(Auth::Oauth(oauth)) => oauth
            .secrets(base, &mut secrets)
            .map_err(|(key, cause)| BuildError::at(format!("auth.{key}"), cause))?,
    }
    if let Some(proxy) = &settings.proxy
        && let (Some(username), Some(password)) = (&proxy.username, &proxy.password)
    {
        secrets.add_basic(username, read("proxy.password", password, base)?.expose());
    }
    for secret in &settings.sign {
        secrets.add(read("sign.secret", secret, base)?.expose());
    }
    Ok(secrets)
}

/// What signs each request, if anything does.
///
/// # Errors
/// If a secret cannot be read or is not one of the specification.
pub(super) fn signer(settings: &Settings, base: &Path) -> Result<Option<Signer>, BuildError> {
    if settings.sign.is_empty() {
        return Ok(None);
    }
    let secrets: Vec<Secret> =
        settings.sign.iter().map(|secret| read("sign.secret", secret, base)).collect::<Result<_, _>>()?;
    let signer = Signer::new(secrets.iter().map(Secret::expose));
    signer.map(Some).map_err(|cause| BuildError::at("sign.secret", cause))
}

fn read(key: &str, secret: &SecretRef, base: &Path) -> Result<Secret, BuildError> {
    secret.read(base).map_err(|e| BuildError::at(key, e))
}
