//! Reading a signed envelope without its key: what a relay can check of a job that it cannot verify.
//!
//! A hub hands on jobs that its clients signed for agents that pinned the clients' keys. It knows none of those keys, and
//! nothing read here is proven: it only keeps what no agent would take from being stored.

use crate::{Envelope, JwsError, KeyId, limits::MAX_TEXT};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

/// An Ed25519 signature.
const SIGNATURE: usize = 64;

#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    crit: Option<serde::de::IgnoredAny>,
}

impl Envelope {
    /// The claims of a compact JWS and the key it names, **without a check of the signature**.
    ///
    /// # Errors
    /// [`JwsError::Malformed`] or [`JwsError::WrongKind`].
    pub fn read_unverified(token: &str) -> Result<(KeyId, Self), JwsError> {
        read(Self::TYP, token)
    }

    /// The same for the envelope of a call.
    ///
    /// # Errors
    /// As [`Self::read_unverified`].
    pub fn read_unverified_call(token: &str) -> Result<(KeyId, Self), JwsError> {
        read(Self::CALL_TYP, token)
    }
}

fn read(typ: &'static str, token: &str) -> Result<(KeyId, Envelope), JwsError> {
    let malformed = |why: String| JwsError::Malformed(why.chars().take(MAX_TEXT).collect());
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed("expected header, claims and signature, with two dots between".to_owned()));
    };
    let decode = |what: &str, text: &str| {
        URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| malformed(format!("the {what} is not base64url without padding")))
    };
    let header: Header = serde_json::from_slice(&decode("header", header)?)
        .map_err(|e| malformed(format!("the header: {e}")))?;
    if header.alg != "EdDSA" || header.typ.as_deref() != Some(typ) {
        return Err(JwsError::WrongKind { expected: typ });
    }
    if header.crit.is_some() {
        return Err(malformed("the header has critical extensions, none are known".to_owned()));
    }
    let key = header.kid.filter(|kid| (1..=MAX_TEXT).contains(&kid.len()));
    let key = key.ok_or_else(|| malformed("the header names no key (kid)".to_owned()))?;
    if decode("signature", signature)?.len() != SIGNATURE {
        return Err(malformed(format!("the signature does not have {SIGNATURE} bytes")));
    }
    let claims = serde_json::from_slice(&decode("claims", claims)?)
        .map_err(|e| malformed(format!("the claims: {e}")))?;
    Ok((KeyId(key), claims))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{JobId, SigningKey};
    use serde_json::json;

    fn envelope() -> Envelope {
        let name = |text: &str| text.parse().unwrap();
        Envelope {
            job: JobId::new(1, &[1; 10]),
            tenant: name("acme"),
            site: name("paris"),
            resource: name("compta"),
            operation: name("drop"),
            params: json!({"path": "a.csv"}),
            payload: None,
            timeout_s: 300,
            deadline: 2000,
            max_attempts: 5,
            repeat: None,
            order_key: None,
            agents: None,
            iat: 1000,
            nbf: 1000,
            exp: 2000,
        }
    }

    #[test]
    fn the_claims_are_those_that_were_signed() {
        let (key, _) = SigningKey::generate().unwrap();
        let token = envelope().sign(&key).unwrap();
        assert_eq!(Envelope::read_unverified(&token), Ok((key.public().id().clone(), envelope())));
    }

    #[test]
    fn what_no_verifier_would_read_is_refused() {
        let (key, _) = SigningKey::generate().unwrap();
        let token = envelope().sign(&key).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let head = |text: &str| format!("{}.{}.{}", URL_SAFE_NO_PAD.encode(text), parts[1], parts[2]);
        for (bad, says) in [
            (String::new(), "two dots"),
            (format!("{}.{}", parts[0], parts[1]), "two dots"),
            (format!("{token}.x"), "two dots"),
            (format!("{}.{}.AAAA", parts[0], parts[1]), "64 bytes"),
            (format!("{}.%%.{}", parts[0], parts[2]), "the claims is not base64url"),
            (format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode("{}"), parts[2]), "missing field"),
            (head("{}"), "missing field"),
            (head(r#"{"alg":"none","typ":"passerelle-job+jws","kid":"x"}"#), "wrong kind"),
            (head(r#"{"alg":"EdDSA","typ":"passerelle-ticket+jws","kid":"x"}"#), "wrong kind"),
            (head(r#"{"alg":"EdDSA","typ":"passerelle-job+jws"}"#), "no key"),
            (head(r#"{"alg":"EdDSA","typ":"passerelle-job+jws","kid":""}"#), "no key"),
            (head(r#"{"alg":"EdDSA","typ":"passerelle-job+jws","kid":"x","crit":["b64"]}"#), "critical"),
        ] {
            let error = Envelope::read_unverified(&bad).unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}
