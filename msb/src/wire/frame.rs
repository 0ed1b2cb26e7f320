//! Frames: their header, the kinds with the limit of each, and what can be wrong with one.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The protocol version that a [`Hello`](super::exec::Hello) carries.
pub const VERSION: u32 = 2;
/// The port in the guest on which the agent accepts connections.
pub const AGENT_PORT: u32 = 1024;
/// The port on the host on which msb-boot waits for the agent's [`Ready`](super::exec::Ready).
pub const READY_PORT: u32 = 1025;
/// The maximum number of bytes of a stream in one frame.
pub const MAX_DATA: usize = 64 << 10;
/// The maximum number of bytes of an output in a frame that also has the number of its exec.
pub const MAX_OUTPUT: usize = MAX_DATA - 5;
/// The maximum number of bytes of JSON in a frame: a little more than Linux's longest argument list, escaped.
pub const MAX_CONTROL: usize = 4 << 20;
/// The length of the header before the payload, in bytes.
pub const HEADER: usize = 5;

/// Why a connection cannot continue. Except for `Io`, the peer is at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The length exceeds the limit of the kind.
    #[error("a frame of {length} bytes, and kind {kind} may have {limit} at most")]
    TooLong {
        /// The length in the header.
        length: usize,
        /// The frame's kind.
        kind: u8,
        /// The limit of the kind.
        limit: usize,
    },
    /// A kind that this version does not know.
    #[error("a frame of unknown kind {0}")]
    UnknownKind(u8),
    /// A payload that does not fit its kind.
    #[error("a frame of kind {kind} with a bad payload: {why}")]
    BadPayload {
        /// The frame's kind.
        kind: u8,
        /// What is wrong.
        why: String,
    },
    /// A known frame that may not be sent at this point.
    #[error("a frame out of turn: {0}")]
    OutOfTurn(&'static str),
    /// The peer uses another version of the protocol.
    #[error("the other side speaks version {0} of the wire, this one version {VERSION} (use tools of one release)")]
    OtherVersion(u32),
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A stream of an exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Host to guest.
    Stdin,
    /// Guest to host.
    Stdout,
    /// Guest to host.
    Stderr,
}

impl Stream {
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }

    pub(super) fn from_number(number: u8) -> Option<Self> {
        [Self::Stdin, Self::Stdout, Self::Stderr].into_iter().find(|stream| stream.number() == number)
    }
}

pub(super) const HELLO: u8 = 1;
pub(super) const EXEC: u8 = 2;
pub(super) const STARTED: u8 = 3;
pub(super) const DATA: u8 = 4; // to 6, by stream
pub(super) const EOF: u8 = 7;
pub(super) const CREDIT: u8 = 8;
pub(super) const SIGNAL: u8 = 9;
pub(super) const RESIZE: u8 = 10;
pub(super) const EXIT: u8 = 11;
pub(super) const FAILURE: u8 = 12;
pub(super) const SHUTDOWN: u8 = 13;
pub(super) const READY: u8 = 14;
pub(super) const ATTACH: u8 = 15;
pub(super) const LIST: u8 = 16;
pub(super) const KILL: u8 = 17;
pub(super) const EXECS: u8 = 18;
pub(super) const DETACH: u8 = 19;
pub(super) const STOPPING: u8 = 20;
pub(super) const CLOCK: u8 = 21;
pub(super) const GET: u8 = 22;
pub(super) const PUT: u8 = 23;
pub(super) const PREPARED: u8 = 24;
pub(super) const GO: u8 = 25;
pub(super) const RESUME: u8 = 26;
pub(super) const CHANGE: u8 = 27;
pub(super) const RECORD: u8 = 30;
pub(super) const OUTPUT: u8 = 31;
pub(super) const ENTRY: u8 = 32;
pub(super) const HOLE: u8 = 33;

fn limit(kind: u8) -> Result<usize, Error> {
    match kind {
        HELLO | STARTED | PREPARED | SIGNAL | RESIZE | SHUTDOWN | STOPPING | ATTACH | KILL | CLOCK | CHANGE => {
            Ok(1 << 10)
        }
        EXIT | FAILURE | READY | GET | PUT | OUTPUT | ENTRY => Ok(MAX_DATA),
        EXEC | EXECS | RESUME => Ok(MAX_CONTROL),
        LIST | DETACH | GO | RECORD => Ok(0),
        HOLE => Ok(8),
        DATA..EOF => Ok(MAX_DATA),
        EOF => Ok(1),
        CREDIT => Ok(5),
        _ => Err(Error::UnknownKind(kind)),
    }
}

