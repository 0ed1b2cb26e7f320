//! INT, TERM and HUP in the middle of a long step: the step takes back what it has begun, and the tool ends with 128 and the signal's
//! number within a moment. A second signal waits for nothing.
//!
//! Long steps ask [`check`] now and then, start programs by [`output`], and hold a [`Begun`] while there is something to take back.
//! Without a [`Guard`] all of that does nothing, and a signal does what it always does.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// The signal that came first; 0: none.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// How many [`Begun`] there are.
static BEGUN: AtomicUsize = AtomicUsize::new(0);

/// The signal that came, by its number.
pub fn signal() -> Option<i32> {
    Some(SIGNAL.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
}

/// Whether to go on.
///
/// # Errors
/// Once a signal has come.
pub fn check() -> io::Result<()> {
    // Not of the kind Interrupted, for which loops try again.
    if signal().is_some() { Err(io::Error::other("interrupted")) } else { Ok(()) }
}

/// As long as it lives there is something that has to be taken back, or finished.
#[derive(Debug)]
pub struct Begun(());

impl Begun {
    /// Before anything is made.
    #[expect(clippy::new_without_default, reason = "it counts")]
    pub fn new() -> Self {
        BEGUN.fetch_add(1, Ordering::SeqCst);
        Self(())
    }

    /// What was begun has come to its end, and a signal that came too late changes nothing.
    pub fn finish(self) {
        SIGNAL.store(0, Ordering::SeqCst);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let is_last = BEGUN.fetch_sub(1, Ordering::SeqCst) == 1;
        #[cfg(feature = "cli")]
        if is_last {
            guard::end_if_interrupted();
        }
        #[cfg(not(feature = "cli"))]
        let _ = is_last;
    }
}

#[cfg(feature = "cli")]
pub use guard::{Guard, IMPATIENCE, Registered, Stdin, output, register};

#[cfg(feature = "cli")]
mod guard {
    use std::io::{self, PipeReader, PipeWriter, Read};
    use std::os::fd::{AsFd, OwnedFd};
    use std::process::{Child, Command, Output, Stdio};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::thread::JoinHandle;
    use std::time::{Duration, Instant};

    use nix::sys::signal::{SigSet, Signal as Number};
    use nix::sys::signalfd::SignalFd;
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    use super::{BEGUN, SIGNAL, check, signal};
    use crate::{tool::exit, tool::start};

    /// How long after the first signal another one is a person's who does not want to wait: timeout(1), for one, sends it twice, to its
    /// child and to the group.
    pub const IMPATIENCE: Duration = Duration::from_millis(500);

    /// The tool that ends when it is interrupted, and nothing is begun; none where somebody else sees to the end.
    static TOOL: Mutex<Option<&'static str>> = Mutex::new(None);
    /// Processes that are signalled too.
    static CHILDREN: Mutex<Vec<(u64, OwnedFd, Signal)>> = Mutex::new(Vec::new());

    /// Has no writer any more when this process was interrupted.
    static BELL: Mutex<Option<PipeReader>> = Mutex::new(None);

    fn tool() -> MutexGuard<'static, Option<&'static str>> {
        TOOL.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn children() -> MutexGuard<'static, Vec<(u64, OwnedFd, Signal)>> {
        CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the three signals until it is dropped; from then on they are blocked.
    #[derive(Debug)]
    pub struct Guard {
        end: Option<PipeWriter>,
        thread: Option<JoinHandle<()>>,
    }

    impl Guard {
        /// For the tool `name`, which must have one thread yet: it ends.
        ///
        /// # Errors
        /// What `signalfd(2)` or starting a thread says.
        pub fn new(name: &'static str) -> io::Result<Self> {
            *tool() = Some(name);
            Self::start(None)
        }

        /// For a process that only stops what it does: at a signal, and when the other side of `socket` is gone.
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
            let (bell, ring) = io::pipe()?;
            *BELL.lock().unwrap_or_else(PoisonError::into_inner) = Some(bell);
            let (mut ring, mut first) = (Some(ring), None);
            let watch = move || loop {
                let mut fds = vec![PollFd::new(&signals, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
                // Of a socket only its end.
                fds.extend(peer.iter().map(|peer| PollFd::new(peer, PollFlags::empty())));
                if poll(&mut fds, None).is_err() {
                    continue;
                }
                let happened: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
                if happened[0] {
                    let info = signals.read_signal().ok().flatten();
                    drop(ring.take());
                    interrupt(info.map_or(Number::SIGINT as i32, |info| info.ssi_signo.cast_signed()), &mut first);
                } else if happened[1] {
                    return;
                } else if happened.get(2) == Some(&true) {
                    drop(ring.take());
                    interrupt(Number::SIGHUP as i32, &mut first);
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
            // The thread sees that the pipe has no writer.
            drop(self.end.take());
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }

    /// Stdin, of which a read ends when this process is interrupted.
    #[derive(Debug)]
    pub struct Stdin;

    impl Read for Stdin {
        fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
            let bell = BELL.lock().unwrap_or_else(PoisonError::into_inner);
            let bell = bell.as_ref().map(PipeReader::try_clone).transpose()?;
            loop {
                check()?;
                let stdin = rustix::stdio::stdin();
                let mut fds = vec![PollFd::from_borrowed_fd(stdin, PollFlags::IN)];
                fds.extend(bell.iter().map(|bell| PollFd::new(bell, PollFlags::IN)));
                match poll(&mut fds, None) {
                    Err(rustix::io::Errno::INTR) => continue,
                    other => other?,
                };
                if !fds[0].revents().is_empty() {
                    return Ok(rustix::io::read(stdin, &mut *block)?);
                }
            }
        }
    }

    fn interrupt(number: i32, first: &mut Option<Instant>) {
        let _ = SIGNAL.compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst);
        let is_impatient = first.get_or_insert_with(Instant::now).elapsed() >= IMPATIENCE;
        for (_, process, signal) in children().iter() {
            let _ = pidfd_send_signal(process, *signal);
        }
        if is_impatient || BEGUN.load(Ordering::SeqCst) == 0 {
            end_if_interrupted();
        }
    }

    pub(super) fn end_if_interrupted() {
        if let (Some(number), Some(tool)) = (signal(), *tool()) {
            exit::warn(tool, "interrupted");
            std::process::exit(i32::from(exit::SIGNAL_BASE) + number);
        }
    }

    /// A process that is signalled when this one is interrupted, until this is dropped.
    #[derive(Debug)]
    pub struct Registered(u64);

    impl Drop for Registered {
        fn drop(&mut self) {
            children().retain(|(number, ..)| *number != self.0);
        }
    }

    /// Has a child get `signal` when this process is interrupted.
    ///
    /// # Errors
    /// What `pidfd_open(2)` says.
    pub fn register(child: &Child, signal: Signal) -> io::Result<Registered> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let mut children = children();
        if check().is_err() {
            let _ = pidfd_send_signal(process.as_fd(), signal);
        }
        children.push((number, process, signal));
        Ok(Registered(number))
    }

    /// Runs a program to its end, as [`Command::output`] does, and kills it when this process is interrupted.
    ///
    /// # Errors
    /// What starting says, and [`check`].
    pub fn output(command: &mut Command) -> io::Result<Output> {
        check()?;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let registered = match register(&child, Signal::KILL) {
            Ok(registered) => registered,
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                return Err(error);
            }
        };
        let output = child.wait_with_output();
        drop(registered);
        check()?;
        output
    }
}
