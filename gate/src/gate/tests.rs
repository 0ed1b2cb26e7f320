mod names;

use super::*;
use crate::dhcp::Lease;
use crate::dns::tests::{answer, query};
use crate::frame::tests as make;
use crate::policy::Mode;
use crate::policy::tests::policy;
use crate::tls::tests::hello;

const GUEST: &str = "10.0.2.15";
const GUEST_6: &str = "fd00:6d73::15";
const RESOLVER: &str = "10.0.2.3";
const SERVER: &str = "203.0.113.9";
const NOW: Duration = Duration::from_secs(1000);

fn gate(mode: Mode, rules: &[&str]) -> Gate {
    Gate::new(Config {
        ipv4: Some(GUEST.parse().unwrap()),
        ipv6: Some(GUEST_6.parse().unwrap()),
        lease: Some(Lease {
            address: GUEST.parse().unwrap(),
            prefix: 24,
            gateway: [10, 0, 2, 2].into(),
            resolver: [10, 0, 2, 3].into(),
            mtu: 16384,
        }),
        resolvers: vec![RESOLVER.parse().unwrap()],
        udp_ports: vec![(5353, 5354)],
        policy: policy(mode, rules),
    })
}

fn syn(source: &str, destination: &str, port: u16) -> Vec<u8> {
    make::tcp((source, 1000), (destination, port), 5, SYN, b"")
}

/// What a verdict is, in a word.
fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Drop => "drop",
        Verdict::Reply(frame) => match Packet::parse(frame).unwrap().icmp_type() {
            Some(3 | 1) => "prohibited",
            _ => "reply",
        },
        Verdict::Replace(_) => "replace",
        Verdict::Both { .. } => "reset",
        Verdict::Ask { .. } => "ask",
    }
}

fn edited(mut frame: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    frame[at] = byte;
    frame
}

/// A frame with the largest packet.
fn largest(source: &str, destination: &str) -> Vec<u8> {
    let frame = make::udp((source, 1), (destination, 123), &vec![0; 65535 - 28]);
    assert_eq!(frame.len(), MAX_FRAME);
    frame
}

/// A question of this length.
fn question(length: usize) -> Vec<u8> {
    let mut question = query(7, "a.test");
    question.resize(length, 0);
    question
}

/// Asks the gate about a name over UDP.
fn ask(gate: &mut Gate, message: &[u8]) -> Verdict {
    gate.from_guest(&make::udp((GUEST, 4000), (RESOLVER, 53), message), NOW)
}

/// The response code and the length of the message in a datagram for the guest.
fn told(frame: Option<Vec<u8>>) -> Option<(u8, usize)> {
    let frame = frame?;
    let packet = Packet::parse(&frame).unwrap();
    let datagram = packet.udp().unwrap();
    assert_eq!((packet.source, packet.destination), (RESOLVER.parse().unwrap(), GUEST.parse().unwrap()));
    assert_eq!((datagram.source, datagram.destination, datagram.payload[..2].to_vec()), (53, 4000, vec![0, 7]));
    Some((datagram.payload[3] & 0xf, datagram.payload.len()))
}

/// Asks for a name and takes an answer: what becomes of the question, and the response code that the guest gets.
fn resolve(gate: &mut Gate, name: &str, addresses: &[&str]) -> (&'static str, Option<u8>) {
    let asked = ask(gate, &query(7, name));
    let code = match &asked {
        Verdict::Ask { query, .. } => told(gate.answer(query.token, &answer(7, name, addresses), NOW)),
        Verdict::Reply(frame) => told(Some(frame.clone())),
        _ => None,
    };
    (word(&asked), code.map(|(code, _)| code))
}

