//! Changes to the writable layer: create, remove, copy up.
//!
//! What replaces something is prepared in the work directory and renamed into place, so whoever looks sees the old
//! file or the new one. Whiteouts and opaque directories appear by themselves, where a lower layer would show through.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FileType, Mode, OFlags, RenameFlags, SeekFrom, Stat, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::beneath::{Dir, Entry, Name, times_of};
use super::resolve::Step;
use super::{Layer, Leaf, Merged, marks, whiteout};
use crate::interrupt;
use crate::lock::{self, Lock};

/// What our names in a work directory begin with; the kernel's overlayfs keeps others there.
const ASIDE_PREFIX: &str = "msb.";

/// The right to change an upper: its work directory, locked.
#[derive(Debug)]
pub struct Writer {
    pub(super) work: Dir,
    _lock: OwnedFd,
    counter: AtomicU64,
    durable: bool,
}

/// What [`copy_data`] needs to know of how much there is.
pub const WHOLE: u64 = u64::MAX;

/// A file that one read has whole, in bytes: the kernel's own copy takes longer to begin.
const SMALL: u64 = 1 << 15;

/// How much is copied at once by hand, in bytes: it stays in a processor's cache.
const BLOCK: usize = 1 << 17;
/// What that memory is aligned to, in bytes: the kernel then copies into it in about half the time.
const PAGE: usize = 4096;

/// The xattr that says who may do what with a file.
const ACL: &str = "system.posix_acl_access";
/// And the one that the files made in a directory inherit.
pub const DEFAULT_ACL: &str = "system.posix_acl_default";
/// The xattr that a change of a file's data removes.
const CAPABILITY: &str = "security.capability";

/// What becomes of overlayfs's own xattrs in a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Private {
    /// They stay behind: they are about the place that the file had.
    Left,
    /// They are copied: the copy takes the file's place.
    Kept,
    /// They are copied, but for those of a metacopy: the copy has its own data.
    KeptWithData,
}

impl Writer {
    /// Locks a work directory, and clears away what a killed writer left in it.
    ///
    /// `durable`: whether a copied-up file is on disk before it shows. A caller that syncs the whole upper before
    /// anyone sees it goes without.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where another process writes; else what opening says.
    pub fn open(work: &Path, durable: bool) -> io::Result<Self> {
        let lock = lock::open(work, Lock::TryExclusive)?;
        let work = Dir::open(work)?;
        let mut left = Vec::<OsString>::new();
        for child in work.read()? {
            let name = child?.file_name().to_string_lossy().into_owned();
            if name.starts_with(ASIDE_PREFIX) {
                left.push(name.into());
            }
        }
        for name in &left {
            work.remove_tree(Name::new(name)?)?;
        }
        // What is prepared here inherits nothing.
        disinherit(&work.to_entry()?)?;
        Ok(Self { work, _lock: lock, counter: AtomicU64::new(0), durable })
    }

    pub(super) fn fresh_name(&self) -> OsString {
        format!("{ASIDE_PREFIX}{}", self.counter.fetch_add(1, Ordering::Relaxed)).into()
    }

