//! A file that the kernel knows. It is referred to by descriptors, or by its directory and name if they were closed, so it survives a
//! change of its name. [`crate::table`] has all of them.
//!
//! # Locks
//!
//! In the order in which a thread takes them, where it holds several:
//!
//! 1. [`LeafNode::copying`](crate::leaf::LeafNode::copying) of a file, while it and the directories above it are
//!    copied up.
//! 2. [`DirNode::changes`] of a directory, while one of its names changes. Two are taken for a rename only, in the order of the nodes'
//!    ids.
//! 3. [`DirNode::listing`] of a directory, while it is read; the open files of a leaf, while its data is opened.
//! 4. [`Descriptors::moves`], while a name is used to open a node, or changes.
//! 5. The queue of the [`Descriptors`].
//! 6. The nodes of the [`Table`](crate::table::Table), then its names.
//!
//! The others (the [`Slot`] of a node, its place, its links) are held for a single step in which none of the above is taken. The
//! kernel is told to forget a file's attributes while `copying` is held; that waits for no request, since it leaves the cached
//! data alone.

use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use msb::overlay::{self, Layer, Merged};
use rustix::fs::Stat;
use rustix::io::Errno;

use crate::descriptors::{Descriptors, Slot};
use crate::leaf::LeafNode;
use crate::listing::Listing;
use crate::lock::{hold, read, write};
use crate::number::NAMELESS;

/// The id of the root, by the FUSE protocol.
pub(crate) const ROOT: u64 = 1;

/// A file that the kernel knows.
#[derive(Debug)]
pub(crate) struct Node {
    /// The id that the kernel uses: the inode number, except for the root and for hardlinks in a lower layer.
    pub(crate) id: u64,
    ino: AtomicU64,
    lookups: AtomicU64,
    /// A name of the file; `None` for the root.
    place: RwLock<Option<Place>>,
    links: Mutex<Option<Box<Links>>>,
    pub(crate) descriptors: Arc<Descriptors>,
    pub(crate) kind: Kind,
}

/// A directory and a name in it. A file of a lower layer never moves, since a rename copies it up first.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) parent: Arc<Node>,
    pub(crate) name: Box<OsStr>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Dir(DirNode),
    Leaf(LeafNode),
}

#[derive(Debug)]
pub(crate) struct DirNode {
    pub(crate) slot: Slot<Merged>,
    /// Held while a name in the directory changes.
    pub(crate) changes: Mutex<()>,
    pub(crate) listing: Mutex<Option<Arc<Listing>>>,
    /// How often a name in the directory has changed, or its layer has.
    version: AtomicU64,
    /// Whether the directory is known to have no default ACL for new files.
    lacks_default_acl: AtomicBool,
}

/// Other names of a file of the upper that it was looked up by.
#[derive(Debug, Default)]
struct Links(Vec<Place>);

/// The most names that are kept. A file with more names stays open once it has lost the kept ones.
const MAX_LINKS: usize = 8;

impl DirNode {
    /// The number of the state that a listing shows.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether new files inherit a default ACL. `read` asks the file system. The kernel locks a directory while it makes a file in it and
    /// while it sets its xattrs, so the result can be cached.
    pub(crate) fn has_default_acl(&self, read: impl FnOnce() -> bool) -> bool {
        if self.lacks_default_acl.load(Ordering::Acquire) {
            return false;
        }
        let has = read();
        self.lacks_default_acl.store(!has, Ordering::Release);
        has
    }

    /// Notes that the xattrs have changed.
    pub(crate) fn forget_default_acl(&self) {
        self.lacks_default_acl.store(false, Ordering::Release);
    }

    /// Notes a change. Called before and after it, so that what was read between two looks at the same version is not outdated.
    pub(crate) fn count_change(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }
}

impl Place {
    fn is(&self, parent: &Node, name: &OsStr) -> bool {
        self.parent.id == parent.id && *self.name == *name
    }
}

