//! Compact JSON Web Signatures (RFC 7515) with Ed25519 (`EdDSA`, RFC 8037).
//!
//! Signatures are made by aws-lc, in constant time, and verified by curve25519-dalek: that takes half of aws-lc's time on
//! processors with AVX-512 IFMA (chosen as the program runs; see `.cargo/config.toml`), and as much on others. An agent
//! verifies two for each job or call.
//!
//! The header's `typ` says what was signed and is always checked, so a token of one kind never passes for another.
//! Times are not judged here: the caller passes its own clock to the claims.

use crate::limits::MAX_TEXT;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, Verifier as _};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fmt;

/// Names a public key: the RFC 7638 thumbprint of its JWK, base64url.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub String);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a token was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    /// Not a compact JWS, or its header or claims do not have the expected form.
    #[error("malformed token: {0}")]
    Malformed(String),
    /// The header's `alg` is not `EdDSA`, or its `typ` not the expected one.
    #[error("wrong kind of token: expected typ {expected} with alg EdDSA")]
    WrongKind {
        /// The `typ` that was expected.
        expected: &'static str,
    },
    /// No known key has the header's `kid`.
    #[error("signed with an unknown key")]
    UnknownKey,
    /// The signature does not fit.
    #[error("the signature does not fit")]
    BadSignature,
    /// The key itself is unusable.
    #[error("unusable key: {0}")]
    BadKey(String),
}

/// An Ed25519 private key. Never printed.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: VerifyingKey,
}

impl SigningKey {
    /// Makes a new key pair; returns it with its PKCS#8 document (RFC 8410), for storage.
    ///
    /// # Errors
    /// If the system's random source fails.
    pub fn generate() -> Result<(Self, Vec<u8>), JwsError> {
        let bad = |_| JwsError::BadKey("the system's random source failed".to_owned());
        let pair = Ed25519KeyPair::generate().map_err(bad)?;
        let document = pair.to_pkcs8().map_err(bad)?.as_ref().to_vec();
        Ok((Self::from_pkcs8(&document)?, document))
    }

    /// Reads a key from its PKCS#8 document.
    ///
    /// # Errors
    /// [`JwsError::BadKey`] if it is none.
    pub fn from_pkcs8(document: &[u8]) -> Result<Self, JwsError> {
        let pair = Ed25519KeyPair::from_pkcs8(document)
            .map_err(|_| JwsError::BadKey("not an Ed25519 key in PKCS#8".to_owned()))?;
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Ok(Self { pair, public: VerifyingKey::from_bytes(public) })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &VerifyingKey {
        &self.public
    }

    /// Signs `claims` as a compact JWS of kind `typ`.
    ///
    /// # Errors
    /// If the claims cannot be written as JSON.
    pub fn sign<T: Serialize>(&self, typ: &'static str, claims: &T) -> Result<String, JwsError> {
        // Put together here: the library reads the private key anew for each signature, which doubles its time. Kind and
        // key id have no character that JSON would escape.
        let header = format!(r#"{{"typ":"{typ}","alg":"EdDSA","kid":"{}"}}"#, self.public.id());
        let claims = serde_json::to_vec(claims).map_err(|e| JwsError::Malformed(e.to_string()))?;
        let mut token = URL_SAFE_NO_PAD.encode(header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.pair.sign(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public.id())
    }
}

/// An Ed25519 public key; in JSON its 32 bytes as base64url without padding (the `x` of its JWK).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VerifyingKey {
    bytes: [u8; 32],
    id: KeyId,
    /// What the bytes stand for; `None` if for nothing: no signature fits such a key.
    point: Option<ed25519_dalek::VerifyingKey>,
}

/// A JOSE header (RFC 7515 §4): what is looked at. Its other members change nothing.
#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    /// There at all, it names extensions that whoever reads the token must know.
    #[serde(default, deserialize_with = "there")]
    crit: bool,
}

/// `true`, whatever the value is.
fn there<'de, D: serde::Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(value).map(|_| true)
}

impl VerifyingKey {
    /// Wraps the raw 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        // RFC 7638 §3: the required members in lexicographic order, without white space.
        let jwk = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, URL_SAFE_NO_PAD.encode(bytes));
        let digest = crate::Sha256::of(jwk.as_bytes());
        let point = ed25519_dalek::VerifyingKey::from_bytes(&bytes).ok();
        Self { bytes, id: KeyId(URL_SAFE_NO_PAD.encode(digest.bytes())), point }
    }

    /// The raw 32 bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// The key's name.
    #[must_use]
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Verifies a compact JWS of kind `typ` against whichever of `keys` its header names, and reads its claims.
    ///
    /// # Errors
    /// See [`JwsError`].
    pub fn verify_any<'k, T: DeserializeOwned>(
        keys: impl IntoIterator<Item = &'k Self>,
        typ: &'static str,
        token: &str,
    ) -> Result<T, JwsError> {
        Self::verify_telling(keys, typ, token).map(|(claims, _)| claims)
    }

    /// The same, and which of the keys it was.
    ///
    /// # Errors
    /// As [`Self::verify_any`].
    pub fn verify_telling<'k, T: DeserializeOwned>(
        keys: impl IntoIterator<Item = &'k Self>,
        typ: &'static str,
        token: &str,
    ) -> Result<(T, &'k Self), JwsError> {
        let (signed, signature) = token.rsplit_once('.').ok_or_else(|| malformed("it has no three parts"))?;
        let (header, claims) = signed.split_once('.').ok_or_else(|| malformed("it has no three parts"))?;
        let header: Header = part(header)?;
        if header.crit {
            return Err(malformed("the header has critical extensions, none are known"));
        }
        if header.alg != "EdDSA" || header.typ.as_deref() != Some(typ) {
            return Err(JwsError::WrongKind { expected: typ });
        }
        let kid = header.kid.ok_or(JwsError::UnknownKey)?;
        let key = keys.into_iter().find(|k| k.id.0 == kid).ok_or(JwsError::UnknownKey)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|e| malformed(&e))?;
        let fits = Signature::from_slice(&signature).is_ok_and(|signature| {
            key.point.is_some_and(|point| point.verify(signed.as_bytes(), &signature).is_ok())
        });
        if !fits {
            return Err(JwsError::BadSignature);
        }
        // Only now: nothing in them is believed before.
        Ok((part(claims)?, key))
    }

    /// Verifies a compact JWS of kind `typ` against this key alone.
    ///
    /// # Errors
    /// See [`JwsError`].
    pub fn verify<T: DeserializeOwned>(&self, typ: &'static str, token: &str) -> Result<T, JwsError> {
        Self::verify_any([self], typ, token)
    }
}

