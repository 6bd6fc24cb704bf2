//! Who may post: a token, a user with a password, or signatures by Standard Webhooks
//! (<https://www.standardwebhooks.com>, `v1`). Nothing is compared in a time that depends on how much of it is right.

use aws_lc_rs::{constant_time, hmac};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, header};
use passerelle_config::{ListenerAuth, SecretRef};
use passerelle_protocol::Sha256;
use std::path::Path;

/// How far the time of a signature may be from ours, in seconds: the tolerance that the specification's libraries have.
pub const TOLERANCE: i64 = 5 * 60;
/// How many signatures of a post are looked at.
const MAX_SIGNATURES: usize = 16;
/// The shortest secret that signs, in bytes: the least that the specification allows.
const MIN_SECRET: usize = 24;
/// What stands before secrets of Standard Webhooks.
const PREFIX: &str = "whsec_";

/// See the [module](self).
pub enum Guard {
    /// A digest of the token: as long for any token.
    Token(Sha256),
    /// A digest of `user:password`.
    Basic(Sha256),
    /// Keys, any of which may have signed.
    Hmac(Vec<hmac::Key>),
}

/// What is known of a sender before the body is read.
pub enum Sender {
    /// It may post.
    Known,
    /// The body decides.
    Signed(Signed),
}

/// A signature that is compared once the body is read.
pub struct Signed {
    /// The id of the message, which the signature covers.
    pub id: String,
    contexts: Vec<hmac::Context>,
    signatures: Vec<Vec<u8>>,
}

impl Guard {
    /// Reads the secrets.
    ///
    /// # Errors
    /// Why one cannot be read or used; never its value.
    pub fn read(auth: &ListenerAuth, base: &Path) -> Result<Self, String> {
        let read = |secret: &SecretRef| secret.read(base).map_err(|e| e.to_string());
        Ok(match auth {
            ListenerAuth::Token(token) => Self::Token(Sha256::of(read(token)?.expose().as_bytes())),
            ListenerAuth::Basic { username, password } => {
                let password = read(password)?;
                Self::Basic(Sha256::of(format!("{username}:{}", password.expose()).as_bytes()))
            }
            ListenerAuth::Hmac(secrets) => {
                let key = |secret: &SecretRef| {
                    let text = read(secret)?;
                    let text = text.expose().strip_prefix(PREFIX).unwrap_or(text.expose());
                    let bytes = STANDARD.decode(text).map_err(|_| {
                        "a secret for hmac is not base64, as Standard Webhooks has it (whsec_…): make one with \
                         `openssl rand -base64 32`"
                            .to_owned()
                    })?;
                    if bytes.len() < MIN_SECRET {
                        return Err(format!(
                            "a secret for hmac has {} bytes, fewer than {MIN_SECRET}: make one with `openssl rand -base64 32`",
                            bytes.len()
                        ));
                    }
                    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
                };
                Self::Hmac(secrets.iter().map(key).collect::<Result<_, String>>()?)
            }
        })
    }

    /// How a sender is told to authenticate.
    pub fn challenge(&self) -> &'static str {
        match self {
            Self::Token(_) => "Bearer realm=\"passerelle\"",
            Self::Basic(_) => "Basic realm=\"passerelle\", charset=\"UTF-8\"",
            Self::Hmac(_) => "StandardWebhooks",
        }
    }

    /// Looks at the head of a post, at this time in Unix seconds.
    ///
    /// # Errors
    /// Why it may not post, for the sender.
    pub fn look(&self, headers: &HeaderMap, now: i64) -> Result<Sender, &'static str> {
        let bearer = |scheme: &str| {
            let (given, value) = one(headers, &header::AUTHORIZATION)?.split_once(' ')?;
            given.eq_ignore_ascii_case(scheme).then(|| value.trim().to_owned())
        };
        match self {
            Self::Token(expected) => {
                let api_key = || one(headers, &HeaderName::from_static("x-api-key")).map(str::to_owned);
                let given = bearer("bearer")
                    .or_else(api_key)
                    .ok_or("send the token as Authorization: Bearer … or as X-Api-Key: …")?;
                same(expected, given.as_bytes()).then_some(Sender::Known).ok_or("this is not the token")
            }
            Self::Basic(expected) => {
                let given = bearer("basic").ok_or("send user name and password by Basic authentication")?;
                let given = STANDARD.decode(given).unwrap_or_default();
                same(expected, &given)
                    .then_some(Sender::Known)
                    .ok_or("this is not the user name with its password")
            }
            Self::Hmac(keys) => signed(keys, headers, now).map(Sender::Signed),
        }
    }
}

impl Signed {
    /// The next part of the body.
    pub fn update(&mut self, part: &[u8]) {
        self.contexts.iter_mut().for_each(|context| context.update(part));
    }

    /// Whether any of the secrets made any of the signatures.
    pub fn verifies(self) -> bool {
        let tags: Vec<hmac::Tag> = self.contexts.into_iter().map(hmac::Context::sign).collect();
        let mut right = false;
        for tag in &tags {
            for signature in &self.signatures {
                // Every pair is compared.
                right |= constant_time::verify_slices_are_equal(tag.as_ref(), signature).is_ok();
            }
        }
        right
    }
}

