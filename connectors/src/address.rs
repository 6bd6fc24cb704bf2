//! Addresses that no resource may reach, whatever its configuration says: link-local ones, the metadata services of clouds,
//! and those that are no single host (unspecified, multicast, broadcast). Loopback and private addresses are for the
//! operator to name.
//!
//! Names are resolved here, the addresses are checked, and the checked ones are those connected to, so a name that
//! changes between check and use (DNS rebinding) gains nothing. A literal address in a URL never comes to a resolver and
//! is checked with the settings.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};
use url::{Host, Url};

/// Metadata services outside the link-local ranges: Alibaba, Oracle, Azure's wire server; AWS and Google over IPv6.
const METADATA_V4: &[Ipv4Addr] =
    &[Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA_V6: &[Ipv6Addr] =
    &[Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Whether connecting to `address` is forbidden whatever the configuration says.
pub(crate) fn is_blocked(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => blocked_v4(v4),
        IpAddr::V6(v6) if v6.is_loopback() => false,
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || v6.is_multicast()
                || METADATA_V6.contains(&v6)
                || embedded_v4(v6).is_some_and(blocked_v4)
        }
    }
}

/// `0.0.0.0/8` is this host by another name (RFC 1122 §3.2.1.3); `240.0.0.0/4` is nobody's, the broadcast address among it.
fn blocked_v4(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    address.is_link_local()
        || address.is_multicast()
        || first == 0
        || first >= 240
        || METADATA_V4.contains(&address)
}

/// The IPv4 address that one of these leads to: compatible and mapped (RFC 4291 §2.5.5), translated (RFC 2765 §2.1), NAT64
/// (RFC 6052 §2.1, RFC 8215 §3), 6to4 (RFC 3056 §2), Teredo (RFC 4380 §4), ISATAP (RFC 5214 §6.1). The unspecified address
/// counts as `0.0.0.0`.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let join = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, .., high, low]
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low]
        | [0x2002, high, low, ..] => join(high, low),
        // The client's address stands there with every bit turned.
        [0x2001, 0, .., high, low] => join(!high, !low),
        _ => None,
    }
}

/// Names of metadata services. Behind a resource's proxy nobody here resolves them.
const METADATA_NAMES: &[&str] = &[
    "instance-data",
    "instance-data.ec2.internal",
    "metadata",
    "metadata.azure.internal",
    "metadata.goog",
    "metadata.google.internal",
    "metadata.platformequinix.com",
    "metadata.tencentyun.com",
];

/// Whether a URL's host is forbidden as it is written.
pub(crate) fn is_blocked_host(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            METADATA_NAMES.contains(&name.as_str())
        }
        Host::Ipv4(v4) => is_blocked(IpAddr::V4(*v4)),
        Host::Ipv6(v6) => is_blocked(IpAddr::V6(*v6)),
    }
}

/// Reads an `http://` or `https://` URL of the configuration.
///
/// # Errors
/// What is wrong with it, for the finding at its key.
pub(crate) fn host_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text)
        .map_err(|e| format!("not a URL ({e}); expected the like of https://orders.intra:8443/api/"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("expected a URL with https:// or http://, found {}://", url.scheme()));
    }
    match url.host() {
        Some(host) if is_blocked_host(&host) => Err(BLOCKED_HERE.to_owned()),
        Some(_) | None => Ok(url),
    }
}

/// The same for a host that no URL parser has looked at.
pub(crate) fn is_blocked_text(host: &str) -> bool {
    match Host::parse(host) {
        Ok(Host::Domain(name)) => is_blocked_host(&Host::Domain(&name)),
        Ok(Host::Ipv4(v4)) => is_blocked_host(&Host::Ipv4(v4)),
        Ok(Host::Ipv6(v6)) => is_blocked_host(&Host::Ipv6(v6)),
        // What is no name shows when it is resolved.
        Err(_) => false,
    }
}

/// What the operator is told.
pub(crate) const BLOCKED_HERE: &str =
    "link-local, cloud metadata, multicast and unspecified addresses are always blocked; name another host";

/// The public sentence about it.
pub(crate) const BLOCKED: &str = "the resource's host has an address that is always blocked: link-local, cloud metadata, multicast or unspecified";

/// The name resolves only to forbidden addresses.
#[derive(Debug, thiserror::Error)]
#[error("{name} resolves to {address}, a link-local, cloud metadata, multicast or unspecified address")]
pub(crate) struct Blocked {
    name: String,
    address: IpAddr,
}

