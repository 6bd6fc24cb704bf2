//! Addresses that nothing may connect to, and private ones. Pure: nothing is resolved here.
//!
//! Blocked whatever a configuration says: link-local ones, the metadata services of clouds, and those that are no single
//! host (unspecified, multicast, broadcast). Private ones are for an operator to name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use url::Host;

/// Metadata services outside the link-local ranges: Alibaba, Oracle, Azure's wire server; AWS and Google over IPv6.
const METADATA_V4: &[Ipv4Addr] =
    &[Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA_V6: &[Ipv6Addr] =
    &[Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Whether connecting to `address` is forbidden whatever the configuration says.
#[must_use]
pub fn is_blocked(address: IpAddr) -> bool {
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

/// Whether `address` is inside some private network, or this machine: what a hub in a cloud has no business with on behalf of
/// a tenant, unless its operator says so. Blocked ones are not asked about here.
#[must_use]
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => private_v4(v4),
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unique_local()
                || site_local(v6)
                || documentation(v6)
                || embedded_v4(v6).is_some_and(private_v4)
        }
    }
}

/// RFC 1918, loopback, carriers' NAT (RFC 6598), protocol assignments (RFC 6890), benchmarks (RFC 2544), documentation
/// (RFC 5737).
fn private_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    address.is_private()
        || address.is_loopback()
        || address.is_documentation()
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (18..20).contains(&b))
}

/// Deprecated site-local addresses (RFC 3879), which routers may still know.
fn site_local(address: Ipv6Addr) -> bool {
    let [first, ..] = address.segments();
    first & 0xffc0 == 0xfec0
}

/// RFC 3849 and RFC 9637.
fn documentation(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    (first == 0x2001 && second == 0xdb8) || (first == 0x3fff && second < 0x1000)
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
#[must_use]
pub fn is_blocked_host(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            METADATA_NAMES.contains(&name.as_str())
        }
        Host::Ipv4(v4) => is_blocked(IpAddr::V4(*v4)),
        Host::Ipv6(v6) => is_blocked(IpAddr::V6(*v6)),
    }
}

#[cfg(test)]
mod tests {
    use super::{is_blocked, is_blocked_host, is_private};

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
    fn private_addresses_are_known_in_every_notation() {
        for text in [
            "127.0.0.1",
            "127.255.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "198.19.0.1",
            "203.0.113.9",
            "::1",
            "fd00::1",
            "fc00::1",
            "fec0::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::1",
            "2001:db8::1",
        ] {
            assert!(is_private(text.parse().unwrap()), "{text}");
        }
        for text in ["172.32.0.1", "100.128.0.1", "192.1.0.1", "198.20.0.1", "9.9.9.9", "2a01::1", "2600::1"]
        {
            let address = text.parse().unwrap();
            assert!(!is_private(address) && !is_blocked(address), "{text}");
        }
    }
}
