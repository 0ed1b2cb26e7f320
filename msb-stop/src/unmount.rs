//! Unmounts what msb-mount mounted, according to the record, and nothing else.

use std::os::fd::AsFd;

use anyhow::Context;
use msb::record::Mount;
use msb::vm::unmount::{UnmountError, unmount as unmount_path};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Unmounts, and waits until the process that served the mount has exited. A path that is no longer a mount point is fine.
///
/// # Errors
/// A mount that is in use, or that this user may not unmount.
pub(crate) fn unmount(mount: &Mount) -> anyhow::Result<()> {
    let server = Pid::from_raw(mount.pid)
        .filter(|_| is_msb_mount(mount.pid))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    match unmount_path(&mount.path, server.as_ref().map(AsFd::as_fd)) {
        Ok(()) | Err(UnmountError::NotMounted) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("mount {:?}", mount.path)),
    }
}

/// Whether a process runs msb-mount: its ID may have been reused.
fn is_msb_mount(pid: i32) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    program.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.trim_end_matches(DELETED) == "msb-mount")
}

/// What the kernel appends to the path of a program whose file was removed, for example by an upgrade.
const DELETED: &str = " (deleted)";
