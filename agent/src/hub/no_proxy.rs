//! `NO_PROXY`: the hosts that are reached without the proxy of the environment.
//!
//! The usual forms, separated by commas or blanks: `host` and `.suffix` (each with all names below it), `*.suffix`, an
//! address, a network `10.0.0.0/8`, each with `:port` if only that port is meant, and `*` for everything. Names are
//! compared as they are written: nothing is resolved for it, so an address or network fits only a hub that `hub.url`
//! names by its address.

use std::net::IpAddr;

/// Whether the list has this host and port.
pub fn lists(list: &str, host: &str, port: u16) -> bool {
    let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
    let address = host.parse::<IpAddr>().ok();
    list.split([',', ' ', '\t', '\n'])
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .any(|entry| fits(&entry.to_ascii_lowercase(), &host, address, port))
}

fn fits(entry: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    let (name, wanted) = split_port(entry);
    if wanted.is_some_and(|wanted| wanted != port) {
        return false;
    }
    let name = name.trim_matches(['[', ']']);
    match (address, name.split_once('/')) {
        (Some(address), Some((network, bits))) => {
            network.parse().is_ok_and(|network| bits.parse().is_ok_and(|bits| within(address, network, bits)))
        }
        (Some(address), None) => name.parse::<IpAddr>().is_ok_and(|other| same(other) == same(address)),
        (None, _) => {
            let name = name.strip_prefix('*').unwrap_or(name);
            let name = name.strip_prefix('.').unwrap_or(name).trim_end_matches('.');
            let rest = host.strip_suffix(name).filter(|_| !name.is_empty());
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        }
    }
}

/// `host:port`, `[v6]:port`; an IPv6 address without brackets has colons of its own and no port.
fn split_port(entry: &str) -> (&str, Option<u16>) {
    let port_of = |(host, port): (&'_ str, &str)| port.parse::<u16>().ok().map(|port| (host.len(), port));
    let bare_v6 = !entry.starts_with('[') && entry.matches(':').count() > 1;
    match entry.rsplit_once(':').filter(|_| !bare_v6).and_then(port_of) {
        Some((length, port)) => (entry.split_at(length).0, Some(port)),
        None => (entry, None),
    }
}

/// An IPv4 address in IPv6's clothes is the IPv4 address.
fn same(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let (address, network, all) = match (same(address), network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (u128::from(address.to_bits()) << 96, u128::from(network.to_bits()) << 96, 32)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => (address.to_bits(), network.to_bits(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    bits <= all && (bits == 0 || (address ^ network) >> (128 - bits) == 0)
}

#[cfg(test)]
mod tests {
    use super::lists;

    #[test]
    fn the_usual_forms_are_understood() {
        for (list, host, port, expected) in [
            ("", "hub.example.com", 443, false),
            ("*", "hub.example.com", 443, true),
            ("hub.example.com", "hub.example.com", 443, true),
            ("hub.example.com", "HUB.example.COM.", 443, true),
            ("example.com", "hub.example.com", 443, true),
            (".example.com", "hub.example.com", 443, true),
            (".example.com", "example.com", 443, true),
            ("*.example.com", "hub.example.com", 443, true),
            ("example.com", "notexample.com", 443, false),
            ("example.com", "example.com.evil.net", 443, false),
            ("a, b  c", "c", 443, true),
            ("localhost,10.0.0.0/8,.intra", "files.intra", 443, true),
            ("hub.example.com:443", "hub.example.com", 443, true),
            ("hub.example.com:8443", "hub.example.com", 443, false),
            ("10.0.0.0/8", "10.1.2.3", 443, true),
            ("10.0.0.0/8", "11.1.2.3", 443, false),
            ("10.1.2.3", "10.1.2.3", 443, true),
            ("10.1.2.3:8443", "10.1.2.3", 443, false),
            ("0.0.0.0/0", "203.0.113.9", 443, true),
            ("10.0.0.0/33", "10.0.0.1", 443, false),
            ("10.0.0.0/8", "hub.example.com", 443, false),
            ("::1", "[::1]", 443, true),
            ("[::1]:443", "[::1]", 443, true),
            ("[::1]:8443", "[::1]", 443, false),
            ("fd00::/8", "[fd12::1]", 443, true),
            ("fd00::/8", "[fe80::1]", 443, false),
            ("10.0.0.0/8", "[::ffff:10.0.0.1]", 443, true),
            (".", "hub.example.com", 443, false),
            ("*.", "hub.example.com", 443, false),
        ] {
            assert_eq!(lists(list, host, port), expected, "{list:?} and {host}:{port}");
        }
    }
}
