//! The process that holds the locks of the layers and of the upper as long as an overlayfs of ours is mounted, as the server does of a
//! FUSE mount. Its ID is in the name of the mount's source.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use msb::overlay::mountinfo::{self, Mount};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::Pid;

/// The type of such a mount in a record.
pub(crate) const FSTYPE: &str = "overlay";
/// Precedes the process ID in the source of a mount.
const SOURCE: &[u8] = b"msb:";

/// The source of the mount of this process.
pub(crate) fn source() -> Vec<u8> {
    [SOURCE, std::process::id().to_string().as_bytes()].concat()
}

/// The mounts of this process's namespace, and when they change.
pub(crate) struct Watch {
    table: File,
}

impl Watch {
    /// Watches the mount of this process.
    ///
    /// # Errors
    /// That of opening the table.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { table: File::open("/proc/self/mountinfo")? })
    }

    /// Returns when the mount is gone, and so are its copies in this namespace. It is told by its source: the kernel gives the ID of a
    /// mount that is gone to the next one.
    ///
    /// # Errors
    /// That of reading the table.
    pub(crate) fn wait(mut self) -> io::Result<()> {
        let source = source();
        loop {
            let mut table = Vec::new();
            self.table.rewind()?;
            self.table.read_to_end(&mut table)?;
            if !mountinfo::mounts(&table).any(|mount| mount.fstype == FSTYPE && mount.source.as_bytes() == source) {
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
    let is_tool = arguments.clone().next().is_some_and(|program| program.ends_with(b"msb-mount"));
    // One in the foreground has the arguments of its caller.
    let is_server = arguments.clone().any(|argument| argument == b"--serve");
    let is_holder = is_tool && (!is_server || arguments.next_back() == Some(path.as_os_str().as_bytes()));
    Pid::from_raw(pid).filter(|_| is_holder)
}
