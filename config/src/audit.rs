//! `[audit]`: where copies of the audit go, and what happens when it has reached its quota.

use std::{fmt, path::PathBuf};
use url::{Host, Url};

/// The port of syslog.
const PORT: u16 = 514;
/// What `syslog` looks like.
pub(crate) const SYSLOG_RULE: &str = "expected the like of \"unix:/dev/log\", \"udp://syslog.example.com:514\" or \"tcp://syslog.example.com:514\"";

/// `[audit]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditSection {
    /// The file that gets each row as a line of JSON.
    pub file: Option<PathBuf>,
    /// The syslog server that gets each row.
    pub syslog: Option<Syslog>,
    /// What happens past `agent.audit_quota`.
    pub when_full: WhenFull,
}

/// `[audit] when_full`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The oldest rows go; a row tells of it.
    #[default]
    DeleteOldest,
    /// No job is taken until somebody makes room.
    Stop,
}

/// `[audit] syslog`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Syslog {
    /// A datagram socket of this machine.
    Unix(PathBuf),
    /// Datagrams: what is lost on the way is lost.
    Udp(String, u16),
    /// A connection, with octet counting (RFC 6587).
    Tcp(String, u16),
}

impl fmt::Display for Syslog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Udp(host, port) => write!(f, "udp://{host}:{port}"),
            Self::Tcp(host, port) => write!(f, "tcp://{host}:{port}"),
        }
    }
}

/// Reads the address of a syslog server.
pub(crate) fn syslog(text: &str) -> Option<Syslog> {
    if let Some(path) = text.strip_prefix("unix:") {
        return path.starts_with('/').then(|| Syslog::Unix(path.into()));
    }
    let url = Url::parse(text).ok()?;
    let bare = url.username().is_empty()
        && url.password().is_none()
        && matches!(url.path(), "" | "/")
        && url.query().is_none()
        && url.fragment().is_none();
    // Hosts of schemes that nobody registered are opaque, so an IPv4 address comes as a name here.
    let host = match url.host().filter(|_| bare)? {
        Host::Domain("") => return None,
        Host::Ipv6(ip) => format!("[{ip}]"),
        host @ (Host::Domain(_) | Host::Ipv4(_)) => host.to_string(),
    };
    let port = url.port().unwrap_or(PORT);
    match url.scheme() {
        "udp" => Some(Syslog::Udp(host, port)),
        "tcp" => Some(Syslog::Tcp(host, port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::syslog;

    #[test]
    fn addresses_are_read_and_others_refused() {
        for (text, read) in [
            ("unix:/dev/log", "unix:/dev/log"),
            ("udp://syslog.example.com", "udp://syslog.example.com:514"),
            ("tcp://10.1.2.3:6514", "tcp://10.1.2.3:6514"),
            ("tcp://[::1]:6514", "tcp://[::1]:6514"),
        ] {
            assert_eq!(syslog(text).map(|target| target.to_string()).as_deref(), Some(read), "{text}");
        }
        for text in [
            "",
            "unix:",
            "unix:dev/log",
            "syslog.example.com:514",
            "http://x:514",
            "tcp://u@x",
            "udp://",
            "tcp://x/y",
        ] {
            assert_eq!(syslog(text), None, "{text}");
        }
    }
}
