//! The loop that moves bytes between a channel and the local end of each connection, which is a stream socket.

mod local;
mod port;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::connections::{Connections, Side, Taken};
use super::frame::{Decoder, Frame, HEADER, MAX_DATA, Piece, data_header};
use local::{Local, Read};
use port::Port;

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
/// all connections. Callers read what arrives, and grant credit of their own above the channel's. So only many stopped callers can reach
/// the limit.
const MAX_KEPT: usize = 64 << 20;
/// How much is read from the port at a time, in bytes.
const BLOCK: usize = 64 << 10;
/// How many frames a connection sends in a turn.
const TURN: usize = 4;
/// How many events are taken at a time.
const MAX_EVENTS: usize = 64;
/// The data of events that are not about a connection.
const PORT: u64 = 1 << 32;
const CONTROL: u64 = 2 << 32;
const ACCEPTING: u64 = 3 << 32;

/// Where the connections of a channel end on this side.
pub trait Ends {
    /// Readable when [`Self::accept`] may have a connection.
    fn accepting(&self) -> BorrowedFd<'_>;

    /// Takes a waiting connection that this side opens. It does not block. [`io::ErrorKind::WouldBlock`] if none waits.
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

    /// Whether the loop should call [`Self::drained`]. An event of [`Self::accepting`] makes it check.
    fn awaits_drained(&self) -> bool {
        false
    }

    /// Called when all data of the local ends, up to the peer's credit, is written to the port.
    fn drained(&mut self) {}
}

/// One side of a channel.
pub struct Multiplexer<E> {
    side: Side,
    port: Port,
    /// An epoll descriptor for the port, the control socket, new connections and local ends.
    events: OwnedFd,
    /// Whether `events` reports that the port accepts more.
    awaits_port: bool,
    ends: E,
    /// On the host: the socket on which the owner freezes the channel.
    control: Option<UnixStream>,
    decoder: Decoder,
    connections: Connections,
    locals: BTreeMap<u32, Local>,
    /// The connections that were added since the last epoll_wait(2). Its events are about earlier connections with these numbers.
    added: BTreeSet<u32>,
    /// The connections that may have something to send, in the order of their turns.
    waiting: VecDeque<u32>,
    /// A connection may wait to be accepted.
    may_accept: bool,
    /// The sum of all queues of `locals`, in bytes, and how much that may be.
    kept: usize,
    max_kept: usize,
    /// The buffer for a frame of data.
    frame: Vec<u8>,
    is_frozen: bool,
    /// On the host: how many answers to [`Frame::Freeze`] are under way. Its owner may have thawed the channel meanwhile.
    unanswered: u32,
    /// Frames that wait for the end of the freeze.
    deferred: Vec<u8>,
}