impl Node {
    /// A node that was looked up once.
    ///
    /// # Errors
    /// The error of `fstat(2)`.
    pub(crate) fn new(
        id: u64,
        ino: u64,
        place: Option<Place>,
        found: overlay::Node,
        descriptors: &Arc<Descriptors>,
    ) -> io::Result<Self> {
        let kind = match found {
            overlay::Node::Dir(merged) => Kind::Dir(DirNode {
                slot: Slot::new(merged)?,
                changes: Mutex::default(),
                listing: Mutex::default(),
                version: AtomicU64::new(0),
                lacks_default_acl: AtomicBool::new(false),
            }),
            overlay::Node::Leaf(leaf) => Kind::Leaf(LeafNode::new(leaf)?),
        };
        let (ino, lookups) = (AtomicU64::new(ino), AtomicU64::new(1));
        let (place, links) = (RwLock::new(place), Mutex::default());
        Ok(Self { id, ino, lookups, place, links, descriptors: descriptors.clone(), kind })
    }

    pub(crate) fn is_open(&self) -> bool {
        match &self.kind {
            Kind::Dir(dir) => dir.slot.is_open(),
            Kind::Leaf(leaf) => leaf.slot.is_open(),
        }
    }

    /// How many descriptors the node has.
    pub(crate) fn count(&self) -> usize {
        match &self.kind {
            Kind::Dir(dir) => dir.slot.count(),
            Kind::Leaf(leaf) => leaf.slot.count(),
        }
    }

    /// Takes what a lookup of `name` in `parent` has opened, if the node is closed or has lost its name.
    pub(crate) fn found(&self, parent: &Arc<Self>, name: &OsStr, found: overlay::Node) {
        let is_kept = match &self.kind {
            Kind::Dir(dir) => dir.slot.is_kept(),
            Kind::Leaf(leaf) => leaf.slot.is_kept(),
        };
        if is_kept && !self.has_other_id() {
            *write(&self.place) = Some(Place { parent: parent.clone(), name: name.into() });
        }
        match (&self.kind, found) {
            (Kind::Dir(dir), overlay::Node::Dir(merged)) => {
                if is_kept {
                    dir.slot.keep(false);
                    self.descriptors.enqueue(self.id);
                }
                if !dir.slot.is_open() {
                    let _ = dir.slot.reopen(self.id, merged, &self.descriptors);
                }
            }
            (Kind::Leaf(file), overlay::Node::Leaf(leaf)) => {
                if leaf.layer == Layer::Upper && leaf.entry.stat().st_nlink > 1 {
                    self.add_link(parent, name);
                }
                if is_kept && !self.has_other_id() {
                    file.slot.keep(false);
                    self.descriptors.enqueue(self.id);
                }
                if !file.slot.is_open() && leaf.layer == file.slot.layer() {
                    let _ = file.slot.reopen(self.id, leaf, &self.descriptors);
                }
            }
            _ => {}
        }
    }

    /// A directory and a name that lead to the file, unless it has been removed; `None` for the root.
    pub(crate) fn place(&self) -> Option<Place> {
        read(&self.place).clone()
    }

    /// Whether the node's place is `name` in `parent`.
    pub(crate) fn is_at(&self, parent: &Self, name: &OsStr) -> bool {
        read(&self.place).as_ref().is_some_and(|place| place.is(parent, name))
    }

    /// The directory above this one. That of the root is the root.
    pub(crate) fn above(self: &Arc<Self>) -> Arc<Self> {
        read(&self.place).as_ref().map_or(self, |place| &place.parent).clone()
    }

    /// Notes that `name` in `parent` was renamed, if the file is known by that name.
    pub(crate) fn renamed(&self, parent: &Arc<Self>, name: &OsStr, to: &Arc<Self>, to_name: &OsStr) {
        let (mut place, mut links) = (write(&self.place), hold(&self.links));
        let names = place.iter_mut().chain(links.iter_mut().flat_map(|links| &mut links.0));
        for place in names.filter(|place| place.is(parent, name)) {
            *place = Place { parent: to.clone(), name: to_name.into() };
        }
    }

