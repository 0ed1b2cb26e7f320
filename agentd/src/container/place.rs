//! Places in a container's root: looking one up, and making what is missing. No symlink leads out of the root.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use msb::overlay::beneath::{Dir, Entry, Name};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::path;

/// A container's root while it is assembled.
pub struct Root {
    /// The directory, with what is mounted in it.
    pub dir: Dir,
    /// Its path.
    pub path: PathBuf,
}

/// The file or directory at a path inside a root, with what is mounted there.
///
/// # Errors
/// Those of `openat2(2)`.
pub fn lookup(root: &Dir, path: &Path) -> io::Result<Entry> {
    // With a further component, a directory that the host announces as a mount is mounted.
    match root.entry_in_root(&path.join(".")) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOTDIR) => root.entry_in_root(path),
        other => other,
    }
}

/// A mount point, which is made if it is missing: a directory or an empty file.
///
/// # Errors
/// Those of `openat(2)` and `mkdir(2)`, and that something else is there.
pub fn mount_point(root: &Root, target: &Path, is_dir: bool) -> io::Result<Entry> {
    let entry = match lookup(&root.dir, target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Without "..": the name before it may not exist.
            let target = path::follow(&root.path, target)?;
            make(root, &target, is_dir)?;
            lookup(&root.dir, &target)?
        }
        other => other?,
    };
    match (entry.is_dir(), is_dir) {
        (true, false) => Err(io::Error::other("the container has a directory there, and the source is a file")),
        (false, true) => Err(io::Error::other("the container has a file there, and the source is a directory")),
        _ => Ok(entry),
    }
}

/// Makes a directory and those above it, if they are missing.
///
/// # Errors
/// As [`mount_point`].
pub fn make_directory(root: &Root, target: &Path) -> io::Result<()> {
    mount_point(root, target, true).map(drop)
}

/// Makes what is missing of a path whose symlinks were followed. A symlink that appears there meanwhile is an error.
fn make(root: &Root, target: &Path, is_dir: bool) -> io::Result<()> {
    let mut dir: OwnedFd = rustix::fs::openat(&root.dir, c".", DIRECTORY, Mode::empty())?;
    let names: Vec<&OsStr> = target.iter().skip(1).collect();
    for (place, name) in names.iter().enumerate() {
        // A name is one component.
        let name = Name::new(name)?.as_os_str();
        if place + 1 == names.len() && !is_dir {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o644))?;
            return Ok(());
        }
        match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        dir = rustix::fs::openat(&dir, name, DIRECTORY, Mode::empty())?;
    }
    Ok(())
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_mount_point_is_made_inside_the_root_wherever_symlinks_lead() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |path: &str| scratch.path().join("root").join(path);
        fs::create_dir_all(at("var/run")).unwrap();
        fs::write(at("file"), "x").unwrap();
        for (target, link) in [("/var/run", "run"), ("/../../host", "etc"), ("loop", "loop")] {
            symlink(target, at(link)).unwrap();
        }
        let root = Root { dir: Dir::open(&at("")).unwrap(), path: at("") };
        let place = |target: &str, is_dir| mount_point(&root, Path::new(target), is_dir);
        place("/run/secrets/key", false).unwrap();
        assert!(at("var/run/secrets/key").is_file());
        place("/etc/hosts", false).unwrap();
        assert!(at("host/hosts").is_file() && !scratch.path().join("host").exists());
        place("/a/../b/c", true).unwrap();
        assert!(at("b/c").is_dir());
        assert!(place("/file", true).is_err() && place("/b", false).is_err() && place("/loop/x", true).is_err());
        assert!(place("/file/x", true).is_err());
        assert_eq!(fs::read(at("file")).unwrap(), b"x");
        assert!(lookup(&root.dir, Path::new("none")).is_err());
    }
}
