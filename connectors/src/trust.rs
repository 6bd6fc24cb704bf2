//! Whose TLS certificates are trusted: those that the system's roots or the certificates of a `ca_file` vouch for, and
//! those that stand in the `ca_file` themselves.
//!
//! A server in the house often shows a certificate that it has signed for itself, and that says of itself that it is a
//! CA, as `openssl req -x509` makes them. The library takes no CA's certificate for a server's (RFC 5280 §4.2.1.9), not even
//! when exactly that one is named. Whoever names it means it: it is good for the names in it, as long as it is valid.

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use std::{io::BufReader, path::Path, sync::Arc};

/// Trusts what the system trusts, and what is named.
///
/// # Errors
/// If there is no root at all, or one that is named cannot be read.
pub fn verifier(
    named: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let inner = rustls_platform_verifier::Verifier::new_with_extra_roots(named.clone(), provider)?;
    Ok(Arc::new(Trust { inner, named }))
}

/// The certificates of a PEM file: one at least.
///
/// # Errors
/// The file and what is wrong with it.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |what: &dyn std::fmt::Display| {
        format!("{}: {what}; expected a PEM file of certificates", file.display())
    };
    let opened = passerelle_config::open_file(file).map_err(|e| wrong(&e))?;
    let found = CertificateDer::pem_reader_iter(BufReader::new(opened))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| wrong(&e))?;
    if found.is_empty() { Err(wrong(&"no certificate in it")) } else { Ok(found) }
}

#[derive(Debug)]
struct Trust {
    inner: rustls_platform_verifier::Verifier,
    named: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Trust {
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
        match verified {
            Err(Error::InvalidCertificate(wrong))
                if lacks_an_issuer(&wrong) && self.named.contains(end_entity) =>
            {
                // Its times were judged before that, its name was not.
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
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

/// Whether nothing is wrong with a certificate but who issued it.
fn lacks_an_issuer(wrong: &CertificateError) -> bool {
    match wrong {
        CertificateError::UnknownIssuer => true,
        CertificateError::Other(OtherError(error)) => is_ca_used_as_server(error.as_ref()),
        _ => false,
    }
}

/// Whether it is that of a CA.
#[must_use]
pub fn is_ca_used_as_server(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

    struct Made {
        params: CertificateParams,
        key: KeyPair,
        der: CertificateDer<'static>,
    }

    /// As `openssl req -x509` makes it: self-signed, and a CA.
    fn own(name: &str, until: i32) -> Made {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Made { params, key, der }
    }

    /// Issued by `issuer`, for a server.
    fn issued(name: &str, issuer: &Made) -> CertificateDer<'static> {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let issuer = Issuer::from_params(&issuer.params, &issuer.key);
        params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone()
    }

    fn verify(
        named: &[&CertificateDer<'static>],
        shown: &CertificateDer<'_>,
    ) -> Result<(), CertificateError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = verifier(named.iter().copied().cloned().collect(), provider).unwrap();
        let name = "erp.intra".try_into().unwrap();
        match verifier.verify_server_cert(shown, &[], &name, &[], UnixTime::now()) {
            Ok(_) => Ok(()),
            Err(Error::InvalidCertificate(wrong)) => Err(wrong),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_certificate_that_is_named_is_good_for_its_names_while_it_is_valid() {
        let good = own("erp.intra", 4000);
        assert_eq!(verify(&[&good.der], &good.der), Ok(()));
        let other_name = own("crm.intra", 4000);
        let refused = verify(&[&other_name.der], &other_name.der).unwrap_err();
        assert!(matches!(refused, CertificateError::NotValidForNameContext { .. }), "{refused:?}");
        let over = own("erp.intra", 2020);
        let refused = verify(&[&over.der], &over.der).unwrap_err();
        assert!(matches!(refused, CertificateError::ExpiredContext { .. }), "{refused:?}");
    }

    #[test]
    fn one_that_is_not_named_is_refused_whatever_it_says_of_itself() {
        let (named, foreign) = (own("erp.intra", 4000), own("erp.intra", 4000));
        for others in [&[][..], &[&named.der]] {
            let refused = verify(others, &foreign.der).unwrap_err();
            let CertificateError::Other(OtherError(error)) = &refused else { panic!("{refused:?}") };
            assert!(is_ca_used_as_server(error.as_ref()), "{refused:?}");
        }
        let leaf = issued("erp.intra", &foreign);
        assert!(verify(&[&named.der], &leaf).is_err());
    }

    #[test]
    fn what_a_named_authority_issued_is_good_and_so_is_a_servers_own_certificate_by_itself() {
        let authority = own("authority", 4000);
        let leaf = issued("erp.intra", &authority);
        assert_eq!(verify(&[&authority.der], &leaf), Ok(()));
        assert_eq!(verify(&[&leaf], &leaf), Ok(()), "its issuer need not be known");
        assert_eq!(verify(&[], &leaf), Err(CertificateError::UnknownIssuer));
        let elsewhere = issued("crm.intra", &authority);
        let refused = verify(&[&elsewhere], &elsewhere).unwrap_err();
        assert!(matches!(refused, CertificateError::NotValidForNameContext { .. }), "{refused:?}");
    }
}
