//! The agent's report as it arrives: a hello, then one [`Ready`]. Its reader must not block and does not trust the guest.

use super::decoder::{Decoded, Decoder};
use super::exec::Ready;
use super::frame::Error;
use super::message::Message;

/// A report that may be incomplete.
#[derive(Debug, Default)]
pub struct Report {
    decoder: Decoder,
    greeted: bool,
}

impl Report {
    /// Decodes bytes that have arrived. `Some`: the report is complete, and bytes after it are ignored.
    ///
    /// # Errors
    /// See [`Error`]. The connection cannot continue.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<Option<Ready>, Error> {
        while let Some(piece) = self.decoder.next(&mut bytes)? {
            match piece {
                Decoded::Message(Message::Hello(hello)) if !self.greeted => {
                    hello.check()?;
                    self.greeted = true;
                }
                Decoded::Message(Message::Ready(ready)) if self.greeted => return Ok(Some(ready)),
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
