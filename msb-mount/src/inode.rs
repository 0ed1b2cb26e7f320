//! The nodes that the kernel knows, from its first lookup until it forgets them. A node is a file of the merged tree, referred to by
//! descriptors, or by its directory and name if they were closed, so it survives a change of its name.
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
//! 3. [`DirNode::listing`] of a directory, while it is read; the open files of a leaf, while its data is opened.
//! 4. [`Descriptors::moves`], while a name is used to open a node, or changes.
//! 5. The queue of the [`Descriptors`].
//! 6. The nodes of the [`Table`], then its names.
//!
//! The others (the [`Slot`] of a node, its place, its links) are held for a single step in which none of the above is taken. The
//! kernel is told to forget a file's attributes while `copying` is held; that waits for no request, since it leaves the cached
//! data alone.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use msb::overlay::{self, Layer, Leaf, Merged};
use rustix::fs::Stat;
use rustix::io::Errno;

use crate::descriptors::{Descriptors, Goal, Slot};
use crate::leaf::LeafNode;
use crate::listing::Listing;
use crate::lock::{hold, read, write};
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
    /// Whether the listing misses a change.
    pub(crate) stale: AtomicBool,
}

/// Other names of a file of the upper that it was looked up by.
#[derive(Debug, Default)]
struct Links(Vec<Place>);

/// The most names that are kept. A file with more names stays open once it has lost the kept ones.
const MAX_LINKS: usize = 8;

impl Place {
    fn is(&self, parent: &Node, name: &OsStr) -> bool {
        self.parent.id == parent.id && *self.name == *name
    }
}

