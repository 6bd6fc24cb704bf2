//! HTTP authentication as WebDAV servers ask for it: Basic (RFC 7617) and Digest (RFC 7616, and RFC 2069 without `qop`).
//!
//! Nothing is sent before the server has asked. Of several ways that it offers the strongest is taken: Digest with
//! SHA-512-256, SHA-256, MD5, then Basic.

use aws_lc_rs::{
    digest::{SHA256, SHA512_256, digest},
    rand,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use md5::{Digest as _, Md5};
use passerelle_config::Secret;
use reqwest::header::HeaderValue;
use std::fmt;

/// Who logs in.
#[derive(Debug)]
pub(in crate::file) struct Credentials {
    pub(in crate::file) username: String,
    pub(in crate::file) password: Secret,
}

/// Hash functions, the strongest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hash {
    Md5,
    Sha256,
    Sha512Of256,
}

impl Hash {
    fn hex(self, text: &[u8]) -> String {
        match self {
            Self::Md5 => hex(&Md5::digest(text)),
            Self::Sha256 => hex(digest(&SHA256, text).as_ref()),
            Self::Sha512Of256 => hex(digest(&SHA512_256, text).as_ref()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the server asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Digest(DigestChallenge),
}

/// A Digest challenge, and how often its nonce has been used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DigestChallenge {
    hash: Hash,
    /// The algorithm as the server named it; it is sent back.
    algorithm: Option<String>,
    /// Whether the algorithm is a `-sess` one.
    session: bool,
    realm: String,
    nonce: String,
    opaque: Option<String>,
    /// Whether `qop=auth` is offered; without it the old form of RFC 2069 is spoken.
    qop: bool,
    /// Whether the server only found the nonce too old.
    stale: bool,
    count: u32,
}

/// None of the ways that the server offers is known here.
#[derive(Debug)]
pub(super) struct NotOffered(String);

impl fmt::Display for NotOffered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server asks for {}; the agent can Basic and Digest", self.0)
    }
}

