//! Clients of a published port that have a link-local address. passt shows a client on the host's IPv6 loopback with the link-local address
//! of one of the host's interfaces. It also sends to a link-local address of the guest until it has seen another one. The guest has no
//! link-local address, and could not answer. So the gate shows such a client at the gateway's address, where the guest sees clients on the
//! IPv4 loopback too.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::frame::{PROTOCOL_TCP, Packet, Segment};
use crate::reply;
use crate::table::Table;

/// How many clients there may be.
const MAX_CLIENTS: usize = 4096;
/// How long a client is remembered after its last packet. passt forgets an idle connection after two hours.
const CLIENT: Duration = Duration::from_secs(3 * 3600);

/// The addresses that passt uses for one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ends {
    client: Ipv6Addr,
    guest: Ipv6Addr,
}

/// The clients, of TCP only: passt of 2023 sends the answer to a datagram to the host's link-local address, where it could reach other
/// programs.
#[derive(Debug)]
pub(crate) struct Clients {
    /// The addresses of the gateway and of the guest, if the guest's network has IPv6.
    shown: Option<(Ipv6Addr, Ipv6Addr)>,
    /// By the guest's port and the client's.
    ends: Table<(u16, u16), Ends>,
}

impl Clients {
    /// No clients yet. `shown` are the addresses of the gateway and of the guest.
    pub(crate) fn new(shown: Option<(Ipv6Addr, Ipv6Addr)>) -> Self {
        Self { shown, ends: Table::new(MAX_CLIENTS) }
    }

    /// Whether a packet for the guest is from a client with a link-local address.
    pub(crate) fn are_source_of(packet: &Packet<'_>) -> bool {
        let is_link_local = |address| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        packet.protocol == PROTOCOL_TCP && is_link_local(packet.source) && is_link_local(packet.destination)
    }

    /// Readdresses a client's frame: from the gateway to the guest's own address. `None` if another client has the same port.
    pub(crate) fn inward(&mut self, packet: &Packet<'_>, now: Duration) -> Option<Vec<u8>> {
        let ((gateway, own), segment) = self.shown.zip(packet.tcp())?;
        let (IpAddr::V6(client), IpAddr::V6(guest)) = (packet.source, packet.destination) else { return None };
        let key = (segment.destination, segment.source);
        // The guest's address may have changed: passt adopts any address that the guest sends from.
        if self.ends.get(&key, now).is_some_and(|known| known.client != client) {
            return None;
        }
        self.ends.insert(key, now + CLIENT, Ends { client, guest });
        Some(reply::readdressed(packet, gateway, own))
    }

    /// Readdresses a guest's frame for the gateway to the client that it is meant for. `None` if there is no such client.
    pub(crate) fn outward(&self, packet: &Packet<'_>, segment: &Segment<'_>, now: Duration) -> Option<Vec<u8>> {
        let (gateway, _) = self.shown?;
        let Ends { client, guest } = *self.ends.get(&(segment.source, segment.destination), now)?;
        (packet.destination == IpAddr::V6(gateway)).then(|| reply::readdressed(packet, guest, client))
    }
}
