//! Frames taken apart by a reader that may not wait for them.

use super::{Error, HEADER, Message, Stream, data_stream, read_header};

/// What a [`Decoder`] finds.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece<'a> {
    /// Bytes of a stream: as much of a frame as is there. Without a byte where the frame has none.
    Data(Stream, &'a [u8]),
    /// A whole frame of another kind.
    Message(Message),
}

impl<'a> From<&'a Message> for Piece<'a> {
    fn from(message: &'a Message) -> Self {
        match message {
            Message::Data(stream, bytes) => Self::Data(*stream, bytes),
            other => Self::Message(other.clone()),
        }
    }
}

/// Frames out of bytes that arrive in any portions, for a caller that may not wait. Data goes through where it lies; what is held
/// is the begin of a frame of another kind.
#[derive(Debug, Default)]
pub struct Decoder {
    begun: Vec<u8>,
    data: Option<(Stream, usize)>,
}

impl Decoder {
    /// The next piece of bytes that arrived, which become those behind it. `None`: none is left, but for a begin that is kept.
    ///
    /// # Errors
    /// See [`Error`]. The connection is over then.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Piece<'a>>, Error> {
        if let Some((stream, left)) = self.data.filter(|_| !bytes.is_empty()) {
            let piece = split_off(bytes, left);
            self.data = Some((stream, left - piece.len())).filter(|(_, left)| *left > 0);
            return Ok(Some(Piece::Data(stream, piece)));
        }
        if !self.collect(HEADER, bytes) {
            return Ok(None);
        }
        let (length, kind) = read_header(*self.begun.first_chunk().expect("it is that long"))?;
        if let Some(stream) = data_stream(kind) {
            self.begun.clear();
            self.data = Some((stream, length)).filter(|_| length > 0);
            return if length > 0 { self.next(bytes) } else { Ok(Some(Piece::Data(stream, &[]))) };
        }
        if !self.collect(HEADER + length, bytes) {
            return Ok(None);
        }
        let message = Message::read_payload(kind, &self.begun[HEADER..])?;
        self.begun.clear();
        Ok(Some(Piece::Message(message)))
    }

    /// Has `length` bytes of the frame that has begun, if they are there.
    fn collect(&mut self, length: usize, bytes: &mut &[u8]) -> bool {
        let missing = length.saturating_sub(self.begun.len());
        self.begun.extend_from_slice(split_off(bytes, missing));
        self.begun.len() >= length
    }

    /// Whether the bytes so far end within a frame.
    pub fn is_within_frame(&self) -> bool {
        self.data.is_some() || !self.begun.is_empty()
    }
}

/// The first bytes, `most` at most, of those, which become the others.
fn split_off<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (first, others) = bytes.split_at(most.min(bytes.len()));
    *bytes = others;
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::put_data;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_give_pieces_or_an_error_and_never_a_panic(bytes: Vec<u8>, portion in 1usize..40) {
            let mut decoder = Decoder::default();
            'bytes: for mut portion in bytes.chunks(portion) {
                loop {
                    match decoder.next(&mut portion) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'bytes,
                    }
                }
                prop_assert!(portion.is_empty());
            }
        }

        #[test]
        fn what_is_put_comes_out_however_it_is_cut(data: Vec<Vec<u8>>, portion in 1usize..40) {
            let mut frames = Vec::new();
            for bytes in &data {
                put_data(&mut frames, Stream::Stdout, bytes);
                Message::Eof(Stream::Stdout).put(&mut frames);
            }
            let mut decoder = Decoder::default();
            let (mut out, mut current) = (Vec::new(), Vec::new());
            for mut portion in frames.chunks(portion) {
                while let Some(piece) = decoder.next(&mut portion).unwrap() {
                    match piece {
                        Piece::Data(Stream::Stdout, bytes) => current.extend_from_slice(bytes),
                        Piece::Message(Message::Eof(Stream::Stdout)) => out.push(std::mem::take(&mut current)),
                        _ => panic!(),
                    }
                }
            }
            prop_assert_eq!(out, data);
            prop_assert!(!decoder.is_within_frame());
        }
    }

    #[test]
    fn a_frame_of_data_is_there_before_its_end() {
        let mut decoder = Decoder::default();
        let mut bytes = &b"\x03\0\0\0\x05ou"[..];
        assert_eq!(decoder.next(&mut bytes).unwrap(), Some(Piece::Data(Stream::Stdout, b"ou")));
        assert_eq!(decoder.next(&mut bytes).unwrap(), None);
        assert!(decoder.is_within_frame());
        let mut bytes = &b"t\0\0\0\0\x06\x01"[..];
        assert_eq!(decoder.next(&mut bytes).unwrap(), Some(Piece::Data(Stream::Stdout, b"t")));
        assert_eq!(decoder.next(&mut bytes).unwrap(), Some(Piece::Data(Stream::Stderr, b"")), "one without a byte");
        assert_eq!(decoder.next(&mut bytes).unwrap(), None);
        assert!(decoder.is_within_frame(), "of the next one there is a byte");
    }
}
