//! The nodes that the kernel knows, from its first lookup until it forgets them: each a file of the merged tree, held
//! by descriptors, whatever happens to its name.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use msb::overlay::{self, Layer, Leaf, Merged};
use rustix::fs::Stat;
use rustix::io::Errno;

use crate::handle::Data;
use crate::listing::Listing;
use crate::lock::{read, write};
use crate::number::{NAMELESS, Numbers};

/// The id of the root, by the FUSE protocol.
pub(crate) const ROOT: u64 = 1;

/// A file that the kernel knows.
#[derive(Debug)]
pub(crate) struct Node {
    /// What the kernel calls it: its inode number, but for the root and for hardlinks in a lower layer.
    pub(crate) id: u64,
    ino: AtomicU64,
    lookups: AtomicU64,
    /// Where it was found. A file of a lower layer never moves: renaming copies it up first.
    pub(crate) place: Option<(Arc<Node>, OsString)>,
    pub(crate) kind: Kind,
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

#[derive(Debug)]
pub(crate) struct LeafNode {
    leaf: RwLock<Arc<Leaf>>,
    /// Held by the one who copies the file up.
    pub(crate) copying: Mutex<()>,
    pub(crate) data: Mutex<Data>,
    /// What the kernel was last told of the data: a number made of size and mtime.
    told: AtomicU64,
}

impl Node {
    fn new(id: u64, ino: u64, place: Option<(Arc<Self>, OsString)>, found: overlay::Node) -> Self {
        let kind = match found {
            overlay::Node::Dir(merged) => Kind::Dir(DirNode {
                merged: RwLock::new(Arc::new(merged)),
                changes: Mutex::default(),
                listing: Mutex::default(),
                stale: AtomicBool::new(false),
            }),
            overlay::Node::Leaf(leaf) => Kind::Leaf(LeafNode {
                leaf: RwLock::new(Arc::new(leaf)),
                copying: Mutex::default(),
                data: Mutex::default(),
                told: AtomicU64::new(0),
            }),
        };
        Self { id, ino: AtomicU64::new(ino), lookups: AtomicU64::new(1), place, kind }
    }

    /// The inode number that `stat(2)` shows.
    pub(crate) fn ino(&self) -> u64 {
        self.ino.load(Ordering::Relaxed)
    }

    /// Whether the kernel calls the node by another number than `stat(2)` shows.
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

    /// The error of `stat(2)` of the file that answers, with its own device and number.
    ///
    /// # Errors
    /// The error of `fstat(2)`.
    pub(crate) fn stat(&self) -> io::Result<Stat> {
        match &self.kind {
            Kind::Dir(dir) => {
                let merged = dir.merged();
                let mut stat = merged.top().0.stat()?;
                if merged.is_merge() {
                    // Nobody counts the subdirectories of all layers; 1 tells find(1) not to rely on it.
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

impl LeafNode {
    pub(crate) fn get(&self) -> Arc<Leaf> {
        read(&self.leaf).clone()
    }

    /// Notes what the kernel is told of the data, and says whether it was told the same before.
    pub(crate) fn tell(&self, stat: &Stat) -> bool {
        let told = (stat.st_size as u64) ^ (stat.st_mtime as u64).rotate_left(32) ^ stat.st_mtime_nsec;
        self.told.swap(told, Ordering::Relaxed) == told
    }

    pub(crate) fn set(&self, leaf: Leaf) {
        *write(&self.leaf) = Arc::new(leaf);
    }
}

/// All nodes by their ids.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) numbers: Numbers,
    nodes: RwLock<HashMap<u64, Arc<Node>>>,
    names: RwLock<Names>,
}

/// What identifies the nodes whose own inode number does not.
#[derive(Debug, Default)]
struct Names {
    /// Hardlinks in lower layers: copying one up leaves the others, so each name is a node.
    linked: HashMap<(u64, OsString), u64>,
    /// Files that were copied up under this mount, by the copy's number: they keep the id they had.
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
    /// ESTALE for an id that is not known.
    pub(crate) fn get(&self, id: u64) -> io::Result<Arc<Node>> {
        read(&self.nodes).get(&id).cloned().ok_or_else(|| Errno::STALE.into())
    }

    /// The node of what a lookup of `name` in `parent` found, counted once more.
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
        let place = Some((parent.clone(), name.to_owned()));
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

    /// Notes that `copy` is `node`, before anyone can look the copy up.
    pub(crate) fn note_copy(&self, node: &Node, copy: &Stat) {
        let own = self.numbers.of(copy);
        let mut names = write(&self.names);
        names.copied.insert(own, node.id);
        if node.has_other_id() {
            node.ino.store(own, Ordering::Relaxed);
            if let Some((parent, name)) = &node.place {
                names.linked.remove(&(parent.id, name.clone()));
            }
        }
    }

    /// Takes `count` lookups back; a node without any is dropped.
    pub(crate) fn forget(&self, id: u64, count: u64) {
        if id == ROOT {
            return;
        }
        // Dropped after the lock: closing descriptors takes time.
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
            // A copied-up file that lives on keeps its number; one that is gone frees it for another.
            let is_gone = || leaf.entry.stat_now().map_or(true, |stat| stat.st_nlink == 0);
            if own != node.id && (node.has_other_id() || is_gone()) {
                write(&self.names).copied.remove(&own);
            }
        } else if node.has_other_id()
            && let Some((parent, name)) = &node.place
        {
            write(&self.names).linked.remove(&(parent.id, name.clone()));
        }
    }
}

fn dir_number(numbers: &Numbers, merged: &Merged) -> io::Result<u64> {
    Ok(numbers.of(&merged.identity().stat()?))
}
