//! The client's address behind reverse proxies.
//!
//! Each proxy appends to `X-Forwarded-For` the address that it was called from. So only the right end is worth anything:
//! what stands left of the first address that is no proxy of ours was written by that address, and may say anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Inet;

/// An IPv4 address in IPv6 clothes is that IPv4 address.
fn unmapped(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// An address as it stands in a header: bare, with a port, or in brackets.
fn header_address(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches([' ', '\t']);
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let bare = text.parse::<IpAddr>().ok();
    bare.or_else(bracketed).or_else(with_port).map(unmapped)
}

fn is_trusted(ip: IpAddr, trusted: &[Inet]) -> bool {
    let as_v6 = match ip {
        IpAddr::V4(v4) => IpAddr::V6(Ipv4Addr::to_ipv6_mapped(&v4)),
        v6 => v6,
    };
    trusted.iter().any(|network| network.contains(ip) || network.contains(as_v6))
}

/// The right-most address that is no trusted proxy. What can't be read ends the walk at the last address before it; if all
/// are proxies of ours, the farthest one is the client.
fn forwarded_for(header: &str, trusted: &[Inet]) -> Option<IpAddr> {
    let mut nearest = None;
    for entry in header.rsplit(',').filter(|entry| !entry.trim_matches([' ', '\t']).is_empty()) {
        match header_address(entry) {
            Some(ip) if is_trusted(ip, trusted) => nearest = Some(ip),
            Some(ip) => return Some(ip),
            None => break,
        }
    }
    nearest
}

/// The client's address: from `X-Forwarded-For`, else from `X-Real-IP`, else that of the connection. The headers count
/// only when the connection comes from a trusted proxy, or its address is not known.
pub fn client_ip(
    x_forwarded_for: Option<&str>,
    x_real_ip: Option<&str>,
    remote: Option<Inet>,
    trusted: &[Inet],
) -> Option<Inet> {
    if let Some(remote) = remote
        && !is_trusted(unmapped(remote.ip()), trusted)
    {
        return Some(remote);
    }
    let forwarded = x_forwarded_for.and_then(|header| forwarded_for(header, trusted));
    let client = forwarded.or_else(|| x_real_ip.and_then(header_address));
    client.map(Inet::host).or(remote)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::parse_inet;

    fn client(forwarded: Option<&str>, real: Option<&str>, remote: Option<&str>, trusted: &[&str]) -> Option<String> {
        let trusted: Vec<Inet> = trusted.iter().map(|text| parse_inet(text).unwrap()).collect();
        let remote = remote.map(|text| parse_inet(text).unwrap());
        client_ip(forwarded, real, remote, &trusted).map(|inet| inet.ip().to_string())
    }

    fn ip(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    const PROXIES: &[&str] = &["10.0.0.0/8", "2001:db8::/32"];

    #[test]
    fn a_connection_from_elsewhere_is_the_client() {
        assert_eq!(client(Some("1.2.3.4"), Some("1.2.3.4"), Some("198.51.100.1"), PROXIES), ip("198.51.100.1"));
        assert_eq!(client(Some("1.2.3.4"), None, Some("198.51.100.1"), &[]), ip("198.51.100.1"));
        assert_eq!(client(None, None, None, PROXIES), None);
    }

    #[test]
    fn the_right_most_address_that_is_no_proxy() {
        let from_proxy = |forwarded| client(Some(forwarded), Some("9.9.9.9"), Some("10.0.0.1"), PROXIES);
        assert_eq!(from_proxy("1.2.3.4"), ip("1.2.3.4"));
        // the left one was written by 1.2.3.4 itself
        assert_eq!(from_proxy("127.0.0.1, 1.2.3.4"), ip("1.2.3.4"));
        assert_eq!(from_proxy("6.6.6.6, 1.2.3.4,10.1.1.1 ,\t2001:db8::5"), ip("1.2.3.4"));
        assert_eq!(from_proxy("1.2.3.4, ,"), ip("1.2.3.4"));
        assert_eq!(from_proxy("2a00::1, 10.9.9.9"), ip("2a00::1"));
    }

    #[test]
    fn ports_brackets_and_mapped_addresses() {
        let from_proxy = |forwarded| client(Some(forwarded), None, Some("10.0.0.1"), PROXIES);
        assert_eq!(from_proxy("1.2.3.4:56789"), ip("1.2.3.4"));
        assert_eq!(from_proxy("[2a00::1]"), ip("2a00::1"));
        assert_eq!(from_proxy("[2a00::1]:443"), ip("2a00::1"));
        assert_eq!(from_proxy("1.2.3.4, ::ffff:10.0.0.2"), ip("1.2.3.4"));
        assert_eq!(from_proxy("::ffff:1.2.3.4"), ip("1.2.3.4"));
        assert_eq!(client(Some("1.2.3.4"), None, Some("::ffff:10.0.0.1"), PROXIES), ip("1.2.3.4"));
        assert_eq!(client(Some("1.2.3.4"), None, Some("10.0.0.1"), &["::ffff:10.0.0.0/104"]), ip("1.2.3.4"));
    }

    #[test]
    fn what_cannot_be_read_ends_the_walk() {
        let from_proxy = |forwarded| client(Some(forwarded), Some("9.9.9.9"), Some("10.0.0.1"), PROXIES);
        assert_eq!(from_proxy("1.2.3.4, unknown, 10.0.0.2"), ip("10.0.0.2"));
        assert_eq!(from_proxy("1.2.3.4, unknown"), ip("9.9.9.9"));
        assert_eq!(from_proxy("1.2.3.4/24"), ip("9.9.9.9"));
        assert_eq!(from_proxy("[1.2.3.4]"), ip("9.9.9.9"));
    }

    #[test]
    fn only_proxies_on_the_way() {
        assert_eq!(client(Some("10.0.0.3, 10.0.0.2"), None, Some("10.0.0.1"), PROXIES), ip("10.0.0.3"));
    }

    #[test]
    fn without_x_forwarded_for() {
        assert_eq!(client(None, Some("1.2.3.4"), Some("10.0.0.1"), PROXIES), ip("1.2.3.4"));
        assert_eq!(client(Some(""), Some(" 1.2.3.4 "), Some("10.0.0.1"), PROXIES), ip("1.2.3.4"));
        assert_eq!(client(None, Some("rubbish"), Some("10.0.0.1"), PROXIES), ip("10.0.0.1"));
        assert_eq!(client(None, None, Some("10.0.0.1"), PROXIES), ip("10.0.0.1"));
    }

    #[test]
    fn an_unknown_connection_is_believed() {
        assert_eq!(client(Some("6.6.6.6, 1.2.3.4"), None, None, &[]), ip("1.2.3.4"));
        assert_eq!(client(None, Some("1.2.3.4"), None, &[]), ip("1.2.3.4"));
        assert_eq!(client(Some("unknown"), None, None, &[]), None);
    }
}
