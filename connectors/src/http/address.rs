//! Addresses that no resource may reach: link-local ones and the metadata services of clouds.
//!
//! Names are resolved here, the addresses are checked, and the checked ones are those connected to, so a name that
//! changes between check and use gains nothing. A literal address in a URL never comes to a resolver and is checked
//! with the settings.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};
use url::Host;

/// Metadata services outside the link-local ranges: Alibaba, Oracle, Azure's wire server; AWS and Google over IPv6.
const METADATA_V4: &[Ipv4Addr] =
    &[Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA_V6: &[Ipv6Addr] =
    &[Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Whether connecting to `address` is forbidden whatever the configuration says.
pub(super) fn is_blocked(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => blocked_v4(v4),
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local() || METADATA_V6.contains(&v6) || embedded_v4(v6).is_some_and(blocked_v4)
        }
    }
}

fn blocked_v4(address: Ipv4Addr) -> bool {
    address.is_link_local() || METADATA_V4.contains(&address)
}

/// The IPv4 address that a mapped (RFC 4291 §2.5.5), NAT64 (RFC 6052 §2.1) or 6to4 (RFC 3056) one leads to.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let join = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => join(high, low),
        [0x2002, high, low, ..] => join(high, low),
        _ => None,
    }
}

/// Whether a URL's host is a literal address that is forbidden.
pub(super) fn is_blocked_host(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(_) => false,
        Host::Ipv4(v4) => is_blocked(IpAddr::V4(*v4)),
        Host::Ipv6(v6) => is_blocked(IpAddr::V6(*v6)),
    }
}

/// The name resolves only to forbidden addresses.
#[derive(Debug, thiserror::Error)]
#[error("{name} resolves to {address}, a link-local or cloud metadata address")]
pub(super) struct Blocked {
    name: String,
    address: IpAddr,
}

/// The name does not resolve.
#[derive(Debug, thiserror::Error)]
#[error("{name} does not resolve: {cause}")]
pub(super) struct NotResolved {
    name: String,
    cause: String,
}

/// The system's resolver, without the forbidden addresses.
pub(super) struct CheckedResolver;

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

fn allowed(
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
pub(super) fn resolver() -> Arc<CheckedResolver> {
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