/// Reads one of the JSON parts of a token.
fn part<T: DeserializeOwned>(text: &str) -> Result<T, JwsError> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|e| malformed(&e))?;
    serde_json::from_slice(&bytes).map_err(|e| malformed(&e))
}

fn malformed(why: impl fmt::Display) -> JwsError {
    // A parser may quote the token at any length.
    JwsError::Malformed(why.to_string().chars().take(MAX_TEXT).collect())
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", self.id)
    }
}

impl TryFrom<String> for VerifyingKey {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WRONG: &str = "a public key is 32 bytes as base64url without padding";
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| WRONG)?;
        bytes.try_into().map(Self::from_bytes).map_err(|_| WRONG)
    }
}

impl From<VerifyingKey> for String {
    fn from(key: VerifyingKey) -> Self {
        URL_SAFE_NO_PAD.encode(key.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
    use serde_json::{Value, json};

    #[test]
    fn a_token_verifies_with_its_own_key_and_kind_only() {
        let (key, document) = SigningKey::generate().unwrap();
        let (other, _) = SigningKey::generate().unwrap();
        let token = SigningKey::from_pkcs8(&document).unwrap().sign("t+jws", &json!({"a": 1})).unwrap();
        assert_eq!(key.public().verify::<Value>("t+jws", &token), Ok(json!({"a": 1})));
        assert_eq!(
            key.public().verify::<Value>("u+jws", &token),
            Err(JwsError::WrongKind { expected: "u+jws" })
        );
        assert_eq!(other.public().verify::<Value>("t+jws", &token), Err(JwsError::UnknownKey));
    }

    #[test]
    fn a_changed_token_is_refused() {
        let (key, _) = SigningKey::generate().unwrap();
        let token = key.sign("t+jws", &json!({"a": 1})).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let forged = format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(r#"{"a":2}"#), parts[2]);
        assert_eq!(key.public().verify::<Value>("t+jws", &forged), Err(JwsError::BadSignature));
        let unsigned = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"t+jws"}"#), parts[1]);
        let crit = URL_SAFE_NO_PAD
            .encode(format!(r#"{{"alg":"EdDSA","typ":"t+jws","kid":"{}","crit":null}}"#, key.public().id()));
        let signature = URL_SAFE_NO_PAD.encode(key.pair.sign(format!("{crit}.{}", parts[1]).as_bytes()));
        let critical = format!("{crit}.{}.{signature}", parts[1]);
        let bad =
            ["", "a", "a.b.c", "..", &unsigned, &critical, &token[..token.len() - 9], &format!("{token}.x")];
        for bad in bad {
            assert!(key.public().verify::<Value>("t+jws", bad).is_err(), "{bad}");
        }
        // Standard base64, or with padding, is another text than the one that was signed.
        let padded = format!("{token}=");
        assert!(matches!(key.public().verify::<Value>("t+jws", &padded), Err(JwsError::Malformed(_))));
    }

    #[test]
    fn both_libraries_judge_the_same_signatures_alike() {
        let (key, _) = SigningKey::generate().unwrap();
        let theirs = UnparsedPublicKey::new(&ED25519, *key.public().bytes());
        let (message, mut fitting) = (b"to be signed".as_slice(), 0);
        let good: [u8; 64] = key.pair.sign(message).as_ref().try_into().unwrap();
        let judge = |signature: &[u8; 64]| {
            let point = key.public().point.unwrap();
            let ours = point.verify(message, &Signature::from_bytes(signature)).is_ok();
            assert_eq!(ours, theirs.verify(message, signature).is_ok(), "{signature:?}");
            ours
        };
        assert!(judge(&good));
        for bit in 0..512 {
            let mut changed = good;
            changed[bit / 8] ^= 1 << (bit % 8);
            fitting += usize::from(judge(&changed));
        }
        // `s` plus the order of the group (RFC 8032 §5.1.7): the same number, and not the same signature.
        let order = *b"\xed\xd3\xf5\x5c\x1a\x63\x12\x58\xd6\x9c\xf7\xa2\xde\xf9\xde\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10";
        let (mut twin, mut carry) = (good, 0);
        for (byte, more) in twin[32..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(more) + carry;
            *byte = sum.to_le_bytes()[0];
            carry = sum >> 8;
        }
        assert!(!judge(&twin));
        assert_eq!(fitting, 0);
    }

    #[test]
    fn nothing_is_signed_with_a_key_that_is_none() {
        let none = VerifyingKey::from_bytes([2; 32]);
        assert!(none.point.is_none());
        let header =
            URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"EdDSA","typ":"t+jws","kid":"{}"}}"#, none.id()));
        let token = format!("{header}.e30.{}", URL_SAFE_NO_PAD.encode([0; 64]));
        assert_eq!(none.verify::<Value>("t+jws", &token), Err(JwsError::BadSignature));
    }
}
