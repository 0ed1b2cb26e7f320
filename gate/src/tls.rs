//! The name in a TLS ClientHello, RFC 8446 section 4.1.2 and RFC 6066 section 3.

use crate::frame::be16;

/// The types of records.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const ALL_TYPES: std::ops::RangeInclusive<u8> = 20..=23;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// More bytes are needed.
    Incomplete,
    /// Another protocol.
    Other,
    /// This protocol, and the name of the server in lower case, if the client sends it.
    Name(Option<String>),
    /// This protocol, but malformed.
    Malformed,
}

/// The name in the first bytes that a client sends.
pub(crate) fn opening(bytes: &[u8]) -> Opening {
    match is_tls(bytes) {
        None => return Opening::Incomplete,
        Some(false) => return Opening::Other,
        Some(true) => {}
    }
    let mut message = Vec::new();
    let mut rest = bytes;
    while let Some((head, behind)) = rest.split_at_checked(5) {
        // The hello may be cut into several records.
        let length = usize::from(be16(head, 3));
        if head[0] != HANDSHAKE || head[1] != 3 || length == 0 {
            return Opening::Malformed;
        }
        message.extend(&behind[..length.min(behind.len())]);
        rest = behind.get(length..).unwrap_or_default();
        if let Some(hello) = whole_message(&message) {
            return hello.and_then(server_name).map_or(Opening::Malformed, Opening::Name);
        }
    }
    match message.first() {
        Some(&kind) if kind != CLIENT_HELLO => Opening::Malformed,
        _ => Opening::Incomplete,
    }
}

/// Whether these are records, which a server may take a hello from; `None` if more bytes are needed. Some servers skip an alert before
/// the hello, some do not look at the version of a record, and some know the hello of SSL 2, which has no name.
fn is_tls(bytes: &[u8]) -> Option<bool> {
    match (*bytes.first()?, bytes.get(1)) {
        (kind, Some(3)) if ALL_TYPES.contains(&kind) => Some(true),
        (HANDSHAKE, _) => Some(*bytes.get(5)? == CLIENT_HELLO),
        (ALERT, _) => Some(bytes.get(3..5)? == [0, 2]),
        (kind, None) => (!ALL_TYPES.contains(&kind) && kind < 0x80).then_some(false),
        (0x80.., _) => Some(bytes.get(2..4)? == [CLIENT_HELLO, 3]),
        _ => Some(false),
    }
}

/// The body of the hello once it is whole; an inner `None` if it is another message.
fn whole_message(message: &[u8]) -> Option<Option<&[u8]>> {
    let (head, body) = message.split_at_checked(4)?;
    if head[0] != CLIENT_HELLO {
        return Some(None);
    }
    let length = usize::from(head[1]) << 16 | usize::from(be16(head, 2));
    body.get(..length).map(Some)
}

/// The name in a hello; the outer `None` if it is malformed.
fn server_name(hello: &[u8]) -> Option<Option<String>> {
    // The version and the random bytes, the session, the cipher suites, the compression methods.
    let rest = hello.get(34..)?;
    let (_, rest) = take(rest, 1)?;
    let (_, rest) = take(rest, 2)?;
    let (_, rest) = take(rest, 1)?;
    if rest.is_empty() {
        return Some(None);
    }
    let (mut extensions, rest) = take(rest, 2)?;
    if !rest.is_empty() {
        return None;
    }
    let mut name = None;
    while !extensions.is_empty() {
        let kind = be16(extensions.get(..2)?, 0);
        let (data, behind) = take(extensions.get(2..)?, 2)?;
        extensions = behind;
        if kind != SERVER_NAME {
            continue;
        }
        let (list, rest) = take(data, 2)?;
        let (&kind, entry) = list.split_first()?;
        let (host, more) = take(entry, 2)?;
        // One list of one name: two that differ would be two opinions.
        if kind != HOST_NAME || !rest.is_empty() || !more.is_empty() || name.is_some() {
            return None;
        }
        name = Some(std::str::from_utf8(host).ok()?.trim_end_matches('.').to_ascii_lowercase());
    }
    Some(name)
}

