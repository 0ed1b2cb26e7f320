//! Lookups of names, and rules by name.

use super::*;

#[test]
fn names_are_resolved_by_the_policy() {
    let mut public = gate(Mode::Public, &["deny bad.test"]);
    for (name, addresses, expected) in [
        ("a.test", &[SERVER][..], ("ask", Some(0))),
        ("bad.test", &[SERVER], ("reply", Some(5))),
        ("rebind.test", &["10.9.9.9"], ("ask", Some(3))),
        ("rebind.test", &[SERVER, "127.0.0.1"], ("ask", Some(3))),
        ("most.test", &[SERVER; 128], ("ask", Some(0))),
        ("many.test", &[SERVER; 129], ("ask", Some(2))),
        ("a/b.test", &[SERVER], ("reply", Some(5))),
    ] {
        assert_eq!(resolve(&mut public, name, addresses), expected, "{name}");
    }
    let reasons: Vec<String> = public.take_denials().into_iter().map(|denial| denial.reason).collect();
    assert_eq!(reasons[..2], ["the name is not allowed", "the answer has a forbidden address"]);
    assert_eq!(reasons[3], "the name has characters other than letters, digits, - and _");
    assert!(public.take_denials().is_empty());
}

#[test]
fn an_answer_is_taken_once_in_time_and_for_its_question() {
    for (what, message, later, expected) in [
        ("the answer", answer(7, "a.test", &[SERVER]), 29, Some(0)),
        ("too late", answer(7, "a.test", &[SERVER]), 30, None),
        ("another name", answer(7, "b.test", &[SERVER]), 0, Some(2)),
        ("another identifier", answer(8, "a.test", &[SERVER]), 0, Some(2)),
        ("a query", query(7, "a.test"), 0, Some(2)),
        ("nothing", Vec::new(), 0, Some(2)),
        ("half a record", answer(7, "a.test", &[SERVER])[..39].to_vec(), 0, Some(2)),
    ] {
        let mut gate = gate(Mode::Public, &[]);
        let Verdict::Ask { query, back: None } = ask(&mut gate, &query(7, "a.test")) else { panic!("{what}") };
        let now = NOW + Duration::from_secs(later);
        assert_eq!(gate.answer(query.token.wrapping_add(1), &message, now), None);
        assert_eq!(told(gate.answer(query.token, &message, now)).map(|(code, _)| code), expected, "{what}");
        assert_eq!(gate.answer(query.token, &message, now), None, "{what}");
        assert_eq!(gate.names.of(SERVER.parse().unwrap(), now).is_empty(), expected != Some(0), "{what}");
    }
    // No answer from the name servers.
    let mut gate = gate(Mode::Public, &[]);
    let Verdict::Ask { query, .. } = ask(&mut gate, &query(7, "a.test")) else { panic!("not asked") };
    assert_eq!(told(gate.fail(query.token, NOW)), Some((2, query.message.len())));
    assert_eq!(gate.fail(query.token, NOW), None);
    // A frame that says it is one.
    let forged = make::udp((RESOLVER, 53), (GUEST, 4000), &answer(7, "a.test", &[SERVER]));
    assert_eq!(gate.to_guest(&forged, NOW), Verdict::Drop);
}

#[test]
fn a_long_answer_is_cut_to_what_the_datagram_may_have() {
    let plain = query(7, "a.test");
    let mut edns = [&plain[..], &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]].concat();
    edns[11] = 1;
    for (asked, count, is_whole) in
        [(&plain, 30, true), (&plain, 31, false), (&edns, 31, true), (&edns, 75, true), (&edns, 76, false)]
    {
        let mut gate = gate(Mode::Public, &[]);
        let Verdict::Ask { query, .. } = ask(&mut gate, asked) else { panic!("not asked") };
        let whole = answer(7, "a.test", &vec![SERVER; count]);
        let frame = gate.answer(query.token, &whole, NOW).unwrap();
        let packet = Packet::parse(&frame).unwrap();
        let message = packet.udp().unwrap().payload;
        assert_eq!(message == whole, is_whole, "{count}");
        assert_eq!(message[2] & 2 == 0, is_whole, "{count}");
        assert_eq!(told(Some(frame)), Some((0, if is_whole { whole.len() } else { plain.len() })), "{count}");
        // What was cut is known all the same.
        assert_eq!(gate.names.of(SERVER.parse().unwrap(), NOW), ["a.test"]);
    }
    // One that just fits.
    let (mut gate, name) = (gate(Mode::Public, &[]), "abcdefgh.tests");
    let Verdict::Ask { query, .. } = ask(&mut gate, &query(7, name)) else { panic!("not asked") };
    let whole = answer(7, name, &[SERVER; 30]);
    assert_eq!(whole.len(), 512);
    assert_eq!(told(gate.answer(query.token, &whole, NOW)), Some((0, 512)));
}

