//! Mount points: making them, and unmounting.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use msb::record::path;
use msb::store::layout;
use msb::tool::exit::warn;
use msb::vm::supervisor::{self, vm_names};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags};

use crate::fs::{SERVER_XATTR, SERVER_XATTR_OF_USER};
use crate::holder::holder;

/// The path without symlinks of a mount point that may not exist yet, in UTF-8 for the record.
pub(crate) fn locate(wanted: &Path) -> anyhow::Result<PathBuf> {
    let path = real(wanted).map_err(|error| anyhow!("mount point {wanted:?}: {error} (make its parent first)"))?;
    path::require_utf8(&path).context("mount point")?;
    Ok(path)
}

/// Checks that nothing is mounted on a mount point. One that is missing is made later.
pub(crate) fn check(path: &Path) -> anyhow::Result<()> {
    match is_mounted(path) {
        Err(Errno::NOTCONN) => {
            warn("msb-mount", &format!("mount point {path:?}: a mount without a server, cleared"));
            detach(path)
        }
        Err(Errno::NOENT) => Ok(()),
        Err(error) => bail!("mount point {path:?}: {error}"),
        Ok(true) => {
            bail!("mount point {path:?}: something is mounted there (unmount it with msb-mount -u, or choose another)")
        }
        Ok(false) => Ok(()),
    }
}

/// Refuses a mount point that would hide the store from the tools.
pub(crate) fn check_not_over_store(path: &Path, home: Option<&Path>) -> anyhow::Result<()> {
    let Some(home) = home.and_then(|home| home.canonicalize().ok()) else { return Ok(()) };
    if layout::is_hidden_by(&home, path) {
        bail!("mount point {path:?}: it would hide the store {home:?} or a part of it (choose another)");
    }
    Ok(())
}

/// Makes the mount point if it is missing. True: it was made.
pub(crate) fn make(path: &Path) -> anyhow::Result<bool> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => bail!("mount point {path:?}: {error}"),
        _ if !path.is_dir() => bail!("mount point {path:?}: not a directory"),
        created => Ok(created.is_ok()),
    }
}

/// Unmounts `wanted`. If msb-mount serves it, waits until the server has exited.
pub(crate) fn unmount(wanted: &Path) -> anyhow::Result<()> {
    let path = real(wanted).map_err(|error| anyhow!("mount point {wanted:?}: {error}"))?;
    match is_mounted(&path) {
        Err(Errno::NOTCONN) => {
            warn("msb-mount", &format!("mount point {path:?}: its server is gone, the mount is cleared"));
            return detach(&path);
        }
        Err(error) => bail!("mount point {path:?}: {error}"),
        Ok(false) => bail!("mount point {path:?}: nothing is mounted there"),
        Ok(true) => {}
    }
    // VMs have the mount in namespaces of their own, so the kernel does not return EBUSY for them.
    let users = supervisor::sharing(&path);
    if let [first, ..] = users.as_slice() {
        bail!("mount point {path:?}: still in use by {} (stop it first: msb-stop {first})", vm_names(&users));
    }
    // Opened before unmounting, while the server runs: later another process may have its process ID.
    let server = server(&path)
        .or_else(|| holder(&path))
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    msb::vm::unmount::unmount(&path, server.as_ref().map(AsFd::as_fd)).with_context(|| format!("mount point {path:?}"))
}

/// Removes a mount point that was made for its mount.
pub(crate) fn remove(path: &Path, is_new: bool) {
    if is_new {
        let _ = std::fs::remove_dir(path);
    }
}

/// Detaches a mount, which also works if its server does not respond.
pub(crate) fn detach(path: &Path) -> anyhow::Result<()> {
    rustix::mount::unmount(path, UnmountFlags::DETACH).with_context(|| format!("mount point {path:?}"))
}

/// Has the kernel write what was changed through memory maps, before the mount goes.
pub(crate) fn write_back(path: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(root) = rustix::fs::open(path, flags, Mode::empty()) {
        let _ = rustix::fs::syncfs(&root);
    }
}

/// The path without symlinks. Its last component is not touched: there may be a mount without a server.
fn real(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    match (path.symlink_metadata(), path.parent(), path.file_name()) {
        (Ok(meta), ..) if meta.is_symlink() => path.canonicalize(),
        (_, Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => path.canonicalize(),
    }
}

/// Whether a path is the root of a mount; ENOTCONN for one whose server is gone.
pub(crate) fn is_mounted(path: &Path) -> Result<bool, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(CWD, path, flags, StatxFlags::ALL)?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// The process that serves the mount at `path`, if it is an msb-mount.
fn server(path: &Path) -> Option<Pid> {
    let mut value = [0u8; 16];
    let mut read = |name: &str| rustix::fs::getxattr(path, OsStr::new(name), &mut value[..]).ok();
    let length = read(SERVER_XATTR).or_else(|| read(SERVER_XATTR_OF_USER))?;
    let digits = std::str::from_utf8(value.get(..length)?).ok()?;
    Pid::from_raw(digits.parse().ok()?)
}