/// A vector with a length of `width` bytes, and what follows it.
fn take(bytes: &[u8], width: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(width)?;
    let length = length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
    rest.split_at_checked(length)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn vector(width: usize, content: &[u8]) -> Vec<u8> {
        let length = (content.len() as u32).to_be_bytes();
        [&length[4 - width..], content].concat()
    }

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vector(2, data)].concat()
    }

    fn server_names(names: &[&str]) -> Vec<u8> {
        let entries: Vec<u8> =
            names.iter().flat_map(|name| [vec![HOST_NAME], vector(2, name.as_bytes())].concat()).collect();
        extension(SERVER_NAME, &vector(2, &entries))
    }

    fn hello_with(extensions: &[u8]) -> Vec<u8> {
        hello_ending_with(&vector(2, extensions))
    }

    fn hello_ending_with(end: &[u8]) -> Vec<u8> {
        let body = [&[3, 3][..], &[0; 32], &vector(1, &[9; 32]), &vector(2, &[0x13, 1]), &vector(1, &[0])].concat();
        let message = [vec![CLIENT_HELLO], vector(3, &[&body, end].concat())].concat();
        [&[HANDSHAKE, 3, 1][..], &vector(2, &message)].concat()
    }

    /// A ClientHello that names a server.
    pub(crate) fn hello(name: &str) -> Vec<u8> {
        hello_with(&[extension(43, &[2, 3, 4]), server_names(&[name]), extension(16, &[0, 0])].concat())
    }

    #[test]
    fn the_name_is_found() {
        let named = |name: &str| Opening::Name(Some(name.into()));
        assert_eq!(opening(&hello("A.Test")), named("a.test"));
        assert_eq!(opening(&hello_with(&[])), Opening::Name(None));
        assert_eq!(opening(&hello_with(&extension(16, &[0, 0]))), Opening::Name(None));
        assert_eq!(opening(&hello_ending_with(&[])), Opening::Name(None), "no extensions, as in TLS 1.0");
        // An extension of more than 255 bytes, as padding or a large key share.
        assert_eq!(
            opening(&hello_with(&[extension(21, &[0; 700]), server_names(&["a.test"])].concat())),
            named("a.test")
        );
        // What follows the hello.
        assert_eq!(opening(&[hello("a.test"), vec![20, 3, 3, 0, 1, 1]].concat()), named("a.test"));
    }

    #[test]
    fn a_part_of_a_hello_is_incomplete() {
        let whole = hello("a.test");
        for length in 0..whole.len() {
            assert_eq!(opening(&whole[..length]), Opening::Incomplete, "{length}");
        }
    }

    #[test]
    fn a_hello_in_several_records_is_one() {
        let whole = hello("a.test");
        let message = &whole[5..];
        for size in [1, 3, 50] {
            let records: Vec<u8> =
                message.chunks(size).flat_map(|part| [vec![HANDSHAKE, 3, 3], vector(2, part)].concat()).collect();
            assert_eq!(opening(&records), Opening::Name(Some("a.test".into())), "{size}");
        }
    }

    #[test]
    fn what_is_not_a_hello_is_told_apart() {
        let whole = hello("a.test");
        let edited = |at: usize, byte: u8| {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            opening(&bytes)
        };
        assert_eq!(opening(b"SSH-2.0-x"), Opening::Other);
        assert_eq!(opening(b"GET / HTTP/1.1\r\n"), Opening::Other);
        let other_version = [&[HANDSHAKE, 4], &whole[2..]].concat();
        for (what, bytes, expected) in [
            ("nothing", &[][..], Opening::Incomplete),
            ("a type of record", &[20], Opening::Incomplete),
            ("no type of record", &[24], Opening::Other),
            ("another byte", &[19, 3], Opening::Other),
            ("another protocol's length", &[20, 4], Opening::Other),
            ("a hello in a record of another version", &other_version, Opening::Malformed),
            ("a part of it", &other_version[..5], Opening::Incomplete),
            ("another protocol that begins like it", &[22, 4, 0, 0, 9, 7], Opening::Other),
            ("an alert before a hello", &[ALERT, 3, 3, 0, 2, 1, 0], Opening::Malformed),
            ("an alert of another version", &[ALERT, 0, 0, 0, 2, 1, 0], Opening::Malformed),
            ("a part of it", &[ALERT, 0, 0, 0], Opening::Incomplete),
            ("another protocol that begins like it", &[ALERT, 0, 0, 0, 3], Opening::Other),
            ("data", &[23, 3, 3, 0, 1], Opening::Malformed),
            ("a hello of SSL 2", &[0x80, 46, 1, 3, 1], Opening::Malformed),
            ("a part of it", &[0x80, 46, 1], Opening::Incomplete),
            ("a byte of it", &[0x80], Opening::Incomplete),
            ("another protocol that begins like it", &[0x80, 46, 1, 0, 1], Opening::Other),
            ("the first byte of another message", &[22, 3, 1, 0, 9, 2], Opening::Malformed),
        ] {
            assert_eq!(opening(bytes), expected, "{what}");
        }
        assert_eq!(opening(&[22, 3, 1, 0, 0]), Opening::Malformed);
        assert_eq!(edited(5, 2), Opening::Malformed);
        assert_eq!(edited(6, 1), Opening::Incomplete, "a hello of more than 64 KiB");
        assert_eq!(opening(&hello_with(&server_names(&["a.test", "b.test"]))), Opening::Malformed);
        assert_eq!(opening(&hello_with(&server_names(&["a.test"]).repeat(2))), Opening::Malformed);
        assert_eq!(opening(&hello_with(&extension(SERVER_NAME, &[]))), Opening::Malformed);
        assert_eq!(opening(&hello_with(&[0, 0, 9])), Opening::Malformed);
        let entry = [vec![HOST_NAME], vector(2, b"a.test")].concat();
        let other_kind = [vec![HOST_NAME + 1], vector(2, b"a.test")].concat();
        for (what, end) in [
            ("another kind of name", vector(2, &extension(SERVER_NAME, &vector(2, &other_kind)))),
            ("a byte after the list", vector(2, &extension(SERVER_NAME, &[vector(2, &entry), vec![0]].concat()))),
            ("a byte after the extensions", [vector(2, &server_names(&["a.test"])), vec![0]].concat()),
        ] {
            assert_eq!(opening(&hello_ending_with(&end)), Opening::Malformed, "{what}");
        }
        // The second record is of another type or version.
        let (head, tail) = whole[5..].split_at(4);
        let length = (tail.len() as u16).to_be_bytes();
        let split =
            |kind, version| opening(&[&[22, 3, 1, 0, 4][..], head, &[kind, version, 1], &length, tail].concat());
        assert_eq!(split(22, 3), Opening::Name(Some("a.test".into())));
        assert_eq!([split(23, 3), split(22, 4)], [Opening::Malformed, Opening::Malformed]);
        // A session identifier that is longer than the hello.
        assert_eq!(edited(5 + 4 + 34, 255), Opening::Malformed);
    }
}
