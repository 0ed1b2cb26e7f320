//! How a tool starts: with the descriptors and signals that its code relies on, whatever state its caller left them in.
//!
//! What is ignored stays ignored, as nohup(1) wants it, but for SIGCHLD: a process that ignores it cannot wait for its children
//! (wait(2)). What is blocked is unblocked, for no program that is called can know what else its caller blocked.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, fcntl_getfd};

/// Restores the signals. The first thing that `main` does, before there is a second thread. The program's own roles, which it
/// starts itself with signals blocked on purpose, leave it out.
pub fn signals() {
    if ignored().is_none_or(|ignored| ignored.contains(Signal::SIGCHLD)) {
        // A handler that does nothing of use: unlike the default action, it can be had without unsafe code, and a program
        // that this one starts has the default action again. It interrupts system calls, so only a caller that wants it so has it.
        let _ = signal_hook::flag::register(libc::SIGCHLD, Arc::new(AtomicBool::new(false)));
    }
    let _ = SigSet::empty().thread_set_mask();
}

/// Opens what is closed of descriptors 0 to 2, before the standard library does: it would have each read and write
/// `/dev/null`, so that output which cannot be written is lost without an error. Here reading or writing fails with EBADF, as it
/// does on a closed descriptor.
#[ctor::ctor]
fn streams() {
    // The lowest free number is what open(2) takes, so the order matters.
    for (stream, contrary) in [
        (rustix::stdio::stdin(), OFlags::WRONLY),
        (rustix::stdio::stdout(), OFlags::RDONLY),
        (rustix::stdio::stderr(), OFlags::RDONLY),
    ] {
        if fcntl_getfd(stream) == Err(Errno::BADF)
            && let Ok(null) = rustix::fs::open(c"/dev/null", contrary, Mode::empty())
        {
            std::mem::forget(null);
        }
    }
}

/// The signals that this process was told to ignore; `None` where /proc does not tell.
pub fn ignored() -> Option<SigSet> {
    ignored_in(&fs::read_to_string("/proc/self/status").ok()?)
}

/// The ignored signals in a `/proc/PID/status`. Real-time signals, which have no name, are left out.
fn ignored_in(status: &str) -> Option<SigSet> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(Signal::iterator().filter(|&signal| mask >> (signal as u32 - 1) & 1 == 1).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_kernels_mask() {
        let set = |status: &str| ignored_in(status).map(|set| set.iter().collect::<Vec<_>>());
        assert_eq!(
            set("SigBlk:\t01\nSigIgn:\t0000000000001001\nSigCgt:\t02\n"),
            Some(vec![Signal::SIGHUP, Signal::SIGPIPE])
        );
        assert_eq!(set("SigIgn:\t8000000000010000\n"), Some(vec![Signal::SIGCHLD]));
        assert_eq!(set("SigIgn:\t0\n"), Some(Vec::new()));
        assert_eq!(set("SigIgn:\tx\n"), None);
        assert_eq!(set("SigCgt:\t01\n"), None);
    }
}
