//! The gate itself: what is done with a frame, in either direction.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::connection::{Key, Openings, Outcome};
use crate::dhcp::{self, Lease};
use crate::dns::Question;
use crate::dns_stream::{self, Streams};
use crate::frame::{
    self, ACK, Datagram, ETHERTYPE_ARP, MAX_FRAME, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Packet,
    RST, SYN, Segment,
};
use crate::log::Denial;
use crate::policy::{Decision, Destination, Policy};
use crate::rule::Protocol;
use crate::table::Table;
use crate::{address, arp, reply};

const DNS: u16 = 53;
const ECHO_V4: u8 = 8;
const ECHO_V6: u8 = 128;
/// A router's or a neighbor's solicitation, and a neighbor's advertisement, RFC 4861.
const NEIGHBOR_DISCOVERY: [u8; 3] = [133, 135, 136];
const ROUTER_ADVERTISEMENT: u8 = 134;

/// How many entries each table has.
const MAX_HANDSHAKES: usize = 4096;
const MAX_QUESTIONS: usize = 1024;
const MAX_FLOWS: usize = 4096;
const MAX_ADDRESSES: usize = 4096;
/// How many names are remembered for one address.
const MAX_NAMES: usize = 8;
/// How many addresses one answer may give.
const MAX_ANSWERS: usize = 128;

/// How long an entry is valid.
const HANDSHAKE: Duration = Duration::from_secs(300);
const QUESTION: Duration = Duration::from_secs(30);
const FLOW: Duration = Duration::from_secs(180);
/// An address is remembered as long as its answer is valid, within these limits.
const ADDRESS: (u32, u32) = (60, 86400);

/// What the gate has to know of its guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The guest's IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The guest's IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// What a DHCP client in the guest gets; `None` if it gets no answer.
    pub lease: Option<Lease>,
    /// The addresses of the resolver that passt forwards for.
    pub resolvers: Vec<IpAddr>,
    /// The guest's UDP ports that are published, as ranges.
    pub udp_ports: Vec<(u16, u16)>,
    /// Where its traffic may go.
    pub policy: Policy,
}

/// What is to be done with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as it is.
    Pass,
    /// It is dropped.
    Drop,
    /// It is dropped, and this goes back to where it came from.
    Reply(Vec<u8>),
    /// This goes on in its place.
    Replace(Vec<u8>),
    /// This goes back to where it came from, and this goes on in its place.
    Both {
        /// To the sender.
        back: Vec<u8>,
        /// To the other side.
        onward: Vec<u8>,
    },
}

impl Verdict {
    /// A reply, if one could be made.
    fn reply(frame: Option<Vec<u8>>) -> Self {
        frame.map_or(Self::Drop, Self::Reply)
    }
}

/// The gate of one guest.
#[derive(Debug)]
pub struct Gate {
    config: Config,
    /// The sequence number of each SYN that has no answer yet.
    handshakes: Table<Key, u32>,
    openings: Openings,
    /// The connections to the resolver.
    streams: Streams,
    /// The names that were asked for, by the guest's port and the identifier.
    questions: Table<(u16, u16), String>,
    /// What came in to a published UDP port.
    flows: Table<Key, ()>,
    /// The names by which the guest knows an address, each with the time until which it does.
    names: Table<IpAddr, Vec<(String, Duration)>>,
    denials: Vec<Denial>,
}

