//! DHCP, RFC 2131, for images whose init runs a client: the gate itself answers, and always with what the agent has configured. So a
//! client changes nothing, and nothing that it sends leaves the host.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::frame::{Packet, be32};
use crate::reply;

/// The ports of servers and clients.
const SERVER: u16 = 67;
const CLIENT: u16 = 68;

/// Where fields of a message are.
const FLAGS: usize = 10;
const CLIENT_ADDRESS: usize = 12;
const YOUR_ADDRESS: usize = 16;
const SERVER_ADDRESS: usize = 20;
const HARDWARE: usize = 28;
const COOKIE: usize = 236;
const OPTIONS: usize = 240;

const MAGIC: u32 = 0x6382_5363;
const REPLY: u8 = 2;
/// A request from a card with an Ethernet address.
const REQUEST_HEAD: [u8; 3] = [1, 1, 6];
/// The least length of a message: that of BOOTP.
const LEAST: usize = 300;

/// The options' numbers.
mod option {
    pub(super) const PAD: u8 = 0;
    pub(super) const MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const NAME_SERVER: u8 = 6;
    pub(super) const MTU: u8 = 26;
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const LEASE_TIME: u8 = 51;
    pub(super) const KIND: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const END: u8 = 255;
}

/// The kinds of messages.
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
const INFORM: u8 = 8;

/// What a client gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The length of its network's prefix, in bits.
    pub prefix: u8,
    /// The router, and the server of this lease.
    pub gateway: Ipv4Addr,
    /// The name server.
    pub resolver: Ipv4Addr,
    /// The largest packet, in bytes.
    pub mtu: u16,
}

/// Whether a packet is for a DHCP server, whatever it contains.
pub(crate) fn is_request(packet: &Packet<'_>, lease: &Lease) -> bool {
    let from = [Ipv4Addr::UNSPECIFIED, lease.address].map(IpAddr::V4);
    let to = [Ipv4Addr::BROADCAST, lease.gateway].map(IpAddr::V4);
    let is_to_server = packet.udp().is_some_and(|datagram| (datagram.source, datagram.destination) == (CLIENT, SERVER));
    is_to_server && from.contains(&packet.source) && to.contains(&packet.destination)
}

/// The reply to a request; `None` if it gets none.
pub(crate) fn answer(packet: &Packet<'_>, lease: &Lease) -> Option<Vec<u8>> {
    let request = packet.udp()?.payload;
    let head = request.get(..OPTIONS)?;
    if !head.starts_with(&REQUEST_HEAD) || be32(head, COOKIE) != MAGIC {
        return None;
    }
    let address = |at: usize| Ipv4Addr::from(be32(head, at));
    let client = address(CLIENT_ADDRESS);
    let octets = |value: &[u8]| <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
    let option = |number: u8| find(&request[OPTIONS..], number);
    if option(option::SERVER).and_then(octets).is_some_and(|server| server != lease.gateway) {
        // It has chosen another server.
        return None;
    }
    let requested = option(option::REQUESTED_ADDRESS).and_then(octets).unwrap_or(client);
    let kind = match option(option::KIND)? {
        [DISCOVER] => OFFER,
        [REQUEST] if requested == lease.address => ACK,
        [REQUEST] => NAK,
        [INFORM] => ACK,
        _ => return None,
    };
    let mut reply = head.to_vec();
    reply[0] = REPLY;
    // The names of a server and of a file to boot, which have no use here, and the addresses that a server fills in.
    reply[YOUR_ADDRESS..HARDWARE].fill(0);
    reply[HARDWARE + 16..COOKIE].fill(0);
    reply[FLAGS - 2..FLAGS].fill(0);
    let mut put = |number: u8, value: &[u8]| {
        reply.extend([number, value.len() as u8]);
        reply.extend(value);
    };
    put(option::KIND, &[kind]);
    put(option::SERVER, &lease.gateway.octets());
    if kind == NAK {
        reply[CLIENT_ADDRESS..SERVER_ADDRESS].fill(0);
    } else {
        let mask = u32::MAX.checked_shl(32 - u32::from(lease.prefix.min(32))).unwrap_or(0);
        put(option::MASK, &mask.to_be_bytes());
        put(option::ROUTER, &lease.gateway.octets());
        put(option::NAME_SERVER, &lease.resolver.octets());
        put(option::MTU, &lease.mtu.to_be_bytes());
        if option(option::KIND) != Some(&[INFORM]) {
            put(option::LEASE_TIME, &u32::MAX.to_be_bytes());
            reply[YOUR_ADDRESS..SERVER_ADDRESS].copy_from_slice(&lease.address.octets());
        }
    }
    reply.push(option::END);
    reply.resize(reply.len().max(LEAST), 0);
    // A client that has no address yet reads broadcasts.
    let to = if kind != NAK && client == lease.address { client } else { Ipv4Addr::BROADCAST };
    reply::datagram(packet, (lease.gateway.into(), SERVER), (to.into(), CLIENT), &reply)
}

