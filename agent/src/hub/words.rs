//! What can go wrong on the way to the hub, each in one sentence with what to do. `docs/network.md` lists them all; a
//! test holds the two together.

use jiff::Timestamp;
use passerelle_connectors::causes::{causes, find};
use rustls::{AlertDescription, CertificateError, Error as Tls, PeerIncompatible};
use std::{
    error::Error,
    io::{self, ErrorKind},
};

/// A cause that an operator can do something about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    // Names and TCP.
    #[error(
        "its name does not resolve ({cause}); check the name, and the DNS servers of this machine or container"
    )]
    Name { cause: String },
    #[error(
        "the connection was refused; check host and port, and that a firewall lets this machine out to it"
    )]
    ConnectionRefused,
    #[error("no answer within {seconds} s; a firewall may drop the packets without a word")]
    Silence { seconds: u64 },

    // The proxy's answer to CONNECT.
    #[error("it does not take the user name and the password of {source_key} (HTTP status 407); check them")]
    ProxyPassword { source_key: &'static str },
    #[error("it wants a user name and a password (HTTP status 407); set them in {source_key}")]
    ProxyWantsPassword { source_key: &'static str },
    #[error(
        "it takes {schemes} authentication only (HTTP status 407), which is not spoken here; have Basic allowed for this account, or run an authenticating relay beside the agent"
    )]
    ProxyScheme { schemes: String },
    #[error(
        "it refuses (HTTP status {status}); ask its administrator for a rule that lets this machine reach {to}"
    )]
    ProxyRefuses { status: u16, to: String },
    #[error(
        "it cannot reach the hub itself (HTTP status {status}{why}); check hub.url, and ask its administrator about its DNS and its way out"
    )]
    ProxyCannot { status: u16, why: String },
    #[error(
        "it answered HTTP status {status} instead of opening a connection; check that {source_key} is the address of an HTTP proxy that allows CONNECT"
    )]
    ProxyOther { status: u16, source_key: &'static str },
    #[error(
        "what answers there does not speak HTTP; check the address in {source_key}, which begins with https:// where the proxy itself is spoken to in TLS"
    )]
    ProxyNoHttp { source_key: &'static str },
    #[error("its answer is longer than {kib} KiB; check that {source_key} is the address of an HTTP proxy")]
    ProxyTooLong { kib: usize, source_key: &'static str },
    #[error(
        "it closed the connection without an answer; ask its administrator whether this machine may use it"
    )]
    ProxyClosed,

    // TLS.
    #[error(
        "the certificate was issued by {issuer}, which this machine does not trust; if that is your company's TLS inspection or your own CA, put its CA certificate into a file and set hub.ca_file"
    )]
    Issuer { issuer: String },
    #[error(
        "the certificate expired on {day} (this machine's clock says {now}); have it renewed, or set the clock right (NTP)"
    )]
    Expired { day: String, now: String },
    #[error(
        "the certificate is valid from {day} on only (this machine's clock says {now}); set the clock right (NTP)"
    )]
    NotYet { day: String, now: String },
    #[error(
        "the certificate is for {names}, not for {expected}; write a name of the certificate in the URL, or have one issued for this name"
    )]
    OtherName { names: String, expected: String },
    #[error("it offers no TLS 1.2 or newer; have it updated")]
    OldTls,
    #[error(
        "it offers none of the cipher suites that are taken here (TLS 1.3, or TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305); have it updated"
    )]
    WeakSuites,
    #[error(
        "what answers there does not speak TLS; check the port, and whether a proxy or login page answers in its place"
    )]
    NoTls,
    #[error(
        "it closed the connection during the TLS handshake; a firewall or proxy may not let this name through"
    )]
    TlsClosed,
    #[error("it wants a client certificate; set hub.client_cert and hub.client_key")]
    WantsCertificate,
    #[error(
        "it refuses the certificate of hub.client_cert ({alert}); check that it is valid and issued by a CA that the other side takes"
    )]
    CertificateRefused { alert: String },
}

/// The verifier's no, with the issuer that was not trusted: travels inside the TLS error to whoever explains it.
#[derive(Debug, thiserror::Error)]
#[error("not trusted: issued by {0}")]
pub struct Untrusted(pub String);

