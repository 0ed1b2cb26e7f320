//! The first names of files with several: an archive has the file there, and links to it at the others. A hostile root may have millions
//! of such files in directories with long paths, so no path is kept as a whole.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use msb::overlay::{Layer, Leaf};

/// A directory: the one above it, by its place in the list, and its name.
type Dir = (Option<usize>, Box<OsStr>);

/// A file that has names left.
struct First {
    dir: Option<usize>,
    name: Box<OsStr>,
    left: u32,
}

/// What tells a file from others. A writer that ignores the lock of an upper may remove a file and make one with the same inode number, so
/// that alone does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    layer: Layer,
    inode: (u64, u64),
    mode: u32,
    size: i64,
    mtime: (i64, i64),
}

impl Key {
    fn of(leaf: &Leaf) -> Self {
        let stat = leaf.entry.stat();
        Self {
            layer: leaf.layer,
            inode: (stat.st_dev, stat.st_ino),
            mode: stat.st_mode,
            size: stat.st_size,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as i64),
        }
    }
}

/// The first names that a walk has met.
#[derive(Default)]
pub(crate) struct Hardlinks {
    dirs: Vec<Dir>,
    /// The directory of the last file that was noted, and the places of it and of those above it.
    at: PathBuf,
    open: Vec<usize>,
    files: HashMap<Key, First>,
}

impl Hardlinks {
    /// The first name of a file that has been met at another one. Otherwise notes `path` as its first name.
    pub(crate) fn first(&mut self, path: &Path, leaf: &Leaf) -> Option<PathBuf> {
        let stat = leaf.entry.stat();
        if stat.st_nlink < 2 {
            return None;
        }
        self.note(path, Key::of(leaf), u32::try_from(stat.st_nlink).unwrap_or(u32::MAX))
    }

    fn note(&mut self, path: &Path, key: Key, links: u32) -> Option<PathBuf> {
        if let Entry::Occupied(mut known) = self.files.entry(key) {
            let file = known.get_mut();
            let first = path_of(&self.dirs, file);
            file.left -= 1;
            if file.left == 0 {
                known.remove();
            }
            return Some(first);
        }
        let dir = self.enter(path.parent().unwrap_or(Path::new("")));
        let name = path.file_name().unwrap_or_default().into();
        self.files.insert(key, First { dir, name, left: links - 1 });
        None
    }

    /// The place of a directory.
    fn enter(&mut self, dir: &Path) -> Option<usize> {
        while !dir.starts_with(&self.at) {
            self.at.pop();
            self.open.pop();
        }
        let below = dir.strip_prefix(&self.at).unwrap_or(dir);
        for name in below {
            self.dirs.push((self.open.last().copied(), name.into()));
            self.open.push(self.dirs.len() - 1);
            self.at.push(name);
        }
        self.open.last().copied()
    }
}

fn path_of(dirs: &[Dir], file: &First) -> PathBuf {
    let mut names: Vec<&OsStr> = vec![&file.name];
    let mut at = file.dir;
    while let Some((above, name)) = at.map(|place| &dirs[place]) {
        names.push(name);
        at = *above;
    }
    names.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ino: u64) -> Key {
        Key { layer: Layer::Upper, inode: (1, ino), mode: 0o100_644, size: 5, mtime: (1, 2) }
    }

    #[test]
    fn a_link_leads_to_the_first_name_until_all_names_are_met() {
        let mut links = Hardlinks::default();
        let mut note = |path: &str, ino, count| links.note(Path::new(path), key(ino), count);
        assert_eq!(note("a/b/first", 1, 3), None);
        assert_eq!(note("a/b/other", 2, 2), None);
        assert_eq!(note("a/c/second", 1, 3), Some("a/b/first".into()));
        assert_eq!(note("top", 3, 2), None);
        assert_eq!(note("z", 2, 2), Some("a/b/other".into()));
        assert_eq!(note("z/1", 1, 3), Some("a/b/first".into()));
        assert_eq!(note("z/2", 3, 2), Some("top".into()));
        assert!(links.files.is_empty());
    }

    #[test]
    fn a_file_with_the_inode_number_of_one_that_was_removed_is_no_link_to_it() {
        let mut links = Hardlinks::default();
        assert_eq!(links.note(Path::new("a"), key(1), 2), None);
        assert_eq!(links.note(Path::new("b"), Key { mode: 0o120_777, ..key(1) }, 2), None);
        assert_eq!(links.note(Path::new("c"), Key { mtime: (1, 3), ..key(1) }, 2), None);
        assert_eq!(links.note(Path::new("d"), key(1), 2), Some("a".into()));
    }

    #[test]
    fn a_directory_is_kept_once() {
        let mut links = Hardlinks::default();
        for ino in 0..10 {
            assert_eq!(links.note(Path::new(&format!("a/b/{ino}")), key(ino), 2), None);
        }
        assert_eq!(links.dirs.len(), 2);
    }
}
