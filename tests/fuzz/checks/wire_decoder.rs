//! The decoder of the wire on any bytes: the sizes of the reads make no difference, it accepts what a blocking reader accepts, and a
//! message that it accepts can be sent again.

use msb::wire::{Decoded, Decoder, HEADER, MAX_CONTROL, Message, Stream};

/// # Panics
/// If one of these does not hold.
pub fn check(data: &[u8]) {
    let mut waiting = data;
    let mut whole = Vec::new();
    let fails = loop {
        match Message::receive(&mut waiting) {
            Ok(Some(message)) => whole.push(message),
            Ok(None) => break false,
            Err(msb::wire::Error::Io(_)) => break false,
            Err(_) => break true,
        }
    };
    let expected = joined(whole.iter().map(Decoded::from));
    let size = data.first().map_or(1, |&byte| usize::from(byte) + 1);
    for size in [size, data.len().max(1)] {
        let mut decoder = Decoder::default();
        let mut pieces = Vec::new();
        let mut failed = false;
        'data: for mut portion in data.chunks(size) {
            loop {
                match decoder.next(&mut portion) {
                    Ok(Some(piece)) => pieces.push(piece),
                    Ok(None) => break,
                    Err(_) => {
                        failed = true;
                        break 'data;
                    }
                }
            }
            assert!(portion.is_empty(), "bytes are left behind");
        }
        assert_eq!(failed, fails, "in portions of {size}");
        let mut taken = joined(pieces);
        if decoder.is_within_frame()
            && let Some(Joined::Data(stream, bytes)) = taken.last_mut()
        {
            // The beginning of a frame, of which the blocking reader has not received the rest.
            match expected.get(expected.len().max(1) - 1) {
                Some(Joined::Data(other, whole)) if other == stream && bytes.starts_with(whole) => {
                    bytes.truncate(whole.len())
                }
                _ => drop(taken.pop()),
            }
        }
        assert_eq!(taken, expected, "in portions of {size}");
    }
    for message in whole {
        let frame = message.to_frame();
        // The bytes may differ, since the same JSON can be written in many ways.
        assert!(frame.len() <= HEADER + 2 * MAX_CONTROL);
        if let Ok(Some(again)) = Message::receive(&mut &*frame) {
            assert_eq!(again, message);
        }
    }
}

/// What was decoded, with adjacent bytes of a stream joined.
#[derive(Debug, PartialEq)]
enum Joined {
    Data(Stream, Vec<u8>),
    Message(Message),
}

fn joined<'a>(pieces: impl IntoIterator<Item = Decoded<'a>>) -> Vec<Joined> {
    let mut all = Vec::new();
    for piece in pieces {
        match (piece, all.last_mut()) {
            (Decoded::Data(stream, bytes), Some(Joined::Data(last, before))) if *last == stream => {
                before.extend_from_slice(bytes);
            }
            (Decoded::Data(stream, bytes), _) => all.push(Joined::Data(stream, bytes.to_vec())),
            (Decoded::Message(message), _) => all.push(Joined::Message(message)),
        }
    }
    all
}
