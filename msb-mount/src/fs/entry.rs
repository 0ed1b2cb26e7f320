//! Replies that count a lookup of a node: the kernel refers to it by its id from then on, until it forgets it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fuser::{FileAttr, INodeNo, ReplyEntry};

use super::{Fs, GENERATION, LONG};
use crate::node::Node;

impl Fs {
    /// The attributes of a node for a reply that counts a lookup, and how long the kernel may cache them. Such a reply has the id in
    /// place of the inode number. If the two differ, the attributes are not cached, and the kernel asks for them again.
    fn entry_attr(&self, node: &Arc<Node>) -> io::Result<(FileAttr, Duration)> {
        let mut attr = self.tree.attr(node)?;
        let is_itself = attr.ino.0 == node.id;
        attr.ino = INodeNo(node.id);
        Ok((attr, if is_itself { LONG } else { Duration::ZERO }))
    }

    /// As [`Self::entry_attr`]. After an error the kernel does not know of the lookup, so it is not counted any more.
    pub(super) fn looked_up(&self, node: Arc<Node>) -> io::Result<(Arc<Node>, FileAttr, Duration)> {
        match self.entry_attr(&node) {
            Ok((attr, ttl)) => Ok((node, attr, ttl)),
            Err(error) => {
                self.tree.table.release(node);
                Err(error)
            }
        }
    }

    pub(super) fn reply_entry(&self, node: io::Result<Arc<Node>>, reply: ReplyEntry) {
        match node.and_then(|node| self.looked_up(node)) {
            Ok((_, attr, ttl)) => reply.entry_with_ttls(&ttl, &LONG, &attr, GENERATION),
            Err(error) => reply.error(error.into()),
        }
    }
}
