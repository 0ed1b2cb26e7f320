//! A file that is not a directory, and its open handles. The kernel gets an inode's data either from its page cache, with read and write
//! requests to us, or from a backing file without us (passthrough). While a file is open in one mode, the kernel answers EIO to an open
//! in the other. So the mode is chosen at the first open and kept until the last release.
//!
//! # Set-id bits
//!
//! A write by a user other than root clears set-id bits. The kernel leaves that to the server, which does not see passthrough writes. The
//! kernel makes these with the credentials of the thread that registered the backing file, and the backing file system clears the bits if
//! that thread lacked CAP_FSETID. So a backing file for a user is registered without it ([`BackingOf`]). FUSE does not notice that the bits
//! were cleared, so attributes with such bits are not cached meanwhile. Without passthrough, 4 KiB writes of a user take 5 to 8 times as
//! long.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fuser::{BackingId, FopenFlags};
use msb::overlay::{Layer, Leaf};
use rustix::fs::{OFlags, Stat};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::caller::Caller;
use crate::descriptors::Slot;
use crate::lock::hold;

/// A file that is not a directory.
#[derive(Debug)]
pub(crate) struct LeafNode {
    pub(crate) slot: Slot<Leaf>,
    /// Held while the file is copied up.
    pub(crate) copying: Mutex<()>,
    open: Mutex<Option<Box<OpenFiles>>>,
    /// The size and mtime that were last reported to the kernel, hashed.
    reported: AtomicU64,
    /// Whether the file has capabilities: [`UNKNOWN`], [`LACKS`] or [`MAY_HAVE`].
    capability: AtomicU8,
}

const UNKNOWN: u8 = 0;
const LACKS: u8 = 1;
const MAY_HAVE: u8 = 2;

/// The open handles of a file, and what they share.
#[derive(Debug, Default)]
struct OpenFiles {
    passthrough: u64,
    cached: u64,
    backing: Option<(Arc<BackingId>, BackingOf)>,
    file: Option<Arc<File>>,
    is_writable: bool,
}

/// Who writes to a backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackingOf {
    /// Writes keep set-id bits.
    Root,
    /// Writes clear set-id bits.
    User,
}

impl BackingOf {
    pub(crate) fn caller(caller: Caller) -> Self {
        if caller.uid == 0 { Self::Root } else { Self::User }
    }

    /// Registers a backing file with `register`.
    ///
    /// # Errors
    /// Those of `register`.
    pub(crate) fn register<T>(self, register: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Root => register(),
            Self::User => without_fsetid(register),
        }
    }
}

/// Runs `with` in this thread without CAP_FSETID.
fn without_fsetid<T>(with: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let all = capabilities(None)?;
    set_capabilities(None, CapabilitySets { effective: all.effective - CapabilitySet::FSETID, ..all })?;
    let done = with();
    set_capabilities(None, all)?;
    done
}

/// How the kernel gets the data of an open file.
#[derive(Debug)]
pub(crate) enum IoMode {
    /// The kernel reads and writes the backing file itself.
    Passthrough(Arc<BackingId>),
    /// The kernel maps the backing file, and sends reads and writes to us. The only other mode of an open of a file that is open in
    /// passthrough mode.
    Direct(Arc<BackingId>),
    /// Through the page cache, and requests to us.
    Cached,
}

impl IoMode {
    /// The FUSE file handle, from which a release tells the mode.
    pub(crate) fn handle(&self) -> u64 {
        u64::from(!matches!(self, Self::Cached))
    }

    /// The flags of the reply to an open.
    pub(crate) fn flags(&self) -> FopenFlags {
        match self {
            Self::Passthrough(_) => FopenFlags::empty(),
            Self::Direct(_) => FopenFlags::FOPEN_DIRECT_IO,
            Self::Cached => FopenFlags::FOPEN_KEEP_CACHE,
        }
    }
}

impl LeafNode {
    /// # Errors
    /// The error of `fstat(2)`.
    pub(crate) fn new(leaf: Leaf) -> io::Result<Self> {
        let slot = Slot::new(leaf)?;
        let (reported, capability) = (AtomicU64::new(0), AtomicU8::new(UNKNOWN));
        Ok(Self { slot, copying: Mutex::default(), open: Mutex::default(), reported, capability })
    }

