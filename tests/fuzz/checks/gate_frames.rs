//! The gate, with any frames in either direction: it does not panic, what it lets out has the guest's address and goes where the
//! policy allows, and the frames of its own are ones that it would let in. Frames for the guest are tried as answers to its last
//! question too, and as answers of a name server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use msb_gate::{Config, Gate, Lease, Lookup, Mode, Policy, PolicyRule, Query, Reply, Verdict, is_never};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GUEST_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x6d73, 0, 0, 0, 0, 0, 0x15);

/// # Panics
/// Where any of that is not so.
pub fn check(data: &[u8]) {
    let Some((&choice, mut rest)) = data.split_first() else { return };
    let mut gate = Gate::new(config(choice));
    let mut now = Duration::from_secs(1000);
    let mut asked = None;
    // A byte for the direction and the time that passes, two for the length, and the frame.
    while let Some((head, behind)) = rest.split_at_checked(3) {
        let length = usize::from(u16::from_be_bytes([head[1], head[2]])).min(behind.len());
        let (frame, behind) = behind.split_at(length);
        rest = behind;
        now += Duration::from_secs(u64::from(head[0] >> 1));
        if head[0] & 1 == 0 {
            asked = check_outgoing(&mut gate, frame, now).or(asked);
        } else {
            if let Some(query) = asked.take() {
                check_answer(&mut gate, query, frame, now);
            }
            check_incoming(&mut gate, frame, now);
        }
        assert!(gate.take_denials().len() <= 2);
    }
}

fn config(choice: u8) -> Config {
    let rules = ["a.test", "*.b.test:443", "10.0.0.0/8:80", "host:5432", "c.test/udp"];
    let rules = rules.iter().enumerate().filter(|(number, _)| choice >> number & 1 == 1).map(|(number, rule)| {
        let rule = rule.parse().unwrap();
        if number % 2 == 0 { PolicyRule::Allow(rule) } else { PolicyRule::Deny(rule) }
    });
    Config {
        ipv4: Some(GUEST),
        ipv6: Some(GUEST_6),
        lease: Some(Lease {
            address: GUEST,
            prefix: 24,
            gateway: [10, 0, 2, 2].into(),
            resolver: [10, 0, 2, 3].into(),
            mtu: 16384,
        }),
        resolvers: vec![Ipv4Addr::new(10, 0, 2, 3).into()],
        udp_ports: vec![(5353, 5353)],
        policy: Policy {
            mode: [Mode::Public, Mode::Private, Mode::Deny][usize::from(choice >> 6) % 3],
            rules: rules.collect(),
            gateways: vec![Ipv4Addr::new(10, 0, 2, 2).into(), "fd00:6d73::2".parse().unwrap()],
            own: vec![Ipv4Addr::new(198, 51, 100, 2).into()],
            links: vec!["198.51.100.0/24".parse().unwrap()],
        },
    }
}

/// Returns a question for the resolver.
fn check_outgoing(gate: &mut Gate, frame: &[u8], now: Duration) -> Option<Query> {
    match gate.from_guest(frame, now) {
        Verdict::Pass => check_passed(frame),
        Verdict::Drop => {}
        Verdict::Reply(reply) => check_for_guest(&reply),
        Verdict::Replace(onward) => check_passed(&onward),
        Verdict::Both { back, onward } => {
            check_for_guest(&back);
            check_passed(&onward);
        }
        Verdict::Ask { query, back } => {
            if let Some(back) = back {
                check_for_guest(&back);
            }
            return Some(query);
        }
    }
    None
}

/// The message is an answer of a name server's, and then of the resolver's.
fn check_answer(gate: &mut Gate, query: Query, message: &[u8], now: Duration) {
    let mut lookup = Lookup::new(query.message.clone(), 0x1234).expect("the gate lets nothing but questions pass");
    assert_eq!(lookup.query()[2..], query.message[2..]);
    if let Reply::Answer(answer) = lookup.judge(message, query.token.is_multiple_of(2)) {
        assert_eq!((&answer[..2], &answer[2..]), (&query.message[..2], &message[2..]));
    }
    let failure = lookup.into_failure();
    assert_eq!(failure[..2], query.message[..2]);
    assert!(failure.len() <= query.message.len().max(message.len()));
    // With the identifier of the question it is looked at.
    let message = [&query.message[..2], message.get(2..).unwrap_or_default()].concat();
    if let Some(frame) = gate.answer(query.token, &message, now) {
        check_for_guest(&frame);
    }
    assert_eq!(gate.fail(query.token, now), None);
}

/// What goes on to passt.
fn check_passed(frame: &[u8]) {
    if frame[12..14] == [8, 0] {
        let address = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
        assert_eq!(address(26), GUEST);
        assert!(!is_never(IpAddr::V4(address(30))));
        assert_eq!((frame[14], frame[20] & 0xbf, frame[21]), (0x45, 0, 0));
    } else if frame[12..14] == [0x86, 0xdd] && frame[20] != 58 {
        let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
        // The answer to a client with a link-local address, or the guest's own.
        assert!(address(22) == GUEST_6 || address(22).is_unicast_link_local() && address(38).is_unicast_link_local());
        assert!(!is_never(IpAddr::V6(address(38))));
    }
}

/// What the gate itself sends to the guest.
fn check_for_guest(frame: &[u8]) {
    assert!(frame.len() >= 34 && frame.len() <= 66_000);
    let length = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    if frame[12..14] == [8, 0] {
        assert_eq!(length, frame.len() - 14);
    }
}

fn check_incoming(gate: &mut Gate, frame: &[u8], now: Duration) {
    match gate.to_guest(frame, now) {
        Verdict::Pass | Verdict::Drop => {}
        // A mended reset.
        Verdict::Replace(onward) => assert!(onward.len() <= frame.len()),
        other => panic!("{other:?}"),
    }
}
