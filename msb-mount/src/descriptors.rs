//! The descriptors of the nodes. The kernel may know millions of files, and a process may have far fewer descriptors, so those of the
//! nodes that were not used for the longest time are closed. [`crate::reopen`] opens them again, by directory and name.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use msb::overlay::{Layer, Leaf, Merged};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::lock::{hold, read, write};

/// The most descriptors of nodes that are open, if the limit of the process permits that.
const MOST: usize = 1 << 16;

/// The descriptors of all nodes.
#[derive(Debug)]
pub(crate) struct Descriptors {
    most: usize,
    open: AtomicUsize,
    /// How many nodes have none.
    closed: AtomicUsize,
    /// The ids of the nodes that have descriptors, in the order in which they were opened. Some have been forgotten since. A
    /// thread that holds a slot's lock does not take this one, since [`Self::clean`] takes them in the other order.
    queue: Mutex<VecDeque<u64>>,
    /// Read while a node is opened by its name or a name is removed, and written while nodes are closed or renamed: a name that is read
    /// here must not change its meaning before it is used.
    pub(crate) moves: RwLock<()>,
}

/// What is open of a node: a file, or the directories that are merged.
pub(crate) trait Open: std::fmt::Debug {
    /// How many descriptors it has.
    fn count(&self) -> usize;
    /// Device and inode number of what identifies it, whatever is copied up.
    ///
    /// # Errors
    /// The error of `fstat(2)`.
    fn identity(&self) -> io::Result<(u64, u64)>;
    /// Its layer: that of the topmost directory.
    fn layer(&self) -> Layer;
    /// Whether directory and name lead to it again.
    fn can_close(&self) -> bool;
}

impl Open for Leaf {
    fn count(&self) -> usize {
        1 + usize::from(self.is_metacopy())
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        Ok((self.entry.stat().st_dev, self.entry.stat().st_ino))
    }

    fn layer(&self) -> Layer {
        self.layer
    }

    fn can_close(&self) -> bool {
        !self.is_metacopy()
    }
}

impl Open for Merged {
    fn count(&self) -> usize {
        self.lower.len() + usize::from(self.upper.is_some())
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = Self::identity(self).stat()?;
        Ok((stat.st_dev, stat.st_ino))
    }

    fn layer(&self) -> Layer {
        self.top().1
    }

    fn can_close(&self) -> bool {
        true
    }
}

/// The descriptors of a node, open or closed.
#[derive(Debug)]
pub(crate) struct Slot<T> {
    state: RwLock<State<T>>,
    was_used: AtomicBool,
}

#[derive(Debug)]
struct State<T> {
    open: Option<Arc<T>>,
    identity: (u64, u64),
    layer: Layer,
    /// The node stays open: it has no name any more, or it has been forgotten.
    is_kept: bool,
}

impl<T: Open> Slot<T> {
    /// # Errors
    /// The error of `fstat(2)`.
    pub(crate) fn new(opened: T) -> io::Result<Self> {
        let (identity, layer) = (opened.identity()?, opened.layer());
        let state = State { open: Some(Arc::new(opened)), identity, layer, is_kept: false };
        Ok(Self { state: RwLock::new(state), was_used: AtomicBool::new(false) })
    }

