//! Signatures by the Standard Webhooks specification (symmetric, `v1`), with which subscribers know that a delivery is the
//! hub's: `webhook-signature` over `webhook-id.webhook-timestamp.body`.

use aws_lc_rs::{hmac, rand};
use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};

const PREFIX: &str = "whsec_";
/// What the specification allows for a key, in bytes.
const LENGTHS: std::ops::RangeInclusive<usize> = 24..=64;
/// Some tools write the secret without its padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A new secret.
///
/// # Errors
/// If the system's random source fails.
pub fn new_secret() -> Result<String, aws_lc_rs::error::Unspecified> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes)?;
    Ok(format!("{PREFIX}{}", STANDARD.encode(bytes)))
}

/// Reads a secret.
///
/// # Errors
/// What is wrong with it; never the secret itself.
pub fn key(secret: &str) -> Result<hmac::Key, &'static str> {
    let encoded = secret.trim().strip_prefix(PREFIX).ok_or("it does not begin with whsec_")?;
    let bytes = LENIENT.decode(encoded).map_err(|_| "what follows whsec_ is not base64")?;
    if !LENGTHS.contains(&bytes.len()) {
        return Err("it has not 24 to 64 bytes: make one with `echo whsec_$(openssl rand -base64 32)`");
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

/// The header `webhook-signature`.
#[must_use]
pub fn signature(key: &hmac::Key, id: &str, timestamp: i64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{id}.{timestamp}.").as_bytes());
    context.update(body);
    format!("v1,{}", STANDARD.encode(context.sign()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own libraries.
    #[test]
    fn the_published_vector_comes_out() {
        let key = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        assert_eq!(
            signature(&key, id, 1_614_265_330, br#"{"test": 2432232314}"#),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn secrets_are_made_and_taken_as_the_specification_writes_them() {
        let made = new_secret().unwrap();
        assert!(key(&made).is_ok() && made != new_secret().unwrap());
        assert!(key(made.trim_end_matches('=')).is_ok());
        for wrong in ["", "secret", "whsec_", "whsec_!!", "whsec_c2hvcnQ="] {
            assert!(key(wrong).is_err(), "{wrong}");
        }
    }
}
