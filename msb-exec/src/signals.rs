//! Signals that are the command's, not ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, thread};

use msb::tool::start;
use msb::wire::Message;
use msb::wire::exec::Signal as SignalBody;
use nix::sys::signal::{SigSet, Signal};

use crate::sending::Sending;
use crate::tty;

/// Signals that the command gets in our place.
const PASSED_ON: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// Signals of job control, which are for this process, and change whose the terminal is.
const OF_JOBS: [Signal; 2] = [Signal::SIGTSTP, Signal::SIGCONT];

/// After so many INT or TERM a person wants an end here, whatever the guest does.
const PATIENT_SIGNALS: usize = 3;

/// Signals that are held for [`pass_on`].
pub struct Held(SigSet);

/// Blocks the signals that are passed on, but for those that the caller has us ignore, as nohup(1) does it. Before any thread
/// is started, so that all have them blocked.
///
/// # Errors
/// What `pthread_sigmask(3)` says.
pub fn hold() -> io::Result<Held> {
    let ignored = start::ignored().unwrap_or(SigSet::empty());
    let is_heard = |signal: &Signal| !ignored.contains(*signal) || *signal == Signal::SIGWINCH;
    let signals: SigSet = PASSED_ON.into_iter().chain(OF_JOBS).filter(is_heard).collect();
    signals.thread_block()?;
    Ok(Held(signals))
}

/// Passes signals on from now on; a change of the terminal's size as that, where the command has a terminal.
pub fn pass_on(Held(signals): Held, sending: &Sending, has_terminal: &Arc<AtomicBool>) {
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
                // The size may have changed meanwhile.
                Signal::SIGCONT if tty::resume() && has_terminal => Message::Resize(tty::size()),
                Signal::SIGCONT => continue,
                Signal::SIGWINCH if has_terminal => Message::Resize(tty::size()),
                other => Message::Signal(SignalBody { signal: other as i32, all: false }),
            };
            insisted += usize::from(matches!(signal, Signal::SIGINT | Signal::SIGTERM));
            let sent = sending.message(&message);
            if !matches!(signal, Signal::SIGWINCH | Signal::SIGCONT) && (sent.is_err() || insisted >= PATIENT_SIGNALS) {
                // Nobody there to pass it on to: it is for us.
                tty::restore();
                let _ = signals.thread_unblock();
                let _ = nix::sys::signal::raise(signal);
            }
        }
    });
}

/// Stops this process, as the terminal's user wants it, with the terminal as it was. Returns when it goes on.
fn stop() {
    tty::suspend();
    let signal: SigSet = [Signal::SIGTSTP].into_iter().collect();
    let _ = signal.thread_unblock();
    let _ = nix::sys::signal::raise(Signal::SIGTSTP);
    let _ = signal.thread_block();
}
