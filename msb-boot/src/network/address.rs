//! The addresses in a guest's network. All VMs have the same, and no interface of the host has any of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// The largest packet, in bytes. With more, some versions of passt send to the guest at a tenth of the speed.
pub(super) const MTU: u16 = 16384;

/// The word for the gateway in --add-host, as in Docker.
pub(super) const HOST_GATEWAY: &str = "host-gateway";

/// An address of the guest, with the addresses that passt answers for. No interface of the host has any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Address {
    pub guest: IpAddr,
    pub prefix: u8,
    pub gateway: IpAddr,
    pub resolver: IpAddr,
}

pub(super) const IPV4: Address = Address {
    guest: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15)),
    prefix: 24,
    gateway: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2)),
    resolver: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 3)),
};

pub(super) const IPV6: Address = Address {
    guest: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x6d73, 0, 0, 0, 0, 0, 0x15)),
    prefix: 64,
    gateway: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x6d73, 0, 0, 0, 0, 0, 2)),
    resolver: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x6d73, 0, 0, 0, 0, 0, 3)),
};