impl Challenge {
    /// The strongest way among the `WWW-Authenticate` headers of an answer.
    pub(super) fn choose<'a>(headers: impl Iterator<Item = &'a [u8]>) -> Result<Self, NotOffered> {
        let mut offered = Vec::new();
        let mut best: Option<Self> = None;
        for header in headers {
            for (scheme, parameters) in challenges(&String::from_utf8_lossy(header)) {
                let found = match scheme.to_ascii_lowercase().as_str() {
                    "basic" => Some(Self::Basic),
                    "digest" => DigestChallenge::new(&parameters).map(Self::Digest),
                    _ => None,
                };
                offered.push(scheme);
                if found.as_ref().map(Self::strength) > best.as_ref().map(Self::strength) {
                    best = found;
                }
            }
        }
        let offered =
            if offered.is_empty() { "a log-in without saying how".to_owned() } else { offered.join(", ") };
        best.ok_or(NotOffered(offered))
    }

    fn strength(&self) -> Option<Hash> {
        match self {
            Self::Basic => None,
            Self::Digest(digest) => Some(digest.hash),
        }
    }

    /// Whether the credentials were not refused, only the nonce was too old.
    pub(super) fn is_stale(&self) -> bool {
        matches!(self, Self::Digest(digest) if digest.stale)
    }

    /// The next nonce, where the server names one in `Authentication-Info`.
    pub(super) fn follow(&mut self, info: &[u8]) {
        let Self::Digest(digest) = self else { return };
        let info = String::from_utf8_lossy(info);
        let parsed = challenges(&format!("Info {info}"));
        let next = parsed.first().and_then(|(_, parameters)| value(parameters, "nextnonce"));
        if let Some(nonce) = next {
            digest.nonce = nonce.to_owned();
            digest.count = 0;
        }
    }

    /// The value of `Authorization` for a request. `None` if the user's name cannot be written in a header.
    pub(super) fn answer(&mut self, who: &Credentials, method: &str, target: &str) -> Option<HeaderValue> {
        let text = match self {
            Self::Basic => {
                let pair = format!("{}:{}", who.username, who.password.expose());
                format!("Basic {}", STANDARD.encode(pair))
            }
            Self::Digest(digest) => {
                digest.count += 1;
                digest.answer(&who.username, who.password.expose(), (method, target), &client_nonce())
            }
        };
        let mut value = HeaderValue::from_bytes(text.as_bytes()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

fn client_nonce() -> String {
    let mut bytes = [0; 16];
    // Without randomness the server's own nonce still protects; an error here is not known to happen.
    if rand::fill(&mut bytes).is_err() {
        tracing::debug!("no randomness for a client nonce");
    }
    hex(&bytes)
}

impl DigestChallenge {
    fn new(parameters: &[(String, String)]) -> Option<Self> {
        let algorithm = value(parameters, "algorithm");
        let named = algorithm.unwrap_or("MD5").to_ascii_uppercase();
        let (name, session) = match named.strip_suffix("-SESS") {
            Some(name) => (name, true),
            None => (named.as_str(), false),
        };
        let hash = match name {
            "MD5" => Hash::Md5,
            "SHA-256" => Hash::Sha256,
            "SHA-512-256" => Hash::Sha512Of256,
            _ => return None,
        };
        let qop = match value(parameters, "qop") {
            Some(offered) if offered.split(',').any(|qop| qop.trim().eq_ignore_ascii_case("auth")) => true,
            // Only the body's own digest, which cannot be known before the body has been sent.
            Some(_) => return None,
            None => false,
        };
        Some(Self {
            hash,
            algorithm: algorithm.map(str::to_owned),
            session,
            realm: value(parameters, "realm")?.to_owned(),
            nonce: value(parameters, "nonce")?.to_owned(),
            opaque: value(parameters, "opaque").map(str::to_owned),
            qop,
            stale: value(parameters, "stale").is_some_and(|stale| stale.eq_ignore_ascii_case("true")),
            count: 0,
        })
    }

    fn answer(
        &self,
        username: &str,
        password: &str,
        (method, target): (&str, &str),
        client_nonce: &str,
    ) -> String {
        let Self { hash, realm, nonce, .. } = self;
        let count = format!("{:08x}", self.count);
        let mut secret = hash.hex(format!("{username}:{realm}:{password}").as_bytes());
        if self.session {
            secret = hash.hex(format!("{secret}:{nonce}:{client_nonce}").as_bytes());
        }
        let request = hash.hex(format!("{method}:{target}").as_bytes());
        let response = if self.qop {
            hash.hex(format!("{secret}:{nonce}:{count}:{client_nonce}:auth:{request}").as_bytes())
        } else {
            hash.hex(format!("{secret}:{nonce}:{request}").as_bytes())
        };
        let mut text = format!(
            "Digest username=\"{}\", realm=\"{}\", nonce=\"{}\", uri=\"{target}\", response=\"{response}\"",
            quoted(username),
            quoted(realm),
            quoted(nonce),
        );
        if let Some(algorithm) = &self.algorithm {
            text += &format!(", algorithm={algorithm}");
        }
        if let Some(opaque) = &self.opaque {
            text += &format!(", opaque=\"{}\"", quoted(opaque));
        }
        if self.qop {
            text += &format!(", qop=auth, nc={count}, cnonce=\"{client_nonce}\"");
        } else if self.session {
            text += &format!(", cnonce=\"{client_nonce}\"");
        }
        text
    }
}

fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn value<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// The challenges of one header: several may stand in it, and commas separate both them and their parameters.
fn challenges(header: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for piece in split(header) {
        let (first, rest) = match piece.split_once(char::is_whitespace) {
            // `Scheme name=value` opens a challenge, `name = value` does not.
            Some((first, rest)) if !first.contains('=') && !rest.trim_start().starts_with('=') => {
                (Some(first), rest)
            }
            Some(_) => (None, piece),
            None if piece.contains('=') => (None, piece),
            None => (Some(piece), ""),
        };
        if let Some(scheme) = first {
            found.push((scheme.to_owned(), Vec::new()));
        }
        if let (Some((_, parameters)), Some((name, value))) = (found.last_mut(), rest.split_once('=')) {
            parameters.push((name.trim().to_owned(), unquoted(value.trim())));
        }
    }
    found
}

/// Splits at commas outside quotes.
fn split(header: &str) -> Vec<&str> {
    let (mut pieces, mut start, mut quotes, mut escaped) = (Vec::new(), 0, false, false);
    for (at, character) in header.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quotes => escaped = true,
            '"' => quotes = !quotes,
            ',' if !quotes => {
                pieces.push(header.get(start..at).unwrap_or_default());
                start = at + 1;
            }
            _ => {}
        }
    }
    pieces.push(header.get(start..).unwrap_or_default());
    pieces.into_iter().map(str::trim).filter(|piece| !piece.is_empty()).collect()
}

