//! Frames between host and guest: a length, a kind, a payload.
//!
//! ```text
//! 0        4      5                5 + length
//! | length | kind | payload        |
//!   u32 LE   u8
//! ```
//!
//! One vsock connection carries one exec, one question about execs, one shutdown, or the agent's report that it is up. The first
//! frame in each direction is [`Message::Hello`]. The peer is not trusted: a length is checked against the limit of its kind
//! before the payload is read, and any violation ends the connection. `man/msb-wire.5` specifies the protocol.
//!
//! The bodies of messages may gain members, with a default for peers that do not send them. They are plain structs because both ends
//! are built from this source; the version of the protocol changes when a member changes its meaning.
//!
//! ```
//! use msb::wire::{Decoder, Decoded, Message, Stream};
//!
//! let mut bytes = Message::hello().to_frame();
//! Message::Data(Stream::Stdout, b"hi".to_vec()).put(&mut bytes);
//!
//! // Bytes arrive in any pieces.
//! let mut decoder = Decoder::default();
//! let mut received = &bytes[..];
//! assert_eq!(decoder.next(&mut received)?, Some(Decoded::Message(Message::hello())));
//! assert_eq!(decoder.next(&mut received)?, Some(Decoded::Data(Stream::Stdout, b"hi")));
//! assert_eq!(decoder.next(&mut received)?, None);
//! # Ok::<(), msb::wire::Error>(())
//! ```

mod decoder;
pub mod dial;
pub mod exec;
pub mod exit_status;
mod report;
pub mod sequence;
pub mod upper;

use std::io::{self, Read, Write};

pub use decoder::{Decoded, Decoder};
pub use report::Report;
use serde::Serialize;
use serde::de::DeserializeOwned;

use exec::{
    Attach, Clock, Execs, Exit, Failure, Hello, Kill, Ready, Request, Resize, Shutdown, Signal, Started, Stopping,
};

/// The protocol version that a [`Hello`] carries.
pub const VERSION: u32 = 1;
/// The port in the guest on which the agent accepts connections.
pub const AGENT_PORT: u32 = 1024;
/// The port on the host on which msb-boot waits for the agent's [`Ready`].
pub const READY_PORT: u32 = 1025;
/// The maximum number of bytes of a stream in one frame.
pub const MAX_DATA: usize = 64 << 10;
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
    fn number(self) -> u8 {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        [Self::Stdin, Self::Stdout, Self::Stderr].into_iter().find(|stream| stream.number() == number)
    }
}

/// A frame, decoded.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Message {
    /// Both directions: the first frame.
    Hello(Hello),
    /// Host to guest: run this.
    Exec(Request),
    /// Guest to host: it runs.
    Started(Started),
    /// Bytes of a stream, no more than the receiver has granted credit for.
    Data(Stream, Vec<u8>),
    /// End-of-file of the stream; the connection stays open.
    Eof(Stream),
    /// The receiver of a stream accepts this many more bytes. A stream starts without credit.
    Credit(Stream, u32),
    /// Host to guest: send this signal to the process group.
    Signal(Signal),
    /// Host to guest: the terminal has a new size.
    Resize(Resize),
    /// Guest to host: how the command ended. The last frame.
    Exit(Exit),
    /// Guest to host: the request cannot be fulfilled. The last frame.
    Failure(Failure),
    /// Host to guest: stop the machine.
    Shutdown(Shutdown),
    /// Guest to host, after [`Message::Shutdown`]: its progress.
    Stopping(Stopping),
    /// Guest to host, on [`READY_PORT`]: the agent accepts connections.
    Ready(Ready),
    /// Host to guest: attach to an exec that has no caller.
    Attach(Attach),
    /// Host to guest: list the execs.
    List,
    /// Host to guest: send a signal to an exec.
    Kill(Kill),
    /// Guest to host: every exec for [`Message::List`], the addressed one for [`Message::Kill`] and [`Message::Detach`]. The last
    /// frame.
    Execs(Execs),
    /// Host to guest: the caller detaches, and the command keeps running.
    Detach,
    /// Host to guest: the current time, after the host's clock was set or the guest was paused. There is no answer.
    Clock(Clock),
    /// Guest to host, on [`READY_PORT`], in a commit: a file of the upper.
    Entry(Box<upper::Entry>),
    /// Guest to host, in a commit: a hole of this many bytes in a file.
    Hole(u64),
}

