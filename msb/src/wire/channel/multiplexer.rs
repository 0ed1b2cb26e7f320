//! The loop that moves bytes between a channel and the local end of each connection, which is a stream socket.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::connections::{Connections, Side, Taken};
use super::frame::{Decoder, Frame, HEADER, MAX_DATA, Piece, data_header};

/// A byte on the control socket of the host: freeze the channel. The answer is [`FROZEN`].
pub const FREEZE: u8 = b'f';
/// The guest has frozen the channel.
pub const FROZEN: u8 = b'F';
/// A byte on the control socket of the host: let the channel go on.
pub const THAW: u8 = b't';
/// A byte on the control socket of the host: let the channel begin anew, without connections.
pub const RESTART: u8 = b'r';

/// No more is read from connections while so many bytes wait to be sent.
const MAX_QUEUED: usize = 8 * (HEADER + MAX_DATA);
/// How many bytes may wait to be sent. Data, and the frames about credit and the ends of all connections, are less. A peer that opens
/// connections and does not read the answers would fill the memory.
const MAX_UNSENT: usize = 1 << 20;
/// How many bytes the host keeps in all for local ends that do not read. A guest could otherwise fill the host's memory with the windows of
/// all connections. Callers read what arrives, and grant credit of their own above the channel's. So only many stopped callers come near.
const MAX_KEPT: usize = 64 << 20;
/// How much is read from the port at a time, in bytes.
const BLOCK: usize = 64 << 10;

/// Where the connections of a channel end on this side.
pub trait Ends {
    /// Readable when [`Self::accept`] may have a connection.
    fn accepting(&self) -> BorrowedFd<'_>;

    /// Takes a connection that this side opens, if one waits. [`io::ErrorKind::WouldBlock`] if none does.
    ///
    /// # Errors
    /// Another one ends the channel.
    fn accept(&mut self) -> io::Result<OwnedFd>;

    /// Makes the local end of a connection that the peer has opened.
    ///
    /// # Errors
    /// The connection is refused.
    fn connect(&mut self) -> io::Result<OwnedFd>;

    /// The channel begins anew, and all local ends have been closed.
    fn restarted(&mut self) {}
}

/// The local end of a connection.
struct Local {
    socket: OwnedFd,
    /// What the peer has sent and the socket did not accept yet.
    queue: VecDeque<u8>,
    /// The peer sends no more, so the socket is shut down after the queue.
    is_last: bool,
    /// The peer has closed the connection: nothing more is read from the socket.
    is_closed: bool,
    /// The socket was shut down.
    is_shut: bool,
    /// Nobody reads the socket. What the peer sends is discarded.
    is_deaf: bool,
}

/// One side of a channel.
pub struct Multiplexer<E> {
    side: Side,
    port: OwnedFd,
    ends: E,
    /// On the host: the socket on which the owner freezes the channel.
    control: Option<UnixStream>,
    decoder: Decoder,
    connections: Connections,
    locals: BTreeMap<u32, Local>,
    /// The sum of all queues of `locals`, in bytes, and how much that may be.
    kept: usize,
    max_kept: usize,
    /// Frames that have not been sent, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    is_frozen: bool,
    /// On the host: how many answers to [`Frame::Freeze`] are under way. Its owner may have thawed the channel meanwhile.
    unanswered: u32,
    /// Frames that wait for the end of the freeze.
    deferred: Vec<u8>,
}

/// What is polled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Port,
    Control,
    Accepting,
    Local(u32),
}

