//! How a tool starts: it restores the descriptors and signals that its code relies on, whatever the caller left.
//!
//! Ignored signals stay ignored, for nohup(1), except SIGCHLD: a process that ignores it cannot wait for its children (wait(2)).
//! Blocked signals are unblocked, because a program cannot know which ones its caller has blocked.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, fcntl_getfd};

/// Restores the signals. `main` calls this first, while the process has one thread. Processes that msb-boot starts from itself do not
/// call it, because they are started with signals blocked on purpose.
pub fn signals() {
    if ignored().is_none_or(|ignored| ignored.contains(Signal::SIGCHLD)) {
        // A handler without an effect. Unlike the default action it can be set without unsafe code, and exec(2) resets it. It
        // interrupts system calls, so it is only installed if SIGCHLD was ignored.
        let _ = signal_hook::flag::register(libc::SIGCHLD, Arc::new(AtomicBool::new(false)));
    }
    let _ = SigSet::empty().thread_set_mask();
}

/// Opens those of descriptors 0 to 2 that are closed, before the standard library does. It would open `/dev/null` for reading and
/// writing, so that output is lost without an error. Here, using them fails with EBADF, as on a closed descriptor.
#[ctor::ctor]
fn streams() {
    // open(2) uses the lowest free descriptor, so the order matters.
    for (stream, opposite) in [
        (rustix::stdio::stdin(), OFlags::WRONLY),
        (rustix::stdio::stdout(), OFlags::RDONLY),
        (rustix::stdio::stderr(), OFlags::RDONLY),
    ] {
        if fcntl_getfd(stream) == Err(Errno::BADF)
            && let Ok(null) = rustix::fs::open(c"/dev/null", opposite, Mode::empty())
        {
            std::mem::forget(null);
        }
    }
}

/// The signals that this process ignores; `None` if /proc is not mounted.
pub fn ignored() -> Option<SigSet> {
    ignored_in(&fs::read_to_string("/proc/self/status").ok()?)
}

/// The ignored signals in the text of `/proc/PID/status`, without real-time signals.
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
