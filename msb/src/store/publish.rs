//! How state becomes visible: prepared under another name or without one, synced, then renamed or linked into place. A kill at any
//! moment leaves the old state or the new one.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::interrupt::DeferExit;
use crate::overlay::beneath::{Dir, Name};

/// Makes a directory and its parents with mode 0700: images contain files, such as `/etc/shadow`, that only root may read.
///
/// # Errors
/// The error of `mkdir(2)`.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// A name beside `path` under which it can be prepared: a dot, the name, this process, a counter.
pub fn staging_path(path: &Path) -> PathBuf {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}.{count}", std::process::id()))
}

/// Writes a file with exactly this mode, so that readers see the old content or the new one, also after a crash.
///
/// # Errors
/// The error of writing, syncing or renaming; nothing is left beside `path` then.
pub fn write_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write_and_rename(path, content, Some(mode), File::sync_all)?;
    sync_parent(path)
}

/// As [`write_file`], with the mode that the umask leaves of 0666.
#[cfg(feature = "tool")]
pub(crate) fn write_output(path: &Path, content: &[u8]) -> io::Result<()> {
    write_and_rename(path, content, None, File::sync_all)?;
    sync_parent(path)
}

/// Writes a file so that readers see the old content or the new one. It need not survive a crash of the machine, as in /run, and nothing
/// waits for a disk.
///
/// # Errors
/// The error of writing or renaming; nothing is left beside `path` then.
pub fn write_volatile_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write_and_rename(path, content, Some(mode), |_| Ok(()))
}

fn write_and_rename(
    path: &Path,
    content: &[u8],
    mode: Option<u32>,
    sync: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    // An interrupted tool removes the staging file before it ends.
    let _deferred = DeferExit::new();
    let staging = staging_path(path);
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(mode.unwrap_or(0o666)).open(&staging)?;
        if let Some(mode) = mode {
            // The umask does not apply: others than the caller may have to read it.
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        file.write_all(content)?;
        sync(&file)?;
        fs::rename(&staging, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&staging);
    }
    written
}

/// Syncs the directory that holds `path`, so that a rename in it survives a crash.
///
/// # Errors
/// The error of opening or of `fsync(2)`.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// A file without a name on the file system of `dir`, for its owner to read and write. It is gone when it is closed, unless it is given
/// a name before.
///
/// # Errors
/// The error of `open(2)` with `O_TMPFILE`.
pub fn unnamed_file(dir: &Path) -> io::Result<File> {
    Ok(rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?.into())
}

/// Gives a file without a name the name `path`.
///
/// # Errors
/// The error of `linkat(2)`: EEXIST.
pub fn link(file: &impl AsRawFd, path: &Path) -> io::Result<()> {
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// Gives a file without a name the name `path`, and replaces the file that has it.
///
/// # Errors
/// The error of `linkat(2)` or of renaming; `path` is as before then.
pub fn link_over(file: &impl AsRawFd, path: &Path) -> io::Result<()> {
    let _deferred = DeferExit::new();
    let staging = staging_path(path);
    link(file, &staging)?;
    fs::rename(&staging, path).inspect_err(|_| drop(fs::remove_file(&staging)))
}

/// Removes a file, or a directory with everything below it, if it is there. Symlinks below it are not followed.
///
/// # Errors
/// The error of opening, reading or unlinking.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let parent = Dir::open(path.parent().unwrap_or(Path::new("/")))?;
    parent.remove_tree(Name::new(path.file_name().unwrap_or_default())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        write_file(&path, b"old", 0o600).unwrap();
        fs::create_dir(dir.path().join("full")).unwrap();
        assert!(write_file(&dir.path().join("full"), b"new", 0o600).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_has_the_mode_that_was_asked_for_whatever_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        // Any umask that is in use takes some of these bits.
        write_file(&path, b"", 0o777).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
    }
}