    /// A directory for the caller alone.
    ///
    /// # Errors
    /// What `mkdirat(2)` says.
    pub fn scratch(&self) -> io::Result<Scratch<'_>> {
        let name = self.fresh_name();
        let dir = self.work.mkdir(Name::new(&name)?, Mode::RWXU)?;
        Ok(Scratch { writer: self, name, dir })
    }

    /// Prepares a file in the work directory with `make`, then puts it at `name`, over whatever the upper has there.
    ///
    /// # Errors
    /// What `make` or renaming says; then nothing is left over and the old file stays.
    pub fn place<T>(
        &self,
        parent: &Dir,
        name: Name<'_>,
        make: impl FnOnce(&Dir, Name<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let aside = self.fresh_name();
        let aside = Name::new(&aside)?;
        let placed = make(&self.work, aside).and_then(|made| {
            match self.work.rename(aside, parent, name, RenameFlags::empty()) {
                // A directory cannot replace a whiteout, nor a file a directory, but each can change places with it.
                Err(error) if is_type_clash(&error) => {
                    self.work.rename(aside, parent, name, RenameFlags::EXCHANGE)?;
                    self.work.remove_tree(aside)?;
                }
                other => other?,
            }
            Ok(made)
        });
        if placed.is_err() {
            let _ = self.work.remove_tree(aside);
        }
        placed
    }

    /// Makes `name` one more name of `file`, over whatever the upper has there.
    ///
    /// # Errors
    /// As for [`Writer::place`].
    pub fn place_link(&self, parent: &Dir, name: Name<'_>, file: &Entry) -> io::Result<()> {
        let inode = |entry: &Entry| (entry.stat().st_dev, entry.stat().st_ino);
        // rename(2) does nothing with two names of one file, and would leave the one in the work directory.
        if parent.entry(name)?.is_some_and(|there| inode(&there) == inode(file)) {
            return Ok(());
        }
        self.place(parent, name, |work, aside| work.link(aside, file))
    }

    /// Removes `name` with everything below it: a whiteout where a lower layer has it, else nothing is left.
    ///
    /// # Errors
    /// What removing says. What is not there is no error.
    pub fn remove(&self, parent: &Merged, name: Name<'_>) -> io::Result<()> {
        let upper = upper_of(parent)?;
        if parent.lookup_lower(name)?.is_some() {
            return match whiteout::make_whiteout(upper, name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.place(upper, name, whiteout::make_whiteout)
                }
                other => other,
            };
        }
        match upper.unlink(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::ISDIR | Errno::PERM)) => {
                if upper.rmdir(name).is_ok() {
                    return Ok(());
                }
                let aside = self.fresh_name();
                let aside = Name::new(&aside)?;
                upper.rename(name, &self.work, aside, RenameFlags::empty())?;
                self.work.remove_tree(aside)
            }
            other => other,
        }
    }

    /// Copies a directory of a lower layer up, without what is in it: owner, mode, xattrs and times, the parent's
    /// times kept. Two callers at once is fine, one of them copies.
    ///
    /// # Errors
    /// What making or setting says.
    pub fn copy_up_dir(&self, parent: &Dir, name: Name<'_>, from: &Entry) -> io::Result<Dir> {
        if let Some(there) = parent.entry(name)?
            && there.is_dir()
        {
            return there.to_dir();
        }
        keeping_times(parent, || {
            self.place(parent, name, |work, aside| {
                let dir = work.mkdir(aside, Mode::from_raw_mode(0o700))?;
                copy_attributes(from, &dir.to_entry()?)?;
                Ok(dir)
            })
        })
    }

    /// Copies a file up, with its first `length` bytes ([`WHOLE`] for all): data, owner, mode, xattrs and times, the parent's
    /// times kept. A hardlink to it stays below.
    ///
    /// # Errors
    /// What copying says: ENOSPC; then the upper is as it was.
    pub fn copy_up(&self, parent: &Dir, name: Name<'_>, from: &Leaf, length: u64) -> io::Result<Entry> {
        keeping_times(parent, || self.place(parent, name, |work, aside| self.copy_leaf(from, work, aside, length)))
    }

    /// Makes a copy of a file that is not a directory, attributes and all, at a free name of any directory of the upper.
    ///
    /// # Errors
    /// What copying says.
    pub fn copy_leaf(&self, from: &Leaf, to: &Dir, name: Name<'_>, length: u64) -> io::Result<Entry> {
        let private = if from.layer == Layer::Upper { Private::KeptWithData } else { Private::Left };
        let attributes = Attributes::of(from.entry.stat());
        let copy = copy_file(&from.entry, from.data(), to, name, length, &attributes, private)?;
        if self.durable && copy.file_type() == FileType::RegularFile {
            rustix::fs::fdatasync(&copy)?;
        }
        Ok(copy)
    }

    /// Gives a metacopy of the upper its own data, the first `length` bytes of it, in its place: all its names have it then. It
    /// stays a metacopy until the data is there.
    ///
    /// # Errors
    /// What copying says: ENOSPC.
    pub fn fill(&self, leaf: &Leaf, length: u64) -> io::Result<Entry> {
        let before = leaf.entry.stat_now()?;
        let capability = leaf.entry.xattr(CAPABILITY.as_ref()).ok();
        let file = leaf.entry.open(OFlags::RDWR)?;
        let size = u64::try_from(before.st_size).unwrap_or(0);
        let length = length.min(size);
        if length > 0 {
            copy_data(&leaf.data().open_to_read()?, &file, length)?;
        }
        if self.durable {
            rustix::fs::fdatasync(&file)?;
        }
        marks::remove_metacopy(&leaf.entry)?;
        file.set_len(length)?;
        if let Some(capability) = capability {
            leaf.entry.set_xattr(CAPABILITY.as_ref(), &capability, XattrFlags::empty())?;
        }
        leaf.entry.set_times(&times_of(&before))?;
        Entry::of_open(file)
    }

    /// Copies every directory of `steps` up that is not in the upper yet, so that the last one can be written.
    ///
    /// # Errors
    /// As [`Self::copy_up_dir`].
    pub fn copy_up_steps(&self, steps: &mut Arc<Vec<Step>>) -> io::Result<()> {
        let steps = Arc::make_mut(steps);
        for place in 1..steps.len() {
            let (before, rest) = steps.split_at_mut(place);
            let step = &mut rest[0];
            if step.dir.upper.is_none() {
                let parent = upper_of(&before[place - 1].dir)?;
                let from = step.dir.top().0.to_entry()?;
                step.dir.upper = Some(Arc::new(self.copy_up_dir(parent, Name::new(&step.name)?, &from)?));
            }
        }
        Ok(())
    }
}

