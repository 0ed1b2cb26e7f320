//! What the VM says: the guest's console, which becomes kernel.log, and the stderr of the processes that serve it.
//!
//! Both are the guest's to fill, so both are bounded, and neither reaches a terminal with its control characters.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// The most bytes that kernel.log has; then it becomes kernel.log.1, and a new one begins.
const MAX_LOG: usize = 4 << 20;

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
    log: Log,
    tail: Tail,
    open: bool,
    halted: bool,
    panicked: bool,
}

impl Console {
    /// From a pipe into a new file.
    pub(super) fn new(pipe: PipeReader, log: &Path) -> io::Result<Self> {
        let (source, log) = (Source::new(pipe)?, Log::begin(log)?);
        let tail = Tail::default();
        Ok(Self { source, log, tail, open: true, halted: false, panicked: false })
    }

    /// Takes what is there.
    pub(super) fn drain(&mut self) {
        let Self { source, log, tail, open, halted, panicked } = self;
        *open = source.drain(|bytes| {
            log.add(bytes);
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

/// kernel.log. A full disk costs the log and not the VM.
struct Log {
    path: PathBuf,
    file: File,
    /// How much is in it, in bytes.
    length: usize,
}

impl Log {
    fn begin(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Self { path: path.to_owned(), file, length: 0 })
    }

    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.length >= MAX_LOG {
                self.rotate();
            }
            let (now, later) = bytes.split_at(bytes.len().min(MAX_LOG.saturating_sub(self.length)));
            let _ = self.file.write_all(now);
            self.length += now.len();
            bytes = later;
        }
    }

    /// Puts what is there aside. Where that fails, it is written over: the newest words matter most.
    fn rotate(&mut self) {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        let _ = fs::rename(&self.path, old);
        match Self::begin(&self.path) {
            Ok(new) => *self = new,
            Err(_) => {
                let _ = io::Seek::rewind(&mut self.file);
                self.length = 0;
            }
        }
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
    fn the_log_is_rotated_at_its_limit_and_loses_no_byte_of_the_last_two() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("kernel.log");
        let mut log = Log::begin(&path).unwrap();
        let line = |number: usize| format!("{number:015}\n").into_bytes();
        let lines = MAX_LOG / 16 * 5 / 2;
        let all: Vec<u8> = (0..lines).flat_map(line).collect();
        for portion in all.chunks(10_007) {
            log.add(portion);
        }
        let (new, old) = (fs::read(&path).unwrap(), fs::read(scratch.path().join("kernel.log.1")).unwrap());
        assert_eq!(old.len(), MAX_LOG);
        assert_eq!([old, new].concat(), all[MAX_LOG..]);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
    }
}
