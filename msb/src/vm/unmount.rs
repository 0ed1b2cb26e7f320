//! Unmounting a root that msb-mount serves.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use crate::program;

/// How long a server may take to exit once it was told that its mount is gone. It has nothing left to write by then.
const EXIT_LIMIT: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// Why a root is still mounted, or still served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnmountError {
    /// The path is not a mount point.
    #[error("nothing is mounted there")]
    NotMounted,
    /// A process of this mount namespace uses it.
    #[error("it is in use (end what runs or has files open there; \"fuser -vm\" names it)")]
    InUse,
    /// Its server keeps running without a mount.
    #[error("unmounted, but its server does not exit and holds the upper (\"ps -C msb-mount\" shows it; kill it)")]
    ServerRuns,
    /// The kernel or fusermount3 refused.
    #[error("{0}")]
    Refused(io::Error),
}

/// Unmounts `path`, and waits until `server` has exited: the pidfd of the msb-mount process, if it is known.
///
/// A process that was started with a mount namespace of its own while the root was mounted, such as a container, has a copy of the
/// mount. It loses that one too: otherwise the server would hold the upper's lock for as long as that process runs.
///
/// # Errors
/// [`UnmountError`]; the mount is still there unless it is [`UnmountError::ServerRuns`].
pub fn unmount(path: &Path, server: Option<BorrowedFd<'_>>) -> Result<(), UnmountError> {
    write_back(path);
    match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
        Ok(()) => {}
        Err(Errno::INVAL | Errno::NOENT) => return Err(UnmountError::NotMounted),
        Err(Errno::BUSY) => return Err(UnmountError::InUse),
        // Only root may call umount(2).
        Err(Errno::PERM) => fusermount(path).map_err(UnmountError::Refused)?,
        Err(error) => return Err(UnmountError::Refused(error.into())),
    }
    let Some(server) = server else { return Ok(()) };
    // It exits by itself if this was the last copy of the mount.
    let _ = rustix::process::pidfd_send_signal(server, Signal::TERM);
    if has_exited(server).map_err(UnmountError::Refused)? { Ok(()) } else { Err(UnmountError::ServerRuns) }
}

/// Has the kernel write what was changed through memory maps. It would do so when the last copy of the mount goes, but then the
/// server may be gone before.
fn write_back(path: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(root) = rustix::fs::open(path, flags, Mode::empty()) {
        let _ = rustix::fs::syncfs(&root);
    }
}

fn has_exited(server: BorrowedFd<'_>) -> io::Result<bool> {
    loop {
        match rustix::event::poll(&mut [PollFd::from_borrowed_fd(server.as_fd(), PollFlags::IN)], Some(&EXIT_LIMIT)) {
            Err(Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

fn fusermount(path: &Path) -> io::Result<()> {
    let program = program::find("fusermount3", &["/usr/bin", "/bin"]);
    let program = program.ok_or_else(|| io::Error::other("fusermount3 is not installed (apt-get install fuse3)"))?;
    let output = Command::new(program).arg("-u").arg("--").arg(path).output()?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    Err(io::Error::other(message))
}
