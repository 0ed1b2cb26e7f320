//! The end of a mount that msb-mount made. It is the record that says what was mounted; nothing else is unmounted.

use std::io;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use msb::record::Mount;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::vm::ends_within;

/// How long msb-mount may take to end once its mount is gone. It has nothing left to write.
const PATIENCE: Duration = Duration::from_secs(10);

/// Unmounts, and waits until the process that served the mount has ended.
///
/// # Errors
/// Words for a mount that is in use, or that this user may not unmount.
pub(crate) fn unmount(mount: &Mount) -> anyhow::Result<()> {
    let subject = || format!("mount {:?}", mount.path);
    let server = Pid::from_raw(mount.pid)
        .filter(|_| is_msb_mount(mount.pid))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    match rustix::mount::unmount(&mount.path, UnmountFlags::NOFOLLOW) {
        Ok(()) => {}
        // Not a mount point any more, or not there at all.
        Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY) => bail!("{}: it is in use (see \"fuser -vm\"; then run \"msb-mount -u\")", subject()),
        Err(Errno::PERM) => by_helper(mount).with_context(subject)?,
        Err(error) => return Err(error).with_context(subject),
    }
    match server {
        Some(server) if !ends_within(&server, PATIENCE)? => {
            bail!("{}: unmounted, but msb-mount ({}) does not end", subject(), mount.pid)
        }
        _ => Ok(()),
    }
}

/// By its program: the number may be somebody else's by now.
fn is_msb_mount(pid: i32) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    program.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.trim_end_matches(DELETED) == "msb-mount")
}

/// What the kernel appends to a program's path when its file is gone: after an upgrade, for one.
const DELETED: &str = " (deleted)";

/// Only root may call umount(2); for others fusermount3, which is setuid, unmounts what they mounted.
fn by_helper(mount: &Mount) -> io::Result<()> {
    let output = Command::new("fusermount3").arg("-u").arg("--").arg(&mount.path).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()))
}
