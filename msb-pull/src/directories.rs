//! The directories of a layer that is being unpacked, with the attributes that they get when all of their entries exist. A directory takes
//! as much memory as its own name, however deep it is.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use msb_archive::Metadata;

/// The most bytes of directories' xattrs. Real layers have some hundreds.
const MAX_XATTRS: usize = 16 << 20;
/// The most bytes that the list of directories may take besides their xattrs: that of about 400000.
const MAX_LIST: usize = 64 << 20;

/// Where a directory of the layer comes from. Its attributes are applied when all of its entries exist.
#[derive(Debug)]
pub(crate) enum Origin {
    /// Only entries below it were listed.
    Implied,
    /// This layer removed what was there before, so the directory is opaque and has default attributes.
    Replaced,
    /// The layer has an entry for it.
    Listed(Metadata),
}

/// The number of a directory. That of the root is 0.
type Id = u32;

/// The directories of a layer.
pub(crate) struct Directories {
    root: Origin,
    /// Those below the root, by the directory above and the name in it.
    below: BTreeMap<(Id, OsString), (Id, Origin)>,
    newest: Id,
    /// Bytes of their xattrs.
    xattrs: usize,
    /// Bytes that the rest takes, about.
    list: usize,
}

impl Default for Directories {
    fn default() -> Self {
        Self { root: Origin::Implied, below: BTreeMap::new(), newest: 0, xattrs: 0, list: 0 }
    }
}

impl Directories {
    /// Adds a directory, or gives one another origin. Directories above it that are missing are implied.
    ///
    /// # Errors
    /// A message if the list needs too much memory.
    pub(crate) fn insert(&mut self, path: &Path, origin: Origin) -> Result<(), &'static str> {
        self.xattrs += xattrs_of(&origin);
        let mut id = 0;
        for name in path {
            let newest = &mut self.newest;
            let list = &mut self.list;
            let (child, _) = self.below.entry((id, name.to_owned())).or_insert_with(|| {
                *newest += 1;
                *list += size(name);
                (*newest, Origin::Implied)
            });
            id = *child;
        }
        if let Some(old) = self.get_mut(path) {
            let old = std::mem::replace(old, origin);
            self.xattrs -= xattrs_of(&old);
        }
        if self.xattrs > MAX_XATTRS {
            return Err("the layer's directories have more than 16 MiB of xattrs");
        }
        self.reserve(0)
    }

    /// Counts further bytes as part of the list.
    ///
    /// # Errors
    /// A message if the list needs too much memory.
    pub(crate) fn reserve(&mut self, bytes: usize) -> Result<(), &'static str> {
        self.list += bytes;
        if self.list > MAX_LIST {
            return Err("the layer has too many directories: the list of them takes more than 64 MiB");
        }
        Ok(())
    }

    /// Where a directory comes from.
    pub(crate) fn get_mut(&mut self, path: &Path) -> Option<&mut Origin> {
        let Some(name) = path.file_name() else { return Some(&mut self.root) };
        let above = self.id(path.parent().unwrap_or(Path::new("")))?;
        self.below.get_mut(&(above, name.to_owned())).map(|(_, origin)| origin)
    }

    fn id(&self, path: &Path) -> Option<Id> {
        path.iter().try_fold(0, |id, name| self.below.get(&(id, name.to_owned())).map(|(id, _)| *id))
    }

    /// Removes a directory that is not the root, with those below it.
    pub(crate) fn remove_tree(&mut self, path: &Path) {
        let (Some(name), Some(above)) = (path.file_name(), path.parent()) else { return };
        let mut left: Vec<(Id, OsString)> = self.id(above).map(|above| (above, name.to_owned())).into_iter().collect();
        while let Some(key) = left.pop() {
            let Some((id, origin)) = self.below.remove(&key) else { continue };
            self.list -= size(&key.1);
            self.xattrs -= xattrs_of(&origin);
            left.extend(self.children(id, Bound::Unbounded).map(|(name, _)| (id, name.clone())));
        }
    }

    /// The names in a directory that come after `from`, and the numbers of those directories.
    fn children(&self, id: Id, from: Bound<OsString>) -> impl Iterator<Item = (&OsString, Id)> {
        let from = match from {
            Bound::Unbounded => Bound::Included((id, OsString::new())),
            Bound::Included(name) => Bound::Included((id, name)),
            Bound::Excluded(name) => Bound::Excluded((id, name)),
        };
        let entries = self.below.range((from, Bound::Unbounded));
        entries.take_while(move |((above, _), _)| *above == id).map(|((_, name), (id, _))| (name, *id))
    }

    /// Calls `visit` for each directory, parents first, with its path from the root.
    ///
    /// # Errors
    /// Those of `visit`.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&Path, &Origin) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut path = PathBuf::new();
        visit(&path, &self.root)?;
        // The directories above the current one, each with the name in it that comes next.
        let mut above = vec![(0, Bound::Unbounded)];
        while let Some((id, from)) = above.pop() {
            let Some((name, child)) = self.children(id, from).next() else {
                path.pop();
                continue;
            };
            path.push(name);
            above.push((id, Bound::Excluded(name.clone())));
            above.push((child, Bound::Unbounded));
            if let Some((_, origin)) = self.below.get(&(id, name.clone())) {
                visit(&path, origin)?;
            }
        }
        Ok(())
    }
}

