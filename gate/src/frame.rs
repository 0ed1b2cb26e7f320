//! An Ethernet frame and the one shape of IP packet that passes: IPv4 without options or fragments, IPv6 without extension
//! headers, and a length that the frame has. Checksums are not checked: with offloading they are partial, and passt
//! makes its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The largest frame in either direction: 64 KiB of packet and the Ethernet header. libkrun aborts on a larger one.
pub const MAX_FRAME: usize = 65535 + ETHERNET;

/// The length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
const UDP: usize = 8;
const ICMP: usize = 8;

/// IP protocol numbers.
pub(crate) const PROTOCOL_ICMP: u8 = 1;
pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const PROTOCOL_UDP: u8 = 17;
pub(crate) const PROTOCOL_ICMPV6: u8 = 58;

/// EtherTypes.
pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_ARP: u16 = 0x0806;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;

/// TCP flags.
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// The two bytes at `at`, which the caller has checked to be there.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The four bytes at `at`, which the caller has checked to be there.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The EtherType; `None` if there is no whole header.
pub(crate) fn ethertype(frame: &[u8]) -> Option<u16> {
    (frame.len() >= ETHERNET).then(|| be16(frame, 12))
}

/// An IP packet in a frame: its addresses, and where its parts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet<'f> {
    pub frame: &'f [u8],
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The IP protocol number.
    pub protocol: u8,
    /// Where the transport header begins.
    pub transport: usize,
    /// Where the packet ends; the frame may have padding after it.
    pub end: usize,
}

impl<'f> Packet<'f> {
    /// The packet in a frame; `None` for anything of another shape.
    pub(crate) fn parse(frame: &'f [u8]) -> Option<Self> {
        match ethertype(frame)? {
            ETHERTYPE_IPV4 => Self::parse_ipv4(frame),
            ETHERTYPE_IPV6 => Self::parse_ipv6(frame),
            _ => None,
        }
    }

    fn parse_ipv4(frame: &'f [u8]) -> Option<Self> {
        let transport = ETHERNET + IPV4;
        let header: &[u8; IPV4] = frame.get(ETHERNET..transport)?.try_into().ok()?;
        let end = ETHERNET + usize::from(be16(header, 2));
        // Version 4 and five words of header; of the fragment field, "do not fragment" may be set.
        if header[0] != 0x45 || be16(header, 6) & !0x4000 != 0 || end > frame.len() || end < transport {
            return None;
        }
        let address = |at: usize| IpAddr::V4(Ipv4Addr::from(be32(header, at)));
        Some(Self { frame, source: address(12), destination: address(16), protocol: header[9], transport, end })
    }

    fn parse_ipv6(frame: &'f [u8]) -> Option<Self> {
        let transport = ETHERNET + IPV6;
        let header: &[u8; IPV6] = frame.get(ETHERNET..transport)?.try_into().ok()?;
        let end = transport + usize::from(be16(header, 4));
        if header[0] >> 4 != 6 || end > frame.len() {
            return None;
        }
        let address = |at: usize| {
            let octets: [u8; 16] = header[at..at + 16].try_into().unwrap_or_default();
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        Some(Self { frame, source: address(8), destination: address(24), protocol: header[6], transport, end })
    }

    /// The IP packet without the Ethernet header and padding.
    pub(crate) fn ip(&self) -> &'f [u8] {
        &self.frame[ETHERNET..self.end]
    }

    /// What follows the IP header.
    pub(crate) fn body(&self) -> &'f [u8] {
        &self.frame[self.transport..self.end]
    }

    /// The TCP segment in it, with a whole header.
    pub(crate) fn tcp(&self) -> Option<Segment<'f>> {
        let body = self.body();
        if self.protocol != PROTOCOL_TCP || body.len() < TCP {
            return None;
        }
        let header = usize::from(body[12] >> 4) * 4;
        let payload = body.get(header..).filter(|_| header >= TCP)?;
        Some(Segment {
            source: be16(body, 0),
            destination: be16(body, 2),
            sequence: be32(body, 4),
            acknowledgment: be32(body, 8),
            flags: body[13],
            window: be16(body, 14),
            payload,
        })
    }

    /// The UDP datagram in it, whose length is that of the packet.
    pub(crate) fn udp(&self) -> Option<Datagram<'f>> {
        let body = self.body();
        if self.protocol != PROTOCOL_UDP || body.len() < UDP || usize::from(be16(body, 4)) != body.len() {
            return None;
        }
        Some(Datagram { source: be16(body, 0), destination: be16(body, 2), payload: &body[UDP..] })
    }

    /// The type of the ICMP or ICMPv6 message in it.
    pub(crate) fn icmp_type(&self) -> Option<u8> {
        let fits = match self.source {
            IpAddr::V4(_) => self.protocol == PROTOCOL_ICMP,
            IpAddr::V6(_) => self.protocol == PROTOCOL_ICMPV6,
        };
        (fits && self.body().len() >= ICMP).then(|| self.body()[0])
    }

    /// The hop limit of an IPv6 packet: 255 if no router has passed it on.
    pub(crate) fn hop_limit(&self) -> u8 {
        self.frame[ETHERNET + 7]
    }
}

/// A TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment<'f> {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub flags: u8,
    pub window: u16,
    pub payload: &'f [u8],
}

impl Segment<'_> {
    /// Whether it opens a connection. passt does that for every SYN without ACK, whatever other flags are set.
    pub(crate) fn opens(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }
}

