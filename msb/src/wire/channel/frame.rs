//! The frames of a channel.

/// The length of a frame's header, in bytes.
pub const HEADER: usize = 8;
/// The maximum number of bytes in a data frame. With its header, that is as much as the guest's kernel takes in one write to a port.
pub const MAX_DATA: usize = (32 << 10) - HEADER;

const OPEN: u8 = 1;
const DATA: u8 = 2;
const CREDIT: u8 = 3;
const END: u8 = 4;
const CLOSE: u8 = 5;
const FREEZE: u8 = 6;
const FROZEN: u8 = 7;
const THAW: u8 = 8;
const RESTART: u8 = 9;

/// How the peer violates the protocol. The channel cannot continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A header that no frame has.
    #[error("a frame of kind {kind} with {length} bytes for connection {connection}")]
    BadFrame {
        /// The frame's kind.
        kind: u8,
        /// The length of its payload.
        length: usize,
        /// The connection's number.
        connection: u32,
    },
    /// A frame that may not be sent at this point.
    #[error("connection {0}: {1}")]
    OutOfTurn(u32, &'static str),
}

/// A frame other than data. The number is that of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A new connection.
    Open(u32),
    /// The receiver accepts so many more bytes.
    Credit(u32, u32),
    /// The sender sends no more data.
    End(u32),
    /// The sender sends nothing more, and discards what arrives.
    Close(u32),
    /// The host sends nothing until [`Frame::Thaw`], and the guest answers with [`Frame::Frozen`].
    Freeze,
    /// The guest sends nothing until [`Frame::Thaw`] or [`Frame::Restart`].
    Frozen,
    /// Both sides go on.
    Thaw,
    /// The channel begins anew: there are no connections.
    Restart,
}

/// What a [`Decoder`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes of a connection: the part of a frame that has arrived. Never empty.
    Data(u32, &'a [u8]),
    /// A whole frame of another kind.
    Frame(Frame),
}

impl Frame {
    /// Appends the frame to `out`.
    pub fn put(self, out: &mut Vec<u8>) {
        let (kind, connection) = match self {
            Self::Open(number) => (OPEN, number),
            Self::Credit(number, _) => (CREDIT, number),
            Self::End(number) => (END, number),
            Self::Close(number) => (CLOSE, number),
            Self::Freeze => (FREEZE, 0),
            Self::Frozen => (FROZEN, 0),
            Self::Thaw => (THAW, 0),
            Self::Restart => (RESTART, 0),
        };
        match self {
            Self::Credit(_, bytes) => {
                out.extend_from_slice(&header(kind, 4, connection));
                out.extend_from_slice(&bytes.to_le_bytes());
            }
            _ => out.extend_from_slice(&header(kind, 0, connection)),
        }
    }
}

/// The header of a data frame with `length` bytes, at most [`MAX_DATA`].
pub fn data_header(connection: u32, length: usize) -> [u8; HEADER] {
    header(DATA, length, connection)
}

fn header(kind: u8, length: usize, connection: u32) -> [u8; HEADER] {
    let [a, b, c, _] = u32::try_from(length).expect("limits are far below 16 MiB").to_le_bytes();
    let [d, e, f, g] = connection.to_le_bytes();
    [a, b, c, kind, d, e, f, g]
}

/// Decodes frames from bytes that arrive in any pieces. Data is returned in place.
#[derive(Debug, Default)]
pub struct Decoder {
    /// A frame that is not complete: its header, and the payload of one with credit.
    partial: Vec<u8>,
    /// The connection whose data arrives, and how many bytes of it are missing.
    data: Option<(u32, usize)>,
}

