//! Requests that make, remove and rename files. The kernel locks the directories of such a request. Only copy-ups of other names in them
//! run at the same time, and they take [`crate::node::DirNode::changes`] as well.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

use msb::overlay::WHOLE;
use msb::overlay::attributes::DEFAULT_ACL;
use msb::overlay::beneath::{Dir, Entry, Name};
use msb::overlay::upper::upper_of;
use msb::overlay::{self, Layer, Leaf, Merged, origin};
use rustix::fs::{FileType, Mode, RenameFlags, Stat};
use rustix::io::Errno;

use super::Tree;
use crate::caller::Caller;
use crate::lock::{hold, read, write};
use crate::node::{DirNode, Node, Place};

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;

/// A new file. One lookup of its node is counted.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) node: Arc<Node>,
    pub(crate) stat: Stat,
}

impl Tree {
    /// Makes a regular file with mknod(2), which does not open it.
    pub(crate) fn create(&self, parent: &Arc<Node>, name: &OsStr, mode: u32, caller: Caller) -> io::Result<Made> {
        self.add(parent, name, mode, caller, |dir, name, mode| dir.mknod(name, FileType::RegularFile, mode, 0))
    }

    /// Makes a device node, FIFO, socket, or a regular file.
    pub(crate) fn mknod(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        mode: u32,
        device: u32,
        caller: Caller,
    ) -> io::Result<Made> {
        let kind = FileType::from_raw_mode(mode);
        if kind == FileType::CharacterDevice && device == 0 {
            // A whiteout.
            return Err(Errno::PERM.into());
        }
        self.add(parent, name, mode, caller, |dir, name, mode| dir.mknod(name, kind, mode, u64::from(device)))
    }

    pub(crate) fn symlink(&self, parent: &Arc<Node>, name: &OsStr, target: &OsStr, caller: Caller) -> io::Result<Made> {
        self.add(parent, name, 0o777, caller, |dir, name, _| dir.symlink(name, target))
    }

