//! The host's own network: its addresses, the networks that it is connected to, and whether it has a default route.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use msb_gate::Prefix;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, recv, socket,
};
use serde::{Deserialize, Serialize};

/// The groups of rtnetlink(7) that report addresses: `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`.
const ADDRESS_GROUPS: u32 = 0x10 | 0x100;

/// A socket that is readable after an address of the host was added or removed.
pub(crate) struct Changes(OwnedFd);

impl Changes {
    /// Begins to listen.
    ///
    /// # Errors
    /// Those of `socket(2)` and `bind(2)`.
    pub(crate) fn listen() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, ADDRESS_GROUPS))?;
        Ok(Self(socket))
    }

    /// Discards what was reported: the addresses are read anew after it, all at once. Returns whether there was anything.
    pub(crate) fn drain(&self) -> bool {
        let mut buffer = [0; 8192];
        let mut has_changed = false;
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(0) => return has_changed,
                // Some were lost, which makes no difference here.
                Ok(_) | Err(nix::Error::ENOBUFS) => has_changed = true,
                Err(nix::Error::EINTR) => {}
                Err(_) => return has_changed,
            }
        }
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The addresses of the host, and the networks of its interfaces.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Host {
    pub addresses: Vec<IpAddr>,
    pub networks: Vec<Prefix>,
}

impl Host {
    /// Reads them.
    ///
    /// # Errors
    /// Those of `getifaddrs(3)`.
    pub(crate) fn read() -> io::Result<Self> {
        let mut host = Self { addresses: Vec::new(), networks: Vec::new() };
        for interface in getifaddrs()? {
            let Some(address) = interface.address.as_ref().and_then(ip) else { continue };
            host.addresses.push(address);
            let bits = interface.netmask.as_ref().and_then(ip).map(prefix_length);
            // A network of all addresses is a tunnel's, and says nothing.
            let bits = bits.filter(|&bits| bits > 0 && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK));
            let network = bits.and_then(|bits| Prefix::new(address, bits));
            host.networks.extend(network.filter(|network| !host.networks.contains(network)));
        }
        Ok(host)
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

fn prefix_length(mask: IpAddr) -> u8 {
    let bits = match mask {
        IpAddr::V4(mask) => u32::from(mask).leading_ones(),
        IpAddr::V6(mask) => u128::from(mask).leading_ones(),
    };
    u8::try_from(bits).unwrap_or(0)
}

/// Whether there is a default route for IPv4.
pub(crate) fn has_ipv4_route() -> bool {
    has_ipv4_default(&fs::read_to_string("/proc/net/route").unwrap_or_default())
}

/// Whether there is a default route for IPv6.
pub(crate) fn has_ipv6_route() -> bool {
    has_ipv6_default(&fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default())
}

/// The columns are the interface, the destination, the gateway, the flags, three more, and the mask.
fn has_ipv4_default(table: &str) -> bool {
    table.lines().skip(1).any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let number = |column: usize| columns.get(column).and_then(|text| u32::from_str_radix(text, 16).ok());
        (number(1), number(7)) == (Some(0), Some(0)) && number(3).is_some_and(|flags| flags & RTF_UP_REJECT == RTF_UP)
    })
}

/// The columns are the destination, its length, the source, its length, the next hop, four numbers of which the last are the flags,
/// and the interface. The kernel's own route that rejects everything is on lo.
fn has_ipv6_default(table: &str) -> bool {
    table.lines().any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let flags = columns.get(8).and_then(|text| u32::from_str_radix(text, 16).ok());
        let is_default =
            columns.first().is_some_and(|to| to.bytes().all(|byte| byte == b'0')) && columns.get(1) == Some(&"00");
        is_default && columns.get(9) != Some(&"lo") && flags.is_some_and(|flags| flags & RTF_UP_REJECT == RTF_UP)
    })
}

const RTF_UP: u32 = 0x1;
/// `RTF_UP` and `RTF_REJECT`.
const RTF_UP_REJECT: u32 = 0x201;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_route_is_found() {
        let head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
        for (line, expected) in [
            ("eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0", true),
            ("eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0", false),
            ("eth0\t00000000\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0", false),
            ("*\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0", false),
            ("", false),
        ] {
            assert_eq!(has_ipv4_default(&format!("{head}{line}\n")), expected, "{line}");
        }
        let zero = "0".repeat(32);
        for (line, expected) in [
            (format!("{zero} 00 {zero} 00 fe80{0} 00000400 00000001 00000000 00000003 eth0", "0".repeat(28)), true),
            (format!("{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo"), false),
            (format!("{zero} 40 {zero} 00 {zero} 00000400 00000001 00000000 00000001 eth0"), false),
            (String::new(), false),
        ] {
            assert_eq!(has_ipv6_default(&line), expected, "{line}");
        }
    }
}
