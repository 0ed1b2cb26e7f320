//! Frames that the gate itself makes: a refusal to the guest, a reset for both sides, a segment, and a datagram.

use std::net::{IpAddr, Ipv6Addr};

use crate::frame::{
    ACK, ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Packet,
    RST, Segment,
};

/// How much of a refused packet its refusal quotes: the least MTU of IPv6 without the two headers allows 1232 bytes, and IPv4 asks
/// for 576 in all.
const QUOTED: usize = 520;

/// The Ethernet address that passt has, too.
const GATEWAY: [u8; 6] = [0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55];

/// The sum of big-endian words that internet checksums are made of.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)));
    words.sum()
}

/// The internet checksum of a sum, RFC 1071.
fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The checksum of a transport's message with the pseudo-header of its addresses.
fn checksum(source: IpAddr, destination: IpAddr, protocol: u8, message: &[u8]) -> u16 {
    fold(octets_sum(source) + octets_sum(destination) + u64::from(protocol) + message.len() as u64 + sum(message))
}

fn octets_sum(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    }
}

/// A frame with an IP packet; `ethernet` is the two addresses. `None` if the addresses are of different families or the packet is too long.
fn ip(ethernet: &[u8], source: IpAddr, destination: IpAddr, protocol: u8, body: &[u8]) -> Option<Vec<u8>> {
    let mut frame = ethernet.to_vec();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend(ETHERTYPE_IPV4.to_be_bytes());
            frame.extend([0x45, 0]);
            frame.extend(u16::try_from(20 + body.len()).ok()?.to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
            let header = fold(sum(&frame[ETHERNET..]));
            frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&header.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend(ETHERTYPE_IPV6.to_be_bytes());
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(u16::try_from(body.len()).ok()?.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => return None,
    }
    frame.extend(body);
    Some(frame)
}

/// An IPv6 frame with other addresses. A checksum that was right is right again.
pub(crate) fn readdressed(packet: &Packet<'_>, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let mut frame = packet.frame.to_vec();
    let addresses = ETHERNET + 8..ETHERNET + 40;
    let before = sum(&frame[addresses.clone()]);
    frame[addresses.start..addresses.start + 16].copy_from_slice(&source.octets());
    frame[addresses.start + 16..addresses.end].copy_from_slice(&destination.octets());
    let after = sum(&frame[addresses]);
    let at = packet.transport + if packet.protocol == PROTOCOL_TCP { 16 } else { 6 };
    if let Some(checksum) = frame.get_mut(at..at + 2) {
        // RFC 1624: the complements of the old checksum and of the old words, and the new words. A word is at most 0xffff.
        let old = u64::from(checksum[0]) << 8 | u64::from(checksum[1]);
        let words = 16;
        let new = fold((0xffff - old) + (words * 0xffff - before) + after);
        checksum.copy_from_slice(&new.to_be_bytes());
    }
    frame
}

/// The Ethernet addresses of a frame back to where `frame` is from.
pub(crate) fn back(frame: &[u8]) -> [u8; 12] {
    let mut addresses = [0; 12];
    addresses[..6].copy_from_slice(&frame[6..12]);
    addresses[6..].copy_from_slice(&frame[..6]);
    addresses
}

/// "Communication administratively prohibited" from `gateway` to the sender of a packet: the guest's program fails at once, where a
/// silent drop would look like a hang and a reset like a closed port.
pub(crate) fn prohibited(packet: &Packet<'_>, gateway: IpAddr) -> Option<Vec<u8>> {
    let (protocol, head) = match packet.source {
        IpAddr::V4(_) => (PROTOCOL_ICMP, [3, 13]),
        IpAddr::V6(_) => (PROTOCOL_ICMPV6, [1, 1]),
    };
    let quoted = packet.ip();
    let mut message = [&head[..], &[0; 6], &quoted[..quoted.len().min(QUOTED)]].concat();
    let sum = match packet.source {
        IpAddr::V4(_) => fold(sum(&message)),
        IpAddr::V6(_) => checksum(gateway, packet.source, protocol, &message),
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(&back(packet.frame), gateway, packet.source, protocol, &message)
}

/// A datagram for the sender of a packet, with the addresses and ports given.
pub(crate) fn datagram(
    packet: &Packet<'_>,
    (source, from): (IpAddr, u16),
    (destination, to): (IpAddr, u16),
    payload: &[u8],
) -> Option<Vec<u8>> {
    let mut ethernet = back(packet.frame);
    // What was sent to all is not answered from all.
    if ethernet[6] & 1 == 1 {
        ethernet[6..].copy_from_slice(&GATEWAY);
    }
    udp(&ethernet, (source, destination), (from, to), payload)
}

/// A datagram from where a packet was sent to, back to its sender.
pub(crate) fn answer(packet: &Packet<'_>, payload: &[u8]) -> Option<Vec<u8>> {
    let datagram = packet.udp()?;
    let ends = (packet.destination, packet.source);
    udp(&back(packet.frame), ends, (datagram.destination, datagram.source), payload)
}

/// A datagram; `ethernet` is the two addresses of its frame.
pub(crate) fn udp(
    ethernet: &[u8],
    (source, destination): (IpAddr, IpAddr),
    ports: (u16, u16),
    payload: &[u8],
) -> Option<Vec<u8>> {
    let length = u16::try_from(8 + payload.len()).ok()?;
    let mut message: Vec<u8> = [ports.0, ports.1, length, 0].into_iter().flat_map(u16::to_be_bytes).collect();
    message.extend(payload);
    // A checksum of zero would say that there is none.
    let sum = match checksum(source, destination, PROTOCOL_UDP, &message) {
        0 => 0xffff,
        sum => sum,
    };
    message[6..8].copy_from_slice(&sum.to_be_bytes());
    ip(ethernet, source, destination, PROTOCOL_UDP, &message)
}

/// A reset from where a segment was sent to, back to its sender.
pub(crate) fn reset_back(packet: &Packet<'_>, segment: &Segment<'_>) -> Option<Vec<u8>> {
    let acknowledged = segment.sequence.wrapping_add(segment.payload.len() as u32);
    let ports = (segment.destination, segment.source);
    reset(&back(packet.frame), (packet.destination, packet.source), ports, segment.acknowledgment, acknowledged)
}

/// A reset in the place of a segment, from its sender, which acknowledges `acknowledged`.
pub(crate) fn reset_onward(packet: &Packet<'_>, segment: &Segment<'_>, acknowledged: u32) -> Option<Vec<u8>> {
    let ports = (segment.source, segment.destination);
    let ends = (packet.source, packet.destination);
    reset(&packet.frame[..12], ends, ports, segment.sequence, acknowledged)
}

fn reset(
    ethernet: &[u8],
    ends: (IpAddr, IpAddr),
    ports: (u16, u16),
    sequence: u32,
    acknowledged: u32,
) -> Option<Vec<u8>> {
    segment(ethernet, ends, ports, (sequence, acknowledged), RST | ACK, &[])
}

/// A TCP segment; `numbers` are its own and the one that it acknowledges.
pub(crate) fn segment(
    ethernet: &[u8],
    (source, destination): (IpAddr, IpAddr),
    ports: (u16, u16),
    numbers: (u32, u32),
    flags: u8,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let mut message: Vec<u8> = [ports.0, ports.1].into_iter().flat_map(u16::to_be_bytes).collect();
    message.extend(numbers.0.to_be_bytes());
    message.extend(numbers.1.to_be_bytes());
    let window = if flags & RST == 0 { u16::MAX } else { 0 };
    message.extend([0x50, flags]);
    message.extend(window.to_be_bytes());
    message.extend([0; 4]);
    message.extend(payload);
    let sum = checksum(source, destination, PROTOCOL_TCP, &message);
    message[16..18].copy_from_slice(&sum.to_be_bytes());
    ip(ethernet, source, destination, PROTOCOL_TCP, &message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{SYN, tests as make};

    /// Whether the checksums of a packet are right: the sum over what they cover is zero then.
    fn is_summed(packet: &Packet<'_>) -> bool {
        let is_header_summed = packet.source.is_ipv6() || fold(sum(&packet.frame[ETHERNET..packet.transport])) == 0;
        let body = packet.body();
        let whole = match packet.protocol {
            PROTOCOL_ICMP => fold(sum(body)),
            protocol => checksum(packet.source, packet.destination, protocol, body),
        };
        is_header_summed && whole == 0
    }

    /// The checksums were computed with another implementation.
    #[test]
    fn checksums_are_those_of_the_rfcs() {
        let udp = |source: &str, destination: &str, payload: &[u8]| {
            let ends = (source.parse().unwrap(), destination.parse().unwrap());
            let frame = udp(&[0; 12], ends, (53, 1000), payload).unwrap();
            let packet = Packet::parse(&frame).unwrap();
            u16::from_be_bytes([packet.body()[6], packet.body()[7]])
        };
        for (source, destination, payload, expected) in [
            ("10.0.2.3", "10.0.2.15", &b"odd"[..], 0x1045),
            ("10.0.2.3", "10.0.2.15", b"even", 0x18c3),
            ("203.0.113.9", "10.0.2.15", b"odd", 0xe03d),
            ("fd00:6d73::3", "fd00:6d73::15", b"odd", 0x5356),
            ("2001:db8::9", "fd00:6d73::15", b"even", 0x9889),
            // One that would be zero, which says that there is none.
            ("10.0.2.3", "10.0.2.15", &[0xe3, 0xab], 0xffff),
        ] {
            assert_eq!(udp(source, destination, payload), expected, "{source} {payload:?}");
        }
        let ends = ("203.0.113.9".parse().unwrap(), "10.0.2.15".parse().unwrap());
        let reset = segment(&[0; 12], ends, (80, 1000), (7, 8), RST | ACK, &[]).unwrap();
        assert_eq!(reset[ETHERNET + 20 + 16..][..2], [0x63, 0x71]);
        // The example of RFC 1071.
        assert_eq!(fold(sum(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7])), !0xddf2);
    }

    #[test]
    fn what_was_sent_to_all_is_answered_from_the_gateway() {
        for (to, expected) in [([0xff; 6], GATEWAY), ([0x9a, 0x55, 0, 0, 0, 1], [0x9a, 0x55, 0, 0, 0, 1])] {
            let mut frame = make::udp(("10.0.2.15", 68), ("10.0.2.2", 67), b"question");
            frame[..6].copy_from_slice(&to);
            let ends = (("10.0.2.2".parse().unwrap(), 67), ("10.0.2.15".parse().unwrap(), 68));
            let reply = datagram(&Packet::parse(&frame).unwrap(), ends.0, ends.1, b"answer").unwrap();
            assert_eq!((&reply[..6], &reply[6..12]), (&frame[6..12], &expected[..]));
        }
    }

    #[test]
    fn a_refusal_goes_back_and_quotes_the_packet() {
        for (source, destination, gateway, kind) in
            [("10.0.2.15", "10.9.9.9", "10.0.2.2", 3), ("fd00:6d73::15", "fd99::9", "fd00:6d73::2", 1)]
        {
            let frame = make::tcp((source, 1000), (destination, 80), 5, SYN, &[7; 2000]);
            let packet = Packet::parse(&frame).unwrap();
            let reply = prohibited(&packet, gateway.parse().unwrap()).unwrap();
            let refusal = Packet::parse(&reply).unwrap();
            assert_eq!((refusal.source, refusal.destination), (gateway.parse().unwrap(), packet.source));
            assert_eq!(refusal.icmp_type(), Some(kind));
            assert!(is_summed(&refusal) && reply[..6] == frame[6..12] && reply[6..12] == frame[..6]);
            assert_eq!(refusal.body()[8..], packet.ip()[..QUOTED]);
        }
    }

    #[test]
    fn a_frame_with_other_addresses_is_summed_as_before() {
        for payload in [&b"abc"[..], b"", &[0xff; 1000]] {
            for is_tcp in [true, false] {
                let ends = ("fe80::1".parse().unwrap(), "fe80::ffff:2".parse().unwrap());
                let ethernet = [7; 12];
                let frame = if is_tcp {
                    segment(&ethernet, ends, (1000, 80), (5, 6), ACK, payload).unwrap()
                } else {
                    udp(&ethernet, ends, (1000, 80), payload).unwrap()
                };
                let (source, destination) = ("fd00:6d73::2".parse().unwrap(), "fd00:6d73::15".parse().unwrap());
                let frame = readdressed(&Packet::parse(&frame).unwrap(), source, destination);
                let packet = Packet::parse(&frame).unwrap();
                assert_eq!((packet.source, packet.destination), (source.into(), destination.into()));
                assert!(is_summed(&packet), "{payload:?} {is_tcp}");
            }
        }
    }

    #[test]
    fn resets_and_datagrams_are_summed() {
        let frame = make::tcp(("10.0.2.15", 1000), ("203.0.113.9", 80), 5, ACK, b"abc");
        let packet = Packet::parse(&frame).unwrap();
        let segment = packet.tcp().unwrap();
        let reply = reset_back(&packet, &segment).unwrap();
        let reset = Packet::parse(&reply).unwrap();
        assert!(is_summed(&reset));
        let tcp = reset.tcp().unwrap();
        assert_eq!((tcp.source, tcp.destination, tcp.flags), (80, 1000, RST | ACK));
        assert_eq!((tcp.sequence, tcp.acknowledgment, tcp.window), (7, 8, 0));
        let onward = reset_onward(&packet, &segment, 9).unwrap();
        let tcp = Packet::parse(&onward).unwrap().tcp().unwrap();
        assert_eq!((tcp.source, tcp.destination, tcp.sequence, tcp.acknowledgment), (1000, 80, 5, 9));
        assert_eq!(onward[..12], frame[..12]);
        // Only a reset takes no more.
        let ends = (packet.destination, packet.source);
        let data = super::segment(&[0; 12], ends, (80, 1000), (7, 8), ACK, b"x").unwrap();
        assert_eq!(Packet::parse(&data).unwrap().tcp().unwrap().window, u16::MAX);

        for (source, destination) in [("10.0.2.15", "10.0.2.3"), ("fd00:6d73::15", "fd00:6d73::3")] {
            let frame = make::udp((source, 1000), (destination, 53), b"question");
            let packet = Packet::parse(&frame).unwrap();
            let reply = answer(&packet, b"no").unwrap();
            let reply = Packet::parse(&reply).unwrap();
            let datagram = reply.udp().unwrap();
            assert!(is_summed(&reply) && datagram.payload == b"no");
            assert_eq!((datagram.source, datagram.destination), (53, 1000));
        }
    }
}