/// About how much memory a directory takes, in bytes: its entry, with the room that the map leaves free, and its name.
fn size(name: &OsStr) -> usize {
    size_of::<((Id, OsString), (Id, Origin))>() * 3 / 2 + name.len()
}

fn xattrs_of(origin: &Origin) -> usize {
    match origin {
        Origin::Listed(metadata) => metadata.xattrs_size(),
        Origin::Implied | Origin::Replaced => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(dirs: &Directories) -> Vec<String> {
        let mut paths = Vec::new();
        dirs.for_each(|path, origin| {
            paths.push(format!("{}:{}", path.display(), matches!(origin, Origin::Replaced)));
            Ok(())
        })
        .unwrap();
        paths
    }

    #[test]
    fn directories_are_visited_parents_first_and_go_with_those_below_them() {
        let mut dirs = Directories::default();
        for path in ["usr/lib", "a", "usr/lib/x", "usr", "usr-x/y", ""] {
            dirs.insert(Path::new(path), if path == "usr" { Origin::Replaced } else { Origin::Implied }).unwrap();
        }
        let expected =
            [":false", "a:false", "usr:true", "usr/lib:false", "usr/lib/x:false", "usr-x:false", "usr-x/y:false"];
        assert_eq!(paths(&dirs), expected);
        assert!(dirs.get_mut(Path::new("usr/lib/x")).is_some() && dirs.get_mut(Path::new("usr/x")).is_none());
        *dirs.get_mut(Path::new("a")).unwrap() = Origin::Replaced;
        dirs.remove_tree(Path::new("usr"));
        dirs.remove_tree(Path::new("usr"));
        dirs.remove_tree(Path::new("none/at/all"));
        assert_eq!(paths(&dirs), [":false", "a:true", "usr-x:false", "usr-x/y:false"]);
        // A new directory of that name has nothing of the old one below it.
        dirs.insert(Path::new("usr"), Origin::Implied).unwrap();
        assert_eq!(paths(&dirs)[2], "usr:false");
        assert_eq!(paths(&dirs).len(), 5);
    }

    #[test]
    fn the_list_is_bounded_and_gives_back_what_is_removed() {
        let mut dirs = Directories::default();
        let long = "x".repeat(250);
        let mut inserts = 0;
        let error = loop {
            match dirs.insert(Path::new(&format!("{inserts}/{long}")), Origin::Implied) {
                Ok(()) => inserts += 1,
                Err(error) => break error,
            }
        };
        assert!(error.contains("too many directories") && (80_000..200_000).contains(&inserts), "{inserts}: {error}");
        for number in 0..=inserts {
            dirs.remove_tree(Path::new(&number.to_string()));
        }
        assert!(dirs.below.is_empty() && dirs.list == 0 && dirs.xattrs == 0);
    }

    #[test]
    fn deep_directories_take_the_memory_of_their_names() {
        let mut dirs = Directories::default();
        let deep = vec!["d"; 1000].join("/");
        for number in 0..1000 {
            dirs.insert(&Path::new(&deep).join(number.to_string()), Origin::Implied).unwrap();
        }
        let one = size(OsStr::new("999"));
        assert!(dirs.list <= 2000 * one && one < 256, "{} {one}", dirs.list);
    }

    #[test]
    fn xattrs_are_bounded_and_given_back() {
        let listed = |bytes: usize| {
            let root = msb::record::owner::Id::ROOT;
            let mtime = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 };
            let xattrs = vec![(b"user.a".to_vec(), vec![0; bytes])];
            Origin::Listed(Metadata { mode: 0o755, uid: root, gid: root, mtime, xattrs })
        };
        let most = MAX_XATTRS - xattrs_of(&listed(0));
        let mut dirs = Directories::default();
        dirs.insert(Path::new("a"), listed(most)).unwrap();
        // One that is listed again has the new ones alone.
        dirs.insert(Path::new("a"), listed(most)).unwrap();
        assert!(dirs.insert(Path::new("b"), listed(0)).unwrap_err().contains("16 MiB of xattrs"));
        dirs.remove_tree(Path::new("a"));
        dirs.insert(Path::new("b"), listed(0)).unwrap();
        assert_eq!((dirs.xattrs, dirs.list), (xattrs_of(&listed(0)), size(OsStr::new("b"))));
    }

    #[test]
    fn other_bytes_count_as_part_of_the_list() {
        let mut dirs = Directories::default();
        dirs.reserve(MAX_LIST).unwrap();
        assert!(dirs.reserve(1).unwrap_err().contains("64 MiB"));
    }
}
