//! Comparing files and trees of the merged view.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use msb::overlay::beneath::{Entry, Name};
use msb::overlay::whiteout::is_private_xattr;
use msb::overlay::{Leaf, Merged, Node};
use msb::tool::interrupt;
use rustix::fs::FileType;

/// How much is compared at once, in bytes.
const BLOCK: usize = 1 << 16;

/// Whether two names are hardlinks of one file, as the guest sees it.
pub(crate) fn is_one_file(one: &Leaf, other: &Leaf) -> bool {
    let key = |leaf: &Leaf| (leaf.layer, leaf.entry.stat().st_dev, leaf.entry.stat().st_ino);
    key(one) == key(other)
}

/// Whether two files are equal except for their times: type, owner, mode, xattrs and content.
///
/// # Errors
/// Those of reading.
pub(crate) fn are_leaves_equal(one: &Leaf, other: &Leaf) -> io::Result<bool> {
    if !are_attributes_equal(&one.entry, &other.entry)? {
        return Ok(false);
    }
    let (stat, other_stat) = (one.entry.stat(), other.entry.stat());
    match one.entry.file_type() {
        FileType::RegularFile => {
            if stat.st_size != other_stat.st_size {
                return Ok(false);
            }
            let (mut one, mut other) = (one.data().open_to_read()?, other.data().open_to_read()?);
            let (mut block, mut other_block) = (Vec::with_capacity(BLOCK), Vec::with_capacity(BLOCK));
            loop {
                interrupt::check()?;
                block.clear();
                other_block.clear();
                (&mut one).take(BLOCK as u64).read_to_end(&mut block)?;
                (&mut other).take(BLOCK as u64).read_to_end(&mut other_block)?;
                if block != other_block || block.is_empty() {
                    return Ok(block == other_block);
                }
            }
        }
        FileType::Symlink => Ok(one.entry.read_link()? == other.entry.read_link()?),
        FileType::CharacterDevice | FileType::BlockDevice => Ok(stat.st_rdev == other_stat.st_rdev),
        _ => Ok(true),
    }
}

/// The same for two directory trees.
///
/// # Errors
/// Those of reading.
pub(crate) fn are_trees_equal(one: &Merged, other: &Merged) -> io::Result<bool> {
    // The pending directories are paths: a tree may be deeper or wider than the limit of open files.
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        interrupt::check()?;
        let (Some(one), Some(other)) = (descend(one, &path)?, descend(other, &path)?) else { return Ok(false) };
        if !are_attributes_equal(&one.top().0.to_entry()?, &other.top().0.to_entry()?)? {
            return Ok(false);
        }
        let names = one.list()?;
        if names.len() != other.list()?.len() {
            return Ok(false);
        }
        for listed in names {
            let name = Name::new(&listed.name)?;
            match (one.lookup(name)?, other.lookup(name)?) {
                (Some(Node::Leaf(one)), Some(Node::Leaf(other))) if are_leaves_equal(&one, &other)? => {}
                (Some(Node::Dir(_)), Some(Node::Dir(_))) => pending.push(path.join(&listed.name)),
                _ => return Ok(false),
            }
        }
    }
    Ok(true)
}

/// The directory at a relative path without symlinks.
///
/// # Errors
/// Those of opening.
pub(crate) fn descend(dir: &Merged, path: &Path) -> io::Result<Option<Merged>> {
    let mut dir = dir.clone();
    for name in path {
        match dir.lookup(Name::new(name)?)? {
            Some(Node::Dir(below)) => dir = below,
            _ => return Ok(None),
        }
    }
    Ok(Some(dir))
}

fn are_attributes_equal(one: &Entry, other: &Entry) -> io::Result<bool> {
    let key = |entry: &Entry| (entry.stat().st_mode, entry.stat().st_uid, entry.stat().st_gid);
    Ok(key(one) == key(other) && xattrs(one)? == xattrs(other)?)
}

fn xattrs(entry: &Entry) -> io::Result<Vec<(std::ffi::OsString, Vec<u8>)>> {
    let mut xattrs = Vec::new();
    for name in entry.xattr_names()? {
        if !is_private_xattr(&name) {
            let value = entry.xattr(&name)?;
            xattrs.push((name, value));
        }
    }
    xattrs.sort();
    Ok(xattrs)
}
