//! What the VM says: the guest's console, which becomes kernel.log, and the stderr of the processes that serve it.
//!
//! Both are the guest's to fill, so both are bounded, and neither reaches a terminal with its control characters.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// The most bytes that kernel.log has.
const MAX_LOG: usize = 16 << 20;
const CUT: &[u8] = b"\n[msb-boot: the guest said more; this log ends at 16 MiB]\n";

/// What the kernel says when it has stopped and the VMM will not notice: no microvm can be switched off.
const HALTED: [&[u8]; 3] = [b"reboot: System halted", b"reboot: Power down", b"Power off not available"];
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// The lines that are kept for an error's words.
const KEPT_LINES: usize = 12;
/// The most bytes of a line that are kept.
const KEPT_LINE: usize = 400;

/// The last lines of a stream.
#[derive(Default)]
struct Tail {
    lines: VecDeque<Vec<u8>>,
    open: Vec<u8>,
}

impl Tail {
    fn feed(&mut self, bytes: &[u8], mut on_line: impl FnMut(&[u8])) {
        for &byte in bytes {
            if byte != b'\n' {
                if self.open.len() < KEPT_LINE {
                    self.open.push(byte);
                }
                continue;
            }
            let line = std::mem::take(&mut self.open);
            on_line(&line);
            if self.lines.len() == KEPT_LINES {
                self.lines.pop_front();
            }
            self.lines.push_back(line);
        }
    }

    fn words(&self) -> Vec<String> {
        let open = Some(&self.open).filter(|line| !line.is_empty());
        let lines = self.lines.iter().chain(open).map(|line| printable(line));
        lines.filter(|line| !line.is_empty()).collect()
    }
}

/// A line without what would command a terminal.
fn printable(line: &[u8]) -> String {
    msb::exit::printable(String::from_utf8_lossy(line).trim_end())
}

/// A pipe from the VM's processes, read without waiting.
struct Source(PipeReader);

impl Source {
    fn new(pipe: PipeReader) -> io::Result<Self> {
        rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
        Ok(Self(pipe))
    }

    /// Gives what is there to `take`. False: there will be no more.
    fn drain(&mut self, mut take: impl FnMut(&[u8])) -> bool {
        let mut buffer = [0u8; 16 << 10];
        // A guest that never stops talking must not keep the supervisor from everything else.
        for _ in 0..16 {
            match self.0.read(&mut buffer) {
                Ok(0) => return false,
                Ok(got) => take(&buffer[..got]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }
}

/// The guest's console.
pub(super) struct Console {
    source: Source,
    log: File,
    logged: usize,
    tail: Tail,
    open: bool,
    halted: bool,
    panicked: bool,
}

impl Console {
    /// From a pipe into a new file.
    pub(super) fn new(pipe: PipeReader, log: &Path) -> io::Result<Self> {
        let log = File::options().write(true).create_new(true).mode(0o600).open(log)?;
        let source = Source::new(pipe)?;
        Ok(Self { source, log, logged: 0, tail: Tail::default(), open: true, halted: false, panicked: false })
    }

    /// Takes what is there.
    pub(super) fn drain(&mut self) {
        let Self { source, log, logged, tail, open, halted, panicked } = self;
        *open = source.drain(|bytes| {
            keep(log, logged, bytes);
            tail.feed(bytes, |line| {
                *halted |= HALTED.iter().any(|words| says(line, words));
                *panicked |= says(line, PANIC);
            });
        });
    }

    /// Whether more can come.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Whether the kernel has said that it stopped.
    pub(super) fn halted(&self) -> bool {
        self.halted
    }

    /// Whether the kernel has said that it gave up.
    pub(super) fn panicked(&self) -> bool {
        self.panicked
    }

    /// The last lines.
    pub(super) fn words(&self) -> Vec<String> {
        self.tail.words()
    }
}

impl AsFd for Console {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.0.as_fd()
    }
}

/// Appends to the log as far as it may grow. A full disk costs the log and not the VM.
fn keep(log: &mut File, logged: &mut usize, bytes: &[u8]) {
    if *logged >= MAX_LOG {
        return;
    }
    let room = bytes.len().min(MAX_LOG - *logged);
    let _ = log.write_all(&bytes[..room]);
    *logged += room;
    if *logged == MAX_LOG {
        let _ = log.write_all(CUT);
    }
}

fn says(line: &[u8], words: &[u8]) -> bool {
    line.windows(words.len()).any(|window| window == words)
}

/// The stderr of the processes that serve the VM.
pub(super) struct Words {
    source: Source,
    tail: Tail,
}

impl Words {
    /// From a pipe.
    pub(super) fn new(pipe: PipeReader) -> io::Result<Self> {
        Ok(Self { source: Source::new(pipe)?, tail: Tail::default() })
    }

    /// Takes what is there.
    pub(super) fn drain(&mut self) {
        let tail = &mut self.tail;
        self.source.drain(|bytes| tail.feed(bytes, |_| {}));
    }

    /// The last lines.
    pub(super) fn words(&self) -> Vec<String> {
        self.tail.words()
    }
}

impl AsFd for Words {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_lines_and_cuts_long_ones() {
        let mut tail = Tail::default();
        for number in 0..100 {
            tail.feed(format!("line {number}\n").as_bytes(), |_| {});
        }
        tail.feed(&[b'x'; 100_000], |_| {});
        let words = tail.words();
        assert_eq!(words.len(), KEPT_LINES + 1);
        assert_eq!(words[KEPT_LINES - 1], "line 99");
        assert_eq!(words[KEPT_LINES].len(), KEPT_LINE);
    }

    #[test]
    fn a_halt_is_seen_however_the_line_is_cut() {
        let mut halted = false;
        let mut tail = Tail::default();
        for byte in b"[    1.0] reboot: System halted\r\n" {
            tail.feed(&[*byte], |line| halted |= says(line, HALTED[0]));
        }
        assert!(halted);
        assert!(!says(b"reboot: Restarting system", HALTED[0]));
    }

    #[test]
    fn nothing_that_commands_a_terminal_gets_into_words() {
        assert_eq!(printable(b"a\x1b[2Jb\r"), "a\u{fffd}[2Jb");
    }

    #[test]
    fn the_log_ends_with_words_at_its_limit() {
        let (mut log, mut logged) = (tempfile(), MAX_LOG - 2);
        keep(&mut log, &mut logged, b"abc");
        keep(&mut log, &mut logged, b"def");
        let mut text = Vec::new();
        std::io::Seek::rewind(&mut log).unwrap();
        log.read_to_end(&mut text).unwrap();
        assert_eq!(text, [b"ab", CUT].concat());
    }

    fn tempfile() -> File {
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        rustix::fs::open(std::env::temp_dir(), flags, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap().into()
    }
}