/// Parses a header into the length of the payload, which is checked, and the kind.
///
/// # Errors
/// [`Error::UnknownKind`], [`Error::TooLong`].
pub fn read_header(header: [u8; HEADER]) -> Result<(usize, u8), Error> {
    let [a, b, c, d, kind] = header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    let limit = limit(kind)?;
    if length > limit { Err(Error::TooLong { length, kind, limit }) } else { Ok((length, kind)) }
}

/// Appends a frame with bytes of a stream to `out`.
///
/// # Panics
/// If `bytes` is longer than [`MAX_DATA`].
pub fn put_data(out: &mut Vec<u8>, stream: Stream, bytes: &[u8]) {
    assert!(bytes.len() <= MAX_DATA, "the caller splits data into frames");
    put(out, DATA + stream.number(), bytes);
}

/// The header of a frame with `length` bytes of a stream, for callers that place the bytes themselves.
///
/// # Panics
/// If `length` is more than [`MAX_DATA`].
pub fn data_header(stream: Stream, length: usize) -> [u8; HEADER] {
    assert!(length <= MAX_DATA, "the caller splits data into frames");
    make_header(DATA + stream.number(), length)
}

/// The payload of a frame with bytes of an output, and the number of its exec.
pub(super) fn output_payload(id: u32, stream: Stream, bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() <= MAX_OUTPUT, "the caller splits output into frames");
    [&id.to_le_bytes()[..], &[stream.number()], bytes].concat()
}

/// The stream of a data frame of this kind.
pub(super) fn data_stream(kind: u8) -> Option<Stream> {
    kind.checked_sub(DATA).and_then(Stream::from_number)
}

fn make_header(kind: u8, length: usize) -> [u8; HEADER] {
    let [a, b, c, d] = u32::try_from(length).expect("limits are far below 4 GiB").to_le_bytes();
    [a, b, c, d, kind]
}

pub(super) fn put(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    out.extend_from_slice(&make_header(kind, payload.len()));
    out.extend_from_slice(payload);
}

pub(super) fn put_json(out: &mut Vec<u8>, kind: u8, body: &impl Serialize) {
    put(out, kind, &serde_json::to_vec(body).expect("messages have string keys and plain values"));
}

pub(super) fn json<T: DeserializeOwned>(kind: u8, payload: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(payload).map_err(|error| Error::BadPayload { kind, why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_checked_before_the_payload_is_read() {
        let header = |length: u32, kind| {
            let [a, b, c, d] = length.to_le_bytes();
            read_header([a, b, c, d, kind])
        };
        assert!(matches!(header(u32::MAX, DATA), Err(Error::TooLong { .. })));
        assert!(matches!(header(MAX_DATA as u32 + 1, DATA), Err(Error::TooLong { .. })));
        assert!(matches!(header(2, EOF), Err(Error::TooLong { .. })));
        assert!(matches!(header(0, 0), Err(Error::UnknownKind(0))));
        assert!(matches!(header(0, 200), Err(Error::UnknownKind(200))));
        for (limit, kinds) in [
            (0, &[LIST, DETACH, GO, RECORD][..]),
            (1, &[EOF]),
            (5, &[CREDIT]),
            (8, &[HOLE]),
            (1 << 10, &[HELLO, STARTED, PREPARED, SIGNAL, RESIZE, SHUTDOWN, STOPPING, ATTACH, KILL, CLOCK, CHANGE]),
            (MAX_DATA as u32, &[DATA, DATA + 1, DATA + 2, EXIT, FAILURE, READY, GET, PUT, OUTPUT, ENTRY]),
            (MAX_CONTROL as u32, &[EXEC, EXECS]),
        ] {
            for &kind in kinds {
                assert_eq!(header(limit, kind).unwrap(), (limit as usize, kind));
                assert!(matches!(header(limit + 1, kind), Err(Error::TooLong { .. })), "{kind}");
            }
        }
    }

    #[test]
    fn a_header_alone_is_that_of_the_frame() {
        for stream in [Stream::Stdin, Stream::Stdout, Stream::Stderr] {
            let mut frame = Vec::new();
            put_data(&mut frame, stream, b"abc");
            assert_eq!(data_header(stream, 3), frame[..HEADER]);
        }
    }
}
