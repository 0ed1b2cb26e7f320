//! A file descriptor that a child process inherits under the number that it has here.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The number of an inherited descriptor. exec(2) keeps the numbers of descriptors, so a number is all that a description of a VM
/// needs to carry to the VMM's process. The process that starts the VMM owns the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct InheritedFd(RawFd);

impl InheritedFd {
    /// The number of an open descriptor.
    pub(crate) fn of(fd: &impl AsRawFd) -> Self {
        Self(fd.as_raw_fd())
    }

    /// A number that a user or another process of this VM has passed.
    pub(crate) fn inherited(number: RawFd) -> Self {
        Self(number)
    }

    /// A descriptor of the same file, which is closed when a program is executed.
    ///
    /// # Errors
    /// Those of `pidfd_getfd(2)`: EBADF if there is no such descriptor.
    pub(crate) fn duplicate(self) -> io::Result<OwnedFd> {
        msb::inherited::duplicate(self.0)
    }

    /// The number, for a library that takes the descriptor over.
    pub(crate) fn number(self) -> RawFd {
        self.0
    }

    /// The path that opens the file again, in a jail that has `/proc/self/fd`.
    pub(crate) fn path(self) -> PathBuf {
        format!("/proc/self/fd/{self}").into()
    }
}

impl fmt::Display for InheritedFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
