//! The end of the machine: everything gets TERM, then KILL; file systems are written back; the machine resets, which
//! both VMMs take for its end (neither has a way to power off).

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::early::{self, Made};
use crate::reap::Reaper;

/// How long processes may take to end on TERM where nobody says.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);
/// How long the kernel may take to end what got KILL: only a process stuck in the kernel needs any.
const KILL_GRACE: Duration = Duration::from_secs(1);

/// A shutdown that somebody asked for.
#[derive(Debug, Default)]
pub struct Wish {
    grace: Mutex<Option<Duration>>,
}

impl Wish {
    /// Asks PID 1's main thread for a shutdown. The first wish counts.
    pub fn ask(&self, grace: Duration) {
        self.grace.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(grace);
        // The main thread waits for signals and nothing else.
        let _ = kill(Pid::this(), Signal::SIGTERM);
    }

    /// How long processes may take to end.
    pub fn grace(&self) -> Duration {
        self.grace.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(DEFAULT_GRACE)
    }
}

/// Ends every process but this one; `reaper` must be running in another thread.
pub fn end_processes(reaper: &Reaper, grace: Duration) {
    let everybody = Pid::from_raw(-1);
    let _ = kill(everybody, Signal::SIGTERM);
    let _ = kill(everybody, Signal::SIGCONT);
    if !reaper.wait_childless(grace) {
        crate::say("processes are left after the grace: killing them");
        let _ = kill(everybody, Signal::SIGKILL);
        reaper.wait_childless(KILL_GRACE);
    }
}

/// Writes everything back, takes the mounts down and ends the machine.
pub fn end_machine(made: &Made) -> ! {
    nix::unistd::sync();
    early::leave_root(made);
    nix::unistd::sync();
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    // Not reached: the kernel resets, or PID 1 may not leave.
    loop {
        nix::unistd::pause();
    }
}
