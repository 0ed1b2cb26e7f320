//! A mount of a user other than root. fusermount3(1), a set-uid program, makes it, so that other processes of the user see it
//! too. It has no effect in a user namespace, so it is started before the tool enters one, and waits for the mount point. Its
//! shell also waits for the end of the server, which cannot unmount by itself.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use msb::descriptor;
use msb::inherited::duplicate;
use rustix::io::FdFlags;

use crate::access::Access;

/// Reads the mount point, mounts with the program `$1` and the options `$2`, and unmounts at the end of the input. A line before
/// that says that the mount is gone already. The descriptor of the mount goes to the other end of its stdin.
const SCRIPT: &str = "IFS= read -r path || exit 0
_FUSE_COMMFD=0 \"$1\" -o \"$2\" -- \"$path\" >&2 || exit
exec 2>/dev/null
IFS= read -r gone || exec \"$1\" -quz -- \"$path\"";

/// Where the administrator allows users to let others into their mounts.
const FUSE_CONF: &str = "/etc/fuse.conf";

/// The program, which waits for a mount point.
pub(crate) struct Fusermount {
    child: Child,
    socket: UnixStream,
}

/// A mount that has no server yet.
#[derive(Debug)]
pub(crate) struct Mounted {
    /// The server's end of the file system.
    pub(crate) device: OwnedFd,
    /// While this is open, the mount stays.
    watcher: OwnedFd,
}

impl Fusermount {
    /// Starts it. The process must not be in a user namespace yet.
    ///
    /// # Errors
    /// A flag that takes root; fusermount3 is not installed.
    pub(crate) fn start(access: &Access) -> anyhow::Result<Self> {
        if let Some(flag) = access.flag_of_root() {
            bail!("{flag} takes root (leave it out)");
        }
        let program = msb::program::find("fusermount3", &["/usr/bin", "/bin"])
            .context("without root, mounting needs fusermount3 (apt-get install fuse3; or leave msb-mount out)")?;
        let allows_others = fs::read_to_string(FUSE_CONF).is_ok_and(|text| allows_others(&text));
        let (socket, theirs) = UnixStream::pair()?;
        let child = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(program)
            .arg(access.options_of_user(allows_others))
            .current_dir("/")
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .context("fusermount3")?;
        Ok(Self { child, socket })
    }

    /// Mounts.
    ///
    /// # Errors
    /// That fusermount3 has failed. It has printed why.
    pub(crate) fn mount(mut self, path: &Path) -> anyhow::Result<Mounted> {
        let name = path.as_os_str().as_bytes();
        if name.contains(&b'\n') {
            bail!("mount point {path:?}: its name has a line break (choose another)");
        }
        self.socket.write_all(&[name, b"\n"].concat())?;
        match descriptor::receive(&self.socket, &mut [0])?.1 {
            Some(device) => Ok(Mounted { device, watcher: self.socket.into() }),
            None => {
                let status = self.child.wait()?;
                bail!(
                    "mount point {path:?}: fusermount3 ended with {status} (without msb-mount, msb-boot makes a block root, which needs no \
                     mount)"
                )
            }
        }
    }
}

impl Mounted {
    /// The flags for a server that inherits the descriptors under the numbers that they have here.
    ///
    /// # Errors
    /// Those of `fcntl(2)`.
    pub(crate) fn server_flags(&self) -> io::Result<[String; 2]> {
        for fd in [&self.device, &self.watcher] {
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok([
            format!("--fuse-device={}", self.device.as_raw_fd()),
            format!("--fuse-watcher={}", self.watcher.as_raw_fd()),
        ])
    }

    /// The descriptors that this process has inherited under these numbers.
    ///
    /// # Errors
    /// EBADF if there is no such descriptor.
    pub(crate) fn inherited(device: i32, watcher: i32) -> io::Result<Self> {
        Ok(Self { device: duplicate(device)?, watcher: duplicate(watcher)? })
    }

    /// The numbers of the descriptors.
    pub(crate) fn numbers(&self) -> [i32; 2] {
        [self.device.as_raw_fd(), self.watcher.as_raw_fd()]
    }

    /// The server's end of the file system, and the watcher.
    pub(crate) fn split(self) -> (OwnedFd, Watcher) {
        (self.device, Watcher(self.watcher))
    }
}

/// The connection to the process that unmounts. The mount stays until this is dropped.
pub(crate) struct Watcher(OwnedFd);

impl Watcher {
    /// Reports that the mount is gone, so that the other process does not unmount another one in its place.
    pub(crate) fn dismiss(&self) {
        let _ = rustix::io::write(&self.0, b"\n");
    }
}

/// Whether fuse.conf (mount.fuse3(8)) lets users admit others.
fn allows_others(conf: &str) -> bool {
    conf.lines().any(|line| line.trim() == "user_allow_other")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_setting_counts_on_a_line_of_its_own() {
        for (conf, allows) in [
            ("user_allow_other\n", true),
            ("# a comment\n  user_allow_other  \nmount_max = 5\n", true),
            ("#user_allow_other\n", false),
            ("# user_allow_other - explained\n", false),
            ("", false),
        ] {
            assert_eq!(super::allows_others(conf), allows, "{conf:?}");
        }
    }
}
