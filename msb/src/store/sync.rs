//! Syncing an upper before it becomes visible. `syncfs(2)` writes everything that anyone has written to the file system, which may take
//! seconds, so a small tree is synced file by file.
//!
//! Names and attributes need no sync: ext4, XFS and btrfs write them in the order in which they were changed, so they are on disk before
//! the rename is. Data is not ordered.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::overlay::beneath::{Dir, Name};
use rustix::fs::{FileType, OFlags};

/// Trees with at most this many names are synced file by file.
const FEW: usize = 16;

/// Syncs the data of all files below a directory.
///
/// # Errors
/// The error of opening, reading or syncing.
pub fn tree(path: &Path) -> io::Result<()> {
    let (mut files, mut names) = (Vec::new(), 0);
    if collect(Dir::open(path)?, &mut files, &mut names)? {
        for file in files {
            file.sync_all()?;
        }
        return Ok(());
    }
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

/// Opens the files below `dir`. Returns false if there are more than [`FEW`] names.
fn collect(dir: Dir, files: &mut Vec<File>, names: &mut usize) -> io::Result<bool> {
    let mut children: Vec<OsString> = Vec::new();
    for child in dir.read()? {
        let child = child?;
        if let Ok(name) = Name::new(OsStr::from_bytes(child.file_name().to_bytes())) {
            children.push(name.as_os_str().to_owned());
            *names += 1;
        }
        if *names > FEW {
            return Ok(false);
        }
    }
    for name in &children {
        let Some(entry) = dir.entry(Name::new(name)?)? else { continue };
        if entry.file_type() == FileType::RegularFile {
            files.push(entry.open(OFlags::RDONLY)?);
        } else if entry.is_dir() && !collect(entry.into_dir()?, files, names)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_names_are_told_from_many_wherever_they_are() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(scratch.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("nowhere", scratch.path().join("a/link")).unwrap();
        for number in 3..=FEW {
            let (mut files, mut names) = (Vec::new(), 0);
            assert!(collect(Dir::open(scratch.path()).unwrap(), &mut files, &mut names).unwrap());
            assert_eq!((names, files.len()), (number, number - 3));
            std::fs::write(scratch.path().join(format!("a/b/{number}")), "").unwrap();
        }
        let (mut files, mut names) = (Vec::new(), 0);
        assert!(!collect(Dir::open(scratch.path()).unwrap(), &mut files, &mut names).unwrap());
    }
}
