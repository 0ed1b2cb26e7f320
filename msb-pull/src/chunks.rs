//! The bounded channels between the threads of one layer. A complete stream ends with a mark. If it stops without one, it was cut
//! off, and its reader gets [`Hangup`], which is never the cause of a failure.

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use msb_archive::Skip;

type Chunk = Arc<Vec<u8>>;

/// The other end is gone. The error there is the cause.
#[derive(Debug)]
pub(crate) struct Hangup;

impl fmt::Display for Hangup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("given up")
    }
}

impl std::error::Error for Hangup {}

/// Whether an error only says that another thread failed first.
pub(crate) fn is_hangup(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        // An io::Error hides the error it was made of from the chain.
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause.is::<Hangup>() || inner.is_some_and(|inner| inner.is::<Hangup>())
    })
}

/// A channel that holds at most `depth` chunks.
pub(crate) fn channel(depth: usize) -> (Sink, Stream) {
    let (sender, receiver) = sync_channel(depth);
    (Sink(sender), Stream { receiver, chunk: Chunk::default(), at: 0, ended: false })
}

/// The end that is written to.
pub(crate) struct Sink(SyncSender<Option<Chunk>>);

impl Sink {
    /// Passes a chunk on without copying it.
    ///
    /// # Errors
    /// [`Hangup`].
    pub(crate) fn send(&self, chunk: Chunk) -> io::Result<()> {
        self.0.send(Some(chunk)).map_err(|_| io::Error::other(Hangup))
    }

    /// Marks the stream as complete.
    ///
    /// # Errors
    /// [`Hangup`].
    pub(crate) fn finish(self) -> io::Result<()> {
        self.0.send(None).map_err(|_| io::Error::other(Hangup))
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(Arc::new(bytes.to_vec()))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The end that is read from.
pub(crate) struct Stream {
    receiver: Receiver<Option<Chunk>>,
    chunk: Chunk,
    at: usize,
    ended: bool,
}

impl Stream {
    /// Reads to the end and discards what it reads.
    ///
    /// # Errors
    /// [`Hangup`].
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        loop {
            match self.fill_buf()?.len() {
                0 => return Ok(()),
                length => self.consume(length),
            }
        }
    }
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.chunk.len() && !self.ended {
            match self.receiver.recv() {
                Ok(Some(chunk)) => (self.chunk, self.at) = (chunk, 0),
                Ok(None) => self.ended = true,
                Err(_) => return Err(io::Error::other(Hangup)),
            }
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, length: usize) {
        self.at += length;
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let got = available.read(into)?;
        self.consume(got);
        Ok(got)
    }
}

impl Skip for Stream {
    fn skip(&mut self, mut length: u64) -> io::Result<()> {
        while length > 0 {
            let available = self.fill_buf()?.len();
            if available == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = available.min(usize::try_from(length).unwrap_or(usize::MAX));
            self.consume(step);
            length -= step as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_from_a_hangup() {
        let (mut sink, mut stream) = channel(4);
        sink.write_all(b"whole").unwrap();
        sink.finish().unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "whole");

        let (mut sink, mut stream) = channel(4);
        sink.write_all(b"par").unwrap();
        drop(sink);
        assert!(is_hangup(&stream.read_to_string(&mut text).unwrap_err().into()));

        let (mut sink, stream) = channel(4);
        drop(stream);
        assert!(is_hangup(&anyhow::Error::from(sink.write_all(b"x").unwrap_err()).context("words")));
        assert!(!is_hangup(&io::Error::other("full").into()));
    }

    #[test]
    fn bytes_are_skipped_across_chunks_and_the_rest_is_drained() {
        let (mut sink, mut stream) = channel(4);
        for part in [&b"abc"[..], b"def", b"ghi"] {
            sink.write_all(part).unwrap();
        }
        sink.finish().unwrap();
        stream.skip(4).unwrap();
        let mut two = [0; 2];
        stream.read_exact(&mut two).unwrap();
        assert_eq!(&two, b"ef");
        stream.drain().unwrap();
        assert_eq!(stream.read(&mut two).unwrap(), 0);
        stream.skip(0).unwrap();
        assert_eq!(stream.skip(1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        let (sink, mut stream) = channel(4);
        drop(sink);
        assert!(is_hangup(&stream.drain().unwrap_err().into()));
    }
}
