//! Opening the files of a node: those that are open, or by directory and name if they were closed ([`crate::descriptors`]).
//!
//! A file of a lower layer never moves. One in the upper does only by our renames and removals, which keep the node's
//! [place](Node::place) up to date, and open a closed file before they take its name away.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::sync::Arc;

use msb::overlay::beneath::{Dir, Entry, Name};
use msb::overlay::{self, Layer, Leaf, Merged};
use rustix::io::Errno;

use crate::descriptors::{Open, Slot};
use crate::lock::read;
use crate::node::{Kind, Node, Place};

impl Node {
    /// The directories that are merged in this one.
    ///
    /// # Errors
    /// ENOTDIR; else that of opening.
    pub(crate) fn merged(self: &Arc<Self>) -> io::Result<Arc<Merged>> {
        if let Some(open) = self.dir()?.slot.get() {
            return Ok(open);
        }
        let _moves = read(&self.descriptors.moves);
        self.reopen_dir()
    }

    /// The file in its layer.
    ///
    /// # Errors
    /// EISDIR; else that of opening.
    pub(crate) fn layer_file(self: &Arc<Self>) -> io::Result<Arc<Leaf>> {
        if let Some(open) = self.leaf()?.slot.get() {
            return Ok(open);
        }
        let _moves = read(&self.descriptors.moves);
        self.reopen_leaf()
    }

    /// The file that has the data ([`crate::leaf::LeafNode::file`]).
    ///
    /// # Errors
    /// As that.
    pub(crate) fn file(self: &Arc<Self>, to_write: bool) -> io::Result<Arc<File>> {
        self.leaf()?.file(to_write, || self.layer_file())
    }

    /// As [`Self::merged`], while no name changes.
    fn reopen_dir(self: &Arc<Self>) -> io::Result<Arc<Merged>> {
        let mut closed = Vec::new();
        let mut at = self.clone();
        let mut merged = loop {
            if let Some(open) = at.dir()?.slot.get() {
                break open;
            }
            let Place { parent, name } = at.place().ok_or(Errno::STALE)?;
            closed.push((at, name));
            at = parent;
        };
        for (node, name) in closed.into_iter().rev() {
            let Some(overlay::Node::Dir(found)) = merged.lookup(Name::new(&name)?)? else {
                return Err(Errno::STALE.into());
            };
            merged = node.dir()?.slot.reopen(node.id, found, &self.descriptors)?;
        }
        Ok(merged)
    }

    fn reopen_leaf(self: &Arc<Self>) -> io::Result<Arc<Leaf>> {
        let slot = &self.leaf()?.slot;
        if let Some(open) = slot.get() {
            return Ok(open);
        }
        let Place { parent, name } = self.place().ok_or(Errno::STALE)?;
        let layer = slot.layer();
        let found = in_layer(&*parent.reopen_dir()?, layer, &name)?.ok_or(Errno::STALE)?;
        slot.reopen(self.id, Leaf::new(found, layer), &self.descriptors)
    }

    /// Opens a closed node for good, before its last known name is taken away.
    ///
    /// # Errors
    /// That of opening.
    pub(crate) fn keep_open(self: &Arc<Self>, parent: &Node, name: &OsStr) -> io::Result<()> {
        let is_closed = !self.is_open();
        // The file is opened by the name that it has yet.
        let opened = if is_closed { self.reopen() } else { Ok(()) };
        if self.loses(parent, name) {
            return Ok(());
        }
        opened?;
        match &self.kind {
            Kind::Dir(dir) if is_closed => dir.slot.keep(true),
            Kind::Leaf(leaf) if is_closed => leaf.slot.keep(true),
            _ => {}
        }
        Ok(())
    }

    fn reopen(self: &Arc<Self>) -> io::Result<()> {
        match &self.kind {
            Kind::Dir(_) => self.reopen_dir().map(drop),
            Kind::Leaf(_) => self.reopen_leaf().map(drop),
        }
    }

    /// Closes the node, unless it was used lately or its place does not lead to it. Called while nothing else opens or renames.
    ///
    /// Returns false if the node was spared and may be asked again, and `None` if it stays open or is closed already.
    pub(crate) fn close(self: &Arc<Self>) -> Option<bool> {
        match &self.kind {
            Kind::Dir(dir) => {
                if dir.slot.idle().is_none() {
                    return dir.slot.is_spared().then_some(false);
                }
                self.close_slot(&dir.slot, self.leads_to_dir(dir.slot.identity()))
            }
            Kind::Leaf(leaf) => {
                let Some(open) = leaf.slot.idle() else { return leaf.slot.is_spared().then_some(false) };
                let mut leads = self.leads_to_leaf(&open);
                while matches!(leads, Ok(false)) && self.next_place() {
                    leads = self.leads_to_leaf(&open);
                }
                self.close_slot(&leaf.slot, leads)
            }
        }
    }

    /// Closes a node if its place leads to it.
    fn close_slot<T: Open>(&self, slot: &Slot<T>, leads: io::Result<bool>) -> Option<bool> {
        match leads {
            Ok(true) => {
                slot.close(&self.descriptors);
                Some(true)
            }
            Ok(false) => {
                slot.keep(true);
                None
            }
            // It is not known yet: the process has no descriptor left for the directory above.
            Err(_) => Some(false),
        }
    }

    /// Whether the node's place leads to the directory with this identity. Looks it up as [`Self::reopen_dir`] does, since a
    /// whiteout may hide it.
    fn leads_to_dir(&self, identity: (u64, u64)) -> io::Result<bool> {
        let Some((above, name)) = self.open_place()? else { return Ok(false) };
        match above.lookup(Name::new(&name)?)? {
            Some(overlay::Node::Dir(found)) => Ok(Open::identity(&found)? == identity),
            _ => Ok(false),
        }
    }

    /// Whether the node's place leads to this file. Opens no file, since the process may have no descriptor left.
    fn leads_to_leaf(&self, leaf: &Leaf) -> io::Result<bool> {
        if leaf.layer != Layer::Upper {
            return Ok(true);
        }
        let Some((above, name)) = self.open_place()? else { return Ok(false) };
        let Some(upper) = &above.upper else { return Ok(false) };
        let Some(stat) = upper.stat_of(Name::new(&name)?)? else { return Ok(false) };
        Ok((stat.st_dev, stat.st_ino) == leaf.identity()?)
    }

    /// The directory of the node's place, and the name in it; `None` if there is none, or it has been removed.
    fn open_place(&self) -> io::Result<Option<(Arc<Merged>, Box<OsStr>)>> {
        let Some(Place { parent, name }) = self.place() else { return Ok(None) };
        match parent.reopen_dir() {
            Ok(above) => Ok(Some((above, name))),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::STALE) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The file `name` in one layer of a directory.
fn in_layer(merged: &Merged, layer: Layer, name: &OsStr) -> io::Result<Option<Entry>> {
    let part: Option<&Arc<Dir>> = match layer {
        Layer::Upper => merged.upper.as_ref(),
        Layer::Lower(layer) => merged.lower.iter().find(|part| part.layer == layer).map(|part| &part.dir),
    };
    part.map_or(Ok(None), |dir| dir.entry(Name::new(name)?))
}