fn signed(keys: &[hmac::Key], headers: &HeaderMap, now: i64) -> Result<Signed, &'static str> {
    let text = |name: &'static str| one(headers, &HeaderName::from_static(name));
    let (Some(id), Some(at), Some(signatures)) =
        (text("webhook-id"), text("webhook-timestamp"), text("webhook-signature"))
    else {
        return Err(
            "send webhook-id, webhook-timestamp and webhook-signature, once each (Standard Webhooks)",
        );
    };
    let time: i64 = at.parse().map_err(|_| "webhook-timestamp is no time in Unix seconds")?;
    if now.saturating_sub(time).unsigned_abs() > TOLERANCE.unsigned_abs() {
        return Err(
            "webhook-timestamp is more than 5 minutes from now: check both clocks, and sign each try anew",
        );
    }
    let signatures: Vec<Vec<u8>> = signatures
        .split(' ')
        .filter_map(|one| one.strip_prefix("v1,"))
        .take(MAX_SIGNATURES)
        .filter_map(|one| STANDARD.decode(one).ok())
        .collect();
    if signatures.is_empty() {
        return Err("webhook-signature has no signature of version v1");
    }
    let begin = |key: &hmac::Key| {
        let mut context = hmac::Context::with_key(key);
        context.update(format!("{id}.{at}.").as_bytes());
        context
    };
    Ok(Signed { id: id.to_owned(), contexts: keys.iter().map(begin).collect(), signatures })
}

/// The one value of a header; nothing if it is repeated.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

fn same(expected: &Sha256, given: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(expected.bytes(), Sha256::of(given).bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use std::fs;

    fn guard(auth: fn(SecretRef) -> ListenerAuth, secret: &str) -> Result<Guard, String> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("s"), secret).unwrap();
        Guard::read(&auth(SecretRef::File("s".into())), dir.path())
    }

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn known(guard: &Guard, list: &[(&'static str, &str)]) -> bool {
        matches!(guard.look(&headers(list), 0), Ok(Sender::Known))
    }

    #[test]
    fn only_the_token_and_only_the_password_open() {
        let token = guard(ListenerAuth::Token, "s3cret\n").unwrap();
        for right in
            [("authorization", "Bearer s3cret"), ("authorization", "bearer s3cret"), ("x-api-key", "s3cret")]
        {
            assert!(known(&token, &[right]), "{right:?}");
        }
        for wrong in [("authorization", "Bearer s3cre"), ("authorization", "Basic s3cret"), ("x-api-key", "")]
        {
            assert!(!known(&token, &[wrong]), "{wrong:?}");
        }
        assert!(!known(&token, &[]));
        assert!(!known(&token, &[("x-api-key", "s3cret"), ("x-api-key", "s3cret")]), "repeated");
        let basic = |password| ListenerAuth::Basic { username: "till".to_owned(), password };
        let basic = guard(basic, "pa:ss").unwrap();
        assert!(known(&basic, &[("authorization", &format!("Basic {}", STANDARD.encode("till:pa:ss")))]));
        assert!(!known(&basic, &[("authorization", &format!("Basic {}", STANDARD.encode("till:pass")))]));
        assert!(!known(&basic, &[("authorization", "Basic ?")]));
    }

    /// The example of the specification's own libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const AT: i64 = 1_614_265_330;
    const BODY: &[u8] = b"{\"test\": 2432232314}";
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn right(guard: &Guard, id: &str, at: &str, signature: &str, body: &[u8], now: i64) -> bool {
        let list =
            headers(&[("webhook-id", id), ("webhook-timestamp", at), ("webhook-signature", signature)]);
        match guard.look(&list, now) {
            Ok(Sender::Signed(mut signed)) => {
                let (first, rest) = body.split_at(body.len() / 2);
                signed.update(first);
                signed.update(rest);
                signed.verifies()
            }
            Ok(Sender::Known) => panic!("known without its body"),
            Err(_) => false,
        }
    }

    #[test]
    fn a_signature_covers_id_time_and_body() {
        let guard = guard(|secret| ListenerAuth::Hmac(vec![secret]), SECRET).unwrap();
        let at = AT.to_string();
        assert!(right(&guard, ID, &at, SIGNATURE, BODY, AT));
        assert!(right(&guard, ID, &at, &format!("v1,AAAA v1a,x {SIGNATURE}"), BODY, AT + TOLERANCE));
        assert!(!right(&guard, ID, &at, SIGNATURE, BODY, AT + TOLERANCE + 1), "too old");
        assert!(!right(&guard, ID, &at, SIGNATURE, BODY, AT - TOLERANCE - 1), "from the future");
        assert!(!right(&guard, "msg_other", &at, SIGNATURE, BODY, AT));
        assert!(!right(&guard, ID, &(AT + 1).to_string(), SIGNATURE, BODY, AT));
        assert!(!right(&guard, ID, &at, SIGNATURE, b"{}", AT));
        assert!(!right(&guard, ID, &at, SIGNATURE.strip_prefix("v1,").unwrap(), BODY, AT));
        assert!(!right(&guard, ID, "now", SIGNATURE, BODY, AT));
    }

    #[test]
    fn a_secret_that_cannot_sign_is_named_but_not_shown() {
        for bad in ["not base64!", "c2hvcnQ="] {
            let why = guard(|secret| ListenerAuth::Hmac(vec![secret]), bad).err().unwrap();
            assert!(why.contains("openssl rand") && !why.contains(bad), "{why}");
        }
    }
}