#[test]
fn a_hostile_guest_reaches_nothing() {
    let echo = [8, 0, 0, 0, 0, 1, 0, 1];
    let echo_6 = [128, 0, 0, 0, 0, 1, 0, 1];
    let solicitation = [135, 0, 0, 0, 0, 0, 0, 0];
    let discover = [&[1, 1, 6][..], &[0; 233], &0x6382_5363_u32.to_be_bytes(), &[53, 1, 1, 255]].concat();
    let is_reply = [0, 0, 0, 0, 0, 0, 0, 0];
    for (what, frame, expected) in [
        ("the internet", syn(GUEST, SERVER, 80), "pass"),
        ("the internet over IPv6", syn(GUEST_6, "2001:db8::9", 80), "pass"),
        ("loopback", syn(GUEST, "127.0.0.1", 80), "prohibited"),
        ("all of loopback", syn(GUEST, "127.9.9.9", 80), "prohibited"),
        ("loopback over IPv6", syn(GUEST_6, "::1", 80), "prohibited"),
        ("loopback mapped", syn(GUEST_6, "::ffff:127.0.0.1", 80), "prohibited"),
        ("this host", syn(GUEST, "0.0.0.0", 80), "prohibited"),
        ("the gateway", syn(GUEST, "10.0.2.2", 80), "prohibited"),
        ("the host's address", syn(GUEST, "198.51.100.2", 80), "prohibited"),
        ("the host's network", syn(GUEST, "198.51.100.3", 80), "prohibited"),
        ("a private network", syn(GUEST, "10.9.9.9", 80), "prohibited"),
        ("a private network over IPv6", syn(GUEST_6, "fd99::9", 80), "prohibited"),
        ("metadata", syn(GUEST, "169.254.169.254", 80), "prohibited"),
        ("metadata behind NAT64", syn(GUEST_6, "64:ff9b::169.254.169.254", 80), "prohibited"),
        ("DNS over TCP", syn(GUEST, RESOLVER, 53), "reply"),
        ("the resolver's other ports", syn(GUEST, RESOLVER, 80), "prohibited"),
        ("another source", syn("1.2.3.4", SERVER, 80), "drop"),
        ("loopback as the source", syn("127.0.0.1", SERVER, 80), "drop"),
        ("another source over IPv6", syn("fd00:6d73::16", "2001:db8::9", 80), "drop"),
        ("a SYN with FIN", edited(syn(GUEST, "10.9.9.9", 80), 47, SYN | FIN), "drop"),
        ("a SYN with RST", edited(syn(GUEST, "10.9.9.9", 80), 47, SYN | RST), "drop"),
        ("a SYN with URG", edited(syn(GUEST, "10.9.9.9", 80), 47, SYN | 0x20), "prohibited"),
        ("a SYN with FIN to the internet", edited(syn(GUEST, SERVER, 80), 47, SYN | FIN), "drop"),
        ("a SYN with RST to the internet", edited(syn(GUEST, SERVER, 80), 47, SYN | RST), "drop"),
        ("data in a SYN", make::tcp((GUEST, 1), (SERVER, 80), 5, SYN, b"x"), "drop"),
        ("a segment of a connection", make::tcp((GUEST, 1), ("10.9.9.9", 80), 5, ACK, b"x"), "pass"),
        ("a segment to loopback", make::tcp((GUEST, 1), ("127.0.0.1", 80), 5, ACK, b"x"), "drop"),
        ("a fragment", edited(syn(GUEST, SERVER, 80), 20, 0x20), "drop"),
        ("options", edited(syn(GUEST, SERVER, 80), 14, 0x46), "drop"),
        ("half a TCP header", make::ip(GUEST, SERVER, PROTOCOL_TCP, &[0; 19]), "drop"),
        ("UDP", make::udp((GUEST, 1), (SERVER, 123), b"x"), "pass"),
        ("UDP to a private network", make::udp((GUEST, 1), ("10.9.9.9", 123), b"x"), "prohibited"),
        ("UDP to another name server", make::udp((GUEST, 1), (SERVER, 53), b"x"), "pass"),
        ("UDP to the resolver's other ports", make::udp((GUEST, 1), (RESOLVER, 80), b"x"), "prohibited"),
        ("the longest question", make::udp((GUEST, 1), (RESOLVER, 53), &question(MAX_QUERY)), "ask"),
        ("a longer one", make::udp((GUEST, 1), (RESOLVER, 53), &question(MAX_QUERY + 1)), "drop"),
        ("UDP to a group", make::udp((GUEST, 1), ("224.0.0.251", 5353), b"x"), "prohibited"),
        ("UDP with a false length", make::ip(GUEST, SERVER, PROTOCOL_UDP, &[0, 1, 0, 2, 0, 99, 0, 0]), "drop"),
        ("what is not a question", make::udp((GUEST, 1), (RESOLVER, 53), b"x"), "drop"),
        ("echo", make::ip(GUEST, SERVER, PROTOCOL_ICMP, &echo), "pass"),
        ("echo to the gateway", make::ip(GUEST, "10.0.2.2", PROTOCOL_ICMP, &echo), "pass"),
        ("echo to a private network", make::ip(GUEST, "10.9.9.9", PROTOCOL_ICMP, &echo), "prohibited"),
        ("echo over IPv6", make::ip(GUEST_6, "2001:db8::9", PROTOCOL_ICMPV6, &echo_6), "pass"),
        ("an echo reply", make::ip(GUEST, SERVER, PROTOCOL_ICMP, &is_reply), "drop"),
        ("a redirect", make::ip(GUEST, SERVER, PROTOCOL_ICMP, &[5, 0, 0, 0, 0, 0, 0, 0]), "drop"),
        ("IPv6's echo in IPv4", make::ip(GUEST, SERVER, PROTOCOL_ICMPV6, &echo_6), "drop"),
        ("a solicitation", make::ip("fe80::1", "ff02::1:ff00:2", PROTOCOL_ICMPV6, &solicitation), "pass"),
        ("one from no address", make::ip("::", "ff02::1", PROTOCOL_ICMPV6, &solicitation), "pass"),
        ("one from the guest", make::ip(GUEST_6, "ff02::1", PROTOCOL_ICMPV6, &solicitation), "pass"),
        ("one from another", make::ip("2001:db8::1", "ff02::1", PROTOCOL_ICMPV6, &solicitation), "drop"),
        ("one in IPv4", make::ip(GUEST, SERVER, PROTOCOL_ICMPV6, &solicitation), "drop"),
        ("one that was routed", edited(make::ip("::", "ff02::1", PROTOCOL_ICMPV6, &solicitation), 21, 64), "drop"),
        ("an advertisement", make::ip(GUEST_6, "ff02::1", PROTOCOL_ICMPV6, &[134, 0, 0, 0, 0, 0, 0, 0]), "drop"),
        ("an extension header", make::ip(GUEST_6, "2001:db8::9", 0, &[6, 0, 0, 0, 0, 0, 0, 0]), "drop"),
        ("SCTP", make::ip(GUEST, SERVER, 132, &[0; 12]), "drop"),
        ("a DHCP request without an address", make::udp(("0.0.0.0", 68), ("255.255.255.255", 67), &discover), "reply"),
        ("one that is none", make::udp(("0.0.0.0", 68), ("255.255.255.255", 67), b"x"), "drop"),
        ("one for another server", make::udp(("0.0.0.0", 68), (SERVER, 67), &discover), "drop"),
        ("no address otherwise", make::udp(("0.0.0.0", 67), ("255.255.255.255", 67), &discover), "drop"),
        ("ARP for another", edited(vec![0; 42], 12, 8), "drop"),
        ("a VLAN tag", edited(syn(GUEST, SERVER, 80), 12, 0x81), "drop"),
        ("nothing", Vec::new(), "drop"),
        ("as much as there may be", largest(GUEST, SERVER), "pass"),
        ("too much", [largest(GUEST, SERVER), vec![0]].concat(), "drop"),
    ] {
        assert_eq!(word(&gate(Mode::Public, &[]).from_guest(&frame, NOW)), expected, "{what}");
    }
}

