//! The nodes that the kernel knows, from its first lookup until it forgets them. A node is a file of the merged tree, referred to by
//! descriptors, so it survives a change of its name.
//!
//! # Hardlinks in lower layers
//!
//! Copying one name of a lower file up leaves the other names in the lower layer, as in an overlayfs without `index=on`: finding those
//! would take a search of all layers. So after a write through one name, the others still show the old content. If all names were one
//! node, the kernel would show the new content under each of them, until it forgot the node. Therefore each name of a lower file with
//! several links is a node of its own, with an id that is not its inode number. stat(2) shows the same inode number for all of them until
//! one is copied up.
//!
//! # Locks
//!
//! In the order in which a thread takes them, where it holds several:
//!
//! 1. [`LeafNode::copying`](crate::leaf::LeafNode::copying) of a file, while it and the directories above it are
//!    copied up.
//! 2. [`DirNode::changes`] of a directory, while one of its names changes. Two are taken for a rename only, in the order of the nodes'
//!    ids.
//! 3. The nodes of the [`Table`], then its names.
//!
//! The others ([`DirNode::listing`], the merged directory or leaf of a node, its open files) are held for a single step in which none of
//! the above is taken. The kernel is told to forget a file's attributes while `copying` is held; that waits for no request, since it
//! leaves the cached data alone.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use msb::overlay::{self, Layer, Leaf, Merged};
use rustix::fs::Stat;
use rustix::io::Errno;

use crate::leaf::LeafNode;
use crate::listing::Listing;
use crate::lock::{read, write};
use crate::number::{NAMELESS, Numbers};

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
    pub(crate) kind: Kind,
}

/// A directory and a name in it. A file of a lower layer never moves, since a rename copies it up first.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) parent: Arc<Node>,
    pub(crate) name: OsString,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Dir(DirNode),
    Leaf(LeafNode),
}

#[derive(Debug)]
pub(crate) struct DirNode {
    merged: RwLock<Arc<Merged>>,
    /// Held while a name in the directory changes.
    pub(crate) changes: Mutex<()>,
    pub(crate) listing: Mutex<Option<Arc<Listing>>>,
    /// Whether the listing misses a change.
    pub(crate) stale: AtomicBool,
}

impl Node {
    fn new(id: u64, ino: u64, place: Option<Place>, found: overlay::Node) -> Self {
        let kind = match found {
            overlay::Node::Dir(merged) => Kind::Dir(DirNode {
                merged: RwLock::new(Arc::new(merged)),
                changes: Mutex::default(),
                listing: Mutex::default(),
                stale: AtomicBool::new(false),
            }),
            overlay::Node::Leaf(leaf) => Kind::Leaf(LeafNode::new(leaf)),
        };
        Self { id, ino: AtomicU64::new(ino), lookups: AtomicU64::new(1), place: RwLock::new(place), kind }
    }

    /// A directory and a name that lead to the file, unless it has been removed; `None` for the root.
    pub(crate) fn place(&self) -> Option<Place> {
        read(&self.place).clone()
    }

    /// The directory above this one. That of the root is the root.
    pub(crate) fn above(self: &Arc<Self>) -> Arc<Self> {
        read(&self.place).as_ref().map_or(self, |place| &place.parent).clone()
    }

    /// Notes that `name` in `parent` was renamed, if the file is known by that name.
    pub(crate) fn renamed(&self, parent: &Arc<Self>, name: &OsStr, to: &Arc<Self>, to_name: &OsStr) {
        if let Some(place) = write(&self.place).as_mut()
            && place.parent.id == parent.id
            && place.name == name
        {
            *place = Place { parent: to.clone(), name: to_name.to_owned() };
        }
    }