    /// What is open; `None` if it is closed.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        let open = read(&self.state).open.clone();
        if open.is_some() && !self.was_used.load(Ordering::Relaxed) {
            self.was_used.store(true, Ordering::Relaxed);
        }
        open
    }

    pub(crate) fn identity(&self) -> (u64, u64) {
        read(&self.state).identity
    }

    pub(crate) fn layer(&self) -> Layer {
        read(&self.state).layer
    }

    /// Replaces what is open, after a copy-up.
    ///
    /// # Errors
    /// The error of `fstat(2)`.
    pub(crate) fn set(&self, id: u64, opened: T, all: &Descriptors) -> io::Result<()> {
        let (identity, layer) = (opened.identity()?, opened.layer());
        let mut state = write(&self.state);
        all.count(opened.count());
        match state.open.replace(Arc::new(opened)) {
            Some(before) => all.subtract(before.count()),
            None => _ = all.closed.fetch_sub(1, Ordering::Relaxed),
        }
        (state.identity, state.layer) = (identity, layer);
        drop(state);
        all.enqueue(id);
        Ok(())
    }

    /// Opens a closed one. Returns what is open, which another thread may have opened.
    ///
    /// # Errors
    /// ESTALE if it is another file, or was looked up before a copy-up.
    pub(crate) fn reopen(&self, id: u64, opened: T, all: &Descriptors) -> io::Result<Arc<T>> {
        let identity = opened.identity()?;
        let mut state = write(&self.state);
        if let Some(open) = &state.open {
            return Ok(open.clone());
        }
        // A lookup that began before a directory was copied up lacks the upper.
        let is_outdated = state.layer == Layer::Upper && opened.layer() != Layer::Upper;
        if identity != state.identity || is_outdated {
            return Err(Errno::STALE.into());
        }
        all.count(opened.count());
        all.closed.fetch_sub(1, Ordering::Relaxed);
        state.layer = opened.layer();
        let open = state.open.insert(Arc::new(opened)).clone();
        drop(state);
        all.enqueue(id);
        Ok(open)
    }

    /// Keeps it open from now on, or no longer.
    pub(crate) fn keep(&self, is_kept: bool) {
        write(&self.state).is_kept = is_kept;
    }

    pub(crate) fn is_kept(&self) -> bool {
        read(&self.state).is_kept
    }

    /// What could be closed. One that was used since the last call is spared.
    pub(crate) fn idle(&self) -> Option<Arc<T>> {
        let state = read(&self.state);
        if state.is_kept || self.was_used.swap(false, Ordering::Relaxed) {
            return None;
        }
        state.open.as_ref().filter(|open| open.can_close()).cloned()
    }

    /// Closes it, unless it is to be kept open by now.
    pub(crate) fn close(&self, all: &Descriptors) {
        let mut state = write(&self.state);
        if !state.is_kept
            && let Some(open) = state.open.take()
        {
            all.subtract(open.count());
            all.closed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Stops counting the node. It is not closed any more, since that would count it again.
    pub(crate) fn forget(&self, all: &Descriptors) {
        let mut state = write(&self.state);
        state.is_kept = true;
        match &state.open {
            Some(open) => all.subtract(open.count()),
            None => _ = all.closed.fetch_sub(1, Ordering::Relaxed),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        read(&self.state).open.is_some()
    }

    /// Whether it is open and may be closed some time.
    pub(crate) fn is_spared(&self) -> bool {
        let state = read(&self.state);
        !state.is_kept && state.open.as_ref().is_some_and(|open| open.can_close())
    }

    /// How many descriptors are open.
    pub(crate) fn count(&self) -> usize {
        read(&self.state).open.as_ref().map_or(0, |open| open.count())
    }
}

impl Descriptors {
    /// Half of the process's limit is for nodes. The rest is for open files, and for what a request needs.
    pub(crate) fn new() -> Self {
        let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
        Self::with(limit.map_or(MOST, |limit| (limit / 2).min(MOST)))
    }

    fn with(most: usize) -> Self {
        Self {
            most,
            open: AtomicUsize::new(0),
            closed: AtomicUsize::new(0),
            queue: Mutex::default(),
            moves: RwLock::default(),
        }
    }

    /// Counts the descriptors of a node that has been opened.
    pub(crate) fn count(&self, count: usize) {
        self.open.fetch_add(count, Ordering::Relaxed);
    }

    /// Notes that a node may be closed.
    pub(crate) fn enqueue(&self, id: u64) {
        hold(&self.queue).push_back(id);
    }

    fn subtract(&self, count: usize) {
        self.open.fetch_sub(count, Ordering::Relaxed);
    }

    pub(crate) fn are_too_many(&self) -> bool {
        self.open.load(Ordering::Relaxed) > self.most
    }

    /// Whether any node is closed.
    pub(crate) fn is_any_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed) > 0
    }

    /// Closes nodes until a good part of the descriptors is free. `close` closes a node: true if it did, false to be asked again, `None`
    /// if the node is not to be closed.
    pub(crate) fn trim(&self, goal: Goal, mut close: impl FnMut(u64) -> Option<bool>) {
        let goal = if goal == Goal::All { 0 } else { self.most - self.most / 8 };
        // Each node is spared once.
        let mut left = 2 * hold(&self.queue).len();
        while left > 0 && self.open.load(Ordering::Relaxed) > goal {
            left -= 1;
            let Some(id) = hold(&self.queue).pop_front() else { break };
            if close(id) == Some(false) {
                self.enqueue(id);
            }
        }
    }

    /// Drops the ids of nodes that have been forgotten, and those that are queued twice, once they are the most. A new file may
    /// get the inode number of a removed one, so an id may be queued any number of times. `is_open`: whether a node has
    /// descriptors.
    pub(crate) fn clean(&self, is_open: impl Fn(u64) -> bool) {
        let mut queue = hold(&self.queue);
        if queue.len() > 2 * self.open.load(Ordering::Relaxed) + 4096 {
            let mut seen = HashSet::new();
            queue.retain(|id| seen.insert(*id) && is_open(*id));
        }
    }
}

