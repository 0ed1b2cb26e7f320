//! The merged tree: looking nodes up, listing directories, and copy-up. [`change`] has the requests that change names, [`mod@file`] those
//! that act on one file.

pub(crate) mod change;
pub(crate) mod file;

use std::ffi::OsStr;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use fuser::{FileAttr, INodeNo, Notifier};
use msb::overlay::beneath::{Entry, Name};
use msb::overlay::upper::{Writer, upper_of};
use msb::overlay::{self, Layer, Leaf, Listed, Merged, origin};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::attr;
use crate::listing::Listing;
use crate::lock::hold;
use crate::node::{Kind, Node, Place, ROOT};
use crate::table::Table;

/// The size of a file, in bytes, from which on its copy-up has a thread of its own.
const LONG_COPY: i64 = 1 << 20;

/// A mounted tree.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) table: Table,
    /// None for a read-only mount.
    writer: Option<Writer>,
    /// Whether directories of lower layers can be renamed.
    can_redirect: bool,
    /// Whether the kernel can read and write backing files by itself.
    pub(crate) passthrough: AtomicBool,
    /// Invalidates caches of the kernel. Set once the mount exists.
    notifier: Arc<OnceLock<Notifier>>,
}

impl Tree {
    pub(crate) fn new(
        root: Merged,
        writer: Option<Writer>,
        can_redirect: bool,
        notifier: Arc<OnceLock<Notifier>>,
    ) -> io::Result<Self> {
        Ok(Self { table: Table::new(root)?, writer, can_redirect, passthrough: AtomicBool::new(false), notifier })
    }

    fn writer(&self) -> io::Result<&Writer> {
        self.writer.as_ref().ok_or_else(|| Errno::ROFS.into())
    }

    /// The node of `name` in `parent`, with a lookup counted; `None` if the name does not exist.
    pub(crate) fn lookup(&self, parent: &Arc<Node>, name: &OsStr) -> io::Result<Option<Arc<Node>>> {
        self.table.trim();
        let found = self.table.within_limit(|| parent.merged()?.lookup(Name::new(name)?))?;
        found.map(|found| self.table.intern(parent, name, found)).transpose()
    }

    /// As [`Self::lookup`], for a name of a listing. A file that the kernel knows is not opened again, and another one is opened in the
    /// layer that has it, unless a name in the directory has changed meanwhile.
    pub(crate) fn lookup_listed(
        &self,
        parent: &Arc<Node>,
        listing: &Listing,
        listed: &Listed,
    ) -> io::Result<Option<Arc<Node>>> {
        let dir = parent.dir()?;
        if dir.version() == listing.version {
            if let Some(known) = self.table.known_listed(parent, listed) {
                return Ok(Some(known));
            }
            self.table.trim();
            let found = self.table.within_limit(|| parent.merged()?.lookup_listed(listed))?;
            if dir.version() == listing.version {
                return found.map(|found| self.table.intern(parent, &listed.name, found)).transpose();
            }
        }
        self.lookup(parent, &listed.name)
    }

    /// Runs `with` on the node of `name` in `parent`, without a lookup being counted.
    fn with_child<T>(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        with: impl FnOnce(&Arc<Node>) -> io::Result<T>,
    ) -> io::Result<T> {
        let known = match &parent.merged()?.upper {
            Some(upper) => upper.stat_of(Name::new(name)?)?,
            None => None,
        };
        let node = match known.and_then(|stat| self.table.known_in_upper(parent, name, &stat)) {
            Some(node) => node,
            None => self.lookup(parent, name)?.ok_or(Errno::NOENT)?,
        };
        let result = with(&node);
        self.table.release(node);
        result
    }

    pub(crate) fn attr(&self, node: &Arc<Node>) -> io::Result<FileAttr> {
        let stat = self.table.within_limit(|| node.stat())?;
        Ok(Self::report(node, &stat))
    }

