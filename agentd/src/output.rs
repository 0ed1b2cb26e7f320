//! An output of a command: agentd's end of the pipe, and the newest bytes, for later callers.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use msb::wire::{HEADER, Message, Stream};

use crate::link::{CHUNK, Link};
use crate::recorder::Recorder;

/// How much of a detached command's output is kept, in bytes. The oldest bytes are dropped first.
const TAIL: usize = 64 << 10;

/// An output.
#[derive(Debug)]
pub struct Output {
    /// Stdout or stderr.
    pub stream: Stream,
    /// agentd's end. `None`: everything has been read.
    pub source: Option<OwnedFd>,
    /// The newest bytes, if they are kept.
    tail: VecDeque<u8>,
    /// How many of the newest bytes have not been sent to any caller.
    unread: usize,
    end_sent: bool,
}

impl Output {
    /// The output of a command that runs.
    pub fn new(stream: Stream, source: OwnedFd) -> Self {
        Self { stream, source: Some(source), tail: VecDeque::new(), unread: 0, end_sent: false }
    }

    /// The output of a command that has ended. A caller gets all bytes that were kept.
    pub fn ended(stream: Stream, tail: VecDeque<u8>) -> Self {
        let unread = tail.len();
        Self { stream, source: None, tail, unread, end_sent: false }
    }

    /// The bytes that are kept after the end of the command.
    pub fn into_tail(self) -> (Stream, VecDeque<u8>) {
        (self.stream, self.tail)
    }

    /// Whether everything has been read and sent.
    pub fn is_drained(&self) -> bool {
        self.source.is_none() && self.unread == 0
    }

    /// Prepares for a new caller, which has not been told about the end.
    pub fn reset_for_caller(&mut self) {
        self.end_sent = false;
    }

    /// Closes it and drops what has not been sent.
    pub fn close(&mut self) {
        self.source = None;
        self.unread = 0;
    }

    /// The descriptor to poll, if more may be read: the caller has room, or there is no caller. Otherwise it must not be polled, because
    /// POLLHUP cannot be masked.
    pub fn readable_fd(&self, link: Option<&Link>) -> Option<&OwnedFd> {
        let has_room = link.is_none_or(|link| self.unread == 0 && link.room(self.stream) > 0);
        self.source.as_ref().filter(|_| has_room)
    }

    /// Reads up to a chunk and sends it to the caller, if there is one. `buffer` has space for a chunk and a header. With a recorder and
    /// the number of the exec, what is sent is also kept and recorded. True: a whole chunk was read, so there may be more.
    ///
    /// # Errors
    /// Those of reading and sending.
    pub fn take(
        &mut self,
        link: Option<&mut Link>,
        recorder: Option<(&Recorder, u32)>,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        let Some(source) = &self.source else { return Ok(false) };
        let wanted = link.as_ref().map_or(CHUNK, |link| link.room(self.stream));
        if wanted == 0 {
            // The other output has used up the room. A read of 0 bytes would look like the end.
            return Ok(false);
        }
        let (_, chunk) = buffer.split_at_mut(HEADER);
        match rustix::io::read(source, &mut chunk[..wanted]) {
            // A terminal reports EIO when no process has its other side open.
            Ok(0) | Err(rustix::io::Errno::IO) => self.source = None,
            Ok(got) => {
                if let Some((recorder, id)) = recorder {
                    recorder.output(id, self.stream, &chunk[..got]);
                }
                if recorder.is_some() || link.is_none() {
                    self.keep(&chunk[..got]);
                }
                match link {
                    Some(link) => link.send_data(self.stream, buffer, got)?,
                    None => self.unread = (self.unread + got).min(self.tail.len()),
                }
                return Ok(got == CHUNK);
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(false)
    }

    fn keep(&mut self, bytes: &[u8]) {
        let surplus = (self.tail.len() + bytes.len()).saturating_sub(TAIL).min(self.tail.len());
        self.tail.drain(..surplus);
        self.tail.extend(bytes);
    }

    /// Sends what no caller has received, and at the end the message that there is no more.
    pub fn send_kept(&mut self, link: &mut Link) {
        while self.unread > 0 && link.room(self.stream) > 0 {
            let (first, second) = self.tail.as_slices();
            let from = self.tail.len() - self.unread;
            let unread = if from < first.len() { &first[from..] } else { &second[from - first.len()..] };
            let count = unread.len().min(link.room(self.stream));
            link.queue_data(self.stream, &unread[..count]);
            self.unread -= count;
        }
        if self.is_drained() && !self.end_sent {
            self.end_sent = true;
            link.queue(&Message::Eof(self.stream));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_without_a_caller_keeps_its_newest_bytes() {
        let mut output = Output::ended(Stream::Stdout, VecDeque::new());
        for chunk in 0..=255u8 {
            output.keep(&[chunk; 1000]);
        }
        assert_eq!(output.tail.len(), TAIL);
        assert_eq!(output.tail.back(), Some(&255));
        assert_eq!(output.tail.front(), Some(&(255 - (TAIL / 1000) as u8)));
    }
}
