//! Listings of directories, without and with the attributes of the files.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fuser::{FileAttr, FileType, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::{Fs, GENERATION};
use crate::attr;
use crate::listing::{DOT, DOTDOT};
use crate::node::Node;
use crate::number;

impl Fs {
    /// Adds the names after `offset`, until the reply is full.
    pub(super) fn list(&self, node: &Arc<Node>, offset: u64, reply: &mut ReplyDirectory) -> io::Result<()> {
        let (own, above) = (INodeNo(node.ino()), INodeNo(node.above().ino()));
        for (place, ino, name) in [(DOT, own, "."), (DOTDOT, above, "..")] {
            if offset < place && reply.add(ino, place, FileType::Directory, name) {
                return Ok(());
            }
        }
        let may_have_origin = self.tree.may_have_origins(node)?;
        for (place, listed) in self.tree.list(node, offset == 0)?.after(offset) {
            let ino = self
                .tree
                .listed_ino(node, listed, may_have_origin)
                .unwrap_or_else(|_| number::unreadable(node.id, *place));
            if reply.add(INodeNo(ino), *place, attr::file_type(listed.file_type), &listed.name) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// As [`Self::list`], with a lookup of each name counted.
    pub(super) fn list_with_attributes(
        &self,
        node: &Arc<Node>,
        offset: u64,
        reply: &mut ReplyDirectoryPlus,
    ) -> io::Result<()> {
        let attr = self.tree.attr(node)?;
        // The kernel takes only the inode numbers of these two.
        for (place, ino, name) in [(DOT, attr.ino, "."), (DOTDOT, INodeNo(node.above().ino()), "..")] {
            let attr = FileAttr { ino, ..attr };
            if offset < place && reply.add(ino, place, name, &Duration::ZERO, &attr, GENERATION) {
                return Ok(());
            }
        }
        let listing = self.tree.list(node, offset == 0)?;
        for (place, listed) in listing.after(offset) {
            let child = self.tree.lookup_listed(node, &listing, listed);
            let found = child.and_then(|child| child.map(|child| self.looked_up(child)).transpose());
            let (child, attr, ttl) = match found {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                // A name that cannot be read does not hide the others. Its attributes are not cached, so a program that needs them
                // causes a lookup, and gets the error.
                Err(_) => {
                    let ino = INodeNo(number::unreadable(node.id, *place));
                    let unknown = FileAttr { ino, kind: attr::file_type(listed.file_type), ..attr };
                    if reply.add(ino, *place, &listed.name, &Duration::ZERO, &unknown, GENERATION) {
                        return Ok(());
                    }
                    continue;
                }
            };
            // fuser lists a name with its id. If that is not the inode number, the kernel gets an inode of this number, which it may
            // not use: the name is not cached, so a program that needs it causes a lookup.
            let attr = FileAttr { ino: INodeNo(child.ino()), ..attr };
            let is_full = reply.add(attr.ino, *place, &listed.name, &ttl, &attr, GENERATION);
            if is_full || child.has_other_id() {
                self.tree.table.release(child);
            }
            if is_full {
                return Ok(());
            }
        }
        Ok(())
    }
}
