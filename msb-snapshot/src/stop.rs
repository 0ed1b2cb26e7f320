//! The end of a VM that was saved: its guest waits, so it is not asked, and msb-stop has nothing to wait for.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, bail};
use msb::tool::interrupt;
use msb::vm::rundir::{self, LockedRunDir};
use rustix::process::{Signal, pidfd_send_signal};

/// Ends the VM, and removes its run directory.
///
/// # Errors
/// A supervisor that cannot be signalled; files that cannot be removed.
pub(crate) fn stop(dir: &Path, supervisor: &OwnedFd) -> anyhow::Result<()> {
    let subject = || format!("run directory {dir:?}");
    rundir::request_stop(dir, 0, false).with_context(subject)?;
    match pidfd_send_signal(supervisor, Signal::TERM) {
        Err(rustix::io::Errno::SRCH) => {}
        other => other.context("supervisor")?,
    }
    interrupt::await_readable(supervisor.as_fd())?;
    let Some(held) = LockedRunDir::lock(dir).with_context(subject)? else {
        bail!("run directory {dir:?} is held by another process (is an msb-stop at work?)");
    };
    held.await_processes().and_then(|()| held.await_readers()).with_context(subject)?;
    held.remove().with_context(subject)
}
