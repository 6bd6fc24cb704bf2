//! Signatures by the Standard Webhooks specification (symmetric, `v1`): `webhook-id`, `webhook-timestamp` and
//! `webhook-signature`, over `id.timestamp.body`.

use super::{content::Content, wait::Waits};
use crate::{Code, Failure};
use aws_lc_rs::hmac;
use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use zeroize::Zeroizing;

pub(super) const ID: HeaderName = HeaderName::from_static("webhook-id");
pub(super) const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
pub(super) const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

const PREFIX: &str = "whsec_";
/// What the specification allows for a key.
const SHORTEST: usize = 24;
const LONGEST: usize = 64;
/// Some tools write the secret without its padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The keys that every request is signed with: one, or several while they follow one another.
pub(super) struct Signer(Vec<hmac::Key>);

impl Signer {
    /// Reads the secrets as the specification writes them: `whsec_` and 24 to 64 bytes in base64.
    ///
    /// # Errors
    /// What is wrong with one; never the secret itself.
    pub(super) fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        secrets.into_iter().map(key).collect::<Result<_, _>>().map(Self)
    }

    /// The three header fields for a request of this id at this time.
    pub(super) async fn sign(
        &self,
        id: &str,
        now: i64,
        content: &mut Content,
        waits: &Waits<'_>,
    ) -> Result<HeaderMap, Failure> {
        let mut signing = self.begin(id, now);
        content.look_through(waits, |bytes| signing.feed(bytes)).await?;
        let signatures = signing.finish();
        let fields = [(ID, id), (TIMESTAMP, &now.to_string()), (SIGNATURE, &signatures)];
        let field =
            |(name, value): (HeaderName, &str)| HeaderValue::from_str(value).map(|value| (name, value));
        fields
            .into_iter()
            .map(field)
            .collect::<Result<HeaderMap, _>>()
            .map_err(|e| Failure::permanent(Code::Internal, "the signature fits no header").detail(e))
    }

    fn begin(&self, id: &str, now: i64) -> Signing {
        let mut signing = Signing(self.0.iter().map(hmac::Context::with_key).collect());
        signing.feed(format!("{id}.{now}.").as_bytes());
        signing
    }
}

/// A signature by each key, over what is fed.
struct Signing(Vec<hmac::Context>);

impl Signing {
    fn feed(&mut self, bytes: &[u8]) {
        self.0.iter_mut().for_each(|context| context.update(bytes));
    }

    fn finish(self) -> String {
        let one = |context: hmac::Context| format!("v1,{}", STANDARD.encode(context.sign()));
        self.0.into_iter().map(one).collect::<Vec<_>>().join(" ")
    }
}

fn key(secret: &str) -> Result<hmac::Key, String> {
    let Some(encoded) = secret.trim().strip_prefix(PREFIX) else {
        return Err(format!("the secret does not begin with {PREFIX}; take it as the receiver shows it"));
    };
    let bytes = Zeroizing::new(
        LENIENT.decode(encoded).map_err(|_| format!("what follows {PREFIX} in the secret is not base64"))?,
    );
    if !(SHORTEST..=LONGEST).contains(&bytes.len()) {
        return Err(format!(
            "the secret has {} bytes; the specification wants {SHORTEST} to {LONGEST}: make one with \
             `echo whsec_$(openssl rand -base64 32)`",
            bytes.len()
        ));
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

#[cfg(test)]
mod tests {
    use super::Signer;

    /// The example of the specification's own libraries.
    #[test]
    fn the_published_vector_comes_out_and_rotation_gives_one_signature_for_each_key() {
        let body = br#"{"test": 2432232314}"#;
        let sign = |secrets: &[&str]| {
            let mut signing = Signer::new(secrets.iter().copied())
                .unwrap()
                .begin("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330);
            body.chunks(7).for_each(|piece| signing.feed(piece));
            signing.finish()
        };
        let published = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let (one, two) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD");
        assert_eq!(sign(&[one]), published);
        assert_eq!(sign(&[two, one]), format!("{} {published}", sign(&[two])));
    }

    #[test]
    fn secrets_are_taken_as_the_specification_writes_them() {
        assert!(Signer::new(["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]).is_ok());
        assert!(Signer::new(["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"]).is_ok());
        for (secret, says) in [
            ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "begin with whsec_"),
            ("whsec_!!", "not base64"),
            ("whsec_c2hvcnQ=", "5 bytes"),
        ] {
            let error = Signer::new([secret]).err().unwrap();
            assert!(error.contains(says) && !error.contains("c2hvcnQ"), "{error}");
        }
    }
}
