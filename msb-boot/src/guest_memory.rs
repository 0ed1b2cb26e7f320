//! The memory of a VM that starts from a snapshot. The VMM maps the saved file privately: nothing is copied, and the VMs of one snapshot
//! share all pages that they have not written to.
//!
//! QEMU before 8.2 opens the file of a private mapping for writing, and a guest that has taken QEMU over could then write what other VMs
//! start from. So the supervisor answers this call of QEMU's with a read-only descriptor. That is enough for a private mapping.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use anyhow::Context;
use msb::descriptor;
use rustix::event::{PollFd, PollFlags, poll};

use crate::inherited_fd::InheritedFd;
use crate::krun::ffi;

/// The number of the file's descriptor in the VMM, which has a few dozen descriptors. Its limit is higher.
const NUMBER: RawFd = 500;
/// The path that the VMM is told to open.
pub(crate) const PATH: &str = "/proc/self/fd/500";

/// Installs the filter with which the supervisor answers when the program that this process executes opens [`PATH`]. Nothing may have been
/// sent on the socket `supervisor` before.
///
/// # Errors
/// A kernel without user notifications, or another process that receives them.
pub(crate) fn install(supervisor: InheritedFd) -> anyhow::Result<()> {
    let listener = ffi::divert_opens(NUMBER).context("a filter for the guest's memory")?;
    descriptor::send(supervisor.duplicate()?, &[0], Some(listener.as_fd()))?;
    Ok(())
}

/// Waits until the VMM at the other end of the socket opens its memory, and answers with `memory`.
///
/// # Errors
/// A VMM that ends before.
pub(crate) fn answer(vmm: &UnixStream, memory: BorrowedFd<'_>) -> anyhow::Result<()> {
    let (_, listener) = descriptor::receive(vmm, &mut [0])?;
    let listener = listener.ok_or(io::ErrorKind::UnexpectedEof).map_err(io::Error::from)?;
    loop {
        let mut fds = [PollFd::new(&listener, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if !fds[0].revents().contains(PollFlags::IN) {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        // The call is gone if its process was killed or got a signal. Then both functions fail with ENOENT.
        let Ok(opening) = ffi::next_opening(listener.as_fd()) else { continue };
        if opens_memory(&opening) {
            match ffi::answer_opening(listener.as_fd(), &opening, memory, NUMBER) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                // The listener is closed now, so later calls of this kind fail. QEMU makes none.
                answered => return answered.context("the guest's memory (a VM from a snapshot needs Linux 5.14)"),
            }
        }
        let _ = ffi::leave_opening(listener.as_fd(), &opening);
    }
}

/// Whether the call opens [`PATH`]. If the path cannot be read (Yama's ptrace_scope 3), it is assumed: QEMU makes no other call of this
/// kind. A hostile VMM gains nothing, because it may read the file.
fn opens_memory(opening: &ffi::Opening) -> bool {
    let mut path = [0; PATH.len() + 1];
    let read = File::open(format!("/proc/{}/mem", opening.process))
        .and_then(|memory| memory.read_exact_at(&mut path, opening.path));
    read.is_err() || path[..PATH.len()] == *PATH.as_bytes() && path[PATH.len()] == 0
}
