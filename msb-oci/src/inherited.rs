//! Descriptors that a process passes on to another role of this program, under the numbers that they have.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use anyhow::Context;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};

/// A pipe, its end for reading first. Nothing inherits it but by [`with`].
///
/// # Errors
/// Those of `pipe2(2)`.
pub(crate) fn pipe() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).context("pipe")
}

/// Runs `spawn` while the descriptors are inherited by what it starts.
///
/// # Errors
/// Those of `fcntl(2)`, and what `spawn` says.
pub(crate) fn with<T>(fds: &[&OwnedFd], spawn: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let set = |flags| fds.iter().try_for_each(|fd| fcntl_setfd(fd.as_fd(), flags));
    set(FdFlags::empty())?;
    let result = spawn();
    set(FdFlags::CLOEXEC)?;
    result
}

/// The number to pass on.
pub(crate) fn number(fd: &OwnedFd) -> RawFd {
    fd.as_raw_fd()
}