fn unquoted(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) else {
        return value.to_owned();
    };
    let mut text = String::new();
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.extend(characters.next()),
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest_of(challenge: &str) -> DigestChallenge {
        match Challenge::choose([challenge.as_bytes()].into_iter()).unwrap() {
            Challenge::Digest(digest) => digest,
            Challenge::Basic => panic!("Basic was chosen"),
        }
    }

    /// The examples of RFC 7616 §3.9.1 and RFC 2617 §3.5.
    #[test]
    fn the_examples_of_the_standards_come_out() {
        let nonce = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v";
        let cnonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ";
        let rfc7616 = |algorithm: &str| {
            let mut digest = digest_of(&format!(
                "Digest realm=\"http-auth@example.org\", qop=\"auth, auth-int\", algorithm={algorithm}, \
                 nonce=\"{nonce}\", opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\""
            ));
            digest.count = 1;
            digest.answer("Mufasa", "Circle of Life", ("GET", "/dir/index.html"), cnonce)
        };
        let sha = rfc7616("SHA-256");
        for part in [
            "response=\"753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1\"",
            "username=\"Mufasa\"",
            "uri=\"/dir/index.html\"",
            "algorithm=SHA-256",
            "nc=00000001",
            "qop=auth",
            "opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\"",
        ] {
            assert!(sha.contains(part), "{part} is not in {sha}");
        }
        assert!(rfc7616("MD5").contains("response=\"8ca523f5e9506fed4657c9700eebdbec\""));
        let mut old = digest_of(
            "Digest realm=\"testrealm@host.com\", qop=\"auth,auth-int\", \
             nonce=\"dcd98b7102dd2f0e8b11d0f600bfb0c093\", opaque=\"5ccc069c403ebaf9f0171e9517f40e41\"",
        );
        old.count = 1;
        let answer = old.answer("Mufasa", "Circle Of Life", ("GET", "/dir/index.html"), "0a4f113b");
        assert!(answer.contains("response=\"6629fae49393a05397450978507c4ef1\""), "{answer}");
        assert!(!answer.contains("algorithm"), "what was not named is not sent back: {answer}");
    }

    #[test]
    fn without_qop_the_old_form_is_spoken() {
        let digest =
            digest_of("Digest realm=\"testrealm@host.com\", nonce=\"dcd98b7102dd2f0e8b11d0f600bfb0c093\"");
        let answer = digest.answer("Mufasa", "CircleOfLife", ("GET", "/dir/index.html"), "unused");
        // RFC 2069 with its erratum 749.
        assert!(answer.contains("response=\"1949323746fe6a43ef61f9606e7febea\""), "{answer}");
        assert!(!answer.contains("qop") && !answer.contains("cnonce"), "{answer}");
    }

    #[test]
    fn the_strongest_way_is_taken() {
        let choose = |headers: &[&str]| Challenge::choose(headers.iter().map(|header| header.as_bytes()));
        let md5 = "Digest realm=\"a, b\", nonce=\"x\\\"y\", qop=\"auth\", algorithm=MD5";
        let sha = "Digest realm=\"r\", nonce=\"n\", qop=\"auth\", algorithm=SHA-256, stale=TRUE";
        for headers in [&["Basic realm=\"x\"", md5, sha][..], &[sha, md5, "Basic realm=\"x\""]] {
            let chosen = choose(headers).unwrap();
            assert_eq!(chosen.strength(), Some(Hash::Sha256));
            assert!(chosen.is_stale());
        }
        let joined = format!("Negotiate, Basic realm=\"x, y\", {md5}");
        let Challenge::Digest(found) = choose(&[&joined]).unwrap() else { panic!("{joined}") };
        assert_eq!((found.realm.as_str(), found.nonce.as_str()), ("a, b", "x\"y"));
        assert_eq!(choose(&["Basic realm=x"]).unwrap(), Challenge::Basic);
        let refused =
            choose(&["Negotiate", "Digest realm=\"r\", nonce=\"n\", qop=\"auth-int\""]).unwrap_err();
        assert!(refused.to_string().contains("Negotiate, Digest"), "{refused}");
        assert!(choose(&[]).is_err());
    }

    #[test]
    fn each_use_of_a_nonce_is_counted_and_the_next_one_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), "p").unwrap();
        let reference: passerelle_config::SecretRef =
            serde_json::from_value(serde_json::json!({ "file": "secret" })).unwrap();
        let who =
            Credentials { username: "Mufasa".to_owned(), password: reference.read(folder.path()).unwrap() };
        let mut challenge =
            Challenge::choose([&b"Digest realm=\"r\", nonce=\"n\", qop=\"auth\""[..]].into_iter()).unwrap();
        let mut answer = || {
            let value = challenge.answer(&who, "PUT", "/a").unwrap();
            assert!(value.is_sensitive());
            value.to_str().unwrap().to_owned()
        };
        assert!(answer().contains("nc=00000001"));
        assert!(answer().contains("nc=00000002"));
        challenge.follow(b"nextnonce=\"m\", qop=auth");
        let next = challenge.answer(&who, "PUT", "/a").unwrap();
        let next = next.to_str().unwrap();
        assert!(next.contains("nonce=\"m\"") && next.contains("nc=00000001"), "{next}");
    }

    proptest! {
        #[test]
        fn whatever_the_server_asks_is_answered(header in "[Digest Basic=,\"\\\\a-z]{0,60}") {
            drop(Challenge::choose([header.as_bytes()].into_iter()));
        }
    }
}
