//! The process that holds the locks of the layers and of the upper as long as an overlayfs of ours is mounted, as the server does of a
//! FUSE mount. Its ID is in the name of the mount's source.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use msb::overlay::mountinfo::{self, Mount};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::process::Pid;

/// The type of such a mount in a record.
pub(crate) const FSTYPE: &str = "overlay";
/// Precedes the process ID in the source of a mount.
pub(crate) const SOURCE: &[u8] = b"msb:";

/// The mounts of this process's namespace, and when they change.
pub(crate) struct Watch {
    table: File,
    id: u64,
}

impl Watch {
    /// Watches the mount at `path`.
    ///
    /// # Errors
    /// That of `statx(2)` or of opening the table.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let table = File::open("/proc/self/mountinfo")?;
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        Ok(Self { table, id: rustix::fs::statx(CWD, path, flags, StatxFlags::MNT_ID)?.stx_mnt_id })
    }

    /// Returns when the mount is gone.
    ///
    /// # Errors
    /// That of reading the table.
    pub(crate) fn wait(mut self) -> io::Result<()> {
        loop {
            let mut table = Vec::new();
            self.table.rewind()?;
            self.table.read_to_end(&mut table)?;
            if !mountinfo::mounts(&table).any(|mount| mount.id == self.id) {
                return Ok(());
            }
            // proc_pid_mounts(5): the table has a priority event when it changes.
            match rustix::event::poll(&mut [PollFd::new(&self.table, PollFlags::PRI)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The process that holds the locks of the mount at `path`, if it is one of ours of this type.
pub(crate) fn holder(path: &Path) -> Option<Pid> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let Mount { fstype, source, .. } = mountinfo::mounts(&table).rfind(|mount| Path::new(&mount.point) == path)?;
    let digits = source.as_bytes().strip_prefix(SOURCE).filter(|_| fstype == FSTYPE)?;
    let pid: i32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    // If it was killed, another process may have its ID.
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut arguments = line.split(|&byte| byte == 0).filter(|argument| !argument.is_empty());
    let is_holder = arguments.clone().any(|argument| argument == b"--serve")
        && arguments.next_back() == Some(path.as_os_str().as_bytes());
    Pid::from_raw(pid).filter(|_| is_holder)
}