#[test]
fn only_what_passt_may_send_reaches_the_guest() {
    for (what, frame, expected) in [
        ("a segment", make::tcp((SERVER, 80), (GUEST, 1000), 5, ACK, b"x"), "pass"),
        ("a connection", make::tcp((SERVER, 80), (GUEST, 1000), 5, SYN, b""), "pass"),
        ("a datagram", make::udp((SERVER, 80), (GUEST, 1000), b"x"), "pass"),
        ("another name server's", make::udp((SERVER, 53), (GUEST, 1000), b"x"), "pass"),
        ("one from the resolver's other port", make::udp((RESOLVER, 80), (GUEST, 1000), b"x"), "pass"),
        ("an advertisement", make::ip("fe80::2", "ff02::1", PROTOCOL_ICMPV6, &[134, 0, 0, 0, 0, 0, 0, 0]), "drop"),
        ("an unasked answer", make::udp((RESOLVER, 53), (GUEST, 1000), &answer(1, "a.test", &[SERVER])), "drop"),
        ("ARP", edited(edited(vec![0; 42], 12, 8), 13, 6), "pass"),
        ("a header alone", edited(edited(vec![0; 14], 12, 8), 13, 6), "pass"),
        ("another protocol", edited(edited(vec![0; 42], 12, 0x88), 13, 0xcc), "drop"),
        (
            "an echo reply over IPv6",
            make::ip("2001:db8::9", GUEST_6, PROTOCOL_ICMPV6, &[129, 0, 0, 0, 0, 0, 0, 0]),
            "pass",
        ),
        ("as much as there may be", largest(SERVER, GUEST), "pass"),
        ("too much", [largest(SERVER, GUEST), vec![0]].concat(), "drop"),
    ] {
        assert_eq!(word(&gate(Mode::Public, &[]).to_guest(&frame, NOW)), expected, "{what}");
    }
}

