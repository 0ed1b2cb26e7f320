//! File descriptors that cannot leave a root file system.
//!
//! A [`Dir`] is opened once by a path that the caller trusts; from there on every step takes one [`Name`], which can be
//! neither `..` nor hold a slash, and never follows a symlink. So whatever an image or a racing process puts into the
//! tree, an operation acts inside it. Longer ways go through `openat2(2)` with `RESOLVE_IN_ROOT`, or through
//! [`super::resolve`], which knows all layers.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};

/// The longest name that Linux takes, in bytes.
pub const NAME_MAX: usize = 255;

/// One component of a path: not empty, not `.` or `..`, without slash and NUL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a>(&'a OsStr);

impl<'a> Name<'a> {
    /// Checks a component.
    ///
    /// # Errors
    /// EINVAL for what is no component, ENAMETOOLONG past [`NAME_MAX`].
    pub fn new(name: &'a OsStr) -> io::Result<Self> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
            return Err(rustix::io::Errno::INVAL.into());
        }
        if bytes.len() > NAME_MAX {
            return Err(rustix::io::Errno::NAMETOOLONG.into());
        }
        Ok(Self(name))
    }

    /// The component.
    pub fn as_os_str(self) -> &'a OsStr {
        self.0
    }
}

/// A directory, held by an `O_PATH` descriptor.
#[derive(Debug)]
pub struct Dir(OwnedFd);

/// Any file, held by an `O_PATH` descriptor, with what `stat(2)` said when it was opened.
#[derive(Debug)]
pub struct Entry {
    fd: OwnedFd,
    stat: Stat,
}

/// What unlink(2) says of a directory: EISDIR is Linux's word, EPERM is POSIX's.
fn is_directory(error: &io::Error) -> bool {
    matches!(rustix::io::Errno::from_io_error(error), Some(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM))
}

const ANY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = ANY.union(OFlags::DIRECTORY);

/// The name of a descriptor that a call without an `f…` or `…at(AT_EMPTY_PATH)` form takes. It leads to the very file,
/// also where that is a symlink.
fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

impl Dir {
    /// Opens the root of a tree, by a path that the caller trusts: symlinks in it are followed.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// A second descriptor of the same directory.
    ///
    /// # Errors
    /// What `fcntl(2)` says: EMFILE.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// The directory `name`; a symlink is none.
    ///
    /// # Errors
    /// What `openat(2)` says: ENOENT, ENOTDIR.
    pub fn dir(&self, name: Name<'_>) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat(&self.0, name.0, DIRECTORY, Mode::empty())?))
    }

    /// The directory at a relative path, with no symlink on the way.
    ///
    /// # Errors
    /// What `openat2(2)` says: ELOOP for a symlink, EXDEV for a way out.
    pub fn descend(&self, path: &Path) -> io::Result<Self> {
        if path.as_os_str().is_empty() {
            return self.try_clone();
        }
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Ok(Self(rustix::fs::openat2(&self.0, path, DIRECTORY, Mode::empty(), within)?))
    }