impl Trouble {
    /// What a failure of TLS means, wherever in the chain of causes it is; `None` if TLS is not to blame.
    pub fn of_tls(error: &(dyn Error + 'static)) -> Option<Self> {
        find::<Tls>(error).and_then(of_tls)
    }

    /// What a failure to connect means.
    pub fn of_tcp(error: &(dyn Error + 'static)) -> Option<Self> {
        if causes(error).any(|cause| cause.to_string().contains("dns error")) {
            let innermost = causes(error).last().map(ToString::to_string).unwrap_or_default();
            let cause = innermost.trim_start_matches("failed to lookup address information: ").to_owned();
            return Some(Self::Name { cause });
        }
        causes(error).find_map(|cause| match cause.downcast_ref::<io::Error>()?.kind() {
            ErrorKind::ConnectionRefused => Some(Self::ConnectionRefused),
            ErrorKind::TimedOut => Some(Self::Silence { seconds: super::CONNECT_TIMEOUT.as_secs() }),
            _ => None,
        })
    }
}

fn of_tls(error: &Tls) -> Option<Trouble> {
    let day = |seconds: u64| {
        let at = i64::try_from(seconds).ok().and_then(|s| Timestamp::from_second(s).ok());
        at.map_or_else(|| "an unknown day".to_owned(), |at| at.strftime("%Y-%m-%d").to_string())
    };
    let now = || crate::clock::now().strftime("%Y-%m-%d %H:%M UTC").to_string();
    Some(match error {
        Tls::InvalidCertificate(wrong) => match wrong {
            CertificateError::ExpiredContext { not_after, .. } => {
                Trouble::Expired { day: day(not_after.as_secs()), now: now() }
            }
            CertificateError::NotValidYetContext { not_before, .. } => {
                Trouble::NotYet { day: day(not_before.as_secs()), now: now() }
            }
            CertificateError::NotValidForNameContext { expected, presented } => {
                Trouble::OtherName { names: names(presented), expected: expected.to_str().into_owned() }
            }
            CertificateError::Other(other) => {
                Trouble::Issuer { issuer: other.0.downcast_ref::<Untrusted>()?.0.clone() }
            }
            _ => return None,
        },
        Tls::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        )
        | Tls::AlertReceived(AlertDescription::ProtocolVersion) => Trouble::OldTls,
        Tls::PeerIncompatible(_)
        | Tls::AlertReceived(AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity) => {
            Trouble::WeakSuites
        }
        Tls::AlertReceived(AlertDescription::CertificateRequired) => Trouble::WantsCertificate,
        Tls::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied),
        ) => Trouble::CertificateRefused { alert: format!("{alert:?}") },
        Tls::InvalidMessage(_) | Tls::InappropriateMessage { .. } => Trouble::NoTls,
        _ => return None,
    })
}

/// The names of a certificate as they stand in it; the library writes them as `DnsName("hub.example.com")`.
fn names(presented: &[String]) -> String {
    if presented.is_empty() {
        return "no name at all".to_owned();
    }
    let plain = |name: &String| {
        let inner = name.split_once('(').map_or(name.as_str(), |(_, rest)| rest.trim_end_matches(')'));
        inner.trim_matches('"').chars().filter(|c| !c.is_control()).take(128).collect::<String>()
    };
    presented.iter().take(5).map(plain).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every sentence, with `…` for what differs from case to case.
    fn sentences() -> Vec<String> {
        let any = || "…".to_owned();
        let key = "…";
        [
            Trouble::Name { cause: any() },
            Trouble::ConnectionRefused,
            Trouble::Silence { seconds: 10 },
            Trouble::ProxyPassword { source_key: key },
            Trouble::ProxyWantsPassword { source_key: key },
            Trouble::ProxyScheme { schemes: any() },
            Trouble::ProxyRefuses { status: 403, to: any() },
            Trouble::ProxyCannot { status: 503, why: any() },
            Trouble::ProxyOther { status: 400, source_key: key },
            Trouble::ProxyNoHttp { source_key: key },
            Trouble::ProxyTooLong { kib: 16, source_key: key },
            Trouble::ProxyClosed,
            Trouble::Issuer { issuer: any() },
            Trouble::Expired { day: any(), now: any() },
            Trouble::NotYet { day: any(), now: any() },
            Trouble::OtherName { names: any(), expected: any() },
            Trouble::OldTls,
            Trouble::WeakSuites,
            Trouble::NoTls,
            Trouble::TlsClosed,
            Trouble::WantsCertificate,
            Trouble::CertificateRefused { alert: any() },
        ]
        .map(|trouble| trouble.to_string())
        .to_vec()
    }

    #[test]
    fn the_document_about_the_network_has_every_sentence_and_no_other() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/network.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (_, table) = text.split_once("| message | cause | what to do |").expect("the table of messages");
        let told: Vec<&str> = table
            .lines()
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .filter_map(|line| line.split('`').nth(1))
            .collect();
        let sentences = sentences();
        for sentence in &sentences {
            // The document tells the message; what to do stands in a column of its own.
            let (message, _) = sentence.split_once("; ").expect("what to do");
            assert!(told.contains(&message), "docs/network.md does not tell: {message}");
        }
        assert_eq!(told.len(), sentences.len(), "docs/network.md tells messages that there are not");
    }

    #[test]
    fn sentences_are_written_as_all_messages_are() {
        for sentence in sentences() {
            assert!(!sentence.ends_with('.') && sentence.contains("; "), "{sentence}");
            assert!(!sentence.starts_with(char::is_uppercase), "{sentence}");
        }
    }

    #[test]
    fn names_of_a_certificate_are_told_as_they_stand_in_it() {
        let presented = ["DnsName(\"a.example.com\")".to_owned(), "IpAddress(127.0.0.1)".to_owned()];
        assert_eq!(names(&presented), "a.example.com, 127.0.0.1");
        assert_eq!(names(&[]), "no name at all");
    }
}
