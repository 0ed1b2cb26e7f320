//! The files of a root, or of one layer of it, in the order in which an archive has them: a directory before its entries, and
//! those sorted by their bytes. The same root gives the same order on every machine.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use msb::overlay::beneath::{Entry, Name};
use msb::overlay::{Leaf, Merged, Node};
use msb::tool::interrupt;

/// What is at a path.
pub(crate) enum Item<'a> {
    /// A directory.
    Dir {
        /// Its attributes.
        entry: &'a Entry,
        /// Whether it hides what the layers below have there.
        is_opaque: bool,
    },
    /// A file of any other type.
    Leaf(&'a Leaf),
    /// A file of the layers below is hidden.
    Removed,
}

/// What is done with the files.
pub(crate) trait Sink {
    /// Takes a file. The path is relative; that of the root is empty.
    ///
    /// # Errors
    /// Those of the output.
    fn put(&mut self, path: &Path, item: Item<'_>) -> anyhow::Result<()>;

    /// The directory is complete.
    ///
    /// # Errors
    /// Those of the output.
    fn leave(&mut self, _path: &Path) -> anyhow::Result<()> {
        Ok(())
    }
}

/// A directory whose entries are being visited. The directories above it are open too, and no others.
struct Open {
    path: PathBuf,
    /// The same directory in the layers below, if it merges with those.
    below: Option<Merged>,
    dir: Merged,
    names: std::vec::IntoIter<OsString>,
}

impl Open {
    fn new(path: PathBuf, below: Option<Merged>, dir: Merged) -> io::Result<Self> {
        let names = match &below {
            Some(below) => dir.names_to_compare(below)?,
            None => {
                let mut names: Vec<_> = dir.list()?.into_iter().map(|listed| listed.name).collect();
                names.sort();
                names
            }
        };
        Ok(Self { path, below, dir, names: names.into_iter() })
    }
}

/// Visits the files of `root`; with `below`, those alone in which its upper differs from the layers below it.
///
/// # Errors
/// The error of reading, with the path, and those of `sink`.
pub(crate) fn walk(below: Option<Merged>, root: Merged, sink: &mut dyn Sink) -> anyhow::Result<()> {
    sink.put(Path::new(""), Item::Dir { entry: &root.top().0.to_entry()?, is_opaque: false })?;
    let mut open = vec![Open::new(PathBuf::new(), below, root)?];
    while let Some(parent) = open.last_mut() {
        interrupt::check()?;
        let Some(name) = parent.names.next() else {
            sink.leave(&parent.path)?;
            open.pop();
            continue;
        };
        let path = parent.path.join(&name);
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{path:?}: {error}"));
        let name = Name::new(&name)?;
        let below = parent.below.as_ref().map(|below| below.lookup(name)).transpose().map_err(at)?.flatten();
        let dir = match (parent.dir.lookup(name).map_err(at)?, &below) {
            // A whiteout without a file to hide.
            (None, None) => continue,
            (None, Some(_)) => {
                sink.put(&path, Item::Removed)?;
                continue;
            }
            (Some(Node::Leaf(leaf)), _) => {
                sink.put(&path, Item::Leaf(&leaf))?;
                continue;
            }
            (Some(Node::Dir(dir)), _) => dir,
        };
        let below = match below {
            Some(Node::Dir(below)) => Some(below),
            _ => None,
        };
        // A directory that was renamed has lower directories too, but not those of its name.
        let merges = below.as_ref().map(|below| dir.has_lower_of(below)).transpose().map_err(at)?;
        sink.put(&path, Item::Dir { entry: &dir.top().0.to_entry().map_err(at)?, is_opaque: merges == Some(false) })?;
        open.push(Open::new(path.clone(), below.filter(|_| merges == Some(true)), dir).map_err(at)?);
    }
    Ok(())
}
