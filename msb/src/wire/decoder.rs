//! Incremental decoding of frames, for a reader that must not block.

use super::frame::{Error, HEADER, Stream, data_stream, read_header};
use super::message::Message;

/// What a [`Decoder`] returns.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded<'a> {
    /// Bytes of a stream: the part of a frame that has arrived. Empty only for an empty frame.
    Data(Stream, &'a [u8]),
    /// A whole frame of another kind.
    Message(Message),
}

impl<'a> From<&'a Message> for Decoded<'a> {
    fn from(message: &'a Message) -> Self {
        match message {
            Message::Data(stream, bytes) => Self::Data(*stream, bytes),
            other => Self::Message(other.clone()),
        }
    }
}

/// Decodes frames from bytes that arrive in any pieces. Data is returned in place; only incomplete frames of other kinds are
/// buffered.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Vec<u8>,
    data: Option<(Stream, usize)>,
}

impl Decoder {
    /// Decodes the next item and advances `bytes` past it. `None`: all bytes are consumed.
    ///
    /// # Errors
    /// See [`Error`]. The connection cannot continue.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Decoded<'a>>, Error> {
        if let Some((stream, left)) = self.data.filter(|_| !bytes.is_empty()) {
            let piece = split_off(bytes, left);
            self.data = Some((stream, left - piece.len())).filter(|(_, left)| *left > 0);
            return Ok(Some(Decoded::Data(stream, piece)));
        }
        if !self.collect(HEADER, bytes) {
            return Ok(None);
        }
        let (length, kind) = read_header(*self.partial.first_chunk().expect("it is that long"))?;
        if let Some(stream) = data_stream(kind) {
            self.partial.clear();
            self.data = Some((stream, length)).filter(|_| length > 0);
            return if length > 0 { self.next(bytes) } else { Ok(Some(Decoded::Data(stream, &[]))) };
        }
        if !self.collect(HEADER + length, bytes) {
            return Ok(None);
        }
        let message = Message::read_payload(kind, &self.partial[HEADER..])?;
        self.partial.clear();
        Ok(Some(Decoded::Message(message)))
    }

    /// Buffers the current frame up to `length` bytes. Returns whether they have arrived.
    fn collect(&mut self, length: usize, bytes: &mut &[u8]) -> bool {
        let missing = length.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(split_off(bytes, missing));
        self.partial.len() >= length
    }

    /// Whether the bytes so far end within a frame.
    pub fn is_within_frame(&self) -> bool {
        self.data.is_some() || !self.partial.is_empty()
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
    use crate::wire::put_data;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_cause_a_panic(bytes: Vec<u8>, portion in 1usize..40) {
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
        fn frames_are_decoded_from_any_pieces(data: Vec<Vec<u8>>, portion in 1usize..40) {
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
                        Decoded::Data(Stream::Stdout, bytes) => current.extend_from_slice(bytes),
                        Decoded::Message(Message::Eof(Stream::Stdout)) => out.push(std::mem::take(&mut current)),
                        _ => panic!(),
                    }
                }
            }
            prop_assert_eq!(out, data);
            prop_assert!(!decoder.is_within_frame());
        }
    }

    #[test]
    fn data_is_returned_before_its_frame_is_complete() {
        let mut decoder = Decoder::default();
        let mut bytes = &b"\x03\0\0\0\x05ou"[..];
        assert_eq!(decoder.next(&mut bytes).unwrap(), Some(Decoded::Data(Stream::Stdout, b"ou")));
        assert_eq!(decoder.next(&mut bytes).unwrap(), None);
        assert!(decoder.is_within_frame());
        let mut bytes = &b"t\0\0\0\0\x06\x01"[..];
        assert_eq!(decoder.next(&mut bytes).unwrap(), Some(Decoded::Data(Stream::Stdout, b"t")));
        assert_eq!(decoder.next(&mut bytes).unwrap(), Some(Decoded::Data(Stream::Stderr, b"")), "an empty frame");
        assert_eq!(decoder.next(&mut bytes).unwrap(), None);
        assert!(decoder.is_within_frame(), "the next frame has begun");
    }
}