#[test]
fn a_client_with_a_link_local_address_is_seen_at_the_gateway_and_gets_answers_alone() {
    const GATEWAY_6: &str = "fd00:6d73::2";
    /// The addresses of what goes on in the place of a frame, or the verdict.
    fn ends(verdict: &Verdict) -> String {
        let Verdict::Replace(frame) = verdict else { return word(verdict).into() };
        let packet = Packet::parse(frame).unwrap();
        format!("{} {}", packet.source, packet.destination)
    }
    let segment = |client, flags| make::tcp((client, 40000), ("fe80::99", 80), 5, flags, b"");
    let answer = |port, flags| make::tcp((GUEST_6, port), (GATEWAY_6, 40000), 7, flags, b"x");
    let mut gate = gate(Mode::Deny, &[]);
    assert_eq!(ends(&gate.from_guest(&answer(80, ACK), NOW)), "pass");
    assert_eq!(ends(&gate.to_guest(&segment("fe80::1", SYN), NOW)), "fd00:6d73::2 fd00:6d73::15");
    for (what, frame, expected) in [
        ("an answer", answer(80, SYN | ACK), "fe80::99 fe80::1"),
        ("a refusal", answer(80, RST | ACK), "fe80::99 fe80::1"),
        ("from another port", answer(81, ACK), "pass"),
        ("a connection back", make::tcp((GUEST_6, 80), (GATEWAY_6, 40000), 7, SYN, b""), "prohibited"),
        ("a datagram", make::udp((GUEST_6, 80), (GATEWAY_6, 40000), b"x"), "prohibited"),
        ("past the gateway", make::tcp((GUEST_6, 80), ("fe80::1", 40000), 7, SYN, b""), "prohibited"),
        ("from passt's address for the guest", make::tcp(("fe80::99", 80), ("fe80::1", 40000), 7, ACK, b""), "drop"),
    ] {
        assert_eq!(ends(&gate.from_guest(&frame, NOW)), expected, "{what}");
    }
    // Another client with its port, the same one on other days, and passt's next address for the guest.
    let hours = |hours: u64| NOW + Duration::from_secs(hours * 3600);
    assert_eq!(ends(&gate.to_guest(&segment("fe80::2", SYN), NOW)), "drop");
    assert_eq!(ends(&gate.to_guest(&segment("fe80::1", ACK), hours(2))), "fd00:6d73::2 fd00:6d73::15");
    assert_eq!(ends(&gate.from_guest(&answer(80, ACK), hours(4))), "fe80::99 fe80::1");
    assert_eq!(ends(&gate.from_guest(&answer(80, ACK), hours(5))), "pass");
    let learned = make::tcp(("fe80::1", 40000), ("fe80::77", 80), 5, ACK, b"");
    assert_eq!(ends(&gate.to_guest(&learned, hours(5))), "fd00:6d73::2 fd00:6d73::15");
    assert_eq!(ends(&gate.from_guest(&answer(80, ACK), hours(5))), "fe80::77 fe80::1");
    // Datagrams stay as they are.
    assert_eq!(ends(&gate.to_guest(&make::udp(("fe80::1", 40000), ("fe80::99", 80), b"x"), NOW)), "pass");
    assert_eq!(ends(&gate.from_guest(&make::udp((GUEST_6, 80), (GATEWAY_6, 40000), b"x"), NOW)), "prohibited");
}