/// An empty directory on the upper's file system for what its user needs for a while. It goes with the value; after a kill the next
/// writer removes it.
#[derive(Debug)]
pub struct Scratch<'a> {
    writer: &'a Writer,
    name: OsString,
    /// The directory.
    pub dir: Dir,
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        if let Ok(name) = Name::new(&self.name) {
            let _ = self.writer.work.remove_tree(name);
        }
    }
}

fn is_type_clash(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOTDIR | Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST))
}

/// Keeps writers away from an upper for as long as the lock is held, as a read-only mount of it must.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] where another process writes; else what opening says.
pub fn lock_to_read(work: &Path) -> io::Result<OwnedFd> {
    lock::open(work, Lock::TryShared)
}

/// Makes an empty upper and its work directory for a stack of lower directories. The upper's own attributes are what
/// the merged root shows, so they are the lower root's.
///
/// # Errors
/// What making says: EEXIST.
pub fn create(upper: &Path, work: &Path, lower: &Merged) -> io::Result<()> {
    rustix::fs::mkdir(work, Mode::from_raw_mode(0o700))?;
    create_upper(upper, lower)
}

/// Makes an empty upper alone.
///
/// # Errors
/// What making says: EEXIST.
pub fn create_upper(upper: &Path, lower: &Merged) -> io::Result<()> {
    rustix::fs::mkdir(upper, Mode::from_raw_mode(0o700))?;
    let made = Dir::open(upper)?.to_entry()?;
    disinherit(&made)?;
    copy_attributes(&lower.top().0.to_entry()?, &made)
}

/// Makes a copy of a file that is not a directory, with its xattrs, at a free name. Where `length` is less than all of a regular
/// file, it is cut off there.
///
/// # Errors
/// What copying says.
pub fn copy_leaf_as(from: &Entry, to: &Dir, name: Name<'_>, length: u64, attributes: &Attributes) -> io::Result<Entry> {
    copy_file(from, from, to, name, length, attributes, Private::Left)
}

