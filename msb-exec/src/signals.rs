//! Forwarding of signals to the command.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, thread};

use msb::tool::start;
use msb::wire::Message;
use msb::wire::exec::Signal as SignalBody;
use nix::sys::signal::{SigSet, Signal};

use crate::sending::Sending;
use crate::tty;

/// The signals that are forwarded.
const FORWARDED: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// Signals of job control. They are for this process, and change which job owns the terminal.
const JOB_CONTROL: [Signal; 2] = [Signal::SIGTSTP, Signal::SIGCONT];

/// After so many INT or TERM, msb-exec itself ends, whatever the guest does.
const INSISTENT_SIGNALS: usize = 3;

/// Signals that are blocked for [`forward`].
pub struct BlockedSignals(SigSet);

/// Blocks the signals that are forwarded, except those that the caller has set to be ignored, as nohup(1) does. Call this before
/// any thread is started, so that all threads inherit the mask.
///
/// # Errors
/// Those of `pthread_sigmask(3)`.
pub fn block() -> io::Result<BlockedSignals> {
    let ignored = start::ignored().unwrap_or(SigSet::empty());
    let is_heard = |signal: &Signal| !ignored.contains(*signal) || *signal == Signal::SIGWINCH;
    let signals: SigSet = FORWARDED.into_iter().chain(JOB_CONTROL).filter(is_heard).collect();
    signals.thread_block()?;
    Ok(BlockedSignals(signals))
}

/// Starts forwarding signals. SIGWINCH is sent as a resize if the command has a terminal.
pub fn forward(BlockedSignals(signals): BlockedSignals, sending: &Sending, has_terminal: &Arc<AtomicBool>) {
    let (sending, has_terminal) = (sending.clone(), Arc::clone(has_terminal));
    thread::spawn(move || {
        let mut insisted = 0;
        while let Ok(signal) = signals.wait() {
            let has_terminal = has_terminal.load(Ordering::Relaxed);
            let message = match signal {
                Signal::SIGTSTP => {
                    stop();
                    continue;
                }
                // The size may have changed while this process was stopped.
                Signal::SIGCONT if tty::resume() && has_terminal => Message::Resize(tty::size()),
                Signal::SIGCONT => continue,
                Signal::SIGWINCH if has_terminal => Message::Resize(tty::size()),
                other => Message::Signal(SignalBody { signal: other as i32, all: false }),
            };
            insisted += usize::from(matches!(signal, Signal::SIGINT | Signal::SIGTERM));
            let sent = sending.message(&message);
            if !matches!(signal, Signal::SIGWINCH | Signal::SIGCONT) && (sent.is_err() || insisted >= INSISTENT_SIGNALS)
            {
                // The agent is gone or does not react: the signal ends this process.
                tty::restore();
                let _ = signals.thread_unblock();
                let _ = nix::sys::signal::raise(signal);
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
