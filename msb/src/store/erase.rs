//! Erasing a snapshot. Its files hold what was in a guest's memory, passwords and keys among it, so their data is overwritten in place
//! before the file system gets the blocks back. A file system that writes to other blocks (Btrfs, or a file that shares its blocks with a
//! copy) and the device itself may still keep the old ones.
//!
//! VMs that have started from a snapshot map its memory as long as they run. Each has a shared lock on the file, a [`Use`]. If the
//! snapshot is removed meanwhile, the last of them erases the file.

use std::fs::{self, File, Permissions};
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::publish;
use crate::lock::{self, Lock};
use crate::regular_file::{self, Symlinks};

/// How much is overwritten at a time, in bytes.
const BLOCK: usize = 1 << 20;

/// A file of a snapshot that is in use.
#[derive(Debug)]
pub struct Use(File);

impl Use {
    /// Keeps a file from being overwritten until the result is dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if the file was removed meanwhile; else those of flock(2).
    pub fn begin(file: File) -> io::Result<Self> {
        // This waits while the file is being erased.
        lock::take(&file, Lock::Shared)?;
        if file.metadata()?.nlink() == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self(file))
    }
}

impl Deref for Use {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        // Nobody is there who could be told of an error.
        if self.0.metadata().is_ok_and(|meta| meta.nlink() == 0) {
            let _ = erase_unless_used(&self.0);
        }
    }
}

/// Erases and removes a directory of files, which has lost its name in the store. A file that has another name as well, such as the
/// image of a layer, only loses this one.
///
/// # Errors
/// Those of reading the directory and of unlinking. A file that cannot be overwritten is removed.
pub fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        remove_file(&entry?.path())?;
    }
    publish::remove_tree(dir)
}

fn remove_file(path: &Path) -> io::Result<()> {
    let Ok(file) = regular_file::open(path, Symlinks::Refuse) else { return Ok(()) };
    if file.metadata()?.nlink() > 1 {
        return Ok(());
    }
    let is_erased = erase_unless_used(&file).unwrap_or(true);
    match fs::remove_file(path) {
        // Another tool removes what a killed one has left.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if !is_erased {
        // Its last user may have ended just before it was unlinked.
        let _ = erase_unless_used(&file);
    }
    Ok(())
}

/// Overwrites a file, unless somebody else uses it. Returns whether nobody does. The file stays locked until it is closed.
fn erase_unless_used(file: &File) -> io::Result<bool> {
    match lock::take(file, Lock::TryExclusive) {
        Ok(()) => overwrite(file).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Overwrites the data of a file with zeros, on the disk. Holes stay holes.
fn overwrite(file: &File) -> io::Result<()> {
    // It may be open for reading only, and it may have no name any more.
    file.set_permissions(Permissions::from_mode(0o600))?;
    let writable = File::options().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let (zeros, length) = (vec![0; BLOCK], file.metadata()?.len());
    let mut at = 0;
    while at < length {
        // On a file system without SEEK_DATA, everything is data.
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(_) => at,
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(at)).unwrap_or(length).min(length);
        while at < end {
            let block = usize::try_from(end - at).unwrap_or(BLOCK).min(BLOCK);
            writable.write_all_at(&zeros[..block], at)?;
            at += block as u64;
        }
    }
    writable.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with data around a hole, its content, and what is left of that when it is erased.
    fn secret(dir: &Path) -> (std::path::PathBuf, Vec<u8>) {
        let path = dir.join("memory");
        let file = File::create_new(&path).unwrap();
        let data = vec![7; BLOCK + 5];
        file.write_all_at(&data, 0).unwrap();
        file.write_all_at(b"end", 16 << 20).unwrap();
        file.set_permissions(Permissions::from_mode(0o400)).unwrap();
        (path.clone(), fs::read(&path).unwrap())
    }

    fn content(file: &File) -> Vec<u8> {
        let mut content = vec![1; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    fn is_erased(file: &File, before: &[u8]) -> bool {
        content(file) == vec![0; before.len()]
    }

    #[test]
    fn what_is_removed_is_overwritten_and_stays_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("snapshot");
        fs::create_dir(&tree).unwrap();
        let (path, before) = secret(&tree);
        let (file, blocks) = (File::open(&path).unwrap(), fs::metadata(&path).unwrap().blocks());
        remove_tree(&tree).unwrap();
        assert!(is_erased(&file, &before));
        assert!(file.metadata().unwrap().blocks() <= blocks);
        assert!(!tree.exists());
    }

    #[test]
    fn a_file_with_another_name_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("snapshot");
        fs::create_dir_all(tree.join("directory")).unwrap();
        let (path, before) = secret(&tree);
        fs::hard_link(&path, dir.path().join("image")).unwrap();
        std::os::unix::fs::symlink("/", tree.join("symlink")).unwrap();
        remove_tree(&tree).unwrap();
        assert_eq!(fs::read(dir.path().join("image")).unwrap(), before);
        assert!(!tree.exists());
    }

    #[test]
    fn the_last_user_of_a_removed_file_erases_it() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("snapshot");
        fs::create_dir(&tree).unwrap();
        let (path, before) = secret(&tree);
        let open = || File::open(&path).unwrap();
        let (file, late, first, second) = (open(), open(), Use::begin(open()).unwrap(), Use::begin(open()).unwrap());
        remove_tree(&tree).unwrap();
        assert_eq!(content(&first), before);
        drop(first);
        assert_eq!(content(&second), before, "another one uses it");
        drop(second);
        assert!(is_erased(&file, &before));
        assert_eq!(Use::begin(late).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_that_is_not_removed_is_left_alone_by_its_last_user() {
        let dir = tempfile::tempdir().unwrap();
        let (path, before) = secret(dir.path());
        drop(Use::begin(File::open(&path).unwrap()).unwrap());
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}
