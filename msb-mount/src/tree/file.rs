//! Requests that act on one file, whatever its name: attributes, xattrs, data.

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fuser::{BackingId, OpenAccMode, TimeOrNow};
use msb::overlay::WHOLE;
use msb::overlay::attributes::{ACCESS_ACL, CAPABILITY};
use msb::overlay::beneath::Entry;
use msb::overlay::{Layer, whiteout};
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::Tree;
use crate::attr::timespec;
use crate::caller::Caller;
use crate::host_ids;
use crate::leaf::{BackingOf, IoMode, LeafNode, has_set_id};
use crate::node::{Kind, Node};

/// The prefix of xattrs that only CAP_SYS_ADMIN may see and set. The kernel checks all but their names in a list.
const TRUSTED: &[u8] = b"trusted.";

/// The attributes that a request sets; `None` leaves one alone.
#[derive(Debug, Default)]
pub(crate) struct SetAttributes {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) atime: Option<TimeOrNow>,
    pub(crate) mtime: Option<TimeOrNow>,
}

impl Tree {
    /// Runs `on` on the file that has a node's attributes.
    fn on_entry<T>(&self, node: &Arc<Node>, on: impl FnOnce(&Entry) -> io::Result<T>) -> io::Result<T> {
        match &node.kind {
            Kind::Dir(_) => on(&node.merged()?.top().0.to_entry()?),
            Kind::Leaf(_) => on(&node.layer_file()?.entry),
        }
    }

    pub(crate) fn set_attributes(&self, node: &Arc<Node>, requested: &SetAttributes, caller: Caller) -> io::Result<()> {
        self.copy_up(node, requested.size.unwrap_or(WHOLE))?;
        self.on_entry(node, |entry| {
            if requested.uid.is_some() || requested.gid.is_some() {
                // The old group decides whether the set-group-id bit stays.
                if caller.uid != 0 {
                    clear_set_id(entry, caller)?;
                }
                entry.set_owner(requested.uid, requested.gid)?;
            }
            if let Some(mode) = requested.mode {
                entry.set_mode(Mode::from_raw_mode(mode & 0o7777))?;
            }
            if let Some(size) = requested.size {
                node.file(true)?.set_len(size)?;
                if caller.uid != 0 {
                    clear_set_id(entry, caller)?;
                }
            }
            if requested.atime.is_some() || requested.mtime.is_some() {
                entry.set_times(&Timestamps {
                    last_access: timespec(requested.atime),
                    last_modification: timespec(requested.mtime),
                })?;
            }
            Ok(())
        })
    }

    pub(crate) fn read_link(&self, node: &Arc<Node>) -> io::Result<OsString> {
        self.table.within_limit(|| node.layer_file()?.entry.read_link())
    }

    /// Opens a regular file. `back` registers a backing file with the kernel.
    pub(crate) fn open(
        &self,
        node: &Arc<Node>,
        flags: OFlags,
        caller: Caller,
        back: impl FnOnce(&Entry) -> io::Result<BackingId>,
    ) -> io::Result<IoMode> {
        let leaf = node.leaf()?;
        let to_write = flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
        let truncate = flags.contains(OFlags::TRUNC);
        if to_write {
            self.copy_up(node, if truncate { 0 } else { WHOLE })?;
        }
        let current = self.table.within_limit(|| node.layer_file())?;
        if truncate {
            current.entry.open(OFlags::WRONLY | OFlags::TRUNC)?;
            if caller.uid != 0 {
                clear_set_id(&current.entry, caller)?;
            }
        }
        // A lower file may be copied up while it is open, and its backing file cannot change then.
        let is_whole = current.layer == Layer::Upper && !current.is_metacopy();
        let is_settled = is_whole || self.writer.is_none();
        let of = BackingOf::caller(caller);
        let passthrough = is_settled && self.passthrough.load(Ordering::Relaxed);
        Ok(leaf.opened(
            of,
            to_write,
            passthrough.then_some(|| {
                // Attributes with bits that are set later are not cached (see `may_lose_set_id`): the open files are locked here.
                if self.writer.is_some() && has_set_id(&current.entry.stat_now()?) {
                    return Err(Errno::PERM.into());
                }
                of.register(|| back(current.data()))
            }),
        ))
    }

    /// Counts a release. Writes through a mapping of a backing file have changed attributes without FUSE's notice. A file that was
    /// opened for writing only cannot be mapped.
    pub(crate) fn release(&self, node: &Arc<Node>, handle: u64, mode: OpenAccMode) -> io::Result<()> {
        let leaf = node.leaf()?;
        leaf.released(handle);
        if handle != 0 && mode == OpenAccMode::O_RDWR && !leaf.report(&node.layer_file()?.entry.stat_now()?) {
            self.forget_attributes(node);
        }
        Ok(())
    }

