//! Failures of the exchange itself: what the HTTP library's errors mean.

use crate::{
    Code, Failure,
    address::{self, Blocked, NotResolved},
    causes::{chain, find},
    trust::is_ca_used_as_server,
};
use std::{error::Error, io};

/// Maps an error of sending a request or of waiting for its answer. `reading` says that the request only reads.
pub(super) fn failure(error: reqwest::Error, reading: bool) -> Failure {
    let error = error.without_url();
    let detail = chain(&error);
    if find::<Blocked>(&error).is_some() {
        let message = address::BLOCKED;
        return Failure::denied(Code::PolicyDenied, message).detail(detail);
    }
    if error.is_builder() {
        return Failure::permanent(Code::Internal, "the request could not be built").detail(detail);
    }
    // The connector fails before a byte of the request is written; and in TLS 1.3 a server looks at the client's
    // certificate when the client takes the handshake for done, but before anything of the request.
    if error.is_connect() || find::<rustls::Error>(&error).is_some_and(refuses_certificate) {
        return Failure::retry(Code::TargetUnreachable, unreachable(&error, error.is_timeout()))
            .detail(detail);
    }
    let lost = if error.is_timeout() {
        Failure::retry(Code::TargetTimeout, "the target did not answer in time")
    } else if is_head_too_large(&detail) {
        // It would be so again, and the request have its effect again.
        Failure::permanent(Code::TargetProtocol, HEAD_TOO_LARGE)
    } else {
        Failure::retry(Code::TargetProtocol, broken(&detail))
    };
    let lost = lost.detail(detail);
    if reading { lost } else { lost.effect_unknown() }
}

const HEAD_TOO_LARGE: &str =
    "the target answered with more header fields, or larger ones, than the agent takes";

/// The library has no types for these, or keeps them to itself: their texts are held by tests.
pub(crate) fn is_head_too_large(chain: &str) -> bool {
    chain.contains("message head is too large")
}

/// What an operator should look at when a connection gave no whole answer; `chain` is that of the error.
pub(crate) fn broken(chain: &str) -> &'static str {
    if is_head_too_large(chain) {
        HEAD_TOO_LARGE
    } else if chain.contains("invalid HTTP version parsed") {
        "the target does not answer in HTTP, as a port that wants TLS does not; check http or https, and the port, in the \
         resource's url"
    } else {
        "the connection ended without a whole HTTP answer"
    }
}

/// What an operator should look at when no connection came about.
pub(crate) fn unreachable(error: &(dyn Error + 'static), timed_out: bool) -> String {
    use rustls::{CertificateError as Bad, Error as Tls};
    if let Some(tls) = find::<Tls>(error) {
        let what = match tls {
            // A signature that does not fit: a CA of the right name, but another key.
            Tls::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
                "is signed by an unknown CA; put that CA's certificate into the resource's ca_file"
            }
            Tls::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
                "has expired; renew it at the target, or check the clock of the agent"
            }
            Tls::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
                "is not valid yet; check the clocks of target and agent"
            }
            Tls::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
                "is for another name; use a name of the certificate in the resource's url"
            }
            Tls::InvalidCertificate(Bad::Other(other)) if is_ca_used_as_server(other.0.as_ref()) => {
                "is a CA's own; put exactly this certificate into the resource's ca_file, or have one issued for the server"
            }
            Tls::InvalidCertificate(_) => "is not acceptable; see the agent's log",
            refusal if refuses_certificate(refusal) => {
                return "the target refuses the TLS handshake without a client certificate that it knows; check the \
                        resource's client_cert and client_key"
                    .to_owned();
            }
            // No record of TLS at all.
            Tls::InvalidMessage(_) => {
                return "the TLS handshake failed: what answers does not speak TLS, so this is perhaps the port of plain HTTP; check \
                        scheme and port in the resource's url (or endpoint)"
                    .to_owned();
            }
            _ => return "the TLS handshake with the target failed; see the agent's log".to_owned(),
        };
        return format!("the target's TLS certificate {what}");
    }
    if find::<NotResolved>(error).is_some() {
        return "the name in the resource's url does not resolve; check the name and the agent's DNS"
            .to_owned();
    }
    if timed_out {
        return "the target did not take the connection in time: within the resource's timeout for connecting, or most of the \
                attempt's".to_owned();
    }
    match find::<io::Error>(error).map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => {
            "the target refused the connection; check that it runs, and the port in the resource's url"
                .to_owned()
        }
        Some(io::ErrorKind::UnexpectedEof) => {
            "the target closed the connection during the TLS handshake; check https in the resource's url"
                .to_owned()
        }
        // A socket that waits no longer says the one or the other.
        Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            "the target did not answer the TLS handshake in time; check https and the port in the resource's url"
                .to_owned()
        }
        _ => "no connection to the target; see the agent's log".to_owned(),
    }
}

/// Whether the other side said that it wants a client certificate, or another one.
fn refuses_certificate(error: &rustls::Error) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        error,
        rustls::Error::AlertReceived(
            Alert::AccessDenied
                | Alert::BadCertificate
                | Alert::CertificateExpired
                | Alert::CertificateRequired
                | Alert::CertificateRevoked
                | Alert::CertificateUnknown
                | Alert::DecryptError
                | Alert::UnknownCA
                | Alert::UnsupportedCertificate
        )
    )
}
