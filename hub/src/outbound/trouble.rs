//! Why a server could not be reached, for whoever named its URL: no address, and nothing of what the server sent.

use rustls::{CertificateError, Error as Tls};
use std::{error::Error, io};

/// What the server did, to follow its name in a sentence.
#[must_use]
pub fn of(error: &(dyn Error + 'static)) -> &'static str {
    causes(error).find_map(known).unwrap_or("could not be reached")
}

fn known(cause: &(dyn Error + 'static)) -> Option<&'static str> {
    if let Some(tls) = cause.downcast_ref::<Tls>() {
        return of_tls(tls);
    }
    if let Some(http) = cause.downcast_ref::<hyper::Error>() {
        return match http {
            http if http.is_parse() => Some("did not answer in HTTP"),
            http if http.is_incomplete_message() => Some("ended the connection without an answer"),
            _ => None,
        };
    }
    match cause.downcast_ref::<io::Error>()?.kind() {
        io::ErrorKind::ConnectionRefused => Some("refused the connection"),
        _ => None,
    }
}

fn of_tls(error: &Tls) -> Option<&'static str> {
    match error {
        Tls::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Some("showed a certificate that is not for the name in the URL"),
        Tls::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => Some("showed a certificate that has expired or is not valid yet"),
        Tls::InvalidCertificate(_) => Some(
            "showed a certificate that the hub does not trust: its issuer is unknown to the hub's system, or a \
             certificate in between is missing",
        ),
        Tls::InvalidMessage(_) | Tls::InappropriateMessage { .. } => {
            Some("did not answer in TLS: its port may be one for http://")
        }
        _ => None,
    }
}

/// The causes, outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| cause(*error))
}

fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>() {
        // An io::Error's `source` leaves out the error it wraps.
        Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::{Outbound, Rules, read};
    use std::net::SocketAddr;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    async fn asked(scheme: &str, at: SocketAddr) -> &'static str {
        let allow = vec!["127.0.0.0/8".parse().unwrap()];
        let outbound = Outbound::new(Rules { allow, ..Rules::default() });
        let url = read(&format!("{scheme}://localhost:{}/", at.port())).unwrap();
        let request = outbound.request(http::Method::POST, &url).await.unwrap();
        of(&request.send().await.unwrap_err())
    }

    /// A server that says this to everybody.
    async fn saying(text: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _ = socket.read(&mut [0; 1024]).await;
                let _ = socket.write_all(text).await;
            }
        });
        at
    }

    #[tokio::test]
    async fn what_a_server_did_is_told() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(asked("http", nobody).await, "refused the connection");
        assert_eq!(asked("http", saying(b"220 ftp ready\r\n").await).await, "did not answer in HTTP");
        assert_eq!(asked("http", saying(b"").await).await, "ended the connection without an answer");
        let plain = saying(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        assert_eq!(asked("https", plain).await, "did not answer in TLS: its port may be one for http://");

        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        std::fs::write(&certificate, own.cert.pem()).unwrap();
        std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
        let acceptor = crate::server::tls(&certificate, &key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let _ = acceptor.accept(socket).await;
            }
        });
        let said = asked("https", at).await;
        assert!(said.starts_with("showed a certificate that the hub does not trust"), "{said}");
    }

    #[test]
    fn certificates_are_wrong_in_several_ways() {
        for (wrong, says) in [
            (CertificateError::NotValidForName, "not for the name"),
            (CertificateError::Expired, "has expired"),
            (CertificateError::UnknownIssuer, "does not trust"),
        ] {
            let error = io::Error::other(Tls::InvalidCertificate(wrong));
            assert!(of(&error).contains(says), "{}", of(&error));
        }
        assert_eq!(of(&io::Error::other("10.0.0.1: anything")), "could not be reached");
    }
}
