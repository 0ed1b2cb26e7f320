//! All processes of an exec: its cgroup where there are cgroups, else those of its process group and its session.

use std::fs;
use std::sync::Arc;

use nix::libc::SIGKILL;

use crate::cgroup::{Cgroup, Cgroups};
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
    /// The group that the command leads.
    pub fn new(process: Arc<Awaited>, cgroup: Option<Cgroup>) -> Self {
        Self { process, cgroup }
    }

    /// Sends a signal, by its number, to the command's process group.
    pub fn signal(&self, reaper: &Reaper, signal: i32) {
        reaper.signal(&self.process, signal);
    }

    /// Sends a signal, by its number, to every process.
    pub fn signal_all(&self, reaper: &Reaper, signal: i32) {
        self.signal(reaper, signal);
        let others = match &self.cgroup {
            Some(cgroup) if signal == SIGKILL && cgroup.end() => return,
            Some(cgroup) => cgroup.processes(),
            None => session_of(self.process.pid),
        };
        for pid in others.into_iter().filter(|&pid| pid != self.process.pid) {
            sys::signal_process(pid, signal);
        }
    }

    /// Ends what is there still when the command has ended.
    pub fn end(&self) {
        if self.cgroup.as_ref().is_some_and(Cgroup::end) {
            return;
        }
        let session = session_of(self.process.pid);
        // The command has been reaped. One of its number is another's, and then nobody of the session was left: the kernel gives no
        // number of a session that there is.
        if session.contains(&self.process.pid) {
            return;
        }
        for pid in session {
            sys::signal_process(pid, SIGKILL);
        }
    }

    /// The processor time that all took, in microseconds: in user mode and in the kernel.
    pub fn time(&self) -> Option<(u64, u64)> {
        self.cgroup.as_ref()?.time()
    }

    /// Gives the cgroup back.
    pub fn dispose(&mut self, cgroups: &Cgroups) {
        if let Some(cgroup) = self.cgroup.take() {
            cgroups.dispose(cgroup);
        }
    }
}

/// The processes whose session a process leads or led.
fn session_of(leader: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| session_in(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()) == Some(leader))
        .collect()
}

/// The session in a line of `/proc/PID/stat`: the fourth field behind the name, which may hold anything.
fn session_in(stat: &str) -> Option<i32> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_session_is_found_behind_any_name() {
        assert_eq!(super::session_in("12 (a) b) (c) S 1 12 7 0 -1"), Some(7));
        assert_eq!(super::session_in(""), None);
        assert_eq!(super::session_in("12 (sh) S"), None);
    }
}
