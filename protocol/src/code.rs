//! The closed lists of error codes. Codes are stable: clients may match on them.

use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// All of them, in the order of the contract.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The code as it travels.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = ();
            fn from_str(text: &str) -> Result<Self, ()> {
                Self::ALL.iter().copied().find(|code| code.as_str() == text).ok_or(())
            }
        }
    };
}

codes! {
    /// Why an attempt failed, or was not accepted.
    Code {
        /// The local policy does not allow it.
        PolicyDenied = "policy_denied",
        /// The path is malformed, or leaves the resource's root.
        PathInvalid = "path_invalid",
        /// The parameters do not fit the operation's schema.
        InvalidParams = "invalid_params",
        /// The envelope's or ticket's signature, key, audience or type is wrong.
        SignatureInvalid = "signature_invalid",
        /// The envelope or ticket is not valid any more, or not yet.
        EnvelopeExpired = "envelope_expired",
        /// The attempt is not higher than the highest seen of the job.
        Replayed = "replayed",
        /// A payload, file, response or result is larger than allowed.
        TooLarge = "too_large",
        /// Content does not have the size or digest it should have.
        DigestMismatch = "digest_mismatch",
        /// No connection to the private system (name, route, refused, host key, TLS).
        TargetUnreachable = "target_unreachable",
        /// The private system did not answer in time.
        TargetTimeout = "target_timeout",
        /// The private system refused the credentials.
        TargetAuth = "target_auth",
        /// The private system understood and refused.
        TargetRefused = "target_refused",
        /// The file, folder, path or record is not there.
        TargetNotFound = "target_not_found",
        /// It exists already, or changed meanwhile.
        TargetConflict = "target_conflict",
        /// No space or quota left at the private system.
        TargetFull = "target_full",
        /// The private system asks to slow down.
        TargetThrottled = "target_throttled",
        /// The private system cannot do this.
        TargetUnsupported = "target_unsupported",
        /// The private system answered something its protocol does not allow.
        TargetProtocol = "target_protocol",
        /// The job was not started, or the attempt not finished, in time.
        Deadline = "deadline",
        /// Cancelled on request.
        Cancelled = "cancelled",
        /// No agent of the site is connected.
        AgentOffline = "agent_offline",
        /// The agent holding the attempt is lost for good.
        AgentLost = "agent_lost",
        /// The agent takes no more just now.
        Busy = "busy",
        /// The resource is paused locally.
        Paused = "paused",
        /// The resource's circuit breaker is open.
        BreakerOpen = "breaker_open",
        /// A fault of Passerelle itself.
        Internal = "internal",
    }
}

codes! {
    /// The `code` of a problem document (RFC 9457) that is not an attempt's.
    ApiCode {
        /// The request is malformed.
        BadRequest = "bad_request",
        /// No valid credentials.
        Unauthorized = "unauthorized",
        /// Valid credentials without the needed scope.
        Forbidden = "forbidden",
        /// The tenant has no such site.
        SiteUnknown = "site_unknown",
        /// The tenant has no such thing.
        NotFound = "not_found",
        /// The state forbids it.
        Conflict = "conflict",
        /// The idempotency key was seen with another body.
        IdempotencyMismatch = "idempotency_mismatch",
        /// The client-signed envelope has expired.
        EnvelopeExpired = "envelope_expired",
        /// Too many requests.
        RateLimited = "rate_limited",
        /// A quota, or the hub's disk, is used up.
        Quota = "quota",
        /// Hybrid mode needs the Enterprise tier.
        TierRequired = "tier_required",
        /// The application has no hybrid mode.
        ApplicationIncompatible = "application_incompatible",
        /// Not built yet.
        NotImplemented = "not_implemented",
        /// The body is larger than allowed.
        TooLarge = "too_large",
        /// The uploaded content does not have the digest it was announced with.
        DigestMismatch = "digest_mismatch",
        /// A fault of the hub itself.
        Internal = "internal",
    }
}

/// Reads a code that an agent of another version may have said: one that is not known here is taken as `internal`.
///
/// # Errors
/// If it is no text.
pub(crate) fn lenient<'de, D: Deserializer<'de>>(from: D) -> Result<Code, D::Error> {
    Ok(String::deserialize(from)?.parse().unwrap_or(Code::Internal))
}

#[cfg(test)]
mod tests {
    use super::{ApiCode, Code};

    #[test]
    fn the_list_of_the_contract_is_complete_and_texts_round_trip() {
        let contract = "policy_denied path_invalid invalid_params signature_invalid envelope_expired replayed \
            too_large digest_mismatch target_unreachable target_timeout target_auth target_refused target_not_found \
            target_conflict target_full target_throttled target_unsupported target_protocol deadline cancelled \
            agent_offline agent_lost busy paused breaker_open internal";
        let ours: Vec<&str> = Code::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(ours, contract.split_whitespace().collect::<Vec<_>>());
        for code in Code::ALL {
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{code}\""));
            assert_eq!(code.as_str().parse(), Ok(*code));
        }
        for code in ApiCode::ALL {
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{code}\""));
        }
    }
}
