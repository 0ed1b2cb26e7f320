//! virtiofsd, the helper process that serves one shared directory.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::Context;
use msb::jail::Jail;

use crate::jail;
use crate::processes::{Processes, Vital, fd_flag};
use crate::program;
use crate::unusable::Unusable;

/// Where Debian has it: QEMU's own, or the one in Rust that followed it. Neither directory is on PATH.
const DIRECTORIES: [&str; 2] = ["/usr/libexec", "/usr/lib/qemu"];

/// Finds the program.
///
/// # Errors
/// A message that names the package to install.
pub(crate) fn find() -> Result<PathBuf, Unusable> {
    program::find("virtiofsd", &DIRECTORIES, "apt-get install virtiofsd; on Debian 12: qemu-system-common")
}

/// How mounts below the shared directory look in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Submounts {
    /// As mounts, each with a device number of its own: files of two volumes are told apart although their inode numbers are equal.
    Announced,
    /// As directories.
    Hidden,
}

/// Starts a virtiofsd for the directory that `jail` has at [`jail::ROOT`]. It inherits a socket that listens already, so the connection
/// to it is made at once. `dir` is the VM's run directory.
pub(super) fn start(
    dir: &Path,
    program: &Path,
    jail: Jail,
    submounts: Submounts,
    processes: &mut Processes,
) -> anyhow::Result<OwnedFd> {
    let path = dir.join("virtiofs.sock");
    let listener = OwnedFd::from(UnixListener::bind(&path).with_context(|| format!("{path:?}"))?);
    let connection = UnixStream::connect(&path).with_context(|| format!("{path:?}"));
    fs::remove_file(&path)?;
    let connection = connection?;
    // QEMU's virtiofsd (removed from QEMU in 8.0) can keep the guest's cache across opens and still show changes of the host within a
    // second. The one in Rust can do either, not both.
    let caching = if program.ends_with("qemu/virtiofsd") { "cache=always,timeout=1" } else { "cache=auto" };
    let socket = fd_flag("--fd=", &listener);
    let mut options = format!("source={},{caching},sandbox=chroot,xattr", jail::ROOT);
    if submounts == Submounts::Announced {
        options.push_str(",announce_submounts");
    }
    // It reopens files through /proc/self/fd, and reads /proc/self/task. It also reads file-max, and Debian 13's reads nr_open, although
    // --rlimit-nofile=0 tells it to leave the limit as it is.
    let mut jail = jail.ro_bind_program(program);
    for path in ["/proc/self", "/proc/sys/fs/file-max", "/proc/sys/fs/nr_open"].map(Path::new) {
        jail = jail.ro_bind(path, path);
    }
    let args = [&socket, OsStr::new("--rlimit-nofile=0"), OsStr::new("-o"), OsStr::new(&options)];
    processes.start_helper("virtiofsd", Vital::Yes, &jail, program, &args, &[listener])?;
    Ok(connection.into())
}
