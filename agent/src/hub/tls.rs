//! TLS towards the hub: the system's roots plus the operator's `ca_file`, TLS 1.2 and 1.3, HTTP/1.1 only.
//!
//! Companies often inspect TLS. When a certificate is not trusted, its issuer is named, so that the operator knows
//! whose CA to put into `ca_file`. Only ciphers with forward secrecy and authentication are offered: those of TLS 1.3,
//! and of TLS 1.2 the ECDHE ones with AES-GCM or ChaCha20-Poly1305.

use super::{certificate::Facts, words::Untrusted};
use crate::exit::Stop;
use passerelle_config::HubSection;
use passerelle_connectors::trust::{self, is_ca_used_as_server};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use std::{path::Path, sync::Arc};

/// The settings of TLS, shared by tunnel and HTTPS calls.
///
/// # Errors
/// If a file that `[hub]` names cannot be used, or there is no root at all although the hub is on https.
pub fn client_config(section: &HubSection, base: &Path) -> Result<Arc<ClientConfig>, Stop> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let extra =
        section.ca_file.as_ref().map(|file| certificates("hub.ca_file", &base.join(file))).transpose()?;
    let inner: Arc<dyn ServerCertVerifier> = match trust::verifier(
        extra.unwrap_or_default(),
        Arc::clone(&provider),
    ) {
        Ok(verifier) => verifier,
        Err(e) if section.url.scheme() == "https" => {
            return Err(Stop::Configuration(format!(
                "hub.ca_file: no usable CA certificates ({e}): install the system's (Debian: ca-certificates) or \
                     name a PEM file"
            )));
        }
        Err(_) => no_roots(&provider)?,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Stop::Bug(format!("TLS: {e}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Naming { inner }));
    let mut config = match client_certificate(section, base)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|e| {
            let hint = "name the certificate that belongs to hub.client_key, and its key in PEM";
            Stop::Configuration(format!("hub.client_cert: it does not go with hub.client_key ({e}): {hint}"))
        })?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A verifier that knows the system's roots alone, to tell what is trusted only through `ca_file`.
pub fn system_verifier() -> Option<impl ServerCertVerifier> {
    rustls_platform_verifier::Verifier::new(Arc::new(aws_lc_rs::default_provider())).ok()
}

type CertifiedKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The certificate that the agent shows where one is asked for, with its key.
fn client_certificate(section: &HubSection, base: &Path) -> Result<Option<CertifiedKey>, Stop> {
    let (Some(file), Some(key)) = (&section.client_cert, &section.client_key) else { return Ok(None) };
    let chain = certificates("hub.client_cert", &base.join(file))?;
    let pem = key.read(base).map_err(|e| Stop::Configuration(format!("hub.client_key: {e}")))?;
    let key = PrivateKeyDer::from_pem_slice(pem.expose().as_bytes()).map_err(|_| {
        // Not the parser's own words: they could quote the key.
        Stop::Configuration(
            "hub.client_key: not a private key in PEM (BEGIN PRIVATE KEY): write one without a passphrase"
                .to_owned(),
        )
    })?;
    Ok(Some((chain, key)))
}

/// A verifier that trusts nobody, for a hub on plain HTTP on this machine.
fn no_roots(provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, Stop> {
    let mut roots = RootCertStore::empty();
    roots.extend(std::iter::empty());
    match WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build() {
        Ok(verifier) => Ok(verifier),
        Err(e) => Err(Stop::Configuration(format!(
            "no CA certificates on this machine ({e}): install them (Debian: ca-certificates)"
        ))),
    }
}

/// The certificates of a PEM file that the configuration names.
fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Stop> {
    trust::certificates(path).map_err(|e| Stop::Configuration(format!("{key}: {e}")))
}

/// Verifies as `inner` does, and names who issued what it does not trust.
#[derive(Debug)]
struct Naming {
    inner: Arc<dyn ServerCertVerifier>,
}

impl ServerCertVerifier for Naming {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // A signature that does not fit: a CA of the right name, but with another key. The last certificate that was
            // sent is the nearest to the missing root.
            Err(Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => Err(not_trusted(intermediates.last().unwrap_or(end_entity))),
            // One that its server has signed for itself, and that is not named.
            Err(Error::InvalidCertificate(CertificateError::Other(OtherError(error))))
                if is_ca_used_as_server(error.as_ref()) =>
            {
                Err(not_trusted(end_entity))
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn not_trusted(nearest: &CertificateDer<'_>) -> Error {
    let issuer = Facts::read(nearest).map_or("an unreadable certificate".to_owned(), |facts| facts.issuer());
    CertificateError::Other(OtherError(Arc::new(Untrusted(issuer)))).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use passerelle_config::SecretRef;

    fn section(ca_file: Option<&str>, client: Option<(&str, &str)>) -> HubSection {
        HubSection {
            url: "https://hub.example.com".parse().unwrap(),
            enrolment_token: None,
            ca_file: ca_file.map(Into::into),
            client_cert: client.map(|(cert, _)| cert.into()),
            client_key: client.map(|(_, key)| SecretRef::File(key.into())),
            proxy: None,
        }
    }

    fn refusal(section: &HubSection, dir: &Path) -> String {
        client_config(section, dir).unwrap_err().to_string()
    }

    #[test]
    fn a_ca_file_without_certificates_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let section = section(Some("ca.pem"), None);
        let error = refusal(&section, dir.path());
        assert!(error.contains("hub.ca_file") && error.contains("ca.pem"), "{error}");
        std::fs::write(dir.path().join("ca.pem"), "nothing here").unwrap();
        let error = refusal(&section, dir.path());
        assert!(error.contains("expected a PEM file of certificates"), "{error}");
    }

    #[test]
    fn several_authorities_in_one_file_and_a_client_certificate_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let pair = || rcgen::generate_simple_self_signed(vec!["agent".to_owned()]).unwrap();
        let (one, two) = (pair(), pair());
        write("ca.pem", &format!("# ours\n{}\n{}", one.cert.pem(), two.cert.pem()));
        write("cert.pem", &one.cert.pem());
        write("key.pem", &one.signing_key.serialize_pem());
        write("other.pem", &two.signing_key.serialize_pem());
        client_config(&section(Some("ca.pem"), Some(("cert.pem", "key.pem"))), dir.path()).unwrap();
        let error = refusal(&section(None, Some(("cert.pem", "other.pem"))), dir.path());
        assert!(error.starts_with("hub.client_cert: it does not go with hub.client_key"), "{error}");
        write("key.pem", "-----BEGIN NONSENSE----- geheim");
        let error = refusal(&section(None, Some(("cert.pem", "key.pem"))), dir.path());
        assert!(
            error.starts_with("hub.client_key: not a private key") && !error.contains("geheim"),
            "{error}"
        );
    }
}
