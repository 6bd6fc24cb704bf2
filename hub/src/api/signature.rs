//! Signatures by Standard Webhooks (<https://www.standardwebhooks.com>, `v1`): whether a body comes from who it says.

use aws_lc_rs::{constant_time, hmac};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName};

/// How far the time of a signature may be from ours, in seconds: the tolerance of the specification's libraries.
const TOLERANCE: i64 = 5 * 60;
/// How many signatures are looked at.
const MAX_SIGNATURES: usize = 16;
/// The longest id of a message.
const MAX_ID: usize = 255;

/// The head of a signed message.
pub struct Signed {
    /// Its id, which the signature covers.
    pub id: String,
    at: String,
    signatures: Vec<Vec<u8>>,
}

impl Signed {
    /// Reads the three headers, at this time in Unix seconds; `None`: it is not signed at all.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read(headers: &HeaderMap, now: i64) -> Option<Result<Self, &'static str>> {
        headers.contains_key("webhook-signature").then(|| Self::read_all(headers, now))
    }

    fn read_all(headers: &HeaderMap, now: i64) -> Result<Self, &'static str> {
        let text = |name: &'static str| one(headers, &HeaderName::from_static(name));
        let (Some(id), Some(at), Some(signatures)) =
            (text("webhook-id"), text("webhook-timestamp"), text("webhook-signature"))
        else {
            return Err(
                "send webhook-id, webhook-timestamp and webhook-signature, once each (Standard Webhooks)",
            );
        };
        if id.is_empty() || id.len() > MAX_ID {
            return Err("webhook-id has not 1 to 255 characters");
        }
        let time: i64 = at.parse().map_err(|_| "webhook-timestamp is no time in Unix seconds")?;
        if now.saturating_sub(time).unsigned_abs() > TOLERANCE.unsigned_abs() {
            return Err(
                "webhook-timestamp is more than 5 minutes from now: check both clocks, and sign each try anew",
            );
        }
        let signatures = signatures
            .split(' ')
            .filter_map(|one| one.strip_prefix("v1,"))
            .take(MAX_SIGNATURES)
            .filter_map(|one| STANDARD.decode(one).ok())
            .collect();
        Ok(Self { id: id.to_owned(), at: at.to_owned(), signatures })
    }

    /// Whether any of the signatures was made with this secret; takes the same time whatever is right about them.
    pub fn verifies(&self, secret: &[u8], body: &[u8]) -> bool {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
        context.update(format!("{}.{}.", self.id, self.at).as_bytes());
        context.update(body);
        let tag = context.sign();
        self.signatures.iter().fold(false, |right, signature| {
            right | constant_time::verify_slices_are_equal(tag.as_ref(), signature).is_ok()
        })
    }
}

/// The one value of a header; nothing if it is repeated.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own libraries.
    const SECRET: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const AT: i64 = 1_614_265_330;

    fn headers(signature: &str, at: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.append("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek".parse().unwrap());
        headers.append("webhook-timestamp", at.parse().unwrap());
        headers.append("webhook-signature", signature.parse().unwrap());
        headers
    }

    #[test]
    fn the_signature_of_the_specification_is_right_and_any_change_makes_it_wrong() {
        let secret = STANDARD.decode(SECRET).unwrap();
        let verifies = |signature: &str, body: &[u8]| {
            let signed = Signed::read(&headers(signature, &AT.to_string()), AT + 299).unwrap();
            signed.unwrap_or_else(|why| panic!("{why}")).verifies(&secret, body)
        };
        assert!(verifies(SIGNATURE, BODY));
        assert!(verifies(&format!("v1a,x v1,AAAA {SIGNATURE}"), BODY));
        assert!(!verifies(SIGNATURE, b"{}"));
        assert!(!verifies("v1,AAAA", BODY));
        assert!(!verifies("v2,AAAA", BODY));
    }

    #[test]
    fn an_old_or_half_signed_message_is_refused_and_an_unsigned_one_is_none() {
        let read = |headers: &HeaderMap, now| Signed::read(headers, now).map(|read| read.map(|_| ()));
        assert!(read(&HeaderMap::new(), AT).is_none());
        assert!(
            read(&headers(SIGNATURE, &AT.to_string()), AT + 301).unwrap().unwrap_err().contains("5 minutes")
        );
        assert!(read(&headers(SIGNATURE, "soon"), AT).unwrap().unwrap_err().contains("Unix seconds"));
        let mut twice = headers(SIGNATURE, &AT.to_string());
        twice.append("webhook-id", "other".parse().unwrap());
        assert!(read(&twice, AT).unwrap().unwrap_err().contains("once each"));
    }
}
