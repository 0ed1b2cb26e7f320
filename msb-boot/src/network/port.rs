//! A stream socket with Ethernet frames on it: each follows its length, four bytes, big-endian. QEMU, libkrun and passt have the same
//! framing.

use std::io;
use std::os::fd::OwnedFd;

use msb_gate::frame::MAX_FRAME;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// How much is read at once, in bytes.
const BUFFER: usize = 1 << 20;
/// The size of a frame's length.
pub(super) const LENGTH: usize = 4;
/// How many bytes may wait for their receiver before replies to it are dropped.
const MAX_REPLIES: usize = 256 << 10;

/// A socket with what was read from it and what waits to be written to it.
pub(super) struct Port {
    pub(super) fd: OwnedFd,
    pub(super) input: Vec<u8>,
    /// Where the next frame begins in `input`, and where the bytes end that were read.
    pub(super) start: usize,
    pub(super) end: usize,
    /// How many bytes are still to come of a frame that is too long.
    pub(super) skip: usize,
    pub(super) output: Vec<u8>,
    /// How much of `output` is written.
    pub(super) written: usize,
    pub(super) is_open: bool,
}

impl Port {
    /// Takes a socket over.
    ///
    /// # Errors
    /// Those of `fcntl(2)`.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        let input = vec![0; BUFFER];
        Ok(Self { fd, input, start: 0, end: 0, skip: 0, output: Vec::new(), written: 0, is_open: true })
    }

    /// Whether everything is written that was to be.
    pub(super) fn is_drained(&self) -> bool {
        self.written == self.output.len()
    }

    /// Writes what waits, as far as the receiver takes it.
    pub(super) fn drain(&mut self) {
        while self.is_open && !self.is_drained() {
            match rustix::io::write(&self.fd, &self.output[self.written..]) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.is_open = false,
            }
        }
        self.output.clear();
        self.written = 0;
    }

    /// Writes bytes, or keeps what the receiver does not take.
    pub(super) fn write(&mut self, mut bytes: &[u8]) {
        while self.is_open && self.is_drained() && !bytes.is_empty() {
            match rustix::io::write(&self.fd, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.is_open = false,
            }
        }
        if self.is_open {
            self.output.extend(bytes);
        }
    }

    /// Writes a frame.
    pub(super) fn write_frame(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).unwrap_or(0).to_be_bytes();
        self.write(&[&length, frame].concat());
    }

    /// Writes a frame of the process's own to the side that has caused it. It is dropped where too many wait.
    pub(super) fn write_reply(&mut self, frame: &[u8]) {
        if self.output.len() - self.written <= MAX_REPLIES {
            self.write_frame(frame);
        }
    }

    /// Reads once. Returns how many bytes, which may be none; `None` at the end.
    pub(super) fn read(&mut self) -> Option<usize> {
        if self.input.len() - self.end < LENGTH + MAX_FRAME {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match rustix::io::read(&self.fd, &mut self.input[self.end..]) {
            Ok(0) => None,
            Ok(count) => {
                self.end += count;
                Some(count)
            }
            Err(Errno::INTR | Errno::AGAIN) => Some(0),
            Err(_) => None,
        }
    }

    /// Takes all whole frames that were read. Those that are too long are skipped.
    pub(super) fn take_frames(&mut self, mut take: impl FnMut(&[u8])) {
        let skipped = self.skip.min(self.end - self.start);
        self.skip -= skipped;
        self.start += skipped;
        while let Some(head) = self.input[self.start..self.end].first_chunk::<LENGTH>() {
            let length = u32::from_be_bytes(*head) as usize;
            if length > MAX_FRAME {
                let there = (LENGTH + length).min(self.end - self.start);
                self.skip = LENGTH + length - there;
                self.start += there;
                continue;
            }
            let Some(frame) = self.input[self.start..self.end].get(LENGTH..LENGTH + length) else { break };
            take(frame);
            self.start += LENGTH + length;
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }
}
