//! A root as a directory of the host.

use std::path::Path;

use anyhow::Context;
use msb::overlay::attributes::{Attributes, copy_attributes};
use msb::overlay::beneath::{Dir, Entry, Name};
use msb::overlay::{Leaf, WHOLE, copy_data, copy_leaf_as};
use rustix::fs::{FileType, Mode};

use crate::hardlinks::Hardlinks;
use crate::walk::{Item, Sink, require_unchanged};

/// A directory that is being filled.
pub(crate) struct Directory {
    /// The directories down to the current one, and whose attributes each gets when it is complete.
    open: Vec<(Dir, Entry)>,
    root: Dir,
    hardlinks: Hardlinks,
}

impl Directory {
    /// Fills the empty directory `path`.
    ///
    /// # Errors
    /// The error of opening it.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        Ok(Self { open: Vec::new(), root: Dir::open(path)?, hardlinks: Hardlinks::default() })
    }

    fn leaf(&mut self, path: &Path, name: Name<'_>, leaf: &Leaf) -> anyhow::Result<()> {
        let dir = &self.open.last().context("a file outside of a directory")?.0;
        let stat = leaf.entry.stat();
        if let Some(first) = self.hardlinks.first(path, leaf) {
            let parent = self.root.descend(first.parent().unwrap_or(Path::new("")))?;
            let first =
                parent.entry(Name::new(first.file_name().unwrap_or_default())?)?.context("a link to nothing")?;
            return Ok(dir.link(name, &first)?);
        }
        let attributes = Attributes::of(stat);
        if leaf.is_metacopy() && leaf.entry.file_type() == FileType::RegularFile {
            let copy = copy_leaf_as(&leaf.entry, dir, name, 0, &attributes)?;
            let file = copy.open(rustix::fs::OFlags::RDWR)?;
            copy_data(&leaf.data().open_to_read()?, &file, u64::try_from(stat.st_size).unwrap_or(0))?;
            copy_attributes(&leaf.entry, &copy)?;
        } else {
            copy_leaf_as(&leaf.entry, dir, name, WHOLE, &attributes)?;
        }
        match leaf.entry.file_type() {
            FileType::RegularFile => require_unchanged(leaf.data()),
            _ => Ok(()),
        }
    }
}

impl Sink for Directory {
    fn put(&mut self, path: &Path, item: Item<'_>) -> anyhow::Result<()> {
        let put = || -> anyhow::Result<()> {
            match (item, path.file_name()) {
                (Item::Dir { entry, .. }, name) => {
                    let dir = match (self.open.last(), name) {
                        (Some((parent, _)), Some(name)) => parent.mkdir(Name::new(name)?, Mode::RWXU)?,
                        _ => self.root.try_clone()?,
                    };
                    // A second descriptor: the times are set when the entries are there.
                    self.open.push((dir, entry.to_dir()?.to_entry()?));
                }
                (Item::Leaf(leaf), Some(name)) => self.leaf(path, Name::new(name)?, leaf)?,
                // Of a whole root there are none.
                (Item::Leaf(_), None) | (Item::Removed, _) => {}
            }
            Ok(())
        };
        put().with_context(|| format!("{path:?}"))
    }

    fn leave(&mut self, path: &Path) -> anyhow::Result<()> {
        if let Some((dir, from)) = self.open.pop() {
            copy_attributes(&from, &dir.to_entry()?).with_context(|| format!("{path:?}"))?;
        }
        Ok(())
    }
}