/// The value of an option.
fn find(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        match *options {
            [option::PAD, ..] => options = &options[1..],
            [] | [option::END, ..] | [_] => return None,
            [number, length, ..] => {
                let value = options.get(2..2 + usize::from(length))?;
                if number == wanted {
                    return Some(value);
                }
                options = &options[2 + usize::from(length)..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::tests::udp;

    fn lease() -> Lease {
        Lease {
            address: [10, 0, 2, 15].into(),
            prefix: 24,
            gateway: [10, 0, 2, 2].into(),
            resolver: [10, 0, 2, 3].into(),
            mtu: 16384,
        }
    }

    fn request(client: [u8; 4], options: &[&[u8]]) -> Vec<u8> {
        let mut message = vec![1, 1, 6, 0, 9, 8, 7, 6, 0, 0, 0x80, 0];
        message.extend(client);
        message.extend([1; COOKIE - 16]);
        message.extend(MAGIC.to_be_bytes());
        message.extend(options.concat());
        message
    }

    /// The destination of the reply, its kind, the address that it gives, and its options.
    fn exchange(message: &[u8]) -> Option<(String, u8, [u8; 4], Vec<u8>)> {
        let frame = udp(("0.0.0.0", CLIENT), ("255.255.255.255", SERVER), message);
        let packet = Packet::parse(&frame).unwrap();
        assert!(is_request(&packet, &lease()));
        let reply = answer(&packet, &lease())?;
        let packet = Packet::parse(&reply).unwrap();
        let datagram = packet.udp().unwrap();
        assert_eq!((datagram.source, datagram.destination, datagram.payload[0]), (SERVER, CLIENT, REPLY));
        assert_eq!(datagram.payload[4..8], [9, 8, 7, 6]);
        assert!(datagram.payload.len() >= LEAST);
        let options = datagram.payload[OPTIONS..].to_vec();
        let yours = datagram.payload[YOUR_ADDRESS..SERVER_ADDRESS].try_into().unwrap();
        Some((packet.destination.to_string(), find(&options, option::KIND).unwrap()[0], yours, options))
    }

    #[test]
    fn a_client_gets_what_the_agent_has_configured() {
        let (all, ours) = ("255.255.255.255", "10.0.2.15");
        let none = [0; 4];
        for (what, client, options, expected) in [
            ("discover", none, &[&[53, 1, 1][..], &[255]][..], Some((all, OFFER, [10, 0, 2, 15]))),
            ("with padding", none, &[&[0, 0, 12, 1, 65, 53, 1, 1]], Some((all, OFFER, [10, 0, 2, 15]))),
            ("request", none, &[&[53, 1, 3, 50, 4, 10, 0, 2, 15]], Some((all, ACK, [10, 0, 2, 15]))),
            ("renewal", [10, 0, 2, 15], &[&[53, 1, 3]], Some((ours, ACK, [10, 0, 2, 15]))),
            ("another address", none, &[&[53, 1, 3, 50, 4, 10, 0, 2, 16]], Some((all, NAK, none))),
            ("another server", none, &[&[53, 1, 3, 50, 4, 10, 0, 2, 15, 54, 4, 10, 0, 2, 9]], None),
            ("inform", [10, 0, 2, 15], &[&[53, 1, 8]], Some((ours, ACK, none))),
            ("release", [10, 0, 2, 15], &[&[53, 1, 7]], None),
            ("no kind", none, &[&[12, 1, 65, 255, 53, 1, 1]], None),
            ("an option past the end", none, &[&[12, 9, 53, 1, 1]], None),
            ("half an option", none, &[&[53]], None),
        ] {
            let got = exchange(&request(client, options));
            let got = got.as_ref().map(|(to, kind, yours, _)| (to.as_str(), *kind, *yours));
            assert_eq!(got, expected, "{what}");
        }
        let (.., options) = exchange(&request([0; 4], &[&[53, 1, 1]])).unwrap();
        for (number, value) in [
            (option::MASK, &[255, 255, 255, 0][..]),
            (option::ROUTER, &[10, 0, 2, 2]),
            (option::NAME_SERVER, &[10, 0, 2, 3]),
            (option::MTU, &[0x40, 0]),
            (option::LEASE_TIME, &[255; 4]),
        ] {
            assert_eq!(find(&options, number), Some(value));
        }
    }

    #[test]
    fn a_reply_keeps_the_clients_hardware_and_clears_what_servers_fill_in() {
        let mut message = request([10, 0, 2, 15], &[&[53, 1, 3]]);
        message[8] = 7;
        let frame = udp(("10.0.2.15", CLIENT), ("10.0.2.2", SERVER), &message);
        let reply = answer(&Packet::parse(&frame).unwrap(), &lease()).unwrap();
        let reply = Packet::parse(&reply).unwrap().udp().unwrap().payload;
        // The seconds are cleared, and the flags are kept.
        assert_eq!(reply[..FLAGS + 2], [REPLY, 1, 6, 0, 9, 8, 7, 6, 0, 0, 0x80, 0]);
        assert_eq!(reply[CLIENT_ADDRESS..SERVER_ADDRESS], [10, 0, 2, 15, 10, 0, 2, 15]);
        assert_eq!(reply[SERVER_ADDRESS..HARDWARE], [0; 8]);
        assert_eq!(reply[HARDWARE..HARDWARE + 16], [1; 16]);
        assert_eq!(reply[HARDWARE + 16..COOKIE], [0; COOKIE - HARDWARE - 16]);
    }

    #[test]
    fn what_is_not_a_request_gets_no_reply() {
        let whole = request([0; 4], &[&[53, 1, 1]]);
        for (what, message) in [
            ("a reply", [&[2], &whole[1..]].concat()),
            ("no cookie", [&whole[..COOKIE], &[0; 4], &whole[OPTIONS..]].concat()),
            ("half a message", whole[..COOKIE].to_vec()),
            ("nothing", Vec::new()),
        ] {
            assert!(exchange(&message).is_none(), "{what}");
        }
        for (source, destination, port) in
            [("10.0.2.16", "255.255.255.255", 67), ("0.0.0.0", "10.0.2.9", 67), ("0.0.0.0", "255.255.255.255", 68)]
        {
            let frame = udp((source, CLIENT), (destination, port), &whole);
            assert!(!is_request(&Packet::parse(&frame).unwrap(), &lease()), "{source} {destination} {port}");
        }
    }
}
