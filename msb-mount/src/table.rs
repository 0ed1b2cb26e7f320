//! The nodes that the kernel knows, by their ids, from its first lookup until it forgets them. [`crate::node`] has the order of the locks.
//!
//! # Hardlinks in lower layers
//!
//! Copying one name of a lower file up leaves the other names in the lower layer, as in an overlayfs without `index=on`: finding those
//! would take a search of all layers. So after a write through one name, the others still show the old content. If all names were one
//! node, the kernel would show the new content under each of them, until it forgot the node. Therefore each name of a lower file with
//! several links is a node of its own, with an id that is not its inode number. stat(2) shows the same inode number for all of them until
//! one is copied up.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::{Arc, RwLock};

use msb::overlay::origin::Origins;
use msb::overlay::{self, Layer, Leaf, Listed, Merged};
use rustix::fs::Stat;
use rustix::io::Errno;

use crate::descriptors::{Descriptors, Goal};
use crate::lock::{read, write};
use crate::node::{Kind, Node, Place, ROOT};
use crate::number::{NAMELESS, Numbers};

/// All nodes by their ids.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) numbers: Numbers,
    pub(crate) descriptors: Arc<Descriptors>,
    origins: Origins,
    nodes: RwLock<HashMap<u64, Arc<Node>>>,
    names: RwLock<Names>,
}

/// The ids of nodes that are not their inode numbers.
#[derive(Debug, Default)]
struct Names {
    /// Hardlinks in lower layers, by directory and name.
    linked: HashMap<(u64, OsString), u64>,
    /// Files that were copied up, and directories that got a redirect under this mount, by their inode number in the upper. They keep
    /// their id.
    copied: HashMap<u64, u64>,
    /// The ids in `copied` that are the inode number of a file's origin. The file of the lower layer with this number, should it be
    /// visible under another name, is not that node.
    adopted: HashSet<u64>,
    counter: u64,
}