/// Makes a copy of a file of an upper for another upper that takes its place: a metacopy stays one.
///
/// # Errors
/// What copying says.
pub fn clone_leaf(from: &Entry, to: &Dir, name: Name<'_>) -> io::Result<Entry> {
    copy_file(from, from, to, name, WHOLE, &Attributes::of(from.stat()), Private::Kept)
}

/// Copies a file whose data is in `data`.
fn copy_file(
    from: &Entry,
    data: &Entry,
    to: &Dir,
    name: Name<'_>,
    length: u64,
    attributes: &Attributes,
    private: Private,
) -> io::Result<Entry> {
    interrupt::check()?;
    let stat = from.stat();
    if from.file_type() == FileType::RegularFile {
        let file = to.create(name, Mode::from_raw_mode(attributes.mode & 0o777))?;
        let data = data.open_to_read()?;
        if length > 0 && stat.st_size > 0 {
            copy_data(&data, &file, length.min(stat.st_size as u64))?;
        }
        let copy = Entry::of_open(file)?;
        attributes.give(from, &copy, private)?;
        return Ok(copy);
    }
    match from.file_type() {
        FileType::Symlink => to.symlink(name, &from.read_link()?)?,
        FileType::Directory => return Err(Errno::ISDIR.into()),
        special => to.mknod(name, special, Mode::from_raw_mode(0o600), stat.st_rdev)?,
    }
    let copy = to.entry(name)?.ok_or(Errno::NOENT)?;
    attributes.give(from, &copy, private)?;
    Ok(copy)
}

/// Takes the ACLs away that a directory has from the one where the caller keeps his state: they are not the image's.
///
/// # Errors
/// What `removexattr(2)` says.
pub fn disinherit(dir: &Entry) -> io::Result<()> {
    for acl in [DEFAULT_ACL, ACL] {
        if dir.xattr(acl.as_ref()).is_ok() {
            dir.remove_xattr(acl.as_ref())?;
        }
    }
    Ok(())
}

/// The part of a merged directory that can be written.
///
/// # Errors
/// EROFS where the directory has not been copied up.
pub fn upper_of(dir: &Merged) -> io::Result<&Arc<Dir>> {
    dir.upper.as_ref().ok_or_else(|| Errno::ROFS.into())
}

/// Runs `change`, then gives `dir` back the times it had.
///
/// # Errors
/// What `change` or `utimensat(2)` says.
pub fn keeping_times<T>(dir: &Dir, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = dir.stat()?;
    let changed = change()?;
    dir.to_entry()?.set_times(&times_of(&before))?;
    Ok(changed)
}

/// Gives `to` the owner, xattrs, mode and times of `from`.
///
/// # Errors
/// What setting says.
pub fn copy_attributes(from: &Entry, to: &Entry) -> io::Result<()> {
    Attributes::of(from.stat()).give(from, to, Private::Left)
}

/// The same for a directory of an upper that takes the place of `from`, with overlayfs's own xattrs.
///
/// # Errors
/// What setting says.
pub fn clone_attributes(from: &Entry, to: &Entry) -> io::Result<()> {
    Attributes::of(from.stat()).give(from, to, Private::Kept)
}

/// What a copy is given besides its data and xattrs.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// Access and modification time.
    pub times: Timestamps,
}

impl Attributes {
    /// A file's own.
    pub fn of(stat: &Stat) -> Self {
        Self { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777, times: times_of(stat) }
    }

