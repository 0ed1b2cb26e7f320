//! The agent's report as it arrives: a hello, then one [`Ready`]. Who reads it cannot wait, and believes nothing.

use super::exec::Ready;
use super::{Decoder, Error, Message, Piece};

/// A report of which some bytes may be there.
#[derive(Debug, Default)]
pub struct Report {
    decoder: Decoder,
    greeted: bool,
}

impl Report {
    /// Takes the bytes that have come. `Some`: the report is whole, and what comes after it is not looked at.
    ///
    /// # Errors
    /// See [`Error`]. The connection is over then.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<Option<Ready>, Error> {
        while let Some(piece) = self.decoder.next(&mut bytes)? {
            match piece {
                Piece::Message(Message::Hello(hello)) if !self.greeted => {
                    hello.check()?;
                    self.greeted = true;
                }
                Piece::Message(Message::Ready(ready)) if self.greeted => return Ok(Some(ready)),
                _ => return Err(Error::OutOfTurn("not the agent's report")),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Stream;

    fn take(messages: &[Message]) -> Result<Option<Ready>, Error> {
        let bytes: Vec<u8> = messages.iter().flat_map(Message::to_frame).collect();
        let mut report = Report::default();
        let mut taken = None;
        for byte in bytes.chunks(1) {
            taken = report.take(byte)?;
            if taken.is_some() {
                break;
            }
        }
        Ok(taken)
    }

    #[test]
    fn a_report_is_a_hello_and_then_one_ready() {
        let ready = Ready { kernel_ms: 7, ..Ready::default() };
        let report = || Message::Ready(Ready { kernel_ms: 7, ..Ready::default() });
        assert_eq!(take(&[Message::hello(), report(), report()]).unwrap(), Some(ready));
        assert_eq!(take(&[Message::hello()]).unwrap(), None);
        for wrong in [
            vec![report()],
            vec![Message::hello(), Message::hello()],
            vec![Message::hello(), Message::Data(Stream::Stdout, b"x".to_vec())],
            vec![Message::Credit(Stream::Stdin, 1)],
        ] {
            assert!(matches!(take(&wrong), Err(Error::OutOfTurn(_))), "{wrong:?}");
        }
    }
}