#[test]
fn questions_without_an_answer_are_bounded() {
    let mut gate = gate(Mode::Public, &[]);
    let mut tokens: Vec<u32> = (0..1025)
        .map(|_| match ask(&mut gate, &query(7, "a.test")) {
            Verdict::Ask { query, .. } => query.token,
            other => panic!("{other:?}"),
        })
        .collect();
    let first = tokens.remove(0);
    assert_eq!(gate.fail(first, NOW), None);
    assert!(tokens.into_iter().all(|token| gate.fail(token, NOW).is_some()));
}

#[test]
fn a_rule_by_name_opens_the_addresses_of_its_answers_for_their_time() {
    let mut gate = gate(Mode::Deny, &["allow *.test:443"]);
    let connect = |gate: &mut Gate, port, seconds| {
        word(&gate.from_guest(&syn(GUEST, SERVER, port), NOW + Duration::from_secs(seconds)))
    };
    assert_eq!(connect(&mut gate, 443, 0), "prohibited");
    assert_eq!(resolve(&mut gate, "a.test", &[SERVER]), ("ask", Some(0)));
    assert_eq!(connect(&mut gate, 443, 299), "pass");
    assert_eq!(connect(&mut gate, 80, 0), "prohibited");
    assert_eq!(connect(&mut gate, 443, 300), "prohibited");
    assert_eq!(gate.take_denials()[1].name.as_deref(), Some("a.test"));
}

/// A segment of the guest's to the resolver, which acknowledges `acknowledged`.
fn to_resolver(sequence: u32, acknowledged: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = make::tcp((GUEST, 4000), (RESOLVER, 53), sequence, flags, payload);
    frame[42..46].copy_from_slice(&acknowledged.to_be_bytes());
    frame
}

#[test]
fn a_question_over_tcp_is_judged_like_any_other() {
    for (name, address, expected, code) in [
        ("a.test", SERVER, "ask", 0x80),
        ("rebind.test", "10.9.9.9", "ask", 0x83),
        ("bad.test", SERVER, "reply", 0x85),
        ("a/b.test", SERVER, "reply", 0x85),
    ] {
        let mut gate = gate(Mode::Public, &["deny bad.test"]);
        let Verdict::Reply(opened) = gate.from_guest(&to_resolver(5, 0, SYN, b""), NOW) else { panic!("no SYN-ACK") };
        let first = Packet::parse(&opened).unwrap().tcp().unwrap().sequence + 1;
        assert_eq!(gate.from_guest(&to_resolver(6, first, ACK, b""), NOW), Verdict::Drop);
        let message = query(7, name);
        let data = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
        let verdict = gate.from_guest(&to_resolver(6, first, ACK, &data), NOW);
        // The question goes to the resolver, and its receipt comes back.
        let frame = match verdict {
            Verdict::Ask { query, back } => {
                assert_eq!(query.message, message);
                assert_eq!(Packet::parse(&back.unwrap()).unwrap().tcp().unwrap().acknowledgment, 6 + data.len() as u32);
                let answer = gate.answer(query.token, &answer(7, name, &[address]), NOW);
                ("ask", answer.unwrap())
            }
            Verdict::Reply(frame) => ("reply", frame),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(frame.0, expected, "{name}");
        let packet = Packet::parse(&frame.1).unwrap();
        let segment = packet.tcp().unwrap();
        assert_eq!((segment.source, segment.destination, segment.sequence), (53, 4000, first));
        assert_eq!((segment.payload[2..4].to_vec(), segment.payload[5]), (vec![0, 7], code), "{name}");
        // The rules by name know the answer's address.
        assert_eq!(gate.names.of(SERVER.parse().unwrap(), NOW).is_empty(), name != "a.test");
    }
    // A message that is not a question ends the connection.
    let mut gate = gate(Mode::Public, &[]);
    let Verdict::Reply(opened) = gate.from_guest(&to_resolver(5, 0, SYN, b""), NOW) else { panic!("no SYN-ACK") };
    let first = Packet::parse(&opened).unwrap().tcp().unwrap().sequence + 1;
    let Verdict::Reply(reset) = gate.from_guest(&to_resolver(6, first, ACK, &[0, 1, 7]), NOW) else {
        panic!("no reset")
    };
    assert_eq!(Packet::parse(&reset).unwrap().tcp().unwrap().flags, RST | ACK);
    let Verdict::Reply(again) = gate.from_guest(&to_resolver(6, first, ACK, &[]), NOW) else { panic!("still open") };
    assert_eq!(Packet::parse(&again).unwrap().tcp().unwrap().flags, RST | ACK);
}
