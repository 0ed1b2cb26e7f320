//! Shows a log of a guest, such as its console, while it grows, without what would control the terminal.

use std::fs::{self, File};
use std::io::{self, PipeWriter, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

/// The longest line, in bytes. A longer one is broken.
const MAX_LINE: usize = 4096;

/// A log that is shown until this is dropped. What has arrived until then is shown.
#[derive(Debug)]
pub struct Follow {
    hang_up: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Follow {
    /// Shows `log` on `out` from its beginning.
    ///
    /// # Errors
    /// Those of inotify(7).
    pub fn start(log: &Path, out: impl Write + Send + 'static) -> io::Result<Self> {
        let (hung_up, hang_up) = io::pipe()?;
        let (watch, mut shown) = (watch(log)?, Shown::new(log, out));
        let thread = thread::spawn(move || {
            let _ = shown.follow(&watch, &hung_up);
        });
        Ok(Self { hang_up: Some(hang_up), thread: Some(thread) })
    }
}

/// Shows `log` on `out` from its beginning. With `until`, follows it until that descriptor is readable or hung up.
///
/// # Errors
/// Those of inotify(7), and of reading and writing.
pub fn show(log: &Path, out: impl Write, until: Option<&OwnedFd>) -> io::Result<()> {
    let mut shown = Shown::new(log, out);
    match until {
        Some(until) => shown.follow(&watch(log)?, until),
        None => shown.show().and_then(|()| shown.finish()),
    }
}

fn watch(log: &Path) -> io::Result<OwnedFd> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let dir = log.parent().unwrap_or(Path::new("/"));
    inotify::add_watch(&watch, dir, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    Ok(watch)
}

impl Drop for Follow {
    fn drop(&mut self) {
        drop(self.hang_up.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Waits for an event in the log's directory. False: the log is complete.
fn wait(watch: &OwnedFd, until: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(watch, PollFlags::IN), PollFd::new(until, PollFlags::IN)];
    let polled = poll(&mut fds, None);
    let is_over = !fds[1].revents().is_empty() || !matches!(polled, Ok(_) | Err(rustix::io::Errno::INTR));
    let mut block = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(watch, &mut block);
    while events.next().is_ok() {}
    !is_over
}

/// The state of showing a log.
struct Shown<W> {
    log: PathBuf,
    file: Option<File>,
    line: Vec<u8>,
    out: W,
}

impl<W: Write> Shown<W> {
    fn new(log: &Path, out: W) -> Self {
        Self { log: log.to_owned(), file: None, line: Vec::new(), out }
    }

    fn follow(&mut self, watch: &OwnedFd, until: &impl AsFd) -> io::Result<()> {
        self.show()?;
        while wait(watch, until) {
            self.show()?;
        }
        self.show().and_then(|()| self.finish())
    }

    /// Shows what was appended. When a log has been rotated, another file has its name.
    fn show(&mut self) -> io::Result<()> {
        loop {
            if let Some(file) = &mut self.file {
                let mut block = [0u8; 4096];
                loop {
                    match file.read(&mut block)? {
                        0 => break,
                        got => feed(&mut self.line, &block[..got], &mut self.out)?,
                    }
                }
            }
            let named = fs::metadata(&self.log).map(|meta| (meta.dev(), meta.ino())).ok();
            let ours = self.file.as_ref().and_then(|file| file.metadata().ok()).map(|meta| (meta.dev(), meta.ino()));
            if named.is_none() || named == ours {
                return self.out.flush();
            }
            self.file = match File::open(&self.log) {
                // It was removed in between, and has no name in the next round.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                other => Some(other?),
            };
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        if !self.line.is_empty() {
            feed(&mut self.line, b"\n", &mut self.out)?;
        }
        self.out.flush()
    }
}

/// Writes the complete lines.
fn feed(line: &mut Vec<u8>, bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
    for &byte in bytes {
        if byte != b'\n' {
            line.push(byte);
        }
        if byte == b'\n' || line.len() == MAX_LINE {
            writeln!(out, "{}", plain(&String::from_utf8_lossy(line)))?;
            line.clear();
        }
    }
    Ok(())
}

/// Removes escape sequences and other control characters except tabs.
fn plain(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line.trim_end_matches('\r').chars();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => {
                // A CSI sequence has parameters and one final byte. Other sequences have one byte after the escape.
                if rest.next() == Some('[') {
                    rest.find(|c| ('@'..='~').contains(c));
                }
            }
            '\t' => plain.push(c),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_line_cannot_control_the_terminal() {
        for (line, expected) in [
            ("plain\ttext", "plain\ttext"),
            ("\u{1b}[0;1;39mbold\u{1b}[0m\r", "bold"),
            ("a\u{1b}]0;title\u{7}b", "a0;titleb"),
            ("\u{1b}[2J\u{1b}[Hx", "x"),
            ("a\u{8}b\u{9b}2Jc", "ab2Jc"),
            ("cut \u{1b}[12;", "cut "),
            ("cut \u{1b}", "cut "),
        ] {
            assert_eq!(plain(line), expected, "{line:?}");
        }
    }

    struct Lines(mpsc::Sender<Vec<u8>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_is_followed_across_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("kernel.log");
        fs::write(&log, "one\ntw").unwrap();
        let (lines, shown) = mpsc::channel();
        let follow = Follow::start(&log, Lines(lines)).unwrap();
        let mut text = String::new();
        let mut await_text = |expected: &str| {
            while text != expected {
                text.push_str(&String::from_utf8(shown.recv().unwrap()).unwrap());
                assert!(expected.starts_with(&text), "{text:?}");
            }
        };
        await_text("one\n");
        File::options().append(true).open(&log).unwrap().write_all(b"o\n").unwrap();
        await_text("one\ntwo\n");
        fs::rename(&log, dir.path().join("kernel.log.1")).unwrap();
        fs::write(&log, "three\nfour").unwrap();
        await_text("one\ntwo\nthree\n");
        drop(follow);
        await_text("one\ntwo\nthree\nfour\n");
    }
}
