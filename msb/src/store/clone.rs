//! Copies of uppers.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode};

use crate::overlay::attributes::clone_attributes;
use crate::overlay::beneath::{Dir, Entry, Name};
use crate::overlay::clone_leaf;

/// Whether there are more than so many names below a directory.
pub(super) fn has_more_names(dir: &Path, least: usize) -> io::Result<bool> {
    let root = Dir::open(dir)?;
    let (mut names, mut pending) = (0, vec![PathBuf::new()]);
    while let Some(path) = pending.pop() {
        for child in root.descend(&path)?.read()? {
            let child = child?;
            let Ok(name) = Name::new(OsStr::from_bytes(child.file_name().to_bytes())) else { continue };
            names += 1;
            if names > least {
                return Ok(true);
            }
            if child.file_type() == FileType::Directory {
                pending.push(path.join(name.as_os_str()));
            }
        }
    }
    Ok(false)
}

/// Copies an upper so that the original need not change, with the data of its files shared. Returns what [`fill_from`] does.
pub(super) fn clone_tree(from: &Path, to: &Path) -> io::Result<HashSet<u64>> {
    rustix::fs::mkdir(to, Mode::from_raw_mode(0o700))?;
    fill_from(from, to, true)
}

/// Copies what an upper has into the directory `to`. If its data `is_shared`, regular files are hardlinked and their inode numbers
/// returned: such a file must be copied before it is written to. Files that were hardlinked before are copied, once each, since their
/// link count would not tell whether they are shared.
pub(super) fn fill_from(from: &Path, to: &Path, is_shared: bool) -> io::Result<HashSet<u64>> {
    let (from_root, to_root) = (Dir::open(from)?, Dir::open(to)?);
    let mut shared = HashSet::new();
    let mut copied: HashMap<u64, Entry> = HashMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let (from, to) = (from_root.descend(&path)?, to_root.descend(&path)?);
        for child in from.read()? {
            let child = child?;
            let child = OsStr::from_bytes(child.file_name().to_bytes());
            let Ok(name) = Name::new(child) else { continue };
            let Some(entry) = from.entry(name)? else { continue };
            let stat = entry.stat();
            if entry.is_dir() {
                to.mkdir(name, Mode::from_raw_mode(0o700))?;
                pending.push(path.join(child));
            } else if is_shared && entry.file_type() == FileType::RegularFile && stat.st_nlink == 1 {
                to.link(name, &entry)?;
                shared.insert(stat.st_ino);
            } else if let Some(first) = copied.get(&stat.st_ino) {
                to.link(name, first)?;
            } else {
                let copy = clone_leaf(&entry, &to, name)?;
                if stat.st_nlink > 1 {
                    copied.insert(stat.st_ino, copy);
                }
            }
        }
        clone_attributes(&from.to_entry()?, &to.to_entry()?)?;
    }
    Ok(shared)
}
