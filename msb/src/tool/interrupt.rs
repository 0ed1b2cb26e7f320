//! SIGINT, SIGTERM and SIGHUP during a long operation: the operation undoes what it has begun, and the tool exits with 128 plus
//! the signal's number within a moment. A second signal ends it at once. What an operation itself calls is in [`crate::interrupt`].

use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal as Number};
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};

pub use crate::interrupt::{DeferExit, Registered, check, output, register, signal};
use crate::interrupt::{interrupt, may_exit, on_release};
use crate::tool::{exit, start};

/// A second signal counts only this long after the first one: timeout(1), for one, signals its child and then the whole group.
pub const IMPATIENCE: Duration = Duration::from_millis(500);

/// The tool that exits when it is interrupted, and its message; none if its caller does that.
static TOOL: Mutex<Option<(&'static str, &'static str)>> = Mutex::new(None);

/// A pipe whose writer is closed once this process is interrupted.
static INTERRUPTED: Mutex<Option<PipeReader>> = Mutex::new(None);

fn tool() -> MutexGuard<'static, Option<(&'static str, &'static str)>> {
    TOOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Receives the three signals until it is dropped; after that they stay blocked.
#[derive(Debug)]
pub struct Guard {
    end: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Guard {
    /// For the tool `name`, which exits when it is interrupted. The process must still have a single thread.
    ///
    /// # Errors
    /// Those of `signalfd(2)` and of starting a thread.
    pub fn new(name: &'static str) -> io::Result<Self> {
        Self::with_message(name, "interrupted")
    }

    /// As [`Self::new`], with a message that says what is kept.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_message(name: &'static str, message: &'static str) -> io::Result<Self> {
        *tool() = Some((name, message));
        on_release(Some(exit_if_interrupted));
        Self::start(None)
    }

    /// For a process that only cancels its current operation: on a signal, and when the peer of `socket` disconnects.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_peer(socket: OwnedFd) -> io::Result<Self> {
        Self::start(Some(socket))
    }

    fn start(peer: Option<OwnedFd>) -> io::Result<Self> {
        let ignored = start::ignored().unwrap_or(SigSet::empty());
        let wanted = [Number::SIGINT, Number::SIGTERM, Number::SIGHUP].into_iter();
        let signals: SigSet = wanted.filter(|&signal| !ignored.contains(signal)).collect();
        signals.thread_block()?;
        let signals = SignalFd::new(&signals)?;
        let (ended, end) = io::pipe()?;
        let (reader, writer) = io::pipe()?;
        *INTERRUPTED.lock().unwrap_or_else(PoisonError::into_inner) = Some(reader);
        let (mut writer, mut first) = (Some(writer), None);
        let watch = move || loop {
            let mut fds = vec![PollFd::new(&signals, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
            // Without a requested event, poll(2) reports only the end of a socket.
            fds.extend(peer.iter().map(|peer| PollFd::new(peer, PollFlags::empty())));
            if poll(&mut fds, None).is_err() {
                continue;
            }
            let happened: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if happened[0] {
                let info = signals.read_signal().ok().flatten();
                drop(writer.take());
                on_signal(info.map_or(Number::SIGINT as i32, |info| info.ssi_signo.cast_signed()), &mut first);
            } else if happened[1] {
                return;
            } else if happened.get(2) == Some(&true) {
                drop(writer.take());
                on_signal(Number::SIGHUP as i32, &mut first);
                return;
            }
        };
        let thread = std::thread::Builder::new().name("interrupt".into()).spawn(watch)?;
        Ok(Self { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        *tool() = None;
        on_release(None);
        // The thread sees that the pipe has no writer.
        drop(self.end.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Stdin, whose reads fail once this process is interrupted.
#[derive(Debug)]
pub struct Stdin;

impl Read for Stdin {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        let stdin = rustix::stdio::stdin();
        await_readable(stdin)?;
        Ok(rustix::io::read(stdin, &mut *block)?)
    }
}

/// Waits until a descriptor is readable or at its end.
///
/// # Errors
/// Those of [`check`], once this process is interrupted.
pub fn await_readable(fd: BorrowedFd<'_>) -> io::Result<()> {
    let interrupted = {
        let pipe = INTERRUPTED.lock().unwrap_or_else(PoisonError::into_inner);
        pipe.as_ref().map(PipeReader::try_clone).transpose()?
    };
    loop {
        check()?;
        let mut fds = vec![PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        fds.extend(interrupted.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if !fds[0].revents().is_empty() {
            return Ok(());
        }
    }
}

fn on_signal(number: i32, first: &mut Option<Instant>) {
    let is_impatient = first.get_or_insert_with(Instant::now).elapsed() >= IMPATIENCE;
    interrupt(number);
    if is_impatient || may_exit() {
        exit_if_interrupted();
    }
}

fn exit_if_interrupted() {
    if let (Some(number), Some((tool, message))) = (signal(), *tool()) {
        exit::warn(tool, message);
        std::process::exit(i32::from(exit::SIGNAL_BASE) + number);
    }
}
