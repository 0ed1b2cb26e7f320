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

use crate::signals::{Mask, Signals};

/// Restores the signals. `main` calls this first, while the process has one thread. Processes that msb-boot starts from itself do not
/// call it, because they are started with signals blocked on purpose.
pub fn signals() {
    if ignored().is_none_or(|ignored| ignored.contains(Signal::SIGCHLD)) {
        // A handler without an effect, which exec(2) resets. nix and signal_hook have a safe call for a handler, and none for the
        // default action. It interrupts system calls, so it is only installed if SIGCHLD was ignored.
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

/// The signals that this process ignores, without real-time signals; `None` if /proc is not mounted.
pub fn ignored() -> Option<SigSet> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let ignored = Signals::in_status(&status, Mask::Ignored)?;
    Some(Signal::iterator().filter(|&signal| ignored.contains(signal as i32)).collect())
}
