//! A file of the host that was checked once, and must be the same one whenever it is opened again.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// An absolute path without symlinks, and the identity of the file that it led to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedPath {
    path: PathBuf,
    dev: u64,
    ino: u64,
}

impl PinnedPath {
    /// Opens the file at `path`, whose symlinks are followed except the last component, with `O_PATH`. Returns its `stat(2)` too.
    ///
    /// # Errors
    /// Those of `openat2(2)`.
    pub fn pin(path: &Path) -> io::Result<(Self, OwnedFd, Stat)> {
        let name = path.file_name().unwrap_or_default();
        let path = path.parent().unwrap_or(Path::new("/")).canonicalize()?.join(name);
        let (fd, stat) = open(&path)?;
        Ok((Self { path, dev: stat.st_dev, ino: stat.st_ino }, fd, stat))
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both led to one file, maybe by different paths.
    pub fn is_same_file(&self, other: &Self) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }

    /// Opens the file again with `O_PATH`.
    ///
    /// # Errors
    /// That the path leads to another file now, or nowhere.
    pub fn open(&self) -> io::Result<OwnedFd> {
        match open(&self.path) {
            Ok((fd, stat)) if (stat.st_dev, stat.st_ino) == (self.dev, self.ino) => Ok(fd),
            Ok((_, stat)) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => Err(symlink()),
            Ok(_) => Err(io::Error::other("it was replaced while the VM was starting (run msb-boot again)")),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::LOOP) => Err(symlink()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(io::Error::other("it disappeared while the VM was starting"))
            }
            Err(error) => Err(error),
        }
    }
}

fn symlink() -> io::Error {
    io::Error::other("a symlink took its place while the VM was starting (run msb-boot again)")
}

/// Opens a path without symlinks. The last component may be one, which is opened itself.
fn open(path: &Path) -> io::Result<(OwnedFd, Stat)> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let stat = rustix::fs::fstat(&fd)?;
    Ok((fd, stat))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_that_is_another_one_later_is_not_opened() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        fs::create_dir_all(at("real/dir")).unwrap();
        symlink("real", at("link")).unwrap();
        let (pinned, ..) = PinnedPath::pin(&at("link/dir")).unwrap();
        assert_eq!(pinned.path(), at("real/dir").canonicalize().unwrap());
        pinned.open().unwrap();
        fs::rename(at("real/dir"), at("real/old")).unwrap();
        assert!(pinned.open().unwrap_err().to_string().contains("disappeared"));
        fs::create_dir(at("real/dir")).unwrap();
        assert!(pinned.open().unwrap_err().to_string().contains("replaced"));
        fs::remove_dir(at("real/dir")).unwrap();
        symlink("old", at("real/dir")).unwrap();
        assert!(pinned.open().unwrap_err().to_string().contains("symlink"));
        fs::rename(at("real"), at("moved")).unwrap();
        symlink("moved", at("real")).unwrap();
        assert!(pinned.open().unwrap_err().to_string().contains("symlink"));
    }
}
