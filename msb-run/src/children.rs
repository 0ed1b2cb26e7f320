//! The processes of a run that get the signals which msb-run gets.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use msb::tool::{exit, start};
use nix::libc::SI_KERNEL;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

/// The signals that are passed on.
const FORWARDED: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// The children that run now. Signals do not end this process: it ends after its children, when all is cleaned up.
#[derive(Clone, Debug)]
pub struct Children {
    /// The tool whose children they are, for messages.
    pub tool: &'static str,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    running: Vec<OwnedFd>,
    first_signal: Option<Signal>,
}

impl Children {
    /// Starts passing on the signals of this tool, except those that its caller has set to be ignored. Call this before any other thread is
    /// started.
    ///
    /// # Errors
    /// Those of signalfd(2).
    pub fn new(tool: &'static str) -> io::Result<Self> {
        let ignored = start::ignored().unwrap_or(SigSet::empty());
        let signals: SigSet = FORWARDED.into_iter().filter(|&signal| !ignored.contains(signal)).collect();
        signals.thread_block()?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
        let children = Self { tool, state: Arc::default() };
        let own = children.clone();
        thread::spawn(move || {
            while let Ok(info) = signals.read_signal() {
                let Some(info) = info else { continue };
                let Some(signal) = i32::try_from(info.ssi_signo).ok().and_then(|number| number.try_into().ok()) else {
                    continue;
                };
                // The kernel sends a terminal's signals to the children too: they are in the same process group.
                own.signalled(signal, info.ssi_code != SI_KERNEL);
            }
        });
        Ok(children)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signalled(&self, signal: Signal, passes_on: bool) {
        let mut state = self.state();
        state.first_signal.get_or_insert(signal);
        if passes_on {
            state.running.iter().for_each(|child| send(child, signal));
        }
    }

    /// Adds a child. It gets a signal that came before.
    ///
    /// # Errors
    /// Those of pidfd_open(2).
    pub fn add(&self, child: &Child) -> io::Result<()> {
        let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let mut state = self.state();
        state.first_signal.iter().for_each(|&signal| send(&process, signal));
        state.running.push(process);
        Ok(())
    }

    /// Ends all children that run, and forgets them. The caller waits for each.
    pub fn end(&self) {
        self.state().running.drain(..).for_each(|child| send(&child, Signal::SIGTERM));
    }

    /// Forgets the children, which have ended.
    pub fn forget(&self) {
        self.state().running.clear();
    }

    /// The exit status after a tool that has failed: that of the first signal, if one came, or `code`.
    pub fn exit_code(&self, code: u8) -> u8 {
        self.first_signal().map_or(code, |signal| exit::SIGNAL_BASE.saturating_add(signal))
    }

    /// The number of the first signal that came.
    pub fn first_signal(&self) -> Option<u8> {
        self.state().first_signal.and_then(|signal| u8::try_from(signal as i32).ok())
    }
}

fn send(child: &OwnedFd, signal: Signal) {
    if let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) {
        let _ = pidfd_send_signal(child, signal);
    }
}
