//! The connection on which the host gets the output of detached execs, so that it can keep it. The threads of the execs write to it one
//! after the other. A host that does not read stalls them for a while, and then gets no more.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use msb::wire::exec::{Execs, Listed};
use msb::wire::{self, HEADER, Message, Stream};

use crate::console;
use crate::link::{self, CHUNK};

/// How many bytes are kept until the host connects, which it does when the machine is up.
const MAX_BACKLOG: usize = 256 << 10;
/// How long the host may take to read.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the host may take to read the last bytes at the end of the machine. A VMM may not tell it that they are the last ones.
const END_TIMEOUT: Duration = Duration::from_millis(200);

// A chunk fits into a frame.
const _: () = assert!(CHUNK <= wire::MAX_OUTPUT);

/// Sends the output of detached commands to the host, or keeps it until the host connects.
#[derive(Debug)]
pub struct Recorder(Mutex<Host>);

#[derive(Debug)]
enum Host {
    /// It has not connected. Frames wait for it.
    Absent(Vec<u8>),
    /// It reads.
    Connected(Connection),
    /// It has gone, or does not read.
    Lost,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// How many more bytes the host accepts.
    credit: u64,
    has_sent: bool,
}

impl Default for Recorder {
    fn default() -> Self {
        Self(Mutex::new(Host::Absent(Vec::new())))
    }
}

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, Host> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the host's connection, in place of an earlier one.
    ///
    /// # Errors
    /// A broken connection, or invalid frames.
    pub fn connect(&self, connection: UnixStream) -> Result<(), wire::Error> {
        connection.set_read_timeout(Some(TIMEOUT))?;
        connection.set_write_timeout(Some(TIMEOUT))?;
        let mut host = self.lock();
        let connected = Host::Connected(Connection { stream: connection, credit: 0, has_sent: false });
        let Host::Absent(backlog) = std::mem::replace(&mut *host, connected) else { return Ok(()) };
        // After a part of a frame, nothing else can be sent.
        host.send_all(&backlog).inspect_err(|_| *host = Host::Lost)
    }

    /// Records bytes of an output.
    pub fn output(&self, id: u32, stream: Stream, bytes: &[u8]) {
        self.put(&Message::Output { id, stream, bytes: bytes.to_vec() });
    }

    /// Records that an exec was detached.
    pub fn detached(&self, exec: Listed) {
        // It may have exited already. Readers take an exit for the end of the output, which is still to come.
        self.note(Listed { exit: None, ..exec });
    }

    /// Records that an exec has ended, after its output.
    pub fn ended(&self, exec: Listed) {
        self.note(exec);
    }

    fn note(&self, exec: Listed) {
        self.put(&Message::Execs(Execs { execs: vec![exec], ..Execs::default() }));
    }

    fn put(&self, message: &Message) {
        let frame = message.to_frame();
        let mut host = self.lock();
        if let Err(error) = host.send(&frame) {
            console::log(&format!("the output of detached commands is not recorded any more: {error}"));
            *host = Host::Lost;
        }
    }

    /// Waits until the host has read everything, at the end of the machine.
    pub fn finish(&self) {
        let host = {
            // A session that is left holds the lock while it waits for a host that does not read.
            let Ok(mut host) = self.0.try_lock() else { return };
            std::mem::replace(&mut *host, Host::Lost)
        };
        if let Host::Connected(Connection { mut stream, has_sent: true, .. }) = host {
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.set_read_timeout(Some(END_TIMEOUT));
            // Credit may come before the end.
            while let Ok(Some(_)) = Message::receive(&mut stream) {}
        }
    }
}

impl Host {
    /// Sends frames one after the other.
    fn send_all(&mut self, mut frames: &[u8]) -> Result<(), wire::Error> {
        while let Some(header) = frames.first_chunk() {
            let (length, _) = wire::read_header(*header)?;
            let (frame, rest) = frames.split_at(HEADER + length);
            self.send(frame)?;
            frames = rest;
        }
        Ok(())
    }

    /// Sends a frame, and waits for credit first.
    fn send(&mut self, frame: &[u8]) -> Result<(), wire::Error> {
        match self {
            Self::Absent(backlog) if backlog.len() + frame.len() <= MAX_BACKLOG => backlog.extend_from_slice(frame),
            Self::Absent(_) | Self::Lost => {}
            Self::Connected(Connection { stream, credit, has_sent }) => {
                while *credit < frame.len() as u64 {
                    match Message::receive(stream)? {
                        Some(Message::Credit(Stream::Stdout, bytes)) => *credit = credit.saturating_add(bytes.into()),
                        Some(_) => return Err(wire::Error::OutOfTurn("not credit for recorded output")),
                        None => return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
                    }
                }
                *credit -= frame.len() as u64;
                *has_sent = true;
                if link::write(stream, frame)? < frame.len() {
                    return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                }
            }
        }
        Ok(())
    }
}
