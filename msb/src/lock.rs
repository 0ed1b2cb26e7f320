//! `flock(2)` on directories and files. The lock ends with the process that holds it. `store` lists the locks of the state directory and
//! their order.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};

/// How a lock is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Waits until no other process holds a lock.
    Exclusive,
    /// Waits until no other process holds an exclusive lock.
    Shared,
    /// As [`Lock::Exclusive`], but fails with [`io::ErrorKind::WouldBlock`] instead of waiting.
    TryExclusive,
    /// As [`Lock::Shared`], but fails with [`io::ErrorKind::WouldBlock`] instead of waiting.
    TryShared,
}

impl Lock {
    fn operation(self) -> FlockOperation {
        match self {
            Self::Exclusive => FlockOperation::LockExclusive,
            Self::Shared => FlockOperation::LockShared,
            Self::TryExclusive => FlockOperation::NonBlockingLockExclusive,
            Self::TryShared => FlockOperation::NonBlockingLockShared,
        }
    }
}

/// Opens a directory, or a file, and locks it. The lock ends with the descriptor.
///
/// # Errors
/// The error of `open(2)` or `flock(2)`; see [`Lock`].
pub fn open(path: &Path, lock: Lock) -> io::Result<OwnedFd> {
    // Opening a FIFO would wait.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    take(&fd, lock)?;
    Ok(fd)
}

/// Opens a file, made if it is missing, and locks it.
///
/// # Errors
/// The error of `open(2)` or `flock(2)`; see [`Lock`].
pub fn make(path: &Path, lock: Lock) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().create(true).append(true).mode(0o600).open(path)?;
    take(&file, lock)?;
    Ok(file)
}

/// Locks a file that is open. The lock ends with the last descriptor of the same opening.
///
/// # Errors
/// The error of `flock(2)`; see [`Lock`].
pub fn take(file: &impl AsFd, lock: Lock) -> io::Result<()> {
    Ok(rustix::fs::flock(file, lock.operation())?)
}

/// Unlocks a file before its last descriptor is closed, perhaps in another process.
///
/// # Errors
/// The error of `flock(2)`.
pub fn release(file: &impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::flock(file, FlockOperation::Unlock)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_locks_exclude_the_exclusive_one_alone() {
        let dir = tempfile::tempdir().unwrap();
        let shared = open(dir.path(), Lock::TryShared).unwrap();
        let _second = open(dir.path(), Lock::TryShared).unwrap();
        let refused = open(dir.path(), Lock::TryExclusive).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        drop(shared);
        drop(_second);
        open(dir.path(), Lock::TryExclusive).unwrap();
    }
}
