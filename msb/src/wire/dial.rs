//! From the endpoint in a record to a stream that reaches the agent.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::Message;
use crate::record::Endpoint;

/// How long the VMM and the agent together may take to answer. A guest under load answers in milliseconds; a dead one never.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// The longest answer of a VMM to `CONNECT`, in bytes.
const MAX_ANSWER: usize = 64;

/// Connects to the agent and exchanges hellos. The stream has no time limits then.
///
/// # Errors
/// See [`ask`].
pub fn dial(endpoint: &Endpoint) -> Result<UnixStream, super::Error> {
    ask(endpoint, &[])
}

/// Connects to the agent and sends `frames` together with the hello, for one way through the VMM instead of two; returns when the
/// agent's hello is there. The stream has no time limits then.
///
/// The agent says hello before it reads: where this fails before that, the agent has not seen the frames.
///
/// # Errors
/// [`io::ErrorKind::ConnectionRefused`] or `NotFound` where the VM is gone; `TimedOut` or `WouldBlock` after
/// [`TIMEOUT`]; [`super::Error`] for an agent that breaks the protocol.
pub fn ask(endpoint: &Endpoint, frames: &[u8]) -> Result<UnixStream, super::Error> {
    let stream = connect(&endpoint.unix)?;
    let mut patient = Patient { stream: &stream, until: Instant::now() + TIMEOUT };
    if endpoint.handshake {
        connect_port(&mut patient, endpoint.port)?;
    }
    let mut opening = Message::hello().to_frame();
    opening.extend_from_slice(frames);
    (&stream).write_all(&opening)?;
    Message::receive_hello(&mut patient)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok(stream)
}

/// Connects to a socket of a VMM, whose queue of connections may be short: where it is full, connect(2) waits until there is room, and
/// no longer than the time limit for sending (unix(7), socket(7)).
fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(TIMEOUT))?;
    let address = SocketAddrUnix::new(path)?;
    loop {
        match net::connect(&socket, &address) {
            Err(Errno::INTR) => {}
            other => return other.map(|()| socket.into()).map_err(Into::into),
        }
    }
}

/// A stream that is read until a moment, not a while from each read: a guest that sends a byte now and then gets no more
/// time than one that sends none.
struct Patient<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl Read for Patient<'_> {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(block)
    }
}

/// Asks a VMM whose socket serves all ports for one of them: `CONNECT port`, answered by `OK port`. Nothing may be
/// sent before the answer, or the VMM loses it.
fn connect_port(patient: &mut Patient<'_>, port: u32) -> io::Result<()> {
    patient.stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut byte = [0u8];
    while !answer.ends_with(b"\n") {
        if patient.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        answer.push(byte[0]);
        if answer.len() > MAX_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the VMM's answer to CONNECT is too long"));
        }
    }
    if answer.starts_with(b"OK ") {
        Ok(())
    } else {
        let answer = String::from_utf8_lossy(&answer);
        Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("the VMM answered {:?}", answer.trim_end())))
    }
}
