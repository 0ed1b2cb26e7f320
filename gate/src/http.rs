//! The host in the head of an HTTP/1 request, RFC 9112. Later requests of a connection are not looked at.

use crate::tls::Opening;

/// The longest method that is taken for one.
const MAX_METHOD: usize = 16;

/// The name in the first bytes that a client sends.
pub(crate) fn opening(bytes: &[u8]) -> Opening {
    let method = bytes.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    match bytes.get(method) {
        _ if method > MAX_METHOD => return Opening::Other,
        None => return Opening::Incomplete,
        Some(b' ') if method > 0 => {}
        Some(_) => return Opening::Other,
    }
    let mut lines = bytes.split_inclusive(|&byte| byte == b'\n');
    let Some(request) = lines.next().and_then(whole_line) else { return Opening::Incomplete };
    let mut host = match target(request) {
        Target::NotHttp => return Opening::Other,
        Target::OtherVersion => return Opening::Name(None),
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
        let Some((name, value)) = split_once(line, b':') else { return Opening::Malformed };
        // A continued line, or a blank before the colon: servers disagree about them.
        if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
            return Opening::Malformed;
        }
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
}

fn target(line: &[u8]) -> Target {
    let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let (Some(method), Some(target), version, None) = (words.next(), words.next(), words.next(), words.next()) else {
        return Target::NotHttp;
    };
    match version {
        Some(version) if version.starts_with(b"HTTP/1.") => {}
        Some(version) if version.starts_with(b"HTTP/") => return Target::OtherVersion,
        None if method == b"GET" => return Target::OtherVersion,
        _ => return Target::NotHttp,
    }
    let authority = match target.windows(3).position(|bytes| bytes == b"://") {
        Some(at) if !target.starts_with(b"/") => target[at + 3..].split(|&byte| byte == b'/').next(),
        _ if method == b"CONNECT" => Some(target),
        _ => None,
    };
    match authority {
        None => Target::Path,
        Some(authority) => name_of(authority).map_or(Target::NotHttp, Target::Absolute),
    }
}

/// The name in `name[:port]`, in lower case; empty if there is none.
fn name_of(authority: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(authority).ok()?;
    let name = match text.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => text,
    };
    Some(name.trim_end_matches('.').to_ascii_lowercase())
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
            ("EHLO a.test\r\n", Opening::Other),
            ("SSH-2.0-x\r\n", Opening::Other),
            ("get / HTTP/1.1\r\n", Opening::Other),
            ("ABCDEFGHIJKLMNOPQ", Opening::Other),
            ("", Opening::Incomplete),
            ("GE", Opening::Incomplete),
            ("GET / HTTP/1.1\r\nHost: a.test\r\n", Opening::Incomplete),
            ("GET / HTTP/1.1\r\nHost: a.te", Opening::Incomplete),
            ("GET / HT", Opening::Incomplete),
        ] {
            assert_eq!(opening(request.as_bytes()), expected, "{request:?}");
        }
    }
}