impl Decoder {
    /// Decodes the next item and advances `bytes` past it. `None`: all bytes are consumed.
    ///
    /// # Errors
    /// A frame that does not exist.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Piece<'a>>, Error> {
        if self.data.is_none() {
            if !self.collect(HEADER, bytes) {
                return Ok(None);
            }
            let [a, b, c, kind, d, e, f, g] = *self.partial.first_chunk().expect("it is that long");
            let length = u32::from_le_bytes([a, b, c, 0]) as usize;
            let connection = u32::from_le_bytes([d, e, f, g]);
            let frame = match (kind, length, connection) {
                (DATA, 1..=MAX_DATA, 1..) => {
                    self.partial.clear();
                    self.data = Some((connection, length));
                    return self.next(bytes);
                }
                (CREDIT, 4, 1..) => {
                    if !self.collect(HEADER + length, bytes) {
                        return Ok(None);
                    }
                    let granted = self.partial.last_chunk().expect("it is that long");
                    Frame::Credit(connection, u32::from_le_bytes(*granted))
                }
                (OPEN, 0, 1..) => Frame::Open(connection),
                (END, 0, 1..) => Frame::End(connection),
                (CLOSE, 0, 1..) => Frame::Close(connection),
                (FREEZE, 0, 0) => Frame::Freeze,
                (FROZEN, 0, 0) => Frame::Frozen,
                (THAW, 0, 0) => Frame::Thaw,
                (RESTART, 0, 0) => Frame::Restart,
                _ => return Err(Error::BadFrame { kind, length, connection }),
            };
            self.partial.clear();
            return Ok(Some(Piece::Frame(frame)));
        }
        let Some((connection, left)) = self.data.filter(|_| !bytes.is_empty()) else { return Ok(None) };
        let piece = split_off(bytes, left);
        self.data = Some((connection, left - piece.len())).filter(|(_, left)| *left > 0);
        Ok(Some(Piece::Data(connection, piece)))
    }

    /// Buffers the current frame up to `length` bytes. Returns whether they have arrived.
    fn collect(&mut self, length: usize, bytes: &mut &[u8]) -> bool {
        let missing = length.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(split_off(bytes, missing));
        self.partial.len() >= length
    }
}

/// Returns the first bytes, at most `most`, and advances `bytes` past them.
fn split_off<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (first, others) = bytes.split_at(most.min(bytes.len()));
    *bytes = others;
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAMES: [Frame; 8] = [
        Frame::Open(1),
        Frame::Credit(u32::MAX, 0x0102_0304),
        Frame::End(2),
        Frame::Close(0x0102_0304),
        Frame::Freeze,
        Frame::Frozen,
        Frame::Thaw,
        Frame::Restart,
    ];

    #[test]
    fn frames_have_the_form_of_the_page() {
        let mut bytes = Vec::new();
        Frame::Credit(0x0102_0304, 5).put(&mut bytes);
        bytes.extend(data_header(2, 3));
        Frame::Thaw.put(&mut bytes);
        assert_eq!(bytes, b"\x04\0\0\x03\x04\x03\x02\x01\x05\0\0\0\x03\0\0\x02\x02\0\0\0\0\0\0\x08\0\0\0\0");
    }

    #[test]
    fn a_frame_that_does_not_exist_is_an_error() {
        for (kind, length, connection) in [
            (0, 0, 1),
            (10, 0, 1),
            (OPEN, 1, 1),
            (OPEN, 0, 0),
            (DATA, 0, 1),
            (DATA, MAX_DATA + 1, 1),
            (DATA, 0xff_ffff, 1),
            (DATA, 1, 0),
            (CREDIT, 3, 1),
            (CREDIT, 5, 1),
            (CREDIT, 4, 0),
            (END, 0, 0),
            (CLOSE, 0, 0),
            (FREEZE, 0, 1),
            (FROZEN, 1, 0),
            (THAW, 0, 1),
            (RESTART, 0, 1),
        ] {
            let mut bytes = &header(kind, length, connection)[..];
            assert_eq!(Decoder::default().next(&mut bytes), Err(Error::BadFrame { kind, length, connection }));
        }
    }

    proptest! {
        #[test]
        fn frames_are_decoded_from_any_pieces(data in prop::collection::vec(1usize..40, 0..20), portion in 1usize..40) {
            let mut sent = Vec::new();
            let mut bytes = Vec::new();
            for (number, length) in data.iter().enumerate() {
                bytes.extend(data_header(7, *length));
                bytes.extend(std::iter::repeat_n(number as u8, *length));
                sent.extend(std::iter::repeat_n(number as u8, *length));
                FRAMES[number % FRAMES.len()].put(&mut bytes);
            }
            let (mut decoder, mut received, mut frames) = (Decoder::default(), Vec::new(), 0);
            for mut portion in bytes.chunks(portion) {
                while let Some(piece) = decoder.next(&mut portion).unwrap() {
                    match piece {
                        Piece::Data(7, bytes) if !bytes.is_empty() => received.extend_from_slice(bytes),
                        Piece::Frame(frame) => {
                            prop_assert_eq!(frame, FRAMES[frames % FRAMES.len()]);
                            frames += 1;
                        }
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
            }
            prop_assert_eq!(received, sent);
            prop_assert_eq!(frames, data.len());
        }
    }
}