#[test]
fn a_client_that_names_another_server_is_reset() {
    for (mode, rules, payload, expected) in [
        (Mode::Deny, &["allow a.test"][..], hello("a.test"), "pass"),
        (Mode::Deny, &["allow a.test"], hello("b.test"), "reset"),
        (Mode::Deny, &["allow a.test"], b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n".to_vec(), "reset"),
        (Mode::Deny, &["allow a.test"], b"GET / HTTP/1.0\r\n\r\n".to_vec(), "reset"),
        (Mode::Deny, &["allow a.test"], b"SSH-2.0-x\r\n".to_vec(), "pass"),
        (Mode::Deny, &["allow a.test"], hello("b.test")[..20].to_vec(), "pass"),
        (Mode::Public, &["deny b.test"], hello("b.test"), "reset"),
        (Mode::Public, &["deny b.test"], hello("c.test"), "pass"),
        (Mode::Public, &["allow 203.0.113.9", "deny b.test"], hello("b.test"), "pass"),
        (Mode::Public, &["deny b.test"], vec![22, 3, 1, 0, 0], "reset"),
    ] {
        let mut gate = gate(mode, rules);
        resolve(&mut gate, "a.test", &[SERVER]);
        assert_eq!(word(&gate.from_guest(&syn(GUEST, SERVER, 443), NOW)), "pass");
        let data = make::tcp((GUEST, 1000), (SERVER, 443), 6, ACK, &payload);
        assert_eq!(
            word(&gate.from_guest(&data, NOW)),
            expected,
            "{mode:?} {rules:?} {:?}",
            String::from_utf8_lossy(&payload)
        );
    }
}

#[test]
fn a_request_that_was_judged_is_not_replaced() {
    let request = |name: &str| format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n");
    let data = |name: &str| make::tcp((GUEST, 1000), (SERVER, 443), 6, ACK, request(name).as_bytes());
    let acknowledgment = |number: u32| {
        let mut frame = make::tcp((SERVER, 443), (GUEST, 1000), 5, ACK, b"");
        frame[42..46].copy_from_slice(&number.to_be_bytes());
        frame
    };
    let end = 6 + request("b.test").len() as u32;
    for (what, number, expected) in [("nothing", 6, "drop"), ("a part", end - 1, "drop"), ("all", end, "pass")] {
        let mut gate = gate(Mode::Public, &["deny b.test"]);
        assert_eq!(word(&gate.from_guest(&syn(GUEST, SERVER, 443), NOW)), "pass");
        assert_eq!(word(&gate.from_guest(&data("a.test"), NOW)), "pass");
        assert_eq!(gate.to_guest(&acknowledgment(number), NOW), Verdict::Pass);
        assert_eq!(word(&gate.from_guest(&data("b.test"), NOW)), expected, "{what}");
    }
    // After a refusal, or with another passt, the ports are free for another connection.
    for is_refused in [true, false] {
        let mut gate = gate(Mode::Public, &["deny b.test"]);
        gate.from_guest(&syn(GUEST, SERVER, 443), NOW);
        if is_refused {
            assert_eq!(word(&gate.from_guest(&data("b.test"), NOW)), "reset");
        } else {
            gate.forget_connections();
        }
        let other = make::tcp((GUEST, 1000), (SERVER, 443), 500, SYN, b"");
        assert_eq!(word(&gate.from_guest(&other, NOW)), "pass");
    }
}

#[test]
fn a_second_syn_does_not_hide_a_connection() {
    let mut gate = gate(Mode::Public, &["deny b.test"]);
    assert_eq!(word(&gate.from_guest(&syn(GUEST, SERVER, 443), NOW)), "pass");
    assert_eq!(word(&gate.from_guest(&syn(GUEST, SERVER, 443), NOW)), "pass");
    let other = make::tcp((GUEST, 1000), (SERVER, 443), 500, SYN, b"");
    assert_eq!(word(&gate.from_guest(&other, NOW)), "prohibited");
    let data = make::tcp((GUEST, 1000), (SERVER, 443), 6, ACK, &hello("b.test"));
    assert_eq!(word(&gate.from_guest(&data, NOW)), "reset");
}

#[test]
fn a_bare_reset_acknowledges_the_syn() {
    let mut gate = gate(Mode::Public, &[]);
    let reset = |flags| make::tcp((SERVER, 80), (GUEST, 1000), 0, flags, b"");
    gate.from_guest(&syn(GUEST, SERVER, 80), NOW);
    let Verdict::Replace(frame) = gate.to_guest(&reset(RST), NOW) else { panic!("not replaced") };
    let segment = Packet::parse(&frame).unwrap().tcp().unwrap();
    assert_eq!((segment.flags, segment.acknowledgment, segment.source), (RST | ACK, 6, 80));
    // Only while the SYN has no answer, and only a bare one.
    assert_eq!(gate.to_guest(&reset(RST), NOW), Verdict::Pass);
    gate.from_guest(&syn(GUEST, SERVER, 80), NOW);
    assert_eq!(gate.to_guest(&reset(RST | ACK), NOW), Verdict::Pass);
    gate.from_guest(&syn(GUEST, SERVER, 80), NOW);
    assert_eq!(gate.to_guest(&make::tcp((SERVER, 80), (GUEST, 1000), 0, SYN | ACK, b""), NOW), Verdict::Pass);
    assert_eq!(gate.to_guest(&reset(RST), NOW), Verdict::Pass);
}

#[test]
fn a_servers_reset_frees_the_ports_for_another_connection() {
    for (flags, expected) in [(SYN | ACK, "prohibited"), (RST | ACK, "pass"), (RST, "pass")] {
        let mut gate = gate(Mode::Public, &["deny b.test"]);
        gate.from_guest(&syn(GUEST, SERVER, 443), NOW);
        gate.to_guest(&make::tcp((SERVER, 443), (GUEST, 1000), 0, flags, b""), NOW);
        let other = make::tcp((GUEST, 1000), (SERVER, 443), 500, SYN, b"");
        assert_eq!(word(&gate.from_guest(&other, NOW)), expected, "{flags}");
    }
}

#[test]
fn connections_that_the_guest_resets_in_any_form_leave_room_for_others() {
    for (what, number, flags, payload, expected) in [
        ("well-formed", 6, RST, &b""[..], "pass"),
        ("with an acknowledgment", 6, RST | ACK, b"", "pass"),
        ("with another number", 7000, RST, b"", "replace"),
        ("with the number of the SYN", 5, RST, b"", "replace"),
        ("with data", 6, RST | ACK, b"GET", "replace"),
        ("with a SYN-ACK", 6, RST | SYN | ACK, b"", "replace"),
    ] {
        let mut gate = gate(Mode::Public, &["deny b.test"]);
        for port in 1..=3000 {
            let segment =
                |number, flags, payload: &[u8]| make::tcp((GUEST, port), (SERVER, 443), number, flags, payload);
            assert_eq!(word(&gate.from_guest(&segment(5, SYN, b""), NOW)), "pass", "{what}: {port}");
            let verdict = gate.from_guest(&segment(number, flags, payload), NOW);
            assert_eq!(word(&verdict), expected, "{what}");
            if let Verdict::Replace(frame) = verdict {
                let packet = Packet::parse(&frame).unwrap();
                let reset = packet.tcp().unwrap();
                assert_eq!((packet.source, packet.destination), (GUEST.parse().unwrap(), SERVER.parse().unwrap()));
                assert_eq!((reset.source, reset.destination, reset.sequence), (port, 443, 6));
                assert_eq!((reset.acknowledgment, reset.flags, reset.payload), (7, RST | ACK, &b""[..]));
            }
        }
    }
    // A reset with SYN does not reach passt, which would end the connection.
    let mut gate = gate(Mode::Public, &["deny b.test"]);
    let segment = |flags| make::tcp((GUEST, 1000), (SERVER, 443), 5, flags, b"");
    for (flags, expected) in [(SYN, "pass"), (SYN | RST, "drop"), (SYN | FIN, "drop"), (SYN, "pass")] {
        assert_eq!(word(&gate.from_guest(&segment(flags), NOW)), expected, "{flags}");
    }
}

#[test]
fn a_denial_has_the_port_that_was_asked_for() {
    let mut gate = gate(Mode::Public, &[]);
    gate.from_guest(&syn(GUEST, "10.9.9.9", 80), NOW);
    gate.from_guest(&make::udp((GUEST, 1), ("10.9.9.9", 123), b"x"), NOW);
    gate.from_guest(&make::ip(GUEST, "10.9.9.9", PROTOCOL_ICMP, &[8, 0, 0, 0, 0, 1, 0, 1]), NOW);
    let denials = gate.take_denials();
    let parts: Vec<_> = denials.iter().map(|denial| (denial.protocol, denial.port, denial.reason.as_str())).collect();
    let reason = "public";
    assert_eq!(
        parts,
        [(Protocol::Tcp, Some(80), reason), (Protocol::Udp, Some(123), reason), (Protocol::Icmp, None, reason)]
    );
}

#[test]
fn a_published_port_answers_who_asked_it() {
    let mut gate = gate(Mode::Deny, &[]);
    let back = |port| make::udp((GUEST, port), ("10.9.9.9", 7), b"x");
    assert_eq!(word(&gate.from_guest(&back(5353), NOW)), "prohibited");
    for port in [5353, 5355] {
        assert_eq!(gate.to_guest(&make::udp(("10.9.9.9", 7), (GUEST, port), b"x"), NOW), Verdict::Pass);
    }
    assert_eq!(word(&gate.from_guest(&back(5353), NOW)), "pass");
    assert_eq!(word(&gate.from_guest(&back(5355), NOW)), "prohibited");
    assert_eq!(word(&gate.from_guest(&back(5353), NOW + FLOW)), "prohibited");
}

#[test]
fn the_hosts_addresses_change() {
    let mut gate = gate(Mode::Public, &[]);
    gate.set_host(vec![SERVER.parse().unwrap()], vec!["192.0.2.0/24".parse().unwrap()]);
    for (address, expected) in [(SERVER, "prohibited"), ("192.0.2.7", "prohibited"), ("198.51.100.2", "pass")] {
        assert_eq!(word(&gate.from_guest(&syn(GUEST, address, 80), NOW)), expected, "{address}");
    }
}

#[test]
fn a_flood_of_denials_is_bounded() {
    let mut gate = gate(Mode::Deny, &[]);
    for port in 1..1000 {
        gate.from_guest(&syn(GUEST, SERVER, port), NOW);
    }
    assert_eq!(gate.take_denials().len(), MAX_DENIALS);
}
