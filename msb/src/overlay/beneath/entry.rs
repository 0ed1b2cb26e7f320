//! A file of any type beneath a root: its metadata, its content, and setting its attributes.
//!
//! An `O_PATH` descriptor can refer to any file without opening it, but several calls accept it only by its path in /proc. For a file
//! that is open for its data they take the descriptor itself, which costs half.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};

/// A path that leads to the file of a descriptor, even if that is a symlink, for calls without an `f…` or `…at(AT_EMPTY_PATH)` form.
pub(super) fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// A file of any type, referred to by a descriptor, with the result of `stat(2)` when it was opened.
#[derive(Debug)]
pub struct Entry {
    pub(super) fd: OwnedFd,
    stat: Stat,
    /// Whether the file is open, and the descriptor not just an `O_PATH` one.
    is_open: bool,
}

impl AsFd for Entry {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Entry {
    /// The file behind an `O_PATH` descriptor.
    pub(super) fn of(fd: OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self { fd, stat, is_open: false })
    }

    /// An open file.
    ///
    /// # Errors
    /// The error of `fstat(2)`.
    pub fn of_open(file: File) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&file)?;
        Ok(Self { fd: file.into(), stat, is_open: true })
    }

    /// The result of `stat(2)` when the file was opened.
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// The current result of `stat(2)`.
    ///
    /// # Errors
    /// The error of `fstat(2)`.
    pub fn stat_now(&self) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(&self.fd)?)
    }

    /// The file's type.
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    /// Opens the file itself. For regular files only: opening a FIFO waits, and opening a device has effects.
    ///
    /// # Errors
    /// The error of `open(2)`.
    pub fn open(&self, flags: OFlags) -> io::Result<File> {
        Ok(rustix::fs::open(self.proc_path(), flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    /// Opens a regular file for reading, and does not change its access time if the kernel permits that. A file that is open already
    /// shares its offset.
    ///
    /// # Errors
    /// EINVAL for other types of files; else the error of `open(2)`.
    pub fn open_to_read(&self) -> io::Result<File> {
        if self.file_type() != FileType::RegularFile {
            return Err(rustix::io::Errno::INVAL.into());
        }
        if self.is_open {
            return Ok(self.fd.try_clone()?.into());
        }
        match self.open(OFlags::RDONLY | OFlags::NOATIME) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.open(OFlags::RDONLY),
            other => other,
        }
    }

    /// A symlink's target.
    ///
    /// # Errors
    /// The error of `readlinkat(2)`: EINVAL if it is not a symlink.
    pub fn read_link(&self) -> io::Result<OsString> {
        let target = rustix::fs::readlinkat(&self.fd, c"", Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Sets owner and group; `None` leaves one alone. Linux clears set-id bits and capabilities then.
    ///
    /// # Errors
    /// The error of `fchownat(2)`.
    pub fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        Ok(rustix::fs::chownat(&self.fd, c"", uid, gid, AtFlags::EMPTY_PATH)?)
    }

    /// Sets the permission bits, set-id and sticky bits included. A symlink has none.
    ///
    /// # Errors
    /// The error of `chmod(2)`.
    pub fn set_mode(&self, mode: Mode) -> io::Result<()> {
        Ok(if self.is_open { rustix::fs::fchmod(&self.fd, mode) } else { rustix::fs::chmod(self.proc_path(), mode) }?)
    }

    /// Sets access and modification time.
    ///
    /// # Errors
    /// The error of `utimensat(2)`.
    pub fn set_times(&self, times: &Timestamps) -> io::Result<()> {
        if self.is_open {
            return Ok(rustix::fs::futimens(&self.fd, times)?);
        }
        // Works without /proc: the agent calls it after it has unmounted that.
        match rustix::fs::utimensat(&self.fd, "", times, AtFlags::EMPTY_PATH) {
            // Linux before 5.8.
            Err(rustix::io::Errno::INVAL) => {
                Ok(rustix::fs::utimensat(rustix::fs::CWD, self.proc_path(), times, AtFlags::empty())?)
            }
            other => Ok(other?),
        }
    }

    /// The names of the xattrs, including those of overlayfs.
    ///
    /// # Errors
    /// The error of `listxattr(2)`; a file system without xattrs has none.
    pub fn xattr_names(&self) -> io::Result<Vec<OsString>> {
        let mut list = vec![0u8; 1024];
        loop {
            let listed = if self.is_open {
                rustix::fs::flistxattr(&self.fd, &mut list[..])
            } else {
                rustix::fs::listxattr(self.proc_path(), &mut list[..])
            };
            match listed {
                Ok(length) => {
                    list.truncate(length);
                    let names = list.split(|&byte| byte == 0).filter(|name| !name.is_empty());
                    return Ok(names.map(|name| OsStr::from_bytes(name).to_owned()).collect());
                }
                // The kernel's own limit for a list is 64 KiB.
                Err(rustix::io::Errno::RANGE) if list.len() < 1 << 16 => list.resize(list.len() * 4, 0),
                Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// An xattr's value.
    ///
    /// # Errors
    /// The error of `getxattr(2)`: ENODATA if there is none.
    pub fn xattr(&self, name: &OsStr) -> io::Result<Vec<u8>> {
        let mut value = vec![0u8; 256];
        loop {
            let got = if self.is_open {
                rustix::fs::fgetxattr(&self.fd, name, &mut value[..])
            } else {
                rustix::fs::getxattr(self.proc_path(), name, &mut value[..])
            };
            match got {
                Ok(length) => {
                    value.truncate(length);
                    return Ok(value);
                }
                Err(rustix::io::Errno::RANGE) if value.len() < 1 << 16 => value.resize(1 << 16, 0),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sets an xattr.
    ///
    /// # Errors
    /// The error of `setxattr(2)`.
    pub fn set_xattr(&self, name: &OsStr, value: &[u8], flags: XattrFlags) -> io::Result<()> {
        if self.is_open {
            return Ok(rustix::fs::fsetxattr(&self.fd, name, value, flags)?);
        }
        Ok(rustix::fs::setxattr(self.proc_path(), name, value, flags)?)
    }

    /// Removes an xattr.
    ///
    /// # Errors
    /// The error of `removexattr(2)`: ENODATA if there is none.
    pub fn remove_xattr(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::removexattr(self.proc_path(), name)?)
    }

    /// A path that leads to this file while it is open.
    pub fn proc_path(&self) -> String {
        proc_path(self.fd.as_fd())
    }
}

/// Access and modification time of a file, for [`Entry::set_times`].
pub fn times_of(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Dir, Name};
    use super::*;

    #[test]
    fn symlinks_have_xattrs_times_and_owners_of_their_own() {
        let scratch = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", scratch.path().join("link")).unwrap();
        let root = Dir::open(scratch.path()).unwrap();
        let link = root.entry(Name::new(OsStr::new("link")).unwrap()).unwrap().unwrap();
        let mut times = times_of(link.stat());
        times.last_modification.tv_sec = 1000;
        link.set_times(&times).unwrap();
        assert_eq!(link.stat_now().unwrap().st_mtime, 1000);
        assert_eq!(link.read_link().unwrap(), "nowhere");
        assert!(link.xattr_names().unwrap().is_empty());
    }
}