    /// Notes that the file is not at its place any more. Returns whether it has another.
    pub(crate) fn next_place(&self) -> bool {
        let (mut place, mut links) = (write(&self.place), hold(&self.links));
        let next = links.as_mut().and_then(|links| links.0.pop());
        let is_any = next.is_some();
        if is_any {
            *place = next;
        }
        is_any
    }

    /// Notes that the file loses a name. Returns whether it has another that is known.
    pub(crate) fn loses(&self, parent: &Self, name: &OsStr) -> bool {
        if let Some(links) = hold(&self.links).as_mut() {
            links.0.retain(|place| !place.is(parent, name));
        }
        !self.is_at(parent, name) || self.next_place()
    }

    /// Notes another name of a file of the upper.
    fn add_link(&self, parent: &Arc<Self>, name: &OsStr) {
        if read(&self.place).as_ref().is_none_or(|place| place.is(parent, name)) {
            return;
        }
        let mut links = hold(&self.links);
        let links = &mut links.get_or_insert_default().0;
        if links.len() < MAX_LINKS && !links.iter().any(|place| place.is(parent, name)) {
            links.push(Place { parent: parent.clone(), name: name.into() });
        }
    }

    /// The inode number that `stat(2)` shows.
    pub(crate) fn ino(&self) -> u64 {
        self.ino.load(Ordering::Relaxed)
    }

    /// Sets the inode number that `stat(2)` shows.
    pub(crate) fn set_ino(&self, ino: u64) {
        self.ino.store(ino, Ordering::Relaxed);
    }

    /// Counts a lookup.
    pub(crate) fn count_lookup(&self) {
        self.lookups.fetch_add(1, Ordering::Relaxed);
    }

    /// Subtracts `count` lookups, and returns how many are left. The caller holds the nodes of the table for writing.
    pub(crate) fn forget_lookups(&self, count: u64) -> u64 {
        let left = self.lookups.load(Ordering::Relaxed).saturating_sub(count);
        self.lookups.store(left, Ordering::Relaxed);
        left
    }

    /// Whether the kernel uses another id for the node than the inode number that `stat(2)` shows.
    pub(crate) fn has_other_id(&self) -> bool {
        self.id & NAMELESS != 0
    }

    /// # Errors
    /// ENOTDIR.
    pub(crate) fn dir(&self) -> io::Result<&DirNode> {
        match &self.kind {
            Kind::Dir(dir) => Ok(dir),
            Kind::Leaf(_) => Err(Errno::NOTDIR.into()),
        }
    }

    /// # Errors
    /// EISDIR.
    pub(crate) fn leaf(&self) -> io::Result<&LeafNode> {
        match &self.kind {
            Kind::Leaf(leaf) => Ok(leaf),
            Kind::Dir(_) => Err(Errno::ISDIR.into()),
        }
    }

    /// The `stat` of the file in its layer, with its own device and inode number.
    ///
    /// # Errors
    /// The error of `fstat(2)`.
    pub(crate) fn stat(self: &Arc<Self>) -> io::Result<Stat> {
        match &self.kind {
            Kind::Dir(_) => {
                let merged = self.merged()?;
                let mut stat = merged.top().0.stat()?;
                if merged.is_merge() {
                    // Counting the subdirectories of all layers is too slow. A link count of 1 tells find(1) that it is unknown.
                    stat.st_nlink = 1;
                }
                Ok(stat)
            }
            Kind::Leaf(_) => {
                let leaf = self.layer_file()?;
                let mut stat = match leaf.layer {
                    Layer::Lower(_) => *leaf.entry.stat(),
                    Layer::Upper => leaf.entry.stat_now()?,
                };
                if leaf.is_metacopy() {
                    stat.st_blocks = leaf.data().stat().st_blocks;
                }
                Ok(stat)
            }
        }
    }
}
