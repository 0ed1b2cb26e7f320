//! A directory beneath a root, and what is done in it: looking up, making, renaming and removing names.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};

use super::entry::{Entry, proc_path};
use super::name::{NAME_MAX, Name};
use crate::interrupt;

/// A directory, held by an `O_PATH` descriptor.
#[derive(Debug)]
pub struct Dir(OwnedFd);

/// Whether an error of unlink(2) means that the file is a directory: EISDIR on Linux, EPERM in POSIX.
fn is_directory(error: &io::Error) -> bool {
    matches!(rustix::io::Errno::from_io_error(error), Some(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM))
}

const ANY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = ANY.union(OFlags::DIRECTORY);

impl Dir {
    /// Opens the root of a tree, by a path that the caller trusts: symlinks in it are followed.
    ///
    /// # Errors
    /// The error of `open(2)`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// As [`Self::open`], without what is mounted below it, now or later. It is a mount of its own, so its files can neither be renamed
    /// nor linked to where others of its file system are.
    ///
    /// # Errors
    /// The error of `open_tree(2)`: EPERM without CAP_SYS_ADMIN; ENOTDIR.
    pub fn open_alone(path: &Path) -> io::Result<Self> {
        use rustix::mount::{OpenTreeFlags, open_tree};
        // So that the path may end in a symlink, and is a directory.
        let dir = Self::open(path)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        Ok(Self(open_tree(&dir.0, c"", flags)?))
    }

    /// A second descriptor of the same directory.
    ///
    /// # Errors
    /// The error of `fcntl(2)`: EMFILE.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// The directory `name`. A symlink is not followed.
    ///
    /// # Errors
    /// The error of `openat(2)`: ENOENT, ENOTDIR.
    pub fn dir(&self, name: Name<'_>) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat(&self.0, name.as_os_str(), DIRECTORY, Mode::empty())?))
    }

    /// The directory at a relative path. Symlinks are not followed.
    ///
    /// # Errors
    /// The error of `openat2(2)`: ELOOP for a symlink, EXDEV for a path that leaves this directory.
    pub fn descend(&self, path: &Path) -> io::Result<Self> {
        if path.as_os_str().is_empty() {
            return self.try_clone();
        }
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Ok(Self(rustix::fs::openat2(&self.0, path, DIRECTORY, Mode::empty(), within)?))
    }

    /// The file `name` of any type; `None` if it does not exist.
    ///
    /// # Errors
    /// The error of `openat(2)`, except ENOENT.
    pub fn entry(&self, name: Name<'_>) -> io::Result<Option<Entry>> {
        match rustix::fs::openat(&self.0, name.as_os_str(), ANY, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => Ok(None),
            other => Entry::of(other?).map(Some),
        }
    }

    /// The attributes of the file `name`, which is not opened; `None` if it does not exist. A symlink is not followed.
    ///
    /// # Errors
    /// The error of `fstatat(2)`, except ENOENT.
    pub fn stat_of(&self, name: Name<'_>) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&self.0, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    /// The regular file `name`, open for reading, in one step instead of the two of [`Entry::open_to_read`]; `None` if it is not one any
    /// more. Call it only for names that `readdir(3)` returned as regular files: opening a device has effects.
    ///
    /// # Errors
    /// The error of `openat(2)`, except ENOENT and ELOOP.
    pub fn regular(&self, name: Name<'_>) -> io::Result<Option<Entry>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(&self.0, name.as_os_str(), flags | OFlags::NOATIME, Mode::empty()) {
            Err(rustix::io::Errno::PERM) => rustix::fs::openat(&self.0, name.as_os_str(), flags, Mode::empty()),
            other => other,
        };
        let entry = match opened {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => return Ok(None),
            other => Entry::of_open(other?.into())?,
        };
        Ok((entry.file_type() == FileType::RegularFile).then_some(entry))
    }

