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

use crate::descriptors::Open;
use crate::inode::{Kind, Node, Place};
use crate::lock::read;

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
        let found = in_layer(&*parent.reopen_dir()?, slot.layer(), &name)?.ok_or(Errno::STALE)?;
        slot.reopen(self.id, Leaf::new(found, slot.layer()), &self.descriptors)
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
                let Some(open) = dir.slot.idle() else { return dir.slot.is_spared().then_some(false) };
                let top = open.top().0.to_entry();
                let leads = top.is_ok_and(|top| self.leads_to(open.layer(), &top));
                if leads {
                    dir.slot.close(&self.descriptors)
                } else {
                    dir.slot.keep(true)
                }
                leads.then_some(true)
            }
            Kind::Leaf(leaf) => {
                let Some(open) = leaf.slot.idle() else { return leaf.slot.is_spared().then_some(false) };
                let mut leads = open.layer != Layer::Upper || self.leads_to(open.layer, &open.entry);
                while !leads && self.next_place() {
                    leads = self.leads_to(open.layer, &open.entry);
                }
                if leads {
                    leaf.slot.close(&self.descriptors)
                } else {
                    leaf.slot.keep(true)
                }
                leads.then_some(true)
            }
        }
    }

    /// Whether the node's place leads to this file of a layer.
    fn leads_to(&self, layer: Layer, file: &Entry) -> bool {
        let find = || {
            let Place { parent, name } = self.place().ok_or(Errno::STALE)?;
            in_layer(&*parent.reopen_dir()?, layer, &name)
        };
        let inode = |entry: &Entry| (entry.stat().st_dev, entry.stat().st_ino);
        matches!(find(), Ok(Some(found)) if inode(&found) == inode(file))
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