    fn add(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        mode: u32,
        caller: Caller,
        make: impl Fn(&Dir, Name<'_>, Mode) -> io::Result<()>,
    ) -> io::Result<Made> {
        let above = self.in_upper(parent)?;
        let checked = Name::new(name)?;
        let new = NewFile::new(parent.dir()?, upper_of(&above)?, mode, caller)?;
        self.changing(parent, || self.writer()?.make(&above, checked, |dir, name| make(dir, name, new.mode)))?;
        let entry = upper_of(&above)?.entry(checked)?.ok_or(Errno::NOENT)?;
        let stat = new.set_owner_and_mode(&entry)?;
        let node = self.table.intern(parent, name, overlay::Node::Leaf(Leaf::new(entry, Layer::Upper)))?;
        node.leaf()?.note_no_capability();
        Ok(Made { node, stat })
    }

    pub(crate) fn mkdir(&self, parent: &Arc<Node>, name: &OsStr, mode: u32, caller: Caller) -> io::Result<Made> {
        let above = self.in_upper(parent)?;
        let checked = Name::new(name)?;
        let mut new = NewFile::new(parent.dir()?, upper_of(&above)?, mode, caller)?;
        new.set_id |= new.inherited;
        self.changing(parent, || self.writer()?.make_dir(&above, checked, new.mode))?;
        let entry = upper_of(&above)?.entry(checked)?.ok_or(Errno::NOENT)?;
        let stat = new.set_owner_and_mode(&entry)?;
        let upper = Arc::new(entry.into_dir()?);
        let node = self.table.intern(parent, name, overlay::Node::Dir(above.new_upper(upper)))?;
        Ok(Made { node, stat })
    }

    /// Makes `name` a hardlink to `node`.
    pub(crate) fn link(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &OsStr) -> io::Result<Arc<Node>> {
        self.copy_up(node, WHOLE)?;
        let above = self.in_upper(parent)?;
        let leaf = node.layer_file()?;
        let checked = Name::new(name)?;
        if let Some(place) = node.place()
            && self.may_have_origins(&place.parent).unwrap_or(false)
        {
            origin::note_in(upper_of(&above)?);
        }
        self.changing(parent, || self.writer()?.make(&above, checked, |dir, name| dir.link(name, &leaf.entry)))?;
        self.lookup(parent, name)?.ok_or_else(|| Errno::NOENT.into())
    }

    /// Removes a file that is not a directory.
    pub(crate) fn unlink(&self, parent: &Arc<Node>, name: &OsStr) -> io::Result<()> {
        let above = self.in_upper(parent)?;
        self.remove(parent, &above, Name::new(name)?)
    }

    fn remove(&self, parent: &Arc<Node>, above: &Merged, name: Name<'_>) -> io::Result<()> {
        self.changing(parent, || {
            let _moves = read(&self.table.descriptors.moves);
            self.keep_open(parent, above, name)?;
            self.writer()?.remove(above, name)
        })
    }

    /// Opens what `name` stands for if the kernel knows it and it was closed, because it loses the name.
    fn keep_open(&self, parent: &Arc<Node>, above: &Merged, name: Name<'_>) -> io::Result<()> {
        if self.table.descriptors.is_any_closed()
            && let Some(found) = above.lookup(name)?
            && let Some(node) = self.table.known(parent.id, name.as_os_str(), &found)?
        {
            node.keep_open(parent, name.as_os_str())?;
        }
        Ok(())
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&self, parent: &Arc<Node>, name: &OsStr) -> io::Result<()> {
        let above = self.in_upper(parent)?;
        let name = Name::new(name)?;
        let is_removed = self.changing(parent, || {
            let _moves = read(&self.table.descriptors.moves);
            if !self.is_in_upper_alone(&above, name)? {
                return Ok(false);
            }
            match upper_of(&above)?.rmdir(name) {
                // It may hold whiteouts, which `remove` deletes.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
                other => other.map(|()| true),
            }
        })?;
        if is_removed {
            return Ok(());
        }
        self.check_empty(&above, name)?;
        self.remove(parent, &above, name)
    }

    /// Whether rmdir(2) in the upper is enough: the kernel knows the directory, no lower layer has it, and no node is closed.
    fn is_in_upper_alone(&self, parent: &Merged, name: Name<'_>) -> io::Result<bool> {
        if self.table.descriptors.is_any_closed() {
            return Ok(false);
        }
        let stat = upper_of(parent)?.stat_of(name)?;
        let is_alone = stat.is_some_and(|stat| self.table.is_in_upper_alone(&stat));
        Ok(is_alone && !parent.shows_through(name)?)
    }

    fn check_empty(&self, parent: &Merged, name: Name<'_>) -> io::Result<()> {
        match parent.lookup(name)? {
            Some(overlay::Node::Dir(dir)) if dir.is_empty()? => Ok(()),
            Some(overlay::Node::Dir(_)) => Err(Errno::NOTEMPTY.into()),
            Some(overlay::Node::Leaf(_)) => Err(Errno::NOTDIR.into()),
            None => Err(Errno::NOENT.into()),
        }
    }

    pub(crate) fn rename(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        to: &Arc<Node>,
        to_name: &OsStr,
        flags: RenameFlags,
    ) -> io::Result<()> {
        self.with_child(parent, name, |moved| {
            if flags != RenameFlags::EXCHANGE {
                return self.rename_known((parent, name, moved), (to, to_name, None), flags);
            }
            self.with_child(to, to_name, |other| {
                self.rename_known((parent, name, moved), (to, to_name, Some(other)), flags)
            })
        })
    }

    /// Renames `moved`, or exchanges it with `other`.
    fn rename_known(
        &self,
        (parent, name, moved): (&Arc<Node>, &OsStr, &Arc<Node>),
        (to, to_name, other): (&Arc<Node>, &OsStr, Option<&Arc<Node>>),
        flags: RenameFlags,
    ) -> io::Result<()> {
        let exchange = other.is_some();
        let (checked, to_checked) = (Name::new(name)?, Name::new(to_name)?);
        let both = || [Some(moved), other].into_iter().flatten();
        // Checked before anything is copied up for a rename that fails.
        both().try_for_each(|node| self.check_movable(node))?;
        // The kernel lets a file replace no directory.
        if !exchange && moved.dir().is_ok() {
            let to_above = to.merged()?;
            if matches!(to_above.lookup(to_checked)?, Some(overlay::Node::Dir(_))) {
                self.check_empty(&to_above, to_checked)?;
            }
        }
        both().try_for_each(|node| self.copy_up(node, WHOLE))?;
        both().try_for_each(|node| self.redirect(node, parent.id == to.id))?;
        let (above, to_above) = (self.in_upper(parent)?, self.in_upper(to)?);
        // A file takes its origin along.
        if parent.id != to.id && self.may_have_origins(parent)? {
            origin::note_in(upper_of(&to_above)?);
        }
        if parent.id != to.id && exchange && self.may_have_origins(to)? {
            origin::note_in(upper_of(&above)?);
        }
        let rename = || {
            let _moves = write(&self.table.descriptors.moves);
            if !exchange {
                self.keep_open(to, &to_above, to_checked)?;
            }
            self.writer()?.rename(&above, checked, &to_above, to_checked, flags)?;
            moved.renamed(parent, name, to, to_name);
            if let Some(other) = other {
                other.renamed(to, to_name, parent, name);
            }
            Ok(())
        };
        if parent.id == to.id {
            return self.changing(parent, rename);
        } else if parent.id < to.id {
            self.changing(parent, || self.changing(to, rename))?;
        } else {
            self.changing(to, || self.changing(parent, rename))?;
        }
        // The number of ".." in a directory.
        both().filter(|node| node.dir().is_ok()).for_each(|node| self.forget_listing(node));
        Ok(())
    }

    /// Refuses to rename a directory that a lower layer has, with EXDEV, unless it can get a redirect: its lower part cannot move.
    /// mv(1) then copies and removes, as it does between file systems.
    fn check_movable(&self, node: &Arc<Node>) -> io::Result<()> {
        match node.dir() {
            Ok(_) if !self.can_redirect && !node.merged()?.lower.is_empty() => Err(Errno::XDEV.into()),
            _ => Ok(()),
        }
    }

    /// Gives a directory that a lower layer has a redirect, before it is renamed. `stays`: whether it stays in its directory.
    fn redirect(&self, node: &Arc<Node>, stays: bool) -> io::Result<()> {
        let Ok(dir) = node.dir() else { return Ok(()) };
        if node.merged()?.lower.is_empty() {
            return Ok(());
        }
        let mut way = Vec::new();
        let mut at = node.clone();
        while let Some(Place { parent, name }) = at.place() {
            way.push((at.merged()?, name.into()));
            at = parent;
        }
        let redirected = self.writer()?.redirect(&way, stays)?;
        // From now on the directory in the upper identifies it.
        self.table.note_redirect(node, &redirected)?;
        dir.slot.set(node.id, redirected, &self.table.descriptors)
    }

    fn changing<T>(&self, parent: &Node, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let dir = parent.dir()?;
        let _changes = hold(&dir.changes);
        dir.count_change();
        let changed = change();
        dir.count_change();
        changed
    }
}

/// The mode and owner of a new file, and what it inherits from its directory.
#[derive(Debug)]
struct NewFile {
    /// The mode to make it with. If the directory has a default ACL, the umask does not apply.
    mode: Mode,
    set_id: u32,
    inherited: u32,
    uid: u32,
    gid: u32,
}

impl NewFile {
    /// `upper`: the directory `parent` in the upper.
    fn new(parent: &DirNode, upper: &Dir, mode: u32, caller: Caller) -> io::Result<Self> {
        let stat: Stat = upper.stat()?;
        let inherited = stat.st_mode & SET_GID;
        let has_acl = parent.has_default_acl(|| {
            let mut acl = [0u8; 0];
            // Only its size is read.
            rustix::fs::getxattr(upper.proc_path(), DEFAULT_ACL, &mut acl[..]).is_ok()
        });
        let mode = if has_acl { mode } else { mode & !caller.umask };
        Ok(Self {
            mode: Mode::from_raw_mode(mode & 0o7777),
            set_id: mode & (SET_UID | SET_GID),
            inherited,
            uid: caller.uid,
            gid: if inherited == 0 { caller.gid } else { stat.st_gid },
        })
    }

    /// Sets the owner of the new file, which clears set-id bits, and then the bits. Returns the attributes.
    fn set_owner_and_mode(&self, entry: &Entry) -> io::Result<Stat> {
        let mut stat = *entry.stat();
        if (stat.st_uid, stat.st_gid) != (self.uid, self.gid) {
            entry.set_owner(Some(self.uid), Some(self.gid))?;
            stat = entry.stat_now()?;
        }
        if entry.file_type() != FileType::Symlink && stat.st_mode & (SET_UID | SET_GID) != self.set_id {
            entry.set_mode(Mode::from_raw_mode(stat.st_mode & 0o1777 | self.set_id))?;
            stat = entry.stat_now()?;
        }
        Ok(stat)
    }
}
