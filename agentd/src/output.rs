//! An output of a command: its own end of the pipe, and the newest of what came out of it, for callers to come.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use msb::wire::{HEADER, Message, Stream};

use crate::link::{Link, PORTION};

/// How much of a detached command's output is kept, in bytes. The oldest goes first.
const TAIL: usize = 64 << 10;

/// An output.
#[derive(Debug)]
pub struct Output {
    /// Which one.
    pub stream: Stream,
    /// Our end; none where it has come to its end.
    pub source: Option<OwnedFd>,
    /// The newest bytes, where they are kept.
    tail: VecDeque<u8>,
    /// How many of the newest bytes no caller has had.
    unread: usize,
    end_told: bool,
}

impl Output {
    /// The output of a command that runs.
    pub fn new(stream: Stream, source: OwnedFd) -> Self {
        Self { stream, source: Some(source), tail: VecDeque::new(), unread: 0, end_told: false }
    }

    /// The output of a command that has ended, of which a caller gets all that was kept.
    pub fn ended(stream: Stream, tail: VecDeque<u8>) -> Self {
        let unread = tail.len();
        Self { stream, source: None, tail, unread, end_told: false }
    }

    /// What is kept, when the command has ended.
    pub fn into_kept(self) -> (Stream, VecDeque<u8>) {
        (self.stream, self.tail)
    }

    /// Whether there is nothing to come, and nothing left.
    pub fn is_drained(&self) -> bool {
        self.source.is_none() && self.unread == 0
    }

    /// There is a new caller, who has been told nothing.
    pub fn start_anew(&mut self) {
        self.end_told = false;
    }

    /// Nobody wants any more of it.
    pub fn close(&mut self) {
        self.source = None;
        self.unread = 0;
    }

    /// Whether to wait for more of it: only while there is somebody to take it, or nobody at all. (A hang-up cannot be masked,
    /// and would spin.)
    pub fn wants(&self, link: Option<&Link>) -> Option<&OwnedFd> {
        let has_room = link.is_none_or(|link| self.unread == 0 && link.room(self.stream) > 0);
        self.source.as_ref().filter(|_| has_room)
    }

    /// Takes what there is, up to a portion; `block` has room for that and for a header. What is sent is kept too where it `keeps`.
    /// True: it was a whole one, and there may be more.
    ///
    /// # Errors
    /// What reading or sending says.
    pub fn take(&mut self, link: Option<&mut Link>, keeps: bool, block: &mut [u8]) -> io::Result<bool> {
        let Some(source) = &self.source else { return Ok(false) };
        let wanted = link.as_ref().map_or(PORTION, |link| link.room(self.stream));
        if wanted == 0 {
            // The other output has just taken the room. Reading nothing would look like the end.
            return Ok(false);
        }
        let (_, portion) = block.split_at_mut(HEADER);
        match rustix::io::read(source, &mut portion[..wanted]) {
            // EIO is how a terminal says that nobody is at its other end any more.
            Ok(0) | Err(rustix::io::Errno::IO) => self.source = None,
            Ok(got) => {
                if keeps || link.is_none() {
                    self.keep(&portion[..got]);
                }
                match link {
                    Some(link) => link.send_data(self.stream, block, got)?,
                    None => self.unread = (self.unread + got).min(self.tail.len()),
                }
                return Ok(got == PORTION);
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

    /// Gives a caller what no caller has had, and the message that there is no more.
    pub fn hand_over(&mut self, link: &mut Link) {
        while self.unread > 0 && link.room(self.stream) > 0 {
            let (first, second) = self.tail.as_slices();
            let from = self.tail.len() - self.unread;
            let unread = if from < first.len() { &first[from..] } else { &second[from - first.len()..] };
            let count = unread.len().min(link.room(self.stream));
            link.queue_data(self.stream, &unread[..count]);
            self.unread -= count;
        }
        if self.is_drained() && !self.end_told {
            self.end_told = true;
            link.queue(&Message::Eof(self.stream));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_without_a_taker_keeps_its_newest_bytes() {
        let mut output = Output::ended(Stream::Stdout, VecDeque::new());
        for portion in 0..=255u8 {
            output.keep(&[portion; 1000]);
        }
        assert_eq!(output.tail.len(), TAIL);
        assert_eq!(output.tail.back(), Some(&255));
        assert_eq!(output.tail.front(), Some(&(255 - (TAIL / 1000) as u8)));
    }
}
