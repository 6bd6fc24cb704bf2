//! Signs requests as S3 demands it: AWS Signature Version 4, the digest of the body among what is signed.
//!
//! The keys come from the resource's settings alone. Nothing here, and nothing that this links, looks for others in the
//! environment, in `~/.aws`, or at a metadata service.

use aws_lc_rs::{digest, hmac};
use jiff::{Timestamp, tz::TimeZone};
use passerelle_config::Secret;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Method,
    header::{HeaderMap, HeaderValue},
};
use std::fmt::Write as _;

/// Every byte of a name or value but the unreserved ones.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Who asks.
pub(super) struct Keys {
    pub(super) id: Secret,
    pub(super) secret: Secret,
    pub(super) region: String,
}

/// What is signed.
pub(super) struct Signed<'a> {
    pub(super) method: &'a Method,
    /// As it is in the `Host` header.
    pub(super) host: &'a str,
    /// Percent-encoded, from the first slash.
    pub(super) path: &'a str,
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) body: &'a [u8],
}

/// One name of a path, or a key or value of a query, encoded.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// A query in the order that is signed, as it is sent.
pub(super) fn query(pairs: &[(&str, &str)]) -> String {
    let mut encoded: Vec<(String, String)> =
        pairs.iter().map(|(key, value)| (encode(key), encode(value))).collect();
    encoded.sort();
    let pairs: Vec<String> = encoded.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join("&")
}

/// SHA-256 in hex.
pub(super) fn hex_digest(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

impl Keys {
    /// Adds date, digest and signature to the headers, all of which are signed.
    ///
    /// `None` if a header or the key's id cannot be written in a header.
    pub(super) fn sign(&self, request: &Signed<'_>, headers: &mut HeaderMap, now: Timestamp) -> Option<()> {
        let time = now.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string();
        let (date, _) = time.split_at_checked(8)?;
        let content = hex_digest(request.body);
        headers.insert("x-amz-content-sha256", HeaderValue::from_str(&content).ok()?);
        headers.insert("x-amz-date", HeaderValue::from_str(&time).ok()?);

        let mut signed: Vec<(&str, &str)> = vec![("host", request.host)];
        for (name, value) in &*headers {
            signed.push((name.as_str(), value.to_str().ok()?.trim()));
        }
        signed.sort_unstable();
        let names: Vec<&str> = signed.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let mut canonical = format!("{}\n{}\n{}\n", request.method, request.path, query(request.query));
        for (name, value) in &signed {
            writeln!(canonical, "{name}:{value}").ok()?;
        }
        write!(canonical, "\n{names}\n{content}").ok()?;

        let scope = format!("{date}/{}/s3/aws4_request", self.region);
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex_digest(canonical.as_bytes()));
        let first = format!("AWS4{}", self.secret.expose());
        let mut key = mac(first.as_bytes(), date.as_bytes());
        for next in [self.region.as_str(), "s3", "aws4_request"] {
            key = mac(key.as_ref(), next.as_bytes());
        }
        let signature = hex(mac(key.as_ref(), text.as_bytes()).as_ref());
        let value = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}",
            self.id.expose()
        );
        let mut value = HeaderValue::from_str(&value).ok()?;
        value.set_sensitive(true);
        headers.insert(reqwest::header::AUTHORIZATION, value);
        Some(())
    }
}

fn mac(key: &[u8], text: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use passerelle_config::SecretRef;

    fn secret(dir: &std::path::Path, text: &str) -> Secret {
        std::fs::write(dir.join("secret"), text).unwrap();
        SecretRef::File("secret".into()).read(dir).unwrap()
    }

    /// The examples of "Authenticating Requests: Using the Authorization Header" in the API reference of Amazon S3.
    #[test]
    fn the_published_examples_come_out_as_published() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys {
            id: secret(dir.path(), "AKIAIOSFODNN7EXAMPLE"),
            secret: secret(dir.path(), "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            region: "us-east-1".to_owned(),
        };
        let now: Timestamp = "2013-05-24T00:00:00Z".parse().unwrap();
        let signature = |method: Method,
                         path: &str,
                         query: &[(&str, &str)],
                         extra: &[(&'static str, &str)],
                         body: &[u8]| {
            let mut headers = HeaderMap::new();
            for (name, value) in extra {
                headers.insert(*name, HeaderValue::from_str(value).unwrap());
            }
            let host = "examplebucket.s3.amazonaws.com";
            let request = Signed { method: &method, host, path, query, body };
            keys.sign(&request, &mut headers, now).unwrap();
            let value = headers["authorization"].to_str().unwrap().to_owned();
            assert!(headers["authorization"].is_sensitive());
            value.rsplit('=').next().unwrap().to_owned()
        };
        assert_eq!(
            signature(Method::GET, "/test.txt", &[], &[("range", "bytes=0-9")], b""),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        let put = [("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")];
        assert_eq!(
            signature(Method::PUT, "/test%24file.text", &[], &put, b"Welcome to Amazon S3."),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
        );
        assert_eq!(
            signature(Method::GET, "/", &[("lifecycle", "")], &[], b""),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
        assert_eq!(
            signature(Method::GET, "/", &[("prefix", "J"), ("max-keys", "2")], &[], b""),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
    }

    #[test]
    fn every_byte_but_the_unreserved_is_encoded() {
        assert_eq!(encode("a-b_c.d~e/é +%"), "a-b_c.d~e%2F%C3%A9%20%2B%25");
        assert_eq!(query(&[("b", "1 2"), ("a", "")]), "a=&b=1%202");
    }
}
