//! Which host keys the server may have, from a `known_hosts` file in OpenSSH's format.
//!
//! Each line is asked by libssh2's own matching: plain, comma-separated and hashed names, `[host]:port`; no wildcards.
//! A key marked `@revoked` is refused whatever hosts its line names.
//! There is no "accept all" and no "accept the first time".

use aws_lc_rs::digest::{SHA256, digest};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use ssh2::{CheckResult, KnownHostFileKind, Session};

/// The host key algorithms we take, best first; the types of `known_hosts` lines beside them.
const ALGORITHMS: [(&str, &str); 6] = [
    ("ssh-ed25519", "ssh-ed25519"),
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256"),
    ("ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384"),
    ("ecdsa-sha2-nistp521", "ecdsa-sha2-nistp521"),
    ("ssh-rsa", "rsa-sha2-512"),
    ("ssh-rsa", "rsa-sha2-256"),
];

/// What the file says of an offered key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Known,
    /// The file has other keys for this host, not this one.
    Changed,
    Unknown,
    Revoked,
}

/// A line of the file.
struct Line<'a> {
    text: &'a str,
    key_type: &'a str,
    key: Vec<u8>,
    revoked: bool,
}

fn lines(file: &str) -> impl Iterator<Item = Line<'_>> {
    file.lines().filter_map(|line| {
        let line = line.trim();
        // Certificate authorities are not supported: such a line allows nothing.
        let (revoked, text) = match line.strip_prefix('@') {
            Some(marked) => (true, marked.strip_prefix("revoked")?.trim_start()),
            None => (false, line),
        };
        let mut words = text.split_ascii_whitespace();
        words.next().filter(|hosts| !hosts.starts_with('#'))?;
        let key_type = words.next()?;
        let key = STANDARD.decode(words.next()?).ok()?;
        Some(Line { text, key_type, key, revoked })
    })
}

/// Asks libssh2 whether one line is about this host and, if so, whether it has this key.
fn ask(session: &Session, line: &Line<'_>, host: &str, port: u16, key: &[u8]) -> CheckResult {
    let Ok(mut hosts) = session.known_hosts() else { return CheckResult::Failure };
    match hosts.read_str(line.text, KnownHostFileKind::OpenSSH) {
        Ok(()) => hosts.check_port(host, port, key),
        Err(_) => CheckResult::NotFound,
    }
}

/// The order in which to ask the server for host key algorithms: those that the file has a key for come first, so
/// that a file with one ed25519 line works with a server that has more keys.
pub(super) fn preference(session: &Session, file: &str, host: &str, port: u16) -> String {
    let known: Vec<&str> = lines(file)
        .filter(|line| !line.revoked)
        .filter(|line| matches!(ask(session, line, host, port, &line.key), CheckResult::Match))
        .map(|line| line.key_type)
        .collect();
    let (mut first, rest): (Vec<_>, Vec<_>) =
        ALGORITHMS.iter().partition(|(key_type, _)| known.contains(key_type));
    first.extend(rest);
    first.iter().map(|(_, algorithm)| *algorithm).collect::<Vec<_>>().join(",")
}

/// Whether the server may have this key.
pub(super) fn check(session: &Session, file: &str, host: &str, port: u16, key: &[u8]) -> Verdict {
    let mut verdict = Verdict::Unknown;
    for line in lines(file) {
        if line.revoked {
            if line.key == key {
                return Verdict::Revoked;
            }
            continue;
        }
        match ask(session, &line, host, port, key) {
            CheckResult::Match => verdict = Verdict::Known,
            CheckResult::Mismatch if verdict == Verdict::Unknown => verdict = Verdict::Changed,
            CheckResult::Mismatch | CheckResult::NotFound | CheckResult::Failure => {}
        }
    }
    verdict
}

/// As `ssh-keygen -l` prints it.
pub(super) fn fingerprint(key: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(digest(&SHA256, key)))
}

