//! Replies that count a lookup of a node: the kernel refers to it by its id from then on, until it forgets it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fuser::{FileAttr, INodeNo, ReplyEntry};

use super::{Fs, GENERATION, LONG};
use crate::leaf::LeafNode;
use crate::node::Node;
use crate::tree::Tree;
use crate::tree::change::Made;

impl Fs {
    /// How long the kernel may cache attributes. Set-id bits may be cleared without its notice ([`crate::leaf`]).
    pub(super) fn attr_timeout(node: &Node, attr: &FileAttr) -> Duration {
        let may_change = attr.perm & 0o6000 != 0 && node.leaf().is_ok_and(LeafNode::may_lose_set_id);
        if may_change { Duration::ZERO } else { LONG }
    }

    /// The attributes of a node for a reply that counts a lookup, and how long the kernel may cache them. Such a reply has the id in
    /// place of the inode number. If the two differ, the attributes are not cached, and the kernel asks for them again.
    fn entry_attr(node: &Node, mut attr: FileAttr) -> (FileAttr, Duration) {
        let is_itself = attr.ino.0 == node.id;
        attr.ino = INodeNo(node.id);
        (attr, if is_itself { Self::attr_timeout(node, &attr) } else { Duration::ZERO })
    }

    /// The reply for a node that was looked up, see [`Self::entry_attr`]. After an error the kernel does not know of the lookup, so its
    /// count is released.
    pub(super) fn looked_up(&self, node: Arc<Node>) -> io::Result<(Arc<Node>, FileAttr, Duration)> {
        match self.tree.attr(&node) {
            Ok(attr) => {
                let (attr, ttl) = Self::entry_attr(&node, attr);
                Ok((node, attr, ttl))
            }
            Err(error) => {
                self.tree.table.release(node);
                Err(error)
            }
        }
    }

    /// The reply for a new node, see [`Self::entry_attr`].
    pub(super) fn made(made: Made) -> (Arc<Node>, FileAttr, Duration) {
        let (attr, ttl) = Self::entry_attr(&made.node, Tree::report(&made.node, &made.stat));
        (made.node, attr, ttl)
    }

    pub(super) fn reply_made(made: io::Result<Made>, reply: ReplyEntry) {
        match made.map(Self::made) {
            Ok((_, attr, ttl)) => reply.entry_with_ttls(&ttl, &LONG, &attr, GENERATION),
            Err(error) => reply.error(error.into()),
        }
    }

    pub(super) fn reply_entry(&self, node: io::Result<Arc<Node>>, reply: ReplyEntry) {
        match node.and_then(|node| self.looked_up(node)) {
            Ok((_, attr, ttl)) => reply.entry_with_ttls(&ttl, &LONG, &attr, GENERATION),
            Err(error) => reply.error(error.into()),
        }
    }
}
