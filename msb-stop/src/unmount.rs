//! Unmounts what msb-mount mounted, according to the record, and nothing else.

use std::io;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use msb::record::Mount;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::vm::ends_within;

/// How long msb-mount may take to exit after unmounting. It has nothing left to write by then.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Unmounts, and waits until the process that served the mount has exited.
///
/// # Errors
/// A mount that is in use, or that this user may not unmount.
pub(crate) fn unmount(mount: &Mount) -> anyhow::Result<()> {
    let subject = || format!("mount {:?}", mount.path);
    let server = Pid::from_raw(mount.pid)
        .filter(|_| is_msb_mount(mount.pid))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    match rustix::mount::unmount(&mount.path, UnmountFlags::NOFOLLOW) {
        Ok(()) => {}
        // It is no longer a mount point, or does not exist.
        Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY) => bail!("{}: it is in use (see \"fuser -vm\"; then run \"msb-mount -u\")", subject()),
        Err(Errno::PERM) => fusermount(mount).with_context(subject)?,
        Err(error) => return Err(error).with_context(subject),
    }
    match server {
        Some(server) if !ends_within(&server, TIMEOUT)? => {
            bail!("{}: unmounted, but msb-mount ({}) does not exit", subject(), mount.pid)
        }
        _ => Ok(()),
    }
}

/// Whether a process runs msb-mount: its ID may have been reused.
fn is_msb_mount(pid: i32) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    program.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.trim_end_matches(DELETED) == "msb-mount")
}

/// What the kernel appends to the path of a program whose file was removed, for example by an upgrade.
const DELETED: &str = " (deleted)";

/// Unmounts with fusermount3, which is setuid: only root may call umount(2).
fn fusermount(mount: &Mount) -> io::Result<()> {
    let output = Command::new("fusermount3").arg("-u").arg("--").arg(&mount.path).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()))
}
