//! The local end of a connection: a stream socket, and the data that it has not accepted yet.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

/// The events of a local end. They are edge-triggered.
pub(super) const EVENTS: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ET);

/// The local end of a connection.
pub(super) struct Local {
    pub(super) socket: OwnedFd,
    /// What the peer has sent and the socket did not accept yet.
    pub(super) queue: VecDeque<u8>,
    /// Whether epoll reports that the socket has room.
    pub(super) awaits_room: bool,
    /// The peer sends no more, so the socket is shut down after the queue.
    pub(super) is_last: bool,
    /// The peer has closed the connection: nothing more is read from the socket.
    pub(super) is_closed: bool,
    /// The socket was shut down.
    is_shut: bool,
    /// Nobody reads the socket. What the peer sends is discarded.
    pub(super) is_deaf: bool,
    /// The socket may have bytes, or be at its end.
    pub(super) is_readable: bool,
    /// The end of the socket was reported. Data before it may still be unread.
    is_ending: bool,
    /// The other end of the socket is closed, or both directions are shut down.
    pub(super) is_abandoned: bool,
    /// It waits for its turn.
    pub(super) is_waiting: bool,
}

/// What was read from a socket.
pub(super) enum Read {
    Bytes(usize),
    Nothing,
    /// The end, or an error.
    End,
}

impl Local {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            queue: VecDeque::new(),
            awaits_room: false,
            is_last: false,
            is_closed: false,
            is_shut: false,
            is_deaf: false,
            // Its owner has usually sent something already.
            is_readable: true,
            is_ending: false,
            is_abandoned: false,
            is_waiting: false,
        }
    }

    /// Records events.
    pub(super) fn note(&mut self, flags: EventFlags) {
        self.is_ending |= flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        self.is_abandoned |= flags.intersects(EventFlags::HUP | EventFlags::ERR);
        self.is_readable |= self.is_ending || flags.contains(EventFlags::IN);
    }

    /// Reads at most as many bytes as `room` holds.
    pub(super) fn read(&mut self, room: &mut [u8]) -> Read {
        let wanted = room.len();
        match recv(&self.socket, room, RecvFlags::DONTWAIT) {
            Ok((count @ 1.., _)) => {
                // A short read has emptied the socket. New data is a new event.
                self.is_readable = count == wanted || self.is_ending;
                Read::Bytes(count)
            }
            Err(Errno::AGAIN) => {
                self.is_readable = false;
                Read::Nothing
            }
            Err(Errno::INTR) => Read::Nothing,
            _ => Read::End,
        }
    }

    /// Passes on bytes of the peer, or queues them. Returns how many were passed on.
    pub(super) fn deliver(&mut self, bytes: &[u8]) -> usize {
        if self.is_deaf {
            return bytes.len();
        }
        // An error will occur again when the queue is written.
        let written = if self.queue.is_empty() { self.send(bytes).unwrap_or(0) } else { 0 };
        self.queue.extend(&bytes[written..]);
        written
    }

    /// Writes the queue to the socket. Returns how many bytes have left the queue.
    pub(super) fn write_queue(&mut self) -> usize {
        let mut written = 0;
        while !self.queue.is_empty() {
            match self.send(self.queue.as_slices().0) {
                Ok(count) => {
                    self.queue.drain(..count);
                    written += count;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return written,
                Err(_) => {
                    self.is_deaf = true;
                    written += self.queue.len();
                    self.queue.clear();
                }
            }
        }
        // Its memory, too.
        self.queue = VecDeque::new();
        written
    }

    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        send(&self.socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
    }

    /// Shuts the socket down for writing after the peer's last byte, so that the other end reads end-of-file.
    pub(super) fn shut(&mut self) {
        if !std::mem::replace(&mut self.is_shut, true) {
            // It fails if nobody has the other end, which the next read reports.
            let _ = shutdown(&self.socket, Shutdown::Write);
        }
    }

    /// Ends the socket, so that its other end reads what was sent and then the end. If it is closed while it holds bytes that nobody has
    /// read, the other end gets ECONNRESET instead (`unix_release_sock` of the kernel).
    pub(super) fn end(self) {
        // From here on no byte comes.
        let _ = shutdown(&self.socket, Shutdown::Both);
        let mut block = [0; 4096];
        while let Ok((1.., _)) = recv(&self.socket, &mut block, RecvFlags::DONTWAIT) {}
    }
}

impl AsFd for Local {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
