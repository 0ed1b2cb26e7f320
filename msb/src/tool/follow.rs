//! Reads a log of a guest while it grows, such as its console, which is shown without what would control the terminal.

use std::fs::{self, File, Metadata};
use std::io::{self, PipeWriter, Read, Write};
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

/// The longest line, in bytes. A longer one is broken.
const MAX_LINE: usize = 4096;

/// What is done with the bytes of a log.
pub trait Sink {
    /// Takes the next bytes. `Break`: no more are wanted.
    ///
    /// # Errors
    /// Those of writing.
    fn take(&mut self, bytes: &[u8]) -> io::Result<ControlFlow<()>>;

    /// Writes what is still held back.
    ///
    /// # Errors
    /// Those of writing.
    fn flush(&mut self) -> io::Result<()>;

    /// The log is complete.
    ///
    /// # Errors
    /// Those of writing.
    fn finish(&mut self) -> io::Result<()> {
        self.flush()
    }
}

impl<S: Sink> Sink for &mut S {
    fn take(&mut self, bytes: &[u8]) -> io::Result<ControlFlow<()>> {
        (**self).take(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (**self).flush()
    }

    fn finish(&mut self) -> io::Result<()> {
        (**self).finish()
    }
}

/// Shows lines without escape sequences and other control characters.
#[derive(Debug)]
pub struct Lines<W> {
    line: Vec<u8>,
    out: W,
}

impl<W> Lines<W> {
    /// Lines that are shown on `out`.
    pub fn new(out: W) -> Self {
        Self { line: Vec::new(), out }
    }
}

impl<W: Write> Sink for Lines<W> {
    /// Writes the complete lines.
    fn take(&mut self, bytes: &[u8]) -> io::Result<ControlFlow<()>> {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
            }
            if byte == b'\n' || self.line.len() == MAX_LINE {
                writeln!(self.out, "{}", plain(&String::from_utf8_lossy(&self.line)))?;
                self.line.clear();
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn finish(&mut self) -> io::Result<()> {
        if !self.line.is_empty() {
            let _ = self.take(b"\n")?;
        }
        self.out.flush()
    }
}

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
        let (watch, mut reading) = (watch(log)?, Reading::new(log, Lines::new(out)));
        let thread = thread::spawn(move || {
            let _ = reading.follow(&watch, &hung_up);
        });
        Ok(Self { hang_up: Some(hang_up), thread: Some(thread) })
    }
}

/// Gives `sink` a log from its beginning, and before it `older`, the part that was renamed when the log was rotated. With `until`, follows
/// the log until that descriptor is readable or hung up.
///
/// # Errors
/// Those of inotify(7), and of reading and writing.
pub fn read(log: &Path, older: &Path, sink: impl Sink, until: Option<&OwnedFd>) -> io::Result<()> {
    let mut reading = Reading::new(log, sink);
    let watch = until.map(|until| Ok::<_, io::Error>((watch(log)?, until))).transpose()?;
    if reading.begin(older)?.is_break() {
        return reading.sink.finish();
    }
    match watch {
        Some((watch, until)) => reading.follow(&watch, until),
        None => reading.read().and_then(|_| reading.sink.finish()),
    }
}

/// Waits until `log` exists, but not longer than `limit`. Returns whether it does.
///
/// # Errors
/// Those of inotify(7), for example that its directory does not exist.
pub fn wait_for(log: &Path, limit: Duration) -> io::Result<bool> {
    let watch = watch(log)?;
    let deadline = Instant::now() + limit;
    while !log.exists() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => discard_events(&watch),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
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
    discard_events(watch);
    !is_over
}

fn discard_events(watch: &OwnedFd) {
    let mut block = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(watch, &mut block);
    while events.next().is_ok() {}
}

/// The state of reading a log.
struct Reading<S> {
    log: PathBuf,
    file: Option<File>,
    sink: S,
}

impl<S: Sink> Reading<S> {
    fn new(log: &Path, sink: S) -> Self {
        Self { log: log.to_owned(), file: None, sink }
    }

    fn follow(&mut self, watch: &OwnedFd, until: &impl AsFd) -> io::Result<()> {
        let mut waits = true;
        while self.read()?.is_continue() && waits {
            waits = wait(watch, until);
        }
        self.sink.finish()
    }

    /// Opens the log, and reads its older part. The log is opened first: if it is rotated now, it is read all the same.
    fn begin(&mut self, older: &Path) -> io::Result<ControlFlow<()>> {
        let log = File::open(&self.log)?;
        match File::open(older) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(older) if identity(&older.metadata()?) == identity(&log.metadata()?) => {}
            older => self.file = Some(older?),
        }
        let flow = self.read_file()?;
        self.file = Some(log);
        Ok(flow)
    }

    /// Reads the rest of the open file.
    fn read_file(&mut self) -> io::Result<ControlFlow<()>> {
        let Some(file) = &mut self.file else { return Ok(ControlFlow::Continue(())) };
        let mut block = [0u8; 4096];
        loop {
            let got = file.read(&mut block)?;
            if got == 0 || self.sink.take(&block[..got])?.is_break() {
                return Ok(if got == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) });
            }
        }
    }

    /// Reads what was appended. When a log has been rotated, another file has its name.
    fn read(&mut self) -> io::Result<ControlFlow<()>> {
        loop {
            if self.read_file()?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let named = fs::metadata(&self.log).ok().as_ref().map(identity);
            let ours = self.file.as_ref().and_then(|file| file.metadata().ok()).as_ref().map(identity);
            if named.is_none() || named == ours {
                return self.sink.flush().map(ControlFlow::Continue);
            }
            // Something may have been written to the old file before it was renamed. It does not change any more.
            if self.read_file()?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            self.file = match File::open(&self.log) {
                // It was removed in between, and has no name in the next round.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                other => Some(other?),
            };
        }
    }
}

/// The device and inode numbers of a file.
fn identity(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
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

    struct Sent(mpsc::Sender<Vec<u8>>);

    impl Write for Sent {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_is_read_after_its_older_part() {
        let dir = tempfile::tempdir().unwrap();
        let (log, older) = (dir.path().join("log"), dir.path().join("log.1"));
        let shown = || {
            let mut text = Vec::new();
            read(&log, &older, Lines::new(&mut text), None).map(|()| String::from_utf8(text).unwrap())
        };
        assert_eq!(shown().unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&log, "new\n").unwrap();
        assert_eq!(shown().unwrap(), "new\n");
        fs::write(&older, "old\nsplit ").unwrap();
        assert_eq!(shown().unwrap(), "old\nsplit new\n");
    }

    #[test]
    fn a_sink_that_wants_no_more_ends_the_reading() {
        struct First(Vec<u8>);
        impl Sink for First {
            fn take(&mut self, bytes: &[u8]) -> io::Result<ControlFlow<()>> {
                self.0.extend(bytes);
                Ok(ControlFlow::Break(()))
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let (log, older) = (dir.path().join("log"), dir.path().join("log.1"));
        fs::write(&log, "new").unwrap();
        fs::write(&older, "old").unwrap();
        let (never, _open) = io::pipe().unwrap();
        let mut first = First(Vec::new());
        read(&log, &older, &mut first, Some(&never.into())).unwrap();
        assert_eq!(first.0, b"old");
    }

    #[test]
    fn a_log_is_followed_across_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("kernel.log");
        fs::write(&log, "one\ntw").unwrap();
        let (lines, shown) = mpsc::channel();
        let follow = Follow::start(&log, Sent(lines)).unwrap();
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
