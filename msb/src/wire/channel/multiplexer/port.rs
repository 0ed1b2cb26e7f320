//! The byte stream under a channel, and what waits to be sent on it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::super::frame::Frame;

/// Shorter frames wait for the end of the loop's iteration, and are sent together. Each write interrupts the peer.
const LARGE: usize = 4096;
/// The most that Linux returns for one read of a guest's port, in bytes. After a shorter read the port is usually empty.
const PIECE: usize = 4096;

/// A character device or a socket, which does not block.
pub(super) struct Port {
    fd: OwnedFd,
    /// Frames that have not been sent, from `sent` on.
    out: Vec<u8>,
    sent: usize,
}

impl Port {
    /// # Errors
    /// Those of fcntl(2).
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self { fd, out: Vec::new(), sent: 0 })
    }

    /// How many bytes wait to be sent.
    pub(super) fn queued(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Queues frames.
    pub(super) fn append(&mut self, frames: &mut Vec<u8>) {
        self.out.append(frames);
    }

    /// Queues a frame.
    pub(super) fn put(&mut self, frame: Frame) {
        frame.put(&mut self.out);
    }

    /// Sends a frame, or queues what the port does not accept now. A short frame is queued.
    ///
    /// # Errors
    /// Those of write(2).
    pub(super) fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let is_sent_now = self.queued() == 0 && frame.len() >= LARGE;
        let sent = if is_sent_now { self.write(frame)? } else { 0 };
        self.out.extend_from_slice(&frame[sent..]);
        if self.queued() >= LARGE { self.flush() } else { Ok(()) }
    }

    /// Sends as much as the port accepts now.
    ///
    /// # Errors
    /// Those of write(2).
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.sent += self.write(&self.out[self.sent..])?;
        // The rest is moved to the front once it is the smaller part.
        if self.sent > self.queued() {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }

    /// Writes as much as the port accepts now. Returns how many bytes that was.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < bytes.len() {
            match rustix::io::write(&self.fd, &bytes[written..]) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(written)
    }

    /// Reads what has arrived, as far as `block` has room. `None` at the end of the port.
    ///
    /// # Errors
    /// Those of read(2).
    pub(super) fn read(&self, block: &mut [u8]) -> io::Result<Option<usize>> {
        let mut filled = 0;
        loop {
            match rustix::io::read(&self.fd, &mut block[filled..]) {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(Some(filled).filter(|filled| *filled > 0)),
                Ok(count) => {
                    filled += count;
                    if count < PIECE || filled == block.len() {
                        return Ok(Some(filled));
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Some(filled)),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
