//! TLS towards the hub: the system's roots, and one's own.

use crate::Failure;
use passerelle_connectors::trust;
use rustls::{ClientConfig, RootCertStore, crypto::CryptoProvider};
use std::{path::Path, sync::Arc};
use url::Url;

/// The configuration for a hub; a hub in plain HTTP needs no roots.
///
/// # Errors
/// A usage failure if the CA file cannot be used, or no root is known.
pub(super) fn config(hub: &Url, ca_file: Option<&Path>) -> Result<ClientConfig, Failure> {
    let provider: Arc<CryptoProvider> = rustls::crypto::aws_lc_rs::default_provider().into();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Failure::usage(format!("TLS: {e}")))?;
    if hub.scheme() != "https" {
        return Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    }
    let named = ca_file.map(trust::certificates).transpose();
    let named = named.map_err(|e| Failure::usage(format!("--ca-file: {e}")))?.unwrap_or_default();
    let verifier = trust::verifier(named, provider).map_err(|e| {
        Failure::usage(format!("{e}; install the system's CA certificates or give --ca-file"))
    })?;
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
