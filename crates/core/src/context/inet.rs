//! IP addresses as PostgreSQL's `inet` holds them (inet.h).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{ContextError, ContextErrorKind};

/// Kind of address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4: four bytes.
    V4,
    /// IPv6: sixteen bytes.
    V6,
}

/// An address, with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inet {
    /// Kind of address.
    pub family: Family,
    /// Length of the prefix: 32 or 128 for a single host.
    pub bits: u8,
    /// The address in network order; of IPv4, the first four bytes.
    pub addr: [u8; 16],
}

impl Inet {
    /// A single host.
    pub fn host(ip: IpAddr) -> Inet {
        match ip {
            IpAddr::V4(ip) => {
                let mut addr = [0; 16];
                addr[..4].copy_from_slice(&ip.octets());
                Inet { family: Family::V4, bits: 32, addr }
            }
            IpAddr::V6(ip) => Inet { family: Family::V6, bits: 128, addr: ip.octets() },
        }
    }

    /// The address in network order.
    pub fn octets(&self) -> &[u8] {
        match self.family {
            Family::V4 => &self.addr[..4],
            Family::V6 => &self.addr,
        }
    }

    /// The address without its prefix.
    pub fn ip(&self) -> IpAddr {
        let [a, b, c, d, ..] = self.addr;
        match self.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(self.addr)),
        }
    }

    fn max_bits(&self) -> u8 {
        match self.family {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// Whether this network holds an address: `self >>= other`, but for an `other` that is a host.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let host = Inet::host(ip);
        if host.family != self.family {
            return false;
        }
        let bits = usize::from(self.bits.min(self.max_bits()));
        let (ours, theirs) = (self.octets(), host.octets());
        let (whole, rest) = (bits / 8, bits % 8);
        ours[..whole] == theirs[..whole] && (rest == 0 || (ours[whole] ^ theirs[whole]) >> (8 - rest) == 0)
    }
}

fn prefix(text: &str, max: u8) -> Option<u8> {
    let is_number = matches!(text.as_bytes(), [b'0'] | [b'1'..=b'9', ..]) && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|bits| is_number && *bits <= max)
}

fn parse(text: &str) -> Option<Inet> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let mut inet = Inet::host(address.parse().ok()?);
    if let Some(bits) = bits {
        inet.bits = prefix(bits, inet.max_bits())?;
    }
    Some(inet)
}

/// Reads an address in full form, with an optional prefix length: `192.0.2.1`, `192.0.2.0/24`, `2001:db8::1/64`. What
/// `inet_in` (network.c) accepts beyond that, abbreviated networks such as `10/8` and leading zeros, is refused: too
/// much of it means something else elsewhere.
pub fn parse_inet(text: &str) -> Result<Inet, ContextError> {
    parse(text).ok_or_else(|| ContextError {
        kind: ContextErrorKind::NotAnAddress,
        message: "invalid IP address",
        detail: format!("\"{}\" is no IPv4 or IPv6 address.", text.chars().take(64).collect::<String>()),
        hint: "Write addresses in full, such as 192.0.2.1 or 2001:db8::1.",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_addresses_are_read() {
        let v4 = parse_inet("192.0.2.1").unwrap();
        assert_eq!((v4.family, v4.bits, v4.octets()), (Family::V4, 32, &[192, 0, 2, 1][..]));
        assert_eq!(parse_inet("192.0.2.1/24").unwrap().bits, 24);
        assert_eq!(parse_inet("0.0.0.0/0").unwrap().bits, 0);
        let v6 = parse_inet("2001:db8::1").unwrap();
        assert_eq!((v6.family, v6.bits, v6.octets()[15]), (Family::V6, 128, 1));
        assert_eq!(parse_inet("::/0").unwrap().bits, 0);
        assert_eq!(parse_inet("::ffff:192.0.2.1/128").unwrap().octets()[12..], [192, 0, 2, 1]);
        assert_eq!(v6.ip().to_string(), "2001:db8::1");
        assert_eq!(v4.ip().to_string(), "192.0.2.1");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            " 192.0.2.1",
            "192.0.2.1 ",
            "192.0.2",
            "10/8",
            "192.0.2.256",
            "192.0.2.01",
            "192.0.2.1/33",
            "192.0.2.1/",
            "192.0.2.1/024",
            "192.0.2.1/+8",
            "192.0.2.1/8/8",
            "2001:db8::1/129",
            "2001:db8",
            "fe80::1%eth0",
            "localhost",
            "[::1]",
            "192.0.2.1:80",
            "::1::",
        ] {
            let error = parse_inet(text).unwrap_err();
            assert_eq!(error.kind, ContextErrorKind::NotAnAddress, "{text}");
        }
        let error = parse_inet(&"x".repeat(10_000)).unwrap_err();
        assert!(error.detail.len() < 200);
    }

    #[test]
    fn networks_hold_their_addresses() {
        let holds = |network: &str, ip: &str| parse_inet(network).unwrap().contains(ip.parse().unwrap());
        assert!(holds("10.0.0.0/8", "10.255.0.1"));
        assert!(!holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("192.0.2.128/25", "192.0.2.129"));
        assert!(!holds("192.0.2.128/25", "192.0.2.127"));
        assert!(holds("192.0.2.1", "192.0.2.1"));
        assert!(!holds("192.0.2.1", "192.0.2.2"));
        assert!(holds("0.0.0.0/0", "255.255.255.255"));
        assert!(!holds("0.0.0.0/0", "::1"));
        assert!(holds("2001:db8::/33", "2001:db8:7fff::1"));
        assert!(!holds("2001:db8::/33", "2001:db8:8000::1"));
        assert!(holds("::/0", "2001:db8::1"));
    }
}
