//! Checks of single values that several parts of the configuration share.

use crate::{Diagnostics, Section, defaults::MAX_NAME};
use std::ops::RangeInclusive;
use url::{Host, Url};

/// The rule for the names of agents, resources, connectors and operations.
pub(crate) const NAME_RULE: &str =
    "a name is 1 to 64 of a-z, 0-9, '.', '_' and '-', and starts with a letter or digit";

/// Whether a text is a name. The protocol has the same rule; the configuration does not depend on it.
pub(crate) fn is_name(text: &str) -> bool {
    let lower = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= MAX_NAME
        && text.as_bytes().first().is_some_and(lower)
        && text.bytes().all(|b| lower(&b) || matches!(b, b'.' | b'_' | b'-'))
}

/// Makes a name of any text, such as a host's name; `None` if nothing of it remains.
pub(crate) fn make_name(text: &str) -> Option<String> {
    let plain = text.trim().chars().map(|c| {
        let c = c.to_ascii_lowercase();
        if c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_') { c } else { '-' }
    });
    let name: String = plain.skip_while(|c| !c.is_ascii_alphanumeric()).take(MAX_NAME).collect();
    let name = name.trim_end_matches(['-', '.', '_']);
    is_name(name).then(|| name.to_owned())
}

/// Whether a text is a token of HTTP (RFC 9110 §5.6.2).
pub(crate) fn is_token(text: &str) -> bool {
    let mark = |b| b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || mark(b))
}

/// Whether a host is this machine.
fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => *name == "localhost" || name.ends_with(".localhost"),
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => ip.is_loopback(),
    }
}

/// What an HTTP URL is for, which decides what it may look like.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Hub,
    Proxy,
}

/// Reads an HTTP URL. The text is never repeated in a finding: it could hold a password.
pub(crate) fn http_url(
    section: &Section,
    key: &str,
    text: &str,
    usage: Use,
    diagnostics: &mut Diagnostics,
) -> Option<Url> {
    let example = match usage {
        Use::Hub => "\"https://hub.example.com\"",
        Use::Proxy => "\"http://proxy.example.com:3128\"",
    };
    let problem = match Url::parse(text) {
        Err(error) => format!("not a URL ({error}); write one such as {example}"),
        Ok(url) if !url.username().is_empty() || url.password().is_some() => match usage {
            Use::Hub => format!("a URL with a user name or password; write one such as {example}"),
            Use::Proxy => "user name and password don't belong into the URL: use the keys \"username\" and \
                           \"password\" beside it"
                .to_owned(),
        },
        Ok(url) => match (url.scheme(), url.host(), usage) {
            ("http" | "https", Some(_), _) if url.query().is_some() || url.fragment().is_some() => {
                format!("a URL with '?' or '#'; write one such as {example}")
            }
            ("https", Some(_), Use::Hub) | ("http" | "https", Some(_), Use::Proxy) => return Some(url),
            ("http", Some(host), Use::Hub) if is_loopback(&host) => return Some(url),
            ("http", Some(_), Use::Hub) => {
                "plain http goes only to this machine (localhost, 127.0.0.1, [::1]); write https://"
                    .to_owned()
            }
            ("ws" | "wss", _, Use::Hub) => {
                "write the hub's address with https://; the tunnel is made from it".to_owned()
            }
            ("socks4" | "socks5" | "socks5h", _, Use::Proxy) => {
                "SOCKS is not spoken here; write the address of an HTTP proxy (CONNECT)".to_owned()
            }
            (scheme, _, _) => {
                format!("the scheme {scheme}:// is not supported here; write one such as {example}")
            }
        },
    };
    diagnostics.push(section.finding(key, problem));
    None
}

/// A number in its range.
pub(crate) fn in_range(
    section: &Section,
    key: &str,
    number: i64,
    range: RangeInclusive<u32>,
    diagnostics: &mut Diagnostics,
) -> u32 {
    if let Some(number) = u32::try_from(number).ok().filter(|number| range.contains(number)) {
        return number;
    }
    let message = format!("expected an integer from {} to {}, found {number}", range.start(), range.end());
    diagnostics.push(section.finding(key, message));
    *range.start()
}

/// A path that must not be empty.
pub(crate) fn not_empty(section: &Section, key: &str, empty: bool, diagnostics: &mut Diagnostics) {
    if empty {
        diagnostics.push(section.finding(key, "empty; write a path, or leave the key out"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_plain_alphabet_makes_a_name() {
        for good in ["a", "0", "compta", "orders-app", "a.b_c-9", &"x".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "-a", "_a", "A", "é", "a/b", "a b", "a\n", "..", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn host_names_are_made_to_fit() {
        for (host, name) in [
            ("Paris-1\n", Some("paris-1")),
            ("srv.intra.example.com", Some("srv.intra.example.com")),
            ("--Été_2", Some("t-_2")),
            ("", None),
            ("---", None),
        ] {
            assert_eq!(make_name(host).as_deref(), name, "{host:?}");
        }
        assert_eq!(make_name(&"x".repeat(100)).map(|name| name.len()), Some(64));
    }
}