impl<E: Ends> Multiplexer<E> {
    /// A side of a channel on `port`, a character device or a socket, which does not block from now on.
    ///
    /// # Errors
    /// Those of fcntl(2) and epoll(7).
    pub fn new(side: Side, port: OwnedFd, ends: E, control: Option<UnixStream>) -> io::Result<Self> {
        let port = Port::new(port)?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let add = |fd: BorrowedFd<'_>, data, flags| epoll::add(&events, fd, epoll::EventData::new_u64(data), flags);
        add(port.as_fd(), PORT, epoll::EventFlags::IN)?;
        if let Some(control) = &control {
            add(control.as_fd(), CONTROL, epoll::EventFlags::IN)?;
        }
        add(ends.accepting(), ACCEPTING, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        Ok(Self {
            side,
            port,
            events,
            awaits_port: false,
            ends,
            control,
            decoder: Decoder::default(),
            connections: Connections::new(side),
            locals: BTreeMap::new(),
            added: BTreeSet::new(),
            waiting: VecDeque::new(),
            may_accept: false,
            kept: 0,
            // The guest trusts the host, which may have many callers.
            max_kept: if side == Side::Host { MAX_KEPT } else { usize::MAX },
            frame: vec![0; HEADER + MAX_DATA],
            is_frozen: false,
            unanswered: 0,
            deferred: Vec::new(),
        })
    }

    /// Moves bytes until the port or the control socket is at its end.
    ///
    /// # Errors
    /// Those of epoll(7), read(2) and write(2), and [`io::ErrorKind::InvalidData`] for a peer that violates the protocol.
    pub fn run(&mut self) -> io::Result<()> {
        let (mut block, mut events) = (vec![0; BLOCK], Vec::with_capacity(MAX_EVENTS));
        loop {
            self.flush()?;
            events.clear();
            self.added.clear();
            let may_be_drained = self.waiting.is_empty() && self.port.queued() == 0 && self.ends.awaits_drained();
            // If there is work to do, this does not wait for events.
            let timeout = (may_be_drained || self.has_work()).then(Timespec::default);
            match epoll::wait(&self.events, spare_capacity(&mut events), timeout.as_ref()) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            if may_be_drained && events.is_empty() {
                self.ends.drained();
            }
            for event in &events {
                let (flags, data): (epoll::EventFlags, _) = (event.flags, event.data);
                let is_open = match data.u64() {
                    PORT if flags.difference(epoll::EventFlags::OUT).is_empty() => true,
                    PORT => self.read_port(&mut block)?,
                    CONTROL => self.read_control()?,
                    ACCEPTING => {
                        self.may_accept = true;
                        true
                    }
                    connection => {
                        self.note(u32::try_from(connection).unwrap_or_default(), flags)?;
                        true
                    }
                };
                if !is_open {
                    return Ok(());
                }
            }
            self.accept()?;
            self.take_turns()?;
        }
    }

    /// Whether more may be sent now.
    fn may_send(&self) -> bool {
        !self.is_frozen && self.port.queued() < MAX_QUEUED
    }

    fn has_work(&self) -> bool {
        self.may_send() && (!self.waiting.is_empty() || self.may_accept && self.connections.has_room())
    }

    /// Sends as much as the port accepts now.
    fn flush(&mut self) -> io::Result<()> {
        self.port.flush()?;
        let awaits_port = self.port.queued() > 0;
        if std::mem::replace(&mut self.awaits_port, awaits_port) != awaits_port {
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, awaits_port);
            epoll::modify(&self.events, &self.port, epoll::EventData::new_u64(PORT), flags)?;
        }
        if self.port.queued() + self.deferred.len() > MAX_UNSENT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the peer sends and does not read"));
        }
        Ok(())
    }

    /// Reads what has arrived on the port. False at its end.
    fn read_port(&mut self, block: &mut [u8]) -> io::Result<bool> {
        let Some(count) = self.port.read(block)? else { return Ok(false) };
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
            Piece::Data(connection, bytes) => self.deliver(connection, bytes)?,
            Piece::Frame(Frame::Open(connection)) => match self.ends.connect() {
                Ok(socket) => self.add(connection, socket)?,
                Err(_) => self.close(connection),
            },
            Piece::Frame(Frame::Credit(connection, _)) => self.line_up(connection),
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
                self.waiting.clear();
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
                self.port.put(Frame::Thaw);
                self.thaw();
            }
            _ => self.put(Frame::Restart),
        }
        Ok(true)
    }

    /// Queues a frame.
    fn put(&mut self, frame: Frame) {
        if self.is_frozen { frame.put(&mut self.deferred) } else { self.port.put(frame) }
    }

    fn thaw(&mut self) {
        self.is_frozen = false;
        self.port.append(&mut self.deferred);
    }

    /// Opens connections for local ends that wait.
    fn accept(&mut self) -> io::Result<()> {
        while self.may_accept && self.may_send() && self.connections.has_room() {
            match self.ends.accept() {
                Ok(socket) => {
                    if let Some(connection) = self.connections.open() {
                        self.put(Frame::Open(connection));
                        self.add(connection, socket)?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.may_accept = false,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn add(&mut self, connection: u32, socket: OwnedFd) -> io::Result<()> {
        epoll::add(&self.events, &socket, epoll::EventData::new_u64(connection.into()), local::EVENTS)?;
        // The peer may use the number of a connection that it has closed, while the old local end has not read everything.
        if let Some(old) = self.locals.insert(connection, Local::new(socket)) {
            self.kept -= old.queue.len();
            old.end();
        }
        self.added.insert(connection);
        self.line_up(connection);
        Ok(())
    }

    /// Records the events of a local end.
    fn note(&mut self, connection: u32, flags: epoll::EventFlags) -> io::Result<()> {
        if self.added.contains(&connection) {
            return Ok(());
        }
        let Some(local) = self.locals.get_mut(&connection) else { return Ok(()) };
        local.note(flags);
        if !local.queue.is_empty() {
            let written = local.write_queue();
            self.kept -= written;
            self.watch(connection)?;
            self.grant(connection, written);
            self.settle(connection);
        }
        self.line_up(connection);
        Ok(())
    }

    /// Queues a connection for a turn if it may have something to send.
    fn line_up(&mut self, connection: u32) {
        let Some(local) = self.locals.get_mut(&connection) else { return };
        if local.is_readable && !local.is_closed && !local.is_waiting {
            local.is_waiting = true;
            self.waiting.push_back(connection);
        }
    }

    /// Sends data of the queued connections, one turn each.
    fn take_turns(&mut self) -> io::Result<()> {
        for _ in 0..self.waiting.len() {
            if !self.may_send() {
                break;
            }
            let Some(connection) = self.waiting.pop_front() else { break };
            if let Some(local) = self.locals.get_mut(&connection) {
                local.is_waiting = false;
            }
            for _ in 0..TURN {
                if !self.serve(connection)? {
                    break;
                }
            }
            let has_credit = self.connections.credit(connection) > 0;
            if has_credit || !self.connections.is_open(connection) {
                self.line_up(connection);
            }
        }
        Ok(())
    }

    /// Sends a frame of what a connection has. Returns whether there may be more that can be sent now.
    fn serve(&mut self, connection: u32) -> io::Result<bool> {
        let may_send = self.may_send();
        let Some(local) = self.locals.get_mut(&connection).filter(|local| !local.is_closed) else { return Ok(false) };
        if !self.connections.is_open(connection) {
            local.is_readable = false;
            if local.is_abandoned {
                self.close(connection);
            }
            return Ok(false);
        }
        let room = (self.connections.credit(connection) as usize).min(MAX_DATA);
        if room == 0 || !may_send {
            return Ok(false);
        }
        match local.read(&mut self.frame[HEADER..HEADER + room]) {
            Read::Bytes(count) => {
                let has_more = local.is_readable;
                self.frame[..HEADER].copy_from_slice(&data_header(connection, count));
                self.connections.sent(connection, count);
                self.port.send(&self.frame[..HEADER + count])?;
                return Ok(has_more);
            }
            Read::Nothing => return Ok(local.is_readable),
            Read::End if local.is_deaf || local.is_abandoned => self.close(connection),
            Read::End => {
                local.is_readable = false;
                self.put(Frame::End(connection));
                self.connections.end(connection);
                self.settle(connection);
            }
        }
        Ok(false)
    }

    /// Passes data of the peer on, or queues it.
    fn deliver(&mut self, connection: u32, bytes: &[u8]) -> io::Result<()> {
        let Some(local) = self.locals.get_mut(&connection) else { return Ok(()) };
        let written = local.deliver(bytes);
        self.kept += bytes.len() - written;
        self.watch(connection)?;
        self.grant(connection, written);
        while self.kept > self.max_kept {
            self.close_fullest();
        }
        Ok(())
    }

    /// Watches a local end for room while data is queued for it.
    fn watch(&mut self, connection: u32) -> io::Result<()> {
        let Some(local) = self.locals.get_mut(&connection) else { return Ok(()) };
        let awaits_room = !local.queue.is_empty();
        if std::mem::replace(&mut local.awaits_room, awaits_room) != awaits_room {
            let mut flags = local::EVENTS;
            flags.set(epoll::EventFlags::OUT, awaits_room);
            epoll::modify(&self.events, &*local, epoll::EventData::new_u64(connection.into()), flags)?;
        }
        Ok(())
    }

    /// Closes the connection for which most is kept.
    fn close_fullest(&mut self) {
        let fullest = self.locals.iter().max_by_key(|(_, local)| local.queue.len());
        if let Some((&connection, _)) = fullest {
            self.close(connection);
        }
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
        if !local.is_closed && self.connections.is_open(connection) {
            local.shut();
        } else if let Some(local) = self.locals.remove(&connection) {
            local.end();
        }
    }

    /// Closes a connection in both directions.
    fn close(&mut self, connection: u32) {
        if self.connections.close(connection) {
            self.put(Frame::Close(connection));
        }
        if let Some(local) = self.locals.remove(&connection) {
            self.kept -= local.queue.len();
            local.end();
        }
    }
}

#[cfg(test)]
mod tests;
