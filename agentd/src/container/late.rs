//! What the first process of a container mounts itself: a proc shows the PID namespace of the process that mounts it. What is hidden or
//! read-only in it follows. The root is the container's by then. Only system calls are made here, see [`Launch`](crate::sys::Launch).

use std::ffi::{CStr, CString};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use rustix::fs::StatVfsMountFlags;

use crate::not_started::Failed;

/// A proc file system.
#[derive(Debug)]
pub struct Proc {
    /// Where it is mounted.
    pub target: CString,
    /// Its flags.
    pub flags: MsFlags,
    /// Its options.
    pub data: CString,
}

/// The mounts, in this order.
#[derive(Debug, Default)]
pub struct LateMounts {
    /// File systems of the type proc.
    pub procs: Vec<Proc>,
    /// Paths that become read-only, if they exist.
    pub readonly: Vec<CString>,
    /// Paths that are hidden, if they exist.
    pub masked: Vec<CString>,
}

impl LateMounts {
    /// Mounts them.
    ///
    /// # Errors
    /// The step that failed.
    pub fn mount(&self) -> Result<(), Failed> {
        let at =
            |step: &'static str| move |error: Errno| (Some(step), rustix::io::Errno::from_raw_os_error(error as i32));
        for Proc { target, flags, data } in &self.procs {
            mount(Some(c"proc"), target.as_c_str(), Some(c"proc"), *flags, Some(data.as_c_str()))
                .map_err(at("mount proc"))?;
        }
        for path in &self.readonly {
            match protect(path) {
                Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => return Err(at("make a path read-only")(error)),
            }
        }
        for path in &self.masked {
            match mask(path) {
                Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => return Err(at("mask a path")(error)),
            }
        }
        Ok(())
    }
}

fn protect(path: &CStr) -> nix::Result<()> {
    let none = None::<&CStr>;
    mount(Some(path), path, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    let there = rustix::fs::statvfs(path).map_err(|error| Errno::from_raw(error.raw_os_error()))?;
    mount(none, path, none, read_only_flags(there.f_flag), none)
}

fn mask(path: &CStr) -> nix::Result<()> {
    let none = None::<&CStr>;
    match mount(Some(c"/dev/null"), path, none, MsFlags::MS_BIND, none) {
        // It is a directory.
        Err(Errno::ENOTDIR) => {
            mount(Some(c"tmpfs"), path, Some(c"tmpfs"), MsFlags::MS_RDONLY, Some(c"size=0k,nr_inodes=2"))
        }
        other => other,
    }
}

/// The flags that make a mount with these flags read-only, and leave the others.
pub fn read_only_flags(there: StatVfsMountFlags) -> MsFlags {
    let kept = [
        (StatVfsMountFlags::NOSUID, MsFlags::MS_NOSUID),
        (StatVfsMountFlags::NODEV, MsFlags::MS_NODEV),
        (StatVfsMountFlags::NOEXEC, MsFlags::MS_NOEXEC),
        (StatVfsMountFlags::NOATIME, MsFlags::MS_NOATIME),
    ];
    let kept = kept.into_iter().filter(|(flag, _)| there.contains(*flag)).map(|(_, flag)| flag);
    kept.fold(MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, MsFlags::union)
}
