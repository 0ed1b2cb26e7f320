//! Descriptors that a process has inherited from its caller, by their numbers.

use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Another descriptor of the same open file, which is closed when a program is executed.
///
/// # Errors
/// EBADF if there is no such descriptor.
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(own, number, PidfdGetfdFlags::empty())?)
}

/// Takes a descriptor over: its number is closed, so that no other process inherits it, and the file ends with what is returned.
///
/// # Errors
/// EBADF if there is no such descriptor.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    let taken = duplicate(number)?;
    nix::unistd::close(number)?;
    Ok(taken)
}

/// Closes the descriptors above 2, except those in `kept`. A process in the background calls this first: the reader of an inherited pipe
/// would never see its end.
///
/// # Errors
/// That /proc is not mounted.
pub fn close(kept: &[RawFd]) -> io::Result<()> {
    for number in numbers()?.into_iter().filter(|number| *number > 2 && !kept.contains(number)) {
        // The descriptor of /proc/self/fd itself is in the list, and closed already.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

/// The numbers of this process's descriptors.
///
/// # Errors
/// That /proc is not mounted.
pub(crate) fn numbers() -> io::Result<Vec<RawFd>> {
    Ok(fs::read_dir("/proc/self/fd")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}
