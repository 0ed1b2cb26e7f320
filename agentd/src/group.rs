//! All processes of an exec: those in its cgroup or, without cgroups, those in its process group and session.

use std::sync::{Arc, Weak};

use nix::libc::SIGKILL;
use rustix::process::{Pid, getpgid};

use crate::cgroup::{Cgroup, Cgroups};
use crate::limited::Limited;
use crate::process::{self, Stat};
use crate::reap::{Awaited, Reaper};
use crate::sys;

/// The processes of an exec.
#[derive(Debug)]
pub struct Group {
    /// The command itself.
    pub process: Arc<Awaited>,
    cgroup: Option<Cgroup>,
}

impl Group {
    /// The processes of a command, and its cgroup if it has one.
    pub fn new(process: Arc<Awaited>, cgroup: Option<Cgroup>) -> Self {
        Self { process, cgroup }
    }

    /// Sends a signal, by its number, to the command's process group.
    pub fn signal(&self, reaper: &Reaper, signal: i32) {
        reaper.signal(&self.process, signal);
    }

    /// Sends a signal, by its number, to every process, once.
    pub fn signal_all(&self, reaper: &Reaper, signal: i32) {
        let reached = reaper.signal(&self.process, signal);
        let is_reached = |pid| {
            let group = getpgid(Pid::from_raw(pid)).ok().map(|group| group.as_raw_nonzero().get());
            pid == self.process.pid || group.is_some() && group == reached
        };
        let others = match &self.cgroup {
            Some(cgroup) if signal == SIGKILL && cgroup.end() => return,
            Some(cgroup) => cgroup.processes(),
            None => session_of(self.process.pid),
        };
        for pid in others.into_iter().filter(|&pid| !is_reached(pid)) {
            sys::signal_process(pid, signal);
        }
    }

    /// Kills the processes that are left when the command has ended.
    pub fn end(&self) {
        if self.cgroup.as_ref().is_some_and(Cgroup::end) {
            return;
        }
        let session = session_of(self.process.pid);
        // The command has been reaped. If there is a process with its ID, the ID was reused and the session had no process left: the
        // kernel does not reuse the ID of a session that exists.
        if session.contains(&self.process.pid) {
            return;
        }
        for pid in session {
            sys::signal_process(pid, SIGKILL);
        }
    }

    /// The CPU time of all processes, in microseconds: in user mode and in the kernel.
    pub fn time(&self) -> Option<(u64, u64)> {
        self.cgroup.as_ref()?.time()
    }

    /// Whether the OOM killer has ended one of the processes.
    pub fn was_out_of_memory(&self) -> bool {
        self.cgroup.as_ref().is_some_and(Cgroup::was_out_of_memory)
    }

    /// The cgroup of its container, if that has limits.
    pub fn limited(&self) -> Weak<Limited> {
        self.cgroup.as_ref().and_then(Cgroup::limited).map(Arc::downgrade).unwrap_or_default()
    }

    /// Returns the cgroup to the pool.
    pub fn dispose(&mut self, cgroups: &Cgroups) {
        if let Some(cgroup) = self.cgroup.take() {
            cgroups.dispose(cgroup);
        }
    }
}

/// The processes of a session.
fn session_of(leader: i32) -> Vec<i32> {
    process::pids().filter(|&pid| Stat::read(pid).is_some_and(|stat| stat.session == leader)).collect()
}