/// The type that a key names in its own first field.
fn key_type(key: &[u8]) -> Option<&str> {
    let (length, rest) = key.split_first_chunk::<4>()?;
    let name = rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    std::str::from_utf8(name).ok().filter(|name| name.bytes().all(|byte| byte.is_ascii_graphic()))
}

/// The line to add to the file once the key has been verified.
pub(super) fn line(host: &str, port: u16, key: &[u8]) -> String {
    let host = if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") };
    format!("{host} {} {}", key_type(key).unwrap_or("unknown-type"), STANDARD.encode(key))
}

/// The type of a key, for people.
pub(super) fn describe(key: &[u8]) -> String {
    format!("{} {}", key_type(key).unwrap_or("unknown-type"), fingerprint(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key_type: &str, content: &str) -> Vec<u8> {
        let mut key = u32::try_from(key_type.len()).unwrap().to_be_bytes().to_vec();
        key.extend_from_slice(key_type.as_bytes());
        key.extend_from_slice(content.as_bytes());
        key
    }

    fn entry(hosts: &str, key: &[u8]) -> String {
        format!("{hosts} {} {}", key_type(key).unwrap(), STANDARD.encode(key))
    }

    #[test]
    fn lines_are_matched_by_host_port_and_key() {
        let session = Session::new().unwrap();
        let (good, other) = (key("ssh-ed25519", "good"), key("ssh-ed25519", "other"));
        let check = |file: &str, port, expected: Verdict| {
            assert_eq!(check(&session, file, "files.intra", port, &good), expected, "{file} {port}");
        };
        check("", 22, Verdict::Unknown);
        check("# files.intra ssh-ed25519 AAAA\nnonsense", 22, Verdict::Unknown);
        check(&entry("files.intra", &good), 22, Verdict::Known);
        check(&entry("10.0.0.1,files.intra", &good), 22, Verdict::Known);
        check(&entry("elsewhere.intra", &good), 22, Verdict::Unknown);
        check(&entry("files.intra", &other), 22, Verdict::Changed);
        check(
            &format!("{}\n{}", entry("files.intra", &other), entry("files.intra", &good)),
            22,
            Verdict::Known,
        );
        check(&entry("[files.intra]:2222", &good), 2222, Verdict::Known);
        check(&entry("[files.intra]:2222", &good), 2223, Verdict::Unknown);
        check(&format!("@revoked {}", entry("files.intra", &good)), 22, Verdict::Revoked);
        check(
            &format!("{}\n@revoked * {}", entry("files.intra", &good), entry("", &good).trim()),
            22,
            Verdict::Revoked,
        );
        check(
            &format!("{}\n@revoked * {}", entry("files.intra", &good), entry("", &other).trim()),
            22,
            Verdict::Known,
        );
        check(&entry("*.intra", &good), 22, Verdict::Unknown);
        let both = format!("{}\n@revoked {}", entry("files.intra", &good), entry("files.intra", &good));
        check(&both, 22, Verdict::Revoked);
        check(&format!("@cert-authority {}", entry("files.intra", &good)), 22, Verdict::Unknown);
    }

    #[test]
    fn known_types_are_asked_for_first() {
        let session = Session::new().unwrap();
        let file = entry("files.intra", &key("ssh-rsa", "x"));
        let order = preference(&session, &file, "files.intra", 22);
        assert!(order.starts_with("rsa-sha2-512,rsa-sha2-256,ssh-ed25519"), "{order}");
        let order = preference(&session, &file, "elsewhere", 22);
        assert!(order.starts_with("ssh-ed25519,"), "{order}");
        assert!(!order.split(',').any(|algorithm| algorithm == "ssh-rsa"), "SHA-1 signatures are not taken");
    }

    #[test]
    fn the_line_to_add_is_one_that_then_matches() {
        let session = Session::new().unwrap();
        let key = key("ssh-ed25519", "x");
        for port in [22, 2222] {
            assert_eq!(
                check(&session, &line("files.intra", port, &key), "files.intra", port, &key),
                Verdict::Known
            );
        }
        assert!(describe(&key).starts_with("ssh-ed25519 SHA256:"));
    }
}