impl<E: Ends> Multiplexer<E> {
    /// A side of a channel on `port`, a character device or a socket, which does not block from now on.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn new(side: Side, port: OwnedFd, ends: E, control: Option<UnixStream>) -> io::Result<Self> {
        set_nonblocking(&port)?;
        Ok(Self {
            side,
            port,
            ends,
            control,
            decoder: Decoder::default(),
            connections: Connections::new(side),
            locals: BTreeMap::new(),
            kept: 0,
            // The guest trusts the host, which may have many callers.
            max_kept: if side == Side::Host { MAX_KEPT } else { usize::MAX },
            out: Vec::new(),
            sent: 0,
            is_frozen: false,
            unanswered: 0,
            deferred: Vec::new(),
        })
    }

    /// Moves bytes until the port or the control socket is at its end.
    ///
    /// # Errors
    /// Those of poll(2), read(2) and write(2), and [`io::ErrorKind::InvalidData`] for a peer that violates the protocol.
    pub fn run(&mut self) -> io::Result<()> {
        let mut block = vec![0; BLOCK];
        loop {
            self.flush()?;
            for (source, flags) in self.wait()? {
                let is_open = match source {
                    Source::Port if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) => {
                        self.read_port(&mut block)?
                    }
                    Source::Port => true,
                    Source::Control => self.read_control()?,
                    Source::Accepting => {
                        self.accept()?;
                        true
                    }
                    Source::Local(connection) => {
                        self.serve(connection, flags);
                        true
                    }
                };
                if !is_open {
                    return Ok(());
                }
            }
        }
    }

    fn queued(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Waits for events. A connection that can move nothing is not polled, because its end would be reported again and again.
    fn wait(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let may_send = !self.is_frozen && self.queued() < MAX_QUEUED;
        let out = if self.queued() > 0 { PollFlags::OUT } else { PollFlags::empty() };
        let mut polled = vec![(Source::Port, self.port.as_fd(), PollFlags::IN | out)];
        polled.extend(self.control.as_ref().map(|control| (Source::Control, control.as_fd(), PollFlags::IN)));
        if may_send && self.connections.has_room() {
            polled.push((Source::Accepting, self.ends.accepting(), PollFlags::IN));
        }
        for (&connection, local) in &self.locals {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, may_send && !local.is_closed && self.connections.credit(connection) > 0);
            flags.set(PollFlags::OUT, !local.queue.is_empty());
            // Without an event to wait for, only the end of the socket is reported, which matters once this side sends no more.
            let is_watched = may_send && !local.is_closed && !self.connections.is_open(connection);
            if !flags.is_empty() || is_watched {
                polled.push((Source::Local(connection), local.socket.as_fd(), flags));
            }
        }
        let mut fds: Vec<_> = polled.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        match poll(&mut fds, None) {
            Err(Errno::INTR) => return Ok(Vec::new()),
            other => other?,
        };
        let events = polled.iter().zip(&fds).map(|((source, ..), fd)| (*source, fd.revents()));
        Ok(events.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    /// Sends as much as the port accepts now.
    fn flush(&mut self) -> io::Result<()> {
        while self.queued() > 0 {
            match rustix::io::write(&self.port, &self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if self.queued() == 0 {
            self.out.clear();
            self.sent = 0;
        } else if self.sent >= MAX_QUEUED {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        if self.queued() + self.deferred.len() > MAX_UNSENT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the peer sends and does not read"));
        }
        Ok(())
    }

    /// Reads what has arrived on the port. False at its end.
    fn read_port(&mut self, block: &mut [u8]) -> io::Result<bool> {
        let count = match rustix::io::read(&self.port, &mut *block) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(true),
            Err(Errno::CONNRESET) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let mut bytes = &block[..count];
        while let Some(piece) = self.decoder.next(&mut bytes).map_err(invalid)? {
            match self.connections.take(&piece).map_err(invalid)? {
                Taken::Valid => self.handle(piece)?,
                Taken::Stale => {}
                Taken::Refused => {
                    if let Piece::Frame(Frame::Open(connection)) = piece {
                        self.put(Frame::Close(connection));
                    }
                }
            }
        }
        Ok(true)
    }

    fn handle(&mut self, piece: Piece<'_>) -> io::Result<()> {
        match piece {
            Piece::Data(connection, bytes) => self.deliver(connection, bytes),
            Piece::Frame(Frame::Open(connection)) => match self.ends.connect() {
                Ok(socket) => self.add(connection, socket)?,
                Err(_) => self.close(connection),
            },
            Piece::Frame(Frame::Credit(..)) => {}
            Piece::Frame(Frame::End(connection)) => {
                if let Some(local) = self.locals.get_mut(&connection) {
                    local.is_last = true;
                    self.settle(connection);
                }
            }
            Piece::Frame(Frame::Close(connection)) => {
                if let Some(local) = self.locals.get_mut(&connection) {
                    (local.is_last, local.is_closed) = (true, true);
                    self.settle(connection);
                }
            }
            Piece::Frame(frame) => return self.handle_channel(frame),
        }
        Ok(())
    }

    /// A frame about the channel itself.
    fn handle_channel(&mut self, frame: Frame) -> io::Result<()> {
        match (self.side, frame) {
            (Side::Guest, Frame::Freeze) => {
                self.put(Frame::Frozen);
                self.is_frozen = true;
            }
            (Side::Guest, Frame::Thaw) => self.thaw(),
            (Side::Guest, Frame::Restart) => {
                self.deferred.clear();
                self.thaw();
                self.locals.clear();
                self.kept = 0;
                self.connections = Connections::new(self.side);
                self.ends.restarted();
            }
            (Side::Host, Frame::Frozen) if self.unanswered > 0 => {
                self.unanswered -= 1;
                if let Some(control) = self.control.as_ref().filter(|_| self.is_frozen && self.unanswered == 0) {
                    rustix::io::write(control, &[FROZEN])?;
                }
            }
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that only the host may send")),
        }
        Ok(())
    }

    /// Reads what the owner wants. False if it is gone.
    fn read_control(&mut self) -> io::Result<bool> {
        let Some(control) = &self.control else { return Ok(true) };
        let mut wanted = [0];
        if rustix::io::read(control, &mut wanted)? == 0 {
            return Ok(false);
        }
        match wanted[0] {
            FREEZE => {
                self.put(Frame::Freeze);
                self.unanswered = self.unanswered.saturating_add(1);
                self.is_frozen = true;
            }
            THAW => {
                Frame::Thaw.put(&mut self.out);
                self.thaw();
            }
            _ => self.put(Frame::Restart),
        }
        Ok(true)
    }

    /// Queues a frame.
    fn put(&mut self, frame: Frame) {
        frame.put(if self.is_frozen { &mut self.deferred } else { &mut self.out });
    }

    fn thaw(&mut self) {
        self.is_frozen = false;
        self.out.append(&mut self.deferred);
    }

    /// Opens a connection for a local end that waits.
    fn accept(&mut self) -> io::Result<()> {
        let socket = match self.ends.accept() {
            Ok(socket) => socket,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if let Some(connection) = self.connections.open() {
            self.put(Frame::Open(connection));
            self.add(connection, socket)?;
            // The caller has mostly sent its first frames already.
            self.serve(connection, PollFlags::IN);
        }
        Ok(())
    }

    fn add(&mut self, connection: u32, socket: OwnedFd) -> io::Result<()> {
        set_nonblocking(&socket)?;
        let queue = VecDeque::new();
        let local = Local { socket, queue, is_last: false, is_closed: false, is_shut: false, is_deaf: false };
        // The peer may use the number of a connection that it has closed, while the old local end has not read everything.
        if let Some(old) = self.locals.insert(connection, local) {
            end(&old.socket);
            self.kept -= old.queue.len();
        }
        Ok(())
    }

    /// Passes on what a connection can move.
    fn serve(&mut self, connection: u32, flags: PollFlags) {
        self.write_local(connection);
        self.settle(connection);
        let Some(local) = self.locals.get(&connection).filter(|local| !local.is_closed) else { return };
        if !self.connections.is_open(connection) {
            // Nobody has the other end of the socket any more.
            if flags.intersects(PollFlags::HUP | PollFlags::ERR) {
                self.close(connection);
            }
            return;
        }
        let room = (self.connections.credit(connection) as usize).min(MAX_DATA);
        if room == 0 || self.is_frozen || self.queued() >= MAX_QUEUED {
            return;
        }
        let (start, data) = (self.out.len(), self.out.len() + HEADER);
        self.out.resize(data + room, 0);
        let read = rustix::io::read(&local.socket, &mut self.out[data..]);
        if let Ok(count @ 1..) = read {
            self.out[start..data].copy_from_slice(&data_header(connection, count));
            self.out.truncate(data + count);
            self.connections.sent(connection, count);
            return;
        }
        self.out.truncate(start);
        match read {
            Err(Errno::AGAIN | Errno::INTR) => {}
            _ if local.is_deaf => self.close(connection),
            _ => {
                self.put(Frame::End(connection));
                self.connections.end(connection);
                self.settle(connection);
            }
        }
    }

    /// Passes data of the peer on, or queues it.
    fn deliver(&mut self, connection: u32, bytes: &[u8]) {
        let Some(local) = self.locals.get_mut(&connection) else { return };
        let is_idle = local.queue.is_empty();
        let written = if local.is_deaf {
            bytes.len()
        } else {
            // An error will occur again when the queue is written.
            let written = if is_idle { send(&local.socket, bytes, SendFlags::NOSIGNAL).unwrap_or(0) } else { 0 };
            local.queue.extend(&bytes[written..]);
            self.kept += bytes.len() - written;
            written
        };
        self.grant(connection, written);
        while self.kept > self.max_kept {
            self.close_fullest();
        }
    }

    /// Closes the connection for which most is kept.
    fn close_fullest(&mut self) {
        let fullest = self.locals.iter().max_by_key(|(_, local)| local.queue.len());
        if let Some((&connection, _)) = fullest {
            self.close(connection);
        }
    }

    /// Writes the queue of a connection to its local end.
    fn write_local(&mut self, connection: u32) {
        let Some(local) = self.locals.get_mut(&connection).filter(|local| !local.queue.is_empty()) else { return };
        let mut written = 0;
        while !local.queue.is_empty() {
            match send(&local.socket, local.queue.as_slices().0, SendFlags::NOSIGNAL) {
                Ok(count) => {
                    local.queue.drain(..count);
                    written += count;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    local.is_deaf = true;
                    written += local.queue.len();
                    local.queue.clear();
                }
            }
        }
        if local.queue.is_empty() {
            // Its memory, too.
            local.queue = VecDeque::new();
        }
        self.kept -= written;
        self.grant(connection, written);
    }

    fn grant(&mut self, connection: u32, bytes: usize) {
        if let Some(granted) = self.connections.passed_on(connection, bytes) {
            self.put(Frame::Credit(connection, granted));
        }
    }

    /// Ends what is over: the direction to a local end that has got everything, and the local end itself.
    fn settle(&mut self, connection: u32) {
        let Some(local) = self.locals.get_mut(&connection) else { return };
        if !local.is_last || !local.queue.is_empty() {
            return;
        }
        if local.is_closed || !self.connections.is_open(connection) {
            end(&local.socket);
            self.locals.remove(&connection);
        } else if !std::mem::replace(&mut local.is_shut, true) {
            // It fails if nobody has the other end, which the next read reports.
            let _ = shutdown(&local.socket, Shutdown::Write);
        }
    }

    /// Closes a connection in both directions.
    fn close(&mut self, connection: u32) {
        if self.connections.close(connection) {
            self.put(Frame::Close(connection));
        }
        if let Some(local) = self.locals.remove(&connection) {
            end(&local.socket);
            self.kept -= local.queue.len();
        }
    }
}

/// Ends a socket, so that its other end reads what was sent and then the end. If it is closed while it holds bytes that nobody has read, the
/// other end gets ECONNRESET instead (`unix_release_sock` of the kernel).
fn end(socket: &OwnedFd) {
    // From here on no byte comes.
    let _ = shutdown(socket, Shutdown::Both);
    let mut block = [0; 4096];
    while let Ok((1.., _)) = recv(socket, &mut block, RecvFlags::DONTWAIT) {}
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests;