/// The name does not resolve.
#[derive(Debug, thiserror::Error)]
#[error("{name} does not resolve: {cause}")]
pub(crate) struct NotResolved {
    name: String,
    cause: String,
}

/// The system's resolver, without the forbidden addresses.
pub(crate) struct CheckedResolver;

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let name = name.as_str().to_owned();
            let found = tokio::net::lookup_host((name.as_str(), 0)).await.map(Vec::from_iter);
            let found = found.map_err(|e| NotResolved { name: name.clone(), cause: e.to_string() })?;
            let allowed = allowed(&name, &found)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// The addresses of a name that may be connected to.
///
/// # Errors
/// [`Blocked`] or [`NotResolved`].
pub(crate) fn allowed(
    name: &str,
    found: &[SocketAddr],
) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
    let (blocked, allowed): (Vec<SocketAddr>, Vec<SocketAddr>) =
        found.iter().partition(|address| is_blocked(address.ip()));
    match (allowed.as_slice(), blocked.first()) {
        ([_, ..], _) => Ok(allowed),
        ([], Some(address)) => Err(Blocked { name: name.to_owned(), address: address.ip() }.into()),
        ([], None) => Err(NotResolved { name: name.to_owned(), cause: "no address".to_owned() }.into()),
    }
}

/// The resolver for a client.
pub(crate) fn resolver() -> Arc<CheckedResolver> {
    Arc::new(CheckedResolver)
}

#[cfg(test)]
mod tests {
    use super::{Blocked, NotResolved, allowed, is_blocked, is_blocked_host};
    use std::net::SocketAddr;

    #[test]
    fn link_local_and_metadata_addresses_are_blocked_in_every_notation() {
        for text in [
            "169.254.169.254",
            "169.254.0.1",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "fe80::1",
            "febf::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "::ffff:169.254.169.254",
            "::ffff:100.100.100.200",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "::ffff:0:a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "64:ff9b:1:ffff::a9fe:a9fe",
            "2001:0:4136:e378:8000:63bf:5601:5601",
            "fd00::5efe:a9fe:a9fe",
            "2a01::200:5efe:a9fe:a9fe",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "::ffff:0.0.0.0",
            "224.0.0.1",
            "239.255.255.250",
            "ff02::1",
            "ff0e::1",
            "255.255.255.255",
            "240.0.0.1",
            "64:ff9b::e000:1",
        ] {
            assert!(is_blocked(text.parse().unwrap()), "{text}");
        }
        for text in [
            "127.0.0.1",
            "10.0.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "100.100.100.201",
            "169.253.0.1",
            "::1",
            "fd00::1",
            "fec0::1",
            "::ffff:10.0.0.1",
            "2002:a00:1::1",
            "64:ff9b::a00:1",
            "fd00::5efe:a00:1",
            "::ffff:127.0.0.1",
            "223.255.255.255",
            "1.0.0.1",
            "2001:db8::1",
        ] {
            assert!(!is_blocked(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn numeric_disguises_of_a_url_host_are_seen_through() {
        for (url, blocked) in [
            ("http://2852039166/", true),
            ("http://0xa9fea9fe/", true),
            ("http://0251.0376.0251.0376/", true),
            ("http://[::ffff:a9fe:a9fe]/", true),
            ("http://169.254.169.254.nip.io/", false),
            ("http://169.16689662/", true),
            ("http://169.254.43518/", true),
            ("http://0xA9.0xFE.0xA9.0xFE/", true),
            ("http://169.254.169.254./", true),
            ("http://%31%36%39.254.169.254/", true),
            ("http://１６９。254.169.254/", true),
            ("http://0/", true),
            ("http://[::]/", true),
            ("http://metadata.google.internal/", true),
            ("http://Metadata.Google.Internal./", true),
            ("http://metadata.example.com/", false),
            ("http://2130706433/", false),
            ("http://10.0.0.1/", false),
        ] {
            let url = url::Url::parse(url).unwrap();
            assert_eq!(is_blocked_host(&url.host().unwrap()), blocked, "{url}");
        }
    }

    #[test]
    fn a_name_keeps_its_allowed_addresses_only() {
        let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let both = [address("169.254.169.254:0"), address("10.0.0.1:0")];
        assert_eq!(allowed("app", &both).unwrap(), [address("10.0.0.1:0")]);
        assert!(allowed("app", &both[..1]).unwrap_err().is::<Blocked>());
        assert!(allowed("app", &[]).unwrap_err().is::<NotResolved>());
    }
}
