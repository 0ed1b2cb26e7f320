//! The host in the head of an HTTP/1 request, RFC 9112. Later requests of a connection are not looked at.
//!
//! Servers disagree about requests that are not quite right. One that some server may take for a request is one here, and one in
//! which two servers may find different hosts is malformed.

use crate::tls::Opening;

/// The name in the first bytes that a client sends.
pub(crate) fn opening(bytes: &[u8]) -> Opening {
    // Many servers skip empty lines before a request.
    let bytes = bytes.trim_ascii_start();
    let method = bytes.iter().take_while(|byte| is_token(**byte)).count();
    match bytes.get(method) {
        None => return Opening::Incomplete,
        Some(&byte) if method > 0 && byte != b'\n' && is_blank(byte) => {}
        Some(_) => return Opening::Other,
    }
    let mut lines = bytes.split_inclusive(|&byte| byte == b'\n');
    let Some(request) = lines.next().and_then(whole_line) else { return Opening::Incomplete };
    let mut host = match target(request) {
        Target::NotHttp => return Opening::Other,
        Target::OtherVersion => return Opening::Name(None),
        Target::Malformed => return Opening::Malformed,
        Target::Path => None,
        Target::Absolute(host) => Some(host),
    };
    let is_absolute = host.is_some();
    let mut headers = 0;
    for line in lines {
        let Some(line) = whole_line(line) else { return Opening::Incomplete };
        if line.is_empty() {
            return Opening::Name(host);
        }
        // A continued line, a blank before the colon, or a lone CR, which may end a line.
        let field =
            split_once(line, b':').filter(|(name, _)| !name.is_empty() && name.iter().all(|byte| is_token(*byte)));
        let Some((name, value)) = field.filter(|_| !line.contains(&b'\r')) else { return Opening::Malformed };
        if name.eq_ignore_ascii_case(b"host") {
            let Some(name) = name_of(value.trim_ascii()) else { return Opening::Malformed };
            headers += 1;
            // Two names would be two opinions.
            if headers > 1 || (is_absolute && host.as_ref() != Some(&name)) {
                return Opening::Malformed;
            }
            host = Some(name);
        }
    }
    Opening::Incomplete
}

/// Whether a method or a field's name may have it.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether it separates the words of a request line, for any server.
fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