impl Gate {
    /// A gate without any traffic.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            handshakes: Table::new(MAX_HANDSHAKES),
            openings: Openings::default(),
            streams: Streams::default(),
            questions: Table::new(MAX_QUESTIONS),
            flows: Table::new(MAX_FLOWS),
            names: Table::new(MAX_ADDRESSES),
            denials: Vec::new(),
        }
    }

    /// Replaces what is known of the host's own addresses and networks.
    pub fn set_host(&mut self, own: Vec<IpAddr>, links: Vec<address::Prefix>) {
        (self.config.policy.own, self.config.policy.links) = (own, links);
    }

    /// Takes what was denied since the last call.
    pub fn take_denials(&mut self) -> Vec<Denial> {
        std::mem::take(&mut self.denials)
    }

    /// Decides about a frame of the guest's. `now` is the time since any fixed point.
    pub fn from_guest(&mut self, frame: &[u8], now: Duration) -> Verdict {
        if frame.len() > MAX_FRAME {
            return Verdict::Drop;
        }
        if frame::ethertype(frame) == Some(ETHERTYPE_ARP) {
            let is_own = self.config.ipv4.is_some_and(|guest| arp::is_own(frame, guest));
            return if is_own { Verdict::Pass } else { Verdict::Drop };
        }
        let Some(packet) = Packet::parse(frame) else { return Verdict::Drop };
        if packet.protocol == PROTOCOL_ICMPV6
            && packet.icmp_type().is_some_and(|kind| NEIGHBOR_DISCOVERY.contains(&kind))
            && packet.hop_limit() == u8::MAX
        {
            // It may be from a link-local address, or from none.
            return Verdict::Pass;
        }
        if let Some(lease) = &self.config.lease
            && dhcp::is_request(&packet, lease)
        {
            return Verdict::reply(dhcp::answer(&packet, lease));
        }
        let is_own = match packet.source {
            IpAddr::V4(source) => self.config.ipv4 == Some(source),
            IpAddr::V6(source) => self.config.ipv6 == Some(source),
        };
        if !is_own {
            return Verdict::Drop;
        }
        match packet.protocol {
            PROTOCOL_TCP => packet.tcp().map_or(Verdict::Drop, |segment| self.tcp_from_guest(&packet, &segment, now)),
            PROTOCOL_UDP => packet.udp().map_or(Verdict::Drop, |datagram| self.udp_from_guest(&packet, &datagram, now)),
            PROTOCOL_ICMP | PROTOCOL_ICMPV6 => self.echo_from_guest(&packet, now),
            _ => Verdict::Drop,
        }
    }

    /// Decides about a frame for the guest.
    pub fn to_guest(&mut self, frame: &[u8], now: Duration) -> Verdict {
        if frame.len() > MAX_FRAME {
            return Verdict::Drop;
        }
        let Some(packet) = Packet::parse(frame) else {
            let is_arp = frame::ethertype(frame) == Some(ETHERTYPE_ARP);
            return if is_arp { Verdict::Pass } else { Verdict::Drop };
        };
        match packet.protocol {
            PROTOCOL_TCP => packet.tcp().map_or(Verdict::Drop, |segment| self.tcp_to_guest(&packet, &segment, now)),
            PROTOCOL_UDP => packet.udp().map_or(Verdict::Drop, |datagram| self.udp_to_guest(&packet, &datagram, now)),
            // The guest's addresses are configured: it would take a second one from an advertisement, and be refused with it.
            PROTOCOL_ICMPV6 if packet.icmp_type() == Some(ROUTER_ADVERTISEMENT) => Verdict::Drop,
            _ => Verdict::Pass,
        }
    }

    fn tcp_from_guest(&mut self, packet: &Packet<'_>, segment: &Segment<'_>, now: Duration) -> Verdict {
        if segment.destination == DNS && self.config.resolvers.contains(&packet.destination) {
            return self.stream_question(packet, segment, now);
        }
        let key = (segment.source, packet.destination, segment.destination);
        if segment.opens() {
            return self.syn_from_guest(packet, segment, key, now);
        }
        if address::is_never(packet.destination) {
            return Verdict::Drop;
        }
        if self.openings.is_empty() {
            return Verdict::Pass;
        }
        match self.openings.take(&key, segment) {
            Outcome::Pass | Outcome::Unnamed => Verdict::Pass,
            Outcome::Drop => Verdict::Drop,
            Outcome::Malformed => self.refuse_opening(packet, segment, None, "the beginning cannot be read".into()),
            Outcome::Named(name) => {
                let names: Vec<String> = name.iter().cloned().collect();
                let decision = self.decide(packet.destination, Protocol::Tcp, segment.destination, &names);
                if decision.allowed {
                    return Verdict::Pass;
                }
                self.refuse_opening(packet, segment, name, decision.reason)
            }
        }
    }

    fn syn_from_guest(&mut self, packet: &Packet<'_>, segment: &Segment<'_>, key: Key, now: Duration) -> Verdict {
        // Data in a SYN would be sent before it is read.
        if !segment.payload.is_empty() {
            return Verdict::Drop;
        }
        let names = self.names_for_rules(packet.destination, now);
        let decision = self.decide(packet.destination, Protocol::Tcp, segment.destination, &names);
        if !decision.allowed {
            return self.refuse(packet, Protocol::Tcp, segment.destination, decision.reason, now);
        }
        if !decision.by_name {
            self.openings.forget(&key);
        } else if !self.openings.expect(key, segment.sequence) {
            let reason = "another connection with these ports, or too many, have yet to begin".into();
            return self.refuse(packet, Protocol::Tcp, segment.destination, reason, now);
        }
        self.handshakes.insert(key, now + HANDSHAKE, segment.sequence);
        Verdict::Pass
    }

    fn udp_from_guest(&mut self, packet: &Packet<'_>, datagram: &Datagram<'_>, now: Duration) -> Verdict {
        if datagram.destination == DNS && self.config.resolvers.contains(&packet.destination) {
            return self.question(packet, datagram, now);
        }
        let key = (datagram.source, packet.destination, datagram.destination);
        if self.flows.get(&key, now).is_some() && !address::is_never(packet.destination) {
            return Verdict::Pass;
        }
        let names = self.names_for_rules(packet.destination, now);
        let decision = self.decide(packet.destination, Protocol::Udp, datagram.destination, &names);
        if decision.allowed {
            return Verdict::Pass;
        }
        self.refuse(packet, Protocol::Udp, datagram.destination, decision.reason, now)
    }

    fn echo_from_guest(&mut self, packet: &Packet<'_>, now: Duration) -> Verdict {
        let echo = if packet.source.is_ipv4() { ECHO_V4 } else { ECHO_V6 };
        if packet.icmp_type() != Some(echo) {
            return Verdict::Drop;
        }
        let names = self.names_for_rules(packet.destination, now);
        let decision = self.decide(packet.destination, Protocol::Icmp, 0, &names);
        if decision.allowed || self.config.policy.gateways.contains(&packet.destination) {
            return Verdict::Pass;
        }
        self.refuse(packet, Protocol::Icmp, 0, decision.reason, now)
    }

    /// A question to the resolver: one about a name that no rule allows is answered here and never leaves the host.
    fn question(&mut self, packet: &Packet<'_>, datagram: &Datagram<'_>, now: Duration) -> Verdict {
        let Some(question) = Question::parse_query(datagram.payload) else { return Verdict::Drop };
        match self.judge(datagram.source, &question, datagram.payload, now) {
            None => Verdict::Pass,
            Some(refusal) => Verdict::reply(reply::answer(packet, &refusal)),
        }
    }

    /// A segment of a connection to the resolver, and the question that it may complete.
    fn stream_question(&mut self, packet: &Packet<'_>, segment: &Segment<'_>, now: Duration) -> Verdict {
        let dns_stream::Outcome { back, question: asked } = self.streams.take(packet, segment, now);
        let Some((port, message)) = asked else { return Verdict::reply(back) };
        let Some(question) = Question::parse_query(&message) else {
            self.streams.forget(port);
            return Verdict::reply(reply::reset_back(packet, segment));
        };
        if let Some(refusal) = self.judge(port, &question, &message, now) {
            return Verdict::reply(self.streams.answer(port, question.id, &refusal));
        }
        let onward = reply::onward(packet, (port, DNS), &dns_stream::with_udp_size(message, &question));
        match (back, onward) {
            (Some(back), Some(onward)) => Verdict::Both { back, onward },
            (None, Some(onward)) => Verdict::Replace(onward),
            (back, None) => Verdict::reply(back),
        }
    }

    /// Remembers a question that may go on, from this port; or returns the refusal.
    fn judge(&mut self, port: u16, question: &Question, message: &[u8], now: Duration) -> Option<Vec<u8>> {
        if self.config.policy.allows_name(&question.name) {
            self.questions.insert((port, question.id), now + QUESTION, question.name.clone());
            return None;
        }
        let denial = Denial {
            protocol: Protocol::Udp,
            address: None,
            port: None,
            name: Some(question.name.clone()),
            reason: "the name is not allowed".into(),
        };
        self.deny(denial);
        Some(question.refused(message))
    }

    fn tcp_to_guest(&mut self, packet: &Packet<'_>, segment: &Segment<'_>, now: Duration) -> Verdict {
        if segment.flags & (SYN | RST) == 0 {
            return Verdict::Pass;
        }
        let key = (segment.destination, packet.source, segment.source);
        let syn = self.handshakes.remove(&key, now);
        if segment.flags & RST != 0 {
            self.openings.forget(&key);
        }
        match syn {
            // passt of 2023 refuses with a reset that acknowledges nothing. Linux ignores it, and the guest would wait for an answer.
            Some(syn) if segment.flags & (RST | ACK) == RST => {
                reply::reset_onward(packet, segment, syn.wrapping_add(1)).map_or(Verdict::Pass, Verdict::Replace)
            }
            _ => Verdict::Pass,
        }
    }

    fn udp_to_guest(&mut self, packet: &Packet<'_>, datagram: &Datagram<'_>, now: Duration) -> Verdict {
        if datagram.source == DNS && self.config.resolvers.contains(&packet.source) {
            return self.answer(packet, datagram, now);
        }
        let port = datagram.destination;
        if self.config.udp_ports.iter().any(|&(first, last)| (first..=last).contains(&port)) {
            self.flows.insert((port, packet.source, datagram.source), now + FLOW, ());
        }
        Verdict::Pass
    }

    /// An answer of the resolver's: its addresses are remembered for the rules by name. One that leads where the guest may not go
    /// becomes "no such name".
    fn answer(&mut self, packet: &Packet<'_>, datagram: &Datagram<'_>, now: Duration) -> Verdict {
        let message = datagram.payload;
        let Some(question) = Question::parse_answer(message) else { return Verdict::Drop };
        match self.questions.remove(&(datagram.destination, question.id), now) {
            Some(name) if name == question.name => {}
            _ => return Verdict::Drop,
        }
        let Some(addresses) = question.addresses(message).filter(|addresses| addresses.len() <= MAX_ANSWERS) else {
            return Verdict::Drop;
        };
        let name = &question.name;
        let is_over_tcp = self.streams.is_asking(datagram.destination, question.id);
        let forbidden = addresses.iter().find(|(address, _)| !self.config.policy.allows_answer(*address, name));
        if let Some(&(address, _)) = forbidden {
            self.deny(Denial {
                protocol: Protocol::Udp,
                address: Some(address),
                port: None,
                name: Some(name.clone()),
                reason: "the answer has a forbidden address".into(),
            });
            let nothing = question.no_such_name(message);
            let frame = if is_over_tcp {
                self.streams.answer(datagram.destination, question.id, &nothing)
            } else {
                reply::with_payload(packet, &nothing)
            };
            return frame.map_or(Verdict::Drop, Verdict::Replace);
        }
        for (address, ttl) in addresses {
            self.remember(address, name, now + Duration::from_secs(ttl.clamp(ADDRESS.0, ADDRESS.1).into()), now);
        }
        if is_over_tcp {
            let frame = self.streams.answer(datagram.destination, question.id, message);
            return frame.map_or(Verdict::Drop, Verdict::Replace);
        }
        Verdict::Pass
    }

    fn remember(&mut self, address: IpAddr, name: &str, until: Duration, now: Duration) {
        let mut names = self.names.remove(&address, now).unwrap_or_default();
        names.retain(|(known, until)| known != name && *until > now);
        if names.len() >= MAX_NAMES {
            names.remove(0);
        }
        names.push((name.to_owned(), until));
        let last = names.iter().map(|(_, until)| *until).max().unwrap_or(until);
        self.names.insert(address, last, names);
    }

    fn names_of(&self, address: IpAddr, now: Duration) -> Vec<String> {
        let names = self.names.get(&address, now).map(Vec::as_slice).unwrap_or_default();
        names.iter().filter(|(_, until)| *until > now).map(|(name, _)| name.clone()).collect()
    }

    /// The names of an address, if a rule could ask for them.
    fn names_for_rules(&self, address: IpAddr, now: Duration) -> Vec<String> {
        if self.config.policy.has_names() { self.names_of(address, now) } else { Vec::new() }
    }

    fn decide(&self, address: IpAddr, protocol: Protocol, port: u16, names: &[String]) -> Decision {
        self.config.policy.decide(&Destination { address, protocol, port, names })
    }

    /// Answers a packet with "prohibited".
    fn refuse(&mut self, packet: &Packet<'_>, protocol: Protocol, port: u16, reason: String, now: Duration) -> Verdict {
        self.deny(Denial {
            protocol,
            address: Some(packet.destination),
            port: (protocol != Protocol::Icmp).then_some(port),
            name: self.names_of(packet.destination, now).pop(),
            reason,
        });
        let is_same_family = |gateway: &&IpAddr| gateway.is_ipv4() == packet.source.is_ipv4();
        let gateway = self.config.policy.gateways.iter().find(is_same_family);
        Verdict::reply(gateway.and_then(|gateway| reply::prohibited(packet, *gateway)))
    }

    /// Resets a connection on both sides.
    fn refuse_opening(
        &mut self,
        packet: &Packet<'_>,
        segment: &Segment<'_>,
        name: Option<String>,
        reason: String,
    ) -> Verdict {
        let (address, port) = (Some(packet.destination), Some(segment.destination));
        self.deny(Denial { protocol: Protocol::Tcp, address, port, name, reason });
        let back = reply::reset_back(packet, segment);
        let onward = reply::reset_onward(packet, segment, segment.acknowledgment);
        back.zip(onward).map_or(Verdict::Drop, |(back, onward)| Verdict::Both { back, onward })
    }

    fn deny(&mut self, denial: Denial) {
        // The caller takes them after every batch of frames.
        if self.denials.len() < MAX_ANSWERS {
            self.denials.push(denial);
        }
    }
}

#[cfg(test)]
mod tests;
