//! TLS towards the hub: the system's roots plus the operator's `ca_file`, TLS 1.2 and 1.3, HTTP/1.1 only.
//!
//! Companies often inspect TLS. When a certificate is not trusted, its issuer is named, so that the operator knows
//! whose CA to put into `ca_file`.

use crate::exit::Stop;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// Remembers who issued the last certificate that was not trusted.
#[derive(Debug, Default)]
pub struct Issuers(Mutex<Option<String>>);

impl Issuers {
    /// Adds the issuer to an error about an untrusted certificate.
    pub fn explain(&self, error: &str) -> String {
        let issuer = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match issuer {
            Some(issuer) if error.contains("UnknownIssuer") => format!(
                "{error}: the certificate was issued by \"{issuer}\", which this machine does not trust; if that is your \
                 company's TLS inspection or your own CA, put its CA certificate into a file and set hub.ca_file"
            ),
            _ => error.to_owned(),
        }
    }
}

/// The settings of TLS, shared by tunnel and HTTPS calls.
///
/// # Errors
/// If `ca_file` cannot be used, or there is no root at all although `needed`.
pub fn client_config(
    ca_file: Option<&Path>,
    needed: bool,
) -> Result<(Arc<ClientConfig>, Arc<Issuers>), Stop> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let extra = ca_file.map(read_roots).transpose()?.unwrap_or_default();
    let inner: Arc<dyn ServerCertVerifier> = match rustls_platform_verifier::Verifier::new_with_extra_roots(
        extra,
        Arc::clone(&provider),
    ) {
        Ok(verifier) => Arc::new(verifier),
        Err(e) if needed => {
            return Err(Stop::Configuration(format!(
                "hub.ca_file: no usable CA certificates ({e}): install the system's (Debian: ca-certificates) or \
                     name a PEM file"
            )));
        }
        Err(_) => no_roots(&provider)?,
    };
    let issuers = Arc::new(Issuers::default());
    let verifier = Arc::new(Naming { inner, issuers: Arc::clone(&issuers) });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Stop::Bug(format!("TLS: {e}")))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(config), issuers))
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

fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, Stop> {
    let wrong = |e: &dyn std::fmt::Display| {
        Stop::Configuration(format!("hub.ca_file: {}: {e}: expected certificates in PEM", path.display()))
    };
    let roots: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|e| wrong(&e))?
        .collect::<Result<_, _>>()
        .map_err(|e| wrong(&e))?;
    if roots.is_empty() { Err(wrong(&"no certificate in it")) } else { Ok(roots) }
}

/// Verifies as `inner` does, and remembers who issued what it does not trust.
#[derive(Debug)]
struct Naming {
    inner: Arc<dyn ServerCertVerifier>,
    issuers: Arc<Issuers>,
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
        let verified =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if let Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) = &verified {
            // The last certificate that was sent is the nearest to the missing root.
            let issuer = issuer(intermediates.last().unwrap_or(end_entity));
            *self.issuers.0.lock().unwrap_or_else(PoisonError::into_inner) = issuer;
        }
        verified
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

/// The issuer's common name, or its organisation, of a certificate (RFC 5280 §4.1), for a message.
fn issuer(certificate: &[u8]) -> Option<String> {
    const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    const ORGANISATION: &[u8] = &[0x55, 0x04, 0x0a];
    let (_, certificate, _) = element(certificate)?;
    let (_, mut fields, _) = element(certificate)?;
    // Version (tagged, optional), serial number, signature algorithm, then the issuer.
    if fields.first() == Some(&0xa0) {
        (_, _, fields) = element(fields)?;
    }
    for _ in 0..2 {
        (_, _, fields) = element(fields)?;
    }
    let (_, mut sets, _) = element(fields)?;
    let mut organisation = None;
    while !sets.is_empty() {
        let (_, mut attributes, rest) = element(sets)?;
        sets = rest;
        while !attributes.is_empty() {
            let (_, attribute, rest) = element(attributes)?;
            attributes = rest;
            let (_, kind, value) = element(attribute)?;
            let (_, text, _) = element(value)?;
            let text =
                || String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(128).collect();
            if kind == COMMON_NAME {
                return Some(text());
            } else if kind == ORGANISATION {
                organisation = Some(text());
            }
        }
    }
    organisation
}

/// Splits the first DER element off: tag, content, and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |n, digit| n << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_certificates_have_no_issuer() {
        for bad in [
            &b""[..],
            b"\x30",
            b"\x30\x82",
            b"\x30\x03\x30\x01",
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
            &[0; 64],
        ] {
            assert_eq!(issuer(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_issuer_is_named_by_common_name() {
        // Certificate { tbs { [0] version, serial, algorithm, issuer { O=Acme, CN=Inspect } } }
        fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
            let content = parts.concat();
            [&[tag, u8::try_from(content.len()).unwrap()], content.as_slice()].concat()
        }
        let attribute = |kind: u8, text: &str| {
            der(0x31, &[&der(0x30, &[&der(0x06, &[&[0x55, 0x04, kind]]), &der(0x0c, &[text.as_bytes()])])])
        };
        let name = der(0x30, &[&attribute(0x0a, "Acme"), &attribute(0x03, "Inspect")]);
        let serial = der(0x02, &[&[1]]);
        let algorithm = der(0x30, &[]);
        let tbs = der(0x30, &[&der(0xa0, &[&der(0x02, &[&[2]])]), &serial, &algorithm, &name]);
        assert_eq!(issuer(&der(0x30, &[&tbs])).as_deref(), Some("Inspect"));
    }

    #[test]
    fn a_ca_file_without_certificates_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let error = client_config(Some(&path), true).unwrap_err().to_string();
        assert!(error.contains("hub.ca_file") && error.contains("ca.pem"), "{error}");
        std::fs::write(&path, "nothing here").unwrap();
        let error = client_config(Some(&path), true).unwrap_err().to_string();
        assert!(error.contains("expected certificates in PEM"), "{error}");
    }
}