    /// Whether the file is known to have no capabilities. The kernel asks for them before a write and before a change of the owner.
    pub(crate) fn lacks_capability(&self) -> bool {
        self.capability.load(Ordering::Acquire) == LACKS
    }

    /// Notes that the file has no capabilities, unless they may have been set meanwhile.
    pub(crate) fn note_no_capability(&self) {
        let _ = self.capability.compare_exchange(UNKNOWN, LACKS, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Notes that capabilities will be set.
    pub(crate) fn may_get_capability(&self) {
        self.capability.store(MAY_HAVE, Ordering::Release);
    }

    /// Notes the size and mtime that are reported to the kernel. Returns whether they are those of the last report.
    pub(crate) fn report(&self, stat: &Stat) -> bool {
        let hash = (stat.st_size as u64) ^ (stat.st_mtime as u64).rotate_left(32) ^ stat.st_mtime_nsec;
        self.reported.swap(hash, Ordering::Relaxed) == hash
    }

    /// Counts an open, and returns its mode. For passthrough, `back` registers a backing file. `of` is who opens the file.
    pub(crate) fn opened(
        &self,
        of: BackingOf,
        to_write: bool,
        back: Option<impl FnOnce() -> io::Result<BackingId>>,
    ) -> IoMode {
        let mut open = hold(&self.open);
        let open = open.get_or_insert_default();
        if open.cached == 0
            && open.backing.is_none()
            && let Some(back) = back
        {
            // Not every file system can back a file; then the mode is cached.
            open.backing = back().ok().map(|backing| (Arc::new(backing), of));
        }
        match &open.backing {
            Some((backing, owner)) => {
                let (backing, is_other) = (backing.clone(), *owner != of);
                open.passthrough += 1;
                // An earlier open has registered the backing file for the other kind of writer.
                if to_write && is_other { IoMode::Direct(backing) } else { IoMode::Passthrough(backing) }
            }
            None => {
                open.cached += 1;
                IoMode::Cached
            }
        }
    }

    /// Whether a write may clear set-id bits without our notice.
    pub(crate) fn may_lose_set_id(&self) -> bool {
        let open = hold(&self.open);
        open.as_ref().is_some_and(|open| matches!(open.backing, Some((_, BackingOf::User))))
    }

    /// Counts a release.
    pub(crate) fn released(&self, handle: u64) {
        let (_all, _backing);
        let mut files = hold(&self.open);
        let Some(open) = files.as_mut() else { return };
        if handle == 0 {
            open.cached = open.cached.saturating_sub(1);
        } else {
            open.passthrough = open.passthrough.saturating_sub(1);
        }
        if open.passthrough == 0 {
            _backing = open.backing.take();
        }
        if open.passthrough + open.cached == 0 {
            _all = files.take();
        }
        drop(files);
    }

    /// The file that has the data, of `leaf`. It is opened once and shared by all handles; a copy-up replaces it.
    ///
    /// # Errors
    /// The error of `leaf` or of `open(2)`; EROFS to write to a file that is not in the upper.
    pub(crate) fn file(&self, to_write: bool, leaf: impl FnOnce() -> io::Result<Arc<Leaf>>) -> io::Result<Arc<File>> {
        let mut open = hold(&self.open);
        if let Some(open) = open.as_ref()
            && let Some(file) = &open.file
            && (open.is_writable || !to_write)
        {
            return Ok(file.clone());
        }
        let leaf = leaf()?;
        let is_writable = leaf.layer == Layer::Upper && !leaf.is_metacopy();
        let file = match is_writable {
            true => leaf.entry.open(OFlags::RDWR)?,
            false if to_write => return Err(rustix::io::Errno::ROFS.into()),
            false => leaf.data().open_to_read()?,
        };
        let file = Arc::new(file);
        if let Some(open) = open.as_mut() {
            open.file = Some(file.clone());
            open.is_writable = is_writable;
        }
        Ok(file)
    }

    /// Closes the file of the lower layer, after a copy-up.
    pub(crate) fn reopen(&self) {
        if let Some(open) = hold(&self.open).as_mut() {
            open.file = None;
        }
    }
}

/// Whether a write has to clear set-id bits. The kernel leaves that to us, and passthrough would skip it.
pub(crate) fn has_set_id(stat: &Stat) -> bool {
    stat.st_mode & 0o6000 != 0
}
