//! Signals that are the command's, not ours.

use std::{fs, io, thread};

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
    let ignored = ignored(&fs::read_to_string("/proc/self/status").unwrap_or_default());
    let is_heard = |signal: &Signal| ignored & (1 << (*signal as i32 - 1)) == 0 || *signal == Signal::SIGWINCH;
    let signals: SigSet = PASSED_ON.into_iter().filter(is_heard).collect();
    signals.thread_block()?;
    Ok(Held(signals))
}

/// The set of ignored signals in `/proc/PID/status`.
fn ignored(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

/// Passes signals on from now on; a change of the terminal's size as that, where the command has a terminal.
pub fn pass_on(Held(signals): Held, sending: &Sending, has_terminal: bool) {
    let sending = sending.clone();
    thread::spawn(move || {
        let mut insisted = 0;
        while let Ok(signal) = signals.wait() {
            let message = match signal {
                Signal::SIGWINCH if has_terminal => Message::Resize(tty::size()),
                other => Message::Signal(SignalBody { signal: other as i32, all: false }),
            };
            insisted += usize::from(matches!(signal, Signal::SIGINT | Signal::SIGTERM));
            let sent = sending.message(&message);
            if signal != Signal::SIGWINCH && (sent.is_err() || insisted >= PATIENT_SIGNALS) {
                // Nobody there to pass it on to: it is for us.
                tty::restore();
                let _ = signals.thread_unblock();
                let _ = nix::sys::signal::raise(signal);
            }
        }
    });
}

/// A signal's number, by its name with or without SIG, or as it is.
pub fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    name.parse::<Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    #[test]
    fn ignored_signals_are_read_from_the_kernels_set() {
        assert_eq!(super::ignored("SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!(super::ignored(""), 0);
    }
}