    /// Gives them to `to`, with the xattrs of `from`, in the order in which the kernel does not undo them: a change of owner
    /// clears set-id bits and capabilities, an ACL changes the mode, everything changes the times. Skips calls whose effect
    /// [`Entry::stat`] of `to` already shows; that must be current.
    ///
    /// # Errors
    /// What setting says.
    pub fn give(&self, from: &Entry, to: &Entry, private: Private) -> io::Result<()> {
        let is = to.stat();
        let is_owned = (is.st_uid, is.st_gid) == (self.uid, self.gid);
        if !is_owned {
            to.set_owner(Some(self.uid), Some(self.gid))?;
        }
        let has_xattrs = copy_xattrs_with(from, to, private, |_| true)?;
        let is_symlink = to.file_type() == FileType::Symlink;
        if !is_symlink && (!is_owned || has_xattrs || is.st_mode & 0o7777 != self.mode) {
            to.set_mode(Mode::from_raw_mode(self.mode))?;
        }
        to.set_times(&self.times)
    }
}

/// Gives `to` those xattrs of `from` that `which` wants, overlayfs's own left out. One that the file system of `to` does
/// not take is left behind, as the kernel's overlayfs does it, unless it says who may do what. True: there was one.
///
/// # Errors
/// What reading or setting says.
pub fn copy_xattrs(from: &Entry, to: &Entry, which: impl Fn(&OsStr) -> bool) -> io::Result<bool> {
    copy_xattrs_with(from, to, Private::Left, which)
}

fn copy_xattrs_with(from: &Entry, to: &Entry, private: Private, which: impl Fn(&OsStr) -> bool) -> io::Result<bool> {
    let mut is_changed = false;
    for name in from.xattr_names()? {
        let stays = whiteout::is_private_xattr(&name)
            && !marks::is_escaped_xattr(&name)
            && match private {
                Private::Left => true,
                Private::Kept => false,
                Private::KeptWithData => marks::is_of_metacopy(&name),
            };
        if stays || !which(&name) {
            continue;
        }
        let is_about_rights =
            ["security.", "system.posix_acl_"].iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()));
        match to.set_xattr(&name, &from.xattr(&name)?, XattrFlags::empty()) {
            Err(error) if !is_about_rights && Errno::from_io_error(&error) == Some(Errno::NOTSUP) => {}
            other => other?,
        }
        is_changed = true;
    }
    Ok(is_changed)
}

/// Copies the first `length` bytes inside the kernel, holes as holes, by reference where the file system can.
///
/// # Errors
/// What reading or writing says: ENOSPC.
pub fn copy_data(from: &File, to: &File, length: u64) -> io::Result<()> {
    let stat = rustix::fs::fstat(from)?;
    let size = stat.st_size as u64;
    if size <= length && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    if size <= SMALL {
        return copy_by_hand(from, to, 0, length);
    }
    if stat.st_blocks as u64 * 512 >= size {
        return copy_range(from, to, 0, length);
    }
    to.set_len(length)?;
    let mut at = 0;
    while at < length {
        // A file system without SEEK_DATA has data everywhere.
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(_) => at,
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start)).unwrap_or(length).min(length);
        copy_range(from, to, start, end)?;
        at = end.max(start + 1);
    }
    Ok(())
}

/// How much the kernel copies at once, in bytes: a signal of a person has to wait for it.
const MOST_AT_ONCE: usize = 64 << 20;

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        interrupt::check()?;
        let left = usize::try_from(end - read_at).unwrap_or(usize::MAX).min(MOST_AT_ONCE);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), left) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return copy_by_hand(from, to, read_at, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Copies all that can be read, whatever size the file says it has.
///
/// # Errors
/// What reading or writing says: ENOSPC.
pub fn copy_to_end(from: &File, to: &File) -> io::Result<()> {
    copy_by_hand(from, to, 0, u64::MAX)
}

fn copy_by_hand(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let size = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(BLOCK);
    let mut space = vec![0u8; size + PAGE];
    let aligned = space.as_ptr().align_offset(PAGE);
    let block = &mut space[aligned..aligned + size];
    while at < end {
        interrupt::check()?;
        let wanted = size.min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let got = from.read_at(&mut block[..wanted], at)?;
        if got == 0 {
            break;
        }
        to.write_all_at(&block[..got], at)?;
        at += got as u64;
    }
    Ok(())
}
