//! The network namespace as a neighbour of the guest. A network in user space, such as slirp4netns, has nobody outside of the namespace
//! who could connect to the guest: an engine forwards published ports from a process inside, which connects to the address of the
//! container. That address is the guest's. So the namespace takes another address of the network on the TAP interface, and reaches the
//! guest by it.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context;

use crate::iproute::{ip, tc};

/// The addresses of the two on the link between them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    /// The guest's.
    guest: Ipv4Addr,
    /// The namespace's.
    own: Ipv4Addr,
    /// The namespace's Ethernet address.
    ethernet: String,
}

impl Neighbour {
    /// The neighbour of a guest with an address and an Ethernet address. `None`: the network has no address left for it.
    pub(crate) fn of(guest: IpAddr, prefix: u8, ethernet: &str, gateways: &[IpAddr]) -> Option<Self> {
        let IpAddr::V4(guest) = guest else { return None };
        let mask = u32::MAX.checked_shl(32_u32.checked_sub(prefix.into())?).filter(|_| (1..=29).contains(&prefix))?;
        let own = Ipv4Addr::from((u32::from(guest) & mask) + 1);
        let mut octets = Vec::new();
        for octet in ethernet.split(':') {
            octets.push(u8::from_str_radix(octet, 16).ok()?);
        }
        // Locally administered, and not the guest's.
        *octets.first_mut()? |= 2;
        *octets.last_mut()? ^= 1;
        let ethernet = octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":");
        (own != guest && !gateways.contains(&own.into())).then_some(Self { guest, own, ethernet })
    }

    /// Sets up the TAP interface and the routes. Frames of the guest to this neighbour stay in the namespace. Its ARP requests go both to
    /// the namespace and to `interface`.
    ///
    /// # Errors
    /// The step that failed.
    pub(crate) fn connect(&self, interface: &str, tap: &str) -> anyhow::Result<()> {
        let (guest, own) = (self.guest.to_string(), self.own.to_string());
        let connect = || {
            ip(&["link", "set", "dev", tap, "address", &self.ethernet])?;
            // With a local route of its own, the kernel takes packets from an address that one of its interfaces has.
            ip(&["route", "add", "local", &own, "dev", tap, "table", "local"])?;
            // The interface keeps the guest's address, so ip(8) still lists it. Without the local route the kernel forwards the
            // packets to that address, and does not take them itself.
            ip(&["route", "del", "local", &guest, "dev", interface, "table", "local"])?;
            ip(&["route", "add", &format!("{guest}/32"), "dev", tap, "src", &own])?;
            // Filters of a lower preference come first.
            let filter = ["filter", "add", "dev", tap, "parent", "ffff:"];
            let to_here =
                ["protocol", "all", "pref", "1", "u32", "match", "ether", "dst", &self.ethernet, "flowid", "1:1"];
            tc(&[filter.as_slice(), &to_here].concat())?;
            let questions = ["protocol", "arp", "pref", "2", "u32", "match", "u32", "0", "0"];
            let to_both = ["action", "mirred", "egress", "mirror", "dev", interface];
            tc(&[filter.as_slice(), &questions, &to_both].concat())
        };
        connect().with_context(|| format!("route to the guest's address {guest}"))
    }
}

/// Gives the address back that [`Neighbour::connect`] has taken from the namespace. The rest goes with the TAP interface.
pub(crate) fn restore(interface: &str, address: IpAddr) {
    let address = address.to_string();
    let local = ["route", "replace", "local", &address, "dev", interface, "table", "local"];
    let _ = ip(&[local.as_slice(), &["proto", "kernel", "scope", "host", "src", &address]].concat());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_neighbour_has_the_first_address_of_the_network_and_an_ethernet_address_beside_the_guests() {
        let of = |guest: &str, prefix, gateway: &str| {
            let neighbour =
                Neighbour::of(guest.parse().unwrap(), prefix, "00:1b:00:00:00:ff", &[gateway.parse().unwrap()]);
            neighbour.map(|neighbour| (neighbour.own.to_string(), neighbour.ethernet))
        };
        let ethernet = "02:1b:00:00:00:fe".to_owned();
        assert_eq!(of("10.0.2.100", 24, "10.0.2.2"), Some(("10.0.2.1".into(), ethernet.clone())));
        assert_eq!(of("10.1.2.3", 8, "10.0.2.2"), Some(("10.0.0.1".into(), ethernet)));
        for (guest, prefix, gateway) in [
            ("10.0.2.1", 24, "10.0.2.2"),
            ("10.0.2.100", 24, "10.0.2.1"),
            ("10.0.2.100", 32, "10.0.2.2"),
            ("fd00::2", 64, "fd00::1"),
            ("10.0.2.100", 0, "10.0.2.2"),
        ] {
            assert_eq!(of(guest, prefix, gateway), None, "{guest}/{prefix}");
        }
        assert_eq!(Neighbour::of("10.0.2.100".parse().unwrap(), 24, "x", &[]), None);
    }
}
