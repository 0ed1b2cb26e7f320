//! The connection to an exec's caller: it checks the order of incoming frames, and buffers outgoing ones.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use msb::wire::sequence::FromHost;
use msb::wire::{self, Decoded, Decoder, HEADER, Message, Stream};
use nix::poll::PollFlags;

use crate::channel;

/// How long the host may take to send a frame of the hello, and to accept the last frame.
pub const PEER_TIMEOUT: Duration = Duration::from_secs(20);
/// The most bytes of one write, and so of one packet of vsock. The guest's kernel (seen with 6.12.113) scatters packets of over 32 KiB over
/// several descriptors, and some VMMs drop those.
pub const MAX_PACKET: usize = 31 << 10;
/// How much of an output is read at a time, in bytes: with its header, two packets.
pub const CHUNK: usize = 2 * MAX_PACKET - HEADER;
/// No output is read while this many bytes wait to be sent.
const MAX_QUEUED: usize = 4 * MAX_PACKET;

/// A connection to a caller.
#[derive(Debug)]
pub struct Link {
    connection: UnixStream,
    decoder: Decoder,
    /// What the caller may send now.
    pub turn: FromHost,
    credit: [u64; 2],
    /// Frames that have not been sent.
    out: Vec<u8>,
}

impl Link {
    /// Takes a connection after the hello.
    ///
    /// # Errors
    /// Those of `ioctl(2)`.
    pub fn new(connection: UnixStream) -> io::Result<Self> {
        connection.set_nonblocking(true)?;
        let (decoder, turn) = (Decoder::default(), FromHost::default());
        Ok(Self { connection, decoder, turn, credit: [0; 2], out: Vec::new() })
    }

    /// The descriptor and the events to poll for.
    pub fn poll_flags(&self) -> (BorrowedFd<'_>, PollFlags) {
        let out = if self.out.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        (self.connection.as_fd(), PollFlags::POLLIN | out)
    }

    /// How many bytes of an output may be sent now.
    pub fn room(&self, stream: Stream) -> usize {
        let credit = self.credit.get(index(stream)).copied().unwrap_or(0);
        if self.out.len() < MAX_QUEUED { usize::try_from(credit).unwrap_or(usize::MAX).min(CHUNK) } else { 0 }
    }

    /// Reads what has arrived, for [`Self::next`].
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionAborted`] if the caller is gone; else those of `read(2)`.
    pub fn read<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        match self.connection.read(buffer) {
            Ok(0) => Err(io::ErrorKind::ConnectionAborted.into()),
            Ok(got) => Ok(&buffer[..got]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(&[]),
            Err(error) => Err(error),
        }
    }

    /// Takes the next piece from what was read. Credit is handled here.
    ///
    /// # Errors
    /// A frame that is invalid, or not allowed now.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Decoded<'a>>, wire::Error> {
        let Some(piece) = self.decoder.next(bytes)? else { return Ok(None) };
        self.turn.take(&piece)?;
        if let Decoded::Message(Message::Credit(stream, bytes)) = piece
            && let Some(credit) = self.credit.get_mut(index(stream))
        {
            *credit = credit.saturating_add(bytes.into());
        }
        Ok(Some(piece))
    }

    /// Queues a frame.
    pub fn queue(&mut self, message: &Message) {
        message.put(&mut self.out);
    }

    /// Queues bytes of an output, at most [`Self::room`].
    pub fn queue_data(&mut self, stream: Stream, bytes: &[u8]) {
        wire::put_data(&mut self.out, stream, bytes);
        self.spend(stream, bytes.len());
    }

    /// Sends `length` bytes of an output, at most [`Self::room`]. They are in `buffer` after [`HEADER`] bytes of space for the header. They
    /// are sent without a copy if no frame is queued; what the connection does not accept now is queued.
    ///
    /// # Errors
    /// Those of `write(2)`.
    pub fn send_data(&mut self, stream: Stream, buffer: &mut [u8], length: usize) -> io::Result<()> {
        let frame = &mut buffer[..HEADER + length];
        frame[..HEADER].copy_from_slice(&wire::data_header(stream, length));
        let sent = if self.out.is_empty() { write(&mut self.connection, frame)? } else { 0 };
        self.out.extend_from_slice(&frame[sent..]);
        self.spend(stream, length);
        Ok(())
    }

    fn spend(&mut self, stream: Stream, bytes: usize) {
        if let Some(credit) = self.credit.get_mut(index(stream)) {
            *credit = credit.saturating_sub(bytes as u64);
        }
    }

    /// Sends as much of the queue as the connection accepts now.
    ///
    /// # Errors
    /// Those of `write(2)`.
    pub fn flush(&mut self) -> io::Result<()> {
        let sent = write(&mut self.connection, &self.out)?;
        self.out.drain(..sent);
        Ok(())
    }

    /// Sends all that is queued and the last frame.
    ///
    /// # Errors
    /// Those of `write(2)`, or that it takes longer than [`PEER_TIMEOUT`].
    pub fn finish(mut self, last: &Message) -> io::Result<()> {
        self.queue(last);
        self.flush()?;
        if self.out.is_empty() {
            return Ok(());
        }
        self.connection.set_nonblocking(false)?;
        self.connection.set_write_timeout(Some(PEER_TIMEOUT))?;
        self.flush()
    }
}

/// Writes as much as the connection accepts now. Over vsock, it writes packets of at most [`MAX_PACKET`] bytes. Over the port, it writes
/// everything at once, so that the multiplexer's thread wakes only once. Returns the number of bytes.
///
/// # Errors
/// Those of `write(2)`.
pub fn write(connection: &mut UnixStream, bytes: &[u8]) -> io::Result<usize> {
    let most = if channel::is_port() { usize::MAX } else { MAX_PACKET };
    let mut sent = 0;
    while sent < bytes.len() {
        let packet = &bytes[sent..];
        match connection.write(&packet[..packet.len().min(most)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// The index of an output's credit.
fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
        Stream::Stdin => usize::MAX,
    }
}
