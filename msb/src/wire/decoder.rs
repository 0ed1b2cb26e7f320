//! Frames taken apart by a reader that may not wait for them.

use super::{Error, HEADER, Message, read_header};

/// Messages out of bytes that arrive in any portions, for a caller that may not wait.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Takes bytes that arrived. Take all messages out before the next call, so that no more than one frame and one
    /// portion are ever held.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    /// See [`Error`]. The connection is over then.
    pub fn next_message(&mut self) -> Result<Option<Message>, Error> {
        let pending = &self.buffer[self.start..];
        let Some((header, rest)) = pending.split_first_chunk::<HEADER>() else { return Ok(None) };
        let (length, kind) = read_header(*header)?;
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let message = Message::read_payload(kind, payload)?;
        self.start += HEADER + length;
        Ok(Some(message))
    }

    /// Whether the bytes so far end within a frame.
    pub fn is_within_frame(&self) -> bool {
        self.start < self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Stream, put_data};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_give_messages_or_an_error_and_never_a_panic(bytes: Vec<u8>, portion in 1usize..40) {
            let mut decoder = Decoder::default();
            'bytes: for portion in bytes.chunks(portion) {
                decoder.feed(portion);
                loop {
                    match decoder.next_message() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'bytes,
                    }
                }
            }
        }

        #[test]
        fn what_is_put_comes_out_however_it_is_cut(data: Vec<Vec<u8>>, portion in 1usize..40) {
            let mut frames = Vec::new();
            for bytes in &data {
                put_data(&mut frames, Stream::Stdout, bytes);
            }
            let mut decoder = Decoder::default();
            let mut out = Vec::new();
            for portion in frames.chunks(portion) {
                decoder.feed(portion);
                while let Some(message) = decoder.next_message().unwrap() {
                    let Message::Data(Stream::Stdout, bytes) = message else { panic!() };
                    out.push(bytes);
                }
            }
            prop_assert_eq!(out, data);
            prop_assert!(!decoder.is_within_frame());
        }
    }
}
