//! Messages: what a frame of each kind holds, and reading and writing them.

use std::io::{self, Read, Write};

use super::container::Change;
use super::copy::{Get, Put};
use super::exec::{
    Attach, Clock, Execs, Exit, Failure, Hello, Kill, Ready, Request, Resize, Resume, Shutdown, Signal, Started,
    Stopping,
};
use super::frame::*;
use super::upper;

/// A frame, decoded.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Message {
    /// Both directions: the first frame.
    Hello(Hello),
    /// Host to guest: run this.
    Exec(Box<Request>),
    /// Guest to host: it is ready to run, and waits for [`Message::Go`].
    Prepared(Started),
    /// Host to guest: run what was prepared.
    Go,
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
    /// Host to guest: other limits for a container.
    Change(Change),
    /// Guest to host: every exec for [`Message::List`], the addressed one for [`Message::Kill`], [`Message::Change`] and
    /// [`Message::Detach`], as the last frame. After [`Message::Record`]: one that was detached, or has ended.
    Execs(Execs),
    /// Host to guest: the caller detaches, and the command keeps running.
    Detach,
    /// Host to guest: the current time, after the host's clock was set or the guest was paused. There is no answer.
    Clock(Clock),
    /// Host to guest: the machine was started from a snapshot, and is another one from now on.
    Resume(Box<Resume>),
    /// Host to guest: send a file or a tree.
    Get(Get),
    /// Host to guest: a file or a tree follows.
    Put(Put),
    /// Host to guest: send the output of all detached execs, to be kept.
    Record,
    /// Guest to host, after [`Message::Record`]: bytes of an output of a detached exec.
    Output {
        /// The exec's number.
        id: u32,
        /// Stdout or stderr.
        stream: Stream,
        /// The bytes, at most [`MAX_OUTPUT`].
        bytes: Vec<u8>,
    },
    /// In a copy, in either direction: a file. Guest to host, on [`READY_PORT`], in a commit: a file of the upper.
    Entry(Box<upper::Entry>),
    /// In a copy and in a commit: a hole of this many bytes in a file.
    Hole(u64),
}

impl Message {
    /// The hello of this version.
    pub fn hello() -> Self {
        Self::Hello(Hello { version: VERSION })
    }

    /// Appends the message's frame to `out`.
    ///
    /// # Panics
    /// If a [`Message::Data`] is longer than [`MAX_DATA`], or a [`Message::Output`] than [`MAX_OUTPUT`].
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(body) => put_json(out, HELLO, body),
            Self::Exec(body) => put_json(out, EXEC, body),
            Self::Prepared(body) => put_json(out, PREPARED, body),
            Self::Go => put(out, GO, &[]),
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
            Self::Change(body) => put_json(out, CHANGE, body),
            Self::Execs(body) => put_json(out, EXECS, body),
            Self::Detach => put(out, DETACH, &[]),
            Self::Clock(body) => put_json(out, CLOCK, body),
            Self::Resume(body) => put_json(out, RESUME, body),
            Self::Get(body) => put_json(out, GET, body),
            Self::Put(body) => put_json(out, PUT, body),
            Self::Record => put(out, RECORD, &[]),
            Self::Output { id, stream, bytes } => put(out, OUTPUT, &output_payload(*id, *stream, bytes)),
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

    /// The length of the message's frame, which counts against credit.
    pub fn frame_length(&self) -> usize {
        match self {
            Self::Data(_, bytes) => HEADER + bytes.len(),
            other => other.to_frame().len(),
        }
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
            EXEC => Self::Exec(Box::new(json(kind, payload)?)),
            PREPARED => Self::Prepared(json(kind, payload)?),
            GO => Self::Go,
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
            CHANGE => Self::Change(json(kind, payload)?),
            EXECS => Self::Execs(json(kind, payload)?),
            DETACH => Self::Detach,
            CLOCK => Self::Clock(json(kind, payload)?),
            RESUME => Self::Resume(Box::new(json(kind, payload)?)),
            GET => Self::Get(json(kind, payload)?),
            PUT => Self::Put(json(kind, payload)?),
            RECORD => Self::Record,
            OUTPUT => match *payload {
                [a, b, c, d, number, ref bytes @ ..] => {
                    let (id, stream) = (u32::from_le_bytes([a, b, c, d]), stream(number)?);
                    Self::Output { id, stream, bytes: bytes.to_vec() }
                }
                _ => return Err(bad("at least five bytes are expected")),
            },
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
            return Err(Error::OutOfTurn("the first one is not a hello"));
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

    /// A reader whose first call fails.
    struct Failing<'a>(Option<io::ErrorKind>, &'a [u8]);

    impl Read for Failing<'_> {
        fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
            self.0.take().map_or_else(|| self.1.read(block), |kind| Err(kind.into()))
        }
    }

    #[test]
    fn a_signal_does_not_end_a_message_and_another_error_does() {
        let frame = Message::hello().to_frame();
        let receive = |kind| Message::receive(&mut Failing(Some(kind), &frame));
        assert_eq!(receive(io::ErrorKind::Interrupted).unwrap(), Some(Message::hello()));
        assert!(matches!(receive(io::ErrorKind::ConnectionReset), Err(Error::Io(_))));
    }

    #[test]
    fn the_length_of_a_frame_is_that_of_its_bytes() {
        for message in [Message::hello(), Message::Data(Stream::Stdout, b"abc".to_vec()), Message::Hole(1)] {
            assert_eq!(message.frame_length(), message.to_frame().len(), "{message:?}");
        }
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
