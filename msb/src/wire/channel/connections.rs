//! The connections of a channel: which there are, and how much may be sent on each.

use std::collections::BTreeMap;

use super::frame::{Error, Frame, Piece};

/// How many bytes may be under way on a connection, in each direction.
pub const WINDOW: u32 = 1 << 20;
/// The most connections at a time. A side refuses more.
pub const MAX_CONNECTIONS: usize = 4096;

/// The side of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It opens connections with even numbers.
    Host,
    /// It opens connections with odd numbers.
    Guest,
}

/// One connection.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// How many bytes this side may send.
    credit: u32,
    /// How many bytes the peer may send.
    granted: u32,
    /// How many bytes were passed on and are not granted again yet.
    owed: u32,
    has_ended: bool,
    has_peer_ended: bool,
}

/// What a frame of the peer means for this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is to be acted on.
    Valid,
    /// It is for a connection that this side has closed, and is to be ignored.
    Stale,
    /// It opens a connection for which there is no room. The answer is [`Frame::Close`].
    Refused,
}

/// All connections, as one side of the channel sees them.
#[derive(Debug)]
pub struct Connections {
    side: Side,
    /// The number of the connection that is opened next.
    next: u32,
    flows: BTreeMap<u32, Flow>,
}

impl Connections {
    /// No connections yet.
    pub fn new(side: Side) -> Self {
        let next = match side {
            Side::Host => 2,
            Side::Guest => 1,
        };
        Self { side, next, flows: BTreeMap::new() }
    }

    /// Whether another connection can be opened.
    pub fn has_room(&self) -> bool {
        self.flows.len() < MAX_CONNECTIONS
    }

    /// Opens a connection, if there is room. [`Frame::Open`] with its number is to be sent.
    pub fn open(&mut self) -> Option<u32> {
        if !self.has_room() {
            return None;
        }
        // After all numbers have been used they begin again.
        while self.flows.contains_key(&self.next) || self.next == 0 {
            self.next = self.next.wrapping_add(2);
        }
        let number = self.next;
        self.next = number.wrapping_add(2);
        self.flows.insert(number, Flow::new());
        Some(number)
    }

    /// How many bytes may be sent on a connection now.
    pub fn credit(&self, connection: u32) -> u32 {
        self.flows.get(&connection).filter(|flow| !flow.has_ended).map_or(0, |flow| flow.credit)
    }

    /// Whether this side may still send on a connection, now or later.
    pub fn is_open(&self, connection: u32) -> bool {
        self.flows.get(&connection).is_some_and(|flow| !flow.has_ended)
    }

