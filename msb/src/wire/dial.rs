//! Connecting to the agent at the endpoint that a record names.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::frame::Error;
use super::message::Message;
use crate::record::Endpoint;
use crate::vm::patience::Patience;

/// How long the VMM and the agent together may take to answer, without the time in which they wait for a processor ([`Patience`]). A guest
/// answers in milliseconds, a hung one never.
pub const TIMEOUT: Duration = Duration::from_secs(40);

/// The maximum length of a VMM's answer to `CONNECT`, in bytes.
const MAX_ANSWER: usize = 64;

/// Connects to the agent and exchanges hellos. The returned stream has no timeouts.
///
/// # Errors
/// See [`ask`].
pub fn dial(endpoint: &Endpoint) -> Result<UnixStream, Error> {
    ask(endpoint, &[])
}

/// Connects to the agent and sends `frames` together with the hello, which saves a round trip through the VMM. Returns when the
/// agent's hello has arrived. The returned stream has no timeouts.
///
/// The agent sends its hello before it reads: if this fails, the agent has not read the frames.
///
/// # Errors
/// [`io::ErrorKind::ConnectionRefused`] or `NotFound` if the VM is gone; `TimedOut` after [`TIMEOUT`];
/// [`Error`] for an agent that violates the protocol.
pub fn ask(endpoint: &Endpoint, frames: &[u8]) -> Result<UnixStream, Error> {
    let mut patience = Patience::with(endpoint, TIMEOUT);
    let stream = connect(&endpoint.unix, &mut patience)?;
    let mut reader = PatientReader { stream: &stream, patience };
    if endpoint.handshake {
        connect_port(&mut reader, endpoint.port)?;
    }
    let mut opening = Message::hello().to_frame();
    opening.extend_from_slice(frames);
    (&stream).write_all(&opening)?;
    Message::receive_hello(&mut reader)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok(stream)
}

/// Connects to a socket of a VMM. If its backlog is full, connect(2) waits for room, up to the send timeout (unix(7), socket(7)).
fn connect(path: &Path, patience: &mut Patience) -> io::Result<UnixStream> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let address = SocketAddrUnix::new(path)?;
    while let Some(left) = patience.left() {
        set_socket_timeout(&socket, Timeout::Send, Some(left))?;
        match net::connect(&socket, &address) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
            Ok(()) => {
                set_socket_timeout(&socket, Timeout::Send, Some(TIMEOUT))?;
                return Ok(socket.into());
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// A stream whose reads share one limit, so that a guest that sends a byte now and then does not extend it.
#[derive(Debug)]
pub struct PatientReader<'a> {
    /// The connection to the agent.
    pub stream: &'a UnixStream,
    /// The limit.
    pub patience: Patience,
}

impl Read for PatientReader<'_> {
    /// [`io::ErrorKind::TimedOut`] after the limit.
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        let mut stream = self.stream;
        while let Some(left) = self.patience.left() {
            stream.set_read_timeout(Some(left))?;
            match stream.read(block) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// Selects a port on a socket that serves all ports: `CONNECT port`, answered with `OK port`. Nothing may be sent before the answer,
/// because the VMM would drop it.
fn connect_port(reader: &mut PatientReader<'_>, port: u32) -> io::Result<()> {
    reader.stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut byte = [0u8];
    while !answer.ends_with(b"\n") {
        if reader.read(&mut byte)? == 0 {
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