    /// The file `name`, whatever it is; `None` where there is none.
    ///
    /// # Errors
    /// What `openat(2)` says, but for ENOENT.
    pub fn entry(&self, name: Name<'_>) -> io::Result<Option<Entry>> {
        let fd = match rustix::fs::openat(&self.0, name.0, ANY, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            other => other?,
        };
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Some(Entry { fd, stat }))
    }

    /// The file at a path inside this root, symlinks followed inside it, as `chroot(2)` would see it.
    ///
    /// # Errors
    /// What `openat2(2)` says.
    pub fn entry_in_root(&self, path: &Path) -> io::Result<Entry> {
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let fd = rustix::fs::openat2(&self.0, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), within)?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Entry { fd, stat })
    }

    /// This directory as a file.
    ///
    /// # Errors
    /// What `fstat(2)` or `fcntl(2)` says.
    pub fn to_entry(&self) -> io::Result<Entry> {
        Ok(Entry { fd: self.0.try_clone()?, stat: rustix::fs::fstat(&self.0)? })
    }

    /// What `stat(2)` says now.
    ///
    /// # Errors
    /// What `fstat(2)` says.
    pub fn stat(&self) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(&self.0)?)
    }

    /// An open stream of this directory's own entries.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn read(&self) -> io::Result<rustix::fs::Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::Dir::new(rustix::fs::openat(&self.0, c".", flags, Mode::empty())?)?)
    }

    /// Makes a regular file that is not there yet, open for reading and writing.
    ///
    /// # Errors
    /// What `openat(2)` says: EEXIST.
    pub fn create(&self, name: Name<'_>, mode: Mode) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.0, name.0, flags, mode)?.into())
    }

    /// Makes a directory and opens it.
    ///
    /// # Errors
    /// What `mkdirat(2)` says: EEXIST.
    pub fn mkdir(&self, name: Name<'_>, mode: Mode) -> io::Result<Self> {
        rustix::fs::mkdirat(&self.0, name.0, mode)?;
        self.dir(name)
    }

    /// Makes a device node, FIFO or socket.
    ///
    /// # Errors
    /// What `mknodat(2)` says: EEXIST; EPERM without CAP_MKNOD.
    pub fn mknod(&self, name: Name<'_>, kind: FileType, mode: Mode, device: u64) -> io::Result<()> {
        Ok(rustix::fs::mknodat(&self.0, name.0, kind, mode, device)?)
    }

    /// Makes a symlink that holds `target`, unchecked: nothing here ever follows it.
    ///
    /// # Errors
    /// What `symlinkat(2)` says: EEXIST.
    pub fn symlink(&self, name: Name<'_>, target: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.0, name.0)?)
    }

    /// Makes a hardlink to `from`.
    ///
    /// # Errors
    /// What `linkat(2)` says: EEXIST, EXDEV.
    pub fn link(&self, name: Name<'_>, from: &Entry) -> io::Result<()> {
        let source = proc_path(from.fd.as_fd());
        Ok(rustix::fs::linkat(rustix::fs::CWD, source, &self.0, name.0, AtFlags::SYMLINK_FOLLOW)?)
    }

    /// Renames `name` to `to_name` in `to`.
    ///
    /// # Errors
    /// What `renameat2(2)` says.
    pub fn rename(&self, name: Name<'_>, to: &Self, to_name: Name<'_>, flags: RenameFlags) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(&self.0, name.0, &to.0, to_name.0, flags)?)
    }

    /// Removes a file that is no directory.
    ///
    /// # Errors
    /// What `unlinkat(2)` says.
    pub fn unlink(&self, name: Name<'_>) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name.0, AtFlags::empty())?)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// What `unlinkat(2)` says: ENOTEMPTY.
    pub fn rmdir(&self, name: Name<'_>) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name.0, AtFlags::REMOVEDIR)?)
    }

    /// Removes `name` with everything below it, if it is there. Goes by descriptors and never through a symlink.
    ///
    /// A tree may be deeper than descriptors or the stack would last, so each directory below is first moved up beside
    /// `name`, as `name.1`, `name.2` and so on; a run that is killed leaves those.
    ///
    /// # Errors
    /// What opening, reading, renaming or unlinking says.
    pub fn remove_tree(&self, name: Name<'_>) -> io::Result<()> {
        let mut pending = vec![name.0.to_owned()];
        let mut moved = 0u64;
        while let Some(next) = pending.pop() {
            let next = Name::new(&next)?;
            match self.unlink(next) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if is_directory(&error) => {}
                other => {
                    other?;
                    continue;
                }
            }
            let dir = self.dir(next)?;
            for child in dir.read()? {
                let child = child?;
                let Ok(child) = Name::new(OsStr::from_bytes(child.file_name().to_bytes())) else { continue };
                match dir.unlink(child) {
                    Err(error) if is_directory(&error) => match dir.rmdir(child) {
                        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                            pending.push(self.move_up(&dir, child, name, &mut moved)?);
                        }
                        other => other?,
                    },
                    other => other?,
                }
            }
            self.rmdir(next)?;
        }
        Ok(())
    }

    /// Moves `child` of `dir` here, under a free name that begins with `name`.
    fn move_up(&self, dir: &Self, child: Name<'_>, name: Name<'_>, moved: &mut u64) -> io::Result<OsString> {
        loop {
            *moved += 1;
            let mut free = name.0.to_owned();
            free.push(format!(".{moved}"));
            match dir.rename(child, self, Name::new(&free)?, RenameFlags::NOREPLACE) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other.map(|()| free),
            }
        }
    }

    /// A path that leads to this very directory while it is open.
    pub fn proc_path(&self) -> String {
        proc_path(self.0.as_fd())
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Entry {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Entry {
    /// What `stat(2)` said when the file was opened.
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// What `stat(2)` says now.
    ///
    /// # Errors
    /// What `fstat(2)` says.
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

    /// This file as a directory.
    ///
    /// # Errors
    /// ENOTDIR where it is none; EMFILE.
    pub fn to_dir(&self) -> io::Result<Dir> {
        if !self.is_dir() {
            return Err(rustix::io::Errno::NOTDIR.into());
        }
        Ok(Dir(self.fd.try_clone()?))
    }

    /// Opens the file itself. Meant for regular files: opening a FIFO waits, opening a device acts.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn open(&self, flags: OFlags) -> io::Result<File> {
        Ok(rustix::fs::open(self.proc_path(), flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    /// Opens a regular file for reading, and leaves its access time alone where the kernel allows.
    ///
    /// # Errors
    /// EINVAL for what is no regular file; else what `open(2)` says.
    pub fn open_to_read(&self) -> io::Result<File> {
        if self.file_type() != FileType::RegularFile {
            return Err(rustix::io::Errno::INVAL.into());
        }
        match self.open(OFlags::RDONLY | OFlags::NOATIME) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.open(OFlags::RDONLY),
            other => other,
        }
    }

    /// A symlink's target.
    ///
    /// # Errors
    /// What `readlinkat(2)` says: EINVAL where it is no symlink.
    pub fn read_link(&self) -> io::Result<OsString> {
        let target = rustix::fs::readlinkat(&self.fd, c"", Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Sets owner and group; `None` leaves one as it is. Linux clears set-id bits and capabilities with it.
    ///
    /// # Errors
    /// What `fchownat(2)` says.
    pub fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        Ok(rustix::fs::chownat(&self.fd, c"", uid, gid, AtFlags::EMPTY_PATH)?)
    }

    /// Sets the permission bits, set-id and sticky bits included. A symlink has none.
    ///
    /// # Errors
    /// What `chmod(2)` says.
    pub fn set_mode(&self, mode: Mode) -> io::Result<()> {
        Ok(rustix::fs::chmod(self.proc_path(), mode)?)
    }

    /// Sets access and modification time.
    ///
    /// # Errors
    /// What `utimensat(2)` says.
    pub fn set_times(&self, times: &Timestamps) -> io::Result<()> {
        Ok(rustix::fs::utimensat(rustix::fs::CWD, self.proc_path(), times, AtFlags::empty())?)
    }

    /// The names of the xattrs, overlayfs's own included.
    ///
    /// # Errors
    /// What `listxattr(2)` says; a file system without xattrs has none.
    pub fn xattr_names(&self) -> io::Result<Vec<OsString>> {
        let mut list = vec![0u8; 1024];
        loop {
            match rustix::fs::listxattr(self.proc_path(), &mut list[..]) {
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
    /// What `getxattr(2)` says: ENODATA where there is none.
    pub fn xattr(&self, name: &OsStr) -> io::Result<Vec<u8>> {
        let mut value = vec![0u8; 256];
        loop {
            match rustix::fs::getxattr(self.proc_path(), name, &mut value[..]) {
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
    /// What `setxattr(2)` says.
    pub fn set_xattr(&self, name: &OsStr, value: &[u8], flags: XattrFlags) -> io::Result<()> {
        Ok(rustix::fs::setxattr(self.proc_path(), name, value, flags)?)
    }

    /// Removes an xattr.
    ///
    /// # Errors
    /// What `removexattr(2)` says: ENODATA where there is none.
    pub fn remove_xattr(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::removexattr(self.proc_path(), name)?)
    }

    /// A path that leads to this very file while it is open.
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
    use super::*;

    fn name(name: &str) -> Name<'_> {
        Name::new(OsStr::new(name)).unwrap()
    }

    #[test]
    fn a_name_is_one_component() {
        for bad in ["", ".", "..", "a/b", "/", "a\0b"] {
            assert!(Name::new(OsStr::new(bad)).is_err(), "{bad:?}");
        }
        assert!(Name::new(OsStr::new(&"x".repeat(255))).is_ok());
        assert!(Name::new(OsStr::new(&"x".repeat(256))).is_err());
    }

    #[test]
    fn no_step_leaves_the_root() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(scratch.path().join("root/inner")).unwrap();
        std::fs::write(scratch.path().join("secret"), "outside").unwrap();
        std::os::unix::fs::symlink("..", scratch.path().join("root/up")).unwrap();
        std::os::unix::fs::symlink("../secret", scratch.path().join("root/leak")).unwrap();
        let root = Dir::open(&scratch.path().join("root")).unwrap();
        assert!(root.dir(name("up")).is_err());
        assert!(root.descend(Path::new("inner/../..")).is_err());
        assert!(root.descend(Path::new("up")).is_err());
        let leak = root.entry(name("leak")).unwrap().unwrap();
        assert_eq!(leak.file_type(), FileType::Symlink);
        assert!(leak.open_to_read().is_err());
        assert!(root.entry_in_root(Path::new("leak")).is_err());
        assert!(root.create(name("leak"), Mode::RUSR).is_err());
    }

    #[test]
    fn removing_a_tree_spares_what_its_symlinks_name() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(scratch.path().join("kept")).unwrap();
        std::fs::write(scratch.path().join("kept/file"), "").unwrap();
        std::fs::create_dir_all(scratch.path().join("gone/a/b/c")).unwrap();
        std::fs::write(scratch.path().join("gone/a/file"), "").unwrap();
        std::os::unix::fs::symlink("../../kept", scratch.path().join("gone/a/link")).unwrap();
        let root = Dir::open(scratch.path()).unwrap();
        root.remove_tree(name("gone")).unwrap();
        root.remove_tree(name("gone")).unwrap();
        assert!(!scratch.path().join("gone").exists());
        assert!(scratch.path().join("kept/file").exists());
    }

    #[test]
    fn a_tree_deeper_than_descriptors_last_is_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let root = Dir::open(scratch.path()).unwrap();
        let mut dir = root.mkdir(name("deep"), Mode::RWXU).unwrap();
        for _ in 0..3000 {
            dir = dir.mkdir(name("d"), Mode::RWXU).unwrap();
            dir.create(name("f"), Mode::RUSR).unwrap();
        }
        root.remove_tree(name("deep")).unwrap();
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }

    #[test]
    fn symlinks_have_xattrs_times_and_owners_of_their_own() {
        let scratch = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", scratch.path().join("link")).unwrap();
        let root = Dir::open(scratch.path()).unwrap();
        let link = root.entry(name("link")).unwrap().unwrap();
        let mut times = times_of(link.stat());
        times.last_modification.tv_sec = 1000;
        link.set_times(&times).unwrap();
        assert_eq!(link.stat_now().unwrap().st_mtime, 1000);
        assert_eq!(link.read_link().unwrap(), "nowhere");
        assert!(link.xattr_names().unwrap().is_empty());
    }
}
