//! The connection to an exec's caller: frames in as the wire allows them, frames out as the connection takes them.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use msb::wire::turn::FromHost;
use msb::wire::{self, Decoder, HEADER, Message, Piece, Stream};
use nix::poll::PollFlags;
use vsock::VsockStream;

use crate::session::PATIENCE;

/// The most bytes of one write, and so of one packet. The guest's kernel (seen with 6.12.113) scatters packets of over
/// 32 KiB over several descriptors, and vhost-device-vsock 0.3.0 drops what is scattered.
const MAX_PACKET: usize = 31 << 10;
/// How much of an output is read at a time, in bytes: with its header it is one packet.
pub const PORTION: usize = 2 * MAX_PACKET - HEADER;
/// Output is read while less than this waits for the connection, in bytes.
const OUT_ENOUGH: usize = 4 * MAX_PACKET;

/// A caller.
#[derive(Debug)]
pub struct Link {
    connection: VsockStream,
    decoder: Decoder,
    /// What the caller may send.
    pub turn: FromHost,
    credit: [u64; 2],
    /// Frames on their way out.
    out: Vec<u8>,
}

impl Link {
    /// A connection that has said hello.
    ///
    /// # Errors
    /// What `ioctl(2)` says.
    pub fn new(connection: VsockStream) -> io::Result<Self> {
        connection.set_nonblocking(true)?;
        let (decoder, turn) = (Decoder::default(), FromHost::default());
        Ok(Self { connection, decoder, turn, credit: [0; 2], out: Vec::new() })
    }

    /// What to wait for.
    pub fn wanted(&self) -> (BorrowedFd<'_>, PollFlags) {
        let out = if self.out.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        (self.connection.as_fd(), PollFlags::POLLIN | out)
    }

    /// How many bytes of an output may be sent now.
    pub fn room(&self, stream: Stream) -> usize {
        let credit = self.credit.get(place(stream)).copied().unwrap_or(0);
        if self.out.len() < OUT_ENOUGH { usize::try_from(credit).unwrap_or(usize::MAX).min(PORTION) } else { 0 }
    }

    /// Reads what has arrived, for [`Self::next`].
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionAborted`] where the caller is gone; else what reading says.
    pub fn read<'a>(&mut self, block: &'a mut [u8]) -> io::Result<&'a [u8]> {
        match self.connection.read(block) {
            Ok(0) => Err(io::ErrorKind::ConnectionAborted.into()),
            Ok(got) => Ok(&block[..got]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(&[]),
            Err(error) => Err(error),
        }
    }

    /// The next piece of what was read, which becomes what is behind it; credit is taken here.
    ///
    /// # Errors
    /// A frame that makes no sense, or none now.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Piece<'a>>, wire::Error> {
        let Some(piece) = self.decoder.next(bytes)? else { return Ok(None) };
        self.turn.take(&piece)?;
        if let Piece::Message(Message::Credit(stream, bytes)) = piece
            && let Some(credit) = self.credit.get_mut(place(stream))
        {
            *credit = credit.saturating_add(bytes.into());
        }
        Ok(Some(piece))
    }

    /// Queues a frame.
    pub fn queue(&mut self, message: &Message) {
        message.put(&mut self.out);
    }

    /// Queues bytes of an output, which [`Self::room`] allows.
    pub fn queue_data(&mut self, stream: Stream, bytes: &[u8]) {
        wire::put_data(&mut self.out, stream, bytes);
        self.spend(stream, bytes.len());
    }

    /// Sends `length` bytes of an output, which [`Self::room`] allows and which are in `block` behind [`HEADER`] bytes of room:
    /// from there, where nothing is before them; what the connection does not take now is queued.
    ///
    /// # Errors
    /// What writing says.
    pub fn send_data(&mut self, stream: Stream, block: &mut [u8], length: usize) -> io::Result<()> {
        let frame = &mut block[..HEADER + length];
        frame[..HEADER].copy_from_slice(&wire::data_header(stream, length));
        let sent = if self.out.is_empty() { write(&mut self.connection, frame)? } else { 0 };
        self.out.extend_from_slice(&frame[sent..]);
        self.spend(stream, length);
        Ok(())
    }

    fn spend(&mut self, stream: Stream, bytes: usize) {
        if let Some(credit) = self.credit.get_mut(place(stream)) {
            *credit = credit.saturating_sub(bytes as u64);
        }
    }

    /// Writes as much as the connection takes now.
    ///
    /// # Errors
    /// What writing says.
    pub fn flush(&mut self) -> io::Result<()> {
        let sent = write(&mut self.connection, &self.out)?;
        self.out.drain(..sent);
        Ok(())
    }

    /// Sends the last frame, behind all that is queued.
    ///
    /// # Errors
    /// What writing says, also where it takes longer than [`PATIENCE`].
    pub fn finish(mut self, last: &Message) -> io::Result<()> {
        self.queue(last);
        self.connection.set_nonblocking(false)?;
        self.connection.set_write_timeout(Some(PATIENCE))?;
        self.flush()
    }
}

/// Writes as much as the connection takes now, and says how much that was.
fn write(connection: &mut VsockStream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        let packet = &bytes[sent..];
        match connection.write(&packet[..packet.len().min(MAX_PACKET)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// Where an output's credit is.
fn place(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
        Stream::Stdin => usize::MAX,
    }
}