/// A UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datagram<'f> {
    pub source: u16,
    pub destination: u16,
    pub payload: &'f [u8],
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An Ethernet frame from the guest with this packet.
    fn ethernet(ethertype: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55, 0x52, 0x55, 0, 0, 0, 2];
        frame.extend(ethertype.to_be_bytes());
        frame.extend(packet);
        frame
    }

    /// A frame with an IP packet.
    pub(crate) fn ip(source: &str, destination: &str, protocol: u8, body: &[u8]) -> Vec<u8> {
        match (source.parse().unwrap(), destination.parse().unwrap()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut packet = vec![0x45, 0];
                packet.extend((20 + body.len() as u16).to_be_bytes());
                packet.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet.extend(body);
                ethernet(ETHERTYPE_IPV4, &packet)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut packet = vec![0x60, 0, 0, 0];
                packet.extend((body.len() as u16).to_be_bytes());
                packet.extend([protocol, 255]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet.extend(body);
                ethernet(ETHERTYPE_IPV6, &packet)
            }
            _ => panic!("{source} and {destination} are of different families"),
        }
    }

    /// A frame with a TCP segment.
    pub(crate) fn tcp(
        (source, source_port): (&str, u16),
        (destination, port): (&str, u16),
        sequence: u32,
        flags: u8,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut body = [source_port.to_be_bytes(), port.to_be_bytes()].concat();
        body.extend(sequence.to_be_bytes());
        body.extend([0, 0, 0, 7, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        body.extend(payload);
        ip(source, destination, PROTOCOL_TCP, &body)
    }

    /// A frame with a UDP datagram.
    pub(crate) fn udp((source, source_port): (&str, u16), (destination, port): (&str, u16), payload: &[u8]) -> Vec<u8> {
        let mut body =
            [source_port.to_be_bytes(), port.to_be_bytes(), (8 + payload.len() as u16).to_be_bytes()].concat();
        body.extend([0, 0]);
        body.extend(payload);
        ip(source, destination, PROTOCOL_UDP, &body)
    }

    #[test]
    fn only_one_shape_of_packet_is_parsed() {
        let v4 = tcp(("10.0.2.15", 1000), ("203.0.113.9", 80), 5, SYN, b"");
        let v6 = tcp(("fd00:6d73::15", 1000), ("2001:db8::9", 80), 5, SYN, b"");
        assert!(Packet::parse(&v4).is_some() && Packet::parse(&v6).is_some());
        let edited = |frame: &[u8], at: usize, byte: u8| {
            let mut frame = frame.to_vec();
            frame[at] = byte;
            frame
        };
        for (what, frame) in [
            ("nothing", Vec::new()),
            ("half an Ethernet header", v4[..13].to_vec()),
            ("half an IPv4 header", v4[..33].to_vec()),
            ("half an IPv6 header", v6[..53].to_vec()),
            ("options", edited(&v4, 14, 0x46)),
            ("a short header", edited(&v4, 14, 0x44)),
            ("version 6 in IPv4", edited(&v4, 14, 0x65)),
            ("version 4 in IPv6", edited(&v6, 14, 0x40)),
            ("a first fragment", edited(&v4, 20, 0x20)),
            ("a later fragment", edited(&v4, 21, 1)),
            ("the reserved flag", edited(&v4, 20, 0x80)),
            ("a length past the frame", edited(&v4, 17, 41)),
            ("a length within the header", edited(&v4, 17, 19)),
            ("an IPv6 length past the frame", edited(&v6, 19, 21)),
            ("a VLAN tag", edited(&edited(&v4, 12, 0x81), 13, 0)),
        ] {
            assert_eq!(Packet::parse(&frame), None, "{what}");
        }
        let empty = ip("10.0.2.15", "203.0.113.9", PROTOCOL_TCP, b"");
        assert_eq!(Packet::parse(&empty).unwrap().body(), b"");
        let padded = [v4.as_slice(), &[0; 6]].concat();
        assert_eq!(Packet::parse(&padded).unwrap().end, v4.len());
    }

    #[test]
    fn a_transport_header_is_whole() {
        let parse = |body: &[u8], protocol| {
            let frame = ip("10.0.2.15", "203.0.113.9", protocol, body);
            let packet = Packet::parse(&frame).unwrap();
            (packet.tcp().is_some(), packet.udp().is_some(), packet.icmp_type())
        };
        let header = |offset: u8| [&[0; 12][..], &[offset << 4], &[0; 7]].concat();
        for (body, protocol, expected) in [
            (header(5), PROTOCOL_TCP, (true, false, None)),
            (header(4), PROTOCOL_TCP, (false, false, None)),
            (header(6), PROTOCOL_TCP, (false, false, None)),
            (header(5)[..19].to_vec(), PROTOCOL_TCP, (false, false, None)),
            (header(5), PROTOCOL_UDP, (false, false, None)),
            (vec![0, 1, 0, 2, 0, 8, 0, 0], PROTOCOL_UDP, (false, true, None)),
            (vec![0, 1, 0, 2, 0, 9, 0, 0], PROTOCOL_UDP, (false, false, None)),
            (vec![0, 1, 0, 2, 0, 7, 0], PROTOCOL_UDP, (false, false, None)),
            (vec![8, 0, 0, 0, 0, 0, 0, 0], PROTOCOL_ICMP, (false, false, Some(8))),
            (vec![8, 0, 0, 0, 0, 0, 0], PROTOCOL_ICMP, (false, false, None)),
            (vec![128, 0, 0, 0, 0, 0, 0, 0], PROTOCOL_ICMPV6, (false, false, None)),
        ] {
            assert_eq!(parse(&body, protocol), expected, "{body:?} {protocol}");
        }
    }
}
