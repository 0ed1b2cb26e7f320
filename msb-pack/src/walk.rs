//! The files of a root, or of one layer of it, in the order in which an archive has them: a directory before its entries, and
//! those sorted by their bytes. The same root gives the same order on every machine.

use std::io;
use std::path::Path;

use anyhow::ensure;
use msb::overlay::beneath::Entry;
use msb::overlay::{Changes, Leaf, Merged, Node, Visit};
use rustix::fs::Stat;

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

/// Refuses a file that has changed since it was opened, so that what was read of it may be of several moments. An upper has a lock against
/// that; a root that is a directory has none.
///
/// # Errors
/// That it has changed; the error of `fstat(2)`.
pub(crate) fn require_unchanged(file: &Entry) -> anyhow::Result<()> {
    let key = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    ensure!(key(file.stat()) == key(&file.stat_now()?), "{CHANGED}");
    Ok(())
}

/// The message about a root that does not keep still.
pub(crate) const CHANGED: &str = "it has changed while it was read (stop what writes to it, or pack a copy)";

/// Visits the files of `root`; with `below`, those alone in which its upper differs from the layers below it.
///
/// # Errors
/// The error of reading, with the path, and those of `sink`.
pub(crate) fn walk(below: Option<Merged>, root: Merged, sink: &mut dyn Sink) -> anyhow::Result<()> {
    sink.put(Path::new(""), Item::Dir { entry: &root.top().0.to_entry()?, is_opaque: false })?;
    let mut changes = Changes::new(below, root)?;
    while let Some(visit) = changes.step()? {
        let (path, below, dir) = match visit {
            Visit::End(path) => {
                sink.leave(&path)?;
                continue;
            }
            Visit::Path(path, _, None) => {
                sink.put(&path, Item::Removed)?;
                continue;
            }
            Visit::Path(path, _, Some(Node::Leaf(leaf))) => {
                sink.put(&path, Item::Leaf(&leaf))?;
                continue;
            }
            Visit::Path(path, below, Some(Node::Dir(dir))) => (path, below, dir),
        };
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{path:?}: {error}"));
        let below = match below {
            Some(Node::Dir(below)) => Some(below),
            _ => None,
        };
        // A directory that was renamed has lower directories too, but not those of its name.
        let merges = below.as_ref().map(|below| dir.has_lower_of(below)).transpose().map_err(at)?;
        sink.put(&path, Item::Dir { entry: &dir.top().0.to_entry().map_err(at)?, is_opaque: merges == Some(false) })?;
        changes.enter(path, below.filter(|_| merges == Some(true)), dir)?;
    }
    Ok(())
}