    /// Notes that data was sent, at most [`Self::credit`] bytes.
    pub fn sent(&mut self, connection: u32, bytes: usize) {
        if let Some(flow) = self.flows.get_mut(&connection) {
            flow.credit = flow.credit.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
    }

    /// Notes that received data was passed on. Returns the credit to grant now, if a batch is complete.
    pub fn passed_on(&mut self, connection: u32, bytes: usize) -> Option<u32> {
        let flow = self.flows.get_mut(&connection).filter(|flow| !flow.has_peer_ended)?;
        flow.owed = flow.owed.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if flow.owed < WINDOW / 4 {
            return None;
        }
        flow.granted += flow.owed;
        Some(std::mem::take(&mut flow.owed))
    }

    /// Notes that [`Frame::End`] was sent. A connection that both sides have ended is gone.
    pub fn end(&mut self, connection: u32) {
        if let Some(flow) = self.flows.get_mut(&connection) {
            flow.has_ended = true;
            self.remove_ended(connection);
        }
    }

    /// Notes that [`Frame::Close`] was sent. Returns whether the connection was still there, else nothing need be sent.
    pub fn close(&mut self, connection: u32) -> bool {
        self.flows.remove(&connection).is_some()
    }

    /// Checks the next piece from the peer.
    ///
    /// # Errors
    /// The peer violates the protocol.
    pub fn take(&mut self, piece: &Piece<'_>) -> Result<Taken, Error> {
        let (connection, frame) = match *piece {
            Piece::Frame(Frame::Freeze | Frame::Frozen | Frame::Thaw | Frame::Restart) => return Ok(Taken::Valid),
            Piece::Data(connection, bytes) => (connection, Err(bytes.len())),
            Piece::Frame(
                frame @ (Frame::Open(connection)
                | Frame::Credit(connection, _)
                | Frame::End(connection)
                | Frame::Close(connection)),
            ) => (connection, Ok(frame)),
        };
        let out_of_turn = |why| Err(Error::OutOfTurn(connection, why));
        if let Ok(Frame::Open(_)) = frame {
            return match self.flows.contains_key(&connection) {
                _ if !self.is_of_peer(connection) => out_of_turn("it has a number of the other side"),
                true => out_of_turn("it was opened twice"),
                false if !self.has_room() => Ok(Taken::Refused),
                false => {
                    self.flows.insert(connection, Flow::new());
                    Ok(Taken::Valid)
                }
            };
        }
        let Some(flow) = self.flows.get_mut(&connection) else { return Ok(Taken::Stale) };
        match frame {
            Err(_) | Ok(Frame::End(_)) if flow.has_peer_ended => return out_of_turn("it goes on after its end"),
            Err(bytes) => match flow.granted.checked_sub(u32::try_from(bytes).unwrap_or(u32::MAX)) {
                Some(left) => flow.granted = left,
                None => return out_of_turn("more data than its credit"),
            },
            Ok(Frame::Credit(_, bytes)) => match flow.credit.checked_add(bytes) {
                Some(credit @ ..=WINDOW) => flow.credit = credit,
                _ => return out_of_turn("more credit than the window"),
            },
            Ok(Frame::End(_)) => {
                flow.has_peer_ended = true;
                self.remove_ended(connection);
            }
            Ok(_) => drop(self.flows.remove(&connection)),
        }
        Ok(Taken::Valid)
    }

    fn is_of_peer(&self, connection: u32) -> bool {
        connection.is_multiple_of(2) == (self.side == Side::Guest)
    }

    fn remove_ended(&mut self, connection: u32) {
        if self.flows.get(&connection).is_some_and(|flow| flow.has_ended && flow.has_peer_ended) {
            self.flows.remove(&connection);
        }
    }
}

impl Flow {
    fn new() -> Self {
        Self { credit: WINDOW, granted: WINDOW, owed: 0, has_ended: false, has_peer_ended: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(connections: &mut Connections, frame: Frame) -> Result<Taken, Error> {
        connections.take(&Piece::Frame(frame))
    }

    #[test]
    fn each_side_opens_its_own_numbers() {
        let (mut host, mut guest) = (Connections::new(Side::Host), Connections::new(Side::Guest));
        assert_eq!([host.open(), host.open(), guest.open(), guest.open()], [Some(2), Some(4), Some(1), Some(3)]);
        assert_eq!(take(&mut guest, Frame::Open(2)), Ok(Taken::Valid));
        assert_eq!(take(&mut host, Frame::Open(1)), Ok(Taken::Valid));
        for number in [2, 5] {
            assert!(take(&mut guest, Frame::Open(number)).is_err(), "{number}");
        }
        for number in [1, 6] {
            assert!(take(&mut host, Frame::Open(number)).is_err(), "{number}");
        }
        host.next = u32::MAX - 1;
        assert_eq!([host.open(), host.open()], [Some(u32::MAX - 1), Some(6)], "0, 2 and 4 are taken");
    }

    #[test]
    fn data_is_limited_by_credit_and_ends_once() {
        let mut host = Connections::new(Side::Host);
        let number = host.open().unwrap();
        let window = vec![0; WINDOW as usize];
        assert_eq!(host.take(&Piece::Data(number, &window)), Ok(Taken::Valid));
        assert!(host.take(&Piece::Data(number, b"x")).is_err());
        assert_eq!(host.passed_on(number, WINDOW as usize / 4 - 1), None);
        assert_eq!(host.passed_on(number, 1), Some(WINDOW / 4));
        assert_eq!(host.take(&Piece::Data(number, &window[..WINDOW as usize / 4])), Ok(Taken::Valid));
        assert!(host.take(&Piece::Data(number, b"x")).is_err());
        assert_eq!(take(&mut host, Frame::End(number)), Ok(Taken::Valid));
        assert_eq!(host.passed_on(number, WINDOW as usize), None, "the peer sends no more");
        assert!(take(&mut host, Frame::End(number)).is_err());
        assert!(host.take(&Piece::Data(number, b"x")).is_err());
    }

    #[test]
    fn credit_is_at_most_the_window() {
        let mut host = Connections::new(Side::Host);
        let number = host.open().unwrap();
        assert_eq!(host.credit(number), WINDOW);
        assert!(take(&mut host, Frame::Credit(number, 1)).is_err());
        host.sent(number, 10);
        assert_eq!(host.credit(number), WINDOW - 10);
        assert!(take(&mut host, Frame::Credit(number, 11)).is_err());
        assert!(take(&mut host, Frame::Credit(number, u32::MAX)).is_err());
        assert_eq!(take(&mut host, Frame::Credit(number, 10)), Ok(Taken::Valid));
        assert_eq!(host.credit(number), WINDOW);
        host.end(number);
        assert_eq!((host.credit(number), host.is_open(number)), (0, false));
    }

    #[test]
    fn a_connection_is_gone_when_both_sides_have_ended_it_or_one_has_closed_it() {
        let mut host = Connections::new(Side::Host);
        let (first, second, third) = (host.open().unwrap(), host.open().unwrap(), host.open().unwrap());
        host.end(first);
        assert_eq!(take(&mut host, Frame::End(first)), Ok(Taken::Valid));
        assert_eq!(take(&mut host, Frame::End(second)), Ok(Taken::Valid));
        assert!(host.is_open(second));
        host.end(second);
        assert!(host.close(third) && !host.close(third));
        for number in [first, second, third] {
            assert!(!host.is_open(number));
            assert_eq!(take(&mut host, Frame::Credit(number, 1)), Ok(Taken::Stale));
            assert_eq!(take(&mut host, Frame::Close(number)), Ok(Taken::Stale));
            assert_eq!(host.take(&Piece::Data(number, b"x")), Ok(Taken::Stale));
        }
        let fourth = host.open().unwrap();
        assert_eq!(take(&mut host, Frame::Close(fourth)), Ok(Taken::Valid));
        assert!(!host.is_open(fourth));
    }

    #[test]
    fn there_is_room_for_so_many() {
        let mut guest = Connections::new(Side::Guest);
        for number in 1..=u32::try_from(MAX_CONNECTIONS).unwrap() {
            assert_eq!(take(&mut guest, Frame::Open(2 * number)), Ok(Taken::Valid));
        }
        assert_eq!(take(&mut guest, Frame::Open(1 << 20)), Ok(Taken::Refused));
        assert_eq!((guest.has_room(), guest.open()), (false, None));
        assert_eq!(take(&mut guest, Frame::Close(2)), Ok(Taken::Valid));
        assert_eq!(guest.open(), Some(1));
    }
}