    /// Reads until `block` is full or the file ends: the kernel takes a short reply for the end of the file.
    pub(crate) fn read(&self, node: &Arc<Node>, offset: u64, block: &mut [u8]) -> io::Result<usize> {
        let file = self.table.within_limit(|| node.file(false))?;
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(&file, rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(filled)
    }

    /// Writes. `clearing`: the caller whose write clears set-id bits.
    pub(crate) fn write(
        &self,
        node: &Arc<Node>,
        offset: u64,
        data: &[u8],
        clearing: Option<Caller>,
    ) -> io::Result<usize> {
        let file = self.table.within_limit(|| node.file(true))?;
        std::os::unix::fs::FileExt::write_all_at(&*file, data, offset)?;
        if let Some(caller) = clearing
            && clear_set_id(&node.layer_file()?.entry, caller)?
        {
            self.forget_attributes(node);
        }
        Ok(data.len())
    }

    /// Allocates or frees space, which clears set-id bits as a write does.
    pub(crate) fn allocate(
        &self,
        node: &Arc<Node>,
        mode: FallocateFlags,
        offset: u64,
        length: u64,
        caller: Caller,
    ) -> io::Result<()> {
        rustix::fs::fallocate(&*node.file(true)?, mode, offset, length)?;
        if caller.uid != 0 {
            clear_set_id(&node.layer_file()?.entry, caller)?;
        }
        Ok(())
    }

    /// Copies data from one file to another in the kernel. Returns how many bytes.
    pub(crate) fn copy_range(
        &self,
        (from, mut from_at): (&Arc<Node>, u64),
        (to, mut to_at): (&Arc<Node>, u64),
        length: u64,
        caller: Caller,
    ) -> io::Result<usize> {
        let (source, target) = (from.file(false)?, to.file(true)?);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
        let copied = rustix::fs::copy_file_range(&*source, Some(&mut from_at), &*target, Some(&mut to_at), length)?;
        if caller.uid != 0 {
            clear_set_id(&to.layer_file()?.entry, caller)?;
        }
        Ok(copied)
    }

    /// Syncs a file or directory of the upper.
    pub(crate) fn sync(&self, node: &Arc<Node>, data_only: bool) -> io::Result<()> {
        match &node.kind {
            Kind::Leaf(leaf) if leaf.slot.layer() == Layer::Upper => {
                let current = node.layer_file()?;
                if current.is_metacopy() {
                    return current.entry.open_to_read()?.sync_all();
                }
                let file = node.file(false)?;
                if data_only { file.sync_data() } else { file.sync_all() }
            }
            Kind::Dir(dir) if dir.slot.layer() == Layer::Upper => {
                let merged = node.merged()?;
                let (dir, _) = merged.top();
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                Ok(rustix::fs::fsync(rustix::fs::openat(dir, c".", flags, Mode::empty())?)?)
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn xattr(&self, node: &Arc<Node>, name: &OsStr) -> io::Result<Vec<u8>> {
        if whiteout::is_private_xattr(name) {
            return Err(Errno::NODATA.into());
        }
        let leaf = node.leaf().ok().filter(|_| name == CAPABILITY);
        if leaf.is_some_and(LeafNode::lacks_capability) {
            return Err(Errno::NODATA.into());
        }
        let value = self.on_entry(node, |entry| entry.xattr(name));
        if let (Some(leaf), Err(error)) = (leaf, &value)
            && Errno::from_io_error(error) == Some(Errno::NODATA)
        {
            leaf.note_no_capability();
        }
        value.map(|value| host_ids::xattr_to_host(name, value))
    }

    /// The names of the xattrs that the caller may see, each with a NUL at its end.
    pub(crate) fn xattr_names(&self, node: &Arc<Node>, caller: Caller) -> io::Result<Vec<u8>> {
        use std::os::unix::ffi::OsStrExt;
        let mut names = self.on_entry(node, Entry::xattr_names)?;
        names.retain(|name| !whiteout::is_private_xattr(name));
        let is_trusted = |name: &OsString| name.as_bytes().starts_with(TRUSTED);
        if names.iter().any(is_trusted) && !caller.is_admin() {
            names.retain(|name| !is_trusted(name));
        }
        let mut list = Vec::new();
        for name in names {
            list.extend_from_slice(name.as_bytes());
            list.push(0);
        }
        Ok(list)
    }

    pub(crate) fn set_xattr(
        &self,
        node: &Arc<Node>,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        caller: Caller,
    ) -> io::Result<()> {
        if whiteout::is_private_xattr(name) {
            return Err(Errno::PERM.into());
        }
        let value = host_ids::xattr_of_request(name, value).ok_or(Errno::INVAL)?;
        self.copy_up(node, WHOLE)?;
        if let Ok(leaf) = node.leaf()
            && name == CAPABILITY
        {
            leaf.may_get_capability();
        }
        let set = self.on_entry(node, |entry| {
            entry.set_xattr(name, &value, XattrFlags::from_bits_retain(flags as u32))?;
            let stat = entry.stat_now()?;
            // As chmod(2) does. The caller's supplementary groups are unknown here, and clearing the bit is safe.
            if name == ACCESS_ACL && stat.st_mode & 0o2000 != 0 && caller.uid != 0 && caller.gid != stat.st_gid {
                entry.set_mode(Mode::from_raw_mode(stat.st_mode & 0o5777))?;
            }
            Ok(())
        });
        if let Ok(dir) = node.dir() {
            dir.forget_default_acl();
        }
        set
    }

    pub(crate) fn remove_xattr(&self, node: &Arc<Node>, name: &OsStr) -> io::Result<()> {
        if whiteout::is_private_xattr(name) {
            return Err(Errno::PERM.into());
        }
        // An xattr that does not exist needs no copy-up.
        self.xattr(node, name)?;
        self.copy_up(node, WHOLE)?;
        self.on_entry(node, |entry| entry.remove_xattr(name))
    }
}

/// Clears set-id bits, as the kernel does when anyone but root changes the data. Without the group's execute bit, a set-group-id bit stays
/// for members of the group. Returns whether there were any.
fn clear_set_id(entry: &Entry, caller: Caller) -> io::Result<bool> {
    let stat = entry.stat_now()?;
    if entry.file_type() != FileType::RegularFile || !has_set_id(&stat) {
        return Ok(false);
    }
    let keeps_gid = stat.st_mode & 0o010 == 0 && caller.gid == stat.st_gid;
    let cleared = if keeps_gid { 0o4000 } else { 0o6000 };
    entry.set_mode(Mode::from_raw_mode(stat.st_mode & 0o7777 & !cleared))?;
    Ok(true)
}