    /// The file at a path inside this root. Symlinks are followed inside it, as after `chroot(2)`.
    ///
    /// # Errors
    /// The error of `openat2(2)`.
    pub fn entry_in_root(&self, path: &Path) -> io::Result<Entry> {
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let fd = rustix::fs::openat2(&self.0, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), within)?;
        Entry::of(fd)
    }

    /// This directory as a file.
    ///
    /// # Errors
    /// The error of `fstat(2)` or `fcntl(2)`.
    pub fn to_entry(&self) -> io::Result<Entry> {
        Entry::of(self.0.try_clone()?)
    }

    /// The current result of `stat(2)`.
    ///
    /// # Errors
    /// The error of `fstat(2)`.
    pub fn stat(&self) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(&self.0)?)
    }

    /// A stream of this directory's entries.
    ///
    /// # Errors
    /// The error of `open(2)`.
    pub fn read(&self) -> io::Result<rustix::fs::Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::Dir::new(rustix::fs::openat(&self.0, c".", flags, Mode::empty())?)?)
    }

    /// Makes a new regular file, open for reading and writing.
    ///
    /// # Errors
    /// The error of `openat(2)`: EEXIST.
    pub fn create(&self, name: Name<'_>, mode: Mode) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.0, name.as_os_str(), flags, mode)?.into())
    }

    /// Makes a regular file without a name, open for reading and writing. [`Self::link`] names it.
    ///
    /// # Errors
    /// The error of `openat(2)`: EOPNOTSUPP or EISDIR where the file system has no such files.
    pub fn create_unnamed(&self, mode: Mode) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.0, c".", flags, mode)?.into())
    }

    /// Makes a directory and opens it.
    ///
    /// # Errors
    /// The error of `mkdirat(2)`: EEXIST.
    pub fn mkdir(&self, name: Name<'_>, mode: Mode) -> io::Result<Self> {
        rustix::fs::mkdirat(&self.0, name.as_os_str(), mode)?;
        self.dir(name)
    }

    /// Makes a device node, FIFO or socket.
    ///
    /// # Errors
    /// The error of `mknodat(2)`: EEXIST; EPERM without CAP_MKNOD.
    pub fn mknod(&self, name: Name<'_>, kind: FileType, mode: Mode, device: u64) -> io::Result<()> {
        Ok(rustix::fs::mknodat(&self.0, name.as_os_str(), kind, mode, device)?)
    }

    /// Makes a symlink. `target` is not checked, since nothing here follows it.
    ///
    /// # Errors
    /// The error of `symlinkat(2)`: EEXIST.
    pub fn symlink(&self, name: Name<'_>, target: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.0, name.as_os_str())?)
    }

    /// Makes a hardlink to `from`.
    ///
    /// # Errors
    /// The error of `linkat(2)`: EEXIST, EXDEV.
    pub fn link(&self, name: Name<'_>, from: &Entry) -> io::Result<()> {
        let source = proc_path(from.as_fd());
        Ok(rustix::fs::linkat(rustix::fs::CWD, source, &self.0, name.as_os_str(), AtFlags::SYMLINK_FOLLOW)?)
    }

    /// Renames `name` to `to_name` in `to`.
    ///
    /// # Errors
    /// The error of `renameat2(2)`.
    pub fn rename(&self, name: Name<'_>, to: &Self, to_name: Name<'_>, flags: RenameFlags) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(&self.0, name.as_os_str(), &to.0, to_name.as_os_str(), flags)?)
    }

    /// Removes a file that is not a directory.
    ///
    /// # Errors
    /// The error of `unlinkat(2)`.
    pub fn unlink(&self, name: Name<'_>) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name.as_os_str(), AtFlags::empty())?)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// The error of `unlinkat(2)`: ENOTEMPTY.
    pub fn rmdir(&self, name: Name<'_>) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name.as_os_str(), AtFlags::REMOVEDIR)?)
    }

    /// Removes `name` with everything below it, if it exists. Symlinks are not followed.
    ///
    /// The depth of a tree may exceed the limits of descriptors and of the stack. So each directory below is first moved up beside
    /// `name`, as `name.1`, `name.2` and so on. A run that is killed leaves those.
    ///
    /// # Errors
    /// The error of opening, reading, renaming or unlinking.
    pub fn remove_tree(&self, name: Name<'_>) -> io::Result<()> {
        let mut pending = vec![name.as_os_str().to_owned()];
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

    /// Moves `child` of `dir` here, to a free name that begins with as much of `name` as fits.
    fn move_up(&self, dir: &Self, child: Name<'_>, name: Name<'_>, moved: &mut u64) -> io::Result<OsString> {
        loop {
            *moved += 1;
            let suffix = format!(".{moved}");
            let kept = name.as_os_str().len().min(NAME_MAX - suffix.len());
            let mut free = OsStr::from_bytes(&name.as_os_str().as_bytes()[..kept]).to_owned();
            free.push(suffix);
            match dir.rename(child, self, Name::new(&free)?, RenameFlags::NOREPLACE) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other.map(|()| free),
            }
        }
    }

    /// Calls `visit` for this directory, with an empty path, and for everything below it, with its path from here. A directory comes
    /// before its entries.
    ///
    /// # Errors
    /// The error of opening or reading, with the path, ENAMETOOLONG for a path longer than `PATH_MAX`, what `visit` says, and
    /// [`interrupt::check`].
    pub fn walk(&self, mut visit: impl FnMut(&Path, &Entry) -> io::Result<()>) -> io::Result<()> {
        self.walk_with(false, |path, _, entry| entry.map_or(Ok(()), |entry| visit(path, entry)).map(|()| true))
    }

    /// As [`Self::walk`], but a file that is not a directory is first passed with its `stat` only. If `visit` returns true, the file is not
    /// opened. Opening it takes three times as long as the `stat`.
    ///
    /// # Errors
    /// As [`Self::walk`].
    pub fn walk_lazily(&self, visit: impl FnMut(&Path, &Stat, Option<&Entry>) -> io::Result<bool>) -> io::Result<()> {
        self.walk_with(true, visit)
    }

    fn walk_with(
        &self,
        is_lazy: bool,
        mut visit: impl FnMut(&Path, &Stat, Option<&Entry>) -> io::Result<bool>,
    ) -> io::Result<()> {
        // Paths and not descriptors, since their number is not limited.
        let mut pending = vec![PathBuf::new()];
        while let Some(path) = pending.pop() {
            interrupt::check()?;
            let at = |error: io::Error| match error.kind() {
                io::ErrorKind::InvalidFilename => error,
                kind => io::Error::new(kind, format!("{path:?}: {error}")),
            };
            let dir = self.descend(&path).map_err(at)?;
            let entry = dir.to_entry()?;
            visit(&path, entry.stat(), Some(&entry))?;
            for child in dir.read().map_err(at)? {
                let child = child.map_err(|error| at(error.into()))?;
                let Ok(name) = Name::new(OsStr::from_bytes(child.file_name().to_bytes())) else { continue };
                let child_path = path.join(name.as_os_str());
                if is_lazy {
                    let Some(stat) = dir.stat_of(name).map_err(at)? else { continue };
                    let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                    if !is_dir && visit(&child_path, &stat, None)? {
                        continue;
                    }
                }
                match dir.entry(name).map_err(at)? {
                    Some(entry) if entry.is_dir() => pending.push(child_path),
                    Some(entry) => _ = visit(&child_path, entry.stat(), Some(&entry))?,
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// A path that leads to this directory while it is open.
    pub fn proc_path(&self) -> String {
        proc_path(self.0.as_fd())
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Entry {
    /// This file as a directory.
    ///
    /// # Errors
    /// ENOTDIR if it is not one; EMFILE.
    pub fn to_dir(&self) -> io::Result<Dir> {
        if !self.is_dir() {
            return Err(rustix::io::Errno::NOTDIR.into());
        }
        Ok(Dir(self.fd.try_clone()?))
    }

    /// As [`Self::to_dir`], without a second descriptor.
    ///
    /// # Errors
    /// ENOTDIR if it is not one.
    pub fn into_dir(self) -> io::Result<Dir> {
        if !self.is_dir() {
            return Err(rustix::io::Errno::NOTDIR.into());
        }
        Ok(Dir(self.fd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Name<'_> {
        Name::new(OsStr::new(name)).unwrap()
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
