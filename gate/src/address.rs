//! Addresses: prefixes, the addresses that no rule can open, and the classes that rules and modes speak of.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address and how many of its leading bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: IpAddr,
    bits: u8,
}

impl Prefix {
    /// `None` if the address has fewer bits than that.
    pub fn new(address: IpAddr, bits: u8) -> Option<Self> {
        (bits <= width(address)).then_some(Self { address, bits })
    }

    /// Whether it is one address.
    pub(crate) fn is_one_address(&self) -> bool {
        self.bits == width(self.address)
    }

    /// Whether `address` is in it. An IPv4 prefix holds no IPv6 address and the other way round.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let differing = u32::from(ours) ^ u32::from(theirs);
                differing.checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let differing = u128::from(ours) ^ u128::from(theirs);
                differing.checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        Self { address, bits: width(address) }
    }
}

impl FromStr for Prefix {
    type Err = &'static str;

    /// Parses `ADDRESS` or `ADDRESS/BITS`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| "an IP address is expected")?;
        let Some(bits) = bits else { return Ok(address.into()) };
        let is_number = !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits = bits.parse().ok().filter(|_| is_number);
        bits.and_then(|bits| Self::new(address, bits))
            .ok_or("a prefix length is a number from 0 to 32, or to 128 for IPv6")
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        if self.is_one_address() { Ok(()) } else { write!(f, "/{}", self.bits) }
    }
}

impl TryFrom<String> for Prefix {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

/// What an address is to a policy, apart from the host's own, which only the policy knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// An address of the internet.
    Public,
    /// An address of a private network, or of a transition mechanism that may lead into one.
    Private,
    /// Link-local addresses and the services of a cloud that give out credentials.
    Metadata,
    /// No rule opens it.
    Never,
}

/// Whether no rule can open this address: it is the host itself, nobody, or a group.
pub fn is_never(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            first == 0 || first == 127 || first >= 224
        }
        // ::/96 holds ::, ::1 and addresses that a host may take for the IPv4 address in them, as it does with
        // ::ffff:0:0/96.
        IpAddr::V6(address) => {
            let value = u128::from(address);
            value >> 32 == 0 || value >> 32 == 0xffff || address.octets()[0] == 0xff
        }
    }
}

/// The class of an address.
pub(crate) fn class(address: IpAddr) -> Class {
    if is_never(address) {
        return Class::Never;
    }
    match address {
        IpAddr::V4(address) => class_v4(address),
        IpAddr::V6(address) => class_v6(address),
    }
}

fn class_v4(address: Ipv4Addr) -> Class {
    match address.octets() {
        // The rest of 169.254/16 too: clouds have several services there.
        [169, 254, ..] | [100, 100, 100, 200] | [168, 63, 129, 16] => Class::Metadata,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] | [192, 0, 0, _] => Class::Private,
        _ => Class::Public,
    }
}

fn class_v6(address: Ipv6Addr) -> Class {
    // An address that stands for an IPv4 address is never better than that one.
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        class(Ipv4Addr::new(a, b, c, d).into()).max(Class::Private)
    };
    match address.segments() {
        [0xfd00, 0x0ec2, ..] => Class::Metadata,
        [first, ..] if first & 0xffc0 == 0xfe80 => Class::Metadata,
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => embedded(high, low),
        [0x64, 0xff9b, ..] | [0x2001, 0, ..] => Class::Private,
        [first, ..] if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 => Class::Private,
        _ => Class::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_classes() {
        for (expected, addresses) in [
            (Class::Never, &["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.9.9.9", "224.0.0.1", "240.0.0.1"][..]),
            (
                Class::Never,
                &["255.255.255.255", "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "ff02::1"],
            ),
            (Class::Never, &["64:ff9b::127.0.0.1", "2002:7f00:1::1", "64:ff9b::0.0.0.0"]),
            (Class::Private, &["10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1"]),
            (Class::Private, &["100.64.0.1", "100.127.255.255", "192.0.0.8", "fc00::1", "fdff::1", "fec0::1"]),
            (Class::Private, &["64:ff9b::10.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "2002:808:808::1", "2001::1"]),
            (Class::Metadata, &["169.254.169.254", "169.254.0.1", "100.100.100.200", "168.63.129.16", "fe80::1"]),
            (Class::Metadata, &["febf::1", "fd00:ec2::254", "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::"]),
            (Class::Public, &["8.8.8.8", "1.0.0.1", "9.255.255.255", "11.0.0.0", "172.15.0.1", "172.32.0.1"]),
            (Class::Public, &["192.0.1.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "100.63.0.1"]),
            (Class::Public, &["100.128.0.1", "126.0.0.1", "128.0.0.1", "223.255.255.255", "168.63.129.17"]),
            (Class::Public, &["2001:db8::1", "2001:4860::8888", "2a00::1", "::1:0:0:1"]),
        ] {
            for address in addresses {
                assert_eq!(class(address.parse().unwrap()), expected, "{address}");
            }
        }
    }

    #[test]
    fn a_prefix_contains_what_begins_like_it() {
        for (prefix, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("192.0.2.4/31", "192.0.2.5", "192.0.2.6"),
            ("0.0.0.0/0", "203.0.113.9", "::"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("::/0", "2001:db8::1", "1.2.3.4"),
            ("2001:db8::1", "2001:db8::1", "2001:db8::2"),
        ] {
            let parsed: Prefix = prefix.parse().unwrap();
            assert!(parsed.contains(inside.parse().unwrap()), "{prefix} {inside}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{prefix} {outside}");
            assert_eq!(parsed.to_string(), prefix);
            let json = serde_json::to_string(&parsed).unwrap();
            assert_eq!((json.trim_matches('"'), serde_json::from_str(&json).unwrap()), (prefix, parsed));
        }
        for wrong in
            ["", "10", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "a/8", "1.2.3.4/-1"]
        {
            assert!(wrong.parse::<Prefix>().is_err(), "{wrong}");
        }
    }
}
