//! Forwarding of signals to the command.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, thread};

use msb::tool::exit::SIGNAL_BASE;
use msb::tool::start;
use msb::wire::Message;
use msb::wire::exec::Signal as SignalBody;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::sending::Sending;
use crate::tty;

/// The signals that are not forwarded: those of faults in this process, of its own children, pipes and terminal, and those that cannot be
/// caught.
const OWN: [Signal; 14] = [
    Signal::SIGILL,
    Signal::SIGTRAP,
    Signal::SIGABRT,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGSEGV,
    Signal::SIGSYS,
    Signal::SIGCHLD,
    Signal::SIGPIPE,
    Signal::SIGURG,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGKILL,
    Signal::SIGSTOP,
];

/// After so many INT or TERM, msb-exec itself ends, whatever the guest does.
const INSISTENT_SIGNALS: usize = 3;

/// Signals that are blocked for [`forward`].
pub struct BlockedSignals {
    set: SigSet,
    fd: SignalFd,
    /// Whether this process stands in for the command, so that no signal is meant for itself.
    stands_in: bool,
}

/// Blocks the signals that are forwarded. A stand-in forwards all signals that can be caught. Otherwise those of [`OWN`] are not
/// forwarded, and neither are those that the caller has set to be ignored, as nohup(1) does. Call this before any thread is started, so
/// that all threads inherit the mask.
///
/// # Errors
/// Those of `pthread_sigmask(3)` and `signalfd(2)`.
pub fn block(stands_in: bool) -> io::Result<BlockedSignals> {
    // This includes real-time signals, for which there are no names.
    let mut set = SigSet::all();
    if !stands_in {
        let ignored = start::ignored().unwrap_or(SigSet::empty());
        let is_ignored = |signal: &Signal| ignored.contains(*signal) && *signal != Signal::SIGWINCH;
        OWN.into_iter().chain(Signal::iterator().filter(is_ignored)).for_each(|signal| set.remove(signal));
    }
    set.thread_block()?;
    let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?;
    Ok(BlockedSignals { set, fd, stands_in })
}

/// Starts forwarding signals. SIGWINCH is sent as a resize if the command has a terminal.
pub fn forward(blocked: BlockedSignals, sending: &Sending, has_terminal: &Arc<AtomicBool>) {
    let (sending, has_terminal) = (sending.clone(), Arc::clone(has_terminal));
    thread::spawn(move || {
        let mut insisted = 0;
        while let Ok(Some(info)) = blocked.fd.read_signal() {
            let number = info.ssi_signo.cast_signed();
            let signal = Signal::try_from(number).ok();
            let has_terminal = has_terminal.load(Ordering::Relaxed);
            let message = match signal {
                Some(Signal::SIGWINCH) if has_terminal => Message::Resize(tty::size()),
                // Job control is for this process, and changes which job owns the terminal.
                Some(Signal::SIGTSTP) if !blocked.stands_in => {
                    stop();
                    continue;
                }
                // The size may have changed while this process was stopped.
                Some(Signal::SIGCONT) if !blocked.stands_in => match tty::resume() && has_terminal {
                    true => Message::Resize(tty::size()),
                    false => continue,
                },
                _ => Message::Signal(SignalBody { signal: number, all: false }),
            };
            let is_insisting = matches!(signal, Some(Signal::SIGINT | Signal::SIGTERM)) && !blocked.stands_in;
            insisted += usize::from(is_insisting);
            let sent = sending.message(&message);
            if !matches!(signal, Some(Signal::SIGWINCH | Signal::SIGCONT))
                && (sent.is_err() || insisted >= INSISTENT_SIGNALS)
            {
                // The agent is gone or does not react: the signal ends this process.
                tty::restore();
                let _ = blocked.set.thread_unblock();
                match signal {
                    Some(signal) => _ = nix::sys::signal::raise(signal),
                    None => std::process::exit(i32::from(SIGNAL_BASE) + number),
                }
            }
        }
    });
}

/// Stops this process with the terminal restored. Returns when it is continued.
fn stop() {
    tty::suspend();
    let signal: SigSet = [Signal::SIGTSTP].into_iter().collect();
    let _ = signal.thread_unblock();
    let _ = nix::sys::signal::raise(Signal::SIGTSTP);
    let _ = signal.thread_block();
}
