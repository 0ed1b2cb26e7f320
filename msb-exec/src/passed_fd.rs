//! A descriptor that the caller passes by its number.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Takes the descriptor over: its number is closed, so that no other process inherits it and its end is that of the returned file.
///
/// # Errors
/// EBADF if there is no such descriptor.
pub fn take(number: RawFd) -> io::Result<File> {
    let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    let file = pidfd_getfd(own, number, PidfdGetfdFlags::empty())?;
    nix::unistd::close(number)?;
    Ok(file.into())
}
