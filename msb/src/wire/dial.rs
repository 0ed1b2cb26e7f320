//! From the endpoint in a record to a stream that reaches the agent.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::Message;
use crate::record::Endpoint;

/// How long the VMM and the agent together may take to answer. A guest under load answers in milliseconds; a dead one never.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The longest answer of a VMM to `CONNECT`, in bytes.
const MAX_ANSWER: usize = 64;

/// Connects to the agent and exchanges hellos. The stream has no time limits then.
///
/// # Errors
/// [`io::ErrorKind::ConnectionRefused`] or `NotFound` where the VM is gone; `TimedOut` or `WouldBlock` after
/// [`PATIENCE`]; [`super::Error`] for an agent that says nonsense.
pub fn dial(endpoint: &Endpoint) -> Result<UnixStream, super::Error> {
    let stream = UnixStream::connect(&endpoint.unix)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut patient = Patient { stream: &stream, until: Instant::now() + PATIENCE };
    if endpoint.handshake {
        connect_port(&mut patient, endpoint.port)?;
    }
    Message::hello().send(&mut &stream)?;
    Message::receive_hello(&mut patient)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok(stream)
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
