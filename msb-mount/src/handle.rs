//! Open files, counted per node. The kernel takes an inode's data either from its page cache, by our reads and writes,
//! or from a backing file by itself (passthrough), and answers EIO to an open that asks for the other way while one
//! is open. So the way is chosen at the first open and kept until the last release.

use std::fs::File;
use std::io;
use std::sync::Arc;

use fuser::BackingId;
use msb::overlay::{Layer, Leaf};
use rustix::fs::{OFlags, Stat};

use crate::inode::LeafNode;
use crate::lock::hold;

/// What a node's open handles share.
#[derive(Debug, Default)]
pub(crate) struct Data {
    passthrough: u64,
    cached: u64,
    backing: Option<Arc<BackingId>>,
    file: Option<Arc<File>>,
    is_writable: bool,
}

/// How an open file gets at its data.
#[derive(Debug)]
pub(crate) enum Way {
    /// The kernel reads and writes the backing file itself.
    Passthrough(Arc<BackingId>),
    /// By the page cache, and requests to us.
    Cached,
}

impl Way {
    /// What a handle must know at its release.
    pub(crate) fn handle(&self) -> u64 {
        u64::from(matches!(self, Self::Passthrough(_)))
    }
}

impl LeafNode {
    /// Counts an open. `back` registers a backing file where passthrough is wanted.
    pub(crate) fn opened(&self, back: Option<impl FnOnce(&Leaf) -> io::Result<BackingId>>) -> Way {
        let mut data = hold(&self.data);
        if data.cached == 0
            && data.backing.is_none()
            && let Some(back) = back
        {
            // A file system that cannot be backed by is no reason to fail.
            data.backing = back(&self.get()).ok().map(Arc::new);
        }
        match &data.backing {
            Some(backing) => {
                let way = Way::Passthrough(backing.clone());
                data.passthrough += 1;
                way
            }
            None => {
                data.cached += 1;
                Way::Cached
            }
        }
    }

    /// Takes an open back.
    pub(crate) fn released(&self, handle: u64) {
        let (_file, _backing);
        let mut data = hold(&self.data);
        if handle == 0 {
            data.cached = data.cached.saturating_sub(1);
        } else {
            data.passthrough = data.passthrough.saturating_sub(1);
        }
        if data.passthrough == 0 {
            _backing = data.backing.take();
        }
        if data.passthrough + data.cached == 0 {
            _file = data.file.take();
        }
        drop(data);
    }

    /// The file that holds the data now. It is opened once and shared; after a copy-up it is another.
    ///
    /// # Errors
    /// The error of `open(2)`; EROFS to write what is not in the upper.
    pub(crate) fn file(&self, to_write: bool) -> io::Result<Arc<File>> {
        let mut data = hold(&self.data);
        if let Some(file) = &data.file
            && (data.is_writable || !to_write)
        {
            return Ok(file.clone());
        }
        let leaf = self.get();
        let is_writable = leaf.layer == Layer::Upper && !leaf.is_metacopy();
        let file = match is_writable {
            true => leaf.entry.open(OFlags::RDWR)?,
            false if to_write => return Err(rustix::io::Errno::ROFS.into()),
            false => leaf.data().open_to_read()?,
        };
        let file = Arc::new(file);
        if data.passthrough + data.cached > 0 {
            data.file = Some(file.clone());
            data.is_writable = is_writable;
        }
        Ok(file)
    }

    /// Lets go of the lower layer's file, after a copy-up.
    pub(crate) fn reopen(&self) {
        hold(&self.data).file = None;
    }
}

/// Whether a write may have to clear set-id bits, which the kernel leaves to us and passthrough would skip.
pub(crate) fn has_set_id(stat: &Stat) -> bool {
    stat.st_mode & 0o6000 != 0
}
