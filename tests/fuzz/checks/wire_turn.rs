//! The order of frames in an exec, on any frames: no stream exceeds its credit or continues after its end, a command starts once, and
//! nothing follows the last frame. The first byte grants credit.

use msb::wire::sequence::{FromGuest, FromHost};
use msb::wire::{Decoded, Decoder, Message, Stream};

/// # Panics
/// If one of these does not hold.
pub fn check(data: &[u8]) {
    let Some((&first, mut frames)) = data.split_first() else { return };
    let credit = u32::from(first) * 4;
    let mut decoder = Decoder::default();
    let mut pieces = Vec::new();
    while let Ok(Some(piece)) = decoder.next(&mut frames) {
        pieces.push(piece);
    }
    for prepares in [false, true] {
        from_guest(&pieces, credit, prepares);
        from_host(&pieces, credit, prepares);
    }
}

fn from_guest(pieces: &[Decoded<'_>], credit: u32, prepares: bool) {
    let mut turn = FromGuest::default();
    if prepares {
        turn.prepare();
    }
    let mut prepared = false;
    turn.grant(Stream::Stdout, credit);
    turn.grant(Stream::Stderr, credit);
    // As a reader that grants new credit for what it has written.
    let mut given = [u64::from(credit); 2];
    let (mut taken, mut ended, mut started, mut over) = ([0u64; 2], [false; 2], false, false);
    for piece in pieces {
        if turn.take(piece).is_err() {
            return;
        }
        assert!(!over, "{piece:?} behind the last frame");
        match piece {
            Decoded::Message(Message::Prepared(_)) => {
                assert!(prepares && !started && !std::mem::replace(&mut prepared, true))
            }
            Decoded::Message(Message::Exit(_) | Message::Eof(Stream::Stdout | Stream::Stderr)) => {
                assert!(started || prepared)
            }
            Decoded::Message(Message::Started(_)) => {
                assert!(prepares == prepared && !std::mem::replace(&mut started, true))
            }
            Decoded::Message(Message::Failure(_)) => {
                assert!(!started);
                over = true;
            }
            _ => assert!(started, "{piece:?} before the start"),
        }
        assert_eq!(turn.has_started(), started);
        match piece {
            Decoded::Data(stream, bytes) => {
                let place = usize::from(*stream == Stream::Stderr);
                assert!(*stream != Stream::Stdin && !bytes.is_empty() && !ended[place]);
                taken[place] += bytes.len() as u64;
                assert!(taken[place] <= given[place]);
                if bytes.len() % 2 == 0 {
                    turn.grant(*stream, bytes.len() as u32);
                    given[place] += bytes.len() as u64;
                }
            }
            Decoded::Message(Message::Eof(Stream::Stdin)) => {}
            Decoded::Message(Message::Eof(stream)) => {
                assert!(!std::mem::replace(&mut ended[usize::from(*stream == Stream::Stderr)], true));
            }
            Decoded::Message(Message::Exit(_)) => over = true,
            Decoded::Message(Message::Execs(_)) => panic!("let go without having asked"),
            _ => {}
        }
    }
}

fn from_host(pieces: &[Decoded<'_>], credit: u32, prepares: bool) {
    let mut turn = FromHost::default();
    let mut waits = prepares;
    if prepares {
        turn.prepare();
    }
    turn.grant(credit);
    let (mut taken, mut ended, mut over) = (0u64, false, false);
    for piece in pieces {
        if turn.take(piece).is_err() {
            return;
        }
        assert!(!over, "{piece:?} behind the last frame");
        match piece {
            Decoded::Data(stream, bytes) => {
                assert!(*stream == Stream::Stdin && !bytes.is_empty() && !ended);
                taken += bytes.len() as u64;
                assert!(taken <= u64::from(credit));
            }
            Decoded::Message(Message::Eof(_)) => ended = true,
            Decoded::Message(Message::Signal(signal)) => assert!((1..=64).contains(&signal.signal)),
            Decoded::Message(Message::Go) => assert!(std::mem::replace(&mut waits, false)),
            Decoded::Message(Message::Detach) => {
                assert!(!waits);
                over = true;
            }
            _ => {}
        }
        assert_eq!(turn.stdin_ended(), ended);
    }
}