    /// The attributes of a node for the kernel.
    pub(crate) fn report(node: &Node, stat: &Stat) -> FileAttr {
        if let Kind::Leaf(leaf) = &node.kind {
            leaf.report(stat);
        }
        attr::of(stat, node.ino())
    }

    /// The names of a directory. `rewind`: whether the reader starts over, and must see changes.
    pub(crate) fn list(&self, node: &Arc<Node>, rewind: bool) -> io::Result<Arc<Listing>> {
        let dir = node.dir()?;
        let mut cached = hold(&dir.listing);
        let version = dir.version();
        if let Some(listing) = cached.as_ref()
            && (!rewind || listing.version == version)
        {
            return Ok(listing.clone());
        }
        let names = self.table.within_limit(|| node.merged()?.list())?;
        let listing = Arc::new(Listing::new(names, cached.as_deref(), version));
        *cached = Some(listing.clone());
        Ok(listing)
    }

    /// The inode number that a listed name shows.
    ///
    /// `may_have_origin`: what [`Self::may_have_origins`] has returned for `parent`.
    pub(crate) fn listed_ino(&self, parent: &Arc<Node>, listed: &Listed, may_have_origin: bool) -> io::Result<u64> {
        let merged = parent.merged()?;
        if listed.file_type == FileType::Directory
            && merged.is_merge()
            && let Some(overlay::Node::Dir(dir)) = merged.lookup_listed(listed)?
        {
            return Ok(self.table.shown(self.table.numbers.of(&dir.identity().stat()?)));
        }
        let own = self.table.numbers.fold(listed.device, listed.ino);
        if listed.layer != Layer::Upper {
            return Ok(own);
        }
        let may_have_origin = may_have_origin && listed.file_type != FileType::Directory;
        match self.table.shown_listed(own, may_have_origin) {
            Some(shown) => Ok(shown),
            None => self.with_child(parent, &listed.name, |node| Ok(node.ino())),
        }
    }

    /// Whether files in a directory may show the inode number of the files that they were copied from.
    pub(crate) fn may_have_origins(&self, node: &Arc<Node>) -> io::Result<bool> {
        Ok(node.merged()?.upper.as_ref().is_some_and(|upper| origin::may_be_in(upper)))
    }

    /// The merged directory of a node, after its copy-up and that of the directories above it.
    fn in_upper(&self, node: &Arc<Node>) -> io::Result<Arc<Merged>> {
        let writer = self.writer()?;
        let mut missing = Vec::new();
        let mut at = node.clone();
        while at.merged()?.upper.is_none() {
            let place = at.place().ok_or(Errno::ROFS)?;
            let parent = place.parent.clone();
            missing.push((at, place));
            at = parent;
        }
        for (node, Place { parent, name }) in missing.into_iter().rev() {
            let dir = node.dir()?;
            let _changes = hold(&parent.dir()?.changes);
            let merged = node.merged()?;
            if merged.upper.is_some() {
                continue;
            }
            let above = parent.merged()?;
            let name = Name::new(&name)?;
            // A removed directory that is still open cannot be copied up.
            let is_there = match above.lookup(name)? {
                Some(overlay::Node::Dir(now)) => {
                    let number = |merged: &Merged| Ok::<_, io::Error>(self.table.numbers.of(&merged.top().0.stat()?));
                    number(&now)? == number(&merged)?
                }
                _ => false,
            };
            if !is_there {
                return Err(Errno::NOENT.into());
            }
            let above_dir = parent.dir()?;
            above_dir.count_change();
            let upper = writer.copy_up_dir(upper_of(&above)?, name, &merged.top().0.to_entry()?);
            above_dir.count_change();
            let upper = upper?;
            dir.slot.set(node.id, merged.copied_up(Arc::new(upper)), &self.table.descriptors)?;
        }
        node.merged()
    }