const HELLO: u8 = 1;
const EXEC: u8 = 2;
const STARTED: u8 = 3;
const DATA: u8 = 4; // to 6, by stream
const EOF: u8 = 7;
const CREDIT: u8 = 8;
const SIGNAL: u8 = 9;
const RESIZE: u8 = 10;
const EXIT: u8 = 11;
const FAILURE: u8 = 12;
const SHUTDOWN: u8 = 13;
const READY: u8 = 14;
const ATTACH: u8 = 15;
const LIST: u8 = 16;
const KILL: u8 = 17;
const EXECS: u8 = 18;
const DETACH: u8 = 19;
const STOPPING: u8 = 20;
const CLOCK: u8 = 21;
const ENTRY: u8 = 32;
const HOLE: u8 = 33;

fn limit(kind: u8) -> Result<usize, Error> {
    match kind {
        HELLO | STARTED | SIGNAL | RESIZE | SHUTDOWN | STOPPING | ATTACH | KILL | CLOCK => Ok(1 << 10),
        EXIT | FAILURE | READY | ENTRY => Ok(MAX_DATA),
        EXEC | EXECS => Ok(MAX_CONTROL),
        LIST | DETACH => Ok(0),
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

/// The stream of a data frame of this kind.
fn data_stream(kind: u8) -> Option<Stream> {
    kind.checked_sub(DATA).and_then(Stream::from_number)
}

fn make_header(kind: u8, length: usize) -> [u8; HEADER] {
    let [a, b, c, d] = u32::try_from(length).expect("limits are far below 4 GiB").to_le_bytes();
    [a, b, c, d, kind]
}

fn put(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    out.extend_from_slice(&make_header(kind, payload.len()));
    out.extend_from_slice(payload);
}

fn put_json(out: &mut Vec<u8>, kind: u8, body: &impl Serialize) {
    put(out, kind, &serde_json::to_vec(body).expect("messages have string keys and plain values"));
}

fn json<T: DeserializeOwned>(kind: u8, payload: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(payload).map_err(|error| Error::BadPayload { kind, why: error.to_string() })
}

impl Message {
    /// The hello of this version.
    pub fn hello() -> Self {
        Self::Hello(Hello { version: VERSION })
    }

    /// Appends the message's frame to `out`.
    ///
    /// # Panics
    /// If a [`Message::Data`] is longer than [`MAX_DATA`].
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(body) => put_json(out, HELLO, body),
            Self::Exec(body) => put_json(out, EXEC, body),
            Self::Started(body) => put_json(out, STARTED, body),
            Self::Data(stream, bytes) => put_data(out, *stream, bytes),
            Self::Eof(stream) => put(out, EOF, &[stream.number()]),
            Self::Credit(stream, bytes) => {
                let mut payload = [stream.number(), 0, 0, 0, 0];
                payload[1..].copy_from_slice(&bytes.to_le_bytes());
                put(out, CREDIT, &payload);
            }
            Self::Signal(body) => put_json(out, SIGNAL, body),
            Self::Resize(body) => put_json(out, RESIZE, body),
            Self::Exit(body) => put_json(out, EXIT, body),
            Self::Failure(body) => put_json(out, FAILURE, body),
            Self::Shutdown(body) => put_json(out, SHUTDOWN, body),
            Self::Stopping(body) => put_json(out, STOPPING, body),
            Self::Ready(body) => put_json(out, READY, body),
            Self::Attach(body) => put_json(out, ATTACH, body),
            Self::List => put(out, LIST, &[]),
            Self::Kill(body) => put_json(out, KILL, body),
            Self::Execs(body) => put_json(out, EXECS, body),
            Self::Detach => put(out, DETACH, &[]),
            Self::Clock(body) => put_json(out, CLOCK, body),
            Self::Entry(body) => put_json(out, ENTRY, body),
            Self::Hole(bytes) => put(out, HOLE, &bytes.to_le_bytes()),
        }
    }

    /// The message as a frame of its own.
    pub fn to_frame(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        self.put(&mut frame);
        frame
    }

    /// Decodes the payload of a frame.
    ///
    /// # Errors
    /// [`Error::UnknownKind`], [`Error::BadPayload`].
    pub fn read_payload(kind: u8, payload: &[u8]) -> Result<Self, Error> {
        let bad = |why: &str| Error::BadPayload { kind, why: why.to_owned() };
        let stream = |number| Stream::from_number(number).ok_or_else(|| bad("no such stream"));
        if let Some(stream) = data_stream(kind) {
            return Ok(Self::Data(stream, payload.to_vec()));
        }
        Ok(match kind {
            HELLO => Self::Hello(json(kind, payload)?),
            EXEC => Self::Exec(json(kind, payload)?),
            STARTED => Self::Started(json(kind, payload)?),
            EOF => match payload {
                [number] => Self::Eof(stream(*number)?),
                _ => return Err(bad("one byte is expected")),
            },
            CREDIT => match *payload {
                [number, a, b, c, d] => Self::Credit(stream(number)?, u32::from_le_bytes([a, b, c, d])),
                _ => return Err(bad("five bytes are expected")),
            },
            SIGNAL => Self::Signal(json(kind, payload)?),
            RESIZE => Self::Resize(json(kind, payload)?),
            EXIT => Self::Exit(json(kind, payload)?),
            FAILURE => Self::Failure(json(kind, payload)?),
            SHUTDOWN => Self::Shutdown(json(kind, payload)?),
            STOPPING => Self::Stopping(json(kind, payload)?),
            READY => Self::Ready(json(kind, payload)?),
            ATTACH => Self::Attach(json(kind, payload)?),
            LIST => Self::List,
            KILL => Self::Kill(json(kind, payload)?),
            EXECS => Self::Execs(json(kind, payload)?),
            DETACH => Self::Detach,
            CLOCK => Self::Clock(json(kind, payload)?),
            ENTRY => Self::Entry(json(kind, payload)?),
            HOLE => match payload.try_into() {
                Ok(bytes) => Self::Hole(u64::from_le_bytes(bytes)),
                Err(_) => return Err(bad("eight bytes are expected")),
            },
            _ => return Err(Error::UnknownKind(kind)),
        })
    }

    /// Reads the peer's hello, which must come first, and checks its version.
    ///
    /// # Errors
    /// [`Error::OutOfTurn`] for another frame, of which only the header is read; [`Error::OtherVersion`]; [`Error::Io`].
    pub fn receive_hello(from: &mut impl Read) -> Result<(), Error> {
        let mut header = [0u8; HEADER];
        from.read_exact(&mut header)?;
        let (length, kind) = read_header(header)?;
        if kind != HELLO {
            return Err(Error::OutOfTurn("the first one is no hello"));
        }
        let mut payload = vec![0u8; length];
        from.read_exact(&mut payload)?;
        json::<Hello>(kind, &payload)?.check()
    }

    /// Checks that a frame is short enough for the peer. Only frames with content of a user can be too long.
    ///
    /// # Errors
    /// [`Error::TooLong`].
    pub fn check_length(frame: &[u8]) -> Result<(), Error> {
        frame.first_chunk().map_or(Ok(()), |header| read_header(*header).map(drop))
    }

    /// Writes the message's frame in one call.
    ///
    /// # Errors
    /// Those of writing.
    pub fn send(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.to_frame())?;
        to.flush()
    }

    /// Reads one message; `None` if the connection ends between two frames.
    ///
    /// # Errors
    /// [`Error::Io`] with [`io::ErrorKind::UnexpectedEof`] if it ends within a frame; otherwise see [`Error`].
    pub fn receive(from: &mut impl Read) -> Result<Option<Self>, Error> {
        let mut header = [0u8; HEADER];
        let mut have = 0;
        while have < HEADER {
            match from.read(&mut header[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(got) => have += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (length, kind) = read_header(header)?;
        let mut payload = vec![0u8; length];
        from.read_exact(&mut payload)?;
        Self::read_payload(kind, &payload).map(Some)
    }
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
        assert_eq!(header(MAX_DATA as u32, DATA).unwrap(), (MAX_DATA, DATA));
    }

    #[test]
    fn a_connection_that_ends_within_a_frame_is_an_error_and_between_two_is_none() {
        let frame = Message::hello().to_frame();
        assert!(Message::receive(&mut &frame[..0]).unwrap().is_none());
        for cut in 1..frame.len() {
            assert!(matches!(Message::receive(&mut &frame[..cut]), Err(Error::Io(_))), "{cut}");
        }
        assert_eq!(Message::receive(&mut &frame[..]).unwrap(), Some(Message::hello()));
    }
}