impl Node {
    fn new(
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
                stale: AtomicBool::new(false),
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
    fn count(&self) -> usize {
        match &self.kind {
            Kind::Dir(dir) => dir.slot.count(),
            Kind::Leaf(leaf) => leaf.slot.count(),
        }
    }

    /// Takes what a lookup of `name` in `parent` has opened, if the node is closed or has lost its name.
    fn found(&self, parent: &Arc<Self>, name: &OsStr, found: overlay::Node) {
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
        let is_place = read(&self.place).as_ref().is_some_and(|place| place.is(parent, name));
        !is_place || self.next_place()
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

/// All nodes by their ids.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) numbers: Numbers,
    pub(crate) descriptors: Arc<Descriptors>,
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
        let descriptors = Arc::new(Descriptors::new());
        // Not in the queue, so it is never closed.
        let root = Arc::new(Node::new(ROOT, ino, None, overlay::Node::Dir(root), &descriptors)?);
        let nodes = RwLock::new(HashMap::from([(ROOT, root)]));
        Ok(Self { numbers, descriptors, nodes, names: RwLock::default() })
    }

    /// # Errors
    /// ESTALE for an unknown id.
    pub(crate) fn get(&self, id: u64) -> io::Result<Arc<Node>> {
        read(&self.nodes).get(&id).cloned().ok_or_else(|| Errno::STALE.into())
    }

    /// Closes descriptors of nodes if there are too many. Call it without a lock.
    pub(crate) fn trim(&self) {
        if self.descriptors.are_too_many() {
            self.close(Goal::Some);
        }
    }

    /// Runs `open`, and once more after closing all descriptors of nodes if the process has too many open files.
    pub(crate) fn within_limit<T>(&self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match open() {
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE)) => {
                self.close(Goal::All);
                open()
            }
            other => other,
        }
    }

    fn close(&self, goal: Goal) {
        let _moves = write(&self.descriptors.moves);
        self.descriptors.trim(goal, |id| {
            let closed = self.get(id).ok()?.close();
            // A directory that was forgotten meanwhile has stayed, because it was in use here.
            self.forget(id, 0);
            closed
        });
    }

    /// The node of what a lookup of `name` in `parent` has found, if the kernel knows it.
    pub(crate) fn known(&self, parent: u64, name: &OsStr, found: &overlay::Node) -> io::Result<Option<Arc<Node>>> {
        let own = self.own_number(found)?;
        Ok(self.known_id(parent, name, found, own).and_then(|id| self.get(id).ok()))
    }

    fn own_number(&self, found: &overlay::Node) -> io::Result<u64> {
        match found {
            overlay::Node::Dir(merged) => dir_number(&self.numbers, merged),
            overlay::Node::Leaf(leaf) => Ok(self.numbers.of(leaf.entry.stat())),
        }
    }

    /// The node for the result of a lookup of `name` in `parent`. Counts a lookup of it.
    ///
    /// # Errors
    /// The error of `fstat(2)`.
    pub(crate) fn intern(&self, parent: &Arc<Node>, name: &OsStr, found: overlay::Node) -> io::Result<Arc<Node>> {
        let own = self.own_number(&found)?;
        let known = {
            let nodes = read(&self.nodes);
            let known = self.known_id(parent.id, name, &found, own).and_then(|id| nodes.get(&id));
            known.inspect(|node| _ = node.lookups.fetch_add(1, Ordering::Relaxed)).cloned()
        };
        if let Some(node) = known {
            node.found(parent, name, found);
            return Ok(node);
        }
        let mut nodes = write(&self.nodes);
        let id = self.known_id(parent.id, name, &found, own).unwrap_or_else(|| {
            let mut names = write(&self.names);
            names.counter += 1;
            let id = NAMELESS | names.counter;
            names.linked.insert((parent.id, name.to_owned()), id);
            id
        });
        if let Some(node) = nodes.get(&id).cloned() {
            node.lookups.fetch_add(1, Ordering::Relaxed);
            drop(nodes);
            node.found(parent, name, found);
            return Ok(node);
        }
        let ino = if id & NAMELESS == 0 { id } else { own };
        let place = Some(Place { parent: parent.clone(), name: name.into() });
        let node = Arc::new(Node::new(id, ino, place, found, &self.descriptors)?);
        self.descriptors.count(node.count());
        nodes.insert(id, node.clone());
        drop(nodes);
        self.descriptors.enqueue(id);
        self.descriptors.clean(|id| read(&self.nodes).get(&id).is_some_and(|node| node.is_open()));
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
                names.linked.remove(&(parent.id, name.into()));
            }
        }
    }

    /// Reverts [`Self::note_copy`] after an error. Call it while the copy is open: later another file may have its inode number.
    /// `from`: the file of the lower layer.
    pub(crate) fn undo_copy(&self, node: &Node, copy: &Stat, from: &Stat) {
        let mut names = write(&self.names);
        names.copied.remove(&self.numbers.of(copy));
        if node.has_other_id() {
            node.ino.store(self.numbers.of(from), Ordering::Relaxed);
            if let Some(Place { parent, name }) = node.place() {
                names.linked.insert((parent.id, name.into()), node.id);
            }
        }
    }

    /// Subtracts `count` lookups, and drops a node that has none left. A directory stays as long as a node below it has its place in it.
    pub(crate) fn forget(&self, id: u64, count: u64) {
        let (mut id, mut count) = (id, count);
        while id != ROOT {
            // Dropped after the lock is released, since closing descriptors takes time.
            let gone = {
                let mut nodes = write(&self.nodes);
                let Some(node) = nodes.get(&id) else { return };
                let left = node.lookups.load(Ordering::Relaxed).saturating_sub(count);
                node.lookups.store(left, Ordering::Relaxed);
                if left > 0 || node.dir().is_ok() && Arc::strong_count(node) > 1 {
                    return;
                }
                self.forget_names(node);
                nodes.remove(&id)
            };
            let Some(node) = gone else { return };
            match &node.kind {
                Kind::Dir(dir) => dir.slot.forget(&self.descriptors),
                Kind::Leaf(leaf) => leaf.slot.forget(&self.descriptors),
            }
            let Some(Place { parent, .. }) = node.place() else { return };
            (id, count) = (parent.id, 0);
        }
    }

    /// Uncounts the lookup that [`Self::intern`] has counted. It takes the node, since a directory that is in use stays.
    pub(crate) fn release(&self, node: Arc<Node>) {
        let id = node.id;
        drop(node);
        self.forget(id, 1);
    }

    fn forget_names(&self, node: &Node) {
        let Kind::Leaf(leaf) = &node.kind else { return };
        let (device, ino) = leaf.slot.identity();
        let own = self.numbers.fold(device, ino);
        if leaf.slot.layer() == Layer::Upper {
            // A removed file frees its inode number for another one. One that is closed has a name.
            let is_open_and_gone = |leaf: Arc<Leaf>| leaf.entry.stat_now().map_or(true, |stat| stat.st_nlink == 0);
            let is_gone = || leaf.slot.get().is_some_and(is_open_and_gone);
            if own != node.id && (node.has_other_id() || is_gone()) {
                write(&self.names).copied.remove(&own);
            }
        } else if node.has_other_id()
            && let Some(Place { parent, name }) = node.place()
        {
            write(&self.names).linked.remove(&(parent.id, name.into()));
        }
    }
}

fn dir_number(numbers: &Numbers, merged: &Merged) -> io::Result<u64> {
    Ok(numbers.of(&merged.identity().stat()?))
}
