//! File descriptors that cannot leave a root file system.
//!
//! A [`Dir`] is opened once by a path that the caller trusts; from there on every step takes one [`Name`], which can be
//! neither `..` nor hold a slash, and never follows a symlink. So whatever an image or a racing process puts into the
//! tree, an operation acts inside it. Longer ways go through `openat2(2)` with `RESOLVE_IN_ROOT`, or through
//! [`super::resolve`], which knows all layers.

mod entry;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::interrupt;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};

pub use entry::{Entry, times_of};

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
        match rustix::fs::openat(&self.0, name.0, ANY, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => Ok(None),
            other => Entry::of(other?).map(Some),
        }
    }

    /// The regular file `name`, open for reading, as [`Entry::open_to_read`] does it in two steps; `None` where it is none now.
    /// For a name of which `readdir(3)` said that it is one: opening anything else may act.
    ///
    /// # Errors
    /// What `openat(2)` says, but for ENOENT and ELOOP.
    pub fn regular(&self, name: Name<'_>) -> io::Result<Option<Entry>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(&self.0, name.0, flags | OFlags::NOATIME, Mode::empty()) {
            Err(rustix::io::Errno::PERM) => rustix::fs::openat(&self.0, name.0, flags, Mode::empty()),
            other => other,
        };
        let entry = match opened {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => return Ok(None),
            other => Entry::of_open(other?.into())?,
        };
        Ok((entry.file_type() == FileType::RegularFile).then_some(entry))
    }

    /// The file at a path inside this root, symlinks followed inside it, as `chroot(2)` would see it.
    ///
    /// # Errors
    /// What `openat2(2)` says.
    pub fn entry_in_root(&self, path: &Path) -> io::Result<Entry> {
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let fd = rustix::fs::openat2(&self.0, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), within)?;
        Entry::of(fd)
    }

    /// This directory as a file.
    ///
    /// # Errors
    /// What `fstat(2)` or `fcntl(2)` says.
    pub fn to_entry(&self) -> io::Result<Entry> {
        Entry::of(self.0.try_clone()?)
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
        let source = proc_path(from.as_fd());
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

    /// Moves `child` of `dir` here, under a free name that begins with `name`, as much of it as there is room for.
    fn move_up(&self, dir: &Self, child: Name<'_>, name: Name<'_>, moved: &mut u64) -> io::Result<OsString> {
        loop {
            *moved += 1;
            let suffix = format!(".{moved}");
            let kept = name.0.len().min(NAME_MAX - suffix.len());
            let mut free = OsStr::from_bytes(&name.0.as_bytes()[..kept]).to_owned();
            free.push(suffix);
            match dir.rename(child, self, Name::new(&free)?, RenameFlags::NOREPLACE) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other.map(|()| free),
            }
        }
    }

    /// Shows all there is to `visit`, by its path from here: this directory, whose path is empty, and everything below it, what is in
    /// a directory after the directory.
    ///
    /// # Errors
    /// What opening or reading says, ENAMETOOLONG for a path longer than `PATH_MAX`, what `visit` says, and [`interrupt::check`].
    pub fn walk(&self, mut visit: impl FnMut(&Path, &Entry) -> io::Result<()>) -> io::Result<()> {
        // Paths, and not descriptors: a directory may have any number of directories.
        let mut pending = vec![PathBuf::new()];
        while let Some(path) = pending.pop() {
            interrupt::check()?;
            let dir = self.descend(&path)?;
            visit(&path, &dir.to_entry()?)?;
            for child in dir.read()? {
                let child = child?;
                let Ok(name) = Name::new(OsStr::from_bytes(child.file_name().to_bytes())) else { continue };
                match dir.entry(name)? {
                    Some(entry) if entry.is_dir() => pending.push(path.join(name.0)),
                    Some(entry) => visit(&path.join(name.0), &entry)?,
                    None => {}
                }
            }
        }
        Ok(())
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
    fn a_tree_with_a_name_as_long_as_names_can_be_is_removed() {
        for length in [NAME_MAX - 3, NAME_MAX - 1, NAME_MAX] {
            let scratch = tempfile::tempdir().unwrap();
            let long = "x".repeat(length);
            std::fs::create_dir_all(scratch.path().join(&long).join("a/b")).unwrap();
            std::fs::create_dir_all(scratch.path().join(&long).join("c/d")).unwrap();
            // A name that is taken already.
            std::fs::write(scratch.path().join(format!("{}.1", "x".repeat(length.min(NAME_MAX - 2)))), "").unwrap();
            Dir::open(scratch.path()).unwrap().remove_tree(name(&long)).unwrap();
            assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1, "{length}");
        }
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
}
