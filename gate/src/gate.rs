//! The gate itself: what is done with a frame, in either direction.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::connection::{Key, Openings, Outcome};
use crate::dhcp::{self, Lease};
use crate::dns::{self, Question};
use crate::dns_stream::{self, Streams};
use crate::frame::{
    self, ACK, Datagram, ETHERTYPE_ARP, FIN, MAX_FRAME, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP,
    Packet, RST, SYN, Segment,
};
use crate::link_local::Clients;
use crate::log::Denial;
use crate::names::{Asker, Names, Pending};
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
const MAX_FLOWS: usize = 4096;
/// How many addresses one answer may give.
const MAX_ANSWERS: usize = 128;
/// The largest question, in bytes.
pub const MAX_QUERY: usize = 2048;
/// How many denials there may be between two calls of [`Gate::take_denials`].
const MAX_DENIALS: usize = 128;

/// How long an entry is valid.
const HANDSHAKE: Duration = Duration::from_secs(300);
const FLOW: Duration = Duration::from_secs(180);

/// What the gate has to know of its guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The guest's IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The guest's IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// What a DHCP client in the guest gets; `None` if it gets no answer.
    pub lease: Option<Lease>,
    /// The addresses at which the guest finds its name server.
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
    /// It is dropped, a question goes to the resolver, and a frame, if there is one, goes back to the sender.
    Ask {
        /// To the resolver.
        query: Query,
        /// To the sender.
        back: Option<Vec<u8>>,
    },
}

/// A question that a name server may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The number of the question, which comes back with the answer.
    pub token: u32,
    /// The guest's message.
    pub message: Vec<u8>,
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
    names: Names,
    /// What came in to a published UDP port.
    flows: Table<Key, ()>,
    /// The clients of published ports on the host's IPv6 loopback.
    clients: Clients,
    denials: Vec<Denial>,
}

impl Gate {
    /// A gate without any traffic.
    pub fn new(config: Config) -> Self {
        Self {
            clients: Clients::new(config.policy.ipv6_gateway().zip(config.ipv6)),
            config,
            handshakes: Table::new(MAX_HANDSHAKES),
            openings: Openings::default(),
            streams: Streams::default(),
            names: Names::new(),
            flows: Table::new(MAX_FLOWS),
            denials: Vec::new(),
        }
    }

    /// Replaces what is known of the host's own addresses and networks.
    pub fn set_host(&mut self, own: Vec<IpAddr>, links: Vec<address::Prefix>) {
        (self.config.policy.own, self.config.policy.links) = (own, links);
    }