impl Table {
    pub(crate) fn new(root: Merged) -> io::Result<Self> {
        let numbers = Numbers::default();
        let ino = dir_number(&numbers, &root)?;
        // In this order in each mount, whatever is looked up first.
        for dir in root.lower.iter().map(|part| &part.dir).chain(&root.upper) {
            let _ = numbers.of(&dir.stat()?);
        }
        let origins = Origins::new(&root);
        let descriptors = Arc::new(Descriptors::new());
        // Not in the queue, so it is never closed.
        let root = Arc::new(Node::new(ROOT, ino, None, overlay::Node::Dir(root), &descriptors)?);
        let nodes = RwLock::new(HashMap::from([(ROOT, root)]));
        Ok(Self { numbers, descriptors, origins, nodes, names: RwLock::default() })
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

    /// The node of a listed file, if the kernel knows it by this name. Counts a lookup of it.
    pub(crate) fn known_listed(&self, parent: &Node, listed: &Listed) -> Option<Arc<Node>> {
        let own = self.numbers.fold(listed.device, listed.ino);
        let id = match listed.layer {
            Layer::Upper => read(&self.names).copied.get(&own).copied().unwrap_or(own),
            Layer::Lower(_) => own,
        };
        let nodes = read(&self.nodes);
        let node = nodes.get(&id)?;
        let Kind::Leaf(leaf) = &node.kind else { return None };
        let is_it = leaf.slot.identity() == (listed.device, listed.ino)
            && leaf.slot.layer() == listed.layer
            && !leaf.slot.is_kept()
            && node.is_at(parent, &listed.name);
        if !is_it {
            return None;
        }
        node.count_lookup();
        Some(node.clone())
    }

    /// The node at a name of the upper that `stat` is of, if the kernel knows it by this name. Counts a lookup of it. A directory that
    /// lower layers have too is not found.
    pub(crate) fn known_in_upper(&self, parent: &Node, name: &OsStr, stat: &Stat) -> Option<Arc<Node>> {
        let own = self.numbers.of(stat);
        let id = read(&self.names).copied.get(&own).copied().unwrap_or(own);
        let nodes = read(&self.nodes);
        let node = nodes.get(&id)?;
        let (identity, layer, is_kept) = match &node.kind {
            Kind::Dir(dir) => (dir.slot.identity(), dir.slot.layer(), dir.slot.is_kept()),
            Kind::Leaf(leaf) => (leaf.slot.identity(), leaf.slot.layer(), leaf.slot.is_kept()),
        };
        let is_it =
            identity == (stat.st_dev, stat.st_ino) && layer == Layer::Upper && !is_kept && node.is_at(parent, name);
        if !is_it {
            return None;
        }
        node.count_lookup();
        Some(node.clone())
    }

    /// Whether a directory of the upper is known to have no lower directories.
    pub(crate) fn is_in_upper_alone(&self, stat: &Stat) -> bool {
        let own = self.numbers.of(stat);
        let id = read(&self.names).copied.get(&own).copied().unwrap_or(own);
        let node = read(&self.nodes).get(&id).cloned();
        let Some(Kind::Dir(dir)) = node.as_deref().map(|node| &node.kind) else { return false };
        let is_it = dir.slot.identity() == (stat.st_dev, stat.st_ino);
        is_it && dir.slot.get().is_some_and(|merged| merged.lower.is_empty())
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
        self.adopt_origin(own, &found);
        let known = {
            let nodes = read(&self.nodes);
            let known = self.known_id(parent.id, name, &found, own).and_then(|id| nodes.get(&id));
            known.inspect(|node| node.count_lookup()).cloned()
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
            node.count_lookup();
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

    /// Gives a file of the upper that is looked up for the first time the inode number of the file that it was copied from, unless another
    /// node has it.
    fn adopt_origin(&self, own: u64, found: &overlay::Node) {
        let overlay::Node::Leaf(leaf) = found else { return };
        let is_known =
            |nodes: &HashMap<_, _>, names: &Names| nodes.contains_key(&own) || names.copied.contains_key(&own);
        if leaf.layer != Layer::Upper || is_known(&read(&self.nodes), &read(&self.names)) {
            return;
        }
        let Some(origin) = self.origins.find(leaf) else { return };
        let id = self.numbers.of(&origin);
        let (nodes, mut names) = (read(&self.nodes), write(&self.names));
        if id != own && !is_known(&nodes, &names) && !nodes.contains_key(&id) && names.adopted.insert(id) {
            names.copied.insert(own, id);
        }
    }

    fn known_id(&self, parent: u64, name: &OsStr, found: &overlay::Node, own: u64) -> Option<u64> {
        match found {
            overlay::Node::Dir(_) | overlay::Node::Leaf(Leaf { layer: Layer::Upper, .. }) => {
                Some(read(&self.names).copied.get(&own).copied().unwrap_or(own))
            }
            overlay::Node::Leaf(leaf) => {
                let names = read(&self.names);
                if leaf.entry.stat().st_nlink <= 1 && !names.adopted.contains(&own) {
                    return Some(own);
                }
                if names.linked.is_empty() {
                    return None;
                }
                names.linked.get(&(parent, name.to_owned())).copied()
            }
        }
    }

    /// The inode number that a file of the upper shows.
    pub(crate) fn shown(&self, own: u64) -> u64 {
        match read(&self.names).copied.get(&own) {
            Some(id) if id & NAMELESS == 0 => *id,
            _ => own,
        }
    }

    /// The inode number that a listed file of the upper shows; `None` if that takes a lookup.
    pub(crate) fn shown_listed(&self, own: u64, may_have_origin: bool) -> Option<u64> {
        let is_known = !may_have_origin || read(&self.names).copied.contains_key(&own);
        is_known.then(|| self.shown(own))
    }

    /// Records that `copy` is the copy of `node`, before it can be looked up.
    pub(crate) fn note_copy(&self, node: &Node, copy: &Stat) {
        let own = self.numbers.of(copy);
        let mut names = write(&self.names);
        names.copied.insert(own, node.id);
        if node.has_other_id() {
            node.set_ino(own);
            if let Some(Place { parent, name }) = node.place() {
                names.linked.remove(&(parent.id, name.into()));
            }
        }
    }

    /// Records that the directory in the upper identifies `node`.
    ///
    /// # Errors
    /// The error of `fstat(2)`.
    pub(crate) fn note_redirect(&self, node: &Node, redirected: &Merged) -> io::Result<()> {
        let own = dir_number(&self.numbers, redirected)?;
        if own != node.id {
            write(&self.names).copied.insert(own, node.id);
        }
        Ok(())
    }

    /// Reverts [`Self::note_copy`] after an error. Call it while the copy is open: later another file may have its inode number.
    /// `from`: the file of the lower layer.
    pub(crate) fn undo_copy(&self, node: &Node, copy: &Stat, from: &Stat) {
        let mut names = write(&self.names);
        names.copied.remove(&self.numbers.of(copy));
        if node.has_other_id() {
            node.set_ino(self.numbers.of(from));
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
                if node.forget_lookups(count) > 0 || node.dir().is_ok() && Arc::strong_count(node) > 1 {
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
        let leaf = match &node.kind {
            Kind::Leaf(leaf) => leaf,
            Kind::Dir(dir) => {
                let (device, ino) = dir.slot.identity();
                let own = self.numbers.fold(device, ino);
                let is_gone = |dir: Arc<Merged>| dir.top().0.stat().map_or(true, |stat| stat.st_nlink == 0);
                if own != node.id && dir.slot.get().is_some_and(is_gone) {
                    write(&self.names).copied.remove(&own);
                }
                return;
            }
        };
        let (device, ino) = leaf.slot.identity();
        let own = self.numbers.fold(device, ino);
        if leaf.slot.layer() == Layer::Upper {
            // A removed file frees its inode number for another one. One that is closed has a name.
            let is_open_and_gone = |leaf: Arc<Leaf>| leaf.entry.stat_now().map_or(true, |stat| stat.st_nlink == 0);
            let is_gone = || leaf.slot.get().is_some_and(is_open_and_gone);
            if own != node.id && (node.has_other_id() || is_gone()) {
                let mut names = write(&self.names);
                names.copied.remove(&own);
                names.adopted.remove(&node.id);
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