    /// The inode number that `stat(2)` shows.
    pub(crate) fn ino(&self) -> u64 {
        self.ino.load(Ordering::Relaxed)
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
    pub(crate) fn stat(&self) -> io::Result<Stat> {
        match &self.kind {
            Kind::Dir(dir) => {
                let merged = dir.merged();
                let mut stat = merged.top().0.stat()?;
                if merged.is_merge() {
                    // Counting the subdirectories of all layers is too slow. A link count of 1 tells find(1) that it is unknown.
                    stat.st_nlink = 1;
                }
                Ok(stat)
            }
            Kind::Leaf(leaf) => {
                let leaf = leaf.get();
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

impl DirNode {
    pub(crate) fn merged(&self) -> Arc<Merged> {
        read(&self.merged).clone()
    }

    pub(crate) fn set_merged(&self, merged: Merged) {
        *write(&self.merged) = Arc::new(merged);
    }
}

/// All nodes by their ids.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) numbers: Numbers,
    nodes: RwLock<HashMap<u64, Arc<Node>>>,
    names: RwLock<Names>,
}

/// The ids of nodes that are not their inode numbers.
#[derive(Debug, Default)]
struct Names {
    /// Hardlinks in lower layers, by directory and name.
    linked: HashMap<(u64, OsString), u64>,
    /// Files that were copied up under this mount, by the inode number of the copy. They keep their id.
    copied: HashMap<u64, u64>,
    counter: u64,
}

impl Table {
    pub(crate) fn new(root: Merged) -> io::Result<Self> {
        let numbers = Numbers::default();
        let ino = dir_number(&numbers, &root)?;
        let root = Arc::new(Node::new(ROOT, ino, None, overlay::Node::Dir(root)));
        let nodes = RwLock::new(HashMap::from([(ROOT, root)]));
        Ok(Self { numbers, nodes, names: RwLock::default() })
    }

    /// # Errors
    /// ESTALE for an unknown id.
    pub(crate) fn get(&self, id: u64) -> io::Result<Arc<Node>> {
        read(&self.nodes).get(&id).cloned().ok_or_else(|| Errno::STALE.into())
    }

    /// The node for the result of a lookup of `name` in `parent`. Counts a lookup of it.
    ///
    /// # Errors
    /// The error of `fstat(2)`.
    pub(crate) fn intern(&self, parent: &Arc<Node>, name: &OsStr, found: overlay::Node) -> io::Result<Arc<Node>> {
        let own = match &found {
            overlay::Node::Dir(merged) => dir_number(&self.numbers, merged)?,
            overlay::Node::Leaf(leaf) => self.numbers.of(leaf.entry.stat()),
        };
        {
            let nodes = read(&self.nodes);
            if let Some(id) = self.known_id(parent.id, name, &found, own)
                && let Some(node) = nodes.get(&id)
            {
                node.lookups.fetch_add(1, Ordering::Relaxed);
                return Ok(node.clone());
            }
        }
        let mut nodes = write(&self.nodes);
        let id = self.known_id(parent.id, name, &found, own).unwrap_or_else(|| {
            let mut names = write(&self.names);
            names.counter += 1;
            let id = NAMELESS | names.counter;
            names.linked.insert((parent.id, name.to_owned()), id);
            id
        });
        if let Some(node) = nodes.get(&id) {
            node.lookups.fetch_add(1, Ordering::Relaxed);
            return Ok(node.clone());
        }
        let ino = if id & NAMELESS == 0 { id } else { own };
        let place = Some(Place { parent: parent.clone(), name: name.to_owned() });
        let node = Arc::new(Node::new(id, ino, place, found));
        nodes.insert(id, node.clone());
        Ok(node)
    }

    fn known_id(&self, parent: u64, name: &OsStr, found: &overlay::Node, own: u64) -> Option<u64> {
        match found {
            overlay::Node::Dir(_) => Some(own),
            overlay::Node::Leaf(Leaf { layer: Layer::Upper, .. }) => {
                Some(read(&self.names).copied.get(&own).copied().unwrap_or(own))
            }
            overlay::Node::Leaf(leaf) if leaf.entry.stat().st_nlink > 1 => {
                let names = read(&self.names);
                if names.linked.is_empty() {
                    return None;
                }
                names.linked.get(&(parent, name.to_owned())).copied()
            }
            overlay::Node::Leaf(_) => Some(own),
        }
    }

    /// The inode number that a file of the upper shows.
    pub(crate) fn shown(&self, own: u64) -> u64 {
        match read(&self.names).copied.get(&own) {
            Some(id) if id & NAMELESS == 0 => *id,
            _ => own,
        }
    }

    /// Records that `copy` is the copy of `node`, before it can be looked up.
    pub(crate) fn note_copy(&self, node: &Node, copy: &Stat) {
        let own = self.numbers.of(copy);
        let mut names = write(&self.names);
        names.copied.insert(own, node.id);
        if node.has_other_id() {
            node.ino.store(own, Ordering::Relaxed);
            if let Some(Place { parent, name }) = node.place() {
                names.linked.remove(&(parent.id, name));
            }
        }
    }

    /// Subtracts `count` lookups, and drops a node that has none left.
    pub(crate) fn forget(&self, id: u64, count: u64) {
        if id == ROOT {
            return;
        }
        // Dropped after the lock is released, since closing descriptors takes time.
        let _gone = {
            let mut nodes = write(&self.nodes);
            let Some(node) = nodes.get(&id) else { return };
            let left = node.lookups.load(Ordering::Relaxed).saturating_sub(count);
            node.lookups.store(left, Ordering::Relaxed);
            if left > 0 {
                return;
            }
            self.forget_names(node);
            nodes.remove(&id)
        };
    }

    fn forget_names(&self, node: &Node) {
        let Kind::Leaf(leaf) = &node.kind else { return };
        let leaf = leaf.get();
        let own = self.numbers.of(leaf.entry.stat());
        if leaf.layer == Layer::Upper {
            // A removed file frees its inode number for another one.
            let is_gone = || leaf.entry.stat_now().map_or(true, |stat| stat.st_nlink == 0);
            if own != node.id && (node.has_other_id() || is_gone()) {
                write(&self.names).copied.remove(&own);
            }
        } else if node.has_other_id()
            && let Some(Place { parent, name }) = node.place()
        {
            write(&self.names).linked.remove(&(parent.id, name));
        }
    }
}

fn dir_number(numbers: &Numbers, merged: &Merged) -> io::Result<u64> {
    Ok(numbers.of(&merged.identity().stat()?))
}
