//! Why a VM does not answer, according to the files that its supervisor left in the run directory.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use msb::record::{self, Record, Vm};
use msb::vm::patience::Patience;
use msb::vm::rundir::{self, Ended, Restarting};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long a supervisor may take to write down how its VM ended, and to exit.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(2);

/// The state of a VM that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It has ended, for this reason.
    Ended(String),
    /// It has ended for this reason, and is being restarted.
    Restarting(String),
    /// Unknown, or its run directory is another VM's by now.
    Unknown,
}

/// The state of a VM that answered before.
pub(crate) fn fate(vm: &Vm) -> Fate {
    recorded_fate(vm).unwrap_or(Fate::Unknown)
}

fn recorded_fate(vm: &Vm) -> Option<Fate> {
    let dir = vm.endpoint.unix.parent()?;
    let left: Record = serde_json::from_slice(&fs::read(dir.join(record::FILE_NAME)).ok()?).ok()?;
    if left.vm?.pid != vm.pid {
        return None;
    }
    let deadline = Instant::now() + SUPERVISOR_TIMEOUT;
    let (watch, supervisor) = (watch(dir).ok()?, pidfd_open(Pid::from_raw(vm.pid)?, PidfdFlags::empty()));
    loop {
        // Before the files are read: a supervisor that has ended writes no more.
        let has_ended = match &supervisor {
            Ok(process) => poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&Timespec::default())).ok()? > 0,
            Err(error) => *error == Errno::SRCH,
        };
        if let Some(ended) = rundir::read::<Ended>(dir, rundir::ENDED) {
            return Some(Fate::Ended(ended.reason));
        }
        if has_ended {
            return Some(Fate::Ended("its supervisor was killed".into()));
        }
        if let Some(restarting) = rundir::read::<Restarting>(dir, rundir::RESTARTING) {
            return Some(Fate::Restarting(restarting.reason));
        }
        if !await_change(&watch, supervisor.as_ref().ok(), deadline).ok()? {
            return None;
        }
    }
}

/// Waits until a VM that is being restarted is up. Returns false if it is not up within the limit.
pub(crate) fn await_restart(vm: &Vm, mut patience: Patience) -> bool {
    let mut wait = || -> io::Result<bool> {
        let dir = vm.endpoint.unix.parent().unwrap_or(Path::new("/"));
        let process = pidfd_open(Pid::from_raw(vm.pid).ok_or(io::ErrorKind::InvalidData)?, PidfdFlags::empty())?;
        let watch = watch(dir)?;
        while dir.join(rundir::RESTARTING).exists() {
            let has_ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&Timespec::default()))? > 0;
            let Some(left) = patience.left().filter(|_| !has_ended) else { return Ok(false) };
            await_change(&watch, Some(&process), Instant::now() + left)?;
        }
        Ok(true)
    };
    wait().unwrap_or(false)
}

/// Whether the VM's supervisor is running.
pub(crate) fn is_alive(vm: &Vm) -> bool {
    let Some(pid) = Pid::from_raw(vm.pid) else { return false };
    pidfd_open(pid, PidfdFlags::empty()).is_ok_and(|process| {
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&Timespec::default())).is_ok_and(|ended| ended == 0)
    })
}

fn watch(dir: &Path) -> io::Result<OwnedFd> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, dir, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE)?;
    Ok(watch)
}

/// Waits until a file in the directory changes or the process ends. Returns false at `deadline`.
fn await_change(watch: &OwnedFd, process: Option<&OwnedFd>, deadline: Instant) -> io::Result<bool> {
    let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).map_err(io::Error::other)?;
    let mut fds = vec![PollFd::new(watch, PollFlags::IN)];
    fds.extend(process.map(|process| PollFd::new(process, PollFlags::IN)));
    let happened = match poll(&mut fds, Some(&left)) {
        Err(Errno::INTR) => true,
        other => other? > 0,
    };
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(watch, &mut space);
    while events.next().is_ok() {}
    Ok(happened)
}
