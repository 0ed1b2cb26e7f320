//! A channel on any bytes: no connection exceeds its window or goes on after its end, and the decoder consumes everything.

use std::collections::BTreeMap;

use msb::wire::channel::{Connections, Decoder, Frame, MAX_CONNECTIONS, Piece, Side, Taken, WINDOW};

/// # Panics
/// If one of these does not hold.
pub fn check(data: &[u8]) {
    for side in [Side::Host, Side::Guest] {
        one_side(side, data);
    }
}

fn one_side(side: Side, mut data: &[u8]) {
    let mut decoder = Decoder::default();
    let mut connections = Connections::new(side);
    // How much the peer may send on each connection that it has not ended.
    let mut open = BTreeMap::from([(connections.open().unwrap(), WINDOW)]);
    loop {
        let piece = match decoder.next(&mut data) {
            Ok(Some(piece)) => piece,
            Ok(None) => break assert!(data.is_empty()),
            Err(_) => break,
        };
        let Ok(taken) = connections.take(&piece) else { break };
        match piece {
            Piece::Frame(Frame::Open(number)) => {
                assert!(number % 2 == u32::from(side == Side::Host) && !open.contains_key(&number));
                assert_eq!(taken == Taken::Refused, open.len() >= MAX_CONNECTIONS);
                if taken == Taken::Valid {
                    open.insert(number, WINDOW);
                }
            }
            Piece::Data(number, bytes) => {
                assert_eq!(taken == Taken::Valid, open.contains_key(&number));
                let Some(left) = open.get_mut(&number) else { continue };
                *left -= u32::try_from(bytes.len()).unwrap();
                // As a side that passes every other piece on.
                if bytes.len() % 2 == 0 {
                    *left += connections.passed_on(number, bytes.len()).unwrap_or(0);
                    assert!(*left <= WINDOW);
                }
            }
            Piece::Frame(Frame::Credit(number, _)) => assert!(connections.credit(number) <= WINDOW),
            // This side ends what the peer has ended, and then nobody may use it.
            Piece::Frame(Frame::End(number) | Frame::Close(number)) => {
                open.remove(&number);
                connections.end(number);
                assert!(!connections.is_open(number) && !connections.close(number));
            }
            Piece::Frame(_) => assert_eq!(taken, Taken::Valid),
        }
    }
}
