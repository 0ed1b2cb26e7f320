//! Opening a regular file at a path that may hold anything.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Whether a path may be that of a symlink. Those above its last name are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symlinks {
    /// The target is opened.
    Follow,
    /// It is an error.
    Refuse,
}

/// Opens a regular file for reading.
///
/// # Errors
/// Those of `open(2)`; [`io::ErrorKind::InvalidInput`] for another type of file.
pub fn open(path: &Path, symlinks: Symlinks) -> io::Result<File> {
    // Without O_NONBLOCK, opening a FIFO would wait for a writer.
    let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, symlinks == Symlinks::Refuse);
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, mknodat};

    use super::*;

    #[test]
    fn a_symlink_is_followed_or_refused_and_other_types_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for (name, follow, refuse) in
            [("file", true, true), ("link", true, false), ("fifo", false, false), (".", false, false)]
        {
            assert_eq!(open(&at(name), Symlinks::Follow).is_ok(), follow, "{name}");
            assert_eq!(open(&at(name), Symlinks::Refuse).is_ok(), refuse, "{name}");
        }
    }
}