/// A line without its end; `None` if the end is missing.
fn whole_line(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\n")?;
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

fn split_once(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|&byte| byte == separator)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// What a request line asks for.
enum Target {
    /// It is not a request line.
    NotHttp,
    /// HTTP/0.9, or the preface of HTTP/2: neither names a host.
    OtherVersion,
    /// A path.
    Path,
    /// A whole URL, or what CONNECT is to connect to.
    Absolute(String),
    Malformed,
}

fn target(line: &[u8]) -> Target {
    let words: Vec<&[u8]> = line.split(|byte| is_blank(*byte)).filter(|word| !word.is_empty()).collect();
    let is_version = |word: &[u8]| word.get(..5).is_some_and(|word| word.eq_ignore_ascii_case(b"HTTP/"));
    let (method, target) = match words[..] {
        [method, target, version] if is_version(version) && version[5..].starts_with(b"1.") => (method, target),
        [_, _, version] if is_version(version) => return Target::OtherVersion,
        [b"GET", _] => return Target::OtherVersion,
        // A path with a blank.
        [.., last] if is_version(last) => return Target::Malformed,
        _ => return Target::NotHttp,
    };
    let authority = match target.windows(3).position(|bytes| bytes == b"://") {
        Some(at) if !target.starts_with(b"/") => target[at + 3..].split(|byte| b"/?#\\".contains(byte)).next(),
        _ if method.eq_ignore_ascii_case(b"CONNECT") => Some(target),
        _ => None,
    };
    match authority {
        None => Target::Path,
        Some(authority) => name_of(authority).map_or(Target::Malformed, Target::Absolute),
    }
}

/// The name in `name[:port]`, in lower case; empty if there is none. `None` if it cannot be a name or an address.
fn name_of(authority: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(authority).ok()?;
    let name = match text.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => text,
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:[]".contains(&byte)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_request_is_found() {
        let named = |name: &str| Opening::Name(Some(name.into()));
        for (request, expected) in [
            ("GET / HTTP/1.1\r\nHost: A.test\r\n\r\n", named("a.test")),
            ("GET / HTTP/1.1\r\nAccept: */*\r\nhOST:a.test.:8080\r\n\r\nbody", named("a.test")),
            ("GET / HTTP/1.1\nHost: a.test\n\n", named("a.test")),
            ("GET http://a.test/x HTTP/1.1\r\n\r\n", named("a.test")),
            ("GET http://a.test:80/x HTTP/1.1\r\nHost: a.test\r\n\r\n", named("a.test")),
            ("GET /x?u=http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", named("a.test")),
            ("CONNECT a.test:443 HTTP/1.1\r\n\r\n", named("a.test")),
            ("GET / HTTP/1.0\r\n\r\n", Opening::Name(None)),
            ("GET /\r\n", Opening::Name(None)),
            ("PRI * HTTP/2.0\r\n", Opening::Name(None)),
            ("GET http://b.test/x HTTP/1.1\r\nHost: a.test\r\n\r\n", Opening::Malformed),
            ("GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n", Opening::Malformed),
            ("GET / HTTP/1.1\r\nHost: a.test\r\n b.test\r\n\r\n", Opening::Malformed),
            ("GET / HTTP/1.1\r\nHost : a.test\r\n\r\n", Opening::Malformed),
            ("GET / HTTP/1.1\r\nnothing\r\n\r\n", Opening::Malformed),
            // What some servers take for a request:
            ("\r\n\n GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", named("a.test")),
            ("get / http/1.1\r\nHost: a.test\r\n\r\n", named("a.test")),
            ("ABCDEFGHIJKLMNOPQ-X.9 / HTTP/1.1\r\nHost: a.test\r\n\r\n", named("a.test")),
            ("GET\t/\x0bHTTP/1.1\r\nHost: a.test\r\n\r\n", named("a.test")),
            ("GET\r/\rHTTP/1.1\r\nHost: a.test\r\n\r\n", named("a.test")),
            ("GET http://a.test?/b.test HTTP/1.1\r\n\r\n", named("a.test")),
            ("GET http://a.test#/b.test HTTP/1.1\r\n\r\n", named("a.test")),
            ("GET http://a.test\\b.test HTTP/1.1\r\n\r\n", named("a.test")),
            ("connect a.test:443 HTTP/1.1\r\n\r\n", named("a.test")),
            ("GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", named("[2001:db8::1]")),
            ("GET / HTTP/1.1\r\nHost: [2001:db8::1]\r\n\r\n", named("[2001:db8::1]")),
            ("GET / HTTP/1.1\r\nHost: a_b-c.test\r\n\r\n", named("a_b-c.test")),
            // What servers disagree about:
            ("GET /a b HTTP/1.1\r\n", Opening::Malformed),
            ("GET HTTP/1.1\r\n", Opening::Name(None)),
            ("PUT HTTP/1.1\r\n", Opening::Malformed),
            ("GET http://x@b.test/ HTTP/1.1\r\n", Opening::Malformed),
            ("GET http://a%2etest/ HTTP/1.1\r\n", Opening::Malformed),
            ("GET / HTTP/1.1\r\nHost: a.test, b.test\r\n", Opening::Malformed),
            ("GET / HTTP/1.1\r\nHost: a.test\rHost: b.test\r\n", Opening::Malformed),
            ("GET / HTTP/1.1\r\nX: y\rHost: b.test\r\n", Opening::Malformed),
            ("GET / HTTP/1.1\r\nHo\u{1}st: b.test\r\n", Opening::Malformed),
            ("GET / HTTP/1.1\r\n: b.test\r\n", Opening::Malformed),
            ("EHLO a.test\r\n", Opening::Other),
            ("SSH-2.0-x\r\n", Opening::Other),
            ("USER a b\r\n", Opening::Other),
            ("get key\r\n", Opening::Other),
            ("QUIT\n", Opening::Other),
            ("\u{1}GET / HTTP/1.1\r\n", Opening::Other),
            (" /", Opening::Other),
            ("\u{b}GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", Opening::Other),
            ("a/b", Opening::Other),
            ("", Opening::Incomplete),
            ("\r\n", Opening::Incomplete),
            ("ABCDEFGHIJKLMNOPQ", Opening::Incomplete),
            ("GE", Opening::Incomplete),
            ("GET / HTTP/1.1\r\nHost: a.test\r\n", Opening::Incomplete),
            ("GET / HTTP/1.1\r\nHost: a.te", Opening::Incomplete),
            ("GET / HT", Opening::Incomplete),
        ] {
            assert_eq!(opening(request.as_bytes()), expected, "{request:?}");
        }
    }
}
