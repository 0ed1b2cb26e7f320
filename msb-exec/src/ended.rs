//! Why a VM is gone: what its supervisor left in the run directory.

use std::fs;
use std::path::Path;
use std::time::Duration;

use msb::record::{self, Record, Vm};
use msb::rundir::{self, Ended};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long a supervisor may take from the end of its VM to its own: it writes down how the VM ended in between.
const PATIENCE: Duration = Duration::from_secs(2);

/// How the VM ended, in words; `None` where nobody knows, or another VM has its run directory by now.
pub(crate) fn reason(vm: &Vm) -> Option<String> {
    let dir = vm.endpoint.unix.parent()?;
    let left: Record = serde_json::from_slice(&fs::read(dir.join(record::FILE_NAME)).ok()?).ok()?;
    if left.vm?.pid != vm.pid {
        return None;
    }
    match rundir::find::<Ended>(dir, rundir::ENDED) {
        Some(ended) => Some(ended.reason),
        None => wait_for_reason(dir, vm.pid),
    }
}

/// Whether the VM's supervisor lives.
pub(crate) fn is_alive(vm: &Vm) -> bool {
    let Some(pid) = Pid::from_raw(vm.pid) else { return false };
    pidfd_open(pid, PidfdFlags::empty()).is_ok_and(|process| {
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&Timespec::default())).is_ok_and(|ended| ended == 0)
    })
}

fn wait_for_reason(dir: &Path, supervisor: i32) -> Option<String> {
    let has_ended = match pidfd_open(Pid::from_raw(supervisor)?, PidfdFlags::empty()) {
        Ok(process) => {
            let limit = Timespec::try_from(PATIENCE).ok()?;
            poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).ok()? > 0
        }
        Err(error) => error == Errno::SRCH,
    };
    match rundir::find::<Ended>(dir, rundir::ENDED) {
        Some(ended) => Some(ended.reason),
        None => has_ended.then(|| "its supervisor was killed".into()),
    }
}
