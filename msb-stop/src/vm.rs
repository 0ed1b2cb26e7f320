//! Stops a VM through its run directory. A process is signalled only through a pidfd, and only while the lock on the directory
//! proves that it is the supervisor, so that a reused process ID is never killed.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use msb::record::{self, Record, Vm};
use msb::vm::rundir::{self, Committed, Ended, Extended, LockedRunDir, StopRequest};
use msb::vm::{shared_root, supervisor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

/// How long a supervisor may take beyond the grace period, and how long killed processes may take to exit.
const MARGIN: Duration = Duration::from_secs(5);

/// How long a commit may take in addition. It copies up to the whole disk of the guest; the supervisor watches its progress.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// The result of a stop.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stopped {
    /// How the VM ended.
    pub end: End,
    /// The result of a commit.
    pub committed: Option<Committed>,
}

impl From<End> for Stopped {
    fn from(end: End) -> Self {
        Self { end, committed: None }
    }
}

/// How a VM ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was stopped, as its supervisor reported.
    Stopped(Ended),
    /// Its supervisor did not react, and was killed.
    SupervisorKilled,
    /// It had ended before.
    EndedBefore(Ended),
    /// Its supervisor had been killed before.
    Abandoned,
    /// Its run directory had been removed, so that it could not be asked; with the supervisor's report, if there is one.
    Lost(Option<Ended>),
    /// Nothing of it is left, or another VM has its name by now.
    Gone,
}

impl End {
    /// Whether this call killed it.
    pub(crate) fn is_forced(&self) -> bool {
        match self {
            Self::Stopped(ended) => ended.forced,
            Self::SupervisorKilled => true,
            Self::Lost(ended) => ended.as_ref().is_none_or(|ended| ended.forced),
            Self::EndedBefore(_) | Self::Abandoned | Self::Gone => false,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped(ended) => f.write_str(&ended.reason),
            Self::SupervisorKilled => f.write_str("its supervisor did not react, killed"),
            Self::EndedBefore(ended) => write!(f, "had ended already: {}; tidied up", ended.reason),
            Self::Abandoned => f.write_str("its supervisor had been killed; tidied up"),
            Self::Lost(ended) => {
                let reason = ended.as_ref().map_or("killed", |ended| &ended.reason);
                write!(f, "{reason}; its run directory had been removed, so the guest could not be asked")
            }
            Self::Gone => f.write_str("is gone already, nothing to do"),
        }
    }
}

/// Stops the VM and removes its run directory.
///
/// # Errors
/// Processes or files of the VM that cannot be removed.
pub(crate) fn stop(vm: &Vm, grace: Duration, commit: bool) -> anyhow::Result<Stopped> {
    let dir = run_dir(vm)?;
    supervisor::check_owner(&dir)?;
    let holds_this_vm = |dir: &Path| {
        let text = std::fs::read(dir.join(record::FILE_NAME)).ok()?;
        let recorded = Record::parse(text.trim_ascii_end()).ok()?.vm?;
        Some((recorded.pid, recorded.start_time) == (vm.pid, vm.start_time))
    };
    match holds_this_vm(&dir) {
        Some(true) => {}
        found => match supervisor::find(vm).context("supervisor")? {
            Some(process) => return stop_lost(&dir, &process, grace),
            None if found.is_none() && dir.exists() => {
                bail!("run directory {dir:?}: it holds no record of {:?} (is it starting?)", vm.name)
            }
            None => return Ok(End::Gone.into()),
        },
    }
    if let Some(held) = take(&dir)? {
        let ended = rundir::read(held.path(), rundir::ENDED);
        let committed = rundir::read(held.path(), rundir::COMMITTED);
        clean_up(held)?;
        return Ok(Stopped { end: ended.map_or(End::Abandoned, End::EndedBefore), committed });
    }
    // Another process has the lock. If the lock is still taken after the pidfd was opened, the pidfd is the supervisor's.
    let supervisor = supervisor::find(vm).context("supervisor")?;
    let held = match (supervisor, take(&dir)?) {
        (_, Some(held)) => held,
        (None, None) => bail!("run directory {dir:?} is held by another process (is another msb-stop at work?)"),
        (Some(supervisor), None) => {
            let grace_ms = u64::try_from(grace.as_millis())?;
            let reader = rundir::register_reader(&dir).with_context(|| format!("run directory {dir:?}"))?;
            rundir::request_stop(&dir, grace_ms, commit).with_context(|| format!("run directory {dir:?}"))?;
            send(&supervisor, Signal::TERM)?;
            let mut has_ended = ends_within(&supervisor, grace + MARGIN)?;
            while !has_ended && let Some(left) = extension(&dir) {
                has_ended = ends_within(&supervisor, left + MARGIN)?;
            }
            if !has_ended && dir.join(rundir::COMMITTED).exists() {
                has_ended = ends_within(&supervisor, COMMIT_TIMEOUT)?;
            }
            let is_stuck = !has_ended;
            if is_stuck {
                send(&supervisor, Signal::KILL)?;
                if !ends_within(&supervisor, MARGIN)? {
                    bail!("supervisor {} cannot be killed (it waits in the kernel)", vm.pid);
                }
            }
            let end = match rundir::read(&dir, rundir::ENDED) {
                Some(ended) => End::Stopped(ended),
                None if is_stuck => End::SupervisorKilled,
                None if dir.exists() => End::Abandoned,
                None => End::Gone,
            };
            let committed = rundir::read(&dir, rundir::COMMITTED);
            drop(reader);
            // Another msb-stop that cleans up has waited for this reader.
            take(&dir)?.map(clean_up).transpose()?;
            return Ok(Stopped { end, committed });
        }
    };
    let ended = rundir::read(held.path(), rundir::ENDED);
    let committed = rundir::read(held.path(), rundir::COMMITTED);
    clean_up(held)?;
    Ok(Stopped { end: ended.map_or(End::SupervisorKilled, End::Stopped), committed })
}