    /// Whether the copy-up of a file takes so long that other requests should not wait for the thread.
    pub(crate) fn is_long_copy(&self, node: &Arc<Node>) -> bool {
        let is_long = |leaf: Arc<Leaf>| {
            (leaf.layer != Layer::Upper || leaf.is_metacopy()) && leaf.entry.stat().st_size >= LONG_COPY
        };
        self.writer.is_some() && node.layer_file().is_ok_and(is_long)
    }

    /// Copies a file up, with its first `length` bytes.
    fn copy_up(&self, node: &Arc<Node>, length: u64) -> io::Result<()> {
        let leaf = match &node.kind {
            Kind::Dir(_) => return self.in_upper(node).map(drop),
            Kind::Leaf(leaf) => leaf,
        };
        let writer = self.writer()?;
        let is_whole = |leaf: &Leaf| leaf.layer == Layer::Upper && !leaf.is_metacopy();
        // One that is closed has its data.
        if leaf.slot.layer() == Layer::Upper && leaf.slot.get().is_none_or(|leaf| is_whole(&leaf)) {
            return Ok(());
        }
        let _copying = hold(&leaf.copying);
        let from = node.layer_file()?;
        if is_whole(&from) {
            return Ok(());
        }
        if from.layer == Layer::Upper {
            let whole = Leaf::new(writer.copy_up_data(&from, length)?, Layer::Upper);
            leaf.slot.set(node.id, whole, &self.table.descriptors)?;
            leaf.reopen();
            self.forget_attributes(node);
            return Ok(());
        }
        let Place { parent, name } = &node.place().ok_or(Errno::ROFS)?;
        let name = Name::new(name)?;
        let (copy, prepared) = writer.prepare_copy(&from, length)?;
        origin::note(&copy, &from.entry);
        // Fails if the parent was removed; then the file was, too.
        let above = self.in_upper(parent).ok();
        let changes = hold(&parent.dir()?.changes);
        let visible = parent.merged()?.lookup(name)?;
        match (above, visible) {
            (Some(above), Some(overlay::Node::Leaf(now))) if is_same(&now.entry, &from.entry) => {
                let upper = upper_of(&above)?;
                origin::note_in(upper);
                self.table.note_copy(node, copy.stat());
                parent.dir()?.count_change();
                let put = prepared.put(upper, name);
                parent.dir()?.count_change();
                put.inspect_err(|_| self.table.undo_copy(node, copy.stat(), from.entry.stat()))?;
            }
            // Removed while open: the copy gets no name, and lives as long as its descriptors.
            (_, None) => {
                self.table.note_copy(node, copy.stat());
                drop(prepared);
            }
            _ => return Err(Errno::STALE.into()),
        }
        drop(changes);
        leaf.slot.set(node.id, Leaf::new(copy, Layer::Upper), &self.table.descriptors)?;
        leaf.reopen();
        self.forget_attributes(node);
        if node.has_other_id() {
            self.forget_listing(parent);
        }
        Ok(())
    }

    /// Invalidates the kernel's cached attributes of a node, because something other than the current request changed them.
    fn forget_attributes(&self, node: &Node) {
        if let Some(notifier) = self.notifier.get() {
            // A negative offset keeps the cached data.
            let _ = notifier.inval_inode(INodeNo(node.id), -1, 0);
        }
    }

    /// Invalidates the kernel's cached listing of a directory, because an inode number in it changed.
    fn forget_listing(&self, node: &Node) {
        if let Kind::Dir(dir) = &node.kind {
            dir.count_change();
        }
        if let Some(notifier) = self.notifier.get() {
            let _ = notifier.inval_inode(INodeNo(node.id), 0, 0);
        }
    }

    /// The root of the tree.
    pub(crate) fn root(&self) -> io::Result<Arc<Node>> {
        self.table.get(ROOT)
    }
}

fn is_same(one: &Entry, other: &Entry) -> bool {
    (one.stat().st_dev, one.stat().st_ino) == (other.stat().st_dev, other.stat().st_ino)
}
