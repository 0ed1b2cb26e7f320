//! A stack of layers merged by the kernel's overlayfs, for one thread.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::container;
use crate::overlay::error::At;
use crate::overlay::user_namespace;
use crate::store::Error;

/// Mounts the merged tree of `lower` (top first) in a mount namespace of the calling thread, and returns its root. The mounts are gone
/// when the thread and its children have ended. The tree is below `dir`, whose own content the thread no longer sees.
///
/// # Errors
/// The error of a system call, named.
pub fn merge(dir: &Path, lower: &[PathBuf]) -> Result<PathBuf, Error> {
    let namespace = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(std::io::Error::from);
    container::step(namespace, "a mount namespace")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    container::step(rustix::mount::mount_change("/", private).map_err(std::io::Error::from), "propagation")?;
    // Opened in the new namespace, since overlayfs takes no layer from another one, and before the tmpfs hides `dir`.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |dir: &PathBuf| rustix::fs::open(dir, flags, Mode::empty()).at(|| format!("{dir:?}"));
    let layers: Vec<OwnedFd> = lower.iter().map(open).collect::<Result<_, _>>()?;
    rustix::mount::mount("merge", dir, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0700")?;
    // After unshare(2) the thread has a working directory of its own.
    std::env::set_current_dir(dir)?;
    fs::create_dir("root")?;
    // overlayfs needs two layers, and would show the whiteouts of a single one.
    fs::create_dir("empty")?;
    let mut options = String::from("lowerdir=");
    for (number, layer) in layers.iter().enumerate() {
        // Short names without colons: all options have to fit into one page.
        std::os::unix::fs::symlink(format!("/proc/self/fd/{}", layer.as_raw_fd()), number.to_string())?;
        options.push_str(&format!("{number}:"));
    }
    options.push_str("empty,xino=off,");
    options.push_str(user_namespace::overlayfs_options("redirect_dir=on,metacopy=on"));
    let options = std::ffi::CString::new(options).map_err(std::io::Error::from)?;
    let flags = MountFlags::RDONLY | MountFlags::NOATIME;
    rustix::mount::mount("overlay", "root", "overlay", flags, options.as_c_str()).at(|| "overlayfs")?;
    Ok(dir.join("root"))
}