/// Stops a VM whose run directory was removed. Its agent cannot be reached, so the guest has the grace period and is then killed.
///
/// # Errors
/// A supervisor that cannot be killed.
pub(crate) fn stop_lost(dir: &Path, supervisor: &OwnedFd, grace: Duration) -> anyhow::Result<Stopped> {
    // The supervisor reads the grace period there, and writes there how the VM ended. The lock reserves the name meanwhile.
    let held = LockedRunDir::create(dir).with_context(|| format!("run directory {dir:?}"))?;
    let has_ended = match &held {
        Some(held) => {
            let grace_ms = u64::try_from(grace.as_millis())?;
            rundir::write(held.path(), rundir::STOP, &StopRequest { grace_ms, commit: false })?;
            send(supervisor, Signal::TERM)?;
            ends_within(supervisor, grace + MARGIN)?
        }
        // The path is another VM's run directory by now, which the supervisor would take for its own.
        None => false,
    };
    if !has_ended {
        send(supervisor, Signal::KILL)?;
        if !ends_within(supervisor, MARGIN)? {
            bail!("the supervisor cannot be killed (it waits in the kernel)");
        }
    }
    let ended = held.as_ref().and_then(|held| rundir::read(held.path(), rundir::ENDED));
    held.map(LockedRunDir::remove).transpose().with_context(|| format!("run directory {dir:?}"))?;
    Ok(End::Lost(ended).into())
}

/// How much more time the supervisor has granted a guest that is still writing data back.
fn extension(dir: &Path) -> Option<Duration> {
    let Extended { until_ms } = rundir::read(dir, rundir::EXTENDED)?;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
    Duration::from_millis(until_ms).checked_sub(now)
}

/// The run directory: that of the endpoint's socket. It will be removed, so it must have the VM's name.
fn run_dir(vm: &Vm) -> anyhow::Result<PathBuf> {
    supervisor::run_dir(vm)
        .map(Path::to_owned)
        .ok_or_else(|| anyhow!("record: socket {:?} is not in a run directory of VM {:?}", vm.endpoint.unix, vm.name))
}

/// Locks the run directory; `None` if another process has locked it, or it does not exist.
fn take(dir: &Path) -> anyhow::Result<Option<LockedRunDir>> {
    match LockedRunDir::lock(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.with_context(|| format!("run directory {dir:?}")),
    }
}

/// Waits until the processes of the VM have exited, then removes the directory.
fn clean_up(held: LockedRunDir) -> anyhow::Result<()> {
    let dir = held.path().to_owned();
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = done.send(held.await_processes().and_then(|()| held.await_readers()).map(|()| held));
    });
    match wait.recv_timeout(MARGIN) {
        Ok(held) => {
            let held = held.with_context(|| format!("run directory {dir:?}"))?;
            shared_root::remove_leftovers(&dir);
            held.remove().with_context(|| format!("run directory {dir:?}"))
        }
        Err(_) => bail!(
            "run directory {dir:?}: a process of the VM is still there (see \"fuser -v\" of the file \"alive\" in it)"
        ),
    }
}

fn send(supervisor: &OwnedFd, signal: Signal) -> anyhow::Result<()> {
    match pidfd_send_signal(supervisor, signal) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => other.context("supervisor"),
    }
}

/// Waits until the process has exited. Returns false after `timeout`.
pub(crate) fn ends_within(process: &OwnedFd, timeout: Duration) -> anyhow::Result<bool> {
    let timeout = Timespec::try_from(timeout)?;
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use msb::vm::rundir::Cause;

    use super::*;

    fn vm(dir: &Path, pid: i32) -> Vm {
        let socket = dir.join(rundir::AGENT_SOCKET);
        let log = dir.join(rundir::KERNEL_LOG);
        serde_json::from_value(serde_json::json!({
            "name": "worker", "pid": pid, "start_time": 1, "vmm": "qemu", "root": "share", "cpus": 1, "memory_mib": 1,
            "endpoint": {"unix": socket, "port": 1}, "kernel_log": log,
            "timings_ms": {"spawn": 0, "kernel": 0, "agent": 0, "ready": 0},
        }))
        .unwrap()
    }

    fn put_record(dir: &Path, pid: i32) {
        std::fs::create_dir_all(dir).unwrap();
        let mut record = Record::new();
        record.vm = Some(vm(dir, pid));
        std::fs::write(dir.join(record::FILE_NAME), serde_json::to_vec(&record).unwrap()).unwrap();
    }

    #[test]
    fn an_unlocked_directory_is_removed_and_its_end_reported() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("worker");
        put_record(&dir, 4242);
        let ended = Ended::by(Cause::PowerOff);
        rundir::write(&dir, rundir::ENDED, &ended).unwrap();
        assert_eq!(stop(&vm(&dir, 4242), Duration::ZERO, false).unwrap(), End::EndedBefore(ended).into());
        assert!(!dir.exists());
        assert_eq!(stop(&vm(&dir, 4242), Duration::ZERO, false).unwrap(), End::Gone.into());
    }

    #[test]
    fn a_directory_of_another_vm_of_that_name_is_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("worker");
        put_record(&dir, 4243);
        assert_eq!(stop(&vm(&dir, 4242), Duration::ZERO, false).unwrap(), End::Gone.into());
        assert!(dir.exists());
    }

    #[test]
    fn a_directory_without_the_vms_name_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let message = stop(&vm(base.path(), 4242), Duration::ZERO, false).unwrap_err().to_string();
        assert!(message.contains("is not in a run directory of VM \"worker\""), "{message}");
    }
}