/// How many descriptors are to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Some, so that the next files need no closing.
    Some,
    /// As many as possible.
    All,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file by its inode number.
    #[derive(Debug)]
    struct File(u64);

    impl Open for File {
        fn count(&self) -> usize {
            1
        }

        fn identity(&self) -> io::Result<(u64, u64)> {
            Ok((0, self.0))
        }

        fn layer(&self) -> Layer {
            Layer::Upper
        }

        fn can_close(&self) -> bool {
            true
        }
    }

    fn add(id: u64, all: &Descriptors) {
        all.count(1);
        all.enqueue(id);
    }

    /// What a node does when it is asked to close.
    fn close(slot: &Slot<File>, all: &Descriptors) -> Option<bool> {
        if slot.idle().is_none() {
            return slot.is_spared().then_some(false);
        }
        slot.close(all);
        Some(true)
    }

    #[test]
    fn the_oldest_are_closed_and_the_used_are_spared_once() {
        let all = Descriptors::with(8);
        let slots: Vec<_> = (0..10).map(|ino| Slot::new(File(ino)).unwrap()).collect();
        (0..10).for_each(|id| add(id, &all));
        assert!(all.are_too_many() && !all.is_any_closed());
        assert!(slots[0].get().is_some());
        slots[1].keep(true);
        all.trim(Goal::Some, |id| close(&slots[id as usize], &all));
        let open: Vec<_> = (0..10).filter(|id| slots[*id].is_open()).collect();
        assert_eq!(open, [0, 1, 5, 6, 7, 8, 9]);
        assert!(!all.are_too_many() && all.is_any_closed());
        assert!(slots[2].get().is_none());
        assert!(slots[2].reopen(2, File(99), &all).is_err());
        assert_eq!(slots[2].reopen(2, File(2), &all).unwrap().0, 2);
        all.trim(Goal::All, |id| close(&slots[id as usize], &all));
        let open: Vec<_> = (0..10).filter(|id| slots[*id].is_open()).collect();
        assert_eq!(open, [1]);
        slots.iter().for_each(|slot| slot.forget(&all));
        assert!(!all.is_any_closed());
        assert_eq!(all.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn ids_of_forgotten_nodes_do_not_pile_up() {
        let all = Descriptors::with(8);
        for id in 0..100_000 {
            add(id, &all);
            all.subtract(1);
            all.clean(|_| false);
        }
        assert!(hold(&all.queue).len() <= 4097);
        // The same inode number, of a file that is made and removed.
        let all = Descriptors::with(8);
        for _ in 0..100_000 {
            add(7, &all);
            all.clean(|_| true);
            all.subtract(1);
        }
        assert!(hold(&all.queue).len() <= 4099);
    }

    #[test]
    fn a_forgotten_node_is_counted_once() {
        let all = Descriptors::with(8);
        let slot = Slot::new(File(1)).unwrap();
        add(1, &all);
        assert!(slot.idle().is_some());
        // Between the two steps of closing.
        slot.forget(&all);
        slot.close(&all);
        assert!(!all.is_any_closed());
        assert_eq!(all.open.load(Ordering::Relaxed), 0);
    }
}
