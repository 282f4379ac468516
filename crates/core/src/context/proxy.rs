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
