//! The wire's decoder on any bytes: it does not care how they are cut, takes what a reader that waits takes, and what it takes
//! is what would be sent.

use msb::wire::{Decoder, HEADER, MAX_CONTROL, Message};

/// # Panics
/// Where any of that is not so.
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
    let size = data.first().map_or(1, |&byte| usize::from(byte) + 1);
    for size in [size, data.len().max(1)] {
        let mut decoder = Decoder::default();
        let mut taken = Vec::new();
        let mut failed = false;
        'data: for portion in data.chunks(size) {
            decoder.feed(portion);
            loop {
                match decoder.next_message() {
                    Ok(Some(message)) => taken.push(message),
                    Ok(None) => break,
                    Err(_) => {
                        failed = true;
                        break 'data;
                    }
                }
            }
        }
        assert_eq!((&taken, failed), (&whole, fails), "in portions of {size}");
    }
    for message in whole {
        let frame = message.to_frame();
        // Not always what came: JSON may be written in many ways.
        assert!(frame.len() <= HEADER + 2 * MAX_CONTROL);
        if let Ok(Some(again)) = Message::receive(&mut &*frame) {
            assert_eq!(again, message);
        }
    }
}
