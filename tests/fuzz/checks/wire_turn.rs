//! What may come when in an exec, on any frames: no stream carries more than its credit or goes on behind its end, a command
//! starts once, and nothing follows the last frame. The first byte gives credit.

use msb::wire::turn::{FromGuest, FromHost};
use msb::wire::{Decoder, Message, Stream};

/// # Panics
/// Where any of that is not so.
pub fn check(data: &[u8]) {
    let Some((&first, frames)) = data.split_first() else { return };
    let credit = u32::from(first) * 4;
    let mut decoder = Decoder::default();
    decoder.feed(frames);
    let mut messages = Vec::new();
    while let Ok(Some(message)) = decoder.next_message() {
        messages.push(message);
    }
    from_guest(&messages, credit);
    from_host(&messages, credit);
}

fn from_guest(messages: &[Message], credit: u32) {
    let mut turn = FromGuest::default();
    turn.give(Stream::Stdout, credit);
    turn.give(Stream::Stderr, credit);
    // As whoever writes what came gives it back.
    let mut given = [u64::from(credit); 2];
    let (mut taken, mut ended, mut started, mut over) = ([0u64; 2], [false; 2], false, false);
    for message in messages {
        if turn.take(message).is_err() {
            return;
        }
        assert!(!over, "{message:?} behind the last frame");
        match message {
            Message::Started(_) => assert!(!std::mem::replace(&mut started, true)),
            Message::Failure(_) => {
                assert!(!started);
                over = true;
            }
            _ => assert!(started, "{message:?} before the start"),
        }
        assert_eq!(turn.has_started(), started);
        match message {
            Message::Data(stream, bytes) => {
                let place = usize::from(*stream == Stream::Stderr);
                assert!(*stream != Stream::Stdin && !bytes.is_empty() && !ended[place]);
                taken[place] += bytes.len() as u64;
                assert!(taken[place] <= given[place]);
                if bytes.len() % 2 == 0 {
                    turn.give(*stream, bytes.len() as u32);
                    given[place] += bytes.len() as u64;
                }
            }
            Message::Eof(Stream::Stdin) => {}
            Message::Eof(stream) => {
                assert!(!std::mem::replace(&mut ended[usize::from(*stream == Stream::Stderr)], true));
            }
            Message::Exit(_) => over = true,
            Message::Execs(_) => panic!("let go without having asked"),
            _ => {}
        }
    }
}

fn from_host(messages: &[Message], credit: u32) {
    let mut turn = FromHost::default();
    turn.give(credit);
    let (mut taken, mut ended, mut over) = (0u64, false, false);
    for message in messages {
        if turn.take(message).is_err() {
            return;
        }
        assert!(!over, "{message:?} behind the last frame");
        match message {
            Message::Data(stream, bytes) => {
                assert!(*stream == Stream::Stdin && !bytes.is_empty() && !ended);
                taken += bytes.len() as u64;
                assert!(taken <= u64::from(credit));
            }
            Message::Eof(_) => ended = true,
            Message::Signal(signal) => assert!((1..=64).contains(&signal.signal)),
            Message::Detach => over = true,
            _ => {}
        }
        assert_eq!(turn.stdin_ended(), ended);
    }
}