    /// Another passt has taken the place of one that was lost, with all connections.
    pub fn forget_connections(&mut self) {
        self.openings.clear();
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
            && self.is_neighbor(packet.source)
        {
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
        if Clients::are_source_of(&packet) {
            return self.clients.inward(&packet, now).map_or(Verdict::Drop, Verdict::Replace);
        }
        match packet.protocol {
            PROTOCOL_TCP => packet.tcp().map_or(Verdict::Drop, |segment| self.tcp_to_guest(&packet, &segment, now)),
            PROTOCOL_UDP => packet.udp().map_or(Verdict::Drop, |datagram| self.udp_to_guest(&packet, &datagram, now)),
            // The guest's addresses are configured: it would take a second one from an advertisement, and be refused with it.
            PROTOCOL_ICMPV6 if packet.icmp_type() == Some(ROUTER_ADVERTISEMENT) => Verdict::Drop,
            _ => Verdict::Pass,
        }
    }

    /// Takes the resolver's answer to the question with this number. Its addresses are remembered for the rules by name; an
    /// answer that leads where the guest may not go becomes "no such name". Returns the frame for the guest.
    pub fn answer(&mut self, token: u32, message: &[u8], now: Duration) -> Option<Vec<u8>> {
        let pending = self.names.take(token, now)?;
        let answer = self.judge(&pending, message, now).unwrap_or_else(|| pending.question.failed(&pending.head));
        self.deliver(&pending, &answer)
    }

    /// The question with this number gets no answer. Returns the frame that tells the guest.
    pub fn fail(&mut self, token: u32, now: Duration) -> Option<Vec<u8>> {
        let pending = self.names.take(token, now)?;
        self.deliver(&pending, &pending.question.failed(&pending.head))
    }

    /// Whether the guest may speak to its neighbors from this address. Its kernel does so from a link-local one, too, and from none
    /// before it has one.
    fn is_neighbor(&self, source: IpAddr) -> bool {
        let IpAddr::V6(source) = source else { return false };
        self.config.ipv6 == Some(source) || source.is_unicast_link_local() || source.is_unspecified()
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
        if let Some(frame) = self.clients.outward(packet, segment, now) {
            return Verdict::Replace(frame);
        }
        if self.openings.is_empty() {
            return Verdict::Pass;
        }
        match self.openings.take(&key, segment) {
            Outcome::Pass | Outcome::Unnamed => Verdict::Pass,
            Outcome::Drop => Verdict::Drop,
            Outcome::Reset(sequence) => {
                let bare = Segment { sequence, ..*segment };
                reply::reset_onward(packet, &bare, segment.acknowledgment).map_or(Verdict::Drop, Verdict::Replace)
            }
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
        // Data in a SYN would be sent before the gate has read it. A SYN with RST or FIN could end a connection at passt that the gate
        // still tracks.
        if !segment.payload.is_empty() || segment.flags & (FIN | RST) != 0 {
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

    /// A datagram to the resolver: one about a name that no rule allows is answered here and never leaves the host.
    fn question(&mut self, packet: &Packet<'_>, datagram: &Datagram<'_>, now: Duration) -> Verdict {
        let message = datagram.payload;
        if message.len() > MAX_QUERY {
            return Verdict::Drop;
        }
        let Some(question) = Question::parse_query(message) else {
            let refusal = self.refusal_of_name(message);
            return Verdict::reply(refusal.and_then(|(_, refusal)| reply::answer(packet, &refusal)));
        };
        if let Some(refusal) = self.refusal(&question, message) {
            return Verdict::reply(reply::answer(packet, &refusal));
        }
        let asker = Asker::Datagram {
            ethernet: reply::back(packet.frame),
            resolver: packet.destination,
            guest: (packet.source, datagram.source),
            size: question.udp_size(message),
        };
        Verdict::Ask { query: self.ask(question, message.to_vec(), asker, now), back: None }
    }

    /// A segment of a connection to the resolver, and the question that it may complete.
    fn stream_question(&mut self, packet: &Packet<'_>, segment: &Segment<'_>, now: Duration) -> Verdict {
        let dns_stream::Outcome { back, question: asked } = self.streams.take(packet, segment, now);
        let Some((number, message)) = asked else { return Verdict::reply(back) };
        let Some(question) = Question::parse_query(&message) else {
            if let Some((id, refusal)) = self.refusal_of_name(&message) {
                return Verdict::reply(self.streams.answer(number, id, &refusal));
            }
            self.streams.forget(number);
            return Verdict::reply(reply::reset_back(packet, segment));
        };
        if let Some(refusal) = self.refusal(&question, &message) {
            return Verdict::reply(self.streams.answer(number, question.id, &refusal));
        }
        Verdict::Ask { query: self.ask(question, message, Asker::Stream(number), now), back }
    }

    /// The refusal of a question that no rule allows.
    fn refusal(&mut self, question: &Question, message: &[u8]) -> Option<Vec<u8>> {
        if self.config.policy.allows_name(&question.name) {
            return None;
        }
        self.deny(Denial {
            protocol: Protocol::Udp,
            address: None,
            port: None,
            name: Some(question.name.clone()),
            reason: "the name is not allowed".into(),
        });
        Some(question.refused(message))
    }

    /// The refusal of a question about a name that the rules cannot judge, and its identifier; `None` for what is not a question.
    fn refusal_of_name(&mut self, message: &[u8]) -> Option<(u16, Vec<u8>)> {
        let refusal = dns::refused_name(message)?;
        let reason = "the name has characters other than letters, digits, - and _".into();
        self.deny(Denial { protocol: Protocol::Udp, address: None, port: None, name: None, reason });
        Some(refusal)
    }

    fn ask(&mut self, question: Question, message: Vec<u8>, asker: Asker, now: Duration) -> Query {
        let head = message[..question.end].to_vec();
        Query { token: self.names.ask(Pending { question, head, asker }, now), message }
    }

    /// The message that the guest gets for an answer; `None` for what is not one.
    fn judge(&mut self, pending: &Pending, message: &[u8], now: Duration) -> Option<Vec<u8>> {
        let question = Question::parse_answer(message).filter(|answer| pending.question.is_answered_by(answer))?;
        let addresses = question.addresses(message).filter(|addresses| addresses.len() <= MAX_ANSWERS)?;
        let name = &question.name;
        let forbidden = addresses.iter().find(|(address, _)| !self.config.policy.allows_answer(*address, name));
        if let Some(&(address, _)) = forbidden {
            self.deny(Denial {
                protocol: Protocol::Udp,
                address: Some(address),
                port: None,
                name: Some(name.clone()),
                reason: "the answer has a forbidden address".into(),
            });
            return Some(question.no_such_name(message));
        }
        for (address, ttl) in addresses {
            self.names.learn(address, name, ttl, now);
        }
        match pending.asker {
            Asker::Datagram { size, .. } if message.len() > size => Some(question.truncated(message)),
            _ => Some(message.to_vec()),
        }
    }

    /// The frame with an answer.
    fn deliver(&mut self, pending: &Pending, answer: &[u8]) -> Option<Vec<u8>> {
        match pending.asker {
            Asker::Datagram { ethernet, resolver, guest: (guest, port), .. } => {
                reply::udp(&ethernet, (resolver, guest), (DNS, port), answer)
            }
            Asker::Stream(number) => self.streams.answer(number, pending.question.id, answer),
        }
    }

    fn tcp_to_guest(&mut self, packet: &Packet<'_>, segment: &Segment<'_>, now: Duration) -> Verdict {
        let key = (segment.destination, packet.source, segment.source);
        if segment.flags & (SYN | RST) == 0 {
            if !self.openings.is_empty() {
                self.openings.acknowledge(&key, segment.acknowledgment);
            }
            return Verdict::Pass;
        }
        let syn = self.handshakes.remove(&key, now);
        if segment.flags & RST != 0 {
            self.openings.forget(&key);
        }
        match syn {
            // passt of 2023 refuses with a reset that acknowledges nothing. Linux ignores it, and the guest would wait.
            Some(syn) if segment.flags & (RST | ACK) == RST => {
                reply::reset_onward(packet, segment, syn.wrapping_add(1)).map_or(Verdict::Pass, Verdict::Replace)
            }
            _ => Verdict::Pass,
        }
    }

    fn udp_to_guest(&mut self, packet: &Packet<'_>, datagram: &Datagram<'_>, now: Duration) -> Verdict {
        // Answers come from the resolver process, which sends no frames.
        if datagram.source == DNS && self.config.resolvers.contains(&packet.source) {
            return Verdict::Drop;
        }
        let port = datagram.destination;
        if self.config.udp_ports.iter().any(|&(first, last)| (first..=last).contains(&port)) {
            self.flows.insert((port, packet.source, datagram.source), now + FLOW, ());
        }
        Verdict::Pass
    }

    /// The names of an address, if a rule could ask for them.
    fn names_for_rules(&self, address: IpAddr, now: Duration) -> Vec<String> {
        if self.config.policy.has_names() { self.names.of(address, now) } else { Vec::new() }
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
            name: self.names.of(packet.destination, now).pop(),
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
        self.openings.forget(&(segment.source, packet.destination, segment.destination));
        back.zip(onward).map_or(Verdict::Drop, |(back, onward)| Verdict::Both { back, onward })
    }

    fn deny(&mut self, denial: Denial) {
        // The caller takes them after every batch of frames.
        if self.denials.len() < MAX_DENIALS {
            self.denials.push(denial);
        }
    }
}

#[cfg(test)]
mod tests;
