//! Paths of a resource: checked for form, decoded once, and joined below the resource's URL.

use crate::{Code, Failure};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Url;

const MAX_PATH: usize = 2048;

/// All that may not stand for itself inside a path segment (RFC 3986 §3.3: `pchar`).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// Checks a path as a job gives it and decodes it once: what comes out is what the policy compares.
///
/// # Errors
/// `path_invalid` (denied).
pub(super) fn decode(path: &str) -> Result<String, Failure> {
    if path.len() > MAX_PATH {
        return Err(invalid(format!("the path is longer than {MAX_PATH} bytes")));
    }
    if path.starts_with('/') {
        return Err(invalid("the path starts with /; paths are relative to the resource"));
    }
    if path.contains(['?', '#']) {
        return Err(invalid("the path contains ? or #; put the query into query, or write %3F or %23"));
    }
    check_escapes(path)?;
    let decoded = percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| invalid("the path is not UTF-8 once decoded"))?
        .into_owned();
    check(decoded)
}

/// Checks a path that needs no decoding: each part stays one part, and none climbs.
///
/// # Errors
/// `path_invalid` (denied).
pub(super) fn check(decoded: String) -> Result<String, Failure> {
    if decoded.len() > MAX_PATH {
        return Err(invalid(format!("the path is longer than {MAX_PATH} bytes")));
    }
    if decoded.chars().any(char::is_control) {
        return Err(invalid("the path contains a control character"));
    }
    if decoded.contains('\\') {
        return Err(invalid("the path contains a backslash"));
    }
    for part in decoded.split('/') {
        // Some servers cut parameters (`;…`) off a part before they look at it, so `..;x` would climb there.
        match part.split(';').next() {
            None | Some("") => return Err(invalid("the path has an empty part")),
            Some("." | "..") => return Err(invalid("the path has a part . or ..")),
            Some(_) => {}
        }
    }
    Ok(decoded)
}

fn check_escapes(path: &str) -> Result<(), Failure> {
    let mut rest = path;
    while let Some((_, after)) = rest.split_once('%') {
        match after.as_bytes() {
            [b'2', b'f' | b'F', ..] => return Err(invalid("the path contains an encoded slash (%2f)")),
            [b'5', b'c' | b'C', ..] => return Err(invalid("the path contains an encoded backslash (%5c)")),
            [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {}
            _ => return Err(invalid("the path contains a % that is not followed by two hex digits")),
        }
        rest = after;
    }
    Ok(())
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::denied(Code::PathInvalid, message)
}

/// The URL of a decoded path below `base`, whose own path ends with `/`.
///
/// # Errors
/// `path_invalid` (denied) if the URL would not be exactly the path below the base.
pub(super) fn join(base: &Url, decoded: &str) -> Result<Url, Failure> {
    let encoded: Vec<String> =
        decoded.split('/').map(|part| utf8_percent_encode(part, SEGMENT).to_string()).collect();
    let path = format!("{}{}", base.path(), encoded.join("/"));
    let mut url = base.clone();
    url.set_path(&path);
    // The URL library resolves dots and the like; if it changed anything, the path was not what it looked like.
    if url.path() == path { Ok(url) } else { Err(invalid("the path cannot be put below the resource's url")) }
}

/// Whether `url` is of the same origin as `base` and below it.
pub(super) fn is_below(base: &Url, url: &Url) -> bool {
    base.origin() == url.origin()
        && url.username().is_empty()
        && url.password().is_none()
        && url.path().strip_prefix(base.path()).is_some_and(|rest| rest.is_empty() || decode(rest).is_ok())
}

#[cfg(test)]
mod tests {
    use super::{decode, is_below, join};
    use crate::{Code, Verdict};
    use proptest::prelude::{any, prop_assert, proptest};
    use url::Url;

    fn base() -> Url {
        Url::parse("https://h:8443/api/").unwrap()
    }

    #[test]
    fn paths_decode_once_and_join_below_the_base() {
        for (given, decoded, url) in [
            ("orders/1", "orders/1", "https://h:8443/api/orders/1"),
            ("orders/a%20b", "orders/a b", "https://h:8443/api/orders/a%20b"),
            ("orders/a b", "orders/a b", "https://h:8443/api/orders/a%20b"),
            ("caf%C3%A9", "café", "https://h:8443/api/caf%C3%A9"),
            ("café", "café", "https://h:8443/api/caf%C3%A9"),
            ("a%252e%252e", "a%2e%2e", "https://h:8443/api/a%252e%252e"),
            ("%252e%252e/x", "%2e%2e/x", "https://h:8443/api/%252e%252e/x"),
            ("a%3Fb%23c", "a?b#c", "https://h:8443/api/a%3Fb%23c"),
            ("x;v=1/y", "x;v=1/y", "https://h:8443/api/x;v=1/y"),
            ("...", "...", "https://h:8443/api/..."),
            ("a:b@c", "a:b@c", "https://h:8443/api/a:b@c"),
        ] {
            let out = decode(given).unwrap();
            assert_eq!(out, decoded, "{given}");
            assert_eq!(join(&base(), &out).unwrap().as_str(), url, "{given}");
        }
    }

    #[test]
    fn malformed_and_climbing_paths_are_denied() {
        for path in [
            "",
            "/orders",
            "orders/",
            "orders//1",
            "..",
            ".",
            "a/../b",
            "a/./b",
            "%2e%2e/b",
            "a/%2E%2e",
            "%2e",
            "..;/b",
            "a/..;x=1/b",
            ";/b",
            "a%2fb",
            "a%2Fb",
            "a%5cb",
            "a%5Cb",
            "a\\b",
            "a%00b",
            "a\u{0}b",
            "a%0d%0ab",
            "a\nb",
            "a%7f",
            "a%zz",
            "a%",
            "a%2",
            "a%ff",
            "a?b",
            "a#b",
            &"a".repeat(2049),
        ] {
            let failure = decode(path).unwrap_err();
            assert_eq!((failure.verdict, failure.code), (Verdict::Denied, Code::PathInvalid), "{path:?}");
        }
    }

    #[test]
    fn only_the_same_origin_below_the_base_is_below() {
        for (url, below) in [
            ("https://h:8443/api/orders/1?x=1", true),
            ("https://h:8443/api/", true),
            ("https://h:8443/apix", false),
            ("https://h:8443/other", false),
            ("https://h:8443/api/../other", false),
            ("https://h:8443/api/a%2f..%2fother", false),
            ("https://h/api/orders", false),
            ("http://h:8443/api/orders", false),
            ("https://u@h:8443/api/orders", false),
            ("https://other:8443/api/orders", false),
        ] {
            assert_eq!(is_below(&base(), &Url::parse(url).unwrap()), below, "{url}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_stays_below_the_base(path in any::<String>()) {
            if let Ok(decoded) = decode(&path) {
                let url = join(&base(), &decoded).unwrap();
                prop_assert!(is_below(&base(), &url));
                let segments: Vec<String> = url.path().strip_prefix("/api/").unwrap().split('/')
                    .map(|s| percent_encoding::percent_decode_str(s).decode_utf8().unwrap().into_owned()).collect();
                prop_assert!(segments.join("/") == decoded);
            }
        }
    }
}
